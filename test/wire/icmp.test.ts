import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import {
  decodeIcmp6Message,
  decodeIcmpPacket,
  encodeEchoRequest,
  encodeEchoRequest6,
} from "../../src/wire/icmp.ts";
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

test("ICMPv6 says the same in other places", () => {
  const request = encodeEchoRequest6(ECHO, 1460);
  assert.equal(request.length, 1460);
  assert.deepEqual([...request.subarray(0, 8)], [128, 0, 0, 0, 0x12, 0x34, 0, 7]);
  const reply = request.slice(0, 64);
  reply[0] = 129;
  assert.deepEqual(decodeIcmp6Message(reply), { type: "echo-reply", echo: ECHO, payloadBytes: 56 });
  // Type 2; four bytes of MTU; then what was too big, an IPv6 header with next header 58 before it.
  const header = Uint8Array.from({ length: 40 }, (_, at) => (at === 0 ? 0x60 : at === 6 ? 58 : 0));
  const tooBig = Uint8Array.from([
    2,
    0,
    0,
    0,
    0,
    0,
    1400 >> 8,
    1400 & 255,
    ...header,
    ...request.subarray(0, 8),
  ]);
  assert.deepEqual(decodeIcmp6Message(tooBig), { type: "fragmentation-needed", echo: ECHO, mtu: 1400 });
  tooBig[14] = 17;
  assert.deepEqual(decodeIcmp6Message(tooBig), { type: "other" });
  assert.deepEqual(decodeIcmp6Message(request), { type: "other" });
});

test("arbitrary packets are read or refused", () => {
  for (const decode of [decodeIcmpPacket, decodeIcmp6Message])
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
        try {
          decode(bytes);
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
