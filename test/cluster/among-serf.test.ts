import assert from "node:assert/strict";
import { test } from "node:test";
import { AmongSerf } from "../../src/cluster/among-serf.ts";
import { instant } from "../../src/base/time.ts";
import { decodeSerfMessage, encodeSerfMessage, type SerfQuery } from "../../src/wire/memberlist/serf.ts";
import { encodeSerfUserState } from "../../src/wire/memberlist/serf-user-state.ts";

const NOW = instant(0);

test("the leave intent comes after every time heard, and memberlist's goodbye a while later", () => {
  const serf = new AmongSerf("us", 4, () => []);
  serf.message(encodeSerfMessage({ type: "join-intent", ltime: 7, node: "them" }));
  serf.userState(userState(20));
  assert.equal(serf.leave(5_000, NOW), instant(1_000));
  const [intent] = sent(serf);
  assert.deepEqual(intent, { type: "leave-intent", ltime: 20, node: "us", prune: false });
});

test("a leave intent about us is taken back while we stay, and not once we leave", () => {
  const serf = new AmongSerf("us", 4, () => []);
  serf.message(encodeSerfMessage({ type: "leave-intent", ltime: 11, node: "us", prune: false }));
  assert.deepEqual(sent(serf), [{ type: "join-intent", ltime: 12, node: "us" }]);
  serf.leave(0, NOW);
  serf.message(encodeSerfMessage({ type: "leave-intent", ltime: 13, node: "us", prune: false }));
  assert.equal(sent(serf)[0]?.type, "leave-intent");
});

test("what serf agents gossip is passed on once, answers and queries that are not for gossip are not", () => {
  const serf = new AmongSerf("us", 4, () => []);
  const event = encodeSerfMessage({ type: "user-event", ltime: 3, name: "deploy", payload, coalesce: true });
  serf.message(event);
  assert.deepEqual(drain(serf), [event, event, event, event]);
  serf.message(event.slice());
  serf.message(encodeSerfMessage({ type: "query-response", ltime: 3, id: 1, from: "x", flags: 0, payload }));
  serf.message(encodeSerfMessage(query(2)));
  assert.equal(serf.length, 0);
  serf.message(encodeSerfMessage(query(0)));
  assert.equal(serf.length, 1);
});

test("a query to everybody is acknowledged once, and one for the keys is answered", () => {
  const key = Uint8Array.from({ length: 32 }, (_, index) => index);
  const serf = new AmongSerf("us", 4, () => [key]);
  const asked = (changes: Partial<SerfQuery>): string[] =>
    serf.message(encodeSerfMessage({ ...query(0), ...changes })).map(({ to, payload }) => {
      const message = decodeSerfMessage(payload);
      assert.ok(message.type === "query-response" && message.id === 1 && message.from === "us");
      assert.deepEqual(to, { ip: "10.0.0.1", port: 7946 });
      return `${message.flags} ${message.payload.length === 0 ? "" : Buffer.from(message.payload).toString("latin1")}`;
    });
  assert.deepEqual(asked({ flags: 1 }), ["1 "]);
  assert.deepEqual(asked({ flags: 1 }), [], "heard again");
  assert.deepEqual(asked({ flags: 1, filters: [Uint8Array.of(0, 0x90)] }), []);
  const [ack, keys, ...others] = asked({ flags: 1, name: "_serf_list-keys" });
  assert.deepEqual([ack, others], ["1 ", []]);
  assert.ok(keys?.includes(Buffer.from(key).toString("base64")));
  assert.match(asked({ name: "_serf_install-key" }).join(), /netctl keys/);
});

test("a storm of events is bounded", () => {
  const serf = new AmongSerf("us", 4, () => []);
  for (let ltime = 1; ltime <= 10_000; ltime++)
    serf.message(encodeSerfMessage({ type: "user-event", ltime, name: "deploy", payload, coalesce: true }));
  assert.equal(serf.length, 256);
});

test("an intent is gossiped as often as memberlist would, then no more", () => {
  const serf = new AmongSerf("us", 4, () => []);
  serf.leave(0, NOW);
  let times = 0;
  while (serf.take(1_400, 3, 6).length > 0) times++;
  assert.equal(times, 4);
  assert.equal(serf.length, 0);
});

function sent(serf: AmongSerf) {
  return serf.take(1_400, 3, 6).map((payload) => decodeSerfMessage(payload));
}

function userState(ltime: number): Uint8Array {
  const rest = { statusLtimes: new Map(), leftMembers: [], eventLtime: 1, events: [], queryLtime: 1 };
  return encodeSerfUserState({ ltime, ...rest });
}

const payload = Uint8Array.from([1, 2, 3]);

function query(flags: number): SerfQuery {
  const from = { addr: Uint8Array.from([10, 0, 0, 1]), port: 7946, sourceNode: "them" };
  const rest = { filters: [], relayFactor: 0, timeoutNanoseconds: 1e9, name: "load", payload };
  return { type: "query", ltime: 5, id: 1, flags, ...from, ...rest };
}

function drain(serf: AmongSerf): Uint8Array[] {
  const all: Uint8Array[] = [];
  while (serf.length > 0) all.push(...serf.take(1_400, 3, 6));
  return all;
}
