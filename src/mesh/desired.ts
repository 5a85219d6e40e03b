/** Services and their backends → what every namespace of this node should hold. */
import {
  ipToBytes,
  type IpAddr,
  ipv4ToNumber,
  isIpv4,
  lastAddress,
  subnetOf,
  type Cidr,
} from "../base/ip.ts";
import type { EndpointId, NetworkId, ServiceId } from "../base/id.ts";
import { macToBytes, type MacAddr } from "../base/mac.ts";
import { BACKENDS_MAX, ownedSlots } from "./choice.ts";
import {
  ADDRESS_PORTS,
  ADDRESS_SLOTS,
  hostSkeleton,
  MASKED,
  OVERLAY_RANGES,
  PORTS,
  SLOTS,
  VTEPS,
  VTEPS6,
} from "./host-rules.ts";
import type {
  Backend,
  MeshInput,
  MeshProtocol,
  NodeFacts,
  PublishedPort,
  Sandbox,
  Service,
  VirtualIp,
} from "./input.ts";
import type { FlowGroup, HostFlow } from "./flows.ts";
import { pickIndex } from "./pick-chains.ts";
import { entryMark, returnPath, type ReturnPath } from "./return-path.ts";
import {
  type Block,
  type BlockGroup,
  compareKeys,
  rowLength,
  type Ruleset,
  type SetDefinition,
  type Skeleton,
  sortRows,
} from "./ruleset.ts";
import { ENTRY_MARKS, sandboxSkeleton, TARGETS, VIP_SLOTS, VIPS } from "./sandbox-rules.ts";

export const HOST = "host";

/** What one namespace should hold. */
export interface NamespaceState {
  /** Absent: no table of ours. */
  readonly ruleset?: Ruleset;
  /** `net/ipv4/ip_forward` → `1`, set before the ruleset. An interface's own come with the interface. */
  readonly sysctls: ReadonlyMap<string, string>;
  readonly returnPath?: ReturnPath;
}

/** A port two services publish: `winner` has it. Merged definitions of two sides of a partition may do that. */
export interface PortConflict {
  readonly protocol: MeshProtocol;
  readonly port: number;
  readonly address?: IpAddr;
  readonly winner: ServiceId;
  readonly loser: ServiceId;
}

/** A port that is served on this node now: by translation for IPv4, by the relay for IPv6. */
export interface ServedPort {
  readonly protocol: MeshProtocol;
  readonly port: number;
  readonly address?: IpAddr;
}

export interface MeshDesired {
  /** Key `HOST`, or the path of a sandbox. */
  readonly namespaces: ReadonlyMap<string, NamespaceState>;
  readonly conflicts: readonly PortConflict[];
  /** Ports with at least one backend, of which the IPv6 relay serves those without address or with an IPv6 one. */
  readonly served: readonly ServedPort[];
  /** Where flows may be going, per service; ascending by service. `flows.ts` finds those that have ended. */
  readonly flows: readonly FlowGroup[];
}

/**
 * Computes the desired state. Keeps the last result only to skip the work for what did not change: the answer
 * depends on the input alone.
 */
export class MeshPlanner {
  #services = new Map<ServiceId, ServiceBlocks>();
  /** The last sorted list, to find the unchanged objects by comparing places. */
  #order: readonly Service[] = [];
  #skeletons = new Map<string, Skeleton>();
  #nodeGroup: { readonly facts: string; readonly group: BlockGroup } | undefined;
  #claims: Claims | undefined;

  desired(input: MeshInput): MeshDesired {
    const services = sortedById(input.services);
    const claims = this.#claim(services);
    const blocks = this.#blocks(services, claims, input.node.keepClientAddress);
    const namespaces = new Map<string, NamespaceState>();
    namespaces.set(HOST, this.#host(input.node, blocks));
    const targets = targetsByAddress(blocks);
    const vips = vipGroups(blocks);
    for (const sandbox of input.sandboxes) {
      const state = this.#sandbox(sandbox, input.node, targets, vips);
      if (state !== undefined) namespaces.set(sandbox.namespace, state);
    }
    const served = input.node.ingress === undefined ? [] : blocks.flatMap((of) => of.served);
    return { namespaces, conflicts: claims.conflicts, served, flows: blocks.map((of) => of.flows) };
  }

  /** Who has which port and VIP; asked again only when some service's are others. */
  #claim(services: readonly Service[]): Claims {
    const last = this.#claims;
    const same =
      last !== undefined &&
      services.length === this.#order.length &&
      services.every((service, index) => {
        const before = this.#order[index];
        return (
          before === service ||
          (before !== undefined &&
            before.id === service.id &&
            samePorts(before.ports, service.ports) &&
            sameVips(before.vips, service.vips))
        );
      });
    if (same && last !== undefined) return last;
    const claims = claimPorts(services);
    this.#claims = claims;
    return claims;
  }

