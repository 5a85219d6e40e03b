/** One service's share of every table: depends on that service alone, so it is computed when it changes. */
import { assert } from "../base/assert.ts";
import type { EndpointId, NetworkId } from "../base/id.ts";
import { type IpAddr, ipv4ToNumber, isIpv4 } from "../base/ip.ts";
import { BACKENDS_MAX, choiceClass, slotOwners } from "./choice.ts";
import { type NodePort } from "./claims.ts";
import type { FlowGroup, HostFlow, VipFlow } from "./flows.ts";
import { ADDRESS_PORTS, ADDRESS_SLOTS, PORTS, SLOTS } from "./host-rules.ts";
import type { Backend, PublishedPort, Service, VirtualIp } from "./input.ts";
import { pickIndex } from "./pick-chains.ts";
import { block } from "./rows.ts";
import type { BlockGroup, SetDefinition } from "./ruleset.ts";
import { VIP_SLOTS, VIPS } from "./sandbox-rules.ts";

/** A published port with at least one backend on this node: IPv4 is translated, IPv6 relayed. */
export interface ServedPort extends NodePort {
  readonly affinity: Service["affinity"];
  /** Where the relay connects to: ingress addresses and target ports. Made at each look. */
  readonly backends: readonly { readonly endpoint: EndpointId; readonly ip: IpAddr; readonly port: number }[];
}

/**
 * Of two lists, one array a service, the ports of services that are not the same array in both; undefined when the
 * ports themselves differ and not only their backends.
 */
export function changedServed(
  before: readonly (readonly ServedPort[])[],
  after: readonly (readonly ServedPort[])[],
): readonly ServedPort[] | undefined {
  if (before.length !== after.length) return undefined;
  const changed: ServedPort[] = [];
  for (let place = 0; place < after.length; place++) {
    const [old, now] = [before[place], after[place]];
    if (old === undefined || now === undefined || old === now) continue;
    const samePlaces = sameList(
      old,
      now,
      (a, b) => a.protocol === b.protocol && a.port === b.port && a.address === b.address,
    );
    if (!samePlaces) return undefined;
    changed.push(...now);
  }
  return changed;
}

export interface VipGroup {
  readonly network: NetworkId;
  readonly ip: IpAddr;
  readonly group: BlockGroup;
}

export interface ServiceBlocks {
  readonly service: Service;
  /** Those it won. */
  readonly ports: readonly PublishedPort[];
  readonly vips: readonly VirtualIp[];
  /** Host table; without blocks when it publishes nothing here. */
  readonly host: BlockGroup;
  /** Rows of the masked set: backends that must not see the client's address. */
  readonly masked: readonly number[];
  readonly vipGroups: readonly VipGroup[];
  readonly served: readonly ServedPort[];
  readonly flows: FlowGroup;
  /** Rows of the targets set of its backends. */
  readonly targets: readonly number[];
}

export const PROTOCOL_NUMBERS = { tcp: 6, udp: 17 } as const;

