import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ByteReader, ByteWriter } from "../../../src/base/bytes.ts";
import { DecodeError } from "../../../src/base/error.ts";
import { type IpAddr, ipFromBytes } from "../../../src/base/ip.ts";
import { type MacAddr, macFromBytes } from "../../../src/base/mac.ts";
import { decodeAddress, encodeAddress } from "../../../src/wire/netlink/address.ts";
import { decodeLink, encodeLink, type LinkSettings } from "../../../src/wire/netlink/link.ts";
import {
  attributeMap,
  decodeAck,
  decodeAttributes,
  decodeMessages,
  decodeText,
  NetlinkBatch,
  NLM_F,
  NLMSG,
} from "../../../src/wire/netlink/message.ts";
import { decodeNamespaceId } from "../../../src/wire/netlink/namespace-id.ts";
import {
  decodeFdbEntry,
  decodeNeighbor,
  encodeFdbEntry,
  encodeNeighbor,
} from "../../../src/wire/netlink/neighbor.ts";
import { decodeRoute, encodeRoute, type Route } from "../../../src/wire/netlink/route.ts";
import { decodeRule, encodeRule, type Rule } from "../../../src/wire/netlink/rule.ts";

const anyIp: fc.Arbitrary<IpAddr> = fc
  .oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.uint8Array({ minLength: 16, maxLength: 16 }))
  .map(ipFromBytes);
const anyMac: fc.Arbitrary<MacAddr> = fc.uint8Array({ minLength: 6, maxLength: 6 }).map(macFromBytes);
const u32 = fc.integer({ min: 0, max: 0xffffffff });
const ifindex = fc.integer({ min: 1, max: 0x7fffffff });
const u8 = fc.integer({ min: 0, max: 255 });

test("neighbors decode to what was encoded", () => {
  const any = record({
    ifindex,
    ip: anyIp,
    mac: fc.option(anyMac, { nil: undefined }),
    state: fc.integer({ min: 0, max: 0xffff }),
    flags: u8,
  });
  fc.assert(
    fc.property(any, (neighbor) => {
      assert.deepEqual(decodeNeighbor(encoded((out) => encodeNeighbor(neighbor, out))), neighbor);
    }),
  );
});

test("FDB entries decode to what was encoded", () => {
  const any = record({
    ifindex,
    mac: anyMac,
    vtep: fc.option(anyIp, { nil: undefined }),
    state: fc.integer({ min: 0, max: 0xffff }),
    flags: u8,
  });
  fc.assert(
    fc.property(any, (entry) => {
      assert.deepEqual(decodeFdbEntry(encoded((out) => encodeFdbEntry(entry, out))), entry);
    }),
  );
});

test("addresses decode to what was encoded", () => {
  const any = record({
    ifindex: u32,
    address: record({ ip: anyIp, prefixLength: fc.integer({ min: 0, max: 128 }) }),
    flags: u32,
    scope: u8,
  });
  fc.assert(
    fc.property(any, (value) => {
      assert.deepEqual(decodeAddress(encoded((out) => encodeAddress(value, out))), value);
    }),
  );
});

test("routes decode to what was encoded", () => {
  const any: fc.Arbitrary<Route> = fc.oneof(
    anyRoute(fc.uint8Array({ minLength: 4, maxLength: 4 }).map(ipFromBytes), 32),
    // Not IPv4-mapped, which decodes as IPv4.
    anyRoute(
      fc.uint8Array({ minLength: 15, maxLength: 15 }).map((b) => ipFromBytes(Uint8Array.of(0x20, ...b))),
      128,
    ),
  );
  fc.assert(
    fc.property(any, (route) => {
      assert.deepEqual(decodeRoute(encoded((out) => encodeRoute(route, out))), route);
    }),
  );
});

test("rules decode to what was encoded", () => {
  const any = fc.record(
    {
      family: fc.constantFrom<4 | 6>(4, 6),
      priority: u32,
      table: u32,
      mark: u32,
      markMask: u32,
      inputInterface: fc.constantFrom("eth0", "na-ingress"),
      outputInterface: fc.constant("gw0"),
    },
    { requiredKeys: ["family", "priority", "table"], noNullPrototype: true },
  ) as fc.Arbitrary<Rule>;
  fc.assert(
    fc.property(any, (rule) => {
      assert.deepEqual(decodeRule(encoded((out) => encodeRule(rule, out))), rule);
    }),
  );
});

