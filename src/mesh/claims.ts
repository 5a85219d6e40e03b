/** Which service has a port or a VIP that several ask for. */
import type { ServiceId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { MeshProtocol, PublishedPort, Service, VirtualIp } from "./input.ts";

/** A port of this node. */
export interface NodePort {
  readonly protocol: MeshProtocol;
  readonly port: number;
  /** Absent: on every address. */
  readonly address?: IpAddr;
}

/** A port two services publish: `winner` has it. Definitions merged from two sides of a partition may do that. */
export interface PortConflict extends NodePort {
  readonly winner: ServiceId;
  readonly loser: ServiceId;
}

export interface Claims {
  /** What a service really has, for those that lost some. */
  readonly ports: ReadonlyMap<ServiceId, readonly PublishedPort[]>;
  readonly vips: ReadonlyMap<ServiceId, readonly VirtualIp[]>;
  readonly conflicts: readonly PortConflict[];
  /** Every port that is published on all nodes. */
  readonly published: readonly NodePort[];
}

/** The first service by id wins, so that every node decides alike. `services` ascend by id. */
export function settleClaims(services: readonly Service[]): Claims {
  const owners = new Map<string, ServiceId>();
  const ports = new Map<ServiceId, readonly PublishedPort[]>();
  const vips = new Map<ServiceId, readonly VirtualIp[]>();
  const conflicts: PortConflict[] = [];
  const published: NodePort[] = [];
  for (const service of services) {
    const keptPorts = service.ports.filter((port) => {
      const key = `${port.protocol} ${port.published} ${port.address ?? ""}`;
      const winner = owners.get(key);
      if (winner === undefined) {
        owners.set(key, service.id);
        if (port.mode === "ingress") published.push(nodePort(port));
        return true;
      }
      if (winner !== service.id) conflicts.push({ ...nodePort(port), winner, loser: service.id });
      return false;
    });
    if (keptPorts.length !== service.ports.length) ports.set(service.id, keptPorts);
    const keptVips = service.vips.filter(({ network, ip }) => {
      const key = `${network} ${ip}`;
      if (owners.has(key)) return false;
      owners.set(key, service.id);
      return true;
    });
    if (keptVips.length !== service.vips.length) vips.set(service.id, keptVips);
  }
  return { ports, vips, conflicts, published };
}

export function nodePort(port: PublishedPort): NodePort {
  const { protocol, published, address } = port;
  return { protocol, port: published, ...(address === undefined ? {} : { address }) };
}