/** `ports` and `vips` are those of the service that no other has. */
export function serviceBlocks(
  service: Service,
  ports: readonly PublishedPort[],
  vips: readonly VirtualIp[],
): ServiceBlocks {
  const keepClient = service.keepClientAddress !== false;
  const reachable = distinctByIngressIp(service.backends);
  const usable = usableBackends(reachable);
  const words = new Map<SetDefinition, number[]>();
  const into = (set: SetDefinition): number[] => {
    let list = words.get(set);
    if (list === undefined) words.set(set, (list = []));
    return list;
  };
  // The ports of a service mostly have the same backends.
  let lastOwners: { readonly of: readonly Backend[]; readonly owners: Int16Array } | undefined;
  const ownersOf = (backends: readonly Backend[]): Int16Array => {
    if (lastOwners?.of !== backends) lastOwners = { of: backends, owners: slotOwnersOf(service, backends) };
    return lastOwners.owners;
  };
  const masked: number[] = [];
  const served: ServedPort[] = [];
  for (const port of ports) {
    const backends =
      port.mode === "ingress" ? usable : usableBackends(reachable.filter(({ local }) => local));
    // A host port is published where a backend runs and nowhere else.
    if (port.mode === "host" && backends.length === 0) continue;
    if (backends.length > 0) served.push(new ServicePort(service.affinity, port, backends));
    const { address, published } = port;
    if (address !== undefined && !isIpv4(address)) continue;
    const protocol = PROTOCOL_NUMBERS[port.protocol];
    const at = address === undefined ? undefined : ipv4ToNumber(address);
    const chosen = into(at === undefined ? PORTS : ADDRESS_PORTS);
    if (at !== undefined) chosen.push(at);
    chosen.push(protocol, published, pickIndex(backends.length, service.affinity));
    if (backends.length === 0) continue;
    const slots = into(slotMapFor(at === undefined ? SLOTS : ADDRESS_SLOTS, backends.length));
    const addresses = backends.map(({ ingressIp }) => ipv4ToNumber(ingressIp));
    const owners = ownersOf(backends);
    for (let slot = 0; slot < owners.length; slot++) {
      const owner = owners[slot] as number;
      if (owner === -1) continue;
      if (at !== undefined) slots.push(at);
      slots.push(protocol, published, slot, addresses[owner] as number, port.target);
    }
    backends.forEach(({ capable }, index) => {
      if (!keepClient || !capable) masked.push(addresses[index] ?? 0, protocol, port.target);
    });
  }
  return {
    service,
    ports,
    vips,
    host: { id: service.id, blocks: [...words].map(([set, list]) => block(set, list)) },
    masked,
    vipGroups:
      service.endpointMode === "dnsrr" ? [] : vips.map(({ network, ip }) => vipGroup(service, network, ip)),
    served,
    flows: new ServiceFlows(service, ports, reachable),
    targets: ports.flatMap(({ protocol, target }) => [PROTOCOL_NUMBERS[protocol], target]),
  };
}

/** Whether two states of one service lead to the same blocks. */
export function sameService(a: Service, b: Service): boolean {
  return (
    a.endpointMode === b.endpointMode &&
    a.affinity === b.affinity &&
    a.keepClientAddress === b.keepClientAddress &&
    samePorts(a.ports, b.ports) &&
    sameVips(a.vips, b.vips) &&
    sameList(
      a.backends,
      b.backends,
      (one, other) =>
        one.endpoint === other.endpoint &&
        one.network === other.network &&
        one.ip === other.ip &&
        one.ingressIp === other.ingressIp &&
        one.state === other.state &&
        one.capable === other.capable &&
        one.local === other.local &&
        one.avoid === other.avoid,
    )
  );
}

export function samePorts(a: readonly PublishedPort[], b: readonly PublishedPort[]): boolean {
  return sameList(
    a,
    b,
    (one, other) =>
      one.published === other.published &&
      one.target === other.target &&
      one.protocol === other.protocol &&
      one.address === other.address &&
      one.mode === other.mode,
  );
}

export function sameVips(a: readonly VirtualIp[], b: readonly VirtualIp[]): boolean {
  return sameList(a, b, (one, other) => one.ip === other.ip && one.network === other.network);
}

function sameList<T>(a: readonly T[], b: readonly T[], same: (one: T, other: T) => boolean): boolean {
  return a === b || (a.length === b.length && a.every((one, index) => same(one, b[index] as T)));
}

function vipGroup(service: Service, network: NetworkId, vip: IpAddr): VipGroup {
  const key = ipv4ToNumber(vip);
  const backends = usableBackends(service.backends.filter((backend) => backend.network === network));
  const blocks = [block(VIPS, [key, pickIndex(backends.length, service.affinity)])];
  if (backends.length > 0) {
    const addresses = backends.map(({ ip }) => ipv4ToNumber(ip));
    const slots: number[] = [];
    slotOwnersOf(service, backends).forEach((owner, slot) => {
      if (owner !== -1) slots.push(key, slot, addresses[owner] ?? 0);
    });
    blocks.push(block(slotMapFor(VIP_SLOTS, backends.length), slots));
  }
  // A sandbox on two networks of one service holds two groups of it: their ids must differ.
  return { network, ip: vip, group: { id: `${service.id}/${network}`, blocks } };
}

