import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { likeMemberlist, LAN, type SwimConfig } from "../../src/swim/config.ts";
import { endless } from "./endless.ts";
import { large } from "./large.ts";
import { SCENARIOS, type Figures } from "./scenarios.ts";

/** Minutes; 4,700, the largest public experiment, take far longer and more than half of this heap. */
const LARGE_NODES = 1_600;
const USAGE = `npm run sim -- [--scenario NAME]… [--nodes N]… [--seeds COUNT] [--first-seed SEED]
npm run sim -- chaos [--seconds N] [--seeds COUNT] [--first-seed SEED]     without a limit until one fails
npm run sim -- large [--nodes ${LARGE_NODES}] [--first-seed SEED]

Virtual time and one seed per run, ours beside the same machine with memberlist's behaviour. A failure names its seed.
Scenarios: ${Object.keys(SCENARIOS).join(" ")}`;

/** V8's default would not hold the members of a large cluster. */
const LARGE_HEAP_MB = 20_000;

const DEFAULT_SEEDS = 5;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    scenario: { type: "string", multiple: true },
    nodes: { type: "string", multiple: true },
    seeds: { type: "string" },
    seconds: { type: "string" },
    "first-seed": { type: "string", default: "1" },
    help: { type: "boolean", default: false },
  },
});
const firstSeed = Number(values["first-seed"]);

if (values.help) console.log(USAGE);
else if (positionals[0] === "large") runLarge();
else if (positionals[0] === "chaos") runChaos();
else if (positionals.length > 0) {
  console.error(USAGE);
  process.exitCode = 2;
} else compare(values.scenario ?? Object.keys(SCENARIOS), (values.nodes ?? ["10", "50", "100"]).map(Number));

function runLarge(): void {
  const heap = `--max-old-space-size=${LARGE_HEAP_MB}`;
  if (!process.execArgv.includes(heap)) {
    // Most of what a step leaves behind is gone after the next one; a larger nursery lets it die there. Of the rest V8
    // would let nearly as much garbage gather as there is in use.
    const flags = [heap, "--max-semi-space-size=64", "--heap-growing-percent=30"];
    const argv = [...flags, fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    process.exitCode = spawnSync(process.execPath, argv, { stdio: "inherit" }).status ?? 1;
    return;
  }
  large(Number(values.nodes?.[0] ?? LARGE_NODES), firstSeed, (line) => console.log(line));
}

function runChaos(): void {
  const seeds = Number(values.seeds ?? Infinity);
  const end = performance.now() + Number(values.seconds ?? Infinity) * 1_000;
  const goOn = (done: number): boolean => done < seeds && performance.now() < end;
  if (!endless(firstSeed, goOn, (line) => console.log(line))) process.exitCode = 1;
}

function compare(names: readonly string[], sizes: readonly number[]): void {
  const profiles: Readonly<Record<string, SwimConfig>> = { memberlist: likeMemberlist(LAN), ours: LAN };
  for (const name of names) {
    const scenario = SCENARIOS[name];
    if (scenario === undefined) {
      console.error(`there is no scenario '${name}': ${Object.keys(SCENARIOS).join(" ")}`);
      process.exitCode = 2;
      continue;
    }
    for (const nodes of sizes) {
      for (const [profile, config] of Object.entries(profiles)) {
        const figures: Figures[] = [];
        for (let seed = firstSeed; seed < firstSeed + Number(values.seeds ?? DEFAULT_SEEDS); seed++) {
          try {
            figures.push(scenario({ config, nodes, seed }));
          } catch (error) {
            // memberlist's behaviour does not survive every chaos; ours must.
            if (profile === "memberlist") continue;
            console.error(`--scenario ${name} --nodes ${nodes} --first-seed ${seed} --seeds 1`);
            throw error;
          }
        }
        console.log(`${name}, ${nodes} nodes, ${profile}: ${summary(figures)}`);
      }
    }
  }
}

/** Mean, least and largest of each figure; "never" counts what did not happen. */
function summary(figures: readonly Figures[]): string {
  const names = Object.keys(figures[0] ?? {});
  const parts = names.map((name) => {
    const all = figures.map((each) => each[name]);
    const happened = all.filter((value) => value !== undefined).sort((a, b) => a - b);
    const never = all.length - happened.length;
    if (happened.length === 0) return `${name} never`;
    const mean = happened.reduce((sum, value) => sum + value, 0) / happened.length;
    const range = `${short(happened[0] ?? 0)} – ${short(happened.at(-1) ?? 0)}`;
    return `${name} ${short(mean)} (${range}${never > 0 ? `, never in ${never} of ${all.length}` : ""})`;
  });
  return parts.length > 0 ? parts.join(", ") : "no run ended";
}

function short(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString("en") : String(Math.round(value * 100) / 100);
}
