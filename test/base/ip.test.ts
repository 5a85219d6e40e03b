import assert from "node:assert/strict";
import { isIPv4, isIPv6 } from "node:net";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import {
  compareIp,
  formatCidr,
  formatSocketAddr,
  ipFromBytes,
  ipToBigInt,
  ipToBytes,
  ipv4FromNumber,
  ipv4ToNumber,
  isIpv4,
  lastAddress,
  parseCidr,
  parseHostPort,
  parseIp,
  subnetContains,
  subnetOf,
  subnetSize,
  subnetsOverlap,
  tryParseIp,
  type Cidr,
} from "../../src/base/ip.ts";

const v4Bytes = fc.uint8Array({ minLength: 4, maxLength: 4 });
/** Zeros often, so that `::` and mapped addresses occur. */
const v6Bytes = fc
  .array(fc.constantFrom(0, 0, 0, 1, 0xff, 0x20), { minLength: 16, maxLength: 16 })
  .map((bytes) => Uint8Array.from(bytes));
const ip = fc.oneof(v4Bytes, v6Bytes).map(ipFromBytes);
const v4 = v4Bytes.map(ipFromBytes);
const v4Cidr: fc.Arbitrary<Cidr> = fc
  .tuple(v4, fc.nat(32))
  .map(([address, prefixLength]) => ({ ip: address, prefixLength }));

test("an address is the same from text and from bytes, in every spelling", () => {
  fc.assert(
    fc.property(ip, (address) => {
      assert.equal(parseIp(address), address);
      assert.equal(ipFromBytes(ipToBytes(address)), address);
      assert.equal(parseIp(address.toUpperCase()), address);
      assert.equal(ipToBytes(address).length, isIpv4(address) ? 4 : 16);
    }),
  );
  const spellings = [
    ["2001:db8::1", "2001:DB8:0:0:0:0:0:1", "2001:0db8::0001", "2001:db8:0::1"],
    ["::1", "0:0:0:0:0:0:0:1", "0000::0001"],
    ["::", "0::0", "0:0:0:0:0:0:0:0"],
    ["10.0.0.1", "::ffff:10.0.0.1", "::FFFF:a00:1", "0:0:0:0:0:ffff:a00:1"],
    ["64:ff9b::102:304", "64:ff9b::1.2.3.4"],
  ];
  for (const [canonical, ...others] of spellings)
    for (const other of others) assert.equal(parseIp(other), canonical, other);
});

test("what Node takes for an address is one, and nothing else is", () => {
  const letters = fc.string({ unit: fc.constantFrom(..."0123456789abf:.%/ []x"), maxLength: 20 });
  const damaged = fc.tuple(ip, fc.nat(), fc.constantFrom(..."0:.x/ %")).map(([address, place, letter]) => {
    const at = place % (address.length + 1);
    return address.slice(0, at) + letter + address.slice(at);
  });
  fc.assert(
    fc.property(fc.oneof(letters, damaged), (text) => {
      const valid = isIPv4(text) || (isIPv6(text) && !text.includes("%"));
      assert.equal(tryParseIp(text) !== undefined, valid, text);
    }),
    { numRuns: 2000 },
  );
  for (const text of [
    "",
    " 10.0.0.1",
    "10.0.0.1\n",
    "10.0.0",
    "010.0.0.1",
    "1.2.3.4/8",
    "fe80::1%eth0",
    "[::1]",
    "256.1.1.1",
  ])
    assert.throws(() => parseIp(text), DecodeError, text);
});

test("only four or sixteen bytes are an address", () => {
  for (const length of [0, 1, 3, 5, 15, 17])
    assert.throws(() => ipFromBytes(new Uint8Array(length)), DecodeError);
});

