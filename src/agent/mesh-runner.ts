import { errorText, NetError } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import { Conntrack } from "../kernel/conntrack.ts";
import { Ipv6Relay } from "../kernel/ipv6-relay.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { Netns } from "../kernel/netns.ts";
import { NftTableKeeper } from "../kernel/nft.ts";
import { holderText, PortGuard } from "../kernel/port-holder.ts";
import { applyReturnPath, readDefaultSource, readReturnPath } from "../kernel/return-path.ts";
import { HOST, MeshPlanner, type MeshDesired, type NamespaceState } from "../mesh/desired.ts";
import type { NodePort } from "../mesh/claims.ts";
import { planPurges, type FlowGroup } from "../mesh/flows.ts";
import type { Backend, EntryNode, MeshInput, NodeFacts, Sandbox, Service } from "../mesh/input.ts";
import { isEmptyPlan, planSize } from "../mesh/plan.ts";
import { planReturnPath } from "../mesh/return-path.ts";
import { INGRESS_HOST_LINK } from "../overlay/naming.ts";
import { endpointRecordOf, INGRESS_ENDPOINT_NAME, peerRecordOf } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import type { ServiceView } from "../state/state.ts";
import { ENDPOINT_TABLE, PEER_TABLE } from "../wire/networkdb/records.ts";
import type { Agent, Dependent } from "./agent.ts";
import type { PlanView } from "./control-protocol.ts";

/** Changes that come together are one transaction. */
const BREATH_MS = 5;
/** Another hand's changes heal within this. */
const SWEEP_MS = 3_000;
/** How long after our ingress leg came up its peers are trusted to know it, so that replies can come back through us. */
const LEG_KNOWN_MS = 2_000;
/** Every so many sweeps every element is compared, not only what the ruleset's generation hints at. */
const DEEP_EVERY = 10;

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: NetError) => void;
  readonly timer: NodeJS.Timeout;
}

/** Keeps the mesh's rules in the host's and the sandboxes' namespaces what services and rows say. */
export class MeshRunner implements Dependent {
  readonly counters = { rounds: 0, changes: 0, repairs: 0, failures: 0 };
  readonly #agent: Agent;
  readonly #planner = new MeshPlanner();
  readonly #namespaces = new Map<string, MeshNamespace>();
  readonly #guard = new PortGuard();
  readonly #relay: Ipv6Relay;
  readonly #services = new Map<string, { readonly text: string; readonly service: Service }>();
  readonly #waiters = new Set<Waiter>();
  #timer: NodeJS.Timeout | undefined;
  readonly #sweep: NodeJS.Timeout;
  #running = false;
  #again = false;
  #ours = false;
  #sweeps = 0;
  #problem: NetError | undefined;
  #closed = false;
  #flows: readonly FlowGroup[] = [];
  #legReadySince: number | undefined;
  #portProblem = "";
  #taken: readonly NodePort[] = [];

