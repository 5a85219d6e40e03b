/**
 * Membership: ours beside real serf, ten processes each in the same run, and ours with 10, 50 and 100 nodes in one
 * process, beside what was recorded of memberlist measured so.
 */

import { setTimeout as pause } from "node:timers/promises";
import { mustSucceed } from "../command.ts";
import { Lab } from "../lab.ts";
import { program } from "../place.ts";
import type { InProcessFigures } from "../programs/gossip-nodes.ts";
import { Cluster, type Kind } from "./gossip-cluster.ts";
import type { BenchOptions } from "./main.ts";
import { json, table, writeJson, type Figure, type Goal } from "./report.ts";

const OURS = "ours";
const SERF = "serf";
const RECORDED = "memberlist*";
const MEMBERS = 10;
const SIZES = [10, 50, 100] as const;

/** What `--only` chooses from. */
const ROWS = [
  "in-process",
  "converge",
  "steady",
  "kill",
  "partition",
  "partition-long",
  "loss",
  "stall",
] as const;
type Row = (typeof ROWS)[number];

const SETTLE_MS = 1_500;
const AFTER_STORM_MS = 5_000;
const REST_MS = 10_000;
/** Some 25 s after its start V8 compacts a process's heap, once: more than a minute of gossip costs. */
const CALM_MS = 45_000;
const PARTITIONS_S = [20, 60];
/** Run when it is named: it is most of a quarter of an hour. */
const LONG_PARTITION_S = 600;
const LOSSES = [0.05, 0.15, 0.3, 0.4];
/** memberlist itself never heals; serf was seen to within 10 s. */
const HEAL_PATIENCE_MS = 90_000;
/** Four of ten stand still for so long, again and again: longer than a probe, shorter than a suspicion. */
const STALLED = [1, 3, 5, 7];
const STALL_MS = 3_000;
const BETWEEN_STALLS_MS = 500;

/**
 * memberlist (the library serf 0.9.4 is built with) in one process on an idle machine of this size, by the same
 * method; not measured again here. In the order of SIZES.
 */
const MEMBERLIST = {
  converge: [0.3, 1.11, 2.56],
  stormBytes: [46e3, 623e3, 3.4e6],
  killAll: [6.0, 8.4, 9.8],
  updateAll: [0.4, 0.59, 0.78],
  bytesPerNodeSecond: [177, 173, 149],
  cpuPerNodeMinute: [0.039, 0.031, 0.019],
} as const;
const GOALS = {
  converge: [0.3, 0.6, 1.0],
  stormBytes: [46e3, 623e3, 1.7e6],
  killAll: [3, 4, 5],
  updateAll: [0.3, 0.4, 0.5],
  bytesPerNodeSecond: [177, 173, 149],
  cpuPerNodeMinute: [0.039, 0.031, 0.019],
} as const;
type Goaled = keyof typeof GOALS;
const IN_PROCESS = [
  ["converge", "converge after join-all", "s"],
  ["stormBytes", "join storm", "bytes"],
  ["killFirst", "kill known to the first", "s"],
  ["killAll", "kill known to all", "s"],
  ["updateAll", "update known to all", "s"],
  ["bytesPerNodeSecond", "steady, a node", "bytes/s"],
  ["packetsPerNodeSecond", "steady, a node", "packets/s"],
  ["cpuPerNodeMinute", "CPU a node-minute", "s"],
] as const;

export async function run(options: BenchOptions): Promise<void> {
  const unknown = options.only.filter((row) => !ROWS.includes(row as Row));
  if (unknown.length > 0) {
    console.error(`--only ${unknown.join(",")}: must be of ${ROWS.join(", ")}`);
    process.exit(2);
  }
  const wanted = (row: Row): boolean =>
    options.only.length === 0 ? row !== "partition-long" : options.only.includes(row);
  const inProcess = wanted("in-process") ? await measureInProcess(options) : [];
  const processes = ROWS.slice(1).some(wanted) ? await measureProcesses(options, wanted) : [];
  if (options.json !== undefined) writeJson(options.json, json("gossip", [...inProcess, ...processes]));
  if (options.json === "-") return;
  if (inProcess.length > 0) {
    console.log(`Gossip, nodes of one process on loopback ports; medians of ${options.rounds}`);
    console.log(table(inProcess, [OURS, RECORDED], []));
    console.log("* recorded on an idle machine, not in this run\n");
  }
  if (processes.length > 0) {
    console.log(`Gossip, ${MEMBERS} processes in namespaces; medians of ${options.rounds}`);
    console.log(table(processes, [OURS, SERF], [{ title: "ours/serf", of: OURS, to: SERF }]));
    console.log(`false deaths: verdicts of all observers in ${options.seconds} s`);
  }
}