test("numbers are addresses in order", () => {
  fc.assert(
    fc.property(v4, ip, ip, (address, a, b) => {
      assert.equal(ipv4FromNumber(ipv4ToNumber(address)), address);
      assert.equal(BigInt(ipv4ToNumber(address)), ipToBigInt(address));
      assert.equal(compareIp(a, b) === 0, a === b);
      assert.equal(compareIp(a, b) + compareIp(b, a), 0);
      if (isIpv4(a) === isIpv4(b))
        assert.equal(Math.sign(compareIp(a, b)), Math.sign(Buffer.compare(ipToBytes(a), ipToBytes(b))));
    }),
  );
});

test("a prefix is the same from its text, and malformed ones are refused", () => {
  fc.assert(
    fc.property(ip, fc.nat(128), (address, length) => {
      const cidr = { ip: address, prefixLength: isIpv4(address) ? length % 33 : length };
      assert.deepEqual(parseCidr(formatCidr(cidr)), cidr);
    }),
  );
  for (const text of [
    "10.0.0.0",
    "10.0.0.0/",
    "10.0.0.0/33",
    "::/129",
    "10.0.0.0/-1",
    "10.0.0.0/8 ",
    "10.0.0.0/08",
    "/8",
    "a/8",
  ])
    assert.throws(() => parseCidr(text), DecodeError, text);
  assert.throws(
    () => parseCidr("::ffff:10.0.0.0/104"),
    DecodeError,
    "a mapped address has no prefix of its own",
  );
});

test("a subnet contains what lies between its first and last address", () => {
  fc.assert(
    fc.property(v4Cidr, v4, (cidr, address) => {
      const first = ipv4ToNumber(subnetOf(cidr).ip);
      const last = ipv4ToNumber(lastAddress(cidr));
      assert.equal(last - first + 1, subnetSize(cidr));
      const number = ipv4ToNumber(address);
      assert.equal(subnetContains(cidr, address), number >= first && number <= last);
      assert.ok(subnetContains(cidr, cidr.ip));
      assert.deepEqual(subnetOf(subnetOf(cidr)), subnetOf(cidr));
    }),
  );
  assert.equal(subnetContains(parseCidr("::/0"), parseIp("10.0.0.1")), false);
  assert.equal(subnetContains(parseCidr("2001:db8::/33"), parseIp("2001:db8:7fff::1")), true);
  assert.equal(subnetContains(parseCidr("2001:db8::/33"), parseIp("2001:db8:8000::1")), false);
});

test("two subnets overlap when they share an address", () => {
  fc.assert(
    fc.property(v4Cidr, v4Cidr, (a, b) => {
      const [firstA, lastA, firstB, lastB] = [
        ipv4ToNumber(subnetOf(a).ip),
        ipv4ToNumber(lastAddress(a)),
        ipv4ToNumber(subnetOf(b).ip),
        ipv4ToNumber(lastAddress(b)),
      ] as const;
      assert.equal(subnetsOverlap(a, b), firstA <= lastB && firstB <= lastA);
      assert.equal(subnetsOverlap(a, b), subnetsOverlap(b, a));
    }),
  );
});

test("host and port are read as people write them", () => {
  fc.assert(
    fc.property(ip, fc.integer({ min: 1, max: 65_535 }), (address, port) => {
      assert.deepEqual(parseHostPort(formatSocketAddr({ ip: address, port }), 1), { host: address, port });
      assert.deepEqual(parseHostPort(address, port), { host: address, port });
    }),
  );
  assert.deepEqual(parseHostPort("node-1.example:80", 7946), { host: "node-1.example", port: 80 });
  assert.deepEqual(parseHostPort("[2001:DB8::1]", 7946), { host: "2001:db8::1", port: 7946 });
  for (const text of [
    "",
    ":80",
    "host:",
    "host:0",
    "host:65536",
    "host:8o",
    "[host]:80",
    "[10.0.0.1]:80",
    "::1::",
    "a b",
    "a/b:1",
  ])
    assert.throws(() => parseHostPort(text, 1), DecodeError, text);
});
