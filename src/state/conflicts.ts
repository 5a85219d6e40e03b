import type { NetworkId, NodeId, ServiceId, Vni } from "../base/id.ts";
import { formatCidr, ipv4ToNumber, subnetSize, type IpAddr } from "../base/ip.ts";
import type { Network, PublishedPort, Service } from "../wire/state/definition.ts";
import { compareText } from "./definitions.ts";

/**
 * Two sides of a partition may each make something that cannot be had twice. Both stay; a fixed rule says who
 * owns the name, VNI, subnet or port: the earlier creation (Lamport time), then the smaller id.
 * `text` is one line for people: what, why, and the cure.
 */
export type Conflict =
  | {
      readonly type: "network-name";
      readonly network: NetworkId;
      readonly winner: NetworkId;
      readonly text: string;
    }
  /** The network is disabled: two networks with one VNI would hear each other's frames. */
  | {
      readonly type: "vni";
      readonly network: NetworkId;
      readonly vni: Vni;
      readonly winner: NetworkId;
      readonly text: string;
    }
  | {
      readonly type: "subnet";
      readonly network: NetworkId;
      readonly winner: NetworkId;
      readonly text: string;
    }
  | {
      readonly type: "service-name";
      readonly service: ServiceId;
      readonly winner: ServiceId;
      readonly text: string;
    }
  /** The port leads to the winner's backends. */
  | {
      readonly type: "port";
      readonly service: ServiceId;
      readonly port: PublishedPort;
      readonly winner: ServiceId;
      readonly text: string;
    }
  /** Two services have one virtual IP: after a takeover from a node that was not dead. */
  | {
      readonly type: "vip";
      readonly service: ServiceId;
      readonly network: NetworkId;
      readonly winner: ServiceId;
      readonly text: string;
    }
  | {
      readonly type: "network-removed";
      readonly service: ServiceId;
      readonly network: NetworkId;
      readonly text: string;
    }
  /** An address we gave away is in a range that is not ours: give its holder another one. */
  | {
      readonly type: "address";
      readonly network: NetworkId;
      readonly address: IpAddr;
      readonly holder: string;
      readonly text: string;
    }
  /** This node's id was removed from the cluster while it was away. */
  | { readonly type: "node-removed"; readonly node: NodeId; readonly text: string }
  /** Another live member has our node id: a copied data directory. */
  | { readonly type: "node-twin"; readonly node: NodeId; readonly text: string };

/** Names the conflict, for "reported already" and "still there". */
export function conflictKey(conflict: Conflict): string {
  switch (conflict.type) {
    case "network-name":
    case "vni":
    case "subnet":
      return `${conflict.type} ${conflict.network} ${conflict.winner}`;
    case "service-name":
      return `${conflict.type} ${conflict.service} ${conflict.winner}`;
    case "port":
      return `${conflict.type} ${conflict.service} ${portText(conflict.port)} ${conflict.winner}`;
    case "vip":
      return `${conflict.type} ${conflict.service} ${conflict.network} ${conflict.winner}`;
    case "network-removed":
      return `${conflict.type} ${conflict.service} ${conflict.network}`;
    case "address":
      return `${conflict.type} ${conflict.network} ${conflict.address} ${conflict.holder}`;
    case "node-removed":
    case "node-twin":
      return `${conflict.type} ${conflict.node}`;
  }
}

/** Every conflict between definitions, in a fixed order. */
export function definitionConflicts(
  networks: readonly Network[],
  services: readonly Service[],
  isRemoved: (network: NetworkId) => boolean,
): Conflict[] {
  return [...networkConflicts(networks), ...serviceConflicts(services, isRemoved)];
}

/** Negative when `a` owns what both claim. */
export function compareClaims(
  a: { readonly created: number; readonly id: string },
  b: { readonly created: number; readonly id: string },
): number {
  return a.created - b.created || compareText(a.id, b.id);
}

export function portsCollide(a: PublishedPort, b: PublishedPort): boolean {
  if (a.published !== b.published || a.protocol !== b.protocol) return false;
  return a.address === undefined || b.address === undefined || a.address === b.address;
}

/** `8000/tcp` or `192.0.2.1:8000/tcp`. */
export function portText(port: PublishedPort): string {
  return `${port.address === undefined ? "" : `${port.address}:`}${port.published}/${port.protocol}`;
}

