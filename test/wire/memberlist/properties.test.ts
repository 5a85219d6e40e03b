import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ByteWriter, concatBytes, fromHex } from "../../../src/base/bytes.ts";
import { DecodeError } from "../../../src/base/error.ts";
import { encodeCompoundInto } from "../../../src/wire/memberlist/compound.ts";
import { decodeCompressed, encodeCompressed } from "../../../src/wire/memberlist/compress.ts";
import {
  decodeMessage,
  encodeMessage,
  type MemberlistMessage,
} from "../../../src/wire/memberlist/message.ts";
import { decodePacket, encodePacket, MAX_NESTING } from "../../../src/wire/memberlist/packet.ts";
import { packetOverhead, UNSEALED, type Sealing } from "../../../src/wire/memberlist/seal.ts";
import {
  encodeStreamMessage,
  STREAM_LIMITS,
  type StreamDirection,
  type StreamLimits,
  type StreamMessage,
} from "../../../src/wire/memberlist/stream-message.ts";
import { encodeStream, StreamDecoder } from "../../../src/wire/memberlist/stream.ts";
import { message, nonce, reply, request, sealing } from "./arbitrary.ts";

test("every message survives, with empty fields written either way", () => {
  fc.assert(
    fc.property(message, fc.constantFrom("nil", "raw"), (value, empty) => {
      assert.deepEqual(decodeMessage(encodeMessage(value, empty)), value);
    }),
  );
});

test("every message cut short is refused, save the one whose payload is all the rest", () => {
  fc.assert(
    fc.property(message, (value) => {
      if (value.type === "user") return;
      const bytes = encodeMessage(value);
      for (let length = 0; length < bytes.length; length++)
        assert.throws(() => decodeMessage(bytes.subarray(0, length)), DecodeError);
    }),
    { numRuns: 30 },
  );
});

