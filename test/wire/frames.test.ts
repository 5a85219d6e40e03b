import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ByteReader, ByteWriter, concatBytes, fromHex, toHex } from "../../src/base/bytes.ts";
import { DecodeError } from "../../src/base/error.ts";
import { vni } from "../../src/base/id.ts";
import { ipFromBytes, parseIp } from "../../src/base/ip.ts";
import { macFromBytes, parseMac } from "../../src/base/mac.ts";
import { decodeArp, encodeArp, type ArpPacket } from "../../src/wire/arp.ts";
import {
  decodeEthernetHeader,
  encodeEthernetHeader,
  ETHER_TYPE,
  type EthernetHeader,
} from "../../src/wire/ethernet.ts";
import {
  decodeIpv4Header,
  encodeIpv4Header,
  IP_PROTOCOL,
  plainIpv4,
  type Ipv4Header,
} from "../../src/wire/ipv4.ts";
import { decodeUdp, encodeUdp } from "../../src/wire/udp.ts";
import { decodeVxlanHeader, encodeVxlanHeader } from "../../src/wire/vxlan.ts";

const byte = fc.nat(0xff);
const port = fc.nat(0xffff);
const mac = fc.uint8Array({ minLength: 6, maxLength: 6 }).map(macFromBytes);
const ipv4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map(ipFromBytes);

test("an Ethernet header survives, with and without a tag", () => {
  const header: fc.Arbitrary<EthernetHeader> = fc.oneof(
    record({ destination: mac, source: mac, etherType: port.filter((type) => type !== ETHER_TYPE.vlan) }),
    record({
      destination: mac,
      source: mac,
      vlan: record({ priority: fc.nat(7), dropEligible: fc.boolean(), id: fc.nat(0xfff) }),
      etherType: port,
    }),
  );
  survives(header, encodeEthernetHeader, decodeEthernetHeader);
});

test("an ARP packet survives, and is the one RFC 826 describes", () => {
  const packet: fc.Arbitrary<ArpPacket> = record({
    operation: fc.constantFrom("request", "reply"),
    senderMac: mac,
    senderIp: ipv4,
    targetMac: mac,
    targetIp: ipv4,
  });
  survives(packet, encodeArp, decodeArp);
  const out = new ByteWriter();
  encodeArp(
    {
      operation: "request",
      senderMac: parseMac("02:42:0a:00:09:05"),
      senderIp: parseIp("10.0.9.5"),
      targetMac: parseMac("00:00:00:00:00:00"),
      targetIp: parseIp("10.0.9.6"),
    },
    out,
  );
  assert.equal(toHex(out.finish()), "000108000604000102420a0009050a0009050000000000000a000906");
});

test("an IPv4 header survives, options and fragments included", () => {
  const header: fc.Arbitrary<Ipv4Header> = record({
    dscp: fc.nat(63),
    ecn: fc.nat(3),
    payloadLength: fc.nat(0xffff - 60),
    identification: port,
    dontFragment: fc.boolean(),
    moreFragments: fc.boolean(),
    fragmentOffset: fc.nat(0x1fff).map((eights) => eights * 8),
    ttl: byte,
    protocol: byte,
    source: ipv4,
    destination: ipv4,
    options: fc.nat(10).chain((fours) => fc.uint8Array({ minLength: 4 * fours, maxLength: 4 * fours })),
  });
  survives(header, encodeIpv4Header, decodeIpv4Header);
});

test("an IPv4 header with any one bit changed is refused", () => {
  const out = new ByteWriter();
  encodeIpv4Header(plainIpv4(parseIp("192.0.2.1"), parseIp("192.0.2.7"), IP_PROTOCOL.udp, 0), out);
  const good = out.finish();
  for (let bit = 0; bit < good.length * 8; bit++) {
    const bad = good.slice();
    bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.throws(() => decodeIpv4Header(new ByteReader(bad, "IPv4")), DecodeError, `bit ${bit}`);
  }
});

