import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { nodeName } from "../../src/base/id.ts";
import { addressOf, changesIn, gossipIn, Lone, NET } from "./lone.ts";
import { forEachSeed, network, World } from "./world.ts";

test("nobody else's claim changes an own row, and its time is not even witnessed", () => {
  const lone = attached();
  lone.put("k", "mine");
  const time = lone.stored("k")?.time ?? 0;
  assert.deepEqual(changesIn(lone.event({ node: "self", key: "k", time: 0, value: "old" })), []);
  assert.deepEqual(lone.stored("k"), { time, owner: "self", state: "live" });
  lone.put("other", "v");
  assert.equal(lone.stored("other")?.time, time + 1);
});

test("a forged tombstone of an own row, at its own time, is answered by a newer version", () => {
  const lone = attached();
  lone.put("k", "mine");
  const time = lone.stored("k")?.time ?? 0;
  assert.deepEqual(changesIn(lone.bulk("a", [{ node: "self", key: "k", time, change: "delete" }])), []);
  assert.equal(lone.value("k"), "mine");
  assert.ok((lone.stored("k")?.time ?? 0) > time);
  lone.takeEffects();
  lone.pass(300);
  assert.ok(gossipIn(lone.takeEffects()).some(({ key, change }) => key === "k" && change !== "delete"));
});

test("an own row that was deleted so long ago that nothing is known of it is deleted again", () => {
  const lone = attached();
  lone.bulk("a", [{ node: "self", key: "zombie", time: 40, value: "v" }]);
  lone.takeEffects();
  lone.pass(300);
  const answer = gossipIn(lone.takeEffects()).find(({ key }) => key === "zombie");
  assert.equal(answer?.change, "delete");
  assert.ok((answer?.time ?? 0) > 40);
});

test("re-assertions are limited, and what was left over is caught by a later sync", () => {
  const lone = attached({ reassertionsPerInterval: 10 });
  const forged = Array.from({ length: 50 }, (_, i) => {
    lone.put(`k${i}`, "mine");
    const time = lone.stored(`k${i}`)?.time ?? 0;
    return { node: "self", key: `k${i}`, time, change: "delete" as const };
  });
  for (let i = 0; i < 10; i++) lone.bulk("a", forged);
  assert.equal(lone.counter("own-row-reasserted"), 10);
  for (let i = 0; i < 4; i++) {
    lone.pass(5_000);
    lone.bulk("a", forged);
  }
  assert.equal(lone.counter("own-row-reasserted"), 50);
});

test("claims of any kind about own rows never change what is visible", () => {
  const claim = fc.record(
    {
      key: fc.constantFrom("k0", "k1", "k2"),
      time: fc.nat(200),
      value: fc.constantFrom("x", "mine"),
      change: fc.constantFrom("create" as const, "update" as const, "delete" as const),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(claim, { maxLength: 30 }), (claims) => {
      const lone = attached();
      for (const key of ["k0", "k1"]) lone.put(key, "mine");
      lone.delete("k1");
      for (const fields of claims) {
        assert.deepEqual(changesIn(lone.event({ node: "self", ...fields })), []);
        assert.deepEqual(
          [lone.value("k0"), lone.value("k1"), lone.value("k2")],
          ["mine", undefined, undefined],
        );
      }
    }),
  );
});

test("a newer write of an active node takes a key over; a delete, or a claim of a node that is gone, does not", () => {
  const lone = attached();
  for (const key of ["taken", "deleted", "past"]) lone.put(key, "mine");
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "taken", time: 90, value: "theirs" })), [
    "taken: mine → theirs",
  ]);
  lone.event({ node: "a", key: "deleted", time: 91, change: "delete" });
  assert.equal(lone.value("deleted"), "mine");
  lone.lose("b");
  lone.event({ node: "b", key: "past", time: 92, value: "theirs" });
  assert.equal(lone.value("past"), "mine");
  assert.ok((lone.stored("past")?.time ?? 0) > 92, "issued again, at a time that wins");
});

