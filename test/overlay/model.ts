/** A kernel that does exactly what the steps say, and objects to steps that a real one would refuse. */
import assert from "node:assert/strict";
import { unreachable } from "../../src/base/assert.ts";
import { formatCidr } from "../../src/base/ip.ts";
import type { DesiredEndpoint, DesiredOverlay } from "../../src/overlay/desired.ts";
import {
  type ActualEndpoint,
  type ActualOverlay,
  NAMESPACE_SYSCTLS,
  type OverlayStep,
} from "../../src/overlay/plan.ts";

/** The netns id a sandbox would get: in the model, its path tells. */
export function sandboxId(endpoint: Pick<DesiredEndpoint, "sandbox">): number {
  return endpoint.sandbox.type === "host" ? 0 : Number(endpoint.sandbox.path.replaceAll(/\D/g, ""));
}

/** Nothing of the network is there; every sandbox is. */
export function emptyActual(desired: DesiredOverlay): ActualOverlay {
  return withSandboxes(desired, {
    network: desired.network,
    namespace: false,
    wrongSysctls: [],
    vxlan: undefined,
    gateway: undefined,
    endpoints: [],
    sandboxes: new Map(),
    neighbors: new Map(),
    fdb: new Map(),
  });
}

/** What a read for `desired` says of its sandboxes, in the state `actual`. */
export function withSandboxes(desired: DesiredOverlay, actual: ActualOverlay): ActualOverlay {
  const sandboxes = new Map([...desired.endpoints.values()].map((e) => [e.id, sandboxId(e)] as const));
  return { ...actual, sandboxes };
}

export function applyToModel(actual: ActualOverlay, steps: readonly OverlayStep[]): ActualOverlay {
  return steps.reduce(applyStep, actual);
}

function applyStep(actual: ActualOverlay, step: OverlayStep): ActualOverlay {
  if (step.type !== "create-namespace") assert.ok(actual.namespace, `${step.type} without a namespace`);
  switch (step.type) {
    case "create-namespace":
      assert.ok(!actual.namespace, "namespace is there");
      return { ...actual, namespace: true, wrongSysctls: [...NAMESPACE_SYSCTLS.keys()] };
    case "pin-namespace":
      assert.ok(actual.unpinned, "the pin is there");
      return { ...actual, unpinned: false };
    case "set-sysctl":
      return { ...actual, wrongSysctls: actual.wrongSysctls.filter((name) => name !== step.name) };
    case "create-vxlan":
      assert.equal(actual.vxlan, undefined, "vxlan is there");
      return setVxlan({ ...actual, neighbors: new Map(), fdb: new Map() }, step);
    case "set-vxlan": {
      assert.equal(actual.vxlan?.vni, step.core.vni);
      assert.equal(actual.vxlan?.dataPathPort, step.core.dataPathPort);
      return setVxlan(actual, step);
    }
    case "create-gateway":
      assert.equal(actual.gateway, undefined, "gateway is there");
      if (step.core.linkKind === "macvlan") assertMacvlanPossible(actual);
      return setGateway(actual, step);
    case "set-gateway":
      assert.notEqual(actual.gateway, undefined);
      return setGateway(actual, step);
    case "create-endpoint": {
      const { endpoint, core } = step;
      if (core.linkKind === "macvlan") assertMacvlanPossible(actual);
      else assert.equal(actual.gateway?.linkKind, "veth", "veth without a bridge");
      const clash = actual.endpoints.find(
        (other) =>
          other.id === endpoint.id ||
          (other.sandbox === sandboxId(endpoint) && other.ifname === endpoint.ifname),
      );
      assert.equal(clash, undefined, "endpoint or its interface name is there");
      return { ...actual, endpoints: [...actual.endpoints, asDesired(endpoint, core.mtu, core.linkKind)] };
    }
    case "set-endpoint": {
      const { endpoint, core } = step;
      const at = actual.endpoints.findIndex((e) => e.id === endpoint.id && e.sandbox === sandboxId(endpoint));
      const found = actual.endpoints[at];
      assert.ok(found !== undefined && found.ifname === step.ifname, "set-endpoint of none");
      const removed = new Set(step.remove.map(formatCidr));
      const kept = found.addresses.filter(
        (address) =>
          !removed.has(formatCidr(address)) && formatCidr(address) !== formatCidr(endpoint.address),
      );
      const changed = asDesired(endpoint, core.mtu, core.linkKind);
      return {
        ...actual,
        endpoints: actual.endpoints.with(at, { ...changed, addresses: [endpoint.address, ...kept] }),
      };
    }
    case "set-fdb":
      assert.notEqual(actual.vxlan, undefined, "fdb without vxlan");
      return { ...actual, fdb: new Map(actual.fdb).set(step.mac, step.vtep) };
    case "set-neighbor":
      assert.notEqual(actual.vxlan, undefined, "neighbor without vxlan");
      return { ...actual, neighbors: new Map(actual.neighbors).set(step.ip, step.mac) };
    case "delete-neighbor":
      return { ...actual, neighbors: without(actual.neighbors, step.ip) };
    case "delete-fdb":
      return { ...actual, fdb: without(actual.fdb, step.mac) };
    case "delete-endpoint": {
      const rest = actual.endpoints.filter((e) => !(e.id === step.id && e.sandbox === step.sandbox));
      assert.equal(rest.length, actual.endpoints.length - 1, "delete-endpoint of none");
      return { ...actual, endpoints: rest };
    }
    case "delete-gateway":
      assert.equal(actual.gateway?.linkKind, step.linkKind);
      return { ...actual, gateway: undefined };
    case "delete-vxlan":
      assert.notEqual(actual.vxlan, undefined, "delete-vxlan of none");
      return {
        ...actual,
        vxlan: undefined,
        gateway: actual.gateway?.linkKind === "macvlan" ? undefined : actual.gateway,
        endpoints: actual.endpoints.filter((endpoint) => endpoint.linkKind !== "macvlan"),
        neighbors: new Map(),
        fdb: new Map(),
      };
    case "delete-namespace":
      assert.equal(actual.vxlan, undefined, "the namespace still has its vxlan");
      assert.deepEqual(actual.endpoints, [], "the namespace still has endpoints");
      return { ...actual, namespace: false, gateway: undefined, wrongSysctls: [] };
    default:
      return unreachable(step);
  }
}