test("a packet gives its messages back through every combination of envelopes", () => {
  const packet = fc.array(message, { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(packet, sealing, nonce, fc.boolean(), fc.boolean(), (messages, sealed, iv, crc, compress) => {
      const parts = messages.map((value) => encodeMessage(value));
      const bytes = encodePacket(parts, { sealing: sealed, nonce: iv, crc, compress });
      assert.deepEqual(decodePacket(bytes, sealed), { messages, problems: [] });
      const plain = encodePacket(parts, { sealing: UNSEALED, crc, compress });
      assert.ok(
        bytes.length <= plain.length + packetOverhead(sealed),
        "budgets leave room for the envelopes",
      );
    }),
  );
});

test("a packet of another cluster is refused: other key, other label, or one of us without", () => {
  const key = (fill: number): Uint8Array => new Uint8Array(16).fill(fill);
  const clusters: Sealing[] = ["", "blue", "blua", "bluer"].flatMap((label) =>
    [[], [key(1)], [key(2)]].map((keys) => ({ ...UNSEALED, label, keys })),
  );
  const part = encodeMessage({ type: "nack", seqNo: 1 });
  const options = { nonce: new Uint8Array(12), crc: false, compress: false };
  for (const from of clusters) {
    const bytes = encodePacket([part], { ...options, sealing: from });
    for (const to of clusters) {
      if (from === to) assert.equal(decodePacket(bytes, to).messages.length, 1);
      else assert.throws(() => decodePacket(bytes, to), DecodeError);
    }
  }
});

test("a packet is opened by any installed key, and sealed by the first", () => {
  const keys = [16, 24, 32].map((length) => new Uint8Array(length).fill(length));
  const part = encodeMessage({ type: "nack", seqNo: 1 });
  for (const key of keys) {
    const sealing = { ...UNSEALED, keys: [key, ...keys] };
    const bytes = encodePacket([part], { sealing, nonce: new Uint8Array(12), crc: false, compress: false });
    assert.deepEqual(bytes.length, part.length + 29);
    assert.equal(decodePacket(bytes, { ...UNSEALED, keys }).messages.length, 1);
    assert.equal(decodePacket(bytes, { ...UNSEALED, keys: [key] }).messages.length, 1);
  }
});

test("while encryption is introduced, plain and sealed packets are both taken", () => {
  const introducing: Sealing = {
    ...UNSEALED,
    keys: [new Uint8Array(16)],
    verifyIncoming: false,
    verifyOutgoing: false,
  };
  const part = encodeMessage({ type: "nack", seqNo: 1 });
  const plain = encodePacket([part], { sealing: introducing, crc: true, compress: true });
  assert.equal(packetOverhead(introducing), 0);
  assert.equal(decodePacket(plain, introducing).messages.length, 1);
  const sealed = encodePacket([part], {
    sealing: { ...introducing, verifyOutgoing: true },
    nonce: new Uint8Array(12),
    crc: true,
    compress: true,
  });
  assert.equal(decodePacket(sealed, introducing).messages.length, 1);
});

test("a bad part of a compound is a problem and the others survive", () => {
  fc.assert(
    fc.property(fc.array(message, { minLength: 1, maxLength: 6 }), fc.nat(), (messages, place) => {
      const parts = messages.map((value) => encodeMessage(value));
      parts.splice(place % (parts.length + 1), 0, fromHex("0082a4"));
      const decoded = decodePacket(
        encodePacket(parts, { sealing: UNSEALED, crc: false, compress: false }),
        UNSEALED,
      );
      assert.deepEqual(decoded.messages, messages);
      assert.equal(decoded.problems.length, 1);
    }),
  );
});

test("envelopes may nest as deep as real peers do, and not without bound", () => {
  let bytes = encodeMessage({ type: "nack", seqNo: 1 });
  for (let depth = 1; depth <= MAX_NESTING; depth++) {
    bytes = depth % 2 === 0 ? encodeCompressed(bytes) : compoundOf([bytes]);
    assert.equal(decodePacket(bytes, UNSEALED).messages.length, 1);
  }
  const deeper = decodePacket(compoundOf([bytes]), UNSEALED);
  assert.equal(deeper.messages.length, 0);
  assert.equal(deeper.problems.length, 1);
  let compressed = encodeMessage({ type: "nack", seqNo: 1 });
  for (let depth = 0; depth <= MAX_NESTING; depth++) compressed = encodeCompressed(compressed);
  assert.throws(() => decodePacket(compressed, UNSEALED), DecodeError);
});

test("all decompression in one packet together stays below its limit", () => {
  const bomb = encodeCompressed(concatBytes([fromHex("08"), new Uint8Array(30_000)]));
  const decoded = decodePacket(compoundOf(new Array<Uint8Array>(200).fill(bomb)), UNSEALED);
  assert.equal(decoded.messages.length, 2);
  assert.equal(decoded.problems.length, 198);
});

test("arbitrary and damaged packets give messages or a DecodeError", () => {
  const damaged = fc
    .tuple(fc.array(message, { minLength: 1, maxLength: 4 }), fc.boolean(), fc.boolean(), fc.array(fc.nat()))
    .map(([messages, crc, compress, changes]) => {
      const parts = messages.map((value) => encodeMessage(value));
      const bytes = encodePacket(parts, { sealing: UNSEALED, crc, compress });
      for (const change of changes) bytes[(change >>> 8) % bytes.length] = change & 0xff;
      return bytes;
    });
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array(), damaged), sealing, (bytes, sealed) => {
      for (const used of [UNSEALED, sealed]) onlyDecodeErrors(() => decodePacket(bytes, used));
    }),
    { numRuns: 500 },
  );
});

test("a stream gives its message back through every combination of envelopes, however it is cut", () => {
  const cuts = fc.array(fc.nat({ max: 400 }), { maxLength: 10 });
  const exchange = fc.oneof(
    request.map((value): [StreamDirection, StreamMessage] => ["request", value]),
    reply.map((value): [StreamDirection, StreamMessage] => ["reply", value]),
  );
  fc.assert(
    fc.property(
      exchange,
      sealing,
      nonce,
      fc.boolean(),
      cuts,
      ([direction, value], sealed, iv, compress, at) => {
        const bytes = encodeStream(value, { sealing: sealed, nonce: iv, compress, direction });
        const decoder = new StreamDecoder(sealed, STREAM_LIMITS, direction);
        assert.deepEqual(feed(decoder, cut(bytes, at)), value);
        decoder.end();
        assert.equal(decoder.push(bytes), undefined, "what follows a message is ignored");
      },
    ),
    { numRuns: 200 },
  );
});