async function measureInProcess({ rounds, seconds }: BenchOptions): Promise<Figure[]> {
  const measured: { size: number; figures: InProcessFigures }[] = [];
  for (const size of SIZES) {
    progress(`${size} nodes in one process`);
    await using lab = Lab.create();
    const place = lab.host("nodes", "192.168.1.11");
    const command = program("gossip-nodes", String(size), String(rounds), String(seconds));
    const { stdout } = mustSucceed(await place.exec(command, { timeoutMs: 30 * 60_000 }));
    measured.push({ size, figures: JSON.parse(stdout) as InProcessFigures });
  }
  return IN_PROCESS.flatMap(([key, name, unit]) =>
    measured.map(({ size, figures }, index): Figure => {
      const value = figures[key];
      const [goal, recorded] =
        key in GOALS ? [GOALS[key as Goaled][index], MEMBERLIST[key as Goaled][index]] : [];
      const samples = {
        [OURS]: typeof value === "number" ? [value] : value,
        ...(recorded === undefined ? {} : { [RECORDED]: [recorded] }),
      };
      return {
        ...{ name: `${name}, N = ${size}`, unit, samples },
        ...(goal === undefined ? {} : { goal: { type: "value", of: OURS, bound: "≤", value: goal } }),
      };
    }),
  );
}

