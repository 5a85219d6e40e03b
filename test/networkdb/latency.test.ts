import assert from "node:assert/strict";
import { test } from "node:test";
import { randomInt } from "../../src/base/random.ts";
import { forEachSeed, network, World } from "./world.ts";

/** Upstream's liveness ceiling. What is normal, a few gossip rounds, is asserted where it says so. */
const CEILING_MS = 180_000;
const ID = network(0);
const SIZES = [2, 3, 5, 10, 25];

test("create, update and delete reach every node within a few gossip rounds", () => {
  eachQuietCluster((world) => {
    const owner = world.node(0);
    const others = world.nodes.slice(1);
    for (const change of [1, 2, 3]) {
      const took = measure(
        world,
        () => owner.sign(ID, "tracked", change),
        () => others.every((node) => node.value(ID, "tracked") === `${owner.name} ${change}`),
      );
      assert.ok(took <= 3_000, `version ${change} took ${took} ms`);
    }
    const took = measure(
      world,
      () => owner.delete(ID, "tracked"),
      () => others.every((node) => node.value(ID, "tracked") === undefined),
    );
    assert.ok(took <= 3_000, `delete took ${took} ms`);
  });
});

test("a join of an empty network and a leave with its rows are known everywhere", () => {
  eachQuietCluster((world) => {
    const leaver = world.node(0);
    leaver.sign(ID, "tracked");
    measure(
      world,
      () => undefined,
      () => world.nodes.every((node) => node.value(ID, "tracked") !== undefined),
    );
    measure(
      world,
      () => leaver.leaveNetwork(ID),
      () =>
        world.nodes.every(
          (node) => !node.db.participants(ID).includes(leaver.name) && node.rows(ID).size === 0,
        ),
    );
    const empty = network(7);
    measure(
      world,
      () => leaver.join(empty),
      () => world.nodes.every((node) => node.db.participants(empty).includes(leaver.name)),
    );
  });
});

test("a populated network is there at once when the joiner knows its participants", () => {
  eachQuietCluster((world) => {
    const joiner = world.addNode();
    for (const node of world.nodes) if (node !== joiner) node.sign(ID, `row of ${node.name}`);
    world.join(joiner, world.node(0));
    world.runUntil(() => joiner.db.participants(ID).length === world.nodes.length - 1, CEILING_MS);
    world.runUntil(() => world.node(0).rows(ID).size === world.nodes.length - 1, CEILING_MS);
    const took = measure(
      world,
      () => joiner.join(ID),
      () => joiner.inSync.has(ID) && joiner.rows(ID).size === world.nodes.length - 1,
    );
    assert.ok(took <= 1_000, `took ${took} ms`);
  });
});

test("a row written right after the join arrives by gossip, not by the sweep", () => {
  forEachSeed(10, (seed) => {
    // No sweep within this test; and no push/pull can carry rows.
    const world = new World({ seed, nodes: 6, config: { bulkSyncIntervalMs: 3_600_000 } });
    world.attach(ID, world.nodes.slice(1));
    const joiner = world.node(0);
    const took = measure(
      world,
      () => {
        joiner.join(ID);
        joiner.sign(ID, "at once");
      },
      () => world.nodes.every((node) => node.value(ID, "at once") !== undefined),
    );
    assert.ok(took <= 5_000, `took ${took} ms`);
  });
});

test("under churn one tracked write reaches all stable nodes", () => {
  for (const nodes of [5, 10, 25]) {
    forEachSeed(nodes === 5 ? 2 : 1, (seed) => {
      const world = new World({ seed, nodes });
      world.attach(ID);
      const restless = world.node(nodes - 1);
      const stable = world.nodes.slice(0, nodes - 1);
      let junk = 0;
      const churn = (): void => {
        for (let i = 0; i < 8; i++) {
          const writer = world.node(randomInt(world.random, nodes - 1));
          writer.sign(ID, `junk ${junk++}`);
        }
        if (junk % 40 === 0) restless.leaveNetwork(ID);
        if (junk % 40 === 24) restless.join(ID);
        if (junk < 2_000) world.schedule(20, churn);
      };
      churn();
      world.run(500);
      const took = measure(
        world,
        () => world.node(0).sign(ID, "tracked"),
        () => stable.every((node) => node.value(ID, "tracked") !== undefined),
      );
      assert.ok(took <= 10_000, `took ${took} ms`);
      assert.equal(world.datagramsLost, 0);
      world.runUntil(() => stable.every((node) => node.rows(ID).size === 2_001), CEILING_MS, { stepMs: 500 });
    });
  }
});

/** Clusters of every size, all nodes attached, nothing waiting to be gossiped. */
function eachQuietCluster(body: (world: World) => void): void {
  for (const nodes of SIZES) {
    forEachSeed(2, (seed) => {
      const world = new World({ seed, nodes });
      world.attach(ID);
      body(world);
    });
  }
}

/** Virtual milliseconds from before `change` until `done`. */
function measure(world: World, change: () => void, done: () => boolean): number {
  change();
  return world.runUntil(done, CEILING_MS);
}
