import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { nodeName } from "../../src/base/id.ts";
import { instant } from "../../src/base/time.ts";
import { BucketSet, digestRows } from "../../src/networkdb/digest.ts";
import type { Entry } from "../../src/networkdb/entry.ts";
import { RowStore } from "../../src/networkdb/row-store.ts";
import { bulkSyncsIn, Lone, NET } from "./lone.ts";
import { forEachSeed, network, World } from "./world.ts";

test("two nodes that bulk sync each other at once both finish at once", () => {
  forEachSeed(20, (seed) => {
    const world = new World({ seed, nodes: 2 });
    const [a, b] = [world.node(0), world.node(1)];
    a.join(network(0));
    b.join(network(0));
    a.sign(network(0), "of a");
    b.sign(network(0), "of b");
    const took = world.runUntil(
      () => [a, b].every((node) => node.inSync.has(network(0)) && node.rows(network(0)).size === 2),
      60_000,
    );
    assert.ok(took < 3_000, `took ${took} ms`);
    world.run(40_000);
    for (const node of [a, b]) assert.equal(node.db.counters().get("bulk-sync-failed"), undefined);
  });
});

test("Docker's request brings its rows and is answered with all of ours, at a later time", () => {
  const lone = attached();
  lone.put("k", "v");
  lone.takeEffects();
  const theirs = [{ node: "a", key: "theirs", time: 30, value: "v" }];
  const [reply, ...more] = bulkSyncsIn(lone.bulk("a", theirs, { unsolicited: true, time: 5_000 }));
  assert.equal(lone.value("theirs"), "v");
  assert.equal(more.length, 0);
  assert.equal(reply?.to, "a");
  assert.equal(reply?.message.unsolicited, false);
  assert.equal(reply?.message.page, "last");
  assert.ok((reply?.message.time ?? 0) > 5_000);
  assert.deepEqual(reply?.message.networks, [NET]);
  assert.deepEqual(reply?.events.map((event) => event.key).sort(), ["k", "theirs"]);
});

test("a request that overtakes the news of its sender is answered as soon as the sender is known", () => {
  const lone = attached();
  lone.put("k", "v");
  lone.takeEffects();
  const theirs = [{ node: "restarted", key: "theirs", time: 30, value: "v" }];
  lone.bulk("restarted", theirs, { unsolicited: true, time: 5_000 });
  assert.deepEqual(bulkSyncsIn(lone.takeEffects()), []);
  assert.equal(lone.counter("bulk-sync-unknown-sender"), 1);
  lone.member("restarted", 7);
  const [reply, ...more] = bulkSyncsIn(lone.takeEffects());
  assert.equal(more.length, 0);
  assert.equal(reply?.to, "restarted");
  assert.equal(reply?.message.unsolicited, false);
  assert.ok((reply?.message.time ?? 0) > 5_000);
  assert.deepEqual(reply?.message.networks, [NET]);
  assert.deepEqual(
    reply?.events.map((event) => event.key),
    ["k"],
  );
  // Its rows came as early; that it is on the network comes last.
  lone.networkEvent("restarted", "join");
  assert.equal(lone.value("theirs"), "v");
});

test("a request of a sender that stays unknown is forgotten", () => {
  const lone = attached();
  lone.bulk("nobody", [], { unsolicited: true });
  lone.pass(11_000);
  lone.takeEffects();
  lone.member("nobody", 7);
  assert.deepEqual(bulkSyncsIn(lone.takeEffects()), []);
});

test("to Docker's reply to our request all our rows are pushed, which asks for nothing", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  lone.put("k", "v");
  lone.pass(15);
  const [request] = bulkSyncsIn(lone.takeEffects());
  assert.ok(request?.message.unsolicited);
  assert.deepEqual(request?.events, []);
  const [push] = bulkSyncsIn(lone.bulk("a", [{ node: "a", key: "theirs", time: 30, value: "v" }]));
  assert.equal(push?.message.unsolicited, false);
  assert.deepEqual(push?.events.map((event) => event.key).sort(), ["k", "theirs"]);
});

test("two nodes of our kind exchange only what differs, whatever they hold", () => {
  const id = network(0);
  const world = new World({ seed: 1, nodes: 2, config: { bulkSyncIntervalMs: 10_000 } });
  const [a, b] = [world.node(0), world.node(1)];
  world.attach(id);
  for (let i = 0; i < 3_000; i++) a.sign(id, `row ${i}`);
  world.runUntil(() => b.rowCount(id) === 3_000, 10_000);
  world.run(20_000);
  world.bytes = 0;
  world.run(20_000);
  assert.ok(world.bytes < 20_000, `${world.bytes} bytes to find that nothing differs`);

  // On both sides something changes that the other does not hear of by gossip.
  world.partition([a]);
  for (let i = 0; i < 3; i++) a.sign(id, `row ${i}`, 2);
  a.delete(id, "row 10");
  b.sign(id, "of b");
  world.run(3_000);
  world.heal();
  world.bytes = 0;
  world.runUntil(
    () => [a, b].every((node) => node.value(id, "of b") !== undefined && node.rows(id).size === 3_000),
    20_000,
  );
  for (let i = 0; i < 3; i++) assert.equal(b.value(id, `row ${i}`), `${a.name} 2`);
  assert.ok(world.bytes < 200_000, `${world.bytes} bytes of 600,000`);
});

