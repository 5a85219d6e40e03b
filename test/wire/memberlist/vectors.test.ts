import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteWriter, concatBytes, fromHex, toHex, utf8 } from "../../../src/base/bytes.ts";
import { DecodeError } from "../../../src/base/error.ts";
import { encodeCompoundInto } from "../../../src/wire/memberlist/compound.ts";
import { decodeCompressed, encodeCompressed } from "../../../src/wire/memberlist/compress.ts";
import { encodeMessage, type MemberlistMessage } from "../../../src/wire/memberlist/message.ts";
import { decodePacket, encodePacket } from "../../../src/wire/memberlist/packet.ts";
import { open, UNSEALED, type Sealing } from "../../../src/wire/memberlist/seal.ts";
import { PUSH_PULL_STATES } from "../../../src/wire/memberlist/push-pull.ts";
import {
  encodeStreamMessage,
  STREAM_LIMITS,
  type StreamDirection,
  type StreamMessage,
} from "../../../src/wire/memberlist/stream-message.ts";
import {
  encodeStreamEnvelopes,
  FRAME_HEADER_LENGTH,
  StreamDecoder,
} from "../../../src/wire/memberlist/stream.ts";
import { loadVectors } from "../../vectors/load.ts";

/** Refused for what a message says to this receiver in this state, which only the receiver can know. */
const REFUSED_BY_MEMBERSHIP: readonly RegExp[] = [
  /^ping is for another node name$/,
  /^version minimum\/maximum is zero or reversed$/,
  /^crashes 0\.2\.2: version array shorter than six/,
  /^protocol or delegate versions do not fit/,
];

const vectors = loadVectors<Vector>("memberlist.jsonl");
const packets = vectors.filter((vector) => vector.carrier === "packet");
const streams = vectors.filter((vector) => vector.carrier === "stream");

test("every vector is of a known carrier", () => {
  assert.equal(vectors.length, 246);
  assert.equal(packets.length, 185);
  assert.equal(streams.length, 45);
});

for (const vector of packets) {
  const { name, description, decoded } = vector;
  if (isRefused(vector)) {
    test(`packet ${name} is refused: ${vector.reason ?? description}`, () => {
      const outcome = receivePacket(vector);
      if (outcome instanceof DecodeError) return;
      // A bad part of a compound does not take the others with it.
      assert.equal(outcome.problems.length, 1);
    });
  } else if (decoded === null) {
    test(`packet ${name} is decoded and left to the receiver: ${vector.reason ?? description}`, () => {
      const outcome = receivePacket(vector);
      assert.ok(!(outcome instanceof DecodeError));
      assert.equal(outcome.messages.length, 1);
      assert.deepEqual(outcome.problems, []);
    });
  } else {
    test(`packet ${name} means what Go says: ${description}`, () => {
      const outcome = receivePacket(vector);
      assert.ok(!(outcome instanceof DecodeError), String(outcome));
      assert.deepEqual(outcome.messages, messagesOf(decoded));
      assert.equal(outcome.problems.length, truncatedIn(decoded) > 0 ? 1 : 0);
    });
    if (!vector.lenient && truncatedIn(decoded) === 0) {
      test(`packet ${name} is written byte for byte as Go writes it`, () => {
        assert.equal(toHex(buildPacket(vector, decoded)), vector.hex);
      });
    }
  }
}

for (const vector of streams) {
  const { name, description } = vector;
  const decoded = meaningOf(vector);
  if (isRefused(vector)) {
    test(`stream ${name} is refused: ${vector.reason ?? description}`, () => {
      assert.ok(receiveStream(vector, "request") instanceof DecodeError);
    });
  } else if (decoded === null) {
    test(`stream ${name} is decoded and left to the receiver: ${vector.reason ?? description}`, () => {
      assert.ok(!(receiveStream(vector, "request") instanceof DecodeError));
    });
  } else {
    test(`stream ${name} means what Go says: ${description}`, () => {
      assert.deepEqual(receiveStream(vector, directionOf(decoded)), streamMessageOf(decoded));
    });
    if (vector.newerDialect === undefined) {
      test(`stream ${name} is written byte for byte as Go writes it`, () => {
        checkStreamBytes(vector, streamMessageOf(decoded));
      });
    }
  }
  const reply = vector.replyHex;
  if (reply !== undefined && reply !== "") {
    test(`stream ${name}: Go's reply is read and written`, () => {
      const answered = { ...vector, hex: reply };
      const message = receiveStream(answered, "reply");
      assert.ok(!(message instanceof DecodeError), String(message));
      checkStreamBytes(answered, message);
    });
  }
}

