/**
 * Endpoint tables at the size where Docker's bulk sync was reported to collapse, simulated and with real sockets; and
 * the time from an attach to forwarding everywhere, with three agents and their kernels.
 */

import { setTimeout as pause } from "node:timers/promises";
import { Lab } from "../lab.ts";
import type { NodeReport } from "../programs/table-nodes.ts";
import { attachFigures } from "./attach.ts";
import type { BenchOptions } from "./main.ts";
import { json, table, writeJson, type Figure, type Goal } from "./report.ts";
import { TableCluster } from "./table-cluster.ts";
import { oneNode, simulated } from "./table-simulation.ts";

const NODES = 23;
const ROWS = 100_000;
/** That hold the rows; the joiner has one of its own. */
const PROCESSES = 5;
const SIMULATED = "simulated";
const REAL = "real";
const AGENTS = "agents";
/** What `--only` chooses from. */
const PARTS = ["simulated", "real", "attach"] as const;

const QUIET_MS = 5_000;
const CALM_MS = 20_000;
const BETWEEN_UPDATES_MS = 250;

type Values = Readonly<Record<string, number>>;

const FIGURES: readonly (readonly [key: string, name: string, unit: string, goal?: number])[] = [
  ["appliedPerSecond", "rows applied by a node", "rows/s"],
  ["knownPerSecond", "known rows passed over", "rows/s"],
  ["memoryPer10k", "memory of 10,000 rows", "MB", 10],
  ["cpuPer10k", "CPU of 10,000 rows", "ms"],
  ["bytesPerRow", "bulk sync, a row", "bytes"],
  ["bytesPerRowSpread", "wire, a row to a node", "bytes"],
  ["everywhere", "all written at once: everywhere", "s"],
  ["joined", "a joining node has all", "s", 5],
  ["updateMeanwhile", "an update meanwhile: everywhere", "s", 1],
  ["redeployed", "10,000 rows replaced: everywhere", "s"],
  ["largestKib", "largest message", "KiB", 1_024],
  ["calmCpu", "CPU of a node in calm", "%"],
];

export async function run(options: BenchOptions): Promise<void> {
  const unknown = options.only.filter((part) => !PARTS.some((known) => known === part));
  if (unknown.length > 0) {
    console.error(`--only ${unknown.join(",")}: must be of ${PARTS.join(", ")}`);
    process.exit(2);
  }
  const wanted = (part: (typeof PARTS)[number]): boolean =>
    options.only.length === 0 || options.only.includes(part);
  const measured: Record<string, Values> = {};
  if (wanted("simulated")) measured[SIMULATED] = measureSimulated();
  if (wanted("real")) measured[REAL] = await measureReal();
  const figures = figuresOf(measured);
  const attach = wanted("attach") ? await measureAttach() : [];
  progress("");
  if (options.json !== undefined) writeJson(options.json, json("tables", [...figures, ...attach]));
  if (options.json === "-") return;
  if (figures.length > 0) {
    console.log(`Tables: ${NODES} nodes, ${ROWS} rows on one network; one run`);
    console.log(table(figures, Object.keys(measured), []));
    console.log("simulated: virtual time and payload bytes; rates and memory of one node alone");
    console.log(`real: loopback UDP and TCP, ${PROCESSES + 1} processes of one namespace\n`);
  }
  if (attach.length > 0) {
    console.log("Attach: three agents in namespaces of their own; medians of 20");
    console.log(table(attach, [AGENTS], []));
  }
}

function measureSimulated(): Values {
  progress("one node alone");
  const { bytesInMemoryPerRow, ...rates } = oneNode(ROWS);
  progress(`${NODES} simulated nodes`);
  const { largestBytes, ...times } = simulated(NODES, ROWS);
  return {
    ...rates,
    ...times,
    memoryPer10k: (bytesInMemoryPerRow * 10_000) / 1e6,
    cpuPer10k: (10_000 / rates.appliedPerSecond) * 1_000,
    largestKib: largestBytes / 1_024,
  };
}