test("a UDP datagram survives with checksum and without, and a changed byte is noticed", () => {
  const addresses = record({ source: ipv4, destination: ipv4 });
  const datagram = record({ sourcePort: port, destinationPort: port, payload: fc.uint8Array() });
  fc.assert(
    fc.property(datagram, addresses, fc.nat(), byte, (value, pseudo, place, change) => {
      for (const used of [undefined, pseudo]) {
        const out = new ByteWriter(1);
        encodeUdp(value, used, out);
        assert.deepEqual(decodeUdp(new ByteReader(out.finish(), "UDP"), used), value);
      }
      const out = new ByteWriter();
      encodeUdp(value, pseudo, out);
      const bad = out.finish();
      const at = place % bad.length;
      // Lengths have an error of their own, and a zeroed checksum means "none".
      if ((at >= 4 && at < 8) || change === 0) return;
      bad[at] = (bad[at] ?? 0) ^ change;
      assert.throws(() => decodeUdp(new ByteReader(bad, "UDP"), pseudo), DecodeError);
    }),
  );
});

test("a VXLAN header survives and reserved bits are not looked at", () => {
  survives(record({ vni: fc.nat(0xffffff).map(vni) }), encodeVxlanHeader, decodeVxlanHeader);
  assert.deepEqual(decodeVxlanHeader(new ByteReader(fromHex("ffffffff001001ff"), "VXLAN")), {
    vni: vni(4097),
  });
  assert.throws(() => decodeVxlanHeader(new ByteReader(fromHex("f7ffffff001001ff"), "VXLAN")), DecodeError);
});

test("a frame in a tunnel is read layer by layer", () => {
  const inner = new ByteWriter();
  encodeEthernetHeader(
    {
      destination: parseMac("02:42:0a:00:09:06"),
      source: parseMac("02:42:0a:00:09:05"),
      etherType: ETHER_TYPE.ipv4,
    },
    inner,
  );
  encodeIpv4Header(plainIpv4(parseIp("10.0.9.5"), parseIp("10.0.9.6"), IP_PROTOCOL.icmp, 0), inner);
  const vxlan = new ByteWriter();
  encodeVxlanHeader({ vni: vni(4097) }, vxlan);
  const out = new ByteWriter();
  encodeUdp(
    { sourcePort: 50_000, destinationPort: 4789, payload: concatBytes([vxlan.finish(), inner.finish()]) },
    undefined,
    out,
  );
  const udp = decodeUdp(new ByteReader(out.finish(), "UDP"));
  const payload = new ByteReader(udp.payload, "VXLAN");
  assert.equal(decodeVxlanHeader(payload).vni, 4097);
  assert.equal(decodeEthernetHeader(payload).etherType, ETHER_TYPE.ipv4);
  assert.equal(decodeIpv4Header(payload).destination, "10.0.9.6");
  assert.equal(payload.remaining, 0);
});

test("the example header of the internet checksum's literature has checksum b861", () => {
  const header = decodeIpv4Header(
    new ByteReader(fromHex("45000073000040004011b861c0a80001c0a800c7"), "IPv4"),
  );
  assert.equal(header.destination, "192.168.0.199");
  const out = new ByteWriter();
  encodeIpv4Header(header, out);
  assert.equal(toHex(out.finish()), "45000073000040004011b861c0a80001c0a800c7");
});

/** fast-check's records have no prototype unless asked, and `deepEqual` looks at it. */
function record<T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record(model, { noNullPrototype: true });
}

function survives<T>(
  values: fc.Arbitrary<T>,
  encode: (value: T, out: ByteWriter) => void,
  decode: (input: ByteReader) => T,
): void {
  fc.assert(
    fc.property(values, (value) => {
      const out = new ByteWriter(1);
      encode(value, out);
      const input = new ByteReader(out.finish(), "test");
      assert.deepEqual(decode(input), value);
      assert.equal(input.remaining, 0);
      const bytes = out.finish();
      for (let length = 0; length < bytes.length; length++)
        assert.throws(() => decode(new ByteReader(bytes.subarray(0, length), "test")), DecodeError);
    }),
  );
}
