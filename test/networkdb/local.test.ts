import assert from "node:assert/strict";
import { test } from "node:test";
import { nodeName } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { decodeNetworkDbMessage, encodeNetworkDbMessage } from "../../src/wire/networkdb/message.ts";
import { bulkSyncsIn, changesIn, gossipIn, Lone, NET, TABLE } from "./lone.ts";
import { forEachSeed, network, World } from "./world.ts";

test("of many creates of one key exactly one succeeds, and of many deletes", () => {
  const lone = new Lone();
  lone.join();
  const refused = (input: string): number =>
    lone.takeEffects().filter((effect) => effect.type === "refused" && effect.input === input).length;
  for (let i = 0; i < 20; i++) lone.put("k", `v${i}`, "create");
  assert.equal(refused("put-row"), 19);
  assert.equal(lone.value("k"), "v0");
  for (let i = 0; i < 20; i++) lone.delete("k");
  assert.equal(refused("delete-row"), 19);
});

test("over a tombstone create succeeds, update and delete fail", () => {
  const lone = new Lone();
  lone.join();
  lone.put("k", "v1", "create");
  lone.delete("k");
  const refusals = [...lone.put("k", "v2", "update"), ...lone.delete("k")];
  assert.deepEqual(
    refusals.map((effect) => effect.type === "refused" && effect.reason),
    ["row-absent", "row-absent"],
  );
  assert.deepEqual(changesIn(lone.put("k", "v3", "create")), ["k: - → v3"]);
});

test("what cannot be written is refused with the reason", () => {
  const lone = new Lone({ maxRowsPerNetwork: 2 });
  const reason = (effects: ReturnType<Lone["put"]>): unknown =>
    effects.map((effect) => effect.type === "refused" && effect.reason)[0];
  assert.equal(reason(lone.put("k", "v")), "not-attached");
  assert.equal(reason(lone.handle({ type: "leave-network", network: NET })), "not-attached");
  lone.join();
  assert.equal(reason(lone.handle({ type: "join-network", network: NET })), "already-attached");
  assert.equal(reason(lone.put("a/b", "v")), "invalid-key");
  assert.equal(reason(lone.put("", "v")), "invalid-key");
  const value = new Uint8Array(100_000);
  const write = { type: "put-row", network: NET, table: TABLE, key: "k", value } as const;
  assert.equal(reason(lone.handle(write)), "value-too-long");
  assert.equal(reason(lone.handle({ ...write, table: "", value: new Uint8Array() })), "invalid-table");
  lone.put("k1", "v");
  lone.put("k2", "v");
  assert.equal(reason(lone.put("k3", "v")), "too-many-rows");
});

test("the row counter returns to 0 after all rows are reaped, and attachments go after their rows", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  for (let i = 0; i < 10; i++) lone.put(`k${i}`, "v");
  for (let i = 0; i < 5; i++) lone.delete(`k${i}`);
  lone.event({ node: "a", key: "theirs", time: 3, change: "delete" });
  const rows = (): number | undefined => lone.db.attachments()[0]?.rows;
  assert.equal(rows(), 11);
  lone.pass(31 * 60_000);
  assert.equal(rows(), 5, "only what lives");
  lone.handle({ type: "leave-network", network: NET });
  assert.equal(rows(), 5, "tombstones");
  lone.pass(29 * 60_000);
  assert.equal(rows(), 5);
  lone.pass(60_000);
  assert.equal(rows(), 0, "rows first");
  assert.equal(lone.db.attachments().length, 1);
  lone.pass(60_000);
  assert.equal(lone.db.attachments().length, 0, "then the attachment");
});

test("a tombstone never says that it has no time left", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  lone.put("k", "v");
  lone.delete("k");
  for (let minute = 0; minute < 31; minute++) {
    lone.pass(60_000);
    for (const { events } of bulkSyncsIn(lone.takeEffects())) {
      for (const event of events)
        assert.ok(event.residualReapSeconds >= 1 && event.residualReapSeconds <= 1_800);
    }
  }
  assert.equal(lone.stored("k"), undefined);
});

test("a quick re-join still tells of rows deleted by leaving", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  lone.put("k", "v");
  const before = lone.stored("k")?.time ?? 0;
  lone.handle({ type: "leave-network", network: NET });
  lone.takeEffects();
  lone.join();
  const told = bulkSyncsIn(lone.bulk("a", [], { unsolicited: true })).flatMap(({ events }) => events);
  const tombstone = told.find((event) => event.key === "k");
  assert.equal(tombstone?.change, "delete");
  assert.ok((tombstone?.time ?? 0) > before);
});

test("peers are sampled uniformly and never include this node", () => {
  const lone = new Lone({ bulkSyncIntervalMs: 3_600_000 });
  lone.join();
  for (let i = 0; i < 10; i++) lone.peer(`n${i}`, i + 1);
  lone.pass(1_000);
  lone.takeEffects();
  const picked = new Map<string, number>();
  for (let i = 0; i < 3_000; i++) {
    lone.put("k", `v${i}`);
    lone.pass(200);
    for (const effect of lone.takeEffects()) {
      if (effect.type === "send-packet") picked.set(effect.to, (picked.get(effect.to) ?? 0) + 1);
    }
  }
  assert.equal(picked.size, 10);
  assert.equal(picked.has("self"), false);
  const total = [...picked.values()].reduce((sum, count) => sum + count, 0);
  for (const count of picked.values())
    assert.ok(Math.abs(count / total - 0.1) < 0.01, `${count} of ${total}`);
});

