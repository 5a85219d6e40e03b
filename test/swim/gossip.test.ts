import assert from "node:assert/strict";
import { test } from "node:test";
import { toHex } from "../../src/base/bytes.ts";
import type { UserBroadcasts } from "../../src/swim/boundary.ts";
import { BroadcastQueue, type Subject } from "../../src/swim/broadcast-queue.ts";
import { Facts } from "../../src/swim/facts.ts";
import { decodeMessage, type Ping } from "../../src/wire/memberlist/message.ts";
import { addressOf, aliveOf, LoneNode, only, sent, VSN } from "./lone-node.ts";

const LIMITS = { maxBroadcasts: 100, retransmitMult: 4, gossipNodes: 3, skipInformed: true };
const ALIVE = { type: "alive", incarnation: 1 } as const;

test("a broadcast is sent its number of times and then no more", () => {
  const node = new LoneNode();
  for (let number = 1; number <= 5; number++) node.hear(number, aliveOf(number));
  const told = new Map<string, number>();
  for (const { messages } of sent(node.advance(800))) {
    for (const message of messages) {
      if (message.type === "alive") told.set(message.node, (told.get(message.node) ?? 0) + 1);
    }
  }
  // Six members: 4 · ⌈log10 7⌉ = 4 times.
  assert.deepEqual(Object.fromEntries(told), { n0: 4, n1: 4, n2: 4, n3: 4, n4: 4, n5: 4 });
  assert.equal(node.swim.queueLength, 0);
});

test("nothing is sent while there is nothing to tell", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(5);
  node.advance(3_000);
  assert.deepEqual(sent(node.advance(25_000)), []);
});

test("a packet keeps its budget and its 127 parts, whatever the application gives", () => {
  for (const size of [0, 1, 40, 1_300]) {
    const given: number[] = [];
    const users: UserBroadcasts = {
      length: 1,
      take(budgetBytes, overheadPerMessage) {
        given.push(budgetBytes);
        const payloads: Uint8Array[] = [];
        for (
          let left = budgetBytes - size - overheadPerMessage;
          left >= 0;
          left -= size + overheadPerMessage
        ) {
          payloads.push(new Uint8Array(size));
        }
        return payloads;
      },
    };
    const node = new LoneNode({}, users);
    node.feed({ type: "packet-overhead", bytes: 29 });
    node.hear(1, aliveOf(1), aliveOf(2));
    const sends = only(node.advance(200), "send");
    assert.ok(sends.length > 0);
    for (const { parts } of sends) {
      assert.ok(parts.length <= 127);
      const bytes = parts.reduce((sum, part) => sum + 2 + part.length, 2);
      assert.ok(bytes + 29 <= 1_400, `${bytes} bytes`);
    }
    assert.ok(given.every((budget) => budget > 3 && budget <= 1_369));
  }
});

test("gossip rides behind pings and their answers", () => {
  const node = new LoneNode();
  node.hear(1, aliveOf(1), aliveOf(2));
  const ping: Ping = {
    type: "ping",
    seqNo: 1,
    node: "n0",
    sourceAddr: new Uint8Array(0),
    sourcePort: 0,
    sourceNode: "n2",
  };
  const [answer] = sent(node.hear(2, ping));
  assert.equal(answer?.messages[0]?.type, "ack");
  assert.ok(answer.messages.some((message) => message.type === "alive" && message.node === "n1"));
});

test("checksums go to those who understand them, and only in gossip", () => {
  const node = new LoneNode();
  node.hear(1, aliveOf(1), aliveOf(2, 1, { vsn: Uint8Array.of(1, 4, 2, 0, 0, 0) }));
  for (const { to, parts, crc } of only(node.advance(900), "send")) {
    assert.equal(crc, to.ip === addressOf(1).ip && decodeMessage(parts[0] ?? VSN).type === "alive");
  }
});

test("whoever told us something is not told it", () => {
  const queue = new BroadcastQueue(LIMITS, { size: 10, facts: new Facts() });
  const x: Subject = { rumor: undefined, number: -1 };
  queue.queue(x, ALIVE, Uint8Array.of(1), ["a"]);
  queue.heardAgain(x, ALIVE, "b");
  queue.heardAgain(x, { type: "alive", incarnation: 0 }, "c");
  assert.deepEqual(queue.take(100, 2, "a"), []);
  assert.deepEqual(queue.take(100, 2, "b"), []);
  // Neither counted: four members still hear it twice each.
  for (let round = 0; round < 8; round++) assert.equal(queue.take(100, 2, "c").length, 1, `${round}`);
  assert.equal(queue.length, 0);
});