  #blocks(services: readonly Service[], claims: Claims, keep: boolean): ServiceBlocks[] {
    const previous = this.#services;
    const blocks: ServiceBlocks[] = [];
    const changed: ServiceBlocks[] = [];
    for (const service of services) {
      const before = previous.get(service.id);
      const ports = claims.ports.get(service.id) ?? service.ports;
      const vips = claims.vips.get(service.id) ?? service.vips;
      if (
        before !== undefined &&
        before.keep === keep &&
        (before.ports === ports || samePorts(before.ports, ports)) &&
        (before.vips === vips || sameVips(before.vips, vips)) &&
        (before.service === service || sameService(before.service, service))
      ) {
        blocks.push(before);
        continue;
      }
      const made = serviceBlocks(service, ports, vips, keep);
      blocks.push(made);
      changed.push(made);
    }
    for (const of of changed) previous.set(of.service.id, of);
    // Ids that are gone make the map larger than the list.
    if (previous.size !== blocks.length) this.#services = new Map(blocks.map((of) => [of.service.id, of]));
    this.#order = services;
    return blocks;
  }

  #host(node: NodeFacts, blocks: readonly ServiceBlocks[]): NamespaceState {
    const skeleton = this.#skeleton(
      `host ${JSON.stringify([node.ingress, node.underlay?.dataPathPort, node.keepClientAddress])}`,
      () => hostSkeleton(node),
    );
    const sysctls = new Map<string, string>();
    if (node.ingress !== undefined) {
      sysctls.set("net/ipv4/ip_forward", "1");
      sysctls.set(`net/ipv4/conf/${node.ingress.interface}/route_localnet`, "1");
    }
    if (skeleton === undefined) return { sysctls };
    const groups: BlockGroup[] = [this.#nodeBlocks(node)];
    if (node.ingress !== undefined) for (const of of blocks) if (of.host !== undefined) groups.push(of.host);
    return { sysctls, ruleset: { skeleton, groups } };
  }

  #nodeBlocks(node: NodeFacts): BlockGroup {
    const facts = JSON.stringify([
      node.ingress !== undefined,
      node.overlayRanges,
      node.underlay === undefined ? null : node.underlay.vteps,
    ]);
    if (this.#nodeGroup?.facts === facts) return this.#nodeGroup.group;
    const blocks: Block[] = [];
    if (node.ingress !== undefined) blocks.push(rangeBlock(OVERLAY_RANGES, node.overlayRanges));
    if (node.underlay !== undefined) {
      const { vteps } = node.underlay;
      blocks.push(
        block(
          VTEPS,
          vteps.filter(isIpv4).map((ip) => [ipv4ToNumber(ip)]),
        ),
        block(VTEPS6, vteps.filter((ip) => !isIpv4(ip)).map(ipv6Words)),
      );
    }
    const group = { id: "", blocks };
    this.#nodeGroup = { facts, group };
    return group;
  }

  #sandbox(
    sandbox: Sandbox,
    node: NodeFacts,
    targets: ReadonlyMap<IpAddr, readonly (readonly number[])[]>,
    vips: ReadonlyMap<NetworkId, readonly BlockGroup[]>,
  ): NamespaceState | undefined {
    const groups: BlockGroup[] = [];
    const networks = new Set(sandbox.legs.map(({ network }) => network));
    for (const network of networks) for (const group of vips.get(network) ?? []) groups.push(group);
    const hasVips = groups.length > 0;
    const facts = [sandbox.ingress?.interface, node.ingress?.subnet, sandbox.defaultSource, hasVips];
    const own = sandbox.ingress?.ip === sandbox.defaultSource;
    const skeleton = this.#skeleton(`sandbox ${JSON.stringify([facts, own])}`, () =>
      sandboxSkeleton(sandbox, node.ingress, hasVips),
    );
    if (skeleton === undefined) return undefined;
    const sysctls = new Map<string, string>();
    const path = returnPath(sandbox, node);
    if (path !== undefined && sandbox.ingress !== undefined) {
      const marks = path.entries.map((entry) => [
        ...macWords(entry.mac),
        entryMark({ ip: entry.gateway, mac: entry.mac }),
      ]);
      groups.push({
        id: "",
        blocks: [block(ENTRY_MARKS, marks), block(TARGETS, targets.get(sandbox.ingress.ip) ?? [])],
      });
      // Strict reverse path checks know only the unmarked route; loose ones (2) look the mark's up as well.
      sysctls.set(`net/ipv4/conf/${path.interface}/rp_filter`, "2");
      sysctls.set(`net/ipv4/conf/${path.interface}/src_valid_mark`, "1");
      // Accepted sockets and kernel-made replies take the mark of what they answer: no second route lookup.
      sysctls.set("net/ipv4/tcp_fwmark_accept", "1");
      sysctls.set("net/ipv4/fwmark_reflect", "1");
    }
    // One network's groups are in order already, except for the sandbox's own.
    groups.sort((a, b) => (a.id < b.id ? -1 : 1));
    return { sysctls, ruleset: { skeleton, groups }, ...(path === undefined ? {} : { returnPath: path }) };
  }

  #skeleton(key: string, build: () => Skeleton | undefined): Skeleton | undefined {
    const known = this.#skeletons.get(key);
    if (known !== undefined) return known;
    const skeleton = build();
    if (skeleton === undefined) return undefined;
    // One per combination of facts; they change a few times in a node's life.
    if (this.#skeletons.size >= SKELETONS_MAX) this.#skeletons.clear();
    this.#skeletons.set(key, skeleton);
    return skeleton;
  }
}

