import assert from "node:assert/strict";
import { test } from "node:test";
import { forEachSeed } from "./seed.ts";
import { LAN, likeMemberlist } from "../../src/swim/config.ts";
import { randomInt, seededRandom } from "../../src/base/random.ts";
import { swims } from "./swims.ts";

test("nodes that each join the one before, all at once, agree without waiting for a periodic exchange", () => {
  forEachSeed(20, (seed) => {
    const world = swims({ seed, nodes: 5 });
    world.runFor(1_500);
    for (let index = 1; index < 5; index++) world.join(index, index - 1);
    assert.notEqual(
      world.runUntil(() => world.agree(), 3_000, 50),
      undefined,
      world.disagreement(),
    );
  });
});

test("a storm of joins that comes in two waves leaves nobody out until a periodic exchange", () => {
  const nodes = 50;
  forEachSeed(20, (seed) => {
    const world = swims({ seed, nodes });
    world.runFor(1_500);
    for (let index = 1; index < nodes; index++) {
      world.join(index, 0);
      if (index % 25 === 0) world.runFor(400);
    }
    assert.notEqual(
      world.runUntil(() => world.agree(), 8_000, 50),
      undefined,
      world.disagreement(),
    );
  });
});

test("nodes that each join any other, all within a moment, become one in seconds, memberlist's among them", () => {
  const memberlist = likeMemberlist(LAN);
  const slow: number[] = [];
  const mixed: number[] = [];
  forEachSeed(60, (seed) => {
    for (const [late, configOf] of [
      [slow, () => LAN],
      [mixed, (host: number) => (host % 2 === 0 ? LAN : memberlist)],
    ] as const) {
      const random = seededRandom(seed);
      const nodes = 6 + randomInt(random, 6);
      const world = swims({ seed, nodes, configOf });
      world.runFor(1_500);
      for (let host = 1; host < nodes; host++) {
        world.after(randomInt(random, 400), () => world.join(host, randomInt(random, host)));
      }
      world.runFor(400);
      if (world.runUntil(() => world.agree(), 3_000, 50) !== undefined) continue;
      late.push(seed);
      // Whoever pings a stranger is asked; memberlist's nodes wait for their half-minute.
      if (late === slow)
        assert.ok(world.runUntil(() => world.agree(), 9_000, 50) !== undefined, world.disagreement());
    }
  });
  assert.ok(slow.length <= 1, `ours: ${slow.join()}`);
  assert.ok(mixed.length <= 8, `mixed: ${mixed.join()}`);
});
