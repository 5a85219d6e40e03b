/**
 * The steps from what is there to what should be: pure, ordered, idempotent.
 *
 * Order: namespace, VXLAN device, gateway, endpoints, FDB, neighbors; sets before deletes, so that a peer that
 * moved keeps a path throughout, and FDB before neighbors, so that no ARP answer comes before its path. One
 * exception: what must be made anew under the same name or MAC is deleted first.
 */
import { assert, unreachable } from "../base/assert.ts";
import type { EndpointId, NetworkId } from "../base/id.ts";
import { type Cidr, formatCidr, type IpAddr, subnetContains } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import { finish, SLICE_ROWS, type Sliced } from "../base/sliced.ts";
import type { DesiredCore, DesiredEndpoint, DesiredOverlay, LinkKind, Sandbox } from "./desired.ts";
import { BRIDGE_LINK, GATEWAY_LINK, namespaceName, VXLAN_LINK } from "./naming.ts";

/** The VXLAN device as found. */
export interface ActualVxlan {
  readonly vni: number;
  readonly dataPathPort: number;
  /** Source address of outer packets; undefined when the kernel chooses. */
  readonly vtep: IpAddr | undefined;
  /** Of the underlay, from the device's group or local address. */
  readonly ipv6: boolean;
  /** Proxy, checksum flags and default destination are as `create-vxlan` makes them, which nothing else can do. */
  readonly flagsMatch: boolean;
  /** Mark, learning, TTL and the like are as `set-vxlan` makes them. */
  readonly settingsMatch: boolean;
  readonly mtu: number;
  readonly up: boolean;
  /** Enslaved to the bridge (veth layout). */
  readonly onBridge: boolean;
}

/** The device with the gateway address as found: the macvlan child or the bridge. */
export interface ActualGateway {
  readonly linkKind: LinkKind;
  readonly mtu: number;
  readonly up: boolean;
  /** Mark, MAC and mode are as `set-gateway` makes them. */
  readonly settingsMatch: boolean;
  readonly addresses: readonly Cidr[];
}

/** An interface in some sandbox that carries this network's mark. */
export interface ActualEndpoint {
  readonly id: EndpointId;
  /** The sandbox, as the network's namespace numbers its neighbors (netns id). */
  readonly sandbox: number;
  readonly ifname: string;
  readonly linkKind: LinkKind;
  readonly mac: MacAddr;
  readonly mtu: number;
  readonly up: boolean;
  /**
   * The alias is written, superframes are limited as the dataplane wants it and, for veth, the other end is up on the
   * bridge with its static entry.
   */
  readonly attached: boolean;
  readonly addresses: readonly Cidr[];
  /** The way to the subnet leads through it: the route that came with the address is still there. */
  readonly routed: boolean;
}

export interface ActualOverlay {
  readonly network: NetworkId;
  /** The pin exists and is a namespace. Without it everything below is empty. */
  readonly namespace: boolean;
  /** Another hand took the pin away from the namespace we still hold; it can be put back. */
  readonly unpinned?: boolean;
  /** Sysctls inside that differ from `NAMESPACE_SYSCTLS`. */
  readonly wrongSysctls: readonly string[];
  readonly vxlan: ActualVxlan | undefined;
  readonly gateway: ActualGateway | undefined;
  /** In no particular order; an endpoint that moved may be there twice. */
  readonly endpoints: readonly ActualEndpoint[];
  /**
   * For each desired endpoint its sandbox's netns id: `unknown` when the namespace never saw that sandbox
   * (nothing of ours can be in it), `missing` when nothing is at its path.
   */
  readonly sandboxes: ReadonlyMap<EndpointId, number | "unknown" | "missing">;
  /** On the VXLAN device. */
  readonly neighbors: ReadonlyMap<IpAddr, FoundEntry<MacAddr>>;
  readonly fdb: ReadonlyMap<MacAddr, FoundEntry<IpAddr>>;
}

/** What an entry leads to, or what is in the place of one of ours. */
export type FoundEntry<To extends string> = To | UnlikeEntry;

/** Not as we write entries (not permanent, other flags, several destinations): what it is, for people. */
export interface UnlikeEntry {
  readonly unlike: string;
}

/**
 * Set in every network's namespace. Frames on a bridge do not visit iptables: it costs 10 % of latency and
 * 16–18 % of packet rate (traps.md T2), and a bridge between endpoints has no use for it.
 */
export const NAMESPACE_SYSCTLS: ReadonlyMap<string, string> = new Map([
  ["net.bridge.bridge-nf-call-iptables", "0"],
  ["net.bridge.bridge-nf-call-ip6tables", "0"],
  ["net.bridge.bridge-nf-call-arptables", "0"],
]);