/** Bound of the cache: sandboxes with distinct facts beyond it are built again. */
const SKELETONS_MAX = 256;

/** A service's share of every table. */
interface ServiceBlocks {
  readonly service: Service;
  /** Those it won. */
  readonly ports: readonly PublishedPort[];
  readonly vips: readonly VirtualIp[];
  readonly keep: boolean;
  /** Host table; undefined when it publishes nothing here. */
  readonly host: BlockGroup | undefined;
  readonly vipGroups: readonly { readonly network: NetworkId; readonly group: BlockGroup }[];
  readonly flows: FlowGroup;
  readonly served: readonly ServedPort[];
  /** Target ports by the ingress address of a local backend. */
  readonly targets: readonly { readonly ip: IpAddr; readonly row: readonly number[] }[];
}

const PROTOCOL_NUMBERS = { tcp: 6, udp: 17 } as const;

function serviceBlocks(
  service: Service,
  ports: readonly PublishedPort[],
  vips: readonly VirtualIp[],
  keep: boolean,
): ServiceBlocks {
  const keepClient = keep && service.keepClientAddress !== false;
  const reachable = distinctByIngressIp(service.backends);
  const usable = usableBackends(reachable);
  const rows = new Map<SetDefinition, number[][]>(
    [PORTS, ADDRESS_PORTS, SLOTS, ADDRESS_SLOTS, MASKED].map((set) => [set, []]),
  );
  const served: ServedPort[] = [];
  for (const port of ports) {
    const backends =
      port.mode === "ingress" ? usable : usableBackends(reachable.filter(({ local }) => local));
    // A host port is published where a backend runs and nowhere else.
    if (port.mode === "host" && backends.length === 0) continue;
    if (port.address !== undefined && !isIpv4(port.address)) {
      if (backends.length > 0) served.push(servedPort(port));
      continue;
    }
    const protocol = PROTOCOL_NUMBERS[port.protocol];
    const key =
      port.address === undefined
        ? [protocol, port.published]
        : [ipv4ToNumber(port.address), protocol, port.published];
    const [verdicts, slots] = port.address === undefined ? [PORTS, SLOTS] : [ADDRESS_PORTS, ADDRESS_SLOTS];
    rows.get(verdicts)?.push([...key, pickIndex(backends.length, service.affinity)]);
    if (backends.length === 0) continue;
    served.push(servedPort(port));
    const names = backends.map(({ endpoint }) => endpoint);
    for (const { slot, owner } of ownedSlots(names, service.id)) {
      const backend = backends[owner];
      if (backend !== undefined)
        rows.get(slots)?.push([...key, slot, ipv4ToNumber(backend.ingressIp), port.target]);
    }
    // Draining backends too: their established flows are already translated, but new ones may still come.
    for (const backend of backends) {
      if (!keepClient || !backend.capable)
        rows.get(MASKED)?.push([ipv4ToNumber(backend.ingressIp), protocol, port.target]);
    }
  }
  const blocks = [...rows].filter(([, of]) => of.length > 0).map(([set, of]) => block(set, of));
  const targets = reachable
    .filter(({ local }) => local)
    .flatMap(({ ingressIp }) =>
      ports.map((port) => ({ ip: ingressIp, row: [PROTOCOL_NUMBERS[port.protocol], port.target] })),
    );
  return {
    service,
    ports,
    vips,
    keep,
    host: blocks.length === 0 ? undefined : { id: service.id, blocks },
    vipGroups:
      service.endpointMode === "dnsrr" ? [] : vips.map((vip) => vipBlocks(service, vip.network, vip.ip)),
    flows: flowGroup(service, ports, reachable),
    served,
    targets,
  };
}

