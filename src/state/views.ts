import { ipv4FromNumber, type IpAddr } from "../base/ip.ts";
import type { NetworkId, NodeId } from "../base/id.ts";
import type { Network, Service } from "../wire/state/definition.ts";
import type { AddressSpace } from "./address-space.ts";
import type { Conflict } from "./conflicts.ts";
import type { AddressHolder } from "./request.ts";

/** What `State` shows to the agent and its commands. */
export interface NetworkView extends Network {
  readonly conflicts: readonly Conflict[];
  /** Must not exist in any kernel: its VNI belongs to another network. */
  readonly disabled: boolean;
}

export interface ServiceView extends Service {
  readonly conflicts: readonly Conflict[];
}

/** Who owns how much of a network, as far as this node knows. */
export interface RingUse {
  readonly network: NetworkId;
  /** Addresses endpoints and VIPs can have in all. */
  readonly size: number;
  /** Of them free; those of other nodes by their own last count. */
  readonly free: number;
  readonly owners: readonly {
    readonly node: NodeId;
    readonly name: string;
    readonly size: number;
    readonly free: number;
    readonly alive: boolean;
  }[];
}

/** An address this node has given away. */
export interface Allocation {
  readonly network: NetworkId;
  readonly address: IpAddr;
  readonly holder: AddressHolder;
}

export function networkViews(networks: readonly Network[], conflicts: readonly Conflict[]): NetworkView[] {
  const byNetwork = groupBy(conflicts, (conflict) =>
    conflict.type === "network-name" || conflict.type === "vni" || conflict.type === "subnet"
      ? conflict.network
      : undefined,
  );
  return networks.map((network) => {
    const own = byNetwork.get(network.id) ?? [];
    return { ...network, conflicts: own, disabled: own.some(({ type }) => type === "vni") };
  });
}

export function serviceViews(services: readonly Service[], conflicts: readonly Conflict[]): ServiceView[] {
  const byService = groupBy(conflicts, (conflict) => ("service" in conflict ? conflict.service : undefined));
  return services.map((service) => ({ ...service, conflicts: byService.get(service.id) ?? [] }));
}

export function ringUse(
  space: AddressSpace,
  self: NodeId,
  nameOf: (node: NodeId) => string,
  isAlive: (node: NodeId) => boolean,
): RingUse | undefined {
  if (space.ring === undefined) return undefined;
  const owners = new Map<NodeId, { size: number; free: number }>();
  for (const range of space.ring.ranges()) {
    const { owner } = range.entry;
    const sum = owners.get(owner) ?? { size: 0, free: 0 };
    sum.size += range.end - range.first;
    sum.free += owner === self ? space.freeIn(range) : range.entry.free;
    owners.set(owner, sum);
  }
  const list = [...owners].map(([node, sum]) => ({ node, name: nameOf(node), ...sum, alive: isAlive(node) }));
  return {
    network: space.network.id,
    // The gateway is in one of the ranges, and never given.
    size: space.range.end - space.range.first - 1,
    free: list.reduce((sum, owner) => sum + owner.free, 0),
    owners: list,
  };
}

export function allocationsOf(space: AddressSpace): Allocation[] {
  return [...space.allocations()].map(({ address, holder }) => ({
    network: space.network.id,
    address: ipv4FromNumber(address),
    holder,
  }));
}

function groupBy<K, V>(items: readonly V[], keyOf: (item: V) => K | undefined): Map<K, V[]> {
  const groups = new Map<K, V[]>();
  for (const item of items) {
    const key = keyOf(item);
    if (key === undefined) continue;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item]);
    else group.push(item);
  }
  return groups;
}