export type OverlayStep =
  | { readonly type: "create-namespace" }
  /** Puts the pin back: whoever looks for the namespace by its path finds it again. */
  | { readonly type: "pin-namespace" }
  | { readonly type: "set-sysctl"; readonly name: string; readonly value: string }
  | { readonly type: "create-vxlan"; readonly core: DesiredCore }
  | { readonly type: "set-vxlan"; readonly core: DesiredCore }
  | { readonly type: "create-gateway"; readonly core: DesiredCore }
  | {
      readonly type: "set-gateway";
      readonly core: DesiredCore;
      /** Addresses that do not belong there. */
      readonly remove: readonly Cidr[];
    }
  | { readonly type: "create-endpoint"; readonly endpoint: DesiredEndpoint; readonly core: DesiredCore }
  | {
      readonly type: "set-endpoint";
      readonly endpoint: DesiredEndpoint;
      readonly core: DesiredCore;
      /** The name it has now. */
      readonly ifname: string;
      readonly remove: readonly Cidr[];
    }
  | { readonly type: "set-fdb"; readonly mac: MacAddr; readonly vtep: IpAddr }
  | { readonly type: "set-neighbor"; readonly ip: IpAddr; readonly mac: MacAddr }
  | { readonly type: "delete-neighbor"; readonly ip: IpAddr }
  | { readonly type: "delete-fdb"; readonly mac: MacAddr }
  | {
      readonly type: "delete-endpoint";
      readonly id: EndpointId;
      readonly sandbox: number;
      readonly ifname: string;
    }
  | { readonly type: "delete-gateway"; readonly linkKind: LinkKind }
  | { readonly type: "delete-vxlan" }
  | { readonly type: "delete-namespace" };

/** A desired endpoint that cannot be made now; not an error of the kernel's and not retried in haste. */
export interface BlockedEndpoint {
  readonly endpoint: DesiredEndpoint;
  readonly reason: "sandbox-missing";
}

export interface OverlayPlan {
  readonly steps: readonly OverlayStep[];
  readonly blocked: readonly BlockedEndpoint[];
}

export function planOverlay(desired: DesiredOverlay, actual: ActualOverlay): OverlayPlan {
  return finish(derivePlan(desired, actual));
}

/** The same a slice at a time. What changes in `actual` meanwhile is seen or not; the next plan sees it. */
export function* derivePlan(desired: DesiredOverlay, actual: ActualOverlay): Sliced<OverlayPlan> {
  assert(desired.network === actual.network, "desired and actual are of one network");
  if (desired.core === undefined) {
    return { steps: actual.namespace ? planRemoval(actual) : [], blocked: [] };
  }
  const steps: OverlayStep[] = [];
  const { core } = desired;
  if (!actual.namespace) steps.push({ type: "create-namespace" });
  else if (actual.unpinned === true) steps.push({ type: "pin-namespace" });
  const sysctls = actual.namespace ? actual.wrongSysctls : NAMESPACE_SYSCTLS.keys();
  for (const name of sysctls)
    steps.push({ type: "set-sysctl", name, value: NAMESPACE_SYSCTLS.get(name) ?? "" });

  // What must be made anew goes first. With the VXLAN device go its macvlan children, neighbors and FDB.
  const rebuild = actual.vxlan !== undefined && mustRebuild(core, actual.vxlan);
  const vxlan = rebuild ? undefined : actual.vxlan;
  const survives = (linkKind: LinkKind): boolean =>
    linkKind === core.linkKind && !(linkKind === "macvlan" && vxlan === undefined);
  const gateway =
    actual.gateway !== undefined && survives(actual.gateway.linkKind) ? actual.gateway : undefined;
  const present = actual.endpoints.filter((endpoint) => survives(endpoint.linkKind));
  for (const endpoint of actual.endpoints) {
    if (!survives(endpoint.linkKind)) steps.push(deleteEndpoint(endpoint));
  }
  if (actual.gateway !== undefined && gateway === undefined)
    steps.push({ type: "delete-gateway", linkKind: actual.gateway.linkKind });
  if (rebuild) steps.push({ type: "delete-vxlan" });

  // A macvlan child needs its VXLAN device; a VXLAN device needs the bridge it is a port of.
  if (core.linkKind === "veth") planGateway(core, gateway, steps);
  if (vxlan === undefined) steps.push({ type: "create-vxlan", core });
  else if (!vxlanMatches(core, vxlan)) steps.push({ type: "set-vxlan", core });
  if (core.linkKind === "macvlan") planGateway(core, gateway, steps);

  const blocked = planEndpoints(desired, core, actual, present, steps);
  yield* planForwarding(desired, vxlan === undefined ? NO_ENTRIES : actual, steps);
  for (const endpoint of present) {
    if (!desired.endpoints.has(endpoint.id)) steps.push(deleteEndpoint(endpoint));
  }
  return { steps, blocked };
}

