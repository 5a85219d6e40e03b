import assert from "node:assert/strict";
import { test } from "node:test";
import { nodeName } from "../../src/base/id.ts";
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

test("a request asks with all rows of the networks both are on, and a reply answers at a later time", () => {
  const lone = attached();
  lone.put("k", "v");
  lone.takeEffects();
  const [reply, ...more] = bulkSyncsIn(lone.bulk("a", [], { unsolicited: true, time: 5_000 }));
  assert.equal(more.length, 0);
  assert.equal(reply?.to, "a");
  assert.equal(reply?.message.unsolicited, false);
  assert.equal(reply?.message.partial, false);
  assert.ok((reply?.message.time ?? 0) > 5_000);
  assert.deepEqual(reply?.message.networks, [NET]);
  assert.deepEqual(
    reply?.events.map((event) => event.key),
    ["k"],
  );
});

test("an answer is anything later than the request from that node, and only that", () => {
  const lone = new Lone();
  lone.peer("a", 1);
  lone.peer("b", 2);
  lone.join();
  lone.pass(50);
  const requests = bulkSyncsIn(lone.takeEffects());
  assert.deepEqual(requests.map(({ to }) => to).sort(), ["a", "b"]);
  assert.ok(requests.every(({ message }) => message.unsolicited));
  const inSync = (): boolean => lone.takeEffects().some((effect) => effect.type === "network-in-sync");
  lone.bulk("a", [], { time: 1 });
  assert.ok(!inSync(), "too old");
  lone.bulk("a", [], { partial: true });
  assert.ok(!inSync(), "more pages follow");
  lone.bulk("stranger", []);
  assert.ok(!inSync(), "somebody else");
  lone.bulk("a", [], { unsolicited: true });
  assert.ok(inSync(), "its own request holds everything, too");
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
  lone.handle({ type: "member-left", name: second[0] ?? failed });
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
