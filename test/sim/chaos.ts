import assert from "node:assert/strict";
import { pick, randomInt, sample, seededRandom } from "../../src/base/random.ts";
import { Invariants } from "./invariants.ts";
import type { World } from "./world.ts";

export interface ChaosOptions {
  readonly seed: number;
  readonly make: (options: {
    readonly seed: number;
    readonly nodes: number;
    readonly loss: number;
    readonly jitterMs: number;
    readonly duplication: number;
    readonly mtu: number;
  }) => World;
  /** Default 3 … 11, from the seed. */
  readonly nodes?: number;
  /** Loss of an impaired host; default 0.6. */
  readonly impairment?: number;
  /** How long faults go on. */
  readonly forMs?: number;
  /** In what time the survivors must agree once all faults are over. */
  readonly healWithinMs?: number;
}

/** What was done to the world, for the report of a failing seed. */
export interface ChaosReport {
  readonly world: World;
  readonly log: readonly string[];
  readonly healedMs: number;
}

/**
 * Faults of every kind at random times, then an end to all of them: every process that runs must then see every
 * other, and nobody else. Everything comes from the seed.
 */
export function chaos(options: ChaosOptions): ChaosReport {
  const random = seededRandom(options.seed);
  const nodes = options.nodes ?? 3 + randomInt(random, 9);
  const world = options.make({
    seed: options.seed,
    nodes,
    loss: pick(random, [0, 0.02, 0.1, 0.25]) ?? 0,
    jitterMs: pick(random, [0.5, 5, 40]) ?? 0,
    duplication: pick(random, [0, 0.02]) ?? 0,
    mtu: pick(random, [65_535, 65_535, 1_300]) ?? 0,
  });
  const invariants = new Invariants(world);
  const log: string[] = [];
  const hosts = world.hosts.map((host) => host.index);
  const some = (): number => randomInt(random, nodes);
  const note = (text: string): void => void log.push(`${(world.now / 1000).toFixed(1)} s: ${text}`);
  const seeds = sample(random, hosts, 2);
  const rejoin = (host: number): void => world.join(host, ...seeds);

  const faults: readonly (readonly [string, (host: number) => void])[] = [
    ["kill", (host) => world.kill(host)],
    ["power off", (host) => world.powerOff(host)],
    ["pause", (host) => world.pause(host)],
    ["resume", (host) => world.resume(host)],
    [
      "restart",
      (host) => {
        world.restart(host);
        rejoin(host);
      },
    ],
    ["cut one way", (host) => world.network.cut(host, some())],
    ["impair", (host) => world.network.impair(host, options.impairment ?? 0.6)],
    ["partition", () => world.network.partition([sample(random, hosts, 1 + randomInt(random, nodes - 1))])],
    ["heal", () => world.network.heal()],
    ["jump the clock", (host) => world.jumpClock(host, randomInt(random, 20_000))],
    ["stutter", (host) => stutter(world, host, 5)],
    ["update", (host) => update(world, host, random.next())],
  ];

  world.runFor(1_000);
  for (const host of hosts) rejoin(host);
  const end = world.now + (options.forMs ?? 60_000);
  while (world.now < end) {
    const host = some();
    const [name, act] = pick(random, faults) ?? ["nothing", () => undefined];
    note(`${name} ${host}`);
    act(host);
    world.runFor(200 + randomInt(random, 6_000));
    invariants.check();
  }

  note("all faults end");
  world.network.heal();
  world.network.conditions.loss = Math.min(0.05, world.network.conditions.loss);
  for (const host of hosts) {
    world.resume(host);
    const { power } = world.host(host);
    if (power === "killed" || power === "down") {
      // One seed must be there for those who know nobody else.
      if (random.next() < 0.5 && host !== seeds[0]) continue;
      note(`start ${host}`);
      world.restart(host);
      rejoin(host);
    }
  }
  const withinMs = options.healWithinMs ?? 60_000;
  const healedMs = world.runUntil(() => world.agree(), withinMs, 250);
  invariants.check();
  assert.ok(healedMs !== undefined, `after ${withinMs} ms ${world.disagreement()}\n${log.join("\n")}`);
  return { world, log, healedMs };
}

/** A busy event loop: stands still for 400 ms, runs for 100, and so on; the agent notices and says so. */
function stutter(world: World, host: number, times: number): void {
  if (times === 0 || world.host(host).power !== "running") return;
  world.pause(host);
  world.after(400, () => {
    world.resume(host);
    world.feed(host, { type: "loop-delay", ms: 400 });
    world.after(100, () => stutter(world, host, times - 1));
  });
}

function update(world: World, host: number, value: number): void {
  if (world.host(host).power !== "running") return;
  world.feed(host, { type: "set-meta", meta: Uint8Array.of(Math.floor(value * 256), host) });
}
