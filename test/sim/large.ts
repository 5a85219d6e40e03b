import { sample } from "../../src/base/random.ts";
import { Invariants } from "./invariants.ts";
import { swims } from "./swims.ts";
import type { Host, World } from "./world.ts";

/**
 * The size of the largest public swarm experiment, in one process: all join, one in a hundred is replaced, the
 * network splits in halves and comes together. Reports virtual time, traffic and memory after each phase, and how far it
 * is between. The invariants are checked all along.
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
  const seesAll = (host: Host): boolean => host.node.aliveCount === nodes;
  meter.phase(`${nodes} members joined over ${JOIN_MS / 1_000} s`, seesAll);

  const replaced = sample(world.random, world.hosts, Math.ceil(nodes / 100)).filter((host) => host.index > 2);
  const former = replaced.map((host) => host.node.name);
  for (const host of replaced) {
    world.restart(host.index);
    world.join(host.index, ...seeds);
  }
  meter.phase(
    `${replaced.length} killed and started anew`,
    (host) => seesAll(host) && former.every((name) => host.node.member(name)?.state !== "alive"),
  );

  const half = world.hosts.map((host) => host.index).filter((index) => index % 2 === 0);
  world.network.partition([half]);
  const others = nodes - half.length;
  meter.phase(
    "split in halves",
    (host) => host.node.aliveCount === (host.index % 2 === 0 ? half.length : others),
  );
  world.network.heal();
  meter.phase("together again", seesAll);
}

const JOIN_MS = 5_000;
const PHASE_MS = 300_000;
/** Of virtual time. */
const LOOK_EVERY_MS = 250;
const CHECK_EVERY_MS = 5_000;
/** Of real time. */
const SAY_EVERY_MS = 30_000;

class Meter {
  readonly #world: World;
  readonly #report: (line: string) => void;
  readonly #invariants: Invariants;
  readonly #startedAt = performance.now();
  #saidAt = this.#startedAt;
  #packets = 0;
  #bytes = 0;

  constructor(world: World, report: (line: string) => void) {
    this.#world = world;
    this.#invariants = new Invariants(world);
    this.#report = report;
  }

  /** Goes on until all that run are `done`. */
  phase(what: string, done: (host: Host) => boolean): void {
    const world = this.#world;
    const startedAt = world.now;
    let checkedAt = startedAt;
    const look = (): boolean => {
      if (world.now - checkedAt >= CHECK_EVERY_MS) {
        checkedAt = world.now;
        this.#invariants.check();
      }
      this.#say(what, world.now - startedAt, done);
      return world.running().every(done);
    };
    const took = world.runUntil(look, PHASE_MS, LOOK_EVERY_MS);
    this.#invariants.check();
    const perMember = (value: number): string => whole(value / world.hosts.length);
    const after =
      took === undefined
        ? `not within ${PHASE_MS / 1_000} s (${world.disagreement()})`
        : `after ${(took / 1_000).toFixed(2)} s`;
    this.#report(
      `${what}: all agree ${after}; per member ${perMember(world.packets - this.#packets)} packets, ` +
        `${perMember((world.bytes - this.#bytes) / 1_000)} kB uncompressed; ` +
        this.#soFar(),
    );
    this.#packets = world.packets;
    this.#bytes = world.bytes;
  }

  #say(what: string, tookMs: number, done: (host: Host) => boolean): void {
    const now = performance.now();
    if (now - this.#saidAt < SAY_EVERY_MS) return;
    this.#saidAt = now;
    const running = this.#world.running();
    const agreed = whole(running.filter(done).length);
    const after = (tookMs / 1_000).toFixed(2);
    this.#report(`  ${what}: ${agreed} of ${whole(running.length)} agree after ${after} s; ${this.#soFar()}`);
  }

  #soFar(): string {
    const memory = (process.memoryUsage().rss / 1e9).toFixed(1);
    const { user, system } = process.cpuUsage();
    const realSeconds = whole((performance.now() - this.#startedAt) / 1_000);
    return `memory ${memory} GB, ${realSeconds} s so far, ${whole((user + system) / 1e6)} s of processor time`;
  }
}

function whole(value: number): string {
  return Math.round(value).toLocaleString("en");
}
