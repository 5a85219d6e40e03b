import assert from "node:assert/strict";
import { test } from "node:test";
import { ipToBytes } from "../../src/base/ip.ts";
import { likeMemberlist, LAN } from "../../src/swim/config.ts";
import type { Ping } from "../../src/wire/memberlist/message.ts";
import { addressOf, aliveOf, LoneNode, one, only, sent } from "./lone-node.ts";

const NO_PAYLOAD = new Uint8Array(0);
const REFUSED = { failure: "refused", detail: "" } as const;

test("an acknowledged probe measures the round trip and leaves the member alone", () => {
  const node = new LoneNode();
  node.meet(3);
  const { target, seqNo } = node.untilProbe();
  node.advance(12);
  node.hear(target, { type: "ack", seqNo, payload: NO_PAYLOAD });
  const rtt = node.swim.rttMs(`n${target}`) ?? 0;
  assert.ok(rtt >= 12 && rtt <= 22, `${rtt} ms`);
  assert.deepEqual(only(node.advance(700), "member-suspected"), []);
});

test("without an answer three relays and TCP are tried, then the member is suspected", () => {
  const node = new LoneNode({}, undefined, likeMemberlist(LAN));
  node.meet(5);
  const { target, seqNo } = node.untilProbe();
  const tried = node.advance(510);
  const relayed = sent(tried).filter(({ messages }) => messages[0]?.type === "indirect-ping");
  assert.equal(relayed.length, 3);
  for (const { to, messages } of relayed) {
    const [request] = messages;
    assert.ok(request?.type === "indirect-ping" && request.nack && request.seqNo === seqNo);
    assert.deepEqual(request.target, ipToBytes(addressOf(target).ip));
    assert.notEqual(to, addressOf(target).ip);
  }
  const tcp = one(tried, "stream-ping");
  assert.equal(tcp.message.seqNo, seqNo);
  const failed = node.advance(500);
  assert.equal(one(failed, "member-suspected").accuser, "n0");
  assert.equal(node.swim.member(`n${target}`)?.state, "suspect");
  assert.equal(node.swim.healthScore, 3, "no relay said that it failed too");
});

test("relays that failed too show that we are well", () => {
  const node = new LoneNode();
  node.meet(5);
  const { target, seqNo } = node.untilProbe();
  node.advance(600);
  for (const relay of [1, 2, 3]) node.hear(relay, { type: "nack", seqNo });
  node.advance(500);
  assert.equal(node.swim.member(`n${target}`)?.state, "suspect");
  assert.equal(node.swim.healthScore, 0);
});

test("an answer over TCP alone is an answer, and is counted", () => {
  const node = new LoneNode();
  node.meet(5);
  const { target, seqNo } = node.untilProbe();
  const { ping } = one(node.advance(510), "stream-ping");
  node.feed({ type: "stream-ping-result", ping, result: { seqNo } });
  assert.deepEqual(only(node.advance(500), "member-suspected"), []);
  assert.equal(node.swim.member(`n${target}`)?.state, "alive");
  assert.equal(node.swim.counters["probe.tcp-only"], 1);
});

test("two refusals by its own kernel prove a member dead at once", () => {
  const node = new LoneNode();
  node.meet(5);
  const { target } = node.untilProbe();
  const { ping } = one(node.advance(510), "stream-ping");
  const first = node.feed({ type: "stream-ping-result", ping, result: REFUSED });
  assert.deepEqual(only(first, "member-left"), []);
  assert.equal(one(node.advance(110), "stream-ping").ping, ping);
  const second = node.feed({ type: "stream-ping-result", ping, result: REFUSED });
  const left = one(second, "member-left");
  assert.equal(left.member.name, `n${target}`);
  assert.deepEqual(left.reason, { why: "refused" });
});

test("a member that refused and yet answered is not believed dead by refusals", () => {
  const node = new LoneNode();
  node.meet(5);
  const { target, seqNo } = node.untilProbe();
  const { ping } = one(node.advance(510), "stream-ping");
  node.feed({ type: "stream-ping-result", ping, result: REFUSED });
  node.hear(target, { type: "ack", seqNo, payload: NO_PAYLOAD });
  for (let round = 0; round < 30; round++) {
    const probe = node.untilProbe();
    if (probe.target !== target) {
      node.hear(probe.target, { type: "ack", seqNo: probe.seqNo, payload: NO_PAYLOAD });
      continue;
    }
    const again = one(node.advance(510), "stream-ping");
    node.feed({ type: "stream-ping-result", ping: again.ping, result: REFUSED });
    const effects = node.advance(120);
    assert.deepEqual(only(effects, "stream-ping"), []);
    assert.equal(node.swim.member(`n${target}`)?.state, "alive");
    return;
  }
  assert.fail("it was not probed again");
});

