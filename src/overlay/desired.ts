/**
 * What the kernel should look like for one overlay network: a pure function of the tables' rows and of the
 * endpoints on this node. `plan.ts` subtracts what is there; `kernel/` makes it so.
 */
import type { EndpointId, NetworkId, NodeName, Vni } from "../base/id.ts";
import {
  type Cidr,
  type IpAddr,
  ipToBytes,
  ipv4ToNumber,
  isIpv4,
  lastAddress,
  subnetContains,
  subnetOf,
} from "../base/ip.ts";
import { isMulticastMac, macFromIpv4, type MacAddr } from "../base/mac.ts";
import { finish, SLICE_ROWS, type Sliced } from "../base/sliced.ts";

export interface OverlayNetwork {
  readonly id: NetworkId;
  readonly name: string;
  readonly vni: Vni;
  readonly subnet: Cidr;
  /** The same address on every node. */
  readonly gateway: IpAddr;
  /** Of the inner interfaces, bytes: see `overlayMtu`. */
  readonly mtu: number;
  readonly dataPathPort: number;
  readonly internal: boolean;
  readonly encrypted: boolean;
}

/** Where an endpoint's interface lives. */
export type Sandbox =
  /** Any file that is a network namespace: a pin of `ip netns`, `/proc/PID/ns/net`. */
  | { readonly type: "netns"; readonly path: string }
  /** The agent's own namespace: the node's leg into the ingress network. */
  | { readonly type: "host" };

export interface LocalEndpoint {
  readonly id: EndpointId;
  readonly network: NetworkId;
  readonly ip: IpAddr;
  readonly prefixLength: number;
  readonly mac: MacAddr;
  /** Interface name in the sandbox, 1–15 bytes. */
  readonly ifname: string;
  readonly sandbox: Sandbox;
}

/** A row of `overlay_peer_table`, suspended rows of failed members included. Untrusted. */
export interface RemotePeer {
  readonly endpoint: EndpointId;
  /** Whose row it is. */
  readonly owner?: NodeName;
  readonly ip: IpAddr;
  readonly prefixLength: number;
  readonly mac: MacAddr;
  readonly vtep: IpAddr;
  /** Its owner keeps comparing its rows with what it has, so that a stale one is not among them (a netagent). */
  readonly assured?: boolean;
  /** The owner failed; its claim gives way to a live one. */
  readonly suspended?: boolean;
  /** Lamport time of the row: of two live claims the later one wins. Default 0. */
  readonly lamportTime?: number;
}

/**
 * How endpoints hang on the network. `macvlan`: children of the VXLAN device, no bridge (the fast one).
 * `veth`: pairs on a bridge with the VXLAN device, as Docker does; for kernels without macvlan.
 */
export type LinkKind = "macvlan" | "veth";

export const DEFAULT_LINK_KIND: LinkKind = "macvlan";

export interface DesiredInput {
  readonly network: OverlayNetwork;
  readonly linkKind: LinkKind;
  /** Our data-path address: source of the outer packets; its family is the underlay's. */
  readonly vtep: IpAddr;
  /** Every data-path address of this node: rows that claim one as their VTEP are not somebody else's. */
  readonly ownVteps: readonly IpAddr[];
  readonly endpoints: readonly LocalEndpoint[];
  readonly peers: Iterable<RemotePeer>;
  /** Whether a member may name that VTEP as its own. By default every one. */
  readonly mayBeAt?: (owner: NodeName, vtep: IpAddr) => boolean;
}

/** The VXLAN device and the gateway address: what a network needs before its first endpoint. */
export interface DesiredCore {
  readonly linkKind: LinkKind;
  readonly vni: Vni;
  readonly dataPathPort: number;
  readonly vtep: IpAddr;
  readonly mtu: number;
  readonly gateway: Cidr;
}

export interface DesiredEndpoint {
  readonly id: EndpointId;
  readonly address: Cidr;
  readonly mac: MacAddr;
  readonly ifname: string;
  readonly sandbox: Sandbox;
}

/** Everything of one network on this node. */
export interface DesiredOverlay {
  readonly network: NetworkId;
  /** For messages. */
  readonly name: string;
  /** Undefined: no local endpoint, so no kernel object at all, and what is there of ours goes. */
  readonly core: DesiredCore | undefined;
  readonly endpoints: ReadonlyMap<EndpointId, DesiredEndpoint>;
  /** Answered by the VXLAN device (ARP, neighbor discovery) on behalf of remote endpoints. */
  readonly neighbors: ReadonlyMap<IpAddr, MacAddr>;
  /** Where frames to a remote MAC go: its VTEP. */
  readonly fdb: ReadonlyMap<MacAddr, IpAddr>;
  /** Rows that were left out, for doctor and metrics. */
  readonly rejected: readonly RejectedPeer[];
}