async function measureReal(): Promise<Values> {
  await using lab = Lab.create();
  progress(`${NODES} nodes start and join`);
  using cluster = await TableCluster.start(lab, NODES, PROCESSES);
  const holders = cluster.ports.slice(0, -1);
  const joiner = cluster.ports.slice(-1);
  const tracker = holders[0] ?? 0;
  await cluster.tell(holders, { do: "attach" });
  await cluster.until("the network", (node) => node.participants === holders.length && node.inSync, holders);
  const emptyBytes = await cluster.memoryBytes();

  progress("rows are written");
  const perNode = Math.ceil(ROWS / holders.length);
  const rows = perNode * holders.length;
  const before = await cluster.usage();
  const written = performance.now();
  await cluster.tell(holders, { do: "write", from: 0, to: perNode, generation: 0 });
  await cluster.until("all rows on all nodes", (node) => node.live === rows, holders);
  const everywhere = (performance.now() - written) / 1_000;
  await pause(QUIET_MS);
  const after = await cluster.usage();
  const fullBytes = await cluster.memoryBytes();

  progress("one more node joins the network");
  const joining = performance.now();
  await cluster.tell(joiner, { do: "attach" });
  const sent: number[] = [];
  const loaded = cluster
    .until("the joiner to have all rows", (node) => node.live === rows && node.inSync, joiner)
    .then(() => (performance.now() - joining) / 1_000);
  let done = false;
  void loaded.finally(() => (done = true)).catch(() => undefined);
  while (!done) {
    sent.push(await cluster.track(tracker, sent.length));
    await pause(BETWEEN_UPDATES_MS);
  }
  const joined = await loaded;
  await cluster.until("the last update", (node) => node.tracked[sent.length - 1] !== undefined);
  const updateMeanwhile = slowestUpdate(sent, await cluster.nodes());

  progress("10,000 rows are replaced");
  const share = Math.ceil(perNode / 10);
  const redeploying = performance.now();
  await cluster.tell(holders, { do: "delete", from: 0, to: share, generation: 0 });
  await cluster.tell(holders, { do: "write", from: perNode, to: perNode + share, generation: 1 });
  await cluster.until(
    "the replaced rows",
    (node) => node.live === rows && node.generations[1] === share * holders.length,
  );
  const redeployed = (performance.now() - redeploying) / 1_000;

  progress("calm");
  await pause(QUIET_MS);
  const calm = await cluster.usage();
  await pause(CALM_MS);
  const end = await cluster.usage();
  const applied = rows * holders.length;
  return {
    memoryPer10k: ((fullBytes - emptyBytes) / applied / 1e6) * 10_000,
    cpuPer10k: ((after.cpuMs - before.cpuMs) / applied) * 10_000,
    bytesPerRowSpread: (after.trafficBytes - before.trafficBytes) / (rows * (holders.length - 1)),
    everywhere,
    joined,
    updateMeanwhile,
    redeployed,
    largestKib: end.largestBytes / 1_024,
    calmCpu: ((end.cpuMs - calm.cpuMs) / CALM_MS / NODES) * 100,
  };
}

/** The longest (s) that any update took until every node had it or a later one. */
function slowestUpdate(sent: readonly number[], nodes: readonly NodeReport[]): number {
  const times = sent.flatMap((at, version) =>
    nodes.map(({ tracked }) => {
      const later = tracked.slice(version).filter((time) => typeof time === "number");
      return Math.min(...later) - at;
    }),
  );
  return Math.max(...times) / 1_000;
}

async function measureAttach(): Promise<Figure[]> {
  progress("attach until the other nodes forward");
  await using lab = Lab.create();
  return await attachFigures(lab, AGENTS); // the lab ends with this function
}

function figuresOf(measured: Readonly<Record<string, Values>>): Figure[] {
  const variants = Object.keys(measured);
  return FIGURES.flatMap(([key, name, unit, bound]) => {
    const found = variants.flatMap((variant) => {
      const value = measured[variant]?.[key];
      return value === undefined ? [] : [[variant, [value]] as const];
    });
    // What is real counts where it was measured.
    const of = found.at(-1)?.[0];
    if (of === undefined) return [];
    const goal: Goal | undefined =
      bound === undefined ? undefined : { type: "value", of, bound: "≤", value: bound };
    return [{ name, unit, samples: Object.fromEntries(found), ...(goal === undefined ? {} : { goal }) }];
  });
}

/** A line that the next one overwrites; nothing unless somebody looks. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${text}`);
}
