/** npm run bench -- NAME [options]: finds the bench and runs it. */

import { existsSync } from "node:fs";
import { parseArgs } from "node:util";

/** What every bench gets. */
export type BenchOptions = {
  /** Rounds over all variants; medians are taken over rounds. */
  readonly rounds: number;
  /** Length of one measurement (s). */
  readonly seconds: number;
  /** Where the JSON document goes: a file name, `-` for standard output, undefined for nowhere. */
  readonly json: string | undefined;
  /** Where the bars go as SVG, for benches that draw them; undefined for nowhere. */
  readonly svg: string | undefined;
  /** Variants to run, for gossip rows of its table, for overlay parts as well; all when empty. */
  readonly only: readonly string[];
};

const BENCHES: Readonly<Record<string, string>> = {
  overlay: "two endpoints across two hosts: bare underlay, Docker's layout, ours",
  userspace: "the engine beside VXLAN in the kernel, nebula, tinc and Open vSwitch",
  gossip: "membership: convergence, traffic, failure detection",
  tables: "23 nodes, 100,000 rows",
  dns: "names inside a sandbox, beside dnsmasq",
  mesh: "published ports: new connections, throughput, changes",
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "5" },
    seconds: { type: "string" },
    json: { type: "string" },
    svg: { type: "string" },
    only: { type: "string", default: "" },
    help: { type: "boolean", default: false },
  },
});
const [name = ""] = positionals;
const module = new URL(`./${name}.js`, import.meta.url);
if (values.help || positionals.length !== 1 || BENCHES[name] === undefined) {
  console.error(
    "npm run bench -- NAME [--rounds 5] [--seconds 2, gossip 60] [--only VARIANT|ROW,…] [--json FILE|-] [--svg FILE]\n",
  );
  for (const [known, what] of Object.entries(BENCHES)) console.error(`  ${known.padEnd(10)} ${what}`);
  process.exit(values.help ? 0 : 2);
}
if (!existsSync(module)) {
  console.error(`bench ${name} is not written yet`);
  process.exit(1);
}
const { run } = (await import(module.href)) as { run: (options: BenchOptions) => Promise<void> };
await run({
  rounds: positive("rounds", values.rounds),
  seconds: positive("seconds", values.seconds ?? (name === "gossip" ? "60" : "2")),
  json: values.json,
  svg: values.svg,
  only: values.only.split(",").filter(Boolean),
});

function positive(option: string, text: string): number {
  const value = Number(text);
  if (value > 0) return value;
  console.error(`--${option} ${text}: must be a number above 0`);
  process.exit(2);
}
