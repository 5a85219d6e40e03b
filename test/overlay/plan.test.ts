import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { endpointId, vni } from "../../src/base/id.ts";
import { type IpAddr, parseCidr, parseIp } from "../../src/base/ip.ts";
import { type MacAddr, macFromIpv4 } from "../../src/base/mac.ts";
import {
  type DesiredOverlay,
  desiredOverlay,
  type LinkKind,
  type LocalEndpoint,
  type RemotePeer,
} from "../../src/overlay/desired.ts";
import { finish } from "../../src/base/sliced.ts";
import { separateDrift } from "../../src/overlay/drift.ts";
import { type ActualOverlay, formatStep, planOverlay } from "../../src/overlay/plan.ts";
import { BLUE } from "./blue.ts";
import { applyToModel, emptyActual, withSandboxes } from "./model.ts";

const ID = BLUE.id;

test("applying a plan to nothing gives what is desired, and the next plan is empty", () => {
  fc.assert(
    fc.property(anyDesired, (desired) => {
      const done = converge(desired, emptyActual(desired));
      assert.deepEqual(done.fdb, desired.fdb);
      assert.deepEqual(done.neighbors, desired.neighbors);
      assert.equal(done.namespace, desired.core !== undefined);
    }),
  );
});

test("a plan leads from any desired state to any other, with nothing left to do", () => {
  fc.assert(
    fc.property(anyDesired, anyDesired, (before, after) => {
      converge(after, withSandboxes(after, converge(before, emptyActual(before))));
    }),
  );
});

test("whatever another hand changed is repaired", () => {
  fc.assert(
    fc.property(anyDesired, anyDamage, (desired, damage) => {
      const healthy = converge(desired, emptyActual(desired));
      converge(desired, damage(healthy));
    }),
  );
});

test("what another hand did is told from what our own changes ask for", () => {
  fc.assert(
    fc.property(anyDesired, anyDamage, (desired, damage) => {
      const actual = damage(converge(desired, emptyActual(desired)));
      const { steps } = planOverlay(desired, actual);
      assert.deepEqual(finish(separateDrift(desired, actual, steps)), { drift: steps, ours: [] });
    }),
  );
  fc.assert(
    fc.property(anyDesired, anyDesired, (before, after) => {
      const actual = withSandboxes(after, converge(before, emptyActual(before)));
      const { steps } = planOverlay(after, actual);
      const { drift, ours } = finish(separateDrift(before, withSandboxes(before, actual), steps));
      assert.deepEqual([drift, ours], [[], steps]);
    }),
  );
});

test("sets precede deletes, and a path precedes the answer that leads to it", () => {
  fc.assert(
    fc.property(anyDesired, anyDesired, (before, after) => {
      const actual = withSandboxes(after, converge(before, emptyActual(before)));
      const kinds = planOverlay(after, actual).steps.map((step) => step.type);
      const last = (type: string): number => kinds.lastIndexOf(type as (typeof kinds)[number]);
      const first = (type: string): number => {
        const at = kinds.indexOf(type as (typeof kinds)[number]);
        return at < 0 ? Infinity : at;
      };
      assert.ok(last("set-fdb") < first("delete-fdb"));
      assert.ok(last("set-neighbor") < first("delete-neighbor"));
      assert.ok(last("set-fdb") < first("set-neighbor"));
      assert.ok(last("delete-neighbor") < first("delete-fdb"));
    }),
  );
});

test("an endpoint whose sandbox is gone is reported, not tried", () => {
  const desired = desiredWith({ endpoints: [local(5, 1)] });
  const missing = new Map([[local(5, 1).id, "missing"]] as const);
  const plan = planOverlay(desired, { ...emptyActual(desired), sandboxes: missing });
  assert.deepEqual(
    plan.blocked.map(({ reason, endpoint }) => [endpoint.id, reason]),
    [[local(5, 1).id, "sandbox-missing"]],
  );
  assert.ok(!plan.steps.some((step) => step.type === "create-endpoint"));
});

test("an endpoint that moved to another sandbox is removed there before it is made here", () => {
  const before = desiredWith({ endpoints: [local(5, 1)] });
  const after = desiredWith({ endpoints: [local(5, 2)] });
  const plan = planOverlay(after, withSandboxes(after, converge(before, emptyActual(before))));
  assert.deepEqual(
    plan.steps.map((step) => step.type),
    ["delete-endpoint", "create-endpoint"],
  );
});

test("an address that another hand added beside ours stays, in place of ours it goes", () => {
  const desired = desiredWith({ endpoints: [local(5, 1)] });
  const healthy = converge(desired, emptyActual(desired));
  const [endpoint] = healthy.endpoints;
  assert.ok(endpoint !== undefined);
  const other = parseCidr("10.0.9.77/24");
  const beside = { ...endpoint, addresses: [...endpoint.addresses, other] };
  assert.deepEqual(planOverlay(desired, { ...healthy, endpoints: [beside] }).steps, []);
  const inPlace = { ...endpoint, addresses: [other] };
  const [step] = planOverlay(desired, { ...healthy, endpoints: [inPlace] }).steps;
  assert.ok(step?.type === "set-endpoint");
  assert.deepEqual(step.remove, [other]);
});