test("own events go before relayed ones, and both fit the datagram together", () => {
  const lone = new Lone({ gossipPacketsPerRound: 1 });
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(100);
  lone.bulk("a", []);
  for (let i = 0; i < 50; i++)
    lone.event({ node: "a", key: `relay ${i}`, time: 10 + i, value: "x".repeat(100) });
  lone.put("mine", "y".repeat(200));
  lone.takeEffects();
  lone.pass(20);
  const sent = gossipIn(lone.takeEffects());
  assert.equal(sent[0]?.key, "mine");
  assert.ok(sent.length > 4, "the rest of the datagram is filled with relays");
});

test("a change soon after another does not wait for the next round, and repeats nothing", () => {
  const lone = new Lone({ bulkSyncIntervalMs: 3_600_000 });
  lone.peer("a", 1);
  lone.join();
  lone.pass(1_000);
  lone.takeEffects();
  const told = (milliseconds: number): string[] => gossipIn(lone.pass(milliseconds)).map(({ key }) => key);
  lone.put("first", "v");
  assert.deepEqual(told(0), ["first"]);
  lone.put("second", "v");
  assert.deepEqual(told(19), []);
  assert.deepEqual(told(1), ["second"]);
  assert.deepEqual(told(179), []);
  assert.deepEqual(told(1).sort(), ["first", "second"]);
});

test("everything queued is gossiped out: a quiet cluster has empty queues", () => {
  forEachSeed(3, (seed) => {
    const world = new World({ seed, nodes: 6, loss: 0.02 });
    world.attach(network(0));
    for (const node of world.nodes) for (let i = 0; i < 30; i++) node.sign(network(0), `${node.name} ${i}`);
    world.runUntil(() => world.nodes.every((node) => node.isQuiet), 60_000);
    world.runUntil(() => world.nodes.every((node) => node.rows(network(0)).size === 180), 60_000);
  });
});

test("no datagram is sent while there is nothing to say", () => {
  const world = new World({ seed: 1, nodes: 5 });
  world.attach(network(0));
  world.node(0).sign(network(0), "k");
  world.run(30_000);
  const before = world.datagrams;
  world.run(120_000);
  assert.equal(world.datagrams, before);
});

test("a leave is gossiped before it is done, or given up after five seconds", () => {
  const lone = new Lone();
  const left = (): boolean => lone.takeEffects().some((effect) => effect.type === "left");
  lone.handle({ type: "leave" });
  assert.ok(left(), "nobody to tell");

  const other = new Lone();
  other.member("a", 1);
  const otherLeft = (): boolean => other.takeEffects().some((effect) => effect.type === "left");
  other.handle({ type: "leave" });
  assert.ok(!otherLeft());
  while (other.db.clusterBroadcasts.take(1_000, 3).length > 0);
  other.pass(200);
  assert.ok(otherLeft(), "told");

  const slow = new Lone();
  slow.member("a", 1);
  slow.handle({ type: "leave" });
  slow.pass(4_900);
  assert.ok(!slow.takeEffects().some((effect) => effect.type === "left"));
  slow.pass(200);
  assert.ok(slow.takeEffects().some((effect) => effect.type === "left"));
});

test("the state of a push/pull names every attachment, and a joining one stamps ours anew", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  const state = (join: boolean): unknown => {
    const message = decodeNetworkDbMessage(lone.db.localState(join));
    assert.equal(message.type, "push-pull");
    return message.networks.map(({ node, time, leaving }) => `${node} ${time} ${leaving}`);
  };
  assert.deepEqual(state(false), ["self 103 false", "a 101 false"]);
  assert.deepEqual(state(false), ["self 103 false", "a 101 false"], "asking changes nothing");
  assert.deepEqual(state(true), ["self 104 false", "a 101 false"]);
  lone.handle({ type: "leave-network", network: NET });
  assert.deepEqual(state(false), ["self 105 true", "a 101 false"]);
});

test("a received push/pull state counts as the network events it stands for, but is not passed on", () => {
  const lone = new Lone();
  lone.member("a", 1);
  lone.member("b", 2);
  while (lone.db.clusterBroadcasts.take(1_000, 3).length > 0);
  const entry = (node: string, time: number, leaving: boolean) => ({
    node: nodeName(node),
    time,
    leaving,
    network: NET,
  });
  const merge = (...networks: ReturnType<typeof entry>[]): string[] => {
    const bytes = encodeNetworkDbMessage({ type: "push-pull", time: 90, node: nodeName("a"), networks });
    lone.handle({ type: "push-pull-state", bytes, join: false });
    return [...lone.db.participants(NET)];
  };
  assert.deepEqual(merge(entry("a", 5, false), entry("b", 6, true), entry("unknown", 7, false)), ["a"]);
  assert.deepEqual(merge(entry("b", 7, false), entry("a", 5, true)), ["a", "b"], "an old leave is stale");
  assert.deepEqual(merge(entry("a", 8, true), entry("self", 9, false)), ["b"]);
  assert.equal(lone.db.clusterBroadcasts.length, 0);
});

test("a join is told to Docker's nodes only, whenever the first of them becomes known", () => {
  const lone = new Lone();
  const queued = (): number => lone.db.clusterBroadcasts.length;
  const address = { ip: parseIp("10.0.0.1"), port: 7946 };
  lone.handle({ type: "member-joined", name: nodeName("kin"), address, kin: true });
  assert.equal(queued(), 0);
  lone.handle({ type: "member-joined", name: nodeName("docker"), address: { ...address, port: 7947 } });
  assert.equal(queued(), 1);
});