test("the whole way down: label, seal, checksum and compression go around a compound in Go's order", () => {
  const vector = named("compound_full_packet");
  const messages = messagesOf(decodedOf(vector));
  const parts = messages.map((message) => encodeMessage(message));
  const sealing: Sealing = { ...UNSEALED, keys: [new Uint8Array(32).fill(7)], label: "blue" };
  const nonce = new Uint8Array(12).fill(9);
  const packet = encodePacket(parts, { sealing, nonce, crc: true, compress: true });
  assert.deepEqual(decodePacket(packet, sealing), { messages, problems: [] });
  const plain = open(packet.subarray(6), sealing.keys, utf8("blue"));
  assert.equal(plain[0], 12);
  assert.equal(plain[5], 9);
  assert.equal(toHex(decodeCompressed(plain.subarray(5), 2000)), vector.hex);
});

test("compression that does not help is left away in a packet", () => {
  const ping = fromHex(named("ping_minimal").hex);
  assert.deepEqual(encodePacket([ping], { sealing: UNSEALED, crc: false, compress: true }), ping);
});

for (const vector of loadVectors<SwarmVector>("docker-swarm-encrypted.jsonl")) {
  test(`${vector.name} of a real swarm opens and is sealed again alike: ${vector.description}`, () => {
    const bytes = fromHex(vector.hex);
    const plain = fromHex(vector.plainHex);
    const keys = vector.keys.map(fromHex);
    const sealing: Sealing = { ...UNSEALED, keys };
    const used = keys[vector.keyIndex];
    assert.ok(used !== undefined);
    const header = vector.transport === "tcp" ? FRAME_HEADER_LENGTH : 0;
    const sender = { ...sealing, keys: [used] };
    const nonce = bytes.slice(header + 1, header + 13);
    assert.deepEqual(open(bytes.subarray(header), keys, bytes.subarray(0, header)), plain);
    if (vector.transport === "tcp") {
      assert.deepEqual(encodeStreamEnvelopes(plain, { sealing: sender, nonce, direction: "request" }), bytes);
      assert.ok(new StreamDecoder(sealing, STREAM_LIMITS, "request").push(bytes) !== undefined);
    } else {
      const packet = encodePacket([plain], { sealing: sender, nonce, crc: false, compress: false });
      assert.deepEqual(packet, bytes);
      assert.deepEqual(decodePacket(bytes, sealing).problems, []);
    }
  });
}

interface Vector {
  readonly name: string;
  readonly description: string;
  readonly hex: string;
  readonly carrier: string;
  readonly decoded: Decoded | null;
  readonly key?: string;
  readonly label?: string;
  readonly reject?: boolean;
  readonly reason?: string;
  readonly crash?: boolean;
  readonly lenient?: boolean;
  readonly newerDialect?: boolean;
  readonly newerRejects?: boolean;
  readonly replyHex?: string;
}

interface SwarmVector {
  readonly name: string;
  readonly description: string;
  readonly transport: "udp" | "tcp";
  readonly keys: readonly string[];
  readonly keyIndex: number;
  readonly hex: string;
  readonly plainHex: string;
}

/** What Go's decoder printed; which fields are there depends on `kind`. */
interface Decoded {
  readonly kind?: string;
  readonly error?: string;
  readonly fields?: Fields;
  readonly inner?: Decoded & { readonly empty?: boolean };
  readonly parts?: readonly (Decoded | string)[];
  readonly truncated?: number;
  readonly payload?: string;
  readonly nonce?: string;
  readonly plaintext?: string;
  readonly plaintextSameAs?: string;
  readonly encryptionVersion?: 0 | 1;
  readonly compressed?: boolean;
  readonly Join?: boolean;
  readonly nodes?: readonly Fields[];
  readonly userState?: string | null;
}

type Fields = Readonly<Record<string, string | number | boolean | null>>;

function isRefused(vector: Vector): boolean {
  if (vector.newerRejects || vector.decoded?.inner?.empty || vector.decoded?.error !== undefined) return true;
  if (/^bad_(suspect|dead|ack)_unknown$/.test(vector.name)) return false;
  const reason = vector.reason ?? "";
  return vector.reject === true && !REFUSED_BY_MEMBERSHIP.some((pattern) => pattern.test(reason));
}

