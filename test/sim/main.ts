import { likeMemberlist, LAN, type SwimConfig } from "../../src/swim/config.ts";
import { cluster, swims } from "./swims.ts";
import type { World } from "./world.ts";

const profiles: Record<string, SwimConfig> = { memberlist: likeMemberlist(LAN), ours: LAN };

const [what = "all", ...rest] = process.argv.slice(2);
const nodesList = rest.length > 0 ? rest.map(Number) : [10, 50, 100];
const seeds = Number(process.env["SEEDS"] ?? 5);

function each(
  name: string,
  run: (config: SwimConfig, nodes: number, seed: number) => Record<string, number | undefined>,
): void {
  if (what !== "all" && what !== name) return;
  for (const nodes of nodesList) {
    for (const [profile, config] of Object.entries(profiles)) {
      const columns: Record<string, number[]> = {};
      for (let seed = 1; seed <= seeds; seed++) {
        for (const [key, value] of Object.entries(run(config, nodes, seed)))
          (columns[key] ??= []).push(value ?? Infinity);
      }
      const text = Object.entries(columns).map(([key, values]) => {
        values.sort((a, b) => a - b);
        const mean = values.reduce((a, b) => a + b, 0) / values.length;
        return `${key} ${round(mean)} (${round(values[0] ?? 0)}…${round(values.at(-1) ?? 0)})`;
      });
      console.log(`${name} N=${nodes} ${profile}: ${text.join(", ")}`);
    }
  }
}

function round(value: number): string {
  return value >= 1000 ? Math.round(value).toString() : value.toPrecision(3);
}

each("join", (config, nodes, seed) => {
  const world = swims({ seed, nodes, config });
  world.runFor(1_500);
  for (let index = 1; index < nodes; index++) world.join(index, 0);
  const seconds = world.runUntil(() => world.agree(), 60_000, 5);
  world.runFor(5_000);
  return { convergeMs: seconds, bytes: world.bytes, packets: world.packets };
});

each("kill", (config, nodes, seed) => {
  const world = cluster({ seed, nodes, config });
  world.runFor(10_000 + 1000 * world.random.next());
  const name = world.host(1).node.name;
  world.kill(1);
  const first = world.runUntil(() => world.seenBy(gone, name) > 0, 60_000, 5);
  const all = world.runUntil(() => world.seenBy(gone, name) === nodes - 1, 60_000, 5);
  return { firstMs: first, allMs: first === undefined || all === undefined ? undefined : first + all };
});

each("poweroff", (config, nodes, seed) => {
  const world = cluster({ seed, nodes, config });
  world.runFor(10_000 + 1000 * world.random.next());
  const name = world.host(1).node.name;
  world.powerOff(1);
  const first = world.runUntil(() => world.seenBy(gone, name) > 0, 60_000, 5);
  const all = world.runUntil(() => world.seenBy(gone, name) === nodes - 1, 60_000, 5);
  return { firstMs: first, allMs: first === undefined || all === undefined ? undefined : first + all };
});

each("update", (config, nodes, seed) => {
  const world = cluster({ seed, nodes, config });
  world.runFor(10_000 + 1000 * world.random.next());
  const meta = Uint8Array.of(1, 2, 3);
  world.feed(1, { type: "set-meta", meta });
  const name = world.host(1).node.name;
  const allMs = world.runUntil(
    () => world.running().every((host) => host.node.member(name)?.meta.length === 3),
    60_000,
    5,
  );
  return { allMs };
});

each("steady", (config, nodes, seed) => {
  const world = cluster({ seed, nodes, config });
  world.runFor(10_000);
  const before = world.bytes;
  world.runFor(60_000);
  return { bytesPerNodePerSecond: (world.bytes - before) / 60 / nodes };
});

for (const loss of [0.15, 0.3, 0.4]) {
  each(`loss${loss * 100}`, (config, _nodes, seed) => {
    const world = cluster({ seed, nodes: 20, config });
    world.runFor(5_000);
    world.network.conditions.loss = loss;
    world.runFor(75_000);
    return falseDeaths(world);
  });
}

for (const stalled of [4, 10]) {
  each(`stall${stalled}`, (config, _nodes, seed) => {
    const world = cluster({ seed, nodes: 20, config });
    world.runFor(5_000);
    for (let round = 0; round < 5; round++) {
      for (let i = 0; i < stalled; i++) world.pause(i);
      world.runFor(12_000);
      for (let i = 0; i < stalled; i++) world.resume(i);
      world.runFor(4_000);
    }
    return falseDeaths(world);
  });
}

for (const cutMs of [20_000, 60_000, 600_000]) {
  each(`partition${cutMs / 1000}`, (config, nodes, seed) => {
    const world = cluster({ seed, nodes, config });
    world.runFor(5_000);
    const half = world.hosts.filter((host) => host.index % 2 === 0).map((host) => host.index);
    world.network.partition([half]);
    world.runFor(cutMs);
    world.network.heal();
    const before = world.bytes;
    const healedMs = world.runUntil(() => world.agree(), 60_000, 50);
    return { healedMs, bytes: world.bytes - before };
  });
}

function falseDeaths(world: World): Record<string, number> {
  const deaths = world.deaths.filter((death) => death.falsely);
  const verdicts = deaths.filter((death) => death.event.reason.why !== "told");
  return { verdicts: verdicts.length, seen: deaths.length };
}

function gone(state: string): boolean {
  return state !== "alive" && state !== "suspect";
}