function networkConflicts(networks: readonly Network[]): Conflict[] {
  const conflicts: Conflict[] = [];
  const byName = new Map<string, Network>();
  const byVni = new Map<number, Network>();
  const sorted = networks.toSorted(compareClaims);
  for (const network of sorted) {
    const named = byName.get(network.name);
    if (named === undefined) byName.set(network.name, network);
    else
      conflicts.push({
        type: "network-name",
        network: network.id,
        winner: named.id,
        text: `${label("network", network)} lost its name to the older ${named.id.slice(0, 12)}: both were created apart; remove one by id`,
      });
    const numbered = byVni.get(network.vni);
    if (numbered === undefined) byVni.set(network.vni, network);
    else
      conflicts.push({
        type: "vni",
        network: network.id,
        vni: network.vni,
        winner: numbered.id,
        text: `${label("network", network)} is disabled: VNI ${network.vni} belongs to the older network ${numbered.name}; remove and create it again`,
      });
  }
  for (const [loser, winner] of findOverlaps(sorted)) {
    conflicts.push({
      type: "subnet",
      network: loser.id,
      winner: winner.id,
      text: `${label("network", loser)} has subnet ${formatCidr(loser.subnet)}, which overlaps network ${winner.name}; no endpoint can be on both: remove one and create it again`,
    });
  }
  return conflicts;
}

/** Pairs (loser, winner): every network with the oldest one it overlaps. */
function findOverlaps(networks: readonly Network[]): (readonly [Network, Network])[] {
  const ranges = networks.map((network) => {
    const first = ipv4ToNumber(network.subnet.ip);
    return { network, first, last: first + subnetSize(network.subnet) - 1 };
  });
  const pairs: (readonly [Network, Network])[] = [];
  for (const range of ranges) {
    for (const older of ranges) {
      if (older === range) break;
      if (older.first > range.last || range.first > older.last) continue;
      pairs.push([range.network, older.network]);
      break;
    }
  }
  return pairs;
}

function serviceConflicts(
  services: readonly Service[],
  isRemoved: (network: NetworkId) => boolean,
): Conflict[] {
  const conflicts: Conflict[] = [];
  const byName = new Map<string, Service>();
  const byVip = new Map<string, Service>();
  const byPort = new Map<string, { readonly service: Service; readonly port: PublishedPort }[]>();
  for (const service of services.toSorted(compareClaims)) {
    const named = byName.get(service.name);
    if (named === undefined) byName.set(service.name, service);
    else
      conflicts.push({
        type: "service-name",
        service: service.id,
        winner: named.id,
        text: `${label("service", service)} lost its name to the older ${named.id.slice(0, 12)}: both were created apart; remove one by id`,
      });
    for (const port of service.ports) {
      const key = `${port.published}/${port.protocol}`;
      const claims = byPort.get(key) ?? [];
      const winner = claims.find((claim) => claim.service !== service && portsCollide(claim.port, port));
      if (winner === undefined) byPort.set(key, [...claims, { service, port }]);
      else
        conflicts.push({
          type: "port",
          service: service.id,
          port,
          winner: winner.service.id,
          text: `${label("service", service)} does not get port ${portText(port)}: the older service ${winner.service.name} publishes it; publish another one`,
        });
    }
    for (const { network, vip } of service.networks) {
      const key = `${network} ${vip}`;
      const winner = vip === undefined ? undefined : byVip.get(key);
      if (winner === undefined) byVip.set(key, service);
      else
        conflicts.push({
          type: "vip",
          service: service.id,
          network,
          winner: winner.id,
          text: `${label("service", service)} has the virtual IP ${vip} of the older service ${winner.name}; remove it and create it again`,
        });
      // Not merely unknown: its definition may be on its way.
      if (isRemoved(network))
        conflicts.push({
          type: "network-removed",
          service: service.id,
          network,
          text: `${label("service", service)} is on network ${network.slice(0, 12)}, which was removed; update the service`,
        });
    }
  }
  return conflicts;
}

function label(kind: string, { name, id }: { readonly name: string; readonly id: string }): string {
  return `${kind} ${name} (${id.slice(0, 12)})`;
}
