import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { endpointId, networkId } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { macFromIpv4, parseMac } from "../../src/base/mac.ts";
import {
  type DesiredInput,
  desiredOverlay,
  type LocalEndpoint,
  overlayMtu,
  type PeerProblem,
  type RemotePeer,
} from "../../src/overlay/desired.ts";
import {
  endpointAlias,
  endpointOfAlias,
  namespaceName,
  networkOfNamespace,
} from "../../src/overlay/naming.ts";
import { BLUE } from "./blue.ts";

const ID = BLUE.id;

test("a network without local endpoints has nothing in the kernel", () => {
  const desired = desiredOverlay(input({ endpoints: [], peers: [row("10.0.9.7")] }));
  assert.equal(desired.core, undefined);
  assert.equal(desired.fdb.size + desired.neighbors.size, 0);
});

test("a good row becomes a neighbor and an FDB entry", () => {
  const desired = desiredOverlay(input({ peers: [row("10.0.9.7")] }));
  assert.deepEqual([...desired.neighbors], [["10.0.9.7", "02:42:0a:00:09:07"]]);
  assert.deepEqual([...desired.fdb], [["02:42:0a:00:09:07", "192.0.2.7"]]);
  assert.deepEqual(desired.rejected, []);
});

const hostile: readonly (readonly [string, PeerProblem, Partial<RemotePeer>])[] = [
  ["an address outside the subnet", "outside-subnet", { ip: parseIp("10.0.10.7") }],
  ["an IPv6 address in an IPv4 subnet", "outside-subnet", { ip: parseIp("2001:db8::7") }],
  ["another prefix length", "wrong-prefix-length", { prefixLength: 16 }],
  ["the gateway's address", "reserved-address", { ip: parseIp("10.0.9.1") }],
  ["the network address", "reserved-address", { ip: parseIp("10.0.9.0") }],
  ["the broadcast address", "reserved-address", { ip: parseIp("10.0.9.255") }],
  ["a multicast MAC", "multicast-mac", { mac: parseMac("01:00:5e:00:00:01") }],
  ["the broadcast MAC", "multicast-mac", { mac: parseMac("ff:ff:ff:ff:ff:ff") }],
  [
    "the zero MAC, which would be the default destination",
    "multicast-mac",
    { mac: parseMac("00:00:00:00:00:00") },
  ],
  ["our own VTEP", "own-vtep", { vtep: parseIp("192.0.2.1") }],
  ["our second VTEP", "own-vtep", { vtep: parseIp("198.51.100.1") }],
  ["a multicast VTEP", "bad-vtep", { vtep: parseIp("239.1.1.1") }],
  ["a loopback VTEP", "bad-vtep", { vtep: parseIp("127.0.0.1") }],
  ["the unspecified VTEP", "bad-vtep", { vtep: parseIp("0.0.0.0") }],
  ["the broadcast VTEP", "bad-vtep", { vtep: parseIp("255.255.255.255") }],
  ["a VTEP of the other family", "wrong-vtep-family", { vtep: parseIp("2001:db8::7") }],
  ["a local endpoint's address", "local-address", { ip: parseIp("10.0.9.5") }],
  ["a local endpoint's MAC", "local-mac", { mac: parseMac("02:42:0a:00:09:05") }],
];
for (const [what, problem, change] of hostile) {
  test(`a row with ${what} is left out and reported`, () => {
    const bad = { ...row("10.0.9.66"), ...change };
    const desired = desiredOverlay(input({ peers: [bad, row("10.0.9.7")] }));
    assert.deepEqual(desired.rejected, [{ peer: bad, problem }]);
    assert.deepEqual([...desired.neighbors.keys()], ["10.0.9.7"]);
  });
}

test("of two rows for one address the live one wins over a suspended, then the later one", () => {
  const old = { ...row("10.0.9.7", "a"), lamportTime: 5 };
  const late = { ...row("10.0.9.7", "b", "192.0.2.8"), lamportTime: 9 };
  const suspended = { ...row("10.0.9.7", "c", "192.0.2.9"), lamportTime: 20, suspended: true };
  fc.assert(
    fc.property(fc.shuffledSubarray([old, late, suspended], { minLength: 3 }), (peers) => {
      const desired = desiredOverlay(input({ peers }));
      assert.deepEqual([...desired.fdb.values()], ["192.0.2.8"]);
      assert.equal(desired.rejected.length, 2);
      assert.ok(desired.rejected.every(({ problem }) => problem === "duplicate-address"));
    }),
  );
});

test("of two living claims a netagent's wins, and a MAC belongs to the address it is made of", () => {
  const netagent = { ...row("10.0.9.7", "a"), assured: true, lamportTime: 5 };
  const other = { ...row("10.0.9.7", "b", "192.0.2.8"), lamportTime: 9 };
  const thief = { ...row("10.0.9.9", "c", "192.0.2.9"), mac: netagent.mac, assured: true, lamportTime: 20 };
  fc.assert(
    fc.property(fc.shuffledSubarray([netagent, other, thief], { minLength: 3 }), (peers) => {
      const desired = desiredOverlay(input({ peers }));
      assert.deepEqual([...desired.fdb], [[netagent.mac, netagent.vtep]]);
      assert.deepEqual([...desired.neighbors.keys()], [netagent.ip]);
    }),
  );
});

