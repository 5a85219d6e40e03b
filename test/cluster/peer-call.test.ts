import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import { nodeId, nodeName } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { instant } from "../../src/base/time.ts";
import { decodeMetadata, encodeMetadata, roleOf } from "../../src/cluster/metadata.ts";
import { PeerCalls, type PeerCallEffect } from "../../src/cluster/peer-call.ts";

const A = nodeName("a");
const B = nodeName("b");

test("a question reaches the other side and its answer the asker", () => {
  const a = new PeerCalls(A);
  const b = new PeerCalls(B);
  const asked = b.receive(payloadOf(a.ask(B, 7, { method: "keys" }, 1000, instant(0))));
  assert.equal(asked[0]?.type, "question");
  const question = asked[0]?.type === "question" ? asked[0].question : undefined;
  assert.deepEqual(question?.body, { method: "keys" });
  assert.equal(question?.from, A);
  if (question === undefined) return;
  const answered = a.receive(payloadOf(b.answer(question, { ok: true })));
  assert.deepEqual(answered, [{ type: "answered", request: 7, from: B, body: { ok: true } }]);
  assert.equal(a.nextWakeup(), undefined);
});

test("silence and a failed stream are answers, too", () => {
  const calls = new PeerCalls(A);
  calls.ask(B, 1, {}, 1000, instant(0));
  assert.equal(calls.nextWakeup(), 1000);
  assert.deepEqual(calls.wake(instant(1000)), [
    { type: "unanswered", request: 1, from: B, reason: "no answer in time" },
  ]);
  calls.ask(B, 2, {}, 1000, instant(0));
  assert.equal(calls.streamFailed(B)[0]?.type, "unanswered");
});

test("an answer of somebody who was not asked is dropped", () => {
  const a = new PeerCalls(A);
  const c = new PeerCalls(nodeName("c"));
  a.ask(B, 1, {}, 1000, instant(0));
  assert.deepEqual(a.receive(payloadOf(c.answer({ from: A, id: 1, body: {} }, "forged"))), []);
});

test("arbitrary bytes are a call or a DecodeError", () => {
  const calls = new PeerCalls(A);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      try {
        calls.receive(Uint8Array.from([0x08, 96, 0x12, ...bytes]));
      } catch (error) {
        assert.ok(error instanceof DecodeError);
      }
    }),
  );
});

test("metadata tells netagents from Docker's and serf's members", () => {
  const facts = {
    id: nodeId("n1"),
    name: "node1",
    vteps: [parseIp("192.0.2.1"), parseIp("192.0.2.2")],
    capabilities: ["state"],
    version: "1.2.3",
  };
  assert.deepEqual(decodeMetadata(encodeMetadata(facts)), facts);
  assert.equal(roleOf(encodeMetadata(facts)), "netagent");
  assert.equal(decodeMetadata(new Uint8Array(0)), undefined);
  assert.equal(roleOf(new Uint8Array(0)), "docker");
  fc.assert(fc.property(fc.uint8Array({ maxLength: 512 }), (bytes) => void decodeMetadata(bytes)));
});

test("metadata that does not fit 512 bytes is refused", () => {
  const facts = {
    id: nodeId("n1"),
    name: "x".repeat(600),
    vteps: [parseIp("192.0.2.1")],
    capabilities: [],
    version: "",
  };
  assert.throws(() => encodeMetadata(facts), /512/);
});

function payloadOf(effects: readonly PeerCallEffect[]): Uint8Array {
  const [send] = effects;
  assert.equal(send?.type, "send");
  return send?.type === "send" ? send.payload : new Uint8Array();
}
