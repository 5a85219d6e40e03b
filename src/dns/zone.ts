import type { NetworkId, NodeName } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";

/** One endpoint of a network, from its row in endpoint_table; disabled ones are draining or unhealthy. */
export interface NamedEndpoint {
  /** Container name; the name PTR answers. */
  readonly name: string;
  /** Aliases, short id, host name. */
  readonly taskAliases: readonly string[];
  readonly ip: IpAddr;
  readonly node: NodeName;
  readonly disabled: boolean;
  /** Of a service's backend. */
  readonly service?: {
    readonly name: string;
    readonly aliases: readonly string[];
    readonly vip: IpAddr | undefined;
  };
}

/** A service known by definition, so that its name outlives its last backend. */
export interface NamedService {
  readonly name: string;
  /** On this network; undefined for `dnsrr`. */
  readonly vip: IpAddr | undefined;
  readonly ports: readonly {
    readonly published: number;
    readonly target: number;
    readonly protocol: "tcp" | "udp";
  }[];
}

export interface ZoneContent {
  readonly network: NetworkId;
  /** Suffix that qualifies names of this network. */
  readonly networkName: string;
  readonly endpoints: readonly NamedEndpoint[];
  readonly services: readonly NamedService[];
}

/** What a name stands for on one network. An empty list: the name is known and has no address just now. */
export interface NameEntry {
  readonly addresses: readonly IpAddr[];
  /** Virtual IPs change rarely, sets of backends often: the answer's TTL follows. */
  readonly kind: "vip" | "endpoints";
}

/** How long a name that vanished still counts as known, so that a rolling update does not ask the internet for it. */
const REMEMBER_MS = 60_000;
/** Vanished names kept; protects memory from names that churn. */
const MAX_REMEMBERED = 10_000;

/** The names of one network (discovery.md §2), rebuilt from its rows. Names compare in lower case. */
export class Zone {
  readonly network: NetworkId;
  #networkName = "";
  #names = new Map<string, NameEntry>();
  #reverse = new Map<IpAddr, string>();
  #services = new Map<string, NamedService>();
  /** Name → until when it still counts as known. */
  readonly #vanished = new Map<string, Instant>();

  constructor(network: NetworkId) {
    this.network = network;
  }

  get networkName(): string {
    return this.#networkName;
  }

  /** Replaces the content. */
  update(content: ZoneContent, now: Instant): void {
    const before = this.#names;
    this.#networkName = content.networkName;
    this.#names = new Map();
    this.#reverse = new Map();
    this.#services = new Map();
    for (const service of content.services) this.#addService(service);
    for (const endpoint of content.endpoints) this.#addEndpoint(endpoint);
    for (const name of this.#names.keys()) this.#vanished.delete(name);
    for (const name of before.keys()) {
      if (!this.#names.has(name)) this.#vanished.set(name, after(now, REMEMBER_MS));
    }
    for (const [name, until] of this.#vanished) {
      if (until > now && this.#vanished.size <= MAX_REMEMBERED) break; // insertion order is time order
      this.#vanished.delete(name);
    }
  }

  /** `name` in lower case without trailing dot; undefined when this network does not know it. */
  lookup(name: string, now: Instant): NameEntry | undefined {
    const entry = this.#names.get(name);
    if (entry !== undefined) return entry;
    const until = this.#vanished.get(name);
    return until !== undefined && until > now ? { addresses: [], kind: "endpoints" } : undefined;
  }

  /** `NAME.NETWORK` of an endpoint or virtual IP. */
  reverse(ip: IpAddr): string | undefined {
    return this.#reverse.get(ip);
  }

  service(name: string): NamedService | undefined {
    return this.#services.get(name);
  }

  #addService(service: NamedService): void {
    const name = service.name.toLowerCase();
    this.#services.set(name, service);
    this.#names.set(`tasks.${name}`, { addresses: [], kind: "endpoints" });
    if (service.vip === undefined) this.#names.set(name, { addresses: [], kind: "endpoints" });
    else {
      this.#names.set(name, { addresses: [service.vip], kind: "vip" });
      this.#reverse.set(service.vip, `${service.name}.${this.#networkName}`);
    }
  }

  #addEndpoint(endpoint: NamedEndpoint): void {
    const { service } = endpoint;
    if (service !== undefined) {
      const serviceNames = [service.name, ...service.aliases].map((name) => name.toLowerCase());
      for (const name of serviceNames) {
        this.#addAddress(`tasks.${name}`, endpoint.disabled ? undefined : endpoint.ip);
        if (service.vip !== undefined) {
          // A virtual IP stays while any backend exists, even if all of them are disabled.
          this.#names.set(name, { addresses: [service.vip], kind: "vip" });
          if (!this.#reverse.has(service.vip))
            this.#reverse.set(service.vip, `${service.name}.${this.#networkName}`);
        } else if (this.#names.get(name)?.kind !== "vip") {
          this.#addAddress(name, endpoint.disabled ? undefined : endpoint.ip);
        }
      }
    }
    for (const name of [endpoint.name, ...endpoint.taskAliases]) {
      if (name !== "") this.#addAddress(name.toLowerCase(), endpoint.disabled ? undefined : endpoint.ip);
    }
    if (endpoint.name !== "" && !this.#reverse.has(endpoint.ip)) {
      this.#reverse.set(endpoint.ip, `${endpoint.name}.${this.#networkName}`);
    }
  }

  #addAddress(name: string, ip: IpAddr | undefined): void {
    const entry = this.#names.get(name);
    // A service's name wins over an endpoint's of the same name.
    if (entry?.kind === "vip") return;
    const addresses = entry?.addresses ?? [];
    const next = ip === undefined || addresses.includes(ip) ? addresses : [...addresses, ip];
    this.#names.set(name, { addresses: next, kind: "endpoints" });
  }
}
