import { getServers } from "node:dns";
import { DecodeError, errorText, NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { parseIp } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { Forwarder, type ForwarderEffect, type ForwarderInput } from "../dns/forwarder.ts";
import { decodeQuery, failure, resolve } from "../dns/resolver.ts";
import { Zone, type NamedEndpoint, type NamedService } from "../dns/zone.ts";
import { dnsRedirectStands, redirectDns, removeDnsRedirect } from "../kernel/dns-redirect.ts";
import { Netns } from "../kernel/netns.ts";
import { endpointRecordOf } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import { Clock } from "../transport/clock.ts";
import { DnsListener, DnsUpstream } from "../transport/dns-server.ts";
import { ENDPOINT_TABLE } from "../wire/networkdb/records.ts";
import type { Agent, Dependent } from "./agent.ts";

/** Where every sandbox finds its DNS server: Docker's address, in nobody's subnet. */
const DNS_ADDRESS = parseIp("127.0.0.11");
const CHECK_MS = 5_000;

/** Serves names in the sandbox of every endpoint of this node. */
export class DnsRunner implements Dependent {
  readonly counters = { queries: 0, forwarded: 0, malformed: 0 };
  readonly #agent: Agent;
  readonly #random: Random;
  readonly #servers = new Map<string, SandboxServer>();
  readonly #zones = new Map<NetworkId, Zone>();
  readonly #stale = new Set<NetworkId>();
  readonly #failed = new Map<string, string>();
  readonly #timer: NodeJS.Timeout;
  #scheduled = false;
  #closed = false;

  constructor(agent: Agent, random: Random) {
    this.#agent = agent;
    this.#random = random;
    this.#timer = setInterval(() => this.#sync(true), CHECK_MS);
    this.#timer.unref();
  }

  /** Rows, services or endpoints changed: zones are rebuilt when the next question comes. */
  refresh(): void {
    for (const network of this.#zones.keys()) this.#stale.add(network);
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#sync(false);
    });
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
    for (const server of this.#servers.values()) server.close();
    this.#servers.clear();
  }

  /** The zones an endpoint's sandbox sees, in the order its interfaces came. */
  zonesOf(sandbox: string): Zone[] {
    const networks = new Set<NetworkId>();
    for (const record of this.#agent.endpoints.all()) {
      if (record.kind === "user" && record.sandbox.type === "netns" && record.sandbox.path === sandbox)
        networks.add(record.network);
    }
    return [...networks].map((network) => this.#zone(network));
  }

  /** Names nobody knows may be asked outside unless every network of the sandbox is internal (CVE-2024-29018). */
  mayForward(sandbox: string): boolean {
    return this.zonesOf(sandbox).some(
      (zone) => this.#agent.loop.node.state.network(zone.network)?.internal === false,
    );
  }

  /** One server a sandbox that has an endpoint, none elsewhere. `check`: look also whether the old ones are still led to. */
  #sync(check: boolean): void {
    if (this.#closed) return;
    const wanted = new Set<string>();
    for (const record of this.#agent.endpoints.all()) {
      if (record.kind === "user" && record.sandbox.type === "netns") wanted.add(record.sandbox.path);
    }
    for (const [path, server] of this.#servers) {
      const stands = Netns.idOf(path) === server.namespace;
      if (wanted.has(path) && stands) continue;
      server.close();
      this.#servers.delete(path);
      if (stands) void this.#unredirect(path);
    }
    const opened = [...wanted].filter((path) => !this.#servers.has(path));
    for (const path of opened) this.#open(path);
    for (const path of check ? this.#servers.keys() : opened) {
      const server = this.#servers.get(path);
      if (server === undefined) continue;
      server.redirect().then(
        () => this.#failed.delete(path),
        (error: unknown) => this.#report(path, error),
      );
    }
  }

  #open(path: string): void {
    try {
      this.#servers.set(path, new SandboxServer(this, path, this.#random));
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

  #zone(network: NetworkId): Zone {
    let zone = this.#zones.get(network);
    if (zone === undefined) {
      zone = new Zone(network);
      this.#zones.set(network, zone);
      this.#stale.add(network);
    }
    if (this.#stale.delete(network)) {
      zone.update(
        {
          network,
          networkName: this.#agent.networkName(network),
          endpoints: this.#namedEndpoints(network),
          services: this.#namedServices(network),
        },
        this.#agent.loop.now(),
      );
    }
    return zone;
  }

  #namedEndpoints(network: NetworkId): NamedEndpoint[] {
    const found: NamedEndpoint[] = [];
    for (const row of this.#agent.loop.node.networkDb.rows(network, ENDPOINT_TABLE, { suspended: true })) {
      const record = endpointRecordOf(row);
      if (record === undefined) continue;
      const backs = record.serviceId !== "";
      found.push({
        name: record.name,
        taskAliases: record.taskAliases,
        ip: record.endpointIp,
        node: row.owner,
        // A node's short outage costs no name; its backends just have no address meanwhile.
        disabled: record.serviceDisabled || (backs && row.state === "suspended"),
        ...(backs
          ? { service: { name: record.serviceName, aliases: record.aliases, vip: record.virtualIp } }
          : {}),
      });
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

  get now() {
    return this.#agent.loop.now();
  }
}

/** The listener in one sandbox and its questions under way upstream, which are asked from the host's side. */
class SandboxServer {
  readonly namespace: string;
  readonly #runner: DnsRunner;
  readonly #path: string;
  readonly #random: Random;
  readonly #listener: DnsListener;
  readonly #upstream: DnsUpstream;
  readonly #forwarder: Forwarder;
  readonly #clock: Clock;
  readonly #waiting = new Map<
    number,
    {
      readonly query: Uint8Array;
      readonly transport: "udp" | "tcp";
      readonly reply: (bytes: Uint8Array) => void;
    }
  >();
  #nextId = 1;

  constructor(runner: DnsRunner, path: string, random: Random) {
    this.#runner = runner;
    this.#path = path;
    this.#random = random;
    using netns = Netns.open(path);
    this.namespace = netns.id;
    // The namespace may have no loopback yet: the address is bound all the same.
    const udp = netns.bindUdp(DNS_ADDRESS, { port: 0, freeBind: true });
    const tcp = netns.bindTcp(DNS_ADDRESS, { port: 0, freeBind: true });
    this.#clock = new Clock(() => this.#forward({ type: "wake" }));
    this.#forwarder = new Forwarder(random);
    this.#upstream = new DnsUpstream(
      (exchange, bytes) => this.#forward({ type: "answer", exchange, bytes }),
      (exchange) => this.#forward({ type: "failed", exchange }),
    );
    this.#listener = new DnsListener(udp, tcp, (bytes, transport, reply) =>
      this.#answer(bytes, transport, reply),
    );
    this.#forward({ type: "set-servers", servers: hostServers() });
  }

  /** Port 53 leads to us; made again when somebody flushed it. @throws NetError */
  async redirect(): Promise<void> {
    const ports = await this.#listener.ports();
    using netns = Netns.open(this.#path);
    if (!dnsRedirectStands(netns, ports)) await redirectDns(netns, ports);
  }

  close(): void {
    this.#listener.close();
    this.#upstream.close();
    this.#clock.close();
  }

  #answer(bytes: Uint8Array, transport: "udp" | "tcp", reply: (bytes: Uint8Array) => void): void {
    this.#runner.counters.queries++;
    try {
      const query = decodeQuery(bytes);
      const asker = {
        zones: this.#runner.zonesOf(this.#path),
        transport,
        mayForward: this.#runner.mayForward(this.#path),
      };
      const outcome = resolve(query, asker, this.#random, this.#runner.now);
      if (outcome.type === "reply") return reply(outcome.bytes);
      this.#runner.counters.forwarded++;
      const id = this.#nextId++;
      this.#waiting.set(id, { query: bytes, transport, reply });
      this.#forward({ type: "query", id, transport, bytes });
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.#runner.counters.malformed++;
    }
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
        this.#waiting.get(effect.id)?.reply(effect.bytes);
        this.#waiting.delete(effect.id);
        return;
      case "fail": {
        const waiting = this.#waiting.get(effect.id);
        this.#waiting.delete(effect.id);
        if (waiting !== undefined)
          waiting.reply(failure(decodeQuery(waiting.query), waiting.transport, effect.rcode));
      }
    }
  }
}

/** The host's own resolvers; our address among them would be a loop. */
function hostServers(): string[] {
  return getServers().filter((server) => server !== DNS_ADDRESS && !server.includes("]:"));
}