function sealingOf(vector: Vector): Sealing {
  return {
    keys: vector.key === undefined ? [] : [fromHex(vector.key)],
    label: vector.label ?? "",
    verifyIncoming: vector.name !== "ok_plain_when_not_verifying",
    verifyOutgoing: true,
    encryptionVersion: vector.decoded?.encryptionVersion ?? 1,
  };
}

function receivePacket(vector: Vector): DecodeError | ReturnType<typeof decodePacket> {
  try {
    return decodePacket(fromHex(vector.hex), sealingOf(vector));
  } catch (error) {
    assert.ok(error instanceof DecodeError, String(error));
    return error;
  }
}

function receiveStream(vector: Vector, direction: StreamDirection): DecodeError | StreamMessage {
  const decoder = new StreamDecoder(sealingOf(vector), STREAM_LIMITS, direction);
  try {
    const message = decoder.push(fromHex(vector.hex));
    decoder.end();
    assert.ok(message !== undefined);
    return message;
  } catch (error) {
    assert.ok(error instanceof DecodeError, String(error));
    return error;
  }
}

function named(name: string): Vector {
  const vector = vectors.find((candidate) => candidate.name === name);
  assert.ok(vector !== undefined, name);
  return vector;
}

function decodedOf(vector: Vector): Decoded {
  assert.ok(vector.decoded !== null, vector.name);
  return vector.decoded;
}

function bytesOf(value: unknown): Uint8Array {
  return typeof value === "string" ? fromHex(value.replace(/^hex:/, "")) : new Uint8Array(0);
}

function messagesOf(decoded: Decoded): MemberlistMessage[] {
  if (decoded.inner !== undefined) return messagesOf(decoded.inner);
  switch (decoded.kind) {
    case "compound":
      return (decoded.parts ?? []).flatMap((part) =>
        typeof part === "string" ? userMessageOf(bytesOf(part)) : messagesOf(part),
      );
    case "compress": {
      const payload = bytesOf(decoded.payload);
      if (payload[0] === 9) return decodePacket(payload, UNSEALED).messages;
      return [userMessageOf(payload)];
    }
    case "user":
      return [{ type: "user", payload: bytesOf(decoded.payload) }];
    default:
      return [messageOf(decoded)];
  }
}

function userMessageOf(bytes: Uint8Array): MemberlistMessage {
  assert.equal(bytes[0], 8);
  return { type: "user", payload: bytes.slice(1) };
}

function messageOf({ kind, fields }: Decoded): MemberlistMessage {
  assert.ok(fields !== undefined);
  const number = (name: string): number => Number(fields[name]);
  const text = (name: string): string => String(fields[name]);
  const source = {
    sourceAddr: bytesOf(fields["SourceAddr"]),
    sourcePort: number("SourcePort"),
    sourceNode: text("SourceNode"),
  };
  switch (kind) {
    case "ping":
      return { type: kind, seqNo: number("SeqNo"), node: text("Node"), ...source };
    case "indirectPing":
      return {
        type: "indirect-ping",
        seqNo: number("SeqNo"),
        target: bytesOf(fields["Target"]),
        port: number("Port"),
        node: text("Node"),
        nack: fields["Nack"] === true,
        ...source,
      };
    case "ack":
      return { type: kind, seqNo: number("SeqNo"), payload: bytesOf(fields["Payload"]) };
    case "nack":
      return { type: kind, seqNo: number("SeqNo") };
    case "suspect":
    case "dead":
      return { type: kind, incarnation: number("Incarnation"), node: text("Node"), from: text("From") };
    case "alive":
      return {
        type: kind,
        incarnation: number("Incarnation"),
        node: text("Node"),
        addr: bytesOf(fields["Addr"]),
        port: number("Port"),
        meta: bytesOf(fields["Meta"]),
        vsn: bytesOf(fields["Vsn"]),
      };
    case "err":
      return { type: "error", error: text("Error") };
    default:
      throw new Error(`no message kind ${kind}`);
  }
}

function truncatedIn(decoded: Decoded): number {
  return (decoded.truncated ?? 0) + (decoded.inner === undefined ? 0 : truncatedIn(decoded.inner));
}

