import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import { ipFromBytes, parseIp } from "../../src/base/ip.ts";
import { isMulticastMac, macFromBytes, macFromIpv4, macToBytes, parseMac } from "../../src/base/mac.ts";

test("an Ethernet address is the same from text and bytes, in either case", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (bytes) => {
      const mac = macFromBytes(bytes);
      assert.deepEqual(macToBytes(mac), bytes);
      assert.equal(parseMac(mac.toUpperCase()), mac);
      assert.equal(isMulticastMac(mac), ((bytes[0] ?? 0) & 1) === 1);
    }),
  );
  for (const text of [
    "",
    "02:42:0a:00:00",
    "02:42:0a:00:00:05:06",
    "2:42:a:0:0:5",
    "02-42-0a-00-00-05",
    "02:42:0a:00:00:0g",
  ])
    assert.throws(() => parseMac(text), DecodeError, text);
  assert.throws(() => macFromBytes(new Uint8Array(5)), DecodeError);
});

test("Docker's address of an IPv4 address is its own and never multicast", () => {
  assert.equal(macFromIpv4(parseIp("10.0.9.5")), "02:42:0a:00:09:05");
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 4, maxLength: 4 }), (bytes) => {
      const mac = macFromIpv4(ipFromBytes(bytes));
      assert.deepEqual(macToBytes(mac).slice(2), bytes);
      assert.equal(isMulticastMac(mac), false);
    }),
  );
  assert.throws(() => macFromIpv4(parseIp("::1")), DecodeError);
});
