import assert from "node:assert/strict";
import { test } from "node:test";
import { LAN, likeMemberlist } from "../../src/swim/config.ts";
import { chaos } from "./chaos.ts";
import { Invariants } from "./invariants.ts";
import { forEachSeed } from "./seed.ts";
import { cluster, swims } from "./swims.ts";
import type { World } from "./world.ts";

test("after any faults, whoever runs sees whoever runs, and nobody else", () => {
  forEachSeed(150, (seed) => {
    chaos({ seed, make: swims });
  });
});

test("names that outlive their process come back whatever happens", () => {
  forEachSeed(40, (seed) => {
    chaos({ seed, make: (options) => swims({ ...options, lastingNames: true }) });
  });
});

test("the same seed gives the same run", () => {
  forEachSeed(3, (seed) => {
    const runs = [1, 2].map(() => {
      const { world, log, healedMs } = chaos({ seed, make: swims, forMs: 20_000 });
      return JSON.stringify([log, healedMs, world.packets, world.bytes, world.random.next()]);
    });
    assert.equal(runs[0], runs[1]);
  });
});

test("a killed process is known dead by all within seconds, and nobody else is", () => {
  forEachSeed(6, (seed) => {
    const world = cluster({ seed, nodes: 30 });
    world.runFor(12_000);
    const { name } = world.host(7).node;
    world.kill(7);
    const took = world.runUntil(() => world.seenBy((state) => state === "dead", name) === 29, 10_000, 20);
    assert.ok(took !== undefined && took <= 6_000, `${took} ms`);
    assert.equal(falseDeaths(world), 0);
  });
});

test("a silent host is found dead no later than memberlist would", () => {
  forEachSeed(4, (seed) => {
    const tooks = [LAN, likeMemberlist(LAN)].map((config) => {
      const world = cluster({ seed, nodes: 20, config });
      world.runFor(12_000);
      const { name } = world.host(7).node;
      world.powerOff(7);
      return (
        world.runUntil(() => world.seenBy((state) => state === "dead", name) === 19, 60_000, 20) ?? Infinity
      );
    });
    assert.ok((tooks[0] ?? 0) <= (tooks[1] ?? 0) + 1_000, `${tooks.join(" ms, memberlist ")} ms`);
  });
});

test("a leave is a leave everywhere, and not a death", () => {
  forEachSeed(5, (seed) => {
    const world = cluster({ seed, nodes: 12, loss: 0.1 });
    const { name } = world.host(3).node;
    world.feed(3, { type: "leave" });
    const took = world.runUntil(() => world.seenBy((state) => state === "left", name) === 12, 10_000, 20);
    assert.ok(took !== undefined);
    world.kill(3);
    world.runFor(40_000);
    assert.equal(world.deaths.length, 0);
    assert.equal(world.host(0).node.member(name), undefined, "and it is forgotten");
  });
});

test("a restarted host takes its old name's place at once", () => {
  forEachSeed(10, (seed) => {
    const world = cluster({ seed, nodes: 10 });
    world.runFor(5_000);
    world.restart(4);
    world.join(4, 0, 1);
    const took = world.runUntil(() => world.agree(), 10_000, 50);
    assert.ok(took !== undefined && took <= 3_000, `${took} ms: ${world.disagreement()}`);
  });
});

test("metadata reaches everybody soon, under loss too", () => {
  forEachSeed(5, (seed) => {
    const world = cluster({ seed, nodes: 40, loss: 0.1 });
    const { name } = world.host(5).node;
    world.feed(5, { type: "set-meta", meta: Uint8Array.of(9, 9) });
    const known = (): boolean => world.running().every((host) => host.node.member(name)?.meta.length === 2);
    assert.ok(world.runUntil(known, 2_000, 10) !== undefined);
  });
});

test("lost packets alone kill nobody", () => {
  for (const loss of [0.15, 0.3, 0.4]) {
    forEachSeed(2, (seed) => {
      const world = cluster({ seed, nodes: 20 });
      world.network.conditions.loss = loss;
      world.runFor(60_000);
      assert.equal(falseDeaths(world), 0, `at ${loss * 100} % loss`);
    });
  }
});

test("stalled processes take no healthy one with them", () => {
  forEachSeed(3, (seed) => {
    const world = cluster({ seed, nodes: 20 });
    const invariants = new Invariants(world);
    for (let round = 0; round < 3; round++) {
      for (let host = 0; host < 10; host++) world.pause(host);
      world.runFor(15_000);
      for (let host = 0; host < 10; host++) world.resume(host);
      world.runFor(5_000);
      invariants.check();
    }
    assert.equal(falseDeaths(world), 0);
    assert.ok(world.runUntil(() => world.agree(), 20_000, 100) !== undefined);
  });
});

test("a node whose own link fails accuses nobody when it is back", () => {
  forEachSeed(5, (seed) => {
    const world = cluster({ seed, nodes: 12 });
    world.runFor(5_000);
    world.network.partition([[3]]);
    world.runFor(20_000);
    const { name } = world.host(3).node;
    const verdicts = world.deaths.filter((death) => death.observer.index === 3);
    assert.deepEqual(
      verdicts.map((death) => death.event.member.name),
      [],
      "held back while it is cut off",
    );
    assert.equal(
      world.seenBy((state) => state === "dead", name),
      11,
    );
    world.network.heal();
    assert.ok(world.runUntil(() => world.agree(), 10_000, 50) !== undefined, world.disagreement());
    assert.equal(falseDeaths(world), 0);
  });
});

test("memberlist's nodes among ours are neither disturbed nor lost", () => {
  forEachSeed(4, (seed) => {
    const memberlist = likeMemberlist(LAN);
    const world = cluster({
      seed,
      nodes: 12,
      loss: 0.03,
      configOf: (host) => (host % 2 === 0 ? LAN : memberlist),
    });
    world.runFor(180_000);
    assert.deepEqual(world.deaths, [], "nobody is ever suspected to death");
    for (const cutMs of [15_000, 90_000]) {
      world.network.partition([[0, 1, 2, 3, 4]]);
      world.runFor(cutMs);
      world.network.heal();
      const healedMs = world.runUntil(() => world.agree(), 20_000, 100);
      assert.ok(healedMs !== undefined, `after ${cutMs} ms: ${world.disagreement()}`);
    }
    world.kill(1);
    world.feed(2, { type: "leave" });
    world.runFor(1_000);
    world.kill(2);
    assert.ok(world.runUntil(() => world.agree(), 20_000, 100) !== undefined, world.disagreement());
  });
});

test("without what we add, a partition stays for ever: the simulator can tell", () => {
  const world = cluster({ seed: 1, nodes: 8, config: likeMemberlist(LAN) });
  world.network.partition([[0, 1, 2, 3]]);
  world.runFor(60_000);
  world.network.heal();
  assert.equal(
    world.runUntil(() => world.agree(), 120_000, 1_000),
    undefined,
  );
});

function falseDeaths(world: World): number {
  return world.deaths.filter((death) => death.falsely).length;
}
