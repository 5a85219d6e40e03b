/**
 * Engine against the kernel's VXLAN in Docker's layout, same run, medians. By hand:
 *   node dist/test/kernel/engine-bench.js [rounds] [seconds] [variant…]
 */
import { EngineLab, type LabOptions, nativeProgram } from "./engine-lab.ts";

const VARIANTS: Readonly<Record<string, LabOptions>> = {
  "kernel-bridge": { sides: ["kernel", "kernel"], layout: "bridge" },
  "kernel-macvlan": { sides: ["kernel", "kernel"], layout: "macvlan" },
  "engine-bridge": { sides: ["engine", "engine"], layout: "bridge" },
  "engine-macvlan": { sides: ["engine", "engine"], layout: "macvlan" },
  "engine-nospin": { sides: ["engine", "engine"], layout: "macvlan", spinMicros: 0 },
  "engine-spin200": { sides: ["engine", "engine"], layout: "macvlan", spinMicros: 200 },
};

interface Figure {
  readonly name: string;
  readonly args: (address: string, seconds: number) => readonly string[];
}

const FIGURES: readonly Figure[] = [
  { name: "tcp1", args: (address, seconds) => ["bulk", address, String(800 * seconds), "up", "1"] },
  { name: "tcp4", args: (address, seconds) => ["bulk", address, String(800 * seconds), "up", "4"] },
  { name: "pps", args: (address, seconds) => ["pps", address, String(seconds), "22", "1"] },
  { name: "rr", args: (address, seconds) => ["rr", address, String(seconds)] },
  { name: "crr", args: (address, seconds) => ["crr", address, String(seconds)] },
];

const rounds = Number(process.argv[2] ?? 3);
const seconds = Number(process.argv[3] ?? 2);
const chosen =
  process.argv.length > 4 ? process.argv.slice(4) : ["kernel-bridge", "engine-bridge", "engine-macvlan"];

nativeProgram("traffic");
const results = new Map<string, number[]>();
for (let round = 0; round < rounds; round++) {
  for (const variant of chosen) {
    const options = VARIANTS[variant];
    if (options === undefined) throw new Error(`no variant ${variant}: ${Object.keys(VARIANTS).join(" ")}`);
    using lab = new EngineLab(options);
    await lab.serve(1);
    const address = lab.address(1);
    lab.traffic(0, "ping", address, "3");
    for (const figure of FIGURES) {
      const value = Number(lab.traffic(0, ...figure.args(address, seconds)));
      const key = `${variant} ${figure.name}`;
      results.set(key, [...(results.get(key) ?? []), value]);
    }
    if (process.env["COUNTERS"] !== undefined)
      for (const engine of lab.engines) console.log(engine?.counters());
  }
}

const reference = chosen[0] ?? "";
console.log(["figure", ...chosen.flatMap((variant) => [variant, "÷"])].join("\t"));
for (const { name } of FIGURES) {
  const base = median(results.get(`${reference} ${name}`) ?? []);
  const cells = chosen.flatMap((variant) => {
    const value = median(results.get(`${variant} ${name}`) ?? []);
    return [value.toFixed(1), (value / base).toFixed(2)];
  });
  console.log([name, ...cells].join("\t"));
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}