test("the direct time-out follows the measured round trip, down to its floor", () => {
  const node = new LoneNode();
  node.meet(1);
  for (let round = 0; round < 3; round++) {
    const { target, seqNo } = node.untilProbe();
    node.advance(1);
    node.hear(target, { type: "ack", seqNo, payload: NO_PAYLOAD });
  }
  node.untilProbe();
  assert.equal(only(node.advance(85), "stream-ping").length, 0);
  assert.equal(only(node.advance(30), "stream-ping").length, 1);
});

test("a suspect is pinged together with the accusation", () => {
  const node = new LoneNode();
  node.meet(1);
  node.hear(9, { type: "suspect", incarnation: 1, node: "n1", from: "n9" });
  const { effects } = node.untilProbe();
  const packet = sent(effects).find(({ messages }) => messages[0]?.type === "ping");
  assert.deepEqual(packet?.messages[1], { type: "suspect", incarnation: 1, node: "n1", from: "n0" });
});

test("a ping is answered to where it says it came from, and a misdirected one not at all", () => {
  const node = new LoneNode();
  node.meet(2);
  const ping: Ping = {
    type: "ping",
    seqNo: 77,
    node: "n0",
    sourceAddr: ipToBytes(addressOf(2).ip),
    sourcePort: 7946,
    sourceNode: "n2",
  };
  const [answer] = sent(node.hear(1, ping));
  assert.equal(answer?.to, addressOf(2).ip);
  assert.deepEqual(answer?.messages[0], { type: "ack", seqNo: 77, payload: NO_PAYLOAD });
  assert.deepEqual(sent(node.hear(1, { ...ping, node: "somebody" })), []);
  assert.equal(sent(node.hear(1, { ...ping, node: "" })).length, 1);
  const bare = { ...ping, sourceAddr: NO_PAYLOAD, sourcePort: 0, sourceNode: "" };
  assert.equal(sent(node.hear(1, bare))[0]?.to, addressOf(1).ip);
});

test("a relay passes the ack on under the number of the request, or says that there was none", () => {
  const node = new LoneNode();
  node.meet(3);
  const request = {
    type: "indirect-ping",
    seqNo: 4_000,
    target: ipToBytes(addressOf(2).ip),
    port: 7946,
    node: "n2",
    nack: true,
    sourceAddr: ipToBytes(addressOf(1).ip),
    sourcePort: 7946,
    sourceNode: "n1",
  } as const;
  const [relayed] = sent(node.hear(1, request));
  assert.equal(relayed?.to, addressOf(2).ip);
  const ping = relayed?.messages[0];
  assert.ok(ping?.type === "ping" && ping.node === "n2" && ping.sourceNode === "n0");
  const [passed] = sent(node.hear(2, { type: "ack", seqNo: ping.seqNo, payload: NO_PAYLOAD }));
  assert.equal(passed?.to, addressOf(1).ip);
  assert.deepEqual(passed?.messages[0], { type: "ack", seqNo: 4_000, payload: NO_PAYLOAD });

  node.hear(1, { ...request, seqNo: 4_001 });
  const answers = sent(node.advance(510)).flatMap(({ messages }) => messages);
  assert.ok(answers.some((message) => message.type === "nack" && message.seqNo === 4_001));
});

test("a node that slept does not accuse those who could not answer it", () => {
  const node = new LoneNode();
  node.meet(5);
  const { target } = node.untilProbe();
  node.now = (node.now + 30_000) as typeof node.now;
  const effects = node.feed({ type: "wake" });
  assert.deepEqual(only(effects, "member-suspected"), []);
  assert.equal(node.swim.member(`n${target}`)?.state, "alive");
  assert.ok(node.swim.healthScore > 0, "it is not well, and knows");
  // What waited in the socket is read after the timers ran.
  assert.deepEqual(only(node.advance(50), "member-suspected"), []);
});

