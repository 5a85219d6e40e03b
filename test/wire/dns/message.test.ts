import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, encode, type Answer } from "dns-packet";
import fc from "fast-check";
import { DecodeError } from "../../../src/base/error.ts";
import {
  decodeDnsQuery,
  dnsTimes,
  encodeDnsAnswer,
  encodeDnsName,
  isDnsName,
  isDnsResponse,
} from "../../../src/wire/dns/message.ts";

test("what dns-packet writes as a query is read the same", () => {
  const label = fc.stringMatching(/^[A-Za-z0-9_-]{1,20}$/);
  fc.assert(
    fc.property(fc.array(label, { maxLength: 8 }), fc.integer({ min: 0, max: 0xffff }), (labels, id) => {
      const name = labels.join(".");
      const bytes = encode({ type: "query", id, flags: 0x0100, questions: [{ type: "AAAA", name }] });
      const query = decodeDnsQuery(new Uint8Array(bytes));
      assert.deepEqual(
        [query.id, query.name, query.type, query.class, query.recursionDesired, query.edns],
        [id, name.toLowerCase(), 28, 1, true, undefined],
      );
      assert.deepEqual([...query.question], [...bytes.subarray(12)]);
    }),
  );
});

test("EDNS is found behind other records, with size, version and bits", () => {
  const opt: Answer = {
    type: "OPT",
    name: ".",
    udpPayloadSize: 1232,
    extendedRcode: 0,
    ednsVersion: 3,
    flags: 0x8000,
    flag_do: true,
    options: [{ code: 12, length: 4, data: Buffer.alloc(4) }],
  };
  const bytes = encode({
    type: "query",
    questions: [
      { type: "A", name: "a.b" },
      { type: "A", name: "c.a.b" },
    ],
    answers: [{ type: "A", name: "a.b", data: "1.2.3.4" }],
    additionals: [{ type: "TXT", name: "x.a.b", data: "hello" }, opt],
  });
  assert.deepEqual(decodeDnsQuery(new Uint8Array(bytes)).edns, {
    payloadBytes: 1232,
    version: 3,
    dnssecOk: true,
    options: true,
  });
});

test("names of 255 bytes are read and written, longer ones and compressed questions are not", () => {
  const name = [63, 63, 63, 61].map((length) => "x".repeat(length)).join(".");
  assert.equal(encodeDnsName(name).length, 255);
  const bytes = new Uint8Array(encode({ type: "query", questions: [{ type: "A", name }] }));
  assert.equal(decodeDnsQuery(bytes).name, name);
  assert.throws(() => encodeDnsName(`${name}x`), DecodeError);
  const long = new Uint8Array(encode({ type: "query", questions: [{ type: "A", name: `${name}x` }] }));
  assert.throws(() => decodeDnsQuery(long), DecodeError);
  const pointer = Uint8Array.from([0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1]);
  assert.throws(() => decodeDnsQuery(pointer), DecodeError);
});

test("a dot within a label is not the dot between two", () => {
  const bytes = Uint8Array.from([0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 0x61, 0x2e, 0x62, 0, 0, 1, 0, 1]);
  assert.equal(decodeDnsQuery(bytes).name, "a\\.b");
  assert.equal(isDnsName("a..b"), false);
  assert.equal(isDnsName(""), false);
});

test("every cut of a query is a DecodeError or a value, never anything else", () => {
  const whole = new Uint8Array(
    encode({
      type: "query",
      questions: [{ type: "A", name: "web.blue" }],
      additionals: [{ type: "TXT", name: "web.blue", data: "x" }],
    }),
  );
  for (let length = 0; length < whole.length; length++)
    assert.throws(() => decodeDnsQuery(whole.subarray(0, length)), DecodeError, String(length));
  assert.equal(isDnsResponse(whole), false);
});

test("a record too many is left out whole, of the additional section without a word", () => {
  const query = decodeDnsQuery(
    new Uint8Array(encode({ type: "query", id: 9, questions: [{ type: "A", name: "web" }] })),
  );
  const record = { type: 1, ttl: 5, data: Uint8Array.from([10, 0, 1, 5]) };
  const room = 12 + query.question.length + 2 * 16;
  const cut = decode(
    Buffer.from(encodeDnsAnswer(query, { rcode: 0, answers: [record, record, record] }, room + 15, true)),
  );
  assert.deepEqual([cut.answers?.length, cut.flag_tc], [2, true]);
  const additionals = [{ ...record, name: "a.b" }];
  const fits = decode(
    Buffer.from(encodeDnsAnswer(query, { rcode: 0, answers: [record, record], additionals }, room + 3, true)),
  );
  assert.deepEqual([fits.answers?.length, fits.additionals?.length, fits.flag_tc], [2, 0, false]);
});

test("the time an answer holds is its shortest TTL, of a negative one its SOA's minimum", () => {
  const questions = [{ type: "A", name: "x.example" }] as const;
  const soa: Answer = {
    type: "SOA",
    name: "example",
    ttl: 900,
    data: {
      mname: "ns.example",
      rname: "root.example",
      serial: 1,
      refresh: 2,
      retry: 3,
      expire: 4,
      minimum: 60,
    },
  };
  const times = (answers: Answer[], authorities: Answer[]) =>
    dnsTimes(new Uint8Array(encode({ type: "response", questions: [...questions], answers, authorities })));
  const a = (ttl: number): Answer => ({ type: "A", name: "x.example", ttl, data: "192.0.2.1" });
  assert.equal(times([a(300), a(20)], [soa]).seconds, 20);
  assert.equal(times([a(300), a(20)], []).ttlOffsets.length, 2);
  assert.equal(times([], [soa]).seconds, 60);
  assert.equal(times([], []).seconds, undefined);
});
