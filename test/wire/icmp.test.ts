import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import { decodeIcmpPacket, encodeEchoRequest } from "../../src/wire/icmp.ts";
import { foldChecksum, sumWords } from "../../src/wire/ipv4.ts";

const ECHO = { id: 0x1234, sequence: 7 };

test("an echo request has a right checksum, its length, id and sequence", () => {
  const request = encodeEchoRequest(ECHO, 1480);
  assert.equal(request.length, 1480);
  assert.equal(foldChecksum(sumWords(request)), 0);
  assert.deepEqual([...request.subarray(0, 2), ...request.subarray(4, 8)], [8, 0, 0x12, 0x34, 0, 7]);
});

test("an answer tells whose it is, and a router that could not pass it on tells what it takes", () => {
  const reply = encodeEchoRequest(ECHO, 64);
  reply[0] = 0;
  assert.deepEqual(decodeIcmpPacket(inIpv4(reply)), { type: "echo-reply", echo: ECHO, payloadBytes: 56 });
  // Type 3, code 4; 1400 in the last two of the eight bytes; then what was too big.
  const quoted = inIpv4(encodeEchoRequest(ECHO, 1480)).subarray(0, 28);
  const needed = Uint8Array.from([3, 4, 0, 0, 0, 0, 1400 >> 8, 1400 & 255, ...quoted]);
  assert.deepEqual(decodeIcmpPacket(inIpv4(needed)), { type: "fragmentation-needed", echo: ECHO, mtu: 1400 });
  assert.deepEqual(decodeIcmpPacket(inIpv4(encodeEchoRequest(ECHO, 64))), { type: "other" });
});

test("arbitrary packets are read or refused", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      try {
        decodeIcmpPacket(bytes);
      } catch (error) {
        assert.ok(error instanceof DecodeError);
      }
    }),
  );
});

/** Only the header's length counts for a reader behind a raw socket. */
function inIpv4(payload: Uint8Array): Uint8Array {
  const packet = new Uint8Array(20 + payload.length);
  packet[0] = 0x45;
  packet.set(payload, 20);
  return packet;
}
