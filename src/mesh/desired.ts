/** Services and their backends → what every namespace of this node should hold. */
import type { NetworkId, ServiceId } from "../base/id.ts";
import { type Cidr, parseIp } from "../base/ip.ts";
import { type Claims, type NodePort, type PortConflict, settleClaims } from "./claims.ts";
import type { FlowGroup } from "./flows.ts";
import { hostSkeleton, MASKED, OVERLAY_RANGES } from "./host-rules.ts";
import type { MeshInput, NodeFacts, Sandbox, Service } from "./input.ts";
import { entryZone, returnPath, type ReturnPath } from "./return-path.ts";
import { block, macWords, rangeBlock } from "./rows.ts";
import type { BlockGroup, Ruleset, Skeleton } from "./ruleset.ts";
import { ENTRY_MARKS, ENTRY_ZONES, sandboxSkeleton, TARGETS } from "./sandbox-rules.ts";
import {
  samePorts,
  sameService,
  sameVips,
  type ServedPort,
  serviceBlocks,
  type ServiceBlocks,
  type VipGroup,
} from "./service-blocks.ts";

export const HOST = "host";

/** What one namespace should hold. */
export interface NamespaceState {
  /** Absent: no table of ours. */
  readonly ruleset?: Ruleset;
  /** `net/ipv4/ip_forward` → `1`, set before the ruleset. An interface's own come with the interface. */
  readonly sysctls: ReadonlyMap<string, string>;
  readonly returnPath?: ReturnPath;
  /** The host's alone: flows are forwarded through its leg, which a firewall must let happen. */
  readonly forwards?: boolean;
}

export interface MeshDesired {
  /** Key `HOST`, or the path of a sandbox. */
  readonly namespaces: ReadonlyMap<string, NamespaceState>;
  readonly conflicts: readonly PortConflict[];
  /** Ports to reserve: every one published on all nodes. The same array while no service's ports changed. */
  readonly published: readonly NodePort[];
  /** What the IPv6 relay serves, per service; the same array where nothing about a service changed. */
  readonly served: readonly (readonly ServedPort[])[];
  /** Where flows may be going, per service, ascending. `flows.ts` finds those that have ended. */
  readonly flows: readonly FlowGroup[];
}

/**
 * Computes the desired state. The answer depends on the input alone; what is kept from the last time only saves
 * the work for what did not change. With 10,000 services one that changed costs a fraction of a millisecond, as
 * long as the others are the same objects in the same order.
 */
export class MeshPlanner {
  #last: ServiceList | undefined;
  #node: { readonly facts: string; readonly group: BlockGroup } | undefined;
  #masked: { readonly parts: readonly (readonly number[])[]; readonly group: BlockGroup } | undefined;
  readonly #skeletons = new Map<string, Skeleton>();
  readonly #backends = new Map<string, BackendGroup>();

