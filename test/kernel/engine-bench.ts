/**
 * The engine against the kernel's VXLAN in Docker's layout. By hand, as root:
 *   node dist/test/kernel/engine-bench.js [rounds] [seconds] [variant…]
 * All labs stand at once; a round measures one figure in every variant, one right after the other, so that what
 * else the machine does hits all alike. Printed: median of the figure, and median of its ratio to the first
 * variant in the same round.
 */
import { EngineLab, type LabOptions, nativeProgram } from "./engine-lab.ts";

const VARIANTS: Readonly<Record<string, LabOptions>> = {
  "kernel-bridge": { sides: ["kernel", "kernel"], layout: "bridge" },
  "kernel-macvlan": { sides: ["kernel", "kernel"], layout: "macvlan" },
  "engine-bridge": { sides: ["engine", "engine"], layout: "bridge" },
  "engine-macvlan": { sides: ["engine", "engine"], layout: "macvlan" },
  "spin-0": { sides: ["engine", "engine"], layout: "macvlan", spinMicros: 0 },
  "spin-50": { sides: ["engine", "engine"], layout: "macvlan", spinMicros: 50 },
  "spin-200": { sides: ["engine", "engine"], layout: "macvlan", spinMicros: 200 },
  "spin-1000": { sides: ["engine", "engine"], layout: "macvlan", spinMicros: 1000 },
};

interface Figure {
  readonly name: string;
  readonly unit: string;
  readonly args: (address: string, seconds: number) => readonly string[];
}

const FIGURES: readonly Figure[] = [
  { name: "tcp1", unit: "Mbit/s", args: (address, seconds) => ["stream", address, String(seconds), "1"] },
  { name: "tcp4", unit: "Mbit/s", args: (address, seconds) => ["stream", address, String(seconds), "4"] },
  // 22 bytes of payload make 64 with Ethernet, IP and UDP.
  {
    name: "pps",
    unit: "packets/s",
    args: (address, seconds) => ["pps", address, String(seconds), "22", "1"],
  },
  { name: "rr", unit: "µs", args: (address, seconds) => ["rr", address, String(seconds)] },
  { name: "crr", unit: "conn/s", args: (address, seconds) => ["crr", address, String(seconds)] },
];

const rounds = Number(process.argv[2] ?? 5);
const seconds = Number(process.argv[3] ?? 1);
const chosen =
  process.argv.length > 4 ? process.argv.slice(4) : ["kernel-bridge", "engine-bridge", "engine-macvlan"];
const only = (process.env["FIGURES"] ?? FIGURES.map((figure) => figure.name).join(",")).split(",");

nativeProgram("traffic");
const labs: [string, EngineLab][] = [];
try {
  for (const variant of chosen) {
    const options = VARIANTS[variant];
    if (options === undefined) throw new Error(`no variant ${variant}: ${Object.keys(VARIANTS).join(" ")}`);
    const lab = new EngineLab(options);
    labs.push([variant, lab]);
    await lab.serve(1);
    lab.traffic(0, "ping", lab.address(1), "3");
  }
  console.log(["figure", ...chosen.flatMap((variant) => [variant, "ratio"])].join("\t"));
  for (const figure of FIGURES.filter(({ name }) => only.includes(name))) {
    const values: number[][] = [];
    for (let round = 0; round < rounds; round++) {
      values.push(labs.map(([, lab]) => Number(lab.traffic(0, ...figure.args(lab.address(1), seconds)))));
    }
    const cells = labs.flatMap((_, column) => [
      median(values.map((row) => row[column] ?? Number.NaN)).toFixed(figure.unit === "µs" ? 1 : 0),
      median(values.map((row) => (row[column] ?? Number.NaN) / (row[0] ?? Number.NaN))).toFixed(2),
    ]);
    console.log([`${figure.name}, ${figure.unit}`, ...cells].join("\t"));
    // What disturbs only ever slows: the best of a busy machine is nearest to the median of a quiet one.
    const best = labs.map((_, column) => {
      const all = values.map((row) => row[column] ?? Number.NaN);
      return figure.unit === "µs" ? Math.min(...all) : Math.max(...all);
    });
    console.log(
      [
        "  best",
        ...best.flatMap((value) => [
          value.toFixed(figure.unit === "µs" ? 1 : 0),
          (value / (best[0] ?? Number.NaN)).toFixed(2),
        ]),
      ].join("\t"),
    );
  }
  if (process.env["COUNTERS"] !== undefined) {
    for (const [variant, lab] of labs)
      for (const engine of lab.engines) console.log(variant, engine?.counters());
  }
} finally {
  for (const [, lab] of labs) lab[Symbol.dispose]();
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}