test("several addresses may share a MAC behind one VTEP, but not behind two", () => {
  const mac = parseMac("02:42:0a:00:09:07");
  const shared = [row("10.0.9.7"), { ...row("10.0.9.8"), mac }];
  assert.equal(desiredOverlay(input({ peers: shared })).neighbors.size, 2);
  const torn = [
    { ...row("10.0.9.7"), lamportTime: 3 },
    { ...row("10.0.9.8", "z", "192.0.2.8"), mac },
  ];
  const desired = desiredOverlay(input({ peers: torn }));
  assert.deepEqual([...desired.neighbors.keys()], ["10.0.9.7"]);
  assert.deepEqual(
    desired.rejected.map(({ problem }) => problem),
    ["duplicate-mac"],
  );
});

test("any order of rows gives the same entries", () => {
  const anyRow = fc
    .record({
      host: fc.integer({ min: 2, max: 12 }),
      macHost: fc.integer({ min: 2, max: 12 }),
      id: fc.constantFrom("a", "b", "c", "d"),
      vtep: fc.constantFrom("192.0.2.7", "192.0.2.8", "192.0.2.1"),
      lamportTime: fc.integer({ min: 0, max: 3 }),
      suspended: fc.boolean(),
    })
    .map(({ host, macHost, id, vtep, lamportTime, suspended }) => ({
      ...row(`10.0.9.${host}`, `${id}${host}`, vtep),
      mac: macFromIpv4(parseIp(`10.0.9.${macHost}`)),
      lamportTime,
      suspended,
    }));
  fc.assert(
    fc.property(
      fc
        .uniqueArray(anyRow, { selector: ({ endpoint }) => endpoint, maxLength: 12 })
        .chain((rows) => fc.tuple(fc.constant(rows), fc.shuffledSubarray(rows, { minLength: rows.length }))),
      ([rows, shuffled]) => {
        const one = desiredOverlay(input({ peers: rows }));
        const other = desiredOverlay(input({ peers: shuffled }));
        assert.deepEqual(new Map([...one.fdb].sort()), new Map([...other.fdb].sort()));
        assert.deepEqual(new Map([...one.neighbors].sort()), new Map([...other.neighbors].sort()));
        for (const mac of one.neighbors.values()) assert.ok(one.fdb.has(mac));
      },
    ),
  );
});

test("a hundred thousand hostile rows change nothing about local endpoints", () => {
  const peers = Array.from({ length: 100_000 }, (_, index) => ({
    ...row(`10.${index & 255}.${(index >> 8) & 255}.5`, `${index}`),
    mac: parseMac("02:42:0a:00:09:05"),
  }));
  const desired = desiredOverlay(input({ peers }));
  assert.equal(desired.rejected.length, 100_000);
  assert.equal(desired.endpoints.size, 1);
  assert.equal(desired.fdb.size, 0);
});

test("the MTU leaves room for the outer headers of the underlay's family", () => {
  assert.equal(overlayMtu(1500, parseIp("192.0.2.1")), 1450);
  assert.equal(overlayMtu(1500, parseIp("2001:db8::1")), 1430);
  assert.equal(overlayMtu(9000, parseIp("192.0.2.1")), 8950);
});

test("names are found back, and only ours", () => {
  assert.equal(networkOfNamespace(namespaceName(ID)), ID);
  assert.equal(networkOfNamespace("web"), undefined);
  assert.equal(networkOfNamespace("ov-../../etc"), undefined);
  const endpoint = endpointId("5".repeat(64));
  assert.equal(endpointOfAlias(ID, endpointAlias(ID, endpoint)), endpoint);
  assert.equal(endpointOfAlias(networkId("other"), endpointAlias(ID, endpoint)), undefined);
  assert.equal(endpointOfAlias(ID, "uplink"), undefined);
});

function input(parts: { endpoints?: readonly LocalEndpoint[]; peers: Iterable<RemotePeer> }): DesiredInput {
  return {
    network: BLUE,
    linkKind: "macvlan",
    vtep: parseIp("192.0.2.1"),
    ownVteps: [parseIp("192.0.2.1"), parseIp("198.51.100.1")],
    endpoints: parts.endpoints ?? [
      {
        id: endpointId("5".repeat(64)),
        network: ID,
        ip: parseIp("10.0.9.5"),
        prefixLength: 24,
        mac: parseMac("02:42:0a:00:09:05"),
        ifname: "eth0",
        sandbox: { type: "netns", path: "/run/netns/web" },
      },
    ],
    peers: parts.peers,
  };
}

function row(ip: string, id = ip, vtep = "192.0.2.7"): RemotePeer {
  const address = parseIp(ip);
  const mac = macFromIpv4(address);
  return { endpoint: endpointId(id), ip: address, prefixLength: 24, mac, vtep: parseIp(vtep) };
}