export type PeerProblem =
  | "outside-subnet"
  | "wrong-prefix-length"
  | "reserved-address"
  | "multicast-mac"
  | "own-vtep"
  | "bad-vtep"
  | "wrong-vtep-family"
  | "foreign-vtep"
  | "local-address"
  | "local-mac"
  | "duplicate-address"
  | "duplicate-mac";

export interface RejectedPeer {
  readonly peer: RemotePeer;
  readonly problem: PeerProblem;
  /** For duplicates: who has it. */
  readonly winner?: EndpointId;
}

/** Outer Ethernet 14 + IPv4 20 or IPv6 40 + UDP 8 + VXLAN 8 bytes. */
export function vxlanOverheadBytes(vtep: IpAddr): number {
  return isIpv4(vtep) ? 50 : 70;
}

/**
 * Inner MTU over an underlay device: 1450 on 1500 (IPv4), 1430 (IPv6). Docker assumes IPv4 under 1500 whatever
 * the underlay is; packets then vanish on IPv6 and in VPNs (overlay.md §7, §9).
 */
export function overlayMtu(underlayMtu: number, vtep: IpAddr): number {
  return underlayMtu - vxlanOverheadBytes(vtep);
}

/** The desired state of `network`. Hostile rows are left out and reported; local endpoints are never affected. */
export function desiredOverlay(input: DesiredInput): DesiredOverlay {
  return finish(deriveOverlay(input));
}

/** The same a slice at a time. Rows that change meanwhile are seen or not: whoever changes them asks again. */
export function* deriveOverlay(input: DesiredInput): Sliced<DesiredOverlay> {
  const { network } = input;
  const endpoints = new Map<EndpointId, DesiredEndpoint>();
  for (const endpoint of input.endpoints) {
    if (endpoint.network !== network.id) continue;
    endpoints.set(endpoint.id, {
      id: endpoint.id,
      address: { ip: endpoint.ip, prefixLength: endpoint.prefixLength },
      mac: endpoint.mac,
      ifname: endpoint.ifname,
      sandbox: endpoint.sandbox,
    });
  }
  const base = { network: network.id, name: network.name, endpoints };
  if (endpoints.size === 0) {
    return { ...base, core: undefined, neighbors: new Map(), fdb: new Map(), rejected: [] };
  }
  const core: DesiredCore = {
    linkKind: input.linkKind,
    vni: network.vni,
    dataPathPort: network.dataPathPort,
    vtep: input.vtep,
    mtu: network.mtu,
    gateway: { ip: network.gateway, prefixLength: network.subnet.prefixLength },
  };
  return { ...base, core, ...(yield* forwarding(input, [...endpoints.values()])) };
}

/**
 * Which rows become entries. A row is judged alone first; then, of rows that claim one address or one MAC
 * behind different VTEPs, one wins: live before suspended, a netagent's before others', later Lamport time, lower
 * endpoint id; and of those with one MAC before all else the one whose address gives that MAC. Docker keeps
 * whichever it programmed first, so a lost delete blocks an address for ever (overlay.md §9).
 */
function* forwarding(
  input: DesiredInput,
  local: readonly DesiredEndpoint[],
): Sliced<Pick<DesiredOverlay, "neighbors" | "fdb" | "rejected">> {
  const check = rowCheck(input, local);
  const rejected: RejectedPeer[] = [];
  const byAddress = new Map<IpAddr, RemotePeer>();
  let rows = 0;
  for (const peer of input.peers) {
    if (++rows % SLICE_ROWS === 0) yield;
    const problem = check(peer);
    if (problem !== undefined) {
      rejected.push({ peer, problem });
      continue;
    }
    const other = byAddress.get(peer.ip);
    if (other === undefined) {
      byAddress.set(peer.ip, peer);
      continue;
    }
    const [winner, loser] = prefer(peer, other);
    byAddress.set(peer.ip, winner);
    rejected.push({ peer: loser, problem: "duplicate-address", winner: winner.endpoint });
  }
  const byMac = new Map<MacAddr, RemotePeer>();
  for (const peer of byAddress.values()) {
    if (++rows % SLICE_ROWS === 0) yield;
    const other = byMac.get(peer.mac);
    byMac.set(peer.mac, other === undefined ? peer : preferForMac(peer, other));
  }
  const neighbors = new Map<IpAddr, MacAddr>();
  const fdb = new Map<MacAddr, IpAddr>();
  for (const peer of byAddress.values()) {
    if (++rows % SLICE_ROWS === 0) yield;
    const owner = byMac.get(peer.mac) ?? peer;
    // Several addresses may share a MAC, but a MAC is behind one VTEP.
    if (owner.vtep !== peer.vtep) {
      rejected.push({ peer, problem: "duplicate-mac", winner: owner.endpoint });
      continue;
    }
    neighbors.set(peer.ip, peer.mac);
    fdb.set(peer.mac, peer.vtep);
  }
  return { neighbors, fdb, rejected };
}

