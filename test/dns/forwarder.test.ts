import assert from "node:assert/strict";
import { test } from "node:test";
import { encode, type Answer } from "dns-packet";
import { seededRandom } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import { Forwarder, type ForwarderEffect } from "../../src/dns/forwarder.ts";
import { nameServers } from "../../src/dns/resolv-conf.ts";
import { decodeDnsQuery } from "../../src/wire/dns/message.ts";
import { queryBytes, type AskOptions } from "./ask.ts";

test("an answer with the upstream id comes back with the client's id", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const asked = forwarder.handle(question(1), instant(0))[0];
  const reply = answer(forwarder, asked, 10, reply1(asked)).find((effect) => effect.type === "reply");
  assert.deepEqual(reply?.type === "reply" ? [...reply.bytes.slice(0, 2)] : [], [0x12, 0x67]);
  assert.equal(forwarder.nextWakeup(), undefined);
});

test("a forged id, a question, and an answer to another question are dropped", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const asked = forwarder.handle(question(1), instant(0))[0];
  const good = reply1(asked);
  const wrongId = good.slice();
  wrongId[1] = (wrongId[1] ?? 0) ^ 1;
  const noAnswer = good.slice();
  noAnswer[2] = 0x01;
  const otherName = good.slice();
  otherName[13] = "X".charCodeAt(0);
  const otherType = good.slice();
  otherType[12 + 13 + 1] = 28;
  for (const bytes of [wrongId, noAnswer, otherName, otherType, good.subarray(0, 14)])
    assert.deepEqual(answer(forwarder, asked, 10, bytes), []);
  const otherCase = good.slice();
  otherCase[13] = "A".charCodeAt(0);
  assert.equal(answer(forwarder, asked, 10, otherCase).at(-1)?.type, "reply");
});

test("after a short silence the next server is asked as well, the first answer wins and the loser is asked last", () => {
  const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
  const first = forwarder.handle(question(1), instant(0))[0];
  assert.equal(serverOf(first), "192.0.2.1");
  assert.equal(forwarder.nextWakeup(), 300);
  const second = forwarder.handle({ type: "wake" }, instant(300))[0];
  assert.equal(serverOf(second), "192.0.2.2");
  const effects = answer(forwarder, second, 320, reply1(second));
  assert.deepEqual(
    effects.map((effect) => effect.type),
    ["end-exchange", "end-exchange", "reply"],
  );
  assert.equal(
    serverOf(forwarder.handle(question(2, { name: "other.example" }), instant(2_000))[0]),
    "192.0.2.2",
  );
  // Half a minute later it gets another chance.
  assert.equal(
    serverOf(forwarder.handle(question(3, { name: "third.example" }), instant(31_000))[0]),
    "192.0.2.1",
  );
  assert.deepEqual(forwarder.counts.get("192.0.2.1"), { asked: 2, answered: 0, refused: 0, failed: 1 });
});

test("a slow server that answers first after all is not held for broken", () => {
  const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
  const first = forwarder.handle(question(1), instant(0))[0];
  forwarder.handle({ type: "wake" }, instant(300));
  assert.equal(answer(forwarder, first, 400, reply1(first)).at(-1)?.type, "reply");
  assert.equal(serverOf(forwarder.handle(question(2, { name: "b.example" }), instant(500))[0]), "192.0.2.1");
});

for (const rcode of [2, 5]) {
  test(`response code ${rcode} of one server leads to the next; of all it is the answer`, () => {
    const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
    const first = forwarder.handle(question(1), instant(0))[0];
    const second = answer(forwarder, first, 5, reply1(first, rcode)).find(
      (one) => one.type === "ask-upstream",
    );
    assert.equal(serverOf(second), "192.0.2.2");
    const last = answer(forwarder, second, 9, reply1(second, rcode)).at(-1);
    assert.equal(last?.type === "reply" && (last.bytes[3] ?? 0) & 15, rcode);
    // It answers: no reason to avoid it.
    assert.equal(serverOf(forwarder.handle(question(2, { name: "b.example" }), instant(10))[0]), "192.0.2.1");
  });
}