function assertMacvlanPossible(actual: ActualOverlay): void {
  assert.notEqual(actual.vxlan, undefined, "macvlan without vxlan");
  assert.equal(actual.vxlan?.onBridge, false, "macvlan on a bridge port");
}

function setVxlan(
  actual: ActualOverlay,
  { core }: Extract<OverlayStep, { readonly type: "create-vxlan" | "set-vxlan" }>,
): ActualOverlay {
  const onBridge = core.linkKind === "veth";
  if (onBridge) {
    assert.equal(actual.gateway?.linkKind, "veth", "port of a bridge that is not there");
    assert.ok(!actual.endpoints.some((e) => e.linkKind === "macvlan"), "bridge port with macvlan children");
  }
  const { vni, dataPathPort, vtep, mtu } = core;
  return {
    ...actual,
    vxlan: {
      vni,
      dataPathPort,
      vtep,
      ipv6: vtep.includes(":"),
      flagsMatch: true,
      settingsMatch: true,
      mtu,
      up: true,
      onBridge,
    },
  };
}

function setGateway(
  actual: ActualOverlay,
  { core }: Extract<OverlayStep, { readonly type: "create-gateway" | "set-gateway" }>,
): ActualOverlay {
  const { linkKind, mtu, gateway } = core;
  return { ...actual, gateway: { linkKind, mtu, up: true, settingsMatch: true, addresses: [gateway] } };
}

function asDesired(
  endpoint: DesiredEndpoint,
  mtu: number,
  linkKind: ActualEndpoint["linkKind"],
): ActualEndpoint {
  const { id, ifname, mac, address } = endpoint;
  const sandbox = sandboxId(endpoint);
  return {
    id,
    sandbox,
    ifname,
    linkKind,
    mac,
    mtu,
    up: true,
    attached: true,
    addresses: [address],
    routed: true,
  };
}

function without<K, V>(map: ReadonlyMap<K, V>, key: K): ReadonlyMap<K, V> {
  const copy = new Map(map);
  assert.ok(copy.delete(key), `delete of ${String(key)}, which is not there`);
  return copy;
}