async function measureProcesses(options: BenchOptions, wanted: (row: Row) => boolean): Promise<Figure[]> {
  const { rounds, seconds } = options;
  const figures = new Figures();
  // How a cluster forms is measured for one at a time, and again for each round, since it forms only once.
  for (let round = 0; wanted("converge") && round < rounds; round++) {
    for (const kind of round % 2 === 0 ? ([OURS, SERF] as const) : ([SERF, OURS] as const)) {
      progress(`converge, round ${round + 1} of ${rounds}: ${kind}`);
      await using cluster = await Cluster.start(kind, MEMBERS);
      await pause(SETTLE_MS);
      const before = await cluster.traffic();
      figures.add("converge after join-all", "s", kind, await cluster.joinAll(), atMost(0.3));
      await pause(AFTER_STORM_MS);
      const after = await cluster.traffic();
      figures.add("join storm", "bytes", kind, after.bytes - before.bytes, ratioAtMost(1));
    }
  }
  if (!ROWS.slice(2).some(wanted)) return figures.all();

  // From here both live side by side, in labs of their own: whatever disturbs the machine disturbs both.
  progress("start both clusters");
  await using ours = await Cluster.start(OURS, MEMBERS);
  await using serf = await Cluster.start(SERF, MEMBERS);
  const both = [ours, serf];
  for (const cluster of both) await cluster.joinAll();
  await pause(REST_MS);

  if (wanted("steady")) {
    progress(`steady state for ${seconds} s, after ${CALM_MS / 1_000} s of rest`);
    await pause(CALM_MS);
    await Promise.all(both.map((cluster) => steady(figures, cluster, seconds)));
  }
  for (let round = 0; wanted("kill") && round < rounds; round++) {
    progress(`kill ${round + 1} of ${rounds}`);
    await pause(Math.random() * 1_000);
    for (const cluster of both) {
      const { first, all } = await cluster.kill(round);
      figures.add("kill known to the first", "s", cluster.kind, first);
      figures.add("kill known to all", "s", cluster.kind, all, atMost(3));
    }
  }
  const partitions = [
    ...(wanted("partition") ? PARTITIONS_S : []),
    ...(wanted("partition-long") ? [LONG_PARTITION_S] : []),
  ];
  for (const length of partitions) {
    progress(`partition of ${length} s`);
    for (const cluster of both) cluster.split();
    await pause(length * 1_000);
    const name = `partition of ${length} s, healed after`;
    for (const cluster of both)
      if (cluster.agree()) throw new Error(`${cluster.kind} did not notice a partition of ${length} s`);
    for (const cluster of both) cluster.lab.heal();
    await Promise.all(
      both.map(async (cluster) =>
        figures.add(name, "s", cluster.kind, await cluster.agreed(HEAL_PATIENCE_MS), atMost(10)),
      ),
    );
    await pause(REST_MS);
  }
  for (const loss of wanted("loss") ? LOSSES : []) {
    progress(`loss of ${loss * 100} % for ${seconds} s`);
    const before = both.map((cluster) => cluster.deaths());
    await Promise.all(both.map((cluster) => cluster.lose(loss)));
    await pause(seconds * 1_000);
    await Promise.all(both.map((cluster) => cluster.lose(0)));
    both.forEach((cluster, index) => {
      const deaths = cluster.deaths() - (before[index] ?? 0);
      const limit = loss < 0.4 ? 0 : 10;
      figures.add(`false deaths at ${loss * 100} % loss`, "verdicts", cluster.kind, deaths, atMost(limit));
    });
    await Promise.all(both.map((cluster) => cluster.agreed(HEAL_PATIENCE_MS)));
  }
  if (wanted("stall")) {
    progress(`stalls for ${seconds} s`);
    const before = both.map((cluster) => cluster.deaths(STALLED));
    const end = performance.now() + seconds * 1_000;
    while (performance.now() < end) {
      for (const cluster of both) cluster.signal(STALLED, "SIGSTOP");
      await pause(STALL_MS);
      for (const cluster of both) cluster.signal(STALLED, "SIGCONT");
      await pause(BETWEEN_STALLS_MS);
    }
    both.forEach((cluster, index) => {
      const deaths = cluster.deaths(STALLED) - (before[index] ?? 0);
      figures.add(`false deaths, ${STALLED.length} stalled`, "verdicts", cluster.kind, deaths, atMost(0));
    });
  }
  return figures.all();
}

async function steady(figures: Figures, cluster: Cluster, seconds: number): Promise<void> {
  const [before, cpuBefore, start] = [await cluster.traffic(), cluster.cpuSeconds(), performance.now()];
  await pause(seconds * 1_000);
  const [after, cpu] = [await cluster.traffic(), cluster.cpuSeconds() - cpuBefore];
  const perMember = (cluster.size * (performance.now() - start)) / 1_000;
  const { kind } = cluster;
  figures.add("steady, a member", "bytes/s", kind, (after.bytes - before.bytes) / perMember, ratioAtMost(1));
  figures.add("steady, a member", "packets/s", kind, (after.packets - before.packets) / perMember);
  // A process with nothing but memberlist takes 0.7 of serf.
  figures.add("CPU a process-minute", "s", kind, (cpu / perMember) * 60, ratioAtMost(0.7));
}

/** Figures in the order first met. */
class Figures {
  readonly #figures = new Map<string, { figure: Figure; samples: Record<string, number[]> }>();

  add(name: string, unit: string, kind: Kind, value: number, goal?: Goal): void {
    const key = `${name} ${unit}`;
    let known = this.#figures.get(key);
    if (known === undefined) {
      const samples: Record<string, number[]> = {};
      known = { figure: { name, unit, samples, ...(goal === undefined ? {} : { goal }) }, samples };
      this.#figures.set(key, known);
    }
    (known.samples[kind] ??= []).push(value);
  }

  all(): Figure[] {
    return [...this.#figures.values()].map(({ figure }) => figure);
  }
}

function atMost(value: number): Goal {
  return { type: "value", of: OURS, bound: "≤", value };
}

function ratioAtMost(value: number): Goal {
  return { type: "ratio", of: OURS, to: SERF, bound: "≤", value };
}

/** One line on a terminal, overwritten by the next. */
function progress(line: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${line}`);
  else console.error(line);
}