test("event-loop delay reported by the agent counts like one we noticed", () => {
  const node = new LoneNode();
  node.meet(2);
  node.feed({ type: "loop-delay", ms: 20 });
  assert.equal(node.swim.healthScore, 0);
  node.feed({ type: "loop-delay", ms: 2_500 });
  assert.equal(node.swim.healthScore, 3);
});

test("a last look that is answered spares the suspect and fetches its refutation", () => {
  const node = new LoneNode();
  node.meet(1);
  node.hear(9, { type: "suspect", incarnation: 1, node: "n1", from: "n9" });
  let spared = 0;
  for (let ms = 0; ms < 8_000; ms += 10) {
    const effects = node.advance(10);
    assert.deepEqual(only(effects, "member-left"), []);
    for (const { messages } of sent(effects)) {
      const [ping] = messages;
      if (ping?.type === "ping") node.hear(1, { type: "ack", seqNo: ping.seqNo, payload: NO_PAYLOAD });
    }
    spared += only(effects, "push-pull").length;
  }
  assert.equal(node.swim.member("n1")?.state, "suspect", "only a refutation clears it");
  assert.ok((node.swim.counters["verify.answered"] ?? 0) > 0);
  node.hear(1, aliveOf(1, 2));
  assert.equal(node.swim.member("n1")?.state, "alive");
});

test("a suspect that stays silent is dead when its time is up, not earlier", () => {
  const node = new LoneNode();
  node.meet(1);
  node.hear(9, { type: "suspect", incarnation: 1, node: "n1", from: "n9" });
  assert.deepEqual(only(node.advance(3_900), "member-left"), []);
  const left = one(node.advance(300), "member-left");
  assert.deepEqual(left.reason, { why: "timeout", confirmations: 0 });
});

test("the dead are not waited for to confirm: old names of restarted members slow no verdict", () => {
  const node = new LoneNode();
  node.meet(3);
  for (const gone of ["n2", "n3"]) node.hear(1, { type: "dead", incarnation: 1, node: gone, from: "n1" });
  node.hear(9, { type: "suspect", incarnation: 1, node: "n1", from: "n9" });
  // Four seconds, as if the dead had never been; with them among the four members it would be 24.
  const left = one(node.advance(4_200), "member-left");
  assert.equal(left.member.name, "n1");
});

test("a verdict that confirmations make overdue is no stall of ours", () => {
  const node = new LoneNode();
  node.meet(8);
  const accuse = (from: number): void =>
    void node.hear(from, { type: "suspect", incarnation: 1, node: "n1", from: `n${from}` });
  accuse(2);
  for (let waited = 0; waited < 8_000; waited += 100) {
    const { target, seqNo } = node.untilProbe();
    if (target !== 1) node.hear(target, { type: "ack", seqNo, payload: NO_PAYLOAD });
    waited += 1_000;
  }
  accuse(3);
  accuse(4);
  node.advance(2_000);
  assert.equal(node.swim.counters["stall.count"], undefined);
  assert.equal(node.swim.member("n1")?.state, "dead");
});

test("where node names are required, who does not say its own is not answered, and relays for nobody", () => {
  const node = new LoneNode({ requireNodeNames: true });
  node.meet(3);
  const ping = { type: "ping", seqNo: 7, node: "n0", sourcePort: 7946 } as const;
  const sourceAddr = ipToBytes(addressOf(9).ip);
  const acks = (sourceNode: string): number =>
    sent(node.hear(9, { ...ping, sourceAddr, sourceNode })).filter(({ to }) => to === addressOf(9).ip).length;
  assert.equal(acks(""), 0);
  assert.equal(acks("n9"), 1);
  const request = { type: "indirect-ping", seqNo: 8, port: 7946, nack: true, sourcePort: 7946 } as const;
  const pings = (target: string, sourceNode: string): number =>
    sent(
      node.hear(9, {
        ...request,
        target: ipToBytes(addressOf(1).ip),
        node: target,
        sourceAddr,
        sourceNode,
      }),
    ).filter(({ to, messages }) => to === addressOf(1).ip && messages[0]?.type === "ping").length;
  assert.equal(pings("", "n9"), 0);
  assert.equal(pings("n1", ""), 0);
  assert.equal(pings("n1", "n9"), 1);
  assert.equal(node.swim.counters["send.nameless"], 3);
});
