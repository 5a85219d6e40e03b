/** Whatever members write into the tables, it never touches this node's own endpoints. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { endpointId, networkId, nodeName, type EndpointId } from "../../src/base/id.ts";
import { type IpAddr, parseIp } from "../../src/base/ip.ts";
import { isMulticastMac, macFromIpv4, parseMac } from "../../src/base/mac.ts";
import { type DesiredInput, desiredOverlay, type RemotePeer } from "../../src/overlay/desired.ts";
import { planOverlay } from "../../src/overlay/plan.ts";
import { remotePeers } from "../../src/overlay/rows.ts";
import type { RowView } from "../../src/networkdb/networkdb.ts";
import { encodePeerRecord } from "../../src/wire/networkdb/records.ts";
import { BLUE } from "./blue.ts";
import { applyToModel, emptyActual } from "./model.ts";

const OWN_VTEPS = ["192.0.2.1", "198.51.100.1"].map(parseIp);
const LOCAL = ["10.0.9.5", "10.0.9.6"].map(parseIp);
const SELF = nodeName("self");
/** What each owner may call its VTEP; of others nobody knows. */
const VTEPS = new Map([
  [nodeName("good"), parseIp("192.0.2.7")],
  [nodeName("evil"), parseIp("192.0.2.66")],
]);

