import assert from "node:assert/strict";
import { test } from "node:test";
import type { NetworkId } from "../../src/base/id.ts";
import { pick, randomInt } from "../../src/base/random.ts";
import { forEachSeed, network, World, type WorldNode } from "./world.ts";

test("any interleaving of joins, leaves and writes ends with everyone holding the rows of everyone attached", () => {
  forEachSeed(25, (seed) => {
    const nodes = 2 + (seed % 9) + (seed % 5 === 0 ? 14 : 0);
    const world = new World({ seed, nodes, loss: 0.05, duplicates: 0.05, maxDelayMs: 40 });
    const truth = new Truth();
    const networks = 1 + (seed % 5);
    for (let i = 0; i < 120; i++) {
      act(world, truth, network(randomInt(world.random, networks)));
      world.run(10 + randomInt(world.random, 490));
    }
    world.runUntil(() => truth.holds(world), 120_000);
    // And it stays so: nothing old comes back with the next sweeps.
    world.run(65_000);
    assert.ok(truth.holds(world), "still settled a minute later");
  });
});

test("the same with peers of Docker 20.10 among them", () => {
  forEachSeed(15, (seed) => {
    const nodes = 3 + (seed % 8);
    const oldPeers = 1 + (seed % (nodes - 1));
    const world = new World({ seed, nodes, oldPeers, loss: 0.03, duplicates: 0.03, maxDelayMs: 40 });
    const truth = new Truth();
    for (let i = 0; i < 100; i++) {
      act(world, truth, network(randomInt(world.random, 2)));
      world.run(10 + randomInt(world.random, 490));
    }
    world.runUntil(() => truth.holds(world), 180_000, { stepMs: 500 });
    world.run(65_000);
    assert.ok(truth.holds(world), "still settled a minute later");
  });
});

/** The naive oracle: what each attached node wrote and has not deleted. */
class Truth {
  /** Network to node to key to value. */
  readonly attached = new Map<NetworkId, Map<WorldNode, Map<string, string>>>();
  #nextKey = 0;

  of(id: NetworkId): Map<WorldNode, Map<string, string>> {
    const rows = this.attached.get(id) ?? new Map<WorldNode, Map<string, string>>();
    this.attached.set(id, rows);
    return rows;
  }

  /** Never the same key twice. */
  newKey(): string {
    return `key-${this.#nextKey++}`;
  }

  expected(id: NetworkId): Map<string, string> {
    return new Map([...this.of(id).values()].flatMap((rows) => [...rows]));
  }

  holds(world: World): boolean {
    return [...this.attached].every(([id, nodes]) => {
      const expected = this.expected(id);
      return world.alive.every((node) => sameRows(node.rows(id), nodes.has(node) ? expected : new Map()));
    });
  }
}

function sameRows(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([key, value]) => b.get(key) === value);
}

/** One random action of one random node, and its meaning. */
function act(world: World, truth: Truth, id: NetworkId): void {
  const node = pick(world.random, world.alive);
  assert.ok(node);
  const rows = truth.of(id).get(node);
  if (rows === undefined) {
    truth.of(id).set(node, new Map());
    return node.join(id);
  }
  const key = pick(world.random, [...rows.keys()]);
  const dice = randomInt(world.random, 10);
  if (dice === 0) {
    truth.of(id).delete(node);
    node.leaveNetwork(id);
  } else if (dice <= 2 && key !== undefined) {
    rows.delete(key);
    node.delete(id, key);
  } else if (dice <= 5 && key !== undefined) {
    rows.set(key, `${rows.get(key) ?? ""}+`);
    node.put(id, key, rows.get(key) ?? "", "update");
  } else {
    const created = truth.newKey();
    rows.set(created, `${node.name} ${created} `);
    node.put(id, created, rows.get(created) ?? "", "create");
  }
}