  desired(input: MeshInput): MeshDesired {
    const list = updateList(this.#last, input.services);
    this.#last = list;
    const namespaces = new Map<string, NamespaceState>();
    namespaces.set(HOST, this.#host(input.node, list));
    if (input.sandboxes.length > 0) {
      const targets = targetsByService(list.blocks);
      const vips = vipsByNetwork(list.blocks);
      for (const sandbox of input.sandboxes) {
        const state = this.#sandbox(sandbox, input.node, targets, vips);
        if (state !== undefined) namespaces.set(sandbox.namespace, state);
      }
    }
    const { claims, served, flows } = list;
    const published = input.node.ingress !== undefined;
    return {
      namespaces,
      conflicts: claims.conflicts,
      published: published ? claims.published : [],
      served: published ? served : [],
      flows,
    };
  }

  #host(node: NodeFacts, list: ServiceList): NamespaceState {
    const { ingress } = node;
    const skeleton = this.#skeleton(`host ${JSON.stringify(ingress)}`, () => hostSkeleton(node));
    const sysctls = new Map<string, string>();
    if (ingress === undefined || skeleton === undefined) return { sysctls };
    sysctls.set("net/ipv4/ip_forward", "1");
    sysctls.set(`net/ipv4/conf/${ingress.interface}/route_localnet`, "1");
    const groups = [this.#nodeGroup(node), this.#maskedGroup(list.blocks)].concat(list.host);
    return { sysctls, ruleset: { skeleton, groups }, forwards: true };
  }

  #nodeGroup({ overlayRanges, keepClientAddress }: NodeFacts): BlockGroup {
    const ranges = keepClientAddress ? overlayRanges : [EVERYBODY];
    const facts = JSON.stringify(ranges);
    if (this.#node?.facts === facts) return this.#node.group;
    const group = { id: OWN_GROUP, blocks: [rangeBlock(OVERLAY_RANGES, ranges)] };
    this.#node = { facts, group };
    return group;
  }

  /** One group for all services: two may name the same backend, for rows come from other nodes. */
  #maskedGroup(blocks: readonly ServiceBlocks[]): BlockGroup {
    const parts: (readonly number[])[] = [];
    for (const { masked } of blocks) if (masked.length > 0) parts.push(masked);
    const last = this.#masked;
    if (last?.parts.length === parts.length && parts.every((part, index) => part === last.parts[index]))
      return last.group;
    const group = { id: MASKED_GROUP, blocks: [block(MASKED, parts.flat())] };
    this.#masked = { parts, group };
    return group;
  }

  #sandbox(
    sandbox: Sandbox,
    node: NodeFacts,
    targets: ReadonlyMap<ServiceId, readonly number[]>,
    vips: ReadonlyMap<NetworkId, readonly VipGroup[]>,
  ): NamespaceState | undefined {
    const groups = vipGroupsOf(sandbox, vips);
    const hasVips = groups.length > 0;
    const { ingress, defaultSource } = sandbox;
    const sourceIsLeg = defaultSource === ingress?.ip;
    const facts = [ingress?.interface, node.ingress?.subnet, sourceIsLeg ? null : defaultSource, hasVips];
    const skeleton = this.#skeleton(`sandbox ${JSON.stringify(facts)}`, () =>
      sandboxSkeleton(sandbox, node.ingress, hasVips),
    );
    if (skeleton === undefined) return undefined;
    const sysctls = new Map<string, string>();
    const own = this.#backendGroup(sandbox, node, targets);
    if (own === undefined) return { sysctls, ruleset: { skeleton, groups } };
    const { path, group } = own;
    // Strict reverse path checks know only the unmarked route; loose ones (2) look the mark's up as well.
    sysctls.set(`net/ipv4/conf/${path.interface}/rp_filter`, "2");
    sysctls.set(`net/ipv4/conf/${path.interface}/src_valid_mark`, "1");
    // Accepted sockets and kernel-made replies take the mark of what they answer: no second route lookup.
    sysctls.set("net/ipv4/tcp_fwmark_accept", "1");
    sysctls.set("net/ipv4/fwmark_reflect", "1");
    // As long as the sockets' own: longer protects nothing, and the table has a size.
    sysctls.set("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "60");
    return { sysctls, ruleset: { skeleton, groups: [group, ...groups] }, returnPath: path };
  }

  /** The way back and what may come in, for a sandbox with a leg in the ingress network. */
  #backendGroup(
    sandbox: Sandbox,
    node: NodeFacts,
    targets: ReadonlyMap<ServiceId, readonly number[]>,
  ): BackendGroup | undefined {
    const path = returnPath(sandbox, node);
    if (path === undefined || sandbox.ingress === undefined) {
      this.#backends.delete(sandbox.namespace);
      return undefined;
    }
    const { service } = sandbox.ingress;
    const open = service === undefined ? [] : (targets.get(service) ?? []);
    const facts = JSON.stringify([path, open]);
    const known = this.#backends.get(sandbox.namespace);
    if (known?.facts === facts) return known;
    const marks = path.entries.flatMap(({ mac, mark }) => [...macWords(mac), mark]);
    const zones = path.entries.flatMap(({ mac, mark }) => [...macWords(mac), entryZone(mark)]);
    const blocks = [block(ENTRY_MARKS, marks), block(ENTRY_ZONES, zones), block(TARGETS, open)];
    const made = { facts, path, group: { id: OWN_GROUP, blocks } };
    if (this.#backends.size >= BACKENDS_KEPT_MAX) this.#backends.clear();
    this.#backends.set(sandbox.namespace, made);
    return made;
  }

  #skeleton(key: string, build: () => Skeleton | undefined): Skeleton | undefined {
    const known = this.#skeletons.get(key);
    if (known !== undefined) return known;
    const skeleton = build();
    if (skeleton === undefined) return undefined;
    if (this.#skeletons.size >= SKELETONS_MAX) this.#skeletons.clear();
    this.#skeletons.set(key, skeleton);
    return skeleton;
  }
}

interface BackendGroup {
  readonly facts: string;
  readonly path: ReturnPath;
  readonly group: BlockGroup;
}

/** Bound of the cache; those of sandboxes that are gone go with it. */
const BACKENDS_KEPT_MAX = 4_096;
/** Bound of the cache: one per combination of facts, which change a few times in a node's life. */
const SKELETONS_MAX = 256;
/** Ids before those of services, which begin with a letter, a digit, `_`, `.` or `-`. */
const EVERYBODY: Cidr = { ip: parseIp("0.0.0.0"), prefixLength: 0 };
const OWN_GROUP = "";
const MASKED_GROUP = "!masked";