function vipBlocks(
  service: Service,
  network: NetworkId,
  vip: IpAddr,
): { readonly network: NetworkId; readonly group: BlockGroup } {
  const key = ipv4ToNumber(vip);
  const backends = usableBackends(service.backends.filter((backend) => backend.network === network));
  const slots = ownedSlots(
    backends.map(({ endpoint }) => endpoint),
    service.id,
  );
  const blocks = [block(VIPS, [[key, pickIndex(backends.length, service.affinity)]])];
  if (backends.length > 0) {
    const rows = slots.map(({ slot, owner }) => [key, slot, ipv4ToNumber(backends[owner]?.ip ?? vip)]);
    blocks.push(block(VIP_SLOTS, rows));
  }
  // A sandbox on two networks of one service holds two groups of it: their ids must differ.
  return { network, group: { id: `${service.id}/${network}`, blocks } };
}

/** Ready ones; of those the ones this node trusts; if there is none, what is left. Ascending by endpoint. */
function usableBackends<B extends Backend>(backends: readonly B[]): B[] {
  const ready = backends.filter(({ state }) => state === "ready");
  // All draining: keep using them, a refused client is worse than a late one.
  const candidates = ready.length > 0 ? ready : [...backends];
  const trusted = candidates.filter(({ avoid }) => avoid !== true);
  const usable = trusted.length > 0 ? trusted : candidates;
  return usable.sort((a, b) => (a.endpoint < b.endpoint ? -1 : 1)).slice(0, BACKENDS_MAX);
}

/** Draining backends count: their flows go on. */
function flowGroup(
  service: Service,
  ports: readonly PublishedPort[],
  reachable: readonly ReachableBackend[],
): FlowGroup {
  const host: HostFlow[] = [];
  for (const { ingressIp } of reachable)
    for (const { protocol, target } of ports) host.push({ protocol, ip: ingressIp, port: target });
  return { id: service.id, host, vip: service.backends.map(({ network, ip }) => ({ network, ip })) };
}

type ReachableBackend = Backend & { readonly ingressIp: IpAddr };

/** A task on two networks has two endpoints and one ingress leg: count it once. */
function distinctByIngressIp(backends: readonly Backend[]): ReachableBackend[] {
  const byAddress = new Map<IpAddr, ReachableBackend>();
  for (const backend of backends) {
    const { ingressIp } = backend;
    if (ingressIp === undefined) continue;
    const other = byAddress.get(ingressIp);
    if (other === undefined || isFirst(backend.endpoint, other.endpoint))
      byAddress.set(ingressIp, { ...backend, ingressIp });
  }
  return [...byAddress.values()];
}

function isFirst(a: EndpointId, b: EndpointId): boolean {
  return a < b;
}

function servedPort(port: PublishedPort): ServedPort {
  const { protocol, published, address } = port;
  return { protocol, port: published, ...(address === undefined ? {} : { address }) };
}

interface Claims {
  /** What a service really has, for those that lost some. */
  readonly ports: ReadonlyMap<ServiceId, readonly PublishedPort[]>;
  readonly vips: ReadonlyMap<ServiceId, readonly VirtualIp[]>;
  readonly conflicts: readonly PortConflict[];
}

/** The first service by id has a port; every node decides alike. */
function claimPorts(services: readonly Service[]): Claims {
  const owners = new Map<string, ServiceId>();
  const ports = new Map<ServiceId, readonly PublishedPort[]>();
  const vips = new Map<ServiceId, readonly VirtualIp[]>();
  const conflicts: PortConflict[] = [];
  for (const service of services) {
    const kept = service.ports.filter((port) => {
      const key = `${port.protocol} ${port.published} ${port.address ?? ""}`;
      const winner = owners.get(key);
      if (winner === undefined) {
        owners.set(key, service.id);
        return true;
      }
      if (winner !== service.id) conflicts.push({ ...servedPort(port), winner, loser: service.id });
      return false;
    });
    if (kept.length !== service.ports.length) ports.set(service.id, kept);
    const keptVips = service.vips.filter(({ network, ip }) => {
      const key = `${network} ${ip}`;
      if (owners.has(key)) return false;
      owners.set(key, service.id);
      return true;
    });
    if (keptVips.length !== service.vips.length) vips.set(service.id, keptVips);
  }
  return { ports, vips, conflicts };
}