const NO_ENTRIES: Pick<ActualOverlay, "neighbors" | "fdb"> = { neighbors: new Map(), fdb: new Map() };

/** The part that is big: FDB and neighbors of the VXLAN device. */
function* planForwarding(
  desired: Pick<DesiredOverlay, "neighbors" | "fdb">,
  actual: Pick<ActualOverlay, "neighbors" | "fdb">,
  steps: OverlayStep[],
): Sliced<void> {
  let rows = 0;
  for (const [mac, vtep] of desired.fdb) {
    if (++rows % SLICE_ROWS === 0) yield;
    if (actual.fdb.get(mac) !== vtep) steps.push({ type: "set-fdb", mac, vtep });
  }
  for (const [ip, mac] of desired.neighbors) {
    if (++rows % SLICE_ROWS === 0) yield;
    if (actual.neighbors.get(ip) !== mac) steps.push({ type: "set-neighbor", ip, mac });
  }
  for (const ip of actual.neighbors.keys()) {
    if (++rows % SLICE_ROWS === 0) yield;
    if (!desired.neighbors.has(ip)) steps.push({ type: "delete-neighbor", ip });
  }
  for (const mac of actual.fdb.keys()) {
    if (++rows % SLICE_ROWS === 0) yield;
    if (!desired.fdb.has(mac)) steps.push({ type: "delete-fdb", mac });
  }
}

/** Everything of ours: endpoints first, while the namespace still knows their sandboxes. */
function planRemoval(actual: ActualOverlay): OverlayStep[] {
  const steps: OverlayStep[] = actual.endpoints.map(deleteEndpoint);
  // Unpinning alone would leave the device alive as long as anything still refers to the namespace.
  if (actual.gateway !== undefined) steps.push({ type: "delete-gateway", linkKind: actual.gateway.linkKind });
  if (actual.vxlan !== undefined) steps.push({ type: "delete-vxlan" });
  steps.push({ type: "delete-namespace" });
  return steps;
}

/** What cannot be changed on a living device. */
function mustRebuild(core: DesiredCore, vxlan: ActualVxlan): boolean {
  return (
    vxlan.vni !== core.vni ||
    vxlan.dataPathPort !== core.dataPathPort ||
    vxlan.ipv6 !== core.vtep.includes(":") ||
    !vxlan.flagsMatch
  );
}

function vxlanMatches(core: DesiredCore, vxlan: ActualVxlan): boolean {
  return (
    vxlan.mtu === core.mtu &&
    vxlan.settingsMatch &&
    vxlan.up &&
    vxlan.vtep === core.vtep &&
    vxlan.onBridge === (core.linkKind === "veth")
  );
}

function planGateway(core: DesiredCore, actual: ActualGateway | undefined, steps: OverlayStep[]): void {
  if (actual === undefined) {
    steps.push({ type: "create-gateway", core });
    return;
  }
  const wanted = formatCidr(core.gateway);
  const remove = actual.addresses.filter((address) => formatCidr(address) !== wanted);
  const isWell = actual.settingsMatch && actual.mtu === core.mtu && actual.up;
  if (remove.length > 0 || actual.addresses.length === 0 || !isWell)
    steps.push({ type: "set-gateway", core, remove });
}

function planEndpoints(
  desired: DesiredOverlay,
  core: DesiredCore,
  actual: ActualOverlay,
  present: readonly ActualEndpoint[],
  steps: OverlayStep[],
): BlockedEndpoint[] {
  const blocked: BlockedEndpoint[] = [];
  const found = new Map<EndpointId, ActualEndpoint[]>();
  for (const endpoint of present) {
    const list = found.get(endpoint.id);
    if (list === undefined) found.set(endpoint.id, [endpoint]);
    else list.push(endpoint);
  }
  for (const endpoint of desired.endpoints.values()) {
    const sandbox = actual.sandboxes.get(endpoint.id) ?? "unknown";
    if (sandbox === "missing") {
      // Its path is gone, but processes may live on in it: what they have stays until the endpoint is detached.
      blocked.push({ endpoint, reason: "sandbox-missing" });
      continue;
    }
    let kept: ActualEndpoint | undefined;
    for (const candidate of found.get(endpoint.id) ?? []) {
      if (kept === undefined && candidate.sandbox === sandbox) kept = candidate;
      // Before the new one is made: two interfaces cannot share a MAC on one VXLAN device.
      else steps.push(deleteEndpoint(candidate));
    }
    if (kept === undefined) steps.push({ type: "create-endpoint", endpoint, core });
    else planEndpoint(endpoint, core, kept, steps);
  }
  return blocked;
}