test("a failure in hand is told as soon as the silent others have had their time", () => {
  const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
  forwarder.handle(question(1), instant(0));
  const second = forwarder.handle({ type: "wake" }, instant(300))[0];
  const told = answer(forwarder, second, 310, reply1(second, 2)).at(-1);
  assert.equal(told?.type === "reply" && (told.bytes[3] ?? 0) & 15, 2);

  const fast = forwarder.handle(question(2), instant(1_000))[0];
  const slow = answer(forwarder, fast, 1_010, reply1(fast, 2)).find((one) => one.type === "ask-upstream");
  assert.equal(forwarder.nextWakeup(), 1_310);
  assert.equal(answer(forwarder, slow, 1_200, reply1(slow)).at(-1)?.type, "reply");
  const [again] = forwarder.handle(question(3), instant(2_000));
  answer(forwarder, again, 2_010, reply1(again, 5));
  const late = forwarder.handle({ type: "wake" }, instant(2_310)).at(-1);
  assert.equal(late?.type === "reply" && (late.bytes[3] ?? 0) & 15, 5);
});

test("NXDOMAIN and an empty answer are final", () => {
  for (const rcode of [3, 0]) {
    const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
    const first = forwarder.handle(question(1), instant(0))[0];
    assert.equal(answer(forwarder, first, 5, reply1(first, rcode)).at(-1)?.type, "reply");
  }
});

test("when all fail the client hears SERVFAIL at once; when all are silent, in time", () => {
  const forwarder = newForwarder(["192.0.2.1", "192.0.2.2"]);
  let [asked] = forwarder.handle(question(1), instant(0));
  for (const server of ["192.0.2.1", "192.0.2.2"]) {
    assert.equal(serverOf(asked), server);
    const effects = forwarder.handle({ type: "failed", exchange: exchangeOf(asked) }, instant(5));
    asked = effects.find((effect) => effect.type === "ask-upstream");
    if (asked === undefined) assert.deepEqual(effects.at(-1), { type: "fail", id: 1, rcode: "servFail" });
  }
  forwarder.handle(question(2), instant(10));
  forwarder.handle({ type: "wake" }, instant(310));
  assert.equal(forwarder.nextWakeup(), 4_510);
  assert.deepEqual(forwarder.handle({ type: "wake" }, instant(4_510)).at(-1), {
    type: "fail",
    id: 2,
    rcode: "servFail",
  });
  assert.equal(forwarder.nextWakeup(), undefined);
});

test("more than 1024 outstanding questions of a sandbox are refused, those of another are not", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  let refused = 0;
  for (let id = 0; id < 2000; id++) {
    const [effect] = forwarder.handle(question(id, { name: `n${id}.example` }), instant(0));
    if (effect?.type === "fail") {
      assert.equal(effect.rcode, "refused");
      refused++;
    }
  }
  assert.equal(refused, 2000 - 1024);
  assert.equal(forwarder.handle(question(5000, { client: "other" }), instant(0))[0]?.type, "ask-upstream");
  // Nobody waits any more: all sockets go, and there is room again.
  const ended = forwarder.handle({ type: "client-gone", client: "box" }, instant(1));
  assert.equal(ended.filter((effect) => effect.type === "end-exchange").length, 1024);
  assert.equal(forwarder.handle(question(5001), instant(2))[0]?.type, "ask-upstream");
});

test("without a server the answer is SERVFAIL", () => {
  assert.deepEqual(newForwarder([]).handle(question(1), instant(0)), [
    { type: "fail", id: 1, rcode: "servFail" },
  ]);
});

test("a cut or overlong answer is passed on as it is", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const asked = forwarder.handle(question(1), instant(0))[0];
  const bytes = new Uint8Array(9000);
  bytes.set(reply1(asked));
  bytes[2] = 0x83; // TC
  const reply = answer(forwarder, asked, 5, bytes).at(-1);
  assert.equal(reply?.type === "reply" && reply.bytes.length, 9000);
  assert.equal(forwarder.handle(question(2), instant(6))[0]?.type, "ask-upstream", "and not kept");
});

