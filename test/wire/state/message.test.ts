import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ByteReader, ByteWriter } from "../../../src/base/bytes.ts";
import { DecodeError } from "../../../src/base/error.ts";
import { networkDbMessageType } from "../../../src/wire/networkdb/message.ts";
import { readVarint, writeVarint } from "../../../src/wire/state/fields.ts";
import {
  decodeStateMessage,
  encodeStateMessage,
  isStateMessage,
  STATE_MESSAGE_TYPE,
} from "../../../src/wire/state/message.ts";
import { decodeSnapshot, encodeSnapshot } from "../../../src/wire/state/snapshot.ts";
import { anyMessage, anySnapshot } from "./arbitrary.ts";

test("every message survives the way over the wire", () => {
  fc.assert(
    fc.property(anyMessage, (message) => {
      const bytes = encodeStateMessage(message);
      assert.ok(isStateMessage(bytes));
      // fast-check makes objects without a prototype.
      assert.deepEqual(decodeStateMessage(bytes), structuredClone(message));
    }),
  );
});

test("to NetworkDB a message is one GossipMessage of a type Docker does not use", () => {
  fc.assert(
    fc.property(anyMessage, (message) => {
      assert.equal(networkDbMessageType(encodeStateMessage(message)), STATE_MESSAGE_TYPE);
    }),
  );
});

test("damaged and arbitrary bytes give a message or a DecodeError", () => {
  const isHandled = (decode: (bytes: Uint8Array) => unknown, bytes: Uint8Array): void => {
    try {
      decode(bytes);
    } catch (error) {
      assert.ok(error instanceof DecodeError, String(error));
    }
  };
  const damage = fc.array(fc.tuple(fc.nat(4000), fc.nat(255)), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(anyMessage, damage, fc.nat(4000), (message, changes, length) => {
      const bytes = encodeStateMessage(message);
      isHandled(decodeStateMessage, bytes.subarray(0, length % bytes.length));
      for (const [at, value] of changes) bytes[at % bytes.length] = value;
      isHandled(decodeStateMessage, bytes);
    }),
  );
  const header = Uint8Array.from([0x08, STATE_MESSAGE_TYPE, 0x12]);
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 2, maxLength: 120 }), (bytes) => {
      isHandled(decodeStateMessage, bytes);
      isHandled(decodeStateMessage, Uint8Array.from([...header, bytes.length, 1, ...bytes.subarray(1)]));
      isHandled(decodeSnapshot, bytes);
    }),
  );
});

test("a snapshot comes back as it was, and no single changed byte goes unnoticed", () => {
  fc.assert(
    fc.property(anySnapshot, fc.nat(), fc.integer({ min: 1, max: 255 }), (snapshot, at, difference) => {
      const bytes = encodeSnapshot(snapshot);
      assert.deepEqual(decodeSnapshot(bytes), structuredClone(snapshot));
      bytes[at % bytes.length] = (bytes[at % bytes.length] ?? 0) ^ difference;
      assert.throws(() => decodeSnapshot(bytes), DecodeError);
    }),
  );
});

test("numbers up to 2⁵³ − 1 are written as protobuf varints", () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), (value) => {
      const out = new ByteWriter();
      writeVarint(out, value);
      assert.equal(readVarint(new ByteReader(out.finish(), "number")), value);
    }),
  );
});
