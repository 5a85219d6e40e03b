import { NetError } from "../base/error.ts";
import type { NetworkId, ServiceId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Instant } from "../base/time.ts";
import type { Service } from "../wire/state/definition.ts";
import type { Allocator, Want, WantOutcome } from "./allocator.ts";
import type { Outbox } from "./outbox.ts";
import type { AddressHolder, ServiceSpec } from "./request.ts";
import { networksWithoutVip, withVip } from "./service-rules.ts";

export type ServiceMode =
  | { readonly type: "create"; readonly spec: ServiceSpec }
  | { readonly type: "update"; readonly spec: Partial<ServiceSpec> };

export interface ServiceJobsOptions {
  readonly outbox: Outbox;
  readonly allocator: Allocator;
  /** @throws NetError */
  readonly validate: (id: ServiceId, mode: ServiceMode) => Service;
  readonly want: (network: NetworkId, holder: AddressHolder) => Want;
  readonly release: (holderId: string) => void;
  readonly write: (service: Service, now: Instant) => void;
}

interface Job {
  readonly request: number;
  readonly id: ServiceId;
  readonly mode: ServiceMode;
  readonly vips: Map<NetworkId, IpAddr>;
  /** Wants that are not answered yet. */
  readonly waiting: Set<number>;
}

/** Services on their way: written when they have their virtual IPs, or not at all. */
export class ServiceJobs {
  readonly #options: ServiceJobsOptions;
  readonly #byWant = new Map<number, Job>();

  constructor(options: ServiceJobsOptions) {
    this.#options = options;
  }

  begin(request: number, id: ServiceId, mode: ServiceMode, now: Instant): void {
    this.#continue({ request, id, mode, vips: new Map(), waiting: new Set() }, now);
  }

  settled(outcome: WantOutcome, now: Instant): void {
    const { want } = outcome;
    const job = this.#byWant.get(want.id);
    this.#byWant.delete(want.id);
    if (job === undefined || !job.waiting.delete(want.id)) return;
    if ("error" in outcome) return this.#fail(job, outcome.error);
    job.vips.set(want.network, outcome.address);
    if (job.waiting.size === 0) this.#continue(job, now);
  }

  /** Validates (again: names and ports may be taken meanwhile), wants what is missing, or writes. */
  #continue(job: Job, now: Instant): void {
    let service: Service;
    try {
      service = this.#options.validate(job.id, job.mode);
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      return this.#fail(job, error);
    }
    for (const [network, vip] of job.vips) service = withVip(service, network, vip);
    const wants = networksWithoutVip(service).map((network) =>
      this.#options.want(network, vipHolder(job.id, service.name)),
    );
    if (wants.length === 0) {
      this.#options.write(service, now);
      return this.#options.outbox.done(job.request, { type: "service", service });
    }
    for (const want of wants) {
      job.waiting.add(want.id);
      this.#byWant.set(want.id, job);
    }
    for (const want of wants) this.#options.allocator.want(want, now);
  }

  #fail(job: Job, error: NetError): void {
    this.#options.allocator.forget([...job.waiting]);
    for (const want of job.waiting) this.#byWant.delete(want);
    job.waiting.clear();
    // What an update got is kept for the service: an older write of it may still be on its way here.
    if (job.mode.type === "create") this.#options.release(vipHolder(job.id, "").id);
    this.#options.outbox.refuse(job.request, error);
  }
}

/** As which holder a service has its virtual IPs. */
export function vipHolder(id: ServiceId, name: string): AddressHolder {
  return { id: `service/${id}`, name: `service ${name}` };
}

export function serviceOfHolder(holderId: string): string | undefined {
  return holderId.startsWith("service/") ? holderId.slice("service/".length) : undefined;
}