test("two owners of one key, at the same time or on two sides of a partition, end with one", () => {
  forEachSeed(20, (seed) => {
    const world = new World({ seed, nodes: 5 });
    world.attach(network(0));
    const [a, b] = [world.node(0), world.node(1)];
    if (seed % 2 === 0) world.partition([a]);
    a.sign(network(0), "k");
    b.sign(network(0), "k");
    world.run(8_000);
    world.heal();
    world.runUntil(() => new Set(world.nodes.map((node) => node.value(network(0), "k"))).size === 1, 90_000);
    world.run(65_000);
    assert.equal(new Set(world.nodes.map((node) => node.value(network(0), "k"))).size, 1);
    assert.notEqual(a.value(network(0), "k"), undefined);
  });
});

test("a claim that this node left a network it is on is put right", () => {
  const lone = attached();
  while (lone.db.clusterBroadcasts.take(1_000, 3).length > 0);
  lone.networkEvent("self", "leave", 700);
  assert.ok(lone.db.clusterBroadcasts.length > 0);
  assert.ok(lone.db.participants(NET).includes(nodeName("self")));
});

test("once a tombstone is known no older version comes back, whatever comes by whichever road", () => {
  const version = fc.record(
    {
      node: fc.constantFrom("a", "b"),
      time: fc.integer({ min: 1, max: 20 }),
      change: fc.constantFrom("create" as const, "delete" as const),
      residual: fc.constantFrom(0, 1, 400, 100_000),
      road: fc.constantFrom("gossip" as const, "bulk" as const),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(version, { maxLength: 40 }), (versions) => {
      const lone = attached();
      let buried = 0;
      for (const { road, ...fields } of versions) {
        const event = { key: "k", value: "v", ...fields };
        if (road === "gossip") lone.event(event);
        else lone.bulk("a", [event]);
        const stored = lone.stored("k");
        if (stored?.state === "tombstone") buried = Math.max(buried, stored.time);
        if (lone.value("k") !== undefined) assert.ok((stored?.time ?? 0) > buried);
      }
    }),
  );
});

test("no peer makes a tombstone live longer than half an hour", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, change: "delete", residual: 2_000_000_000 });
  lone.pass(30 * 60_000);
  assert.equal(lone.stored("k"), undefined);
});

test("what the network feeds is bounded", () => {
  const lone = new Lone({
    maxRowsPerNetwork: 100,
    maxTablesPerNetwork: 4,
    maxRelayEvents: 50,
    maxNodes: 10,
    maxAttachmentsPerNode: 5,
    maxClusterEvents: 20,
  });
  lone.join();
  for (let i = 0; i < 50; i++) lone.peer(`n${i}`, i + 1);
  assert.equal(lone.db.nodes().length, 10);
  lone.bulk("n1", []);
  for (let i = 0; i < 500; i++) lone.event({ node: "n1", key: `k${i}`, time: i + 1, value: "v" });
  const [attachment] = lone.db.attachments();
  assert.equal(attachment?.rows, 100);
  assert.ok((attachment?.relayQueue ?? 0) <= 50);
  assert.equal(lone.counter("too-many-rows"), 400);
  for (let i = 0; i < 50; i++) {
    lone.receive({
      type: "network-event",
      change: "join",
      time: 500 + i,
      node: nodeName("n1"),
      network: network(i),
    });
  }
  assert.equal(lone.counter("too-many-attachments"), 46);
  assert.ok(lone.db.clusterBroadcasts.length <= 20);
  lone.event({ node: "n1", key: "k1", time: 9_999, value: "x".repeat(50_000) });
  assert.equal(lone.value("k1"), "v");
  assert.equal(lone.counter("value-too-long"), 1);
});

test("a restarted node's rows stay until it wrote them again, or for thirty seconds", () => {
  const lone = attached();
  lone.event({ node: "a", key: "again", time: 500, value: "old" });
  lone.event({ node: "a", key: "gone", time: 501, value: "old" });
  const restart = lone.handle({ type: "member-joined", name: nodeName("a2"), address: addressOf(1) });
  assert.deepEqual(changesIn(restart), []);
  assert.equal(lone.stored("again")?.state, "inherited");
  assert.ok(!lone.db.participants(NET).includes(nodeName("a")), "the old name is no peer any more");
  lone.networkEvent("a2", "join");
  // Its clock starts at zero: the row is its own all the same.
  assert.deepEqual(changesIn(lone.event({ node: "a2", key: "again", time: 1, value: "new" })), [
    "again: old → new",
  ]);
  lone.lose("a");
  const later = lone.pass(31_000);
  assert.deepEqual(changesIn(later), ["gone: old → -"]);
  assert.equal(lone.value("again"), "new");
});