test("where everybody knows, a broadcast still ends", () => {
  const queue = new BroadcastQueue(LIMITS, { size: 2, facts: new Facts() });
  const x: Subject = { rumor: undefined, number: -1 };
  queue.queue(x, ALIVE, Uint8Array.of(1), ["a"]);
  for (let round = 0; round < 20; round++) assert.deepEqual(queue.take(100, 2, "a"), []);
  assert.equal(queue.length, 0);
});

test("an exchange of the whole state spares its partner what was queued before", () => {
  const queue = new BroadcastQueue(LIMITS, { size: 10, facts: new Facts() });
  const x: Subject = { rumor: undefined, number: -1 };
  const y: Subject = { rumor: undefined, number: -1 };
  queue.queue(x, ALIVE, Uint8Array.of(1), undefined);
  queue.synced("a", queue.sequence);
  queue.queue(y, ALIVE, Uint8Array.of(2, 2), undefined);
  assert.deepEqual(queue.take(100, 2, "a").map(toHex), ["0202"]);
  assert.deepEqual(queue.take(100, 2, "b").map(toHex), ["01", "0202"].reverse());
});

test("what waits for a broadcast hears when it is out, or was replaced", () => {
  const queue = new BroadcastQueue(LIMITS, { size: 5, facts: new Facts() });
  const x: Subject = { rumor: undefined, number: -1 };
  queue.queue(x, ALIVE, Uint8Array.of(1), undefined, "full", { request: 1, what: "meta" });
  queue.queue(x, ALIVE, Uint8Array.of(2), undefined, "full", { request: 2, what: "meta" });
  assert.deepEqual(queue.takeDone(), [{ request: 1, what: "meta" }]);
  for (let sends = 0; sends < 4; sends++) queue.take(100, 2, "a");
  assert.deepEqual(queue.takeDone(), [{ request: 2, what: "meta" }]);
  assert.deepEqual(queue.takeDone(), []);
});

test("the queue is bounded, and the most told give way", () => {
  const node = new LoneNode({ maxBroadcasts: 10 });
  for (let number = 1; number <= 100; number++) node.hear(1, aliveOf(number));
  assert.equal(node.swim.queueLength, 10);
  assert.equal(node.swim.counters["gossip.overflowed"], 91);
});

test("members are bounded, and so is the work one packet causes", () => {
  const node = new LoneNode({ maxMembers: 20, handoffDepth: 30 });
  node.hear(1, ...Array.from({ length: 100 }, (_, number) => aliveOf(number + 1)));
  assert.equal(node.swim.size, 20);
  assert.equal(node.swim.counters["packet.handoff-full"], 70);
});

test("hostile claims change nothing", () => {
  const node = new LoneNode();
  node.meet(1);
  node.hear(
    9,
    aliveOf(2, 1, { addr: Uint8Array.of(1, 2, 3) }),
    aliveOf(2, 1, { addr: new Uint8Array(0) }),
    aliveOf(2, 1, { node: "" }),
    aliveOf(2, 1, { node: "x".repeat(256) }),
    aliveOf(2, 1, { meta: new Uint8Array(70_000) }),
    aliveOf(2, 1, { vsn: Uint8Array.of(0, 5, 2) }),
    aliveOf(2, 1, { vsn: Uint8Array.of(3, 2, 2, 0, 0, 0) }),
    aliveOf(2, 0),
    { type: "suspect", incarnation: 5, node: "nobody", from: "n9" },
    { type: "dead", incarnation: 5, node: "nobody", from: "n9" },
  );
  assert.equal(node.swim.size, 2);
  // Short versions are not used, and no reason to refuse.
  node.hear(9, aliveOf(2, 1, { vsn: Uint8Array.of(1, 5) }));
  assert.equal(node.swim.member("n2")?.vsn.length, 0);
});

test("our refutation answers the accuser directly, also when it is an old one", () => {
  const node = new LoneNode();
  node.meet(2);
  const [first] = sent(node.hear(1, { type: "suspect", incarnation: 1, node: "n0", from: "n2" }));
  const [second] = sent(node.hear(2, { type: "dead", incarnation: 1, node: "n0", from: "n2" }));
  for (const [reply, to] of [
    [first, 1],
    [second, 2],
  ] as const) {
    assert.equal(reply?.to, addressOf(to).ip);
    const [claim] = reply?.messages ?? [];
    assert.ok(claim?.type === "alive" && claim.node === "n0" && claim.incarnation === 2);
  }
  assert.equal(node.swim.self.incarnation, 2);
});
