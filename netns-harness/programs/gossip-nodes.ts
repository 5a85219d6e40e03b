/**
 * N gossip nodes with real sockets on loopback ports of one process, and what they need and do: for
 * `npm run bench -- gossip`, which runs it in a namespace of its own, so that the counters of `lo` are its own.
 *
 *     gossip-nodes N ROUNDS SECONDS     figures as one JSON object on standard output
 */

import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { GossipLoop, NO_STATE_FILE } from "../../src/agent/gossip-loop.ts";
import { nodeId, nodeName, randomBase36, randomHex } from "../../src/base/id.ts";
import { ipToBytes, parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { LAN } from "../../src/swim/config.ts";

/** Figures of one size, samples in the order measured. Times in s, traffic on the wire in bytes and packets. */
export type InProcessFigures = {
  readonly converge: number;
  readonly stormBytes: number;
  readonly bytesPerNodeSecond: number;
  readonly packetsPerNodeSecond: number;
  readonly cpuPerNodeMinute: number;
  readonly updateAll: readonly number[];
  readonly killFirst: readonly number[];
  readonly killAll: readonly number[];
};

const LOOPBACK = parseIp("127.0.0.1");
const FIRST_PORT = 20_000;
const SETTLE_MS = 1_500;
const AFTER_STORM_MS = 5_000;
const REST_MS = 10_000;
const POLL_MS = 2;
const PATIENCE_MS = 120_000;

const random = seededRandom(Date.now() >>> 0);
const [count, rounds, seconds] = process.argv.slice(2).map(Number);
if (count === undefined || rounds === undefined || seconds === undefined) {
  console.error("gossip-nodes N ROUNDS SECONDS");
  process.exit(2);
}
process.stdout.write(`${JSON.stringify(await measure(count, rounds, seconds))}\n`);
process.exit(0);

async function measure(nodes: number, rounds: number, seconds: number): Promise<InProcessFigures> {
  let nextPort = FIRST_PORT;
  const loops = await Promise.all(Array.from({ length: nodes }, () => open(nextPort++)));
  await pause(SETTLE_MS);
  const start = traffic();
  const converge = await timeUntil(
    () => loops.slice(1).forEach((loop) => joinFirst(loop, FIRST_PORT)),
    () => loops.every((loop) => loop.node.swim.aliveCount === nodes),
  );
  await pause(AFTER_STORM_MS);
  const stormBytes = traffic().bytes - start.bytes;

  await pause(REST_MS);
  const [before, cpuBefore, since] = [traffic(), process.cpuUsage(), performance.now()];
  await pause(seconds * 1_000);
  const [after, cpu, passed] = [traffic(), process.cpuUsage(cpuBefore), (performance.now() - since) / 1_000];
  const perNode = nodes * passed;

  const updateAll: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await pause(random.next() * 1_000);
    const changed = loops[1 + (round % (nodes - 1))];
    if (changed === undefined) break;
    const meta = Uint8Array.of(round + 1);
    updateAll.push(
      await timeUntil(
        () => {
          const input = { type: "set-meta", request: 1_000_000 + round, meta, timeoutMs: 10_000 } as const;
          changed.step({ type: "swim", input });
        },
        () => loops.every((loop) => loop.node.swim.member(changed.node.name)?.meta[0] === meta[0]),
      ),
    );
  }

  const killFirst: number[] = [];
  const killAll: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await pause(1_000 + random.next() * 1_000);
    const at = 1 + Math.floor(random.next() * (nodes - 1));
    const victim = loops[at];
    if (victim === undefined) break;
    const others = loops.filter((loop) => loop !== victim);
    const knows = (loop: GossipLoop): boolean =>
      loop.node.swim.member(victim.node.name)?.state !== "alive" &&
      loop.node.swim.member(victim.node.name)?.state !== "suspect";
    let first: number | undefined;
    const killedAt = performance.now();
    const all = await timeUntil(
      () => void victim.close(),
      () => {
        if (first === undefined && others.some(knows)) first = (performance.now() - killedAt) / 1_000;
        return others.every(knows);
      },
    );
    killFirst.push(first ?? all);
    killAll.push(all);
    // A newcomer takes its place, so that each round has as many members.
    const newcomer = await open(nextPort++);
    loops[at] = newcomer;
    await timeUntil(
      () => joinFirst(newcomer, FIRST_PORT),
      () => loops.every((loop) => loop.node.swim.aliveCount === nodes),
    );
  }
  return {
    ...{ converge, stormBytes, updateAll, killFirst, killAll },
    bytesPerNodeSecond: (after.bytes - before.bytes) / perNode,
    packetsPerNodeSecond: (after.packets - before.packets) / perNode,
    cpuPerNodeMinute: ((cpu.user + cpu.system) / 1e6 / perNode) * 60,
  };
}

async function open(port: number): Promise<GossipLoop> {
  const id = nodeId(randomBase36(random));
  const loop = await GossipLoop.open(
    { bindAddr: LOOPBACK, gossipPort: port },
    {
      name: nodeName(randomHex(random, 12)),
      facts: { id, name: `node-${port}`, vteps: [LOOPBACK], capabilities: ["state"], version: "0" },
      address: { socket: { ip: LOOPBACK, port }, bytes: ipToBytes(LOOPBACK) },
      compat: "docker",
      sealing: UNSEALED,
      swim: LAN,
      state: {},
      random,
    },
    () => undefined,
    NO_STATE_FILE,
  );
  loop.step({ type: "start", seed: port === FIRST_PORT, unixSeconds: Math.floor(Date.now() / 1_000) });
  return loop;
}

function joinFirst(loop: GossipLoop, port: number): void {
  void loop.join([{ ip: LOOPBACK, port }], PATIENCE_MS);
}

/** Seconds from `act` until `done`, looked at every 2 ms. */
async function timeUntil(act: () => void, done: () => boolean): Promise<number> {
  const start = performance.now();
  act();
  while (!done()) {
    if (performance.now() - start > PATIENCE_MS) throw new Error("not within two minutes");
    await pause(POLL_MS);
  }
  return (performance.now() - start) / 1_000;
}

/** What has crossed `lo` so far; each packet counts once. */
function traffic(): { readonly bytes: number; readonly packets: number } {
  const line = readFileSync("/proc/net/dev", "utf8")
    .split("\n")
    .find((text) => text.trim().startsWith("lo:"));
  const [bytes, packets] = (line ?? "").replace(/^.*:/, "").trim().split(/\s+/).map(Number);
  return { bytes: bytes ?? NaN, packets: packets ?? NaN };
}