function planEndpoint(
  endpoint: DesiredEndpoint,
  core: DesiredCore,
  actual: ActualEndpoint,
  steps: OverlayStep[],
): void {
  const wanted = formatCidr(endpoint.address);
  const hasAddress = actual.addresses.some((address) => formatCidr(address) === wanted);
  // An address of the subnet beside ours may be the container's own business; in place of ours it is drift.
  const remove = hasAddress
    ? []
    : actual.addresses.filter((address) => subnetContains(core.gateway, address.ip));
  const matches =
    hasAddress &&
    actual.attached &&
    actual.up &&
    actual.routed &&
    actual.ifname === endpoint.ifname &&
    actual.mac === endpoint.mac &&
    actual.mtu === core.mtu;
  if (!matches) steps.push({ type: "set-endpoint", endpoint, core, ifname: actual.ifname, remove });
}

function deleteEndpoint(endpoint: ActualEndpoint): OverlayStep {
  return { type: "delete-endpoint", id: endpoint.id, sandbox: endpoint.sandbox, ifname: endpoint.ifname };
}

/** One line: `set fdb 02:42:0a:00:00:05 → 192.0.2.7 on ov-u1x…`. `network` names where. */
export function formatStep(network: NetworkId, step: OverlayStep): string {
  const where = namespaceName(network);
  switch (step.type) {
    case "create-namespace":
      return `create namespace ${where}`;
    case "pin-namespace":
      return `pin namespace ${where}`;
    case "set-sysctl":
      return `set sysctl ${step.name} = ${step.value} in ${where}`;
    case "create-vxlan":
    case "set-vxlan": {
      const { vni, dataPathPort, vtep, mtu } = step.core;
      const verb = step.type === "create-vxlan" ? "create" : "set";
      return `${verb} vxlan ${VXLAN_LINK} vni ${vni} port ${dataPathPort} local ${vtep} mtu ${mtu} in ${where}`;
    }
    case "create-gateway":
    case "set-gateway": {
      const verb = step.type === "create-gateway" ? "create" : "set";
      const link = gatewayLink(step.core.linkKind);
      return `${verb} gateway ${link} ${formatCidr(step.core.gateway)}${removing(step)} in ${where}`;
    }
    case "create-endpoint":
    case "set-endpoint": {
      const { id, ifname, address, mac, sandbox } = step.endpoint;
      const verb = step.type === "create-endpoint" ? "create" : "set";
      const line = `${verb} ${step.core.linkKind} ${ifname} ${formatCidr(address)} ${mac} mtu ${step.core.mtu}`;
      return `${line}${removing(step)} in ${formatSandbox(sandbox)} for endpoint ${id.slice(0, 12)}`;
    }
    case "set-fdb":
      return `set fdb ${step.mac} → ${step.vtep} on ${where}`;
    case "set-neighbor":
      return `set neighbor ${step.ip} → ${step.mac} on ${where}`;
    case "delete-neighbor":
      return `delete neighbor ${step.ip} on ${where}`;
    case "delete-fdb":
      return `delete fdb ${step.mac} on ${where}`;
    case "delete-endpoint":
      return `delete ${step.ifname} of endpoint ${step.id.slice(0, 12)} on ${where}`;
    case "delete-gateway":
      return `delete gateway ${gatewayLink(step.linkKind)} in ${where}`;
    case "delete-vxlan":
      return `delete vxlan ${VXLAN_LINK} in ${where}`;
    case "delete-namespace":
      return `delete namespace ${where}`;
    default:
      return unreachable(step);
  }
}

/** Which device carries the gateway address. */
export function gatewayLink(linkKind: LinkKind): string {
  return linkKind === "macvlan" ? GATEWAY_LINK : BRIDGE_LINK;
}

export function formatSandbox(sandbox: Sandbox): string {
  return sandbox.type === "host" ? "the host" : sandbox.path;
}

function removing(step: OverlayStep): string {
  if (!("remove" in step) || step.remove.length === 0) return "";
  return ` not ${step.remove.map(formatCidr).join(" ")}`;
}
