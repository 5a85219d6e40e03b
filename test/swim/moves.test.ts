import assert from "node:assert/strict";
import { test } from "node:test";
import type { SwimEffect } from "../../src/swim/boundary.ts";
import { LAN } from "../../src/swim/config.ts";
import { decodeMessage } from "../../src/wire/memberlist/message.ts";
import { addressOf, aliveOf, LoneNode, nodeOf, one, only, sent } from "./lone-node.ts";

const REFUSED = { failure: "refused", detail: "ECONNREFUSED" } as const;
const MOVED = addressOf(77);
const CLAIM = { addr: Uint8Array.of(10, 0, 0, 77) };

test("a name at a new address is believed once the old one refuses and the new one answers", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(4);
  const asked = node.hear(1, aliveOf(2, 1, CLAIM));
  assert.equal(one(asked, "member-conflict").member.name, "n2");
  // Both places are asked at once.
  const ping = pingTo(asked, MOVED.ip);
  const { ping: old, to } = one(asked, "stream-ping");
  assert.equal(to.ip, addressOf(2).ip);
  assert.deepEqual(ack(node, ping), []);
  node.feed({ type: "stream-ping-result", ping: old, result: REFUSED });
  const { ping: again } = one(node.advance(150), "stream-ping");
  node.feed({ type: "stream-ping-result", ping: again, result: REFUSED });
  assert.equal(node.swim.member("n2")?.address.ip, MOVED.ip);
  assert.equal(node.swim.member("n2")?.state, "alive");
});

test("while the old process answers, the first claimant keeps the name", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(4);
  const asked = node.hear(1, aliveOf(2, 9, CLAIM));
  const ping = pingTo(asked, MOVED.ip);
  const { ping: old, message } = one(asked, "stream-ping");
  node.feed({ type: "stream-ping-result", ping: old, result: { seqNo: message.seqNo } });
  ack(node, ping);
  assert.equal(node.swim.member("n2")?.address.ip, addressOf(2).ip);
});

test("nobody at the new address: the claim is forgotten", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(4);
  const ping = pingTo(node.hear(1, aliveOf(2, 9, CLAIM)), MOVED.ip);
  node.advance(3_000);
  ack(node, ping);
  assert.equal(node.swim.member("n2")?.address.ip, addressOf(2).ip);
});

test("a dead name at a new address needs only an answer from there, whatever its incarnation", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  for (let number = 1; number <= 4; number++) node.hear(number, aliveOf(number, 8));
  node.hear(1, { type: "dead", incarnation: 8, node: "n2", from: "n1" });
  const ping = pingTo(node.hear(1, aliveOf(2, 1, CLAIM)), MOVED.ip);
  assert.equal(node.swim.member("n2")?.state, "dead");
  ack(node, ping);
  assert.deepEqual([node.swim.member("n2")?.state, node.swim.member("n2")?.address.ip], ["alive", MOVED.ip]);
});

test("one that restarted below its old incarnation is told, so that it can outbid it", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  for (let number = 1; number <= 4; number++) node.hear(number, aliveOf(number, 8));
  node.hear(1, { type: "dead", incarnation: 8, node: "n2", from: "n1" });
  const told = sent(node.hear(2, aliveOf(2, 1))).filter(({ to }) => to === addressOf(2).ip);
  assert.ok(
    told.some(({ messages }) =>
      messages.some((each) => each.type === "dead" && each.node === "n2" && each.incarnation === 8),
    ),
  );
  const joined = node.hear(2, aliveOf(2, 9));
  assert.equal(one(joined, "member-joined").returned, true);
});

test("a newcomer at a member's address ends that member once it answers", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(4);
  const heir = nodeOf(2, { name: "n2-again" });
  const request = { stream: 1, from: addressOf(2), join: true, nodes: [heir] };
  const asked = node.feed({ type: "push-pull-request", ...request });
  assert.equal(node.swim.member("n2")?.state, "alive");
  const gone = ack(node, pingTo(asked, addressOf(2).ip), 2);
  assert.deepEqual(one(gone, "member-left").reason, { why: "replaced", by: "n2-again" });
});

test("IPv6 claims are members, and a mapped IPv4 address is IPv4 to send to", () => {
  const node = new LoneNode();
  const v6 = Uint8Array.from([0x20, 0x01, 0x0d, 0xb8, ...new Array<number>(11).fill(0), 5]);
  const mapped = Uint8Array.from([...new Array<number>(10).fill(0), 0xff, 0xff, 10, 0, 0, 6]);
  node.hear(1, aliveOf(5, 1, { addr: v6 }), aliveOf(6, 1, { addr: mapped }));
  assert.equal(node.swim.member("n5")?.address.ip, "2001:db8::5");
  assert.equal(node.swim.member("n6")?.address.ip, "10.0.0.6");
  assert.deepEqual(node.swim.member("n6")?.addr, mapped, "announced as its owner wrote it");
});

function pingTo(effects: readonly SwimEffect[], ip: string): number {
  for (const { to, messages } of sent(effects)) {
    for (const message of messages) if (to === ip && message.type === "ping") return message.seqNo;
  }
  assert.fail(`no ping to ${ip} in ${only(effects, "send").length} packets`);
}

function ack(node: LoneNode, seqNo: number, from = 77): SwimEffect[] {
  const effects = node.hear(from, { type: "ack", seqNo, payload: new Uint8Array(0) });
  return effects.filter(({ type }) => type !== "send");
}

test("a former life whose death was missed is found out by whom answers at its address", () => {
  const node = new LoneNode({ probeIntervalMs: 1e9 });
  node.meet(4);
  // As in gossip, which told of the newcomer and not of the death.
  node.hear(1, aliveOf(9, 1, { addr: aliveOf(2).addr }));
  assert.equal(node.swim.member("n2")?.state, "alive");
  const pings = only(node.advance(LAN.gossipToTheDeadMs), "send").flatMap(({ parts }) =>
    parts.map((part) => decodeMessage(part)).filter((message) => message.type === "ping"),
  );
  // Either might be the former one: both are asked for, and the address answers to one name.
  assert.deepEqual(pings.map(({ node: name }) => name).sort(), ["n2", "n9"]);
  const [ping] = pings.filter(({ node: name }) => name === "n9");
  node.hear(2, { type: "ack", seqNo: ping?.seqNo ?? 0, payload: new Uint8Array(0) });
  assert.equal(node.swim.member("n2")?.state, "dead");
  assert.equal(node.swim.member("n9")?.state, "alive");
});