test("inherited rows go when the heir leaves, and pass on when it restarts once more", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 500, value: "old" });
  lone.handle({ type: "member-joined", name: nodeName("a2"), address: addressOf(1) });
  lone.handle({ type: "member-joined", name: nodeName("a3"), address: addressOf(1) });
  lone.networkEvent("a3", "join");
  assert.deepEqual(changesIn(lone.event({ node: "a3", key: "k", time: 1, value: "new" })), ["k: old → new"]);
  lone.event({ node: "b", key: "l", time: 501, value: "old" });
  lone.handle({ type: "member-joined", name: nodeName("b2"), address: addressOf(2) });
  const goodbye = lone.handle({ type: "member-left", name: nodeName("b2"), how: "left" });
  assert.deepEqual(changesIn(goodbye), ["l: old → -"]);
});

test("a live node mistaken for replaced is restored by its own word, or by the end of the other", () => {
  for (const evidence of ["word", "end"] as const) {
    const lone = attached();
    // A newcomer hears of the live one first, then of its dead predecessor.
    lone.handle({ type: "member-joined", name: nodeName("a0"), address: addressOf(1) });
    assert.equal(stateOf(lone, "a"), "left");
    if (evidence === "word") lone.bulk("a", [], { time: 50 });
    else lone.lose("a0");
    assert.equal(stateOf(lone, "a"), "active");
    assert.notEqual(stateOf(lone, "a0"), "active");
    lone.networkEvent("a", "join");
    lone.event({ node: "a", key: "k", time: 60, value: "v" });
    assert.equal(lone.value("k"), "v");
  }
});

test("a name that old news revives gives way to its successor when it dies again", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 58, value: "old" });
  lone.lose("a");
  lone.handle({ type: "member-joined", name: nodeName("a2"), address: addressOf(1) });
  // A peer that was cut off still takes it for alive, and says so.
  lone.handle({ type: "member-joined", name: nodeName("a"), address: addressOf(1) });
  lone.networkEvent("a2", "join");
  lone.event({ node: "a2", key: "k", time: 1, value: "new" });
  lone.lose("a");
  lone.event({ node: "a2", key: "k", time: 1, value: "new" });
  assert.equal(lone.value("k"), "new");
  assert.equal(stateOf(lone, "a"), "left");
});

test("this node's own name before a restart has no say in its rows, whatever peers believe of it", () => {
  const lone = attached();
  lone.put("k", "new");
  lone.handle({ type: "member-joined", name: nodeName("past"), address: addressOf(0) });
  lone.networkEvent("past", "join");
  lone.event({ node: "past", key: "k", time: 90, value: "old" });
  assert.equal(lone.value("k"), "new");
  assert.ok(!lone.db.participants(NET).includes(nodeName("past")));
});

test("events that overtook the news of their node count once it is known, unless it left again", () => {
  const lone = attached();
  lone.networkEvent("late", "join", 600);
  lone.event({ node: "late", key: "k", time: 60, value: "v" });
  lone.networkEvent("gone", "join", 601);
  lone.networkEvent("gone", "leave", 602);
  lone.event({ node: "gone", key: "l", time: 61, value: "v" });
  assert.equal(lone.value("k"), undefined);
  assert.deepEqual(
    changesIn(lone.handle({ type: "member-joined", name: nodeName("late"), address: addressOf(8) })),
    ["k: - → v"],
  );
  lone.handle({ type: "member-joined", name: nodeName("gone"), address: addressOf(9) });
  assert.equal(lone.value("l"), undefined);
  assert.deepEqual([...lone.db.participants(NET)].sort(), ["a", "b", "late", "self"]);

  lone.event({ node: "later", key: "m", time: 62, value: "v" });
  lone.pass(11_000);
  lone.peer("later", 10);
  assert.equal(lone.value("m"), undefined, "but not for ever");
});

function stateOf(lone: Lone, name: string): string | undefined {
  return lone.db.nodes().find((node) => node.name === name)?.state;
}

/** On the network with participants a and b, in sync. */
function attached(config: ConstructorParameters<typeof Lone>[0] = {}): Lone {
  const lone = new Lone(config);
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(50);
  for (const name of ["a", "b"]) lone.bulk(name, [], { time: 20 });
  lone.takeEffects();
  return lone;
}
