import type { NetworkId, NodeName } from "../base/id.ts";
import { ipToBytes, isIpv4, subnetContains, type Cidr, type IpAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";
import { DNS_TYPE, isDnsName, type DnsRecord } from "../wire/dns/message.ts";

/**
 * `draining`: asked to go or unhealthy, it gets no new connections. `suspended`: its node has failed or is out of
 * reach for a moment, so it stands in only where nobody serves: a short outage loses no name.
 */
export type EndpointState = "serving" | "draining" | "suspended";

/** One endpoint of a network, from its row in endpoint_table. */
export interface NamedEndpoint {
  /** Container name; the name PTR answers. */
  readonly name: string;
  /** Aliases, short id, host name. */
  readonly taskAliases: readonly string[];
  readonly ip: IpAddr;
  readonly node: NodeName;
  readonly state: EndpointState;
  /** Of a service's backend. */
  readonly service?: {
    readonly name: string;
    readonly aliases: readonly string[];
    readonly vip: IpAddr | undefined;
    /** Published ports, where the row tells them. */
    readonly ports: readonly ServicePort[];
  };
}

/** Every name that leads to an endpoint, as it is written in its row. */
export function namesOf({ name, taskAliases, service }: NamedEndpoint): string[] {
  const ofService = service === undefined ? [] : [service.name, ...service.aliases];
  return [...ofService, ...ofService.map((one) => `tasks.${one}`), name, ...taskAliases];
}

export interface ServicePort {
  readonly published: number;
  readonly target: number;
  readonly protocol: "tcp" | "udp";
}

/** A service known by definition, so that its name outlives its last backend. */
export interface NamedService {
  readonly name: string;
  /** On this network; undefined for `dnsrr`. */
  readonly vip: IpAddr | undefined;
  readonly ports: readonly ServicePort[];
}

export interface ZoneContent {
  /** Suffix that qualifies names of this network. */
  readonly networkName: string;
  /** Addresses that can only be this network's. */
  readonly subnet: Cidr | undefined;
  readonly endpoints: readonly NamedEndpoint[];
  readonly services: readonly NamedService[];
}

/** Seconds a client may keep an answer: backends come and go, virtual IPs hardly ever. */
export interface Ttls {
  readonly vip: number;
  readonly endpoints: number;
}

/** Docker's 600 keeps dead addresses for ten minutes (moby 30029). */
export const DEFAULT_TTLS: Ttls = { vip: 30, endpoints: 5 };

/** What a name stands for on one network. No record at all: the name is known and has no address just now. */
export interface NameEntry {
  readonly a: readonly DnsRecord[];
  readonly aaaa: readonly DnsRecord[];
}

/** What SRV questions about a service are answered from. */
export interface ServiceEntry {
  readonly name: string;
  readonly ports: readonly ServicePort[];
  readonly backends: readonly { readonly name: string; readonly record: DnsRecord }[];
}

/** How long a name that vanished still counts as known, so that a rolling update does not ask the internet for it. */
const REMEMBER_MS = 60_000;
/** Vanished names kept; protects memory from names that churn. */
const MAX_REMEMBERED = 10_000;

/** The names of one network (discovery.md §2), rebuilt from its rows. Names compare in lower case. */
export class Zone {
  readonly network: NetworkId;
  readonly ttls: Ttls;
  #networkName = "";
  #suffix = "";
  #subnet: Cidr | undefined;
  #names: ReadonlyMap<string, NameEntry> = new Map();
  #reverse: ReadonlyMap<IpAddr, string> = new Map();
  #services: ReadonlyMap<string, ServiceEntry> = new Map();
  /** Name → until when it still counts as known. */
  readonly #vanished = new Map<string, Instant>();

  constructor(network: NetworkId, ttls: Ttls = DEFAULT_TTLS) {
    this.network = network;
    this.ttls = ttls;
  }

  get networkName(): string {
    return this.#networkName;
  }

  /** The network's name in lower case. Docker compares it as written; a client that changes case (RFC 4343) must not lose. */
  get suffix(): string {
    return this.#suffix;
  }

  /** Replaces the content. */
  update(content: ZoneContent, now: Instant): void {
    const before = this.#names;
    const built = new ZoneBuilder(content, this.ttls);
    this.#networkName = content.networkName;
    this.#suffix = content.networkName.toLowerCase();
    this.#subnet = content.subnet;
    this.#names = built.names();
    this.#reverse = built.reverse;
    this.#services = built.services();
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
  lookup(name: string): NameEntry | undefined {
    return this.#names.get(name);
  }

  /** Whether the name was known a moment ago. */
  hasVanished(name: string, now: Instant): boolean {
    return (this.#vanished.get(name) ?? now) > now;
  }

  /** `NAME.NETWORK` of an endpoint or virtual IP. */
  reverse(ip: IpAddr): string | undefined {
    return this.#reverse.get(ip);
  }

  /** Whether nobody outside can know who has this address. */
  covers(ip: IpAddr): boolean {
    return this.#subnet !== undefined && subnetContains(this.#subnet, ip);
  }

  /** By name or alias, in lower case. */
  service(name: string): ServiceEntry | undefined {
    return this.#services.get(name);
  }
}

interface OpenName {
  /** Stands alone, whatever else is called so. */
  vip: IpAddr | undefined;
  readonly serving: Set<IpAddr>;
  readonly suspended: Set<IpAddr>;
}

interface OpenService {
  readonly name: string;
  ports: readonly ServicePort[];
  readonly backends: NamedEndpoint[];
}

/** Collects a zone from its rows. Names no message could carry are left out. */
class ZoneBuilder {
  readonly reverse = new Map<IpAddr, string>();
  readonly #content: ZoneContent;
  readonly #ttls: Ttls;
  readonly #names = new Map<string, OpenName>();
  readonly #services = new Map<string, OpenService>();

  constructor(content: ZoneContent, ttls: Ttls) {
    this.#content = content;
    this.#ttls = ttls;
    for (const { name, vip, ports } of content.services) {
      this.#addService(name, vip, name);
      this.#serviceAt(name, name).ports = ports;
    }
    for (const endpoint of content.endpoints) this.#addEndpoint(endpoint);
  }

  names(): Map<string, NameEntry> {
    const entries = new Map<string, NameEntry>();
    for (const [name, { vip, serving, suspended }] of this.#names) {
      const addresses = vip !== undefined ? [vip] : serving.size > 0 ? serving : suspended;
      const ttl = vip !== undefined ? this.#ttls.vip : this.#ttls.endpoints;
      const a: DnsRecord[] = [];
      const aaaa: DnsRecord[] = [];
      for (const ip of addresses) (isIpv4(ip) ? a : aaaa).push(addressRecord(ip, ttl));
      entries.set(name, { a, aaaa });
    }
    return entries;
  }

  services(): Map<string, ServiceEntry> {
    const entries = new Map<string, ServiceEntry>();
    for (const [key, { name, ports, backends }] of this.#services) {
      if (!isDnsName(`${name}.${this.#content.networkName}`)) continue;
      const serving = backends.filter((backend) => backend.state === "serving");
      const chosen =
        serving.length > 0 ? serving : backends.filter((backend) => backend.state === "suspended");
      entries.set(key, {
        name,
        ports,
        backends: chosen
          .filter((backend) => isDnsName(`${backend.name}.${this.#content.networkName}`))
          .map((backend) => ({
            name: backend.name,
            record: addressRecord(backend.ip, this.#ttls.endpoints),
          })),
      });
    }
    return entries;
  }

  #addEndpoint(endpoint: NamedEndpoint): void {
    const { service, name, ip } = endpoint;
    if (service !== undefined) {
      for (const one of [service.name, ...service.aliases]) {
        this.#addService(one, service.vip, service.name);
        this.#addAddress(`tasks.${one}`, endpoint);
        // The virtual IP stays while any backend exists, even if all of them are draining.
        if (service.vip === undefined) this.#addAddress(one, endpoint);
        const entry = this.#serviceAt(one, service.name);
        entry.backends.push(endpoint);
        if (entry.ports.length === 0) entry.ports = service.ports;
      }
    }
    for (const one of [name, ...endpoint.taskAliases]) this.#addAddress(one, endpoint);
    this.#addReverse(ip, name);
  }

  #addService(name: string, vip: IpAddr | undefined, canonical: string): void {
    this.#open(`tasks.${name}`);
    const entry = this.#open(name);
    if (vip === undefined || entry === undefined) return;
    entry.vip = vip;
    this.#addReverse(vip, canonical);
  }

  #serviceAt(name: string, canonical: string): OpenService {
    const key = name.toLowerCase();
    let entry = this.#services.get(key);
    if (entry === undefined) this.#services.set(key, (entry = { name: canonical, ports: [], backends: [] }));
    return entry;
  }

  #addAddress(name: string, { ip, state }: NamedEndpoint): void {
    const entry = this.#open(name);
    if (state !== "draining") entry?.[state].add(ip);
  }

  #addReverse(ip: IpAddr, name: string): void {
    const target = `${name}.${this.#content.networkName}`;
    if (!this.reverse.has(ip) && isDnsName(target)) this.reverse.set(ip, target);
  }

  #open(name: string): OpenName | undefined {
    const key = name.toLowerCase();
    let entry = this.#names.get(key);
    if (entry === undefined && isDnsName(key)) {
      entry = { vip: undefined, serving: new Set(), suspended: new Set() };
      this.#names.set(key, entry);
    }
    return entry;
  }
}

function addressRecord(ip: IpAddr, ttl: number): DnsRecord {
  return { type: isIpv4(ip) ? DNS_TYPE.a : DNS_TYPE.aaaa, ttl, data: ipToBytes(ip) };
}