test("the outcome of a stream, good or bad, does not depend on how it was cut", () => {
  const damaged = fc
    .tuple(request, fc.boolean(), fc.array(fc.nat(), { maxLength: 3 }), fc.uint8Array({ maxLength: 20 }))
    .map(([value, compress, changes, after]) => {
      const bytes = encodeStream(value, { sealing: UNSEALED, compress, direction: "request" });
      for (const change of changes) bytes[(change >>> 8) % bytes.length] = change & 0xff;
      return concatBytes([bytes, after]);
    });
  fc.assert(
    fc.property(fc.oneof(damaged, fc.uint8Array()), fc.array(fc.nat(300)), (bytes, at) => {
      const limits: StreamLimits = { ...STREAM_LIMITS, maxMessageBytes: 500, maxNodes: 5 };
      const whole = outcome(bytes, [], limits);
      assert.deepEqual(outcome(bytes, at, limits), whole);
      assert.deepEqual(outcome(bytes, [...bytes.keys()], limits), whole);
    }),
    { numRuns: 300 },
  );
});

test("a stream that ends early says so", () => {
  fc.assert(
    fc.property(request, fc.boolean(), fc.nat(), (value, compress, place) => {
      const bytes = encodeStream(value, { sealing: UNSEALED, compress, direction: "request" });
      const decoder = new StreamDecoder(UNSEALED, STREAM_LIMITS, "request");
      assert.equal(decoder.push(bytes.subarray(0, place % bytes.length)), undefined);
      assert.throws(() => decoder.end(), DecodeError);
      assert.equal(decoder.push(bytes), undefined);
    }),
  );
});

test("what only the other side may send is refused", () => {
  fc.assert(
    fc.property(request, reply, (asked, answered) => {
      if (asked.type !== "push-pull") assert.throws(() => receive(asked, "reply"), DecodeError);
      if (answered.type !== "push-pull") assert.throws(() => receive(answered, "request"), DecodeError);
    }),
  );
});

test("announced sizes are refused before their bytes are waited for", () => {
  const refused = [
    "0683a44a6f696ec3a54e6f646573ce00020001ac5573657253746174654c656e00", // 131,073 members
    "0683a44a6f696ec3a54e6f646573ffac5573657253746174654c656e00", // −1 members
    "0683a44a6f696ec3a54e6f64657300ac5573657253746174654c656ece01400001", // 20 MiB + 1 of user state
    "0683a44a6f696ec3a54e6f64657300ac5573657253746174654c656eff", // −1 of user state
    "0881aa557365724d73674c656ece01400001", // 20 MiB + 1 of user message
    "0881aa557365724d73674c656eff", // −1 of user message
    "0982a4416c676f00a3427566db7fffffff", // 2 GiB of compressed data
    "0083dfffffffff", // 4 billion keys
  ];
  for (const hex of refused) {
    const decoder = new StreamDecoder(UNSEALED, STREAM_LIMITS, "request");
    assert.throws(() => decoder.push(fromHex(hex)), DecodeError, hex);
  }
  const sealed = new StreamDecoder({ ...UNSEALED, keys: [new Uint8Array(16)] }, STREAM_LIMITS, "request");
  assert.throws(() => sealed.push(fromHex("0a01400001")), DecodeError, "a frame of 20 MiB + 1");
});

