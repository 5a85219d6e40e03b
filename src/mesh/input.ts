/** What the mesh is told: plain data the agent fills from definitions, endpoint rows and its own facts. */
import type { EndpointId, NetworkId, NodeName, ServiceId } from "../base/id.ts";
import type { Cidr, IpAddr } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";

export type MeshProtocol = "tcp" | "udp";

export interface PublishedPort {
  /** Port clients use, 1 … 65535. */
  readonly published: number;
  /** Port the backend listens on, 1 … 65535. */
  readonly target: number;
  readonly protocol: MeshProtocol;
  /** Only on this address of a node; absent means on every address, loopback included. */
  readonly address?: IpAddr;
  /** `ingress`: on every node. `host`: only on nodes that run a backend, and only to those. */
  readonly mode: "ingress" | "host";
}

/** One endpoint of a service, on one network. */
export interface Backend {
  readonly endpoint: EndpointId;
  readonly network: NetworkId;
  /** Address on `network`. IPv4. */
  readonly ip: IpAddr;
  /** Address on the ingress network; absent means that published ports cannot reach it. IPv4. */
  readonly ingressIp?: IpAddr;
  readonly node: NodeName;
  /**
   * A draining backend gets no new flows while another one is ready; a suspended one, whose node is held for dead,
   * gets none at all, but its established connections are not touched: the node's kernel may be well.
   */
  readonly state: "ready" | "draining" | "suspended";
  /** Whether its node routes replies back through the entry node; otherwise it needs source NAT. */
  readonly capable: boolean;
  /** Runs on this node. */
  readonly local: boolean;
  /**
   * This node alone has seen connects to it fail, or suspects its node: others are preferred. A local
   * verdict, never gossiped, and ignored when it would leave no backend.
   */
  readonly avoid?: boolean;
}

export interface VirtualIp {
  readonly network: NetworkId;
  /** IPv4. */
  readonly ip: IpAddr;
}

export interface Service {
  readonly id: ServiceId;
  readonly name: string;
  /** `dnsrr` has no VIP: clients choose among the addresses DNS gives them. */
  readonly endpointMode: "vip" | "dnsrr";
  /** `client-ip`: one client address keeps its backend. */
  readonly affinity: "none" | "client-ip";
  readonly ports: readonly PublishedPort[];
  readonly vips: readonly VirtualIp[];
  readonly backends: readonly Backend[];
  /** Off: backends see the entry node's ingress address instead of the client's. Default on. */
  readonly keepClientAddress?: boolean;
}

/** A node's leg in the ingress network, directly in the host's namespace. */
export interface IngressLeg {
  readonly ip: IpAddr;
  readonly mac: MacAddr;
  /** Interface name: `na-ingress`. */
  readonly interface: string;
  readonly subnet: Cidr;
}

/** The ingress leg of any node, our own included: where a backend's replies go back to. */
export interface EntryNode {
  readonly ip: IpAddr;
  readonly mac: MacAddr;
}

export interface NodeFacts {
  /** Absent: this node has no leg yet, so nothing is published on it. */
  readonly ingress?: IngressLeg;
  readonly entryNodes: readonly EntryNode[];
  /**
   * Every range that endpoints and their gateways use. A client in one of them could be answered by the
   * backend directly, past the entry node, so it gets source NAT.
   */
  readonly overlayRanges: readonly Cidr[];
  /**
   * False while the backends' nodes may not have seen our ingress leg yet: they could not send replies back
   * through us. The agent turns it on once they have; source NAT until then.
   */
  readonly keepClientAddress: boolean;
}

/** A local endpoint's namespace. */
export interface Sandbox {
  /** Path of the namespace. */
  readonly namespace: string;
  /** Its legs in ordinary overlay networks; VIPs of these networks are translated inside. */
  readonly legs: readonly { readonly network: NetworkId; readonly ip: IpAddr }[];
  /** Its leg in the ingress network, when it is a backend of `service`, which publishes. */
  readonly ingress?: {
    readonly interface: string;
    readonly ip: IpAddr;
    /** Whose target ports are open on the leg, whether or not a row says so yet. */
    readonly service?: ServiceId;
  };
  /**
   * The source address the kernel picks inside towards a stranger: that of the interface with the default
   * route (`kernel/return-path.ts` reads it). Absent: no default route.
   */
  readonly defaultSource?: IpAddr;
}

export interface MeshInput {
  readonly node: NodeFacts;
  /** In any order; keep an object identical while nothing about it changed, and its work is skipped. */
  readonly services: readonly Service[];
  readonly sandboxes: readonly Sandbox[];
}