test("a step prints as one line that says what and where", () => {
  const desired = desiredWith({ endpoints: [local(5, 1)], peers: [peer(7, "192.0.2.7")] });
  const lines = planOverlay(desired, emptyActual(desired)).steps.map((step) => formatStep(ID, step));
  assert.deepEqual(lines, [
    `create namespace ov-${ID}`,
    `set sysctl net.bridge.bridge-nf-call-iptables = 0 in ov-${ID}`,
    `set sysctl net.bridge.bridge-nf-call-ip6tables = 0 in ov-${ID}`,
    `set sysctl net.bridge.bridge-nf-call-arptables = 0 in ov-${ID}`,
    `create vxlan vxlan0 vni 4097 port 4789 local 192.0.2.1 mtu 1450 in ov-${ID}`,
    `create gateway gw0 10.0.9.1/24 in ov-${ID}`,
    "create macvlan eth0 10.0.9.5/24 02:42:0a:00:09:05 mtu 1450 in /run/netns/1 for endpoint 5eeeeeeeeeee",
    `set fdb 02:42:0a:00:09:07 → 192.0.2.7 on ov-${ID}`,
    `set neighbor 10.0.9.7 → 02:42:0a:00:09:07 on ov-${ID}`,
  ]);
});

/** Plans and applies once, and checks that a second plan is empty. */
function converge(desired: DesiredOverlay, actual: ActualOverlay): ActualOverlay {
  const done = applyToModel(actual, planOverlay(desired, actual).steps);
  assert.deepEqual(planOverlay(desired, done).steps, []);
  return done;
}

function ipOf(host: number): IpAddr {
  return parseIp(`10.0.9.${host}`);
}

function local(host: number, sandbox: number, ifname = "eth0"): LocalEndpoint {
  return {
    id: endpointId(`${host}`.padEnd(64, "e")),
    network: ID,
    ip: ipOf(host),
    prefixLength: 24,
    mac: macFromIpv4(ipOf(host)),
    ifname,
    sandbox: sandbox === 0 ? { type: "host" } : { type: "netns", path: `/run/netns/${sandbox}` },
  };
}

function peer(host: number, vtep: string): RemotePeer {
  return {
    endpoint: endpointId(`${host}`.padEnd(64, "f")),
    ip: ipOf(host),
    prefixLength: 24,
    mac: macFromIpv4(ipOf(host)),
    vtep: parseIp(vtep),
  };
}

function desiredWith(parts: {
  readonly endpoints: readonly LocalEndpoint[];
  readonly peers?: readonly RemotePeer[];
  readonly linkKind?: LinkKind;
  readonly vni?: number;
  readonly mtu?: number;
  readonly vtep?: string;
}): DesiredOverlay {
  const vtep = parseIp(parts.vtep ?? "192.0.2.1");
  return desiredOverlay({
    network: { ...BLUE, vni: vni(parts.vni ?? BLUE.vni), mtu: parts.mtu ?? BLUE.mtu },
    linkKind: parts.linkKind ?? "macvlan",
    vtep,
    ownVteps: [vtep],
    endpoints: parts.endpoints,
    peers: parts.peers ?? [],
  });
}

/** Local endpoints are hosts 2–9, each in a sandbox of its own or moved; remote ones 10–30. */
const anyDesired = fc
  .record({
    endpoints: fc
      .uniqueArray(fc.record({ host: fc.integer({ min: 2, max: 9 }), moved: fc.boolean() }), {
        selector: ({ host }) => host,
        maxLength: 4,
      })
      .map((list) => list.map(({ host, moved }) => local(host, moved ? host + 10 : host))),
    peers: fc.array(
      fc
        .record({ host: fc.integer({ min: 10, max: 30 }), vtep: fc.constantFrom("192.0.2.7", "192.0.2.8") })
        .map(({ host, vtep }) => peer(host, vtep)),
      { maxLength: 12 },
    ),
    linkKind: fc.constantFrom<LinkKind>("macvlan", "veth"),
    vni: fc.constantFrom(4097, 4098),
    mtu: fc.constantFrom(1450, 1400),
    vtep: fc.constantFrom("192.0.2.1", "192.0.2.2"),
  })
  .map(desiredWith);

/** One or more things that another hand may do. */
const anyDamage = fc
  .array(
    fc.constantFrom<(actual: ActualOverlay) => ActualOverlay>(
      (actual) => ({ ...actual, fdb: new Map() }),
      (actual) => ({
        ...actual,
        neighbors: new Map([...actual.neighbors.keys()].map((ip) => [ip, { unlike: "nothing" }])),
      }),
      (actual) => ({
        ...actual,
        fdb: new Map(actual.fdb).set("00:00:00:00:00:00" as MacAddr, parseIp("192.0.2.66")),
      }),
      (actual) => ({ ...actual, endpoints: actual.endpoints.slice(1) }),
      (actual) => ({ ...actual, endpoints: actual.endpoints.map((e) => ({ ...e, up: false, mtu: 1280 })) }),
      (actual) => ({ ...actual, endpoints: actual.endpoints.map((e) => ({ ...e, ifname: "renamed" })) }),
      (actual) => ({ ...actual, endpoints: actual.endpoints.map((e) => ({ ...e, addresses: [] })) }),
      (actual) => ({ ...actual, endpoints: actual.endpoints.map((e) => ({ ...e, routed: false })) }),
      (actual) => ({ ...actual, unpinned: true }),
      (actual) => ({
        ...actual,
        wrongSysctls: actual.namespace ? ["net.bridge.bridge-nf-call-iptables"] : [],
      }),
      ({ vxlan, ...rest }) => ({ ...rest, vxlan: vxlan && { ...vxlan, up: false } }),
      ({ vxlan, ...rest }) => ({ ...rest, vxlan: vxlan && { ...vxlan, flagsMatch: false } }),
      ({ gateway, ...rest }) => ({
        ...rest,
        gateway: gateway && { ...gateway, addresses: [parseCidr("10.0.9.99/24")] },
      }),
    ),
    { minLength: 1, maxLength: 4 },
  )
  .map(
    (changes) => (actual: ActualOverlay) =>
      actual.namespace ? changes.reduce((state, change) => change(state), actual) : actual,
  );
