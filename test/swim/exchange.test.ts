import assert from "node:assert/strict";
import { test } from "node:test";
import { ipToBytes, parseCidr, parseIp } from "../../src/base/ip.ts";
import { instant } from "../../src/base/time.ts";
import { LAN } from "../../src/swim/config.ts";
import { versionConflict } from "../../src/swim/push-pull.ts";
import { addressOf, aliveOf, LoneNode, nodeOf, one, only, sent } from "./lone-node.ts";

const TIMEOUT = { failure: "timeout", detail: "no answer" } as const;

test("a join asks every address at once, so that a dead seed costs nothing", () => {
  const node = new LoneNode();
  const addresses = [1, 2, 3].map(addressOf);
  const asked = only(node.feed({ type: "join", request: 5, addresses }), "push-pull");
  assert.deepEqual(
    asked.map(({ to, join }) => [to, join]),
    addresses.map((to) => [to, true]),
  );
  const [first, second, third] = asked.map(({ exchange }) => exchange);
  const one2 = node.feed({ type: "push-pull-reply", exchange: second ?? 0, nodes: [nodeOf(2), nodeOf(3)] });
  assert.equal(one(one2, "join-result").failure, undefined);
  assert.equal(node.swim.aliveCount, 3);
  node.feed({ type: "push-pull-failed", exchange: first ?? 0, failure: TIMEOUT });
  const last = node.feed({ type: "push-pull-failed", exchange: third ?? 0, failure: TIMEOUT });
  assert.deepEqual(one(last, "join-result").failure, TIMEOUT);
  assert.deepEqual(one(last, "join-done"), { type: "join-done", request: 5, joined: 1 });
});

test("a long seed list is worked through a few at a time, and can be cancelled", () => {
  const node = new LoneNode({ parallelJoins: 2 });
  const addresses = [1, 2, 3, 4, 5].map(addressOf);
  const [first] = only(node.feed({ type: "join", request: 1, addresses }), "push-pull");
  const next = node.feed({ type: "push-pull-failed", exchange: first?.exchange ?? 0, failure: TIMEOUT });
  assert.deepEqual(one(next, "push-pull").to, addressOf(3));
  const cancelled = node.feed({ type: "cancel-join", request: 1 });
  assert.equal(only(cancelled, "abandon-exchange").length, 2);
  assert.equal(only(cancelled, "join-result").length, 4);
  assert.equal(one(cancelled, "join-done").joined, 0);
  assert.deepEqual(node.feed({ type: "cancel-join", request: 1 }), []);
});

test("an empty join is done at once", () => {
  assert.equal(one(new LoneNode().feed({ type: "join", request: 1, addresses: [] }), "join-done").joined, 0);
});

test("joins that come together are answered together", () => {
  const node = new LoneNode();
  for (let number = 1; number <= 5; number++) {
    const request = { stream: number, from: addressOf(number), join: true, nodes: [nodeOf(number)] };
    const effects = node.feed({ type: "push-pull-request", ...request });
    assert.deepEqual(only(effects, "push-pull-answer"), []);
    one(effects, "push-pull-merged");
    node.now = instant(node.now + 5);
  }
  const answers = only(node.advance(25), "push-pull-answer").map(({ stream }) => stream);
  assert.deepEqual(answers, [1, 2, 3, 4, 5]);
  assert.deepEqual(
    node.swim
      .snapshot()
      .map(({ name }) => name)
      .sort(),
    ["n0", "n1", "n2", "n3", "n4", "n5"],
  );
});

test("an answer never waits longer than the longest batch, nor for a requester that is gone", () => {
  const node = new LoneNode();
  const answers: number[] = [];
  for (let number = 1; number <= LAN.joinBatchMaxMs / 10 + 10; number++) {
    const request = { stream: number, from: addressOf(number), join: true, nodes: [nodeOf(number)] };
    node.feed({ type: "push-pull-request", ...request });
    if (number === 1) node.feed({ type: "stream-gone", stream: 1 });
    answers.push(...only(node.advance(10), "push-pull-answer").map(({ stream }) => stream));
  }
  assert.ok(answers.includes(2) && !answers.includes(1));
});

