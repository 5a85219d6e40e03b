import assert from "node:assert/strict";
import { test } from "node:test";
import { forEachSeed } from "./seed.ts";
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
