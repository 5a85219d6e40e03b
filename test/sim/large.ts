import { sample } from "../../src/base/random.ts";
import { swims } from "./swims.ts";
import type { World } from "./world.ts";

/**
 * The size of the largest public swarm experiment, in one process: all join, one in a hundred is replaced, the
 * network splits in halves and comes together. Reports virtual time, traffic and memory after each phase.
 */
export function large(nodes: number, seed: number, report: (line: string) => void): void {
  const world = swims({ seed, nodes, byReference: true });
  world.recordDeaths = false;
  const meter = new Meter(world, report);

  const seeds = [0, 1, 2];
  for (let host = 0; host < nodes; host++) {
    world.after((JOIN_MS * host) / nodes, () => world.join(host, ...seeds.filter((other) => other !== host)));
  }
  world.runFor(JOIN_MS);
  meter.phase(`${nodes} members joined over ${JOIN_MS / 1_000} s`, () => everybodySees(world, nodes));

  const replaced = sample(world.random, world.hosts, Math.ceil(nodes / 100)).filter((host) => host.index > 2);
  const former = replaced.map((host) => host.node.name);
  for (const host of replaced) {
    world.restart(host.index);
    world.join(host.index, ...seeds);
  }
  meter.phase(
    `${replaced.length} killed and started anew`,
    () => everybodySees(world, nodes) && former.every((name) => world.seenBy(isAlive, name) === 0),
  );

  const half = world.hosts.map((host) => host.index).filter((index) => index % 2 === 0);
  world.network.partition([half]);
  const others = nodes - half.length;
  meter.phase("split in halves", () =>
    world.running().every((host) => host.node.aliveCount === (host.index % 2 === 0 ? half.length : others)),
  );
  world.network.heal();
  meter.phase("together again", () => everybodySees(world, nodes));
}

const JOIN_MS = 5_000;
const PHASE_MS = 300_000;

function everybodySees(world: World, count: number): boolean {
  return world.running().every((host) => host.node.aliveCount === count);
}

function isAlive(state: string): boolean {
  return state === "alive";
}

class Meter {
  readonly #world: World;
  readonly #report: (line: string) => void;
  readonly #startedAt = performance.now();
  #packets = 0;
  #bytes = 0;

  constructor(world: World, report: (line: string) => void) {
    this.#world = world;
    this.#report = report;
  }

  phase(what: string, done: () => boolean): void {
    const world = this.#world;
    const took = world.runUntil(done, PHASE_MS, 250);
    const members = world.hosts.length;
    const perMember = (value: number): string => Math.round(value / members).toLocaleString("en");
    const after =
      took === undefined
        ? `not within ${PHASE_MS / 1_000} s (${world.disagreement()})`
        : `after ${(took / 1_000).toFixed(2)} s`;
    this.#report(
      `${what}: all agree ${after}; per member ${perMember(world.packets - this.#packets)} packets, ` +
        `${perMember((world.bytes - this.#bytes) / 1_000)} kB uncompressed; ` +
        `memory ${(process.memoryUsage().rss / 1e9).toFixed(1)} GB, ` +
        `${((performance.now() - this.#startedAt) / 1_000).toFixed(0)} s of real time so far`,
    );
    this.#packets = world.packets;
    this.#bytes = world.bytes;
  }
}
