import type { SwimConfig } from "../../src/swim/config.ts";
import { chaos } from "./chaos.ts";
import { cluster, swims } from "./swims.ts";
import type { World } from "./world.ts";

export interface ScenarioOptions {
  readonly config: SwimConfig;
  readonly nodes: number;
  readonly seed: number;
}

/** One figure by name; undefined when it did not happen in the time given. */
export type Figures = Record<string, number | undefined>;

/** Measurements as in the README's gossip table, in virtual time. Each has its own world. */
export const SCENARIOS: Readonly<Record<string, (options: ScenarioOptions) => Figures>> = {
  join(options) {
    const world = swims(options);
    world.runFor(1_500);
    for (let index = 1; index < options.nodes; index++) world.join(index, 0);
    const convergedMs = world.runUntil(() => world.agree(), 60_000, 5);
    world.runFor(5_000);
    return { convergedMs, bytes: world.bytes, packets: world.packets };
  },

  /** The process ends, its host goes on. */
  kill: (options) => detection(options, (world) => world.kill(1)),

  /** The host ends: nothing refuses, nothing answers. */
  "power-off": (options) => detection(options, (world) => world.powerOff(1)),

  update(options) {
    const world = settled(options);
    const { name } = world.host(1).node;
    world.feed(1, { type: "set-meta", meta: Uint8Array.of(1, 2, 3) });
    const everywhere = (): boolean =>
      world.running().every((host) => host.node.member(name)?.meta.length === 3);
    return { knownToAllMs: world.runUntil(everywhere, 120_000, 5) };
  },

  steady(options) {
    const world = settled(options);
    const before = world.bytes;
    world.runFor(60_000);
    return { bytesPerSecondAndNode: (world.bytes - before) / 60 / options.nodes };
  },

  "loss-15": (options) => loss(options, 0.15),
  "loss-30": (options) => loss(options, 0.3),
  "loss-40": (options) => loss(options, 0.4),
  "stall-20-percent": (options) => stalls(options, 0.2),
  "stall-50-percent": (options) => stalls(options, 0.5),
  "partition-20-s": (options) => partition(options, 20_000),
  "partition-60-s": (options) => partition(options, 60_000),
  "partition-10-min": (options) => partition(options, 600_000),

  chaos({ nodes, seed, config }) {
    const { healedMs } = chaos({ seed, nodes, make: (made) => swims({ ...made, config }) });
    return { healedMs };
  },
};

function settled(options: ScenarioOptions): World {
  const world = cluster(options);
  world.runFor(10_000 + 1_000 * world.random.next());
  return world;
}

function detection(options: ScenarioOptions, end: (world: World) => void): Figures {
  const world = settled(options);
  const { name } = world.host(1).node;
  end(world);
  const firstMs = world.runUntil(() => world.seenBy(gone, name) > 0, 120_000, 5);
  const moreMs = world.runUntil(() => world.seenBy(gone, name) === options.nodes - 1, 120_000, 5);
  return { firstMs, allMs: firstMs === undefined || moreMs === undefined ? undefined : firstMs + moreMs };
}

function loss(options: ScenarioOptions, probability: number): Figures {
  const world = cluster(options);
  world.runFor(5_000);
  world.network.conditions.loss = probability;
  world.runFor(75_000);
  return falseDeaths(world);
}

function stalls(options: ScenarioOptions, share: number): Figures {
  const world = cluster(options);
  world.runFor(5_000);
  const stalled = Math.round(options.nodes * share);
  for (let round = 0; round < 5; round++) {
    for (let index = 0; index < stalled; index++) world.pause(index);
    world.runFor(12_000);
    for (let index = 0; index < stalled; index++) world.resume(index);
    world.runFor(4_000);
  }
  return falseDeaths(world);
}

function partition(options: ScenarioOptions, cutMs: number): Figures {
  const world = cluster(options);
  world.runFor(5_000);
  world.network.partition([world.hosts.map((host) => host.index).filter((index) => index % 2 === 0)]);
  world.runFor(cutMs);
  world.network.heal();
  const before = world.bytes;
  const healedMs = world.runUntil(() => world.agree(), 60_000, 50);
  return { healedMs, bytes: world.bytes - before };
}

function falseDeaths(world: World): Figures {
  const deaths = world.deaths.filter((death) => death.falsely);
  const verdicts = deaths.filter((death) => death.event.reason.why !== "told");
  return { falseVerdicts: verdicts.length, falseDeathsSeen: deaths.length };
}

function gone(state: string): boolean {
  return state !== "alive" && state !== "suspect";
}