function prefer(a: RemotePeer, b: RemotePeer): readonly [winner: RemotePeer, loser: RemotePeer] {
  const order =
    Number(a.suspended ?? false) - Number(b.suspended ?? false) ||
    Number(b.assured ?? false) - Number(a.assured ?? false) ||
    (b.lamportTime ?? 0) - (a.lamportTime ?? 0) ||
    (a.endpoint < b.endpoint ? -1 : a.endpoint > b.endpoint ? 1 : 0);
  return order <= 0 ? [a, b] : [b, a];
}

/** A MAC made of an address belongs to that address, whoever else writes it into a row. */
function preferForMac(a: RemotePeer, b: RemotePeer): RemotePeer {
  const own = ({ ip, mac }: RemotePeer): boolean => isIpv4(ip) && macFromIpv4(ip) === mac;
  const [ownA, ownB] = [own(a), own(b)];
  return ownA === ownB ? prefer(a, b)[0] : ownA ? a : b;
}

/** A test of one row by itself, with everything that does not depend on the row worked out once. */
function rowCheck(
  input: DesiredInput,
  local: readonly DesiredEndpoint[],
): (peer: RemotePeer) => PeerProblem | undefined {
  const { subnet, gateway } = input.network;
  const contains = containsCheck(subnet);
  const reserved = new Set<IpAddr>([gateway, subnetOf(subnet).ip]);
  if (isIpv4(subnet.ip) && subnet.prefixLength < 31) reserved.add(lastAddress(subnet));
  const addresses = new Set(local.map((endpoint) => endpoint.address.ip));
  const macs = new Set(local.map((endpoint) => endpoint.mac));
  const own = new Set([input.vtep, ...input.ownVteps]);
  // By owner, since thousands of rows share one VTEP.
  const byOwner = new Map<NodeName | undefined, Map<IpAddr, PeerProblem | undefined>>();
  const vtepProblem = (owner: NodeName | undefined, vtep: IpAddr): PeerProblem | undefined => {
    if (own.has(vtep)) return "own-vtep";
    if (isIpv4(vtep) !== isIpv4(input.vtep)) return "wrong-vtep-family";
    if (!isHostAddress(vtep)) return "bad-vtep";
    return owner === undefined || (input.mayBeAt?.(owner, vtep) ?? true) ? undefined : "foreign-vtep";
  };
  return (peer) => {
    let vteps = byOwner.get(peer.owner);
    if (vteps === undefined) byOwner.set(peer.owner, (vteps = new Map()));
    if (!vteps.has(peer.vtep)) vteps.set(peer.vtep, vtepProblem(peer.owner, peer.vtep));
    const problem = vteps.get(peer.vtep);
    if (problem !== undefined) return problem;
    if (!contains(peer.ip)) return "outside-subnet";
    if (peer.prefixLength !== subnet.prefixLength) return "wrong-prefix-length";
    if (reserved.has(peer.ip)) return "reserved-address";
    // The zero MAC is the FDB's default entry: it would flood everything to one VTEP.
    if (isMulticastMac(peer.mac) || peer.mac === "00:00:00:00:00:00") return "multicast-mac";
    if (addresses.has(peer.ip)) return "local-address";
    if (macs.has(peer.mac)) return "local-mac";
    return undefined;
  };
}

/** `subnetContains` for many addresses of one subnet: for IPv4 without making arrays. */
function containsCheck(subnet: Cidr): (ip: IpAddr) => boolean {
  if (!isIpv4(subnet.ip)) return (ip) => subnetContains(subnet, ip);
  const { prefixLength } = subnet;
  const mask = prefixLength === 0 ? 0 : (0xffffffff << (32 - prefixLength)) >>> 0;
  const prefix = (ipv4ToNumber(subnet.ip) & mask) >>> 0;
  return (ip) => {
    let value = 0;
    let octet = 0;
    for (let at = 0; at < ip.length; at++) {
      const code = ip.charCodeAt(at);
      if (code === 58) return false; // a colon: IPv6
      if (code === 46) {
        value = value * 256 + octet;
        octet = 0;
      } else octet = octet * 10 + (code - 48);
    }
    return ((value * 256 + octet) & mask) >>> 0 === prefix;
  };
}

/** Whether packets can be sent to it as to one host: not unspecified, loopback, multicast or broadcast. */
function isHostAddress(ip: IpAddr): boolean {
  const bytes = ipToBytes(ip);
  const first = bytes[0] ?? 0;
  if (bytes.length === 4) return first !== 0 && first !== 127 && first < 224;
  return first !== 0xff && ip !== "::" && ip !== "::1";
}