  constructor(agent: Agent) {
    this.#agent = agent;
    this.#relay = new Ipv6Relay(({ text }) => this.#reportPort(text));
    this.#sweep = setInterval(() => {
      this.#sweeps++;
      this.#schedule();
    }, SWEEP_MS);
    this.#sweep.unref();
  }

  refresh(): void {
    this.#ours = true;
    this.#schedule();
  }

  /** @throws NetError what is still wrong after `timeoutMs`. */
  settled(timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.delete(waiter);
        reject(
          this.#problem ??
            new NetError(
              "timeout",
              `the mesh does not agree after ${timeoutMs} ms (netctl plan shows what is missing)`,
            ),
        );
      }, timeoutMs);
      const waiter: Waiter = { resolve, reject, timer };
      this.#waiters.add(waiter);
      this.refresh();
    });
  }

  plan(): PlanView[] {
    const desired = this.#planner.desired(this.#input());
    const views: PlanView[] = [];
    for (const [namespace, state] of desired.namespaces) {
      const steps = this.#namespace(namespace)?.plan(state);
      if (steps !== undefined) views.push({ network: "mesh", steps });
    }
    return views;
  }

  /** What the last round failed at; undefined when it did not. */
  get problem(): NetError | undefined {
    return this.#problem;
  }

  /** Published ports that processes here hold, one line each. */
  get heldPorts(): string[] {
    return this.#taken.flatMap((port) => {
      const holder = this.#guard.holderOf(port);
      return holder === undefined ? [] : [`${holderText(holder)} and gets nothing`];
    });
  }

  /** @throws NetError `port-taken` naming the process that would lose a port. */
  checkPorts(ports: readonly NodePort[]): void {
    for (const port of ports) {
      const holder = this.#guard.holderOf(port);
      if (holder !== undefined) {
        throw new NetError(
          "port-taken",
          `publish ${port.port}/${port.protocol}: ${holderText(holder)} (stop it, choose another port, or --force)`,
        );
      }
    }
  }

  /** Rules stay: a restarting agent must not cut a connection. */
  close(): void {
    this.#closed = true;
    clearInterval(this.#sweep);
    clearTimeout(this.#timer);
    for (const namespace of this.#namespaces.values()) namespace.close();
    this.#guard.close();
    this.#relay.close();
    for (const waiter of this.#waiters) {
      clearTimeout(waiter.timer);
      waiter.reject(new NetError("stopping", "netagent is stopping"));
    }
  }

  #schedule(): void {
    // A restarted agent leaves the rules of its former life alone until it knows as much as that one did.
    if (!this.#agent.tablesLoaded()) return;
    if (this.#closed || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#run();
    }, BREATH_MS);
  }

  async #run(): Promise<void> {
    if (this.#running) {
      this.#again = true;
      return;
    }
    this.#running = true;
    const ours = this.#ours;
    this.#ours = false;
    try {
      await this.#reconcile(ours);
      this.#problem = undefined;
      if (!this.#again && !this.#ours) this.#release();
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      this.counters.failures++;
      if (this.#problem?.message !== error.message) {
        this.#agent.log.warn({ code: error.code }, `mesh: ${error.message}`);
        this.#agent.event("failure", "mesh", error.message);
      }
      this.#problem = error;
    } finally {
      this.#running = false;
      if (this.#again || this.#ours) {
        this.#again = false;
        this.#schedule();
      }
    }
  }

  async #reconcile(ours: boolean): Promise<void> {
    this.counters.rounds++;
    const input = this.#input();
    const desired = this.#planner.desired(input);
    const deep = !ours && this.#sweeps % DEEP_EVERY === 0;
    let failure: unknown;
    for (const [path, state] of desired.namespaces) {
      try {
        const namespace = this.#namespace(path);
        // A sandbox that is gone: its endpoints follow.
        if (namespace === undefined) continue;
        const outcome = await namespace.reconcile(state, deep);
        if (outcome === undefined) continue;
        this.counters.changes++;
        if (!outcome.repaired) continue;
        this.counters.repairs++;
        this.#agent.event("repair", "mesh", outcome.text);
      } catch (error) {
        // One broken sandbox must not keep the others from their rules.
        failure ??= error;
      }
    }
    await this.#forgetOthers(desired);
    // After the rules are in place: a flow purged before would be entered again by the old ones.
    for (const [path, purges] of planPurges(this.#flows, desired.flows, input.sandboxes))
      this.#namespace(path)?.conntrack.purge(purges);
    this.#flows = desired.flows;
    this.#relay.update(desired.served);
    const taken = this.#guard.reserve(desired.served.flat());
    this.#taken = taken;
    for (const port of taken)
      this.#reportPort(
        `port ${port.port}/${port.protocol} is published, but a process here holds it and gets nothing`,
      );
    if (failure !== undefined)
      throw failure instanceof NetError
        ? failure
        : new NetError("mesh", errorText(failure), { cause: failure });
  }

  #reportPort(text: string): void {
    if (text === this.#portProblem) return;
    this.#portProblem = text;
    this.#agent.log.warn({}, `mesh: ${text}`);
    this.#agent.event("failure", "mesh", text);
  }

  /** Sandboxes without anything desired lose their table; those that no longer exist lose only our handle. */
  async #forgetOthers(desired: MeshDesired): Promise<void> {
    for (const [path, namespace] of this.#namespaces) {
      if (desired.namespaces.has(path)) continue;
      if (namespace.exists()) await namespace.reconcile({ sysctls: new Map() }, false);
      namespace.close();
      this.#namespaces.delete(path);
    }
  }

  #namespace(path: string): MeshNamespace | undefined {
    const known = this.#namespaces.get(path);
    if (known?.exists() === true) return known;
    known?.close();
    this.#namespaces.delete(path);
    if (path !== HOST && Netns.idOf(path) === undefined) return undefined;
    const namespace = new MeshNamespace(path);
    this.#namespaces.set(path, namespace);
    return namespace;
  }

  #input(): MeshInput {
    const { state } = this.#agent.loop.node;
    return {
      node: this.#nodeFacts(),
      services: state.services().map((service) => this.#service(service)),
      sandboxes: this.#sandboxes(),
    };
  }

  #nodeFacts(): NodeFacts {
    const { node } = this.#agent.loop;
    const leg = this.#agent.endpoints.ingressLeg();
    const ready = leg !== undefined && this.#agent.endpoints.ready.has(leg.id);
    const now = this.#agent.loop.now();
    if (!ready) this.#legReadySince = undefined;
    else if (this.#legReadySince === undefined) {
      // A leg of our former life is known since then: the rules stay what they are.
      const adopted = now - this.#agent.startedAt < LEG_KNOWN_MS;
      this.#legReadySince = adopted ? now - LEG_KNOWN_MS : now;
      setTimeout(() => this.refresh(), LEG_KNOWN_MS + BREATH_MS).unref();
    }
    return {
      ...(leg !== undefined && ready
        ? { ingress: { ip: leg.ip, mac: leg.mac, interface: INGRESS_HOST_LINK, subnet: INGRESS.subnet } }
        : {}),
      entryNodes: this.#entryNodes(),
      overlayRanges: node.state.networks().map((network) => network.subnet),
      keepClientAddress: this.#legReadySince !== undefined && now - this.#legReadySince >= LEG_KNOWN_MS,
    };
  }

  /** Every node's leg in the ingress network, known by its endpoint's name. */
  #entryNodes(): EntryNode[] {
    const { networkDb } = this.#agent.loop.node;
    const entries: EntryNode[] = [];
    for (const row of networkDb.rows(INGRESS.id, ENDPOINT_TABLE, { suspended: true })) {
      if (endpointRecordOf(row)?.name !== INGRESS_ENDPOINT_NAME) continue;
      const peerRow = networkDb.row(INGRESS.id, PEER_TABLE, row.key);
      const peer = peerRow === undefined ? undefined : peerRecordOf(peerRow);
      if (peer !== undefined) entries.push({ ip: peer.endpointIp.ip, mac: peer.endpointMac });
    }
    return entries;
  }

  #sandboxes(): Sandbox[] {
    const byPath = new Map<
      string,
      { legs: Sandbox["legs"][number][]; ingress?: NonNullable<Sandbox["ingress"]> }
    >();
    for (const record of this.#agent.endpoints.all()) {
      if (record.sandbox.type !== "netns") continue;
      const entry = byPath.get(record.sandbox.path) ?? { legs: [] };
      if (record.kind === "backend-leg") {
        if (this.#agent.endpoints.ready.has(record.id))
          entry.ingress = { interface: record.ifname, ip: record.ip };
      } else entry.legs.push({ network: record.network, ip: record.ip });
      byPath.set(record.sandbox.path, entry);
    }
    return [...byPath].map(([namespace, entry]) => {
      // Only who answers strangers needs to know where such answers would go by themselves.
      const defaultSource =
        entry.ingress === undefined ? undefined : this.#namespace(namespace)?.defaultSource();
      return { namespace, ...entry, ...(defaultSource === undefined ? {} : { defaultSource }) };
    });
  }

  /** The same object as last time while nothing about it changed, which saves the planner its work. */
  #service(view: ServiceView): Service {
    const service: Service = {
      id: view.id,
      name: view.name,
      endpointMode: view.endpointMode,
      affinity: view.affinity,
      ports: view.ports,
      vips: view.networks.flatMap(({ network, vip }) => (vip === undefined ? [] : [{ network, ip: vip }])),
      backends: this.#backends(view),
    };
    const text = JSON.stringify(service);
    const known = this.#services.get(view.id);
    if (known?.text === text) return known.service;
    this.#services.set(view.id, { text, service });
    return service;
  }

  /** One entry an endpoint and network; that of ingress is where published ports lead. */
  #backends(view: ServiceView): Backend[] {
    const { node } = this.#agent.loop;
    const backends: Backend[] = [];
    const networks = new Set([...view.networks.map((one) => one.network), INGRESS.id]);
    for (const network of networks) {
      for (const row of node.networkDb.rows(network, ENDPOINT_TABLE)) {
        const record = endpointRecordOf(row);
        if (record?.serviceId !== view.id) continue;
        const avoid = node.swim.member(row.owner)?.state === "suspect";
        backends.push({
          endpoint: row.key as Backend["endpoint"],
          network,
          ip: record.endpointIp,
          ...(network === INGRESS.id ? { ingressIp: record.endpointIp } : {}),
          node: row.owner,
          state: record.serviceDisabled || this.#drains(row.owner) ? "draining" : "ready",
          capable: node.peer(row.owner)?.capabilities.includes("return-path") === true,
          local: row.owner === this.#agent.self,
          ...(avoid ? { avoid } : {}),
        });
      }
    }
    return backends;
  }

  #drains(owner: NodeName): boolean {
    const { node } = this.#agent.loop;
    const facts = node.peer(owner);
    return facts !== undefined && node.state.availability(facts.id) === "drain";
  }

  #release(): void {
    for (const waiter of this.#waiters) {
      clearTimeout(waiter.timer);
      waiter.resolve();
    }
    this.#waiters.clear();
  }
}

