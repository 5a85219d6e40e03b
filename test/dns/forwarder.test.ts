import assert from "node:assert/strict";
import { test } from "node:test";
import { seededRandom } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import { Forwarder, type ForwarderEffect } from "../../src/dns/forwarder.ts";

const QUERY = Uint8Array.from([0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);

test("an answer with the upstream id comes back with the client's id", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const [asked] = forwarder.handle({ type: "query", id: 1, transport: "udp", bytes: QUERY }, instant(0));
  assert.equal(asked?.type, "ask-upstream");
  const answer = answerTo(asked, 0);
  const effects = forwarder.handle(
    { type: "answer", exchange: exchangeOf(asked), bytes: answer },
    instant(10),
  );
  const reply = effects.find((effect) => effect.type === "reply");
  assert.deepEqual(reply?.type === "reply" ? [...reply.bytes.slice(0, 2)] : [], [0x12, 0x34]);
  assert.equal(forwarder.nextWakeup(), undefined);
});

test("a forged id is dropped", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const [asked] = forwarder.handle({ type: "query", id: 1, transport: "udp", bytes: QUERY }, instant(0));
  const forged = answerTo(asked, 0);
  forged[1] = (forged[1] ?? 0) ^ 1;
  assert.deepEqual(
    forwarder.handle({ type: "answer", exchange: exchangeOf(asked), bytes: forged }, instant(10)),
    [],
  );
});

test("a silent or failing server is followed by the next, and asked last from then on", () => {
  const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
  const [first] = forwarder.handle({ type: "query", id: 1, transport: "udp", bytes: QUERY }, instant(0));
  assert.equal(first?.type === "ask-upstream" && first.server, "192.0.2.1");
  const second = forwarder
    .handle({ type: "wake" }, instant(1_500))
    .find((effect) => effect.type === "ask-upstream");
  assert.equal(second?.type === "ask-upstream" && second.server, "192.0.2.2");
  forwarder.handle(
    { type: "answer", exchange: exchangeOf(second), bytes: answerTo(second, 0) },
    instant(1_600),
  );
  const [next] = forwarder.handle({ type: "query", id: 2, transport: "udp", bytes: QUERY }, instant(2_000));
  assert.equal(next?.type === "ask-upstream" && next.server, "192.0.2.2");
});

test("when all fail the client hears SERVFAIL at once; when all are silent, in time", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const [asked] = forwarder.handle({ type: "query", id: 1, transport: "udp", bytes: QUERY }, instant(0));
  const failed = forwarder.handle({ type: "failed", exchange: exchangeOf(asked) }, instant(5));
  assert.deepEqual(failed.at(-1), { type: "fail", id: 1, rcode: "servFail" });
  forwarder.handle({ type: "query", id: 2, transport: "udp", bytes: QUERY }, instant(10));
  assert.deepEqual(forwarder.handle({ type: "wake" }, instant(10_000)).at(-1), {
    type: "fail",
    id: 2,
    rcode: "servFail",
  });
});

test("more than 1024 outstanding questions are refused", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  for (let id = 0; id < 1024; id++)
    forwarder.handle({ type: "query", id, transport: "udp", bytes: QUERY }, instant(0));
  assert.deepEqual(
    forwarder.handle({ type: "query", id: 5000, transport: "udp", bytes: QUERY }, instant(0)),
    [{ type: "fail", id: 5000, rcode: "refused" }],
  );
});

test("without a server the answer is SERVFAIL", () => {
  assert.deepEqual(
    newForwarder([]).handle({ type: "query", id: 1, transport: "udp", bytes: QUERY }, instant(0)),
    [{ type: "fail", id: 1, rcode: "servFail" }],
  );
});

function newForwarder(servers: readonly string[]): Forwarder {
  const forwarder = new Forwarder(seededRandom(3));
  forwarder.handle({ type: "set-servers", servers }, instant(0));
  return forwarder;
}

function exchangeOf(effect: ForwarderEffect | undefined): number {
  assert.equal(effect?.type, "ask-upstream");
  return effect?.type === "ask-upstream" ? effect.exchange : 0;
}

function answerTo(effect: ForwarderEffect | undefined, rcode: number): Uint8Array {
  const bytes = effect?.type === "ask-upstream" ? effect.bytes.slice() : new Uint8Array();
  bytes[2] = 0x81;
  bytes[3] = 0x80 | rcode;
  return bytes;
}
