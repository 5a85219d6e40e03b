import { errorText, NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { type IpAddr, ipFromBytes } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { after, elapsed, type Instant } from "../base/time.ts";
import { Forwarder, type ForwarderEffect, type ForwarderInput } from "../dns/forwarder.ts";
import type { Asker, Transport } from "../dns/resolver.ts";
import { Zone, type NamedEndpoint, type NamedService, type ServicePort } from "../dns/zone.ts";
import { removeDnsRedirect } from "../kernel/dns-redirect.ts";
import { Netns } from "../kernel/netns.ts";
import type { RowView } from "../networkdb/networkdb.ts";
import { endpointRecordOf } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import { Clock } from "../transport/clock.ts";
import { DnsUpstream } from "../transport/dns-server.ts";
import type { DnsQuery } from "../wire/dns/message.ts";
import { ENDPOINT_TABLE } from "../wire/networkdb/records.ts";
import type { Agent, Dependent } from "./agent.ts";
import { hostServers } from "./host-servers.ts";
import { SandboxDns, type UpstreamAnswer } from "./sandbox-dns.ts";

const CHECK_MS = 5_000;
const REDIRECT_FAULT = "nftables table netagent-dns: it was gone or not the one we made";
/** A zone is rebuilt at most so often that this part of the time goes into it: rows may change all the time. */
const REBUILD_SHARE = 0.1;

/** Serves names in the sandbox of every endpoint of this node. */
export class DnsRunner implements Dependent {
  readonly counters = { queries: 0, answered: 0, forwarded: 0, held: 0, malformed: 0 };
  readonly random: Random;
  readonly #agent: Agent;
  readonly #servers = new Map<string, SandboxDns>();
  readonly #zones = new Map<NetworkId, { readonly zone: Zone; stale: boolean; notBefore: Instant }>();
  readonly #askers = new Map<string, Asker>();
  readonly #failed = new Map<string, string>();
  /** What another hand did and was left, by sandbox. */
  readonly #left = new Map<string, string>();
  readonly #endChecks: () => void;
  readonly #forwarder: Forwarder;
  readonly #upstream: DnsUpstream;
  readonly #clock: Clock;
  readonly #waiting = new Map<number, (answer: UpstreamAnswer) => void>();
  #nextId = 1;
  #scheduled = false;
  #closed = false;

  constructor(agent: Agent, random: Random) {
    this.#agent = agent;
    this.random = random;
    this.#forwarder = new Forwarder(random);
    this.#clock = new Clock(() => this.#forward({ type: "wake" }));
    this.#upstream = new DnsUpstream(
      (exchange, bytes) => this.#forward({ type: "answer", exchange, bytes }),
      (exchange) => this.#forward({ type: "failed", exchange }),
    );
    this.#readServers();
    this.#endChecks = agent.loop.every(CHECK_MS, () => this.#sync(true));
  }

  get now(): Instant {
    return this.#agent.loop.now();
  }

  /** What the servers outside did, by address; and how often none was needed. */
  get upstream(): Pick<Forwarder, "counts" | "cached"> {
    return this.#forwarder;
  }

  /** Rows, services or endpoints changed: zones are rebuilt when the next question comes. */
  refresh(): void {
    for (const held of this.#zones.values()) held.stale = true;
    this.#askers.clear();
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#sync(false);
      for (const server of this.#servers.values()) server.askAgain();
    });
  }

  lookAgain(): void {
    this.#sync(true);
  }

  close(): void {
    this.#closed = true;
    this.#endChecks();
    for (const server of this.#servers.values()) server.close();
    this.#servers.clear();
    this.#upstream.close();
    this.#clock.close();
  }

  /** What questions from a sandbox are answered from: its networks, in the order its interfaces came. */
  asker(sandbox: string): Asker {
    let asker = this.#askers.get(sandbox);
    if (asker === undefined || asker.zones.some((zone) => this.#isDue(zone))) {
      asker = this.#makeAsker(sandbox);
      // That the tables are here is not always told.
      if (!asker.learning) this.#askers.set(sandbox, asker);
    }
    return asker;
  }

  /** The addresses a name stands for in a sandbox, on the first of its networks that knows it; none when none does. */
  addressesOf(sandbox: string, name: string): IpAddr[] {
    for (const zone of this.asker(sandbox).zones) {
      const entry = zone.lookup(name.toLowerCase());
      if (entry !== undefined) return entry.a.map(({ data }) => ipFromBytes(data));
    }
    return [];
  }

  /** What keeps names from being served, one line a sandbox. */
  get problems(): string[] {
    return [...this.#failed].map(([path, text]) => `${path}: ${text}`);
  }

  /** Why questions of the sandbox do not reach us; undefined when they do. */
  problem(sandbox: string): string | undefined {
    return (
      this.#failed.get(sandbox) ??
      this.#left.get(sandbox) ??
      (this.#servers.has(sandbox) ? undefined : "no names are served here")
    );
  }

  /** Resolves when questions of the sandbox are led to us, or cannot be just now, which has been reported. */
  async served(sandbox: string): Promise<void> {
    this.#sync(false);
    await this.#redirect(sandbox);
  }

  /** Asks outside, from the host's side, on behalf of a sandbox. */
  ask(
    client: string,
    transport: Transport,
    query: DnsQuery,
    bytes: Uint8Array,
    done: (answer: UpstreamAnswer) => void,
  ): void {
    this.counters.forwarded++;
    const id = this.#nextId++;
    this.#waiting.set(id, done);
    this.#forward({ type: "query", id, client, transport, query, bytes });
  }

  #makeAsker(sandbox: string): Asker {
    const networks = new Set<NetworkId>();
    for (const record of this.#agent.endpoints.all()) {
      if (record.kind === "user" && record.sandbox.type === "netns" && record.sandbox.path === sandbox)
        networks.add(record.network);
    }
    const { state } = this.#agent.loop.node;
    return {
      zones: [...networks].map((network) => this.#zone(network)),
      // Follows attachments: one network that leads outside is enough.
      mayForward: [...networks].some((network) => state.network(network)?.internal === false),
      learning: !this.#agent.learned.everything(),
      isElsewhere: (name) => state.services().some((service) => service.name.toLowerCase() === name),
    };
  }

  /** One server a sandbox that has an endpoint, none elsewhere. `check`: look also whether the old ones are still led to. */
  #sync(check: boolean): void {
    if (this.#closed) return;
    if (check) this.#readServers();
    const wanted = new Set<string>();
    for (const record of this.#agent.endpoints.all()) {
      if (record.kind === "user" && record.sandbox.type === "netns") wanted.add(record.sandbox.path);
    }
    for (const [path, server] of this.#servers) {
      const stands = Netns.idOf(path) === server.namespace;
      if (wanted.has(path) && stands) continue;
      server.close();
      this.#servers.delete(path);
      this.#askers.delete(path);
      this.#forward({ type: "client-gone", client: path });
      this.#agent.stands(`dns ${path}`, "dns", []);
      this.#left.delete(path);
      if (stands) void this.#unredirect(path);
    }
    const opened = [...wanted].filter((path) => !this.#servers.has(path));
    for (const path of opened) this.#open(path);
    for (const path of check ? this.#servers.keys() : opened) void this.#redirect(path);
  }

  async #redirect(path: string): Promise<void> {
    try {
      const outcome = await this.#servers.get(path)?.redirect(this.#agent.repair);
      if (outcome === "mended") this.#agent.repaired("dns", `${REDIRECT_FAULT}: made anew in ${path}`);
      const left = outcome === "left" ? `${REDIRECT_FAULT}: to be made anew in ${path}` : undefined;
      this.#agent.stands(`dns ${path}`, "dns", left === undefined ? [] : [{ text: left }]);
      if (left === undefined) this.#left.delete(path);
      else this.#left.set(path, left);
      this.#failed.delete(path);
    } catch (error) {
      this.#report(path, error);
    }
  }

  #open(path: string): void {
    try {
      this.#servers.set(path, new SandboxDns(this, path));
    } catch (error) {
      this.#report(path, error);
    }
  }

  /** The sandbox lives on without an endpoint of ours: whatever resolver it had is its own again. */
  async #unredirect(path: string): Promise<void> {
    try {
      using netns = Netns.open(path);
      await removeDnsRedirect(netns);
    } catch (error) {
      this.#report(path, error);
    }
  }

  /** Once, until it is another problem. A namespace that has just gone is its endpoints' business. */
  #report(path: string, error: unknown): void {
    if (!(error instanceof NetError)) throw error;
    if (error.code === "NETNS_MISSING" || this.#failed.get(path) === error.message) return;
    this.#failed.set(path, error.message);
    this.#agent.log.warn({ code: error.code }, `dns: ${errorText(error)}`);
  }

  /**
   * The host's own resolvers may change at any time. 127.0.0.11 among them is no loop but the resolver of the container
   * the agent itself runs in: ours exist in sandboxes only.
   */
  #readServers(): void {
    const { dns } = this.#agent.config;
    this.#forward({ type: "set-servers", servers: dns.length > 0 ? dns : hostServers() });
  }

  #forward(input: ForwarderInput): void {
    for (const effect of this.#forwarder.handle(input, this.#clock.now())) this.#perform(effect);
    this.#clock.wakeAt(this.#forwarder.nextWakeup());
  }

  #perform(effect: ForwarderEffect): void {
    switch (effect.type) {
      case "ask-upstream":
        return this.#upstream.ask(effect.exchange, effect.server, effect.transport, effect.bytes);
      case "end-exchange":
        return this.#upstream.end(effect.exchange);
      case "reply":
      case "fail": {
        const done = this.#waiting.get(effect.id);
        this.#waiting.delete(effect.id);
        return done?.(effect.type === "reply" ? { bytes: effect.bytes } : { rcode: effect.rcode });
      }
    }
  }

  #isDue(zone: Zone): boolean {
    const held = this.#zones.get(zone.network);
    return held === undefined || (held.stale && this.now >= held.notBefore);
  }

  #zone(network: NetworkId): Zone {
    let held = this.#zones.get(network);
    if (held === undefined) {
      const seconds = this.#agent.config.dnsTtlSeconds;
      const zone = new Zone(network, { endpoints: seconds, vip: VIP_TTL_FACTOR * seconds });
      held = { zone, stale: true, notBefore: this.now };
      this.#zones.set(network, held);
    }
    const { zone } = held;
    if (!held.stale || this.now < held.notBefore) return zone;
    const start = this.now;
    held.stale = false;
    zone.update(
      {
        networkName: this.#agent.networkName(network),
        subnet: this.#agent.loop.node.state.network(network)?.subnet,
        endpoints: this.#namedEndpoints(network),
        services: this.#namedServices(network),
      },
      start,
    );
    held.notBefore = after(start, elapsed(start, this.now) / REBUILD_SHARE);
    return zone;
  }

  #namedEndpoints(network: NetworkId): NamedEndpoint[] {
    const { networkDb } = this.#agent.loop.node;
    const ports = this.#portsInRows();
    const found: NamedEndpoint[] = [];
    for (const row of networkDb.rows(network, ENDPOINT_TABLE, { suspended: true })) {
      const endpoint = namedEndpoint(row, ports);
      if (endpoint !== undefined) found.push(endpoint);
    }
    return found;
  }

  /** Published ports by service id: what is known of a service that somebody else, such as a Docker swarm, defined. */
  #portsInRows(): Map<string, ServicePort[]> {
    const found = new Map<string, ServicePort[]>();
    for (const row of this.#agent.loop.node.networkDb.rows(INGRESS.id, ENDPOINT_TABLE)) {
      const record = endpointRecordOf(row);
      if (record === undefined || record.serviceId === "" || found.has(record.serviceId)) continue;
      const ports = record.ingressPorts.flatMap(({ publishedPort, targetPort, protocol }) =>
        protocol === "sctp" ? [] : [{ published: publishedPort, target: targetPort, protocol }],
      );
      found.set(record.serviceId, ports);
    }
    return found;
  }

  #namedServices(network: NetworkId): NamedService[] {
    if (network === INGRESS.id) return [];
    return this.#agent.loop.node.state.services().flatMap((service) => {
      const membership = service.networks.find((one) => one.network === network);
      return membership === undefined
        ? []
        : [{ name: service.name, vip: membership.vip, ports: service.ports }];
    });
  }
}

/** What a row says about names; undefined when it cannot be read. `ports`: published ones by service id. */
export function namedEndpoint(
  row: RowView,
  ports: ReadonlyMap<string, readonly ServicePort[]> = new Map(),
): NamedEndpoint | undefined {
  const record = endpointRecordOf(row);
  if (record === undefined) return undefined;
  return {
    name: record.name,
    taskAliases: record.taskAliases,
    ip: record.endpointIp,
    node: row.owner,
    state: record.serviceDisabled ? "draining" : row.state === "suspended" ? "suspended" : "serving",
    ...(record.serviceId === ""
      ? {}
      : {
          service: {
            name: record.serviceName,
            aliases: record.aliases,
            vip: record.virtualIp,
            ports: ports.get(record.serviceId) ?? [],
          },
        }),
  };
}

/** Virtual IPs outlive backends by far. */
const VIP_TTL_FACTOR = 6;