test("a digest finds every row that differs, in any number of buckets", () => {
  const row = fc.record({ key: fc.nat(50), time: fc.integer({ min: 1, max: 3 }), deleted: fc.boolean() });
  fc.assert(
    fc.property(fc.array(row), fc.array(row), fc.integer({ min: 0, max: 6 }), (left, right, power) => {
      const stores = [left, right].map((rows) => {
        const store = new RowStore();
        for (const { key, time, deleted } of rows) store.set("t", `k${key}`, entryOf(time, deleted));
        return store;
      });
      const [a, b] = stores.map((store) => digestRows(store, 2 ** power, () => true));
      assert.ok(a && b);
      const differing = new BucketSet(a, b);
      for (let key = 0; key <= 50; key++) {
        const [mine, other] = stores.map((store) => store.get("t", `k${key}`));
        const versions = [mine, other].map((entry) =>
          entry === undefined || entry.deleted ? 0 : entry.time,
        );
        if (versions[0] !== versions[1]) assert.ok(differing.has("t", `k${key}`));
      }
      const same = stores.every((store) => sameLive(store, stores[0]));
      if (same) assert.equal(differing.size, 0);
    }),
  );
});

test("an answer is anything later than the request from that node, and only that", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(400);
  const requests = bulkSyncsIn(lone.takeEffects());
  assert.deepEqual(requests.map(({ to }) => to).sort(), ["a", "b"]);
  assert.ok(requests.every(({ message }) => message.unsolicited));
  const inSync = (): boolean => lone.takeEffects().some((effect) => effect.type === "network-in-sync");
  lone.bulk("a", [], { time: 1 });
  assert.ok(!inSync(), "too old");
  lone.bulk("a", [], { page: "more" });
  assert.ok(!inSync(), "more pages follow");
  lone.bulk("stranger", []);
  assert.ok(!inSync(), "somebody else");
  lone.bulk("a", [], { unsolicited: true, page: "last" });
  assert.ok(!inSync(), "a request of our kind, which holds nothing");
  lone.bulk("a", [], { unsolicited: true });
  assert.ok(inSync(), "a request of Docker's, which holds everything");
});

test("a second peer is asked when the first is slow, and nobody while one answers", () => {
  const lone = new Lone();
  for (const [index, name] of ["a", "b", "c", "d"].entries()) lone.peer(name, index + 1);
  const asked = (): number => bulkSyncsIn(lone.takeEffects()).length;
  lone.join();
  lone.pass(50);
  const [first] = bulkSyncsIn(lone.takeEffects());
  assert.ok(first !== undefined);
  lone.pass(150);
  assert.equal(asked(), 0, "it has a moment");
  lone.pass(100);
  assert.equal(asked(), 1, "and no more");
  lone.bulk(first.to, [], { page: "more" });
  lone.pass(1_000);
  assert.equal(asked(), 0, "it answers by now");
  lone.handle({ type: "stream-failed", to: first.to });
  lone.pass(300);
  assert.ok(asked() > 0, "it never finished");
});

test("with nobody to ask a network is in sync, and the first peer to appear is asked", () => {
  const lone = new Lone();
  lone.join();
  lone.pass(50);
  assert.ok(lone.takeEffects().some((effect) => effect.type === "network-in-sync"));
  lone.peer("a", 1);
  lone.pass(50);
  assert.deepEqual(
    bulkSyncsIn(lone.takeEffects()).map(({ to }) => to),
    ["a"],
  );
});

test("a peer that cannot be reached is a failure, and another is asked", () => {
  const lone = new Lone({ bulkSyncParallel: 1 });
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(50);
  const first = bulkSyncsIn(lone.takeEffects()).map(({ to }) => to);
  assert.equal(first.length, 1);
  const failed = first[0] ?? nodeName("none");
  const second = bulkSyncsIn(lone.handle({ type: "stream-failed", to: failed })).map(({ to }) => to);
  assert.equal(lone.counter("bulk-sync-failed"), 1);
  assert.equal(second.length, 1);
  assert.notEqual(second[0], failed);
  lone.handle({ type: "member-left", name: second[0] ?? failed, how: "failed" });
  assert.equal(lone.counter("bulk-sync-failed"), 2);
  assert.equal(lone.counter("bulk-sync-succeeded"), 0);
  assert.ok(
    lone.takeEffects().some((effect) => effect.type === "network-in-sync"),
    "nobody is left to ask",
  );
});

