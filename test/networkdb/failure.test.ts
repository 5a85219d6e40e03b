import assert from "node:assert/strict";
import { test } from "node:test";
import { nodeName } from "../../src/base/id.ts";
import { addressOf, changesIn, gossipIn, Lone, NET, TABLE } from "./lone.ts";
import { forEachSeed, network, World } from "./world.ts";

const MINUTE = 60_000;

test("rows of a failed owner vanish once and come back on its return with nothing re-sent", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  assert.deepEqual(changesIn(lone.lose("a")), ["k: v → -"]);
  assert.deepEqual(changesIn(lone.lose("a")), []);
  assert.equal(lone.value("k"), undefined);
  assert.equal(lone.stored("k")?.state, "suspended");
  assert.deepEqual(
    [...lone.db.rows(NET, TABLE, { suspended: true })].map((row) => row.key),
    ["k"],
  );
  assert.ok(!lone.db.participants(NET).includes(nodeName("a")), "not picked as a peer meanwhile");
  const back = lone.handle({
    type: "member-joined",
    name: nodeName("a"),
    address: lone.db.nodes()[0]!.address,
  });
  assert.deepEqual(changesIn(back), ["k: - → v"]);
  assert.ok(lone.db.participants(NET).includes(nodeName("a")));
});

test("a resting owner's rows stay visible for a restart's time, then are suspended", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  assert.deepEqual(changesIn(lone.lose("a", "resting")), []);
  assert.equal(lone.stored("k")?.state, "inherited");
  assert.ok(!lone.db.participants(NET).includes(nodeName("a")), "not picked as a peer meanwhile");
  assert.deepEqual(changesIn(lone.pass(9_000)), []);
  assert.deepEqual(changesIn(lone.pass(2_000)), ["k: v → -"]);
  assert.equal(lone.stored("k")?.state, "suspended");
  const back = lone.handle({
    type: "member-joined",
    name: nodeName("a"),
    address: lone.db.nodes()[0]!.address,
  });
  assert.deepEqual(changesIn(back), ["k: - → v"]);
});

test("a restarted owner's rows stay as they were, visible or suspended, until it wrote them again", () => {
  for (const how of ["resting", "failed"] as const) {
    const lone = attached();
    lone.event({ node: "a", key: "again", time: 500, value: "v" });
    lone.event({ node: "a", key: "gone", time: 501, value: "v" });
    lone.lose("a", how);
    const state = how === "resting" ? "inherited" : "suspended";
    const back = lone.handle({ type: "member-joined", name: nodeName("a2"), address: addressOf(1) });
    assert.deepEqual(changesIn(back), [], "no entry is taken away and put back");
    assert.equal(lone.stored("again")?.state, state);
    lone.networkEvent("a2", "join");
    const wrote = changesIn(lone.event({ node: "a2", key: "again", time: 1, value: "v" }));
    assert.deepEqual(wrote, how === "resting" ? ["again: v → v"] : ["again: - → v"]);
    assert.deepEqual(changesIn(lone.pass(31_000)), how === "resting" ? ["gone: v → -"] : []);
    assert.equal(lone.stored("gone"), undefined);
    assert.equal(lone.value("again"), "v");
  }
});

test("a failed node is not gossiped to, even when it was the only one", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  lone.lose("a");
  lone.pass(100);
  lone.takeEffects();
  lone.put("k", "v");
  lone.pass(1_000);
  assert.deepEqual(gossipIn(lone.takeEffects()), []);
});

test("updates relayed while the owner is down are what comes back; deletes stay deleted", () => {
  const lone = attached();
  lone.event({ node: "a", key: "updated", time: 1, value: "old" });
  lone.event({ node: "a", key: "deleted", time: 2, value: "v" });
  lone.lose("a");
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "updated", time: 3, value: "new" })), []);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "deleted", time: 4, change: "delete" })), []);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "created", time: 5, value: "c" })), []);
  const back = lone.handle({
    type: "member-joined",
    name: nodeName("a"),
    address: lone.db.nodes()[0]!.address,
  });
  assert.deepEqual(changesIn(back).sort(), ["created: - → c", "updated: - → new"]);
  assert.equal(lone.value("deleted"), undefined);
});

test("events of a failed owner are passed on", () => {
  const lone = attached();
  lone.pass(100);
  lone.lose("a");
  lone.takeEffects();
  lone.event({ node: "a", key: "k", time: 3, value: "v" });
  lone.pass(500);
  assert.ok(gossipIn(lone.takeEffects()).some((event) => event.key === "k" && event.node === "a"));
});

test("failed, then left: dropped without a second delete", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  lone.lose("a");
  assert.deepEqual(changesIn(lone.handle({ type: "member-left", name: nodeName("a"), how: "left" })), []);
  assert.equal(lone.stored("k"), undefined);
});

