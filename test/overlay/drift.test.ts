import assert from "node:assert/strict";
import { test } from "node:test";
import { endpointId } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { macFromIpv4, parseMac } from "../../src/base/mac.ts";
import { desiredOverlay, type DesiredOverlay } from "../../src/overlay/desired.ts";
import { describeDrift } from "../../src/overlay/drift.ts";
import { type ActualEndpoint, type ActualOverlay, planOverlay } from "../../src/overlay/plan.ts";
import { BLUE } from "./blue.ts";
import { applyToModel, emptyActual } from "./model.ts";

const NETWORK = BLUE.id;
const REMOTE = { ip: parseIp("10.0.9.7"), mac: macFromIpv4(parseIp("10.0.9.7")) };

test("each fault is told by what was found, and by the one step that mends it", () => {
  const desired = oneEach();
  const whole = applyToModel(emptyActual(desired), planOverlay(desired, emptyActual(desired)).steps);
  const vxlan = whole.vxlan ?? assert.fail();
  const gateway = whole.gateway ?? assert.fail();
  const endpoints = (change: Partial<ActualEndpoint>): ActualOverlay => ({
    ...whole,
    endpoints: whole.endpoints.map((one) => ({ ...one, ...change })),
  });
  const elsewhere = parseIp("192.0.2.66");
  const faults: readonly (readonly [RegExp, ActualOverlay])[] = [
    [/^the FDB entry of 02:42:0a:00:09:07 was gone: set fdb/, { ...whole, fdb: new Map() }],
    [/pointed to 192\.0\.2\.66: set fdb/, { ...whole, fdb: new Map([[REMOTE.mac, elsewhere]]) }],
    [
      /^the neighbor 10\.0\.9\.7 pointed to 02:66:00:00:00:01 \(dynamic\): set neighbor 10\.0\.9\.7/,
      { ...whole, neighbors: new Map([[REMOTE.ip, { unlike: "02:66:00:00:00:01 (dynamic)" }]]) },
    ],
    [
      /a neighbor 10\.0\.9\.99 that no row has: delete/,
      { ...whole, neighbors: new Map(whole.neighbors).set(parseIp("10.0.9.99"), REMOTE.mac) },
    ],
    [/^vxlan0 was down and had MTU 1000: set vxlan/, { ...whole, vxlan: { ...vxlan, up: false, mtu: 1000 } }],
    [/^vxlan0 sent from 192\.0\.2\.66: /, { ...whole, vxlan: { ...vxlan, vtep: elsewhere } }],
    [/^vxlan0 had other settings/, { ...whole, vxlan: { ...vxlan, settingsMatch: false } }],
    [
      /^the gateway gw0 lacked 10\.0\.9\.1\/24: set gateway/,
      { ...whole, gateway: { ...gateway, addresses: [] } },
    ],
    [/^the namespace had lost its pin: pin/, { ...whole, unpinned: true }],
    [/^eth0 was down: set macvlan eth0/, endpoints({ up: false })],
    [/^eth0 had no route to its subnet: /, endpoints({ routed: false })],
    // The route goes with the address: one fault, not two.
    [/^eth0 lacked 10\.0\.9\.5\/24: /, endpoints({ routed: false, addresses: [] })],
    [/^eth0 had MAC 02:66:00:00:00:01: /, endpoints({ mac: parseMac("02:66:00:00:00:01") })],
    [/^web0 was called so instead of eth0: /, endpoints({ ifname: "web0" })],
    [/^eth0 was gone: create macvlan/, { ...whole, endpoints: [] }],
  ];
  for (const [text, actual] of faults) {
    const { steps } = planOverlay(desired, actual);
    assert.equal(steps.length, 1, String(text));
    assert.match(steps.map((step) => describeDrift(desired, actual, step).text).join(), text);
  }
});

function oneEach(): DesiredOverlay {
  return desiredOverlay({
    network: BLUE,
    linkKind: "macvlan",
    vtep: parseIp("192.0.2.1"),
    ownVteps: [parseIp("192.0.2.1")],
    endpoints: [
      {
        id: endpointId("5".padEnd(64, "e")),
        network: NETWORK,
        ip: parseIp("10.0.9.5"),
        prefixLength: 24,
        mac: macFromIpv4(parseIp("10.0.9.5")),
        ifname: "eth0",
        sandbox: { type: "netns", path: "/run/netns/1" },
      },
    ],
    peers: [
      { endpoint: endpointId("7".padEnd(64, "f")), ...REMOTE, prefixLength: 24, vtep: parseIp("192.0.2.7") },
    ],
  });
}