test("requests that a busy loop reads far apart are one batch all the same", () => {
  const node = new LoneNode();
  const answers: number[] = [];
  for (let number = 1; number <= 5; number++) {
    const request = { stream: number, from: addressOf(number), join: true, nodes: [nodeOf(number)] };
    answers.push(
      ...only(node.feed({ type: "push-pull-request", ...request }), "push-pull-answer").map(streamOf),
    );
    answers.push(...only(node.advance(number === 1 ? 15 : 28), "push-pull-answer").map(streamOf));
  }
  assert.deepEqual(answers, []);
  assert.deepEqual(only(node.advance(60), "push-pull-answer").map(streamOf), [1, 2, 3, 4, 5]);
});

test("who waits for its answer is sent no gossip that will be in it; others are", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(1);
  node.advance(5_000);
  const request = { stream: 1, from: addressOf(2), join: true, nodes: [nodeOf(2)] };
  node.feed({ type: "push-pull-request", ...request });
  const told = sent(node.advance(15)).map(({ to }) => to);
  assert.deepEqual([...new Set(told)], [addressOf(1).ip]);
  one(node.advance(10), "push-pull-answer");
  // The answer counts: nothing of it follows.
  assert.ok(sent(node.advance(2_000)).every(({ to }) => to !== addressOf(2).ip));
});

test("a node that joined with others does not announce itself: they have it in their answers", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  const [asked] = only(node.feed({ type: "join", request: 1, addresses: [addressOf(1)] }), "push-pull");
  const listed = [...node.swim.snapshot(), nodeOf(1), nodeOf(2), nodeOf(3)];
  node.feed({ type: "push-pull-reply", exchange: asked?.exchange ?? 0, nodes: listed });
  assert.equal(node.swim.aliveCount, 4);
  assert.deepEqual(node.swim.queued(), []);
});

test("a periodic exchange is answered at once", () => {
  const node = new LoneNode();
  const request = { stream: 1, from: addressOf(1), join: false, nodes: [nodeOf(1)] };
  one(node.feed({ type: "push-pull-request", ...request }), "push-pull-answer");
});

test("state is exchanged with a random member every half minute, later in a large cluster", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(3);
  const first = only(node.advance(2_500), "push-pull");
  assert.equal(first.length, 1, "a newcomer's first comes early");
  node.feed({
    type: "push-pull-reply",
    exchange: first[0]?.exchange ?? 0,
    nodes: [nodeOf(1), nodeOf(2), nodeOf(3)],
  });
  const later = only(node.advance(200_000), "push-pull");
  assert.ok(later.length >= 4 && later.length <= 6, `${later.length} exchanges`);
  assert.ok(later.every(({ join }) => !join));
});

test("a version that somebody does not speak refuses the exchange, and nothing is merged", () => {
  const node = new LoneNode();
  const [asked] = only(node.feed({ type: "join", request: 1, addresses: [addressOf(1)] }), "push-pull");
  const nodes = [nodeOf(1, { vsn: Uint8Array.of(1, 5, 2, 2, 5, 4) }), nodeOf(2)];
  const effects = node.feed({ type: "push-pull-reply", exchange: asked?.exchange ?? 0, nodes });
  assert.match(one(effects, "push-pull-merged").refused ?? "", /application protocol/);
  assert.equal(one(effects, "join-result").failure?.failure, "rejected");
  assert.equal(node.swim.size, 1);
});

test("version ranges are those of the living, and everybody has to be inside", () => {
  const voice = (state: string, ...vsn: number[]) => ({ name: "x", state, vsn: Uint8Array.from(vsn) });
  assert.equal(
    versionConflict([voice("alive", 1, 5, 2, 0, 0, 0)], [voice("alive", 1, 5, 2, 0, 0, 0)]),
    undefined,
  );
  assert.equal(
    versionConflict([voice("alive", 1, 5, 2, 2, 5, 4)], [voice("alive", 1, 5, 2, 2, 5, 5)]),
    undefined,
  );
  assert.match(
    versionConflict([voice("alive", 3, 5, 4, 0, 0, 0)], [voice("dead", 1, 5, 2, 0, 0, 0)]) ?? "",
    /protocol 2, others need 3 to 5/,
  );
  assert.match(versionConflict([voice("alive", 1, 5, 2, 0, 0, 0)], [voice("alive")]) ?? "", /protocol 0/);
  // What the dead could do does not narrow the range.
  assert.equal(
    versionConflict([voice("alive", 1, 5, 2, 0, 0, 0)], [voice("dead", 2, 2, 2, 0, 0, 0)]),
    undefined,
  );
});