/** The mesh's handles on one namespace, the host's or a sandbox's. */
class MeshNamespace {
  readonly conntrack: Conntrack;
  readonly #path: string;
  readonly #netns: Netns;
  readonly #keeper: NftTableKeeper;
  readonly #routes: NetlinkSocket;

  constructor(path: string) {
    this.#path = path;
    this.#netns = path === HOST ? Netns.current() : Netns.open(path);
    this.#keeper = new NftTableKeeper(this.#netns);
    this.#routes = new NetlinkSocket("route", this.#netns);
    this.conntrack = new Conntrack(this.#netns);
  }

  /** Whether the path still leads to the namespace we hold. */
  exists(): boolean {
    return this.#path === HOST || Netns.idOf(this.#path) === this.#netns.id;
  }

  defaultSource(): IpAddr | undefined {
    return readDefaultSource(this.#routes);
  }

  /** What had to be changed; undefined when all agreed. @throws NetError */
  async reconcile(
    state: NamespaceState,
    deep: boolean,
  ): Promise<{ readonly repaired: boolean; readonly text: string } | undefined> {
    for (const [name, value] of state.sysctls) {
      if (this.#netns.readSysctl(name) !== value) this.#netns.writeSysctl(name, value);
    }
    // Ways back before the rules that mark connections for them.
    const ways = this.#path === HOST ? [] : planReturnPath(state.returnPath, readReturnPath(this.#routes));
    if (ways.length > 0) applyReturnPath(this.#routes, ways);
    const { plan, repaired } = await this.#keeper.reconcile(state.ruleset, { deep });
    if (isEmptyPlan(plan)) return undefined;
    const { added, deleted } = planSize(plan);
    return { repaired, text: `rules in ${this.#path}: ${added} elements added, ${deleted} deleted` };
  }

  /** The same, only said. @throws NetError */
  plan(state: NamespaceState): string[] {
    const steps: string[] = [];
    for (const [name, value] of state.sysctls) {
      if (this.#netns.readSysctl(name) !== value)
        steps.push(`set sysctl ${name} = ${value} in ${this.#path}`);
    }
    const ways = this.#path === HOST ? [] : planReturnPath(state.returnPath, readReturnPath(this.#routes));
    for (const way of ways) steps.push(`${way.type} for replies in ${this.#path}`);
    const plan = this.#keeper.plan(state.ruleset, { deep: true });
    if (!isEmptyPlan(plan)) {
      const { added, deleted } = planSize(plan);
      steps.push(
        `change nftables table netagent in ${this.#path}: ${added} elements added, ${deleted} deleted`,
      );
    }
    return steps;
  }

  close(): void {
    this.#keeper[Symbol.dispose]();
    this.#routes.close();
    this.conntrack[Symbol.dispose]();
    this.#netns.close();
  }
}
