import type { NetworkId, ServiceId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { ServiceSpec } from "./request.ts";

/** A service on its way: it is written when it has its virtual IPs, or not at all. */
export interface ServiceJob {
  readonly request: number;
  readonly id: ServiceId;
  readonly mode:
    | { readonly type: "create"; readonly spec: ServiceSpec }
    | { readonly type: "update"; readonly spec: Partial<ServiceSpec> };
  readonly vips: Map<NetworkId, IpAddr>;
  /** Wants that are not answered yet. */
  readonly waiting: Set<number>;
}

/** As which holder a service has its virtual IPs. */
export function vipHolder(id: ServiceId, name: string): { readonly id: string; readonly name: string } {
  return { id: `service/${id}`, name: `service ${name}` };
}

export function serviceOfHolder(holderId: string): string | undefined {
  return holderId.startsWith("service/") ? holderId.slice("service/".length) : undefined;
}