test("a silent peer is a failure after the timeout", () => {
  const lone = new Lone({ bulkSyncIntervalMs: 3_600_000 });
  lone.peer("a", 1);
  lone.join();
  lone.pass(29_000);
  assert.equal(lone.counter("bulk-sync-failed"), 0);
  lone.pass(2_000);
  assert.equal(lone.counter("bulk-sync-failed"), 1);
});

test("the periodic sync asks one peer about everything both are on, another when it fails", () => {
  const lone = attached();
  lone.takeEffects();
  lone.pass(30_000);
  const [request, ...more] = bulkSyncsIn(lone.takeEffects());
  assert.equal(more.length, 0);
  assert.ok(request?.message.unsolicited);
  const retried = bulkSyncsIn(lone.handle({ type: "stream-failed", to: request?.to ?? nodeName("none") }));
  assert.deepEqual(
    retried.map(({ to }) => to),
    ["a", "b"].filter((name) => name !== request?.to),
  );
});

test("large tables go in pages, all but the last marked, and none of them a second request", () => {
  const lone = attached({ bulkSyncPageBytes: 8_192 });
  for (let i = 0; i < 500; i++) lone.put(`key ${i}`, "x".repeat(100));
  lone.takeEffects();
  lone.bulk("a", [], { unsolicited: true, time: 5_000 });
  lone.pass(1_000);
  const pages = bulkSyncsIn(lone.takeEffects()).filter(
    ({ to, message }) => to === "a" && message.time > 5_000,
  );
  const reply = pages.filter(({ message }) => !message.unsolicited);
  const keys = new Set(reply.flatMap(({ events }) => events.map((event) => event.key)));
  assert.equal(keys.size, 500);
  assert.ok(reply.length > 10);
  for (const [index, { message }] of reply.entries()) {
    assert.ok(message.payload.length < 8_192 + 1_000);
    if (index > 0) assert.ok(message.time > (reply[index - 1]?.message.time ?? 0));
  }
});

test("however often a peer asks, it is served by one pass at a time", () => {
  const lone = attached({ bulkSyncPageBytes: 8_192, bulkSyncBytesPerInterval: 8_192, burstEvents: 10_000 });
  for (let i = 0; i < 500; i++) lone.put(`key ${i}`, "x".repeat(100));
  lone.takeEffects();
  for (let i = 0; i < 100; i++) lone.bulk("a", [], { unsolicited: true, time: 5_000 + i });
  lone.pass(10_000);
  const rows = bulkSyncsIn(lone.takeEffects())
    .filter(({ to, message }) => to === "a" && !message.unsolicited)
    .reduce((sum, { events }) => sum + events.length, 0);
  assert.ok(rows >= 500 && rows <= 1_500, `${rows} rows for 500`);
});

test("a burst of own events leaves by stream, and an event too long for a datagram too", () => {
  const lone = attached({ burstEvents: 100 });
  lone.pass(1_000);
  lone.takeEffects();
  lone.put("long", "x".repeat(5_000));
  lone.pass(300);
  const long = bulkSyncsIn(lone.takeEffects()).filter(({ message }) => !message.unsolicited);
  assert.deepEqual(long.map(({ to }) => to).sort(), ["a", "b"]);
  assert.equal(long[0]?.events[0]?.key, "long");
  for (let i = 0; i < 300; i++) lone.put(`key ${i}`, "x");
  lone.pass(300);
  const burst = bulkSyncsIn(lone.takeEffects()).filter(({ message }) => !message.unsolicited);
  assert.deepEqual(burst.map(({ to, events }) => `${to} ${events.length}`).sort(), ["a 300", "b 300"]);
  assert.equal(lone.db.attachments()[0]?.ownQueue, 0);
});

test("joining thousands of networks at once asks each peer once", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.join();
  for (let i = 0; i < 200; i++) {
    const id = network(i);
    lone.receive({ type: "network-event", change: "join", time: 200 + i, node: nodeName("a"), network: id });
    lone.handle({ type: "join-network", network: id });
  }
  lone.pass(100);
  const requests = bulkSyncsIn(lone.takeEffects());
  assert.equal(requests.length, 1);
  assert.equal(requests[0]?.message.networks.length, 201);
});

/** On the network with participants a and b, in sync. */
function attached(config: ConstructorParameters<typeof Lone>[0] = {}): Lone {
  const lone = new Lone(config);
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(50);
  for (const name of ["a", "b"]) lone.bulk(name, []);
  return lone;
}

function entryOf(time: number, deleted: boolean): Entry {
  return {
    owner: nodeName("owner"),
    time,
    value: new Uint8Array(),
    deleted,
    changedAt: instant(0),
    reapAt: undefined,
  };
}

function sameLive(a: RowStore, b: RowStore | undefined): boolean {
  const live = (store: RowStore | undefined): string[] =>
    [...(store?.all() ?? [])]
      .flatMap(([, key, { time, deleted }]) => (deleted ? [] : [`${key} ${time}`]))
      .sort();
  return live(a).join() === live(b).join();
}