/** All services in order, and columns of what comes from each. */
interface ServiceList {
  /** As it was given, to find by place what is still the same object; undefined when that was not the order. */
  readonly given: readonly Service[] | undefined;
  readonly claims: Claims;
  readonly blocks: readonly ServiceBlocks[];
  readonly host: readonly BlockGroup[];
  readonly served: readonly (readonly ServedPort[])[];
  readonly flows: readonly FlowGroup[];
}

function updateList(last: ServiceList | undefined, given: readonly Service[]): ServiceList {
  if (last !== undefined) {
    if (last.given === given) return last;
    const changed = changedPlaces(last, given);
    if (changed !== undefined) return patchList(last, given, changed);
  }
  const services = sortedById(given);
  const claims = settleClaims(services);
  const before = new Map(last?.blocks.map((of) => [of.service.id, of]));
  const blocks = services.map((service) => blocksOf(service, claims, before.get(service.id)));
  return {
    given: services === given ? given : undefined,
    claims,
    blocks,
    host: blocks.map((of) => of.host),
    served: blocks.map((of) => of.served),
    flows: blocks.map((of) => of.flows),
  };
}

/** Places of services that are other objects; undefined when the ids, ports or VIPs are not the same in order. */
function changedPlaces(last: ServiceList, given: readonly Service[]): readonly number[] | undefined {
  if (last.given?.length !== given.length) return undefined;
  const changed: number[] = [];
  for (let place = 0; place < given.length; place++) {
    const before = last.given[place] as Service;
    const now = given[place] as Service;
    if (before === now) continue;
    if (before.id !== now.id || !samePorts(before.ports, now.ports) || !sameVips(before.vips, now.vips))
      return undefined;
    changed.push(place);
  }
  return changed;
}

function patchList(last: ServiceList, given: readonly Service[], changed: readonly number[]): ServiceList {
  const [blocks, host, served, flows] = [
    last.blocks.slice(),
    last.host.slice(),
    last.served.slice(),
    last.flows.slice(),
  ];
  for (const place of changed) {
    const of = blocksOf(given[place] as Service, last.claims, blocks[place]);
    blocks[place] = of;
    host[place] = of.host;
    served[place] = of.served;
    flows[place] = of.flows;
  }
  return { given, claims: last.claims, blocks, host, served, flows };
}

function blocksOf(service: Service, claims: Claims, before: ServiceBlocks | undefined): ServiceBlocks {
  const ports = claims.ports.get(service.id) ?? service.ports;
  const vips = claims.vips.get(service.id) ?? service.vips;
  const same =
    before !== undefined &&
    samePorts(before.ports, ports) &&
    sameVips(before.vips, vips) &&
    (before.service === service || sameService(before.service, service));
  return same ? before : serviceBlocks(service, ports, vips);
}

/** The same array when it ascends by id already; of two with one id the last counts. */
function sortedById(services: readonly Service[]): readonly Service[] {
  const ascends = services.every(
    (service, place) => place === 0 || (services[place - 1] as Service).id < service.id,
  );
  if (ascends) return services;
  const byId = new Map(services.map((service) => [service.id, service]));
  return [...byId.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
}

function targetsByService(blocks: readonly ServiceBlocks[]): ReadonlyMap<ServiceId, readonly number[]> {
  const targets = new Map<ServiceId, readonly number[]>();
  for (const { service, targets: rows } of blocks) if (rows.length > 0) targets.set(service.id, rows);
  return targets;
}

function vipsByNetwork(blocks: readonly ServiceBlocks[]): ReadonlyMap<NetworkId, readonly VipGroup[]> {
  const groups = new Map<NetworkId, VipGroup[]>();
  for (const of of blocks) {
    for (const vip of of.vipGroups) {
      const list = groups.get(vip.network);
      if (list === undefined) groups.set(vip.network, [vip]);
      else list.push(vip);
    }
  }
  return groups;
}

/** Ascending by id. */
function vipGroupsOf(
  sandbox: Sandbox,
  vips: ReadonlyMap<NetworkId, readonly VipGroup[]>,
): readonly BlockGroup[] {
  const [first, ...others] = new Set(sandbox.legs.map(({ network }) => network));
  if (first === undefined) return [];
  const groups = (vips.get(first) ?? []).map(({ group }) => group);
  if (others.length === 0) return groups;
  // Networks that overlap may have the same VIP: inside one namespace the first network's counts.
  const addresses = new Set(vips.get(first)?.map(({ ip }) => ip));
  for (const network of others) {
    for (const { ip, group } of vips.get(network) ?? []) {
      if (addresses.has(ip)) continue;
      addresses.add(ip);
      groups.push(group);
    }
  }
  return groups.sort((a, b) => (a.id < b.id ? -1 : 1));
}
