import assert from "node:assert/strict";
import { test } from "node:test";
import { pick, randomInt } from "../../src/base/random.ts";
import { forEachSeed, network, World, type WorldNode } from "./world.ts";

const ID = network(0);

test("an agent that restarts at its address keeps its rows visible everywhere throughout", () => {
  forEachSeed(10, (seed) => {
    const world = new World({ seed, nodes: 5, loss: 0.02 });
    world.attach(ID);
    const old = world.node(0);
    for (let i = 0; i < 10; i++) old.put(ID, `endpoint ${i}`, `value ${i}`);
    const others = world.nodes.slice(1);
    const complete = (): boolean =>
      world.alive.every((node) => node.rows(ID).size === 10 || node === world.nodes[5]);
    world.runUntil(complete, 30_000);
    // Its clock has advanced far beyond where the successor's begins.
    for (let i = 0; i < 50; i++) old.put(ID, "endpoint 0", `value 0 ${i}`);
    old.put(ID, "endpoint 0", "value 0");
    world.run(5_000);
    for (const node of others) node.changes.length = 0;

    old.crash();
    world.run(1_000);
    const heir = world.addNode(old.address);
    world.join(heir, world.node(1));
    world.runUntil(() => heir.db.participants(ID).length > 0, 5_000);
    heir.join(ID);
    for (let i = 0; i < 9; i++) heir.put(ID, `endpoint ${i}`, `value ${i}`);
    world.run(60_000);

    const vanished = (node: WorldNode): string[] =>
      node.changes.filter(({ current }) => current === undefined).map(({ key }) => key);
    for (const node of others) {
      assert.deepEqual(vanished(node), ["endpoint 9"], "only what the new agent no longer has");
      assert.equal(node.rows(ID).size, 9);
      for (const row of node.db.rows(ID, "endpoint_table")) assert.equal(row.owner, heir.name);
    }
  });
});

test("islands find each other: three bootstrap nodes come back under new names and join nobody", () => {
  forEachSeed(5, (seed) => {
    const world = new World({ seed, nodes: 5 });
    const bootstrap = world.nodes.slice(0, 3).map((node) => node.address);
    for (const node of world.nodes) node.handle({ type: "set-bootstrap", addresses: bootstrap });
    world.attach(ID);
    for (const node of world.nodes.slice(0, 3)) node.shutDown();
    world.run(10_000);
    assert.equal(world.alive.length, 2);
    for (const address of bootstrap) {
      world.addNode(address).handle({ type: "set-bootstrap", addresses: bootstrap });
    }
    world.runUntil(
      () =>
        world.alive.every((node) => {
          const states = node.db.nodes().map(({ state }) => state);
          return states.filter((state) => state === "active").length === 4 && !states.includes("failed");
        }),
      5 * 60_000,
    );
  });
});

test("an empty bootstrap list replaces nothing, and one that names only this node starts nothing", () => {
  const world = new World({ seed: 1, nodes: 1 });
  const other = world.addNode();
  const alone = world.node(0);
  alone.handle({ type: "set-bootstrap", addresses: [alone.address] });
  world.run(130_000);
  assert.equal(alone.db.counters().get("bootstrap-tried"), undefined);
  alone.handle({ type: "set-bootstrap", addresses: [alone.address, other.address] });
  alone.handle({ type: "set-bootstrap", addresses: [] });
  world.run(70_000);
  assert.ok((alone.db.counters().get("bootstrap-tried") ?? 0) > 0);
  assert.equal(alone.view.has(other), true);
});

test("after crashes, restarts, partitions and leaves everyone agrees on the rows of those who are there", () => {
  forEachSeed(12, (seed) => {
    const world = new World({ seed, nodes: 4 + (seed % 5), loss: 0.03, duplicates: 0.03, maxDelayMs: 30 });
    world.attach(ID);
    let next = 0;
    const write = (node: WorldNode): void => node.sign(ID, `key ${next++}`);
    for (const node of world.nodes) write(node);
    for (let i = 0; i < 12; i++) {
      const node = pick(world.random, world.alive);
      assert.ok(node);
      const dice = randomInt(world.random, 6);
      if (dice === 0 && world.alive.length > 3) node.crash();
      else if (dice === 1 && world.alive.length > 3) node.shutDown();
      else if (dice === 2) restart(world, node, write);
      else if (dice === 3) world.partition([node]);
      else if (dice === 4) world.heal();
      else write(node);
      world.run(randomInt(world.random, 15_000));
    }
    world.heal();
    world.runUntil(() => agree(world), 180_000, { stepMs: 500 });
    world.run(65_000);
    assert.ok(agree(world));
  });
});

/** The node ends and a new one starts at its address a moment later. */
function restart(world: World, node: WorldNode, write: (node: WorldNode) => void): void {
  node.crash();
  world.run(randomInt(world.random, 8_000));
  const fresh = world.addNode(node.address);
  const seed = pick(
    world.random,
    world.alive.filter((other) => other !== fresh),
  );
  if (seed !== undefined) world.join(fresh, seed);
  world.run(1_000);
  fresh.join(ID);
  write(fresh);
}

/** All hold the same visible rows: every own row of everyone attached, and nothing else. */
function agree(world: World): boolean {
  const live = world.alive.filter((node) => !node.goodbyeSaid);
  const expected = new Map(
    live.flatMap((node) => [...node.rows(ID)].filter(([, value]) => value.startsWith(`${node.name} `))),
  );
  return live.every((node) => {
    const rows = node.rows(ID);
    return (
      node.db.participants(ID).length === live.length &&
      rows.size === expected.size &&
      [...rows].every(([key, value]) => expected.get(key) === value)
    );
  });
}