test("a VXLAN link decodes to what was encoded", () => {
  const info = record({
    kind: fc.constant("vxlan" as const),
    vni: fc.integer({ min: 0, max: 0xffffff }),
    port: fc.integer({ min: 1, max: 65535 }),
    local: anyIp,
    group: anyIp,
    learning: fc.boolean(),
    proxy: fc.boolean(),
    l2miss: fc.boolean(),
    l3miss: fc.boolean(),
    udpChecksum: fc.boolean(),
    udpZeroChecksum6Tx: fc.boolean(),
    udpZeroChecksum6Rx: fc.boolean(),
    collectMetadata: fc.boolean(),
    dontFragment: fc.boolean(),
    // A new device has the kernel's.
    ttl: fc.constant(0),
    tos: fc.constant(0),
  });
  fc.assert(
    fc.property(info, ifindex, u32, anyMac, (vxlan, index, mtu, mac) => {
      const settings: LinkSettings = {
        ifindex: index,
        name: "vxlan0",
        up: true,
        mtu,
        mac,
        alias: "netagent:blue",
        master: 7,
        link: 3,
        info: vxlan,
      };
      const link = decodeLink(encoded((out) => encodeLink(settings, out)));
      const {
        ifindex: gotIndex,
        name,
        up,
        mtu: gotMtu,
        mac: gotMac,
        alias,
        master,
        link: lower,
        info: got,
      } = link;
      assert.deepEqual(
        { ifindex: gotIndex, name, up, mtu: gotMtu, mac: gotMac, alias, master, link: lower, info: got },
        settings,
      );
    }),
  );
});

test("arbitrary bytes give a value or a DecodeError", () => {
  const decoders: readonly ((bytes: Uint8Array) => unknown)[] = [
    decodeNeighbor,
    decodeFdbEntry,
    decodeAddress,
    decodeLink,
    decodeRoute,
    decodeRule,
    decodeNamespaceId,
    (bytes) => [...decodeMessages(bytes)],
    (bytes) => [...decodeAttributes(new ByteReader(bytes, "test"))],
    (bytes) =>
      decodeAck({ type: NLMSG.error, flags: NLM_F.ackAttributes, sequence: 1, portId: 0, payload: bytes }),
  ];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(...decoders), (bytes, decode) => {
      try {
        decode(bytes);
      } catch (error) {
        assert.ok(error instanceof DecodeError, String(error));
      }
    }),
    { numRuns: 2000 },
  );
});

test("a batch numbers its messages and asks for one acknowledgement", () => {
  const batch = new NetlinkBatch();
  for (const text of ["a", "bcd", "efghi"]) batch.add(28, NLM_F.create, (out) => out.text(text));
  const messages = [...decodeMessages(batch.finish(41, true))];
  assert.deepEqual(
    messages.map(({ sequence, flags, payload }) => [sequence, flags, decodeText(payload)]),
    [
      [41, NLM_F.create | NLM_F.request, "a"],
      [42, NLM_F.create | NLM_F.request, "bcd"],
      [43, NLM_F.create | NLM_F.request | NLM_F.ack, "efghi"],
    ],
  );
});

test("an extended acknowledgement gives the kernel's words, capped or not", () => {
  const text = "Unknown device type";
  for (const capped of [true, false]) {
    const payload = encoded((out) => {
      out
        .i32h(-95)
        .u32h(capped ? 40 : 38)
        .zeros(12);
      if (!capped) out.zeros(24);
      out
        .u16h(5 + text.length)
        .u16h(1)
        .text(text)
        .u8(0)
        .align(4);
    });
    const flags = NLM_F.ackAttributes | (capped ? NLM_F.capped : 0);
    const ack = decodeAck({ type: NLMSG.error, flags, sequence: 9, portId: 0, payload });
    assert.deepEqual(ack, { errno: 95, sequence: 9, text });
  }
});

test("of a repeated attribute the last stays", () => {
  const bytes = encoded((out) => out.u16h(5).u16h(1).u8(1).zeros(3).u16h(5).u16h(1).u8(2).zeros(3));
  assert.deepEqual(attributeMap(bytes).get(1), Uint8Array.of(2));
});

function encoded(encode: (out: ByteWriter) => void): Uint8Array {
  const out = new ByteWriter();
  encode(out);
  return out.finish();
}

function anyRoute(ip: fc.Arbitrary<IpAddr>, bits: number): fc.Arbitrary<Route> {
  return fc.record(
    {
      destination: record({ ip, prefixLength: fc.integer({ min: 1, max: bits }) }),
      table: u32,
      protocol: u8,
      scope: u8,
      type: u8,
      flags: u32,
      gateway: ip,
      ifindex: u32,
      source: ip,
      priority: u32,
      mtu: u32,
    },
    { requiredKeys: ["destination", "table", "protocol", "scope", "type", "flags"], noNullPrototype: true },
  ) as fc.Arbitrary<Route>;
}

/** Plain objects, as the decoders make. */
function record<T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record(model, { noNullPrototype: true }) as fc.Arbitrary<T>;
}