test("what a stream inflates to is bounded, and only one compression is taken off", () => {
  const value: StreamMessage = { type: "user", payload: new Uint8Array(5000) };
  const plain = encodeStreamMessage(value);
  const once = encodeCompressed(plain);
  const small: StreamLimits = { ...STREAM_LIMITS, maxMessageBytes: plain.length };
  assert.deepEqual(new StreamDecoder(UNSEALED, small, "request").push(once), value);
  const smaller = { ...STREAM_LIMITS, maxMessageBytes: plain.length - 1 };
  assert.throws(() => new StreamDecoder(UNSEALED, smaller, "request").push(once), DecodeError);
  assert.throws(
    () => new StreamDecoder(UNSEALED, small, "request").push(encodeCompressed(once)),
    DecodeError,
  );
  assert.throws(() => decodeCompressed(once, plain.length - 1), DecodeError);
});

test("a member in a state of some later release is passed over, as Go's merge does", () => {
  const bytes = encodeStreamMessage({
    type: "push-pull",
    join: false,
    userState: new Uint8Array(0),
    nodes: ["a", "b"].map((name) => ({
      ...{ name, addr: new Uint8Array(4), port: 1, meta: new Uint8Array(0), incarnation: 1 },
      ...{ state: "alive", vsn: new Uint8Array(6) },
    })),
  });
  const stateKey = fromHex("a55374617465");
  const at = Buffer.from(bytes).indexOf(stateKey) + stateKey.length;
  bytes[at] = 4;
  const decoded = new StreamDecoder(UNSEALED, STREAM_LIMITS, "request").push(bytes);
  assert.ok(decoded?.type === "push-pull");
  assert.deepEqual(
    decoded.nodes.map((node) => node.name),
    ["b"],
  );
});

test("a large push/pull in one-byte pieces costs no more copies than doubling does", () => {
  const nodes = Array.from({ length: 2000 }, (_, i) => ({
    ...{ name: `node-${i}`, addr: new Uint8Array(4), port: 7946, meta: new Uint8Array(100), incarnation: 1 },
    ...{ state: "alive" as const, vsn: new Uint8Array(6) },
  }));
  const value: StreamMessage = { type: "push-pull", join: true, nodes, userState: new Uint8Array(100_000) };
  const bytes = encodeStreamMessage(value);
  const decoder = new StreamDecoder(UNSEALED, STREAM_LIMITS, "request");
  let decoded: StreamMessage | undefined;
  // 500 KB by single bytes: a decoder that starts over with every piece would need 10¹¹ steps, and hang here.
  for (let i = 0; i < bytes.length; i++) decoded = decoder.push(bytes.subarray(i, i + 1)) ?? decoded;
  assert.deepEqual(decoded, value);
});

function onlyDecodeErrors(run: () => unknown): void {
  try {
    run();
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
  }
}

function compoundOf(parts: readonly Uint8Array[]): Uint8Array {
  const out = new ByteWriter();
  encodeCompoundInto(parts, out);
  return out.finish();
}

function receive(
  message: StreamMessage,
  direction: StreamDirection,
): MemberlistMessage | StreamMessage | undefined {
  return new StreamDecoder(UNSEALED, STREAM_LIMITS, direction).push(encodeStreamMessage(message));
}

/** Pieces of `bytes` between the places named, in order; empty ones too. */
function cut(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  let from = 0;
  for (const place of [...places].sort((a, b) => a - b)) {
    const to = Math.max(from, Math.min(place, bytes.length));
    pieces.push(bytes.subarray(from, to));
    from = to;
  }
  return [...pieces, bytes.subarray(from)];
}

/** Feeds pieces from a buffer that is overwritten at once, as a socket's may be. */
function feed(decoder: StreamDecoder, pieces: readonly Uint8Array[]): StreamMessage | undefined {
  for (const piece of pieces) {
    const lent = piece.slice();
    const message = decoder.push(lent);
    if (message !== undefined) return message;
    lent.fill(0xee);
  }
  return undefined;
}

function outcome(bytes: Uint8Array, places: readonly number[], limits: StreamLimits): unknown {
  const decoder = new StreamDecoder(UNSEALED, limits, "request");
  try {
    return feed(decoder, cut(bytes, places)) ?? "incomplete";
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    return error.message;
  }
}