const anyIp = fc.oneof(
  fc.constantFrom(
    "10.0.9.0",
    "10.0.9.1",
    "10.0.9.255",
    ...LOCAL,
    "10.0.10.5",
    "0.0.0.0",
    "::",
    "2001:db8::7",
  ),
  fc.integer({ min: 2, max: 254 }).map((host) => `10.0.9.${host}`),
  fc.ipV4(),
);
const anyMac = fc.oneof(
  fc.constantFrom("02:42:0a:00:09:05", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"),
  fc.array(fc.integer({ min: 0, max: 255 }), { minLength: 6, maxLength: 6 }).map(macText),
);
const anyVtep = fc.oneof(
  fc.constantFrom(
    ...OWN_VTEPS,
    "192.0.2.7",
    "192.0.2.66",
    "0.0.0.0",
    "127.0.0.1",
    "239.1.1.1",
    "::1",
    "ff02::1",
  ),
  fc.ipV4(),
);
const anyRow: fc.Arbitrary<RemotePeer> = fc
  .record({
    endpoint: fc.oneof(fc.constantFrom("a", "b", "c"), fc.string({ minLength: 1, maxLength: 8 })),
    owner: fc.constantFrom("good", "evil", "unknown"),
    ip: anyIp,
    prefixLength: fc.oneof(fc.constant(24), fc.integer({ min: 0, max: 32 })),
    mac: anyMac,
    vtep: anyVtep,
    suspended: fc.boolean(),
    lamportTime: fc.nat(5),
  })
  .map(({ endpoint, owner, ip, mac, vtep, ...rest }) => ({
    ...rest,
    // Keys of rows are any text.
    endpoint: endpoint as EndpointId,
    owner: nodeName(owner),
    ip: parseIp(ip),
    mac: parseMac(mac),
    vtep: parseIp(vtep),
  }));

test("no row changes anything of local endpoints, leads to this node, or to where its owner is not", () => {
  const alone = desiredOverlay(input([]));
  const standing = applyToModel(emptyActual(alone), planOverlay(alone, emptyActual(alone)).steps);
  fc.assert(
    fc.property(fc.array(anyRow, { maxLength: 40 }), (peers) => {
      const desired = desiredOverlay(input(peers));
      assert.deepEqual(desired.endpoints, alone.endpoints);
      assert.deepEqual(desired.core, alone.core);
      for (const [ip, mac] of desired.neighbors) {
        assert.match(ip, /^10\.0\.9\.\d+$/);
        assert.ok(!["10.0.9.0", "10.0.9.1", "10.0.9.255", ...LOCAL].includes(ip), ip);
        assert.ok(desired.fdb.has(mac));
      }
      for (const [mac, vtep] of desired.fdb) {
        assert.ok(!isMulticastMac(mac) && mac !== "00:00:00:00:00:00", mac);
        assert.ok(!LOCAL.some((ip) => macFromIpv4(ip) === mac), mac);
        assert.ok(!OWN_VTEPS.includes(vtep), vtep);
        assert.match(vtep, /^(?!0\.|127\.)\d+\.\d+\.\d+\.\d+$/);
        assert.ok(peers.some((peer) => peer.mac === mac && peer.vtep === vtep && mayBeAt(peer.owner, vtep)));
      }
      assert.equal(desired.neighbors.size + desired.rejected.length, peers.length, "every row has its place");
      for (const { type } of planOverlay(desired, standing).steps)
        assert.ok(type === "set-fdb" || type === "set-neighbor", type);
    }),
  );
});

test("rows of any bytes are records, or none", () => {
  const record = anyRow.map(({ ip, prefixLength, mac, vtep }) =>
    encodePeerRecord({
      endpointIp: { ip, prefixLength: Math.min(prefixLength, 32) },
      endpointMac: mac,
      vtep,
    }),
  );
  const mutilated = fc.tuple(record, fc.nat(40), fc.nat(255)).map(([bytes, at, value]) => {
    const copy = bytes.slice();
    copy[at % copy.length] = value;
    return copy;
  });
  const value = fc.oneof(record, mutilated, fc.uint8Array({ maxLength: 80 }));
  fc.assert(
    fc.property(fc.array(value, { maxLength: 20 }), (values) => {
      const peers = [...remotePeers(values.map(rowView), SELF)];
      assert.ok(peers.length <= values.length);
      assert.equal(desiredOverlay(input(peers)).endpoints.size, LOCAL.length);
    }),
  );
});

test("a hundred thousand rows that all look right, and contradict each other, cost no more than the subnet has room for", () => {
  const peers = Array.from({ length: 100_000 }, (_, index): RemotePeer => {
    const ip = parseIp(`10.0.9.${2 + (index % 253)}`);
    const vtep = parseIp("192.0.2.66");
    const mac = parseMac(macText([2, 0x66, 0, index >> 16, (index >> 8) & 255, index & 255]));
    return { endpoint: endpointId(`p${index}`), owner: nodeName("evil"), ip, prefixLength: 24, mac, vtep };
  });
  const desired = desiredOverlay(input(peers));
  assert.ok(desired.neighbors.size < 254 && desired.fdb.size < 254);
  assert.equal(desired.neighbors.size + desired.rejected.length, peers.length);
});

function mayBeAt(owner: RemotePeer["owner"], vtep: IpAddr): boolean {
  const own = owner === undefined ? undefined : VTEPS.get(owner);
  return own === undefined || own === vtep;
}

function input(peers: readonly RemotePeer[]): DesiredInput {
  return {
    network: BLUE,
    linkKind: "macvlan",
    vtep: parseIp("192.0.2.1"),
    ownVteps: OWN_VTEPS,
    endpoints: LOCAL.map((ip, index) => ({
      id: endpointId(`${index}`.repeat(64)),
      network: BLUE.id,
      ip,
      prefixLength: 24,
      mac: macFromIpv4(ip),
      ifname: "eth0",
      sandbox: { type: "netns", path: `/run/netns/web${index}` },
    })),
    peers,
    mayBeAt,
  };
}

function rowView(value: Uint8Array, index: number): RowView {
  return {
    network: networkId("u1xkq0zj5t3c9w8e7r6y5t4u3"),
    table: "overlay_peer_table",
    key: `k${index}`,
    owner: nodeName("evil"),
    value,
    time: 1,
    state: "live",
    changedAt: 0 as RowView["changedAt"],
    reapAt: undefined,
  };
}

function macText(bytes: readonly number[]): string {
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}