/** Writes a packet from what it means, envelope by envelope, as the description says it was made. */
function buildPacket(vector: Vector, decoded: Decoded): Uint8Array {
  if (decoded.nonce === undefined && vector.label === undefined) return buildPlain(vector, decoded);
  const plain = buildPlain(vector, decoded.inner ?? {});
  if (decoded.plaintext !== undefined) assert.equal(`hex:${toHex(plain)}`, decoded.plaintext);
  return encodePacket([plain], {
    sealing: sealingOf(vector),
    nonce: bytesOf(decoded.nonce),
    crc: false,
    compress: false,
  });
}

function buildPlain(vector: Vector, decoded: Decoded): Uint8Array {
  switch (decoded.kind) {
    case "compound": {
      const out = new ByteWriter();
      const parts = decoded.parts ?? [];
      encodeCompoundInto(
        parts.map((part) => (typeof part === "string" ? bytesOf(part) : buildPlain(vector, part))),
        out,
      );
      return out.finish();
    }
    case "compress":
      return encodeCompressed(
        decoded.inner === undefined ? bytesOf(decoded.payload) : buildPlain(vector, decoded.inner),
      );
    case "hasCrc": {
      assert.ok(decoded.inner !== undefined);
      const inner = buildPlain(vector, decoded.inner);
      return encodePacket([inner], { sealing: UNSEALED, crc: true, compress: false });
    }
    case "user":
      return encodeMessage({ type: "user", payload: bytesOf(decoded.payload) });
    default:
      // `decoded` shows nil and empty alike; two vectors were made with the empty one.
      return encodeMessage(
        messageOf(decoded),
        /_(meta|payload)_?empty|empty_payload$/.test(vector.name) ? "raw" : "nil",
      );
  }
}

function meaningOf(vector: Vector): Decoded | null {
  const { decoded } = vector;
  return decoded?.plaintextSameAs === undefined ? decoded : named(decoded.plaintextSameAs).decoded;
}

function directionOf(decoded: Decoded): StreamDirection {
  return decoded.kind === "ack" || decoded.kind === "err" ? "reply" : "request";
}

function streamMessageOf(decoded: Decoded): StreamMessage {
  if (decoded.kind === "user") return { type: "user", payload: bytesOf(decoded.payload) };
  if (decoded.kind !== "pushPull") return messageOf(decoded) as StreamMessage;
  return {
    type: "push-pull",
    join: decoded.Join === true,
    userState: bytesOf(decoded.userState),
    nodes: (decoded.nodes ?? []).map((fields) => {
      const state = PUSH_PULL_STATES[Number(fields["State"])];
      assert.ok(state !== undefined);
      return {
        name: String(fields["Name"]),
        addr: bytesOf(fields["Addr"]),
        port: Number(fields["Port"]),
        meta: bytesOf(fields["Meta"]),
        incarnation: Number(fields["Incarnation"]),
        state,
        vsn: bytesOf(fields["Vsn"]),
      };
    }),
  };
}

/** Peels the envelopes off, compares the message, and puts the envelopes on again. */
function checkStreamBytes(vector: Vector, message: StreamMessage): void {
  const bytes = fromHex(vector.hex);
  const sealing = sealingOf(vector);
  const direction = vector.label === undefined ? "reply" : "request";
  const start = vector.label === undefined ? 0 : 2 + utf8(vector.label).length;
  const sealed = bytes[start] === 10;
  const header = bytes.slice(start, start + FRAME_HEADER_LENGTH);
  const body = start + FRAME_HEADER_LENGTH;
  const inner = sealed
    ? open(bytes.subarray(body), sealing.keys, concatBytes([header, utf8(sealing.label)]))
    : bytes.subarray(start);
  const plain = inner[0] === 9 ? decodeCompressed(inner, STREAM_LIMITS.maxMessageBytes) : inner;
  assert.equal(nilMeta(toHex(encodeStreamMessage(message))), nilMeta(toHex(plain)));
  const again = encodeStreamEnvelopes(inner[0] === 9 ? encodeCompressed(plain) : plain, {
    sealing: { ...sealing, verifyOutgoing: sealed },
    nonce: bytes.slice(body + 1, body + 13),
    direction,
  });
  assert.equal(toHex(again), vector.hex);
}

/** Some lists mix nil and empty metas, which read alike: write both as nil. */
function nilMeta(hex: string): string {
  return hex.replaceAll("a44d657461a0", "a44d657461c0");
}