test("suspended rows expire after half an hour, and the node with all it had after a day", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  lone.lose("a");
  lone.pass(29 * MINUTE);
  assert.notEqual(lone.stored("k"), undefined);
  lone.pass(MINUTE);
  assert.equal(lone.stored("k"), undefined);
  lone.pass(22 * 60 * MINUTE);
  assert.equal(
    lone.db.nodes().some((node) => node.name === "a"),
    true,
  );
  // A late event may still come by; it goes with the node.
  lone.event({ node: "a", key: "late", time: 9, value: "v" });
  lone.pass(4 * 60 * MINUTE);
  assert.equal(
    lone.db.nodes().some((node) => node.name === "a"),
    false,
  );
  assert.equal(lone.stored("late"), undefined);
  lone.event({ node: "a", key: "later", time: 10, value: "v" });
  assert.equal(lone.stored("later"), undefined, "no attachment is left to judge by");
});

test("a watch opened while an owner is failed sees nothing of it", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  lone.event({ node: "b", key: "l", time: 2, value: "w" });
  lone.lose("a");
  assert.deepEqual(changesIn(lone.db.snapshot()), ["l: - → w"]);
});

test("a key of a failed owner can be taken over, and the owner's old row is refused after its return", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 50, value: "theirs" });
  lone.lose("a");
  assert.deepEqual(
    lone.put("k", "mine", "update").map((effect) => effect.type === "refused" && effect.reason),
    ["row-absent"],
  );
  assert.equal(
    lone.delete("k").some((effect) => effect.type === "refused"),
    true,
  );
  assert.deepEqual(changesIn(lone.put("k", "mine", "create")), ["k: - → mine"]);
  assert.ok((lone.stored("k")?.time ?? 0) > 50);
  const back = lone.handle({
    type: "member-joined",
    name: nodeName("a"),
    address: lone.db.nodes()[0]!.address,
  });
  assert.deepEqual(changesIn(back), []);
  lone.bulk("a", [{ node: "a", key: "k", time: 50, value: "theirs" }]);
  assert.equal(lone.value("k"), "mine");
});

test("of a node that left nothing is remembered", () => {
  for (const goodbye of ["node event", "memberlist"] as const) {
    const lone = attached();
    lone.event({ node: "a", key: "k", time: 1, value: "v" });
    lone.event({ node: "a", key: "dead", time: 2, change: "delete" });
    const effects =
      goodbye === "memberlist"
        ? lone.handle({ type: "member-left", name: nodeName("a"), how: "left" })
        : lone.receive({ type: "node-event", change: "leave", time: 300, node: nodeName("a") });
    assert.deepEqual(changesIn(effects), ["k: v → -"]);
    assert.deepEqual(changesIn(lone.lose("a")), [], "memberlist's own notice changes nothing more");
    assert.deepEqual([...lone.db.allRows()], []);
    const back = lone.handle({
      type: "member-joined",
      name: nodeName("a"),
      address: lone.db.nodes()[0]!.address,
    });
    assert.deepEqual(changesIn(back), []);
    assert.ok(!lone.db.participants(NET).includes(nodeName("a")), "not even its attachment");
  }
});

test("node events neither revive the dead nor speak for this node", () => {
  const lone = attached();
  lone.lose("a");
  lone.receive({ type: "node-event", change: "join", time: 900, node: nodeName("a") });
  assert.equal(lone.db.nodes().find((node) => node.name === "a")?.state, "failed");
  lone.receive({ type: "node-event", change: "leave", time: 901, node: nodeName("self") });
  lone.networkEvent("self", "leave", 902);
  assert.ok(lone.db.participants(NET).includes(nodeName("self")));
});

test("a cable pulled for ten seconds, a minute or ten minutes loses no row and leaves none behind", () => {
  for (const outageMs of [10_000, MINUTE, 10 * MINUTE]) {
    forEachSeed(4, (seed) => {
      const world = new World({ seed, nodes: 7, loss: 0.03 });
      const id = network(0);
      world.attach(id);
      for (const node of world.nodes) for (let i = 0; i < 5; i++) node.sign(id, `${node.name} ${i}`);
      world.runUntil(() => world.nodes.every((node) => node.rows(id).size === 35), 60_000);
      const island = world.nodes.slice(0, 1 + (seed % 3));
      world.partition(island);
      world.run(outageMs / 2);
      // Both sides go on meanwhile.
      for (const node of world.nodes) {
        node.delete(id, `${node.name} 0`);
        node.sign(id, `${node.name} 1`, 2);
        node.sign(id, `${node.name} new`);
      }
      world.run(outageMs / 2);
      world.heal();
      const expected = new Map(
        world.nodes.flatMap((node) => [
          [`${node.name} 1`, `${node.name} 2`] as const,
          ...["2", "3", "4", "new"].map((key) => [`${node.name} ${key}`, `${node.name} 1`] as const),
        ]),
      );
      world.runUntil(() => world.nodes.every((node) => same(node.rows(id), expected)), 90_000);
    });
  }
});

function attached(): Lone {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(50);
  for (const name of ["a", "b"]) lone.bulk(name, []);
  lone.takeEffects();
  return lone;
}

function same(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([key, value]) => b.get(key) === value);
}
