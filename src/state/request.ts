import type { NetworkId, NodeId, ServiceId } from "../base/id.ts";
import type { Cidr, IpAddr } from "../base/ip.ts";
import type { HealthCheck, Labels, Network, NodeDefinition, Service } from "../wire/state/definition.ts";

/** What an operator asks for, as typed; `state/` validates it and answers with a `NetError` or the definition. */
export interface NetworkSpec {
  readonly name: string;
  /** `10.0.9.0/24`; chosen when absent. */
  readonly subnet?: string;
  /** The first host address when absent. */
  readonly gateway?: string;
  /** 4097 … 16777213; chosen when absent. External networks: 0 … 16777213, required. */
  readonly vni?: number;
  readonly mtu?: number;
  readonly internal?: boolean;
  readonly encrypted?: boolean;
  readonly labels?: Labels;
  /** Defined by somebody else and known on this node only. */
  readonly external?: { readonly id: string; readonly ipRange?: string };
}

export interface PortSpec {
  readonly published: number;
  readonly target: number;
  readonly protocol: "tcp" | "udp";
  readonly address?: string;
  readonly mode?: "ingress" | "host";
}

export interface ServiceSpec {
  readonly name: string;
  /** Names, ids or unique id prefixes. */
  readonly networks?: readonly string[];
  readonly ports?: readonly PortSpec[];
  readonly endpointMode?: "vip" | "dnsrr";
  readonly affinity?: "none" | "client-ip";
  readonly labels?: Labels;
  readonly health?: HealthCheck;
  readonly drainTimeoutMs?: number;
}

/** Who an address is for; `id` makes asking again return the same address. */
export interface AddressHolder {
  /** Endpoint id, or whatever else the agent gives addresses to; at most 128 bytes. */
  readonly id: string;
  /** For people, in "taken by …"; at most 255 bytes. */
  readonly name: string;
}

/** `request` is chosen by the caller; exactly one `done` or `refused` effect answers it. */
export type StateRequest =
  | {
      readonly type: "create-network";
      readonly request: number;
      readonly spec: NetworkSpec;
      /** Addresses and routes of the host, which a chosen or given subnet must not overlap. */
      readonly hostSubnets: readonly Cidr[];
    }
  | {
      readonly type: "remove-network";
      readonly request: number;
      /** Name, id or unique id prefix. */
      readonly network: string;
      /** Names of endpoints, here and elsewhere, that are still on it; not empty: refused. */
      readonly endpoints: readonly string[];
    }
  | { readonly type: "create-service"; readonly request: number; readonly spec: ServiceSpec }
  /** Fields left out stay as they are. */
  | {
      readonly type: "update-service";
      readonly request: number;
      readonly service: string;
      readonly spec: Partial<ServiceSpec>;
    }
  | { readonly type: "remove-service"; readonly request: number; readonly service: string }
  /** `node`: shown name, node id or unique id prefix. */
  | {
      readonly type: "update-node";
      readonly request: number;
      readonly node: string;
      readonly availability: "active" | "drain";
    }
  /** Final; only for nodes that are not members any more. Their address ranges pass to others. */
  | { readonly type: "remove-node"; readonly request: number; readonly node: string }
  | {
      readonly type: "allocate";
      readonly request: number;
      /** Name, id or unique id prefix. */
      readonly network: string;
      readonly holder: AddressHolder;
      /** A wanted address. */
      readonly address?: string;
    }
  /** Of an address not given away here: done, without effect. */
  | {
      readonly type: "release";
      readonly request: number;
      readonly network: NetworkId;
      readonly address: IpAddr;
    };

export type StateResult =
  | { readonly type: "network"; readonly network: Network }
  | { readonly type: "service"; readonly service: Service }
  | { readonly type: "node"; readonly node: NodeDefinition }
  /** `address` with the prefix length of the subnet. */
  | { readonly type: "address"; readonly network: NetworkId; readonly address: Cidr }
  | { readonly type: "removed"; readonly id: NetworkId | ServiceId | NodeId }
  | { readonly type: "released" };