test("a leave is told its number of times before it is done", () => {
  const node = new LoneNode();
  node.meet(4);
  const begun = node.feed({ type: "leave", timeoutMs: 5_000 });
  assert.deepEqual(only(begun, "leave-done"), []);
  assert.deepEqual(one(begun, "member-left").reason, { why: "left" });
  const effects = node.advance(1_000);
  assert.equal(one(effects, "leave-done").complete, true);
  const goodbyes = sent(effects).filter(({ messages }) =>
    messages.some((message) => message.type === "dead"),
  );
  assert.equal(goodbyes.length, 4);
  // Still there for those who have not heard it.
  assert.equal(node.swim.self.state, "left");
  node.hear(1, { type: "dead", incarnation: 9, node: "n0", from: "n1" });
  assert.equal(node.swim.self.incarnation, 1, "no refutation any more");
});

test("a leave ends when its time is up, and at once when nobody is there", () => {
  const alone = new LoneNode();
  assert.equal(one(alone.feed({ type: "leave", timeoutMs: 5_000 }), "leave-done").complete, true);
  const node = new LoneNode({ busyGossipIntervalMs: 200, gossipNodes: 1 });
  node.meet(50);
  node.feed({ type: "leave", timeoutMs: 300 });
  assert.equal(one(node.advance(400), "leave-done").complete, false);
});

test("new metadata is announced under a higher incarnation", () => {
  const node = new LoneNode();
  node.meet(4);
  const begun = node.feed({ type: "set-meta", request: 3, meta: Uint8Array.of(1), timeoutMs: 5_000 });
  assert.deepEqual(only(begun, "meta-announced"), []);
  const effects = node.advance(1_000);
  assert.deepEqual(one(effects, "meta-announced"), { type: "meta-announced", request: 3, complete: true });
  const claims = sent(effects).flatMap(({ messages }) => messages);
  assert.ok(
    claims.some(
      (claim) =>
        claim.type === "alive" && claim.node === "n0" && claim.incarnation === 2 && claim.meta[0] === 1,
    ),
  );
  const alone = new LoneNode();
  assert.equal(
    one(alone.feed({ type: "set-meta", request: 4, meta: Uint8Array.of(1), timeoutMs: 1 }), "meta-announced")
      .complete,
    true,
  );
});

test("a user message goes to one member, alone in its packet", () => {
  const node = new LoneNode();
  node.hear(1, aliveOf(1));
  const [packet] = sent(node.feed({ type: "send-user", to: "n1", payload: Uint8Array.of(1, 2) }));
  assert.deepEqual(packet, {
    to: addressOf(1).ip,
    messages: [{ type: "user", payload: Uint8Array.of(1, 2) }],
  });
  assert.deepEqual(node.feed({ type: "send-user", to: "nobody", payload: Uint8Array.of(1) }), []);
});

function streamOf({ stream }: { readonly stream: number }): number {
  return stream;
}

test("where networks are given, who is or speaks from outside them is not admitted, by gossip or exchange", () => {
  const node = new LoneNode({ allowedNetworks: [parseCidr("10.0.0.0/29"), parseCidr("2001:db8::/32")] });
  const names = (): string[] => [...node.swim.members()].map(({ name }) => name).sort();
  node.hear(1, aliveOf(2));
  node.hear(1, aliveOf(9), aliveOf(3, 1, { addr: ipToBytes(parseIp("2001:db8::3")) }));
  node.hear(9, aliveOf(4));
  assert.deepEqual(names(), ["n0", "n2", "n3"]);
  const nodes = [nodeOf(5), nodeOf(9)];
  node.feed({ type: "push-pull-request", stream: 1, from: addressOf(9), join: false, nodes });
  assert.deepEqual(names(), ["n0", "n2", "n3", "n5"], "what an exchange lists may come from anywhere");
  assert.equal(node.swim.counters["claims.refused"], 3);
});