function targetsByAddress(
  blocks: readonly ServiceBlocks[],
): ReadonlyMap<IpAddr, readonly (readonly number[])[]> {
  const targets = new Map<IpAddr, (readonly number[])[]>();
  for (const of of blocks) {
    for (const { ip, row } of of.targets) {
      const rows = targets.get(ip);
      if (rows === undefined) targets.set(ip, [row]);
      else rows.push(row);
    }
  }
  return targets;
}

function vipGroups(blocks: readonly ServiceBlocks[]): ReadonlyMap<NetworkId, readonly BlockGroup[]> {
  const groups = new Map<NetworkId, BlockGroup[]>();
  for (const of of blocks) {
    for (const { network, group } of of.vipGroups) {
      const list = groups.get(network);
      if (list === undefined) groups.set(network, [group]);
      else list.push(group);
    }
  }
  return groups;
}

/** Rows sorted by key; of a key given twice the last counts. */
function block(set: SetDefinition, rows: readonly (readonly number[])[]): Block {
  const { key, total } = rowLength(set);
  const packed = new Uint32Array(rows.length * total);
  rows.forEach((row, index) => packed.set(row, index * total));
  const sorted = sortRows(set, packed);
  let kept = 0;
  for (let at = 0; at < sorted.length; at += total) {
    if (kept > 0 && compareKeys(sorted, kept - total, sorted, at, key) === 0) kept -= total;
    sorted.copyWithin(kept, at, at + total);
    kept += total;
  }
  return { set: set.name, rows: sorted.slice(0, kept) };
}

/** Ranges merged where they touch or overlap: an interval set takes none that do. */
function rangeBlock(set: SetDefinition, ranges: readonly Cidr[]): Block {
  const bounds = ranges
    .filter(({ ip }) => isIpv4(ip))
    .map((range) => ({ first: ipv4ToNumber(subnetOf(range).ip), last: ipv4ToNumber(lastAddress(range)) }))
    .sort((a, b) => a.first - b.first);
  const merged: { first: number; last: number }[] = [];
  for (const { first, last } of bounds) {
    const before = merged.at(-1);
    if (before !== undefined && first <= before.last + 1) before.last = Math.max(before.last, last);
    else merged.push({ first, last });
  }
  return block(
    set,
    merged.map(({ first, last }) => [first, last]),
  );
}

function ipv6Words(ip: IpAddr): number[] {
  const view = new DataView(ipToBytes(ip).buffer);
  return [0, 4, 8, 12].map((at) => view.getUint32(at));
}

function macWords(mac: MacAddr): number[] {
  const view = new DataView(macToBytes(mac).buffer);
  return [view.getUint32(0), view.getUint16(4)];
}

function sortedById(services: readonly Service[]): readonly Service[] {
  for (let i = 1; i < services.length; i++) {
    if ((services[i - 1] as Service).id >= (services[i] as Service).id) {
      const byId = new Map(services.map((service) => [service.id, service]));
      return [...byId.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
    }
  }
  return services;
}

function samePorts(a: readonly PublishedPort[], b: readonly PublishedPort[]): boolean {
  return (
    a.length === b.length &&
    a.every((port, index) => {
      const other = b[index];
      return (
        other !== undefined &&
        port.published === other.published &&
        port.target === other.target &&
        port.protocol === other.protocol &&
        port.address === other.address &&
        port.mode === other.mode
      );
    })
  );
}

function sameVips(a: readonly VirtualIp[], b: readonly VirtualIp[]): boolean {
  return (
    a.length === b.length &&
    a.every((vip, index) => vip.ip === b[index]?.ip && vip.network === b[index]?.network)
  );
}

function sameService(a: Service, b: Service): boolean {
  return (
    a.endpointMode === b.endpointMode &&
    a.affinity === b.affinity &&
    a.keepClientAddress === b.keepClientAddress &&
    samePorts(a.ports, b.ports) &&
    sameVips(a.vips, b.vips) &&
    a.backends.length === b.backends.length &&
    a.backends.every((backend, index) => {
      const other = b.backends[index];
      return (
        other !== undefined &&
        backend.endpoint === other.endpoint &&
        backend.network === other.network &&
        backend.ip === other.ip &&
        backend.ingressIp === other.ingressIp &&
        backend.state === other.state &&
        backend.capable === other.capable &&
        backend.local === other.local &&
        backend.avoid === other.avoid
      );
    })
  );
}