/** Seeded by the service alone: with affinity, all ports of a service lead a client to one backend. */
function slotOwnersOf(service: Service, backends: readonly Backend[]): Int16Array {
  return slotOwners(
    backends.map(({ endpoint }) => endpoint),
    service.id,
  );
}

/** Of one map per class, the one that a service with so many usable backends (at least one) is in. */
function slotMapFor(maps: readonly SetDefinition[], count: number): SetDefinition {
  const map = maps[choiceClass(count)];
  assert(map !== undefined, "there is a map for every class");
  return map;
}

/** Ready ones; of those the ones this node trusts; if there is none, what is left. Ascending by endpoint. */
function usableBackends<B extends Backend>(backends: readonly B[]): B[] {
  const ready = backends.filter(({ state }) => state === "ready");
  // All draining: keep using them, a refused client is worse than a late one.
  const candidates = ready.length > 0 ? ready : backends.filter(({ state }) => state === "draining");
  const trusted = candidates.filter(({ avoid }) => avoid !== true);
  const usable = trusted.length > 0 ? trusted : candidates;
  return usable.sort((a, b) => (a.endpoint < b.endpoint ? -1 : 1)).slice(0, BACKENDS_MAX);
}

/**
 * Draining backends count: their flows go on. Suspended ones for TCP, which cannot start anew elsewhere. Worked out when
 * somebody asks, which is when the service changes: for most services never.
 */
class ServiceFlows implements FlowGroup {
  readonly id: string;
  readonly #service: Service;
  readonly #ports: readonly PublishedPort[];
  readonly #reachable: readonly ReachableBackend[];

  constructor(service: Service, ports: readonly PublishedPort[], reachable: readonly ReachableBackend[]) {
    this.id = service.id;
    this.#service = service;
    this.#ports = ports;
    this.#reachable = reachable;
  }

  get host(): readonly HostFlow[] {
    return this.#reachable.flatMap((backend) =>
      this.#ports
        .filter(({ protocol }) => protocol === "tcp" || backend.state !== "suspended")
        .map(({ protocol, target }) => ({
          ...{ protocol, ip: backend.ingressIp, port: target },
          doubted: isDoubted(backend),
        })),
    );
  }

  get vip(): readonly VipFlow[] {
    return this.#service.backends.flatMap((backend): VipFlow[] => {
      const { network, ip, state } = backend;
      const tcp: VipFlow = { protocol: "tcp", network, ip, doubted: isDoubted(backend) };
      return state === "suspended" ? [tcp] : [tcp, { ...tcp, protocol: "udp" }];
    });
  }
}

function isDoubted({ state, avoid }: Backend): boolean {
  return state === "suspended" || avoid === true;
}

type ReachableBackend = Backend & { readonly ingressIp: IpAddr };

/** A task on two networks has two endpoints and one ingress leg: count it once, as the first by endpoint id. */
function distinctByIngressIp(backends: readonly Backend[]): ReachableBackend[] {
  const byAddress = new Map<IpAddr, ReachableBackend>();
  for (const backend of backends) {
    if (!isReachable(backend)) continue;
    const other = byAddress.get(backend.ingressIp);
    if (other === undefined || backend.endpoint < other.endpoint) byAddress.set(backend.ingressIp, backend);
  }
  return [...byAddress.values()];
}

function isReachable(backend: Backend): backend is ReachableBackend {
  return backend.ingressIp !== undefined;
}

/** Its list is made when a client comes over IPv6: for most ports never. */
class ServicePort implements ServedPort {
  readonly affinity: Service["affinity"];
  readonly protocol: NodePort["protocol"];
  readonly port: number;
  readonly address?: IpAddr;
  readonly #target: number;
  readonly #backends: readonly ReachableBackend[];

  constructor(
    affinity: Service["affinity"],
    { protocol, published, target, address }: PublishedPort,
    backends: readonly ReachableBackend[],
  ) {
    this.affinity = affinity;
    this.protocol = protocol;
    this.port = published;
    if (address !== undefined) this.address = address;
    this.#target = target;
    this.#backends = backends;
  }

  get backends(): ServedPort["backends"] {
    return this.#backends.map(({ endpoint, ingressIp }) => ({
      endpoint,
      ip: ingressIp,
      port: this.#target,
    }));
  }
}