test("an answer is kept for its TTL, counted down, and given in the case it was asked for", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const asked = forwarder.handle(question(1), instant(0))[0];
  answer(
    forwarder,
    asked,
    0,
    reply1(asked, 0, [{ type: "A", name: "a.example", ttl: 20, data: "192.0.2.9" }]),
  );
  const [again] = forwarder.handle(question(2, { name: "A.exAMPle" }), instant(5_000));
  assert.equal(again?.type, "reply");
  const bytes = again?.type === "reply" ? Buffer.from(again.bytes) : Buffer.alloc(0);
  assert.equal(bytes.subarray(13, 14).toString(), "A");
  assert.equal(bytes.readUInt32BE(bytes.length - 10), 15, "seconds left");
  for (const options of [{ edns: 1232 }, { flags: 0x0110 }, { type: "AAAA" }, { name: "b.example" }])
    assert.equal(forwarder.handle(question(3, options), instant(5_000))[0]?.type, "ask-upstream");
  assert.equal(forwarder.handle(question(4), instant(20_000))[0]?.type, "ask-upstream");
  assert.equal(forwarder.cached, 1);
});

test("failures and answers that say nothing about their time are not kept", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  for (const [id, rcode] of [2, 3, 0].entries()) {
    const [asked] = forwarder.handle(question(id), instant(0));
    assert.equal(asked?.type, "ask-upstream");
    answer(forwarder, asked, 0, reply1(asked, rcode));
  }
});

test("other servers are other answers", () => {
  const forwarder = newForwarder(["192.0.2.1"]);
  const asked = forwarder.handle(question(1), instant(0))[0];
  answer(
    forwarder,
    asked,
    0,
    reply1(asked, 0, [{ type: "A", name: "a.example", ttl: 20, data: "192.0.2.9" }]),
  );
  forwarder.handle({ type: "set-servers", servers: ["192.0.2.2"] }, instant(1));
  assert.equal(serverOf(forwarder.handle(question(2), instant(2))[0]), "192.0.2.2");
});

test("resolv.conf: the first three addresses, and nothing else", () => {
  const text = [
    "# nameserver 192.0.2.9",
    "search corp.example",
    "nameserver 127.0.0.53",
    "nameserver\t2001:db8::1 # trailing",
    "nameserver not-an-address",
    " nameserver 192.0.2.8",
    "nameserver fe80::1%eth0",
    "nameserver 192.0.2.7",
  ].join("\n");
  assert.deepEqual(nameServers(text), ["127.0.0.53", "2001:db8::1", "fe80::1%eth0"]);
  assert.deepEqual(nameServers(""), []);
});

function newForwarder(servers: readonly string[]): Forwarder {
  const forwarder = new Forwarder(seededRandom(3));
  forwarder.handle({ type: "set-servers", servers }, instant(0));
  return forwarder;
}

function question(
  id: number,
  options: AskOptions & { name?: string; type?: string; client?: string } = {},
): Parameters<Forwarder["handle"]>[0] {
  const bytes = queryBytes(options.name ?? "a.example", options.type ?? "A", options);
  const query = decodeDnsQuery(bytes);
  return { type: "query", id, client: options.client ?? "box", transport: "udp", query, bytes };
}

function exchangeOf(effect: ForwarderEffect | undefined): number {
  assert.equal(effect?.type, "ask-upstream");
  return effect?.type === "ask-upstream" ? effect.exchange : 0;
}

function serverOf(effect: ForwarderEffect | undefined): string {
  assert.equal(effect?.type, "ask-upstream");
  return effect?.type === "ask-upstream" ? effect.server : "";
}

function answer(
  forwarder: Forwarder,
  asked: ForwarderEffect | undefined,
  at: number,
  bytes: Uint8Array,
): ForwarderEffect[] {
  return forwarder.handle({ type: "answer", exchange: exchangeOf(asked), bytes }, instant(at));
}

/** What a server says to a question it was asked. */
function reply1(asked: ForwarderEffect | undefined, rcode = 0, answers: Answer[] = []): Uint8Array {
  const bytes = asked?.type === "ask-upstream" ? asked.bytes : new Uint8Array();
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const { name } = decodeDnsQuery(bytes);
  const packet = encode({
    type: "response",
    id: view.getUint16(0),
    flags: 0x0180 | rcode,
    questions: [{ type: "A", name }],
    answers,
  });
  return new Uint8Array(packet);
}
