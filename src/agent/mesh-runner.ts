import { errorText, NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { subnetContains } from "../base/ip.ts";
import { Ipv6Relay } from "../kernel/ipv6-relay.ts";
import { Netns } from "../kernel/netns.ts";
import { holderText, PortGuard } from "../kernel/port-holder.ts";
import type { NodePort } from "../mesh/claims.ts";
import { HOST, MeshPlanner, type MeshDesired } from "../mesh/desired.ts";
import { planPurges, type FlowGroup } from "../mesh/flows.ts";
import type { MeshInput, NodeFacts, Sandbox } from "../mesh/input.ts";
import { changedServed, type ServedPort } from "../mesh/service-blocks.ts";
import { INGRESS_HOST_LINK } from "../overlay/naming.ts";
import { endpointRecordOf } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import { ENDPOINT_TABLE } from "../wire/networkdb/records.ts";
import type { Agent, Dependent } from "./agent.ts";
import type { PlanView } from "./control-protocol.ts";
import { FailingBackends, nameOf } from "./failing-backends.ts";
import { MeshNamespace } from "./mesh-namespace.ts";
import type { PortCount } from "./port-counts.ts";
import { ServiceIndex, type FailingPort } from "./service-index.ts";

/** Changes that come together are one transaction. */
const BREATH_MS = 5;
/** Another hand's changes heal within this. */
const SWEEP_MS = 3_000;
/** How long after our ingress leg came up its peers are trusted to know it, so that replies can come back through us. */
const LEG_KNOWN_MS = 2_000;
/** How long a new backend's name waits for its rules. */
const RULES_MS = 2_000;
/** How often a row that gossip is about to bring is looked for. */
const ROW_LOOK_MS = 20;
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
  readonly #index: ServiceIndex;
  readonly #failing: FailingBackends;
  /** Those that wait for the next round, and those whose round is under way. */
  readonly #waiters = new Set<Waiter>();
  #asking: readonly Waiter[] = [];
  #timer: NodeJS.Timeout | undefined;
  readonly #endSweeps: () => void;
  #running = false;
  #again = false;
  #sweepDue = false;
  #sweeps = 0;
  #problem: NetError | undefined;
  #closed = false;
  /** Undefined until the first round: what flows a former life left nobody has told us. */
  #flows: readonly FlowGroup[] | undefined;
  #ports: readonly (readonly ServedPort[])[] = [];
  #legReadySince: number | undefined;
  #portProblem = "";
  #taken: readonly NodePort[] = [];

  constructor(agent: Agent) {
    this.#agent = agent;
    this.#index = new ServiceIndex(agent.loop);
    this.#relay = new Ipv6Relay(({ text }) => this.#reportPort(text));
    this.#failing = new FailingBackends(
      () => this.#namespaces.get(HOST)?.failing() ?? new Uint32Array(0),
      (ports, added) => this.#fail(ports, added),
    );
    this.#endSweeps = agent.loop.every(SWEEP_MS, () => {
      this.#sweepDue = true;
      // Not a breath later: that would be one more wakeup.
      if (this.#timer === undefined && this.#maySchedule()) void this.#run();
    });
  }

  refresh(): void {
    this.#schedule();
  }

  lookAgain(): void {
    this.#sweepDue = true;
    this.#schedule();
  }

  rowChanged(network: NetworkId, table: string, key: string): void {
    this.#index.rowChanged(network, table, key);
  }

  /** Resolves when no rule of this node sends new flows to these endpoints. @throws NetError after `timeoutMs` */
  async avoids(
    endpoints: readonly { readonly network: NetworkId; readonly key: string }[],
    timeoutMs: number,
  ): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    const { networkDb } = this.#agent.loop.node;
    const known = ({ network, key }: (typeof endpoints)[number]): boolean => {
      const row = networkDb.row(network, ENDPOINT_TABLE, key);
      // What is not here yet may still come as it was before; where we are not on the network nothing comes.
      if (row === undefined) return !networkDb.attachments().some((one) => one.network === network);
      return endpointRecordOf(row)?.serviceDisabled !== false;
    };
    while (!endpoints.every(known)) {
      if (performance.now() >= deadline)
        throw new NetError("timeout", "the tables of this node do not say yet that the backend drains");
      await new Promise((resolve) => setTimeout(resolve, ROW_LOOK_MS));
    }
    // A node without rules of its own has nothing that could be late.
    if (this.#agent.learned.everything()) await this.settled(Math.max(1, deadline - performance.now()));
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

  /** A round from now on, or as long as one may take: what is wrong is reported, and the next sweep tries again. */
  async rulesMade(): Promise<void> {
    // A restarted agent makes none before it knows what its peers know.
    if (this.#agent.learned.everything()) await this.settled(RULES_MS).catch(() => undefined);
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

  /** Services some of whose backends this node prefers others to. */
  avoided(): { readonly service: string; readonly backends: number }[] {
    return this.#index.services().flatMap(({ name, backends }) => {
      const count = backends.filter(({ avoid }) => avoid === true).length;
      return count === 0 ? [] : [{ service: name, backends: count }];
    });
  }

  /** What came to the published ports; none without rules, or while the table is being replaced. */
  portCounts(): readonly PortCount[] {
    try {
      return this.#namespaces.get(HOST)?.portCounts() ?? [];
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      return [];
    }
  }

  /** Published ports that processes here hold, one line each. */
  get heldPorts(): string[] {
    return this.#taken.flatMap((port) => {
      const holder = this.#guard.holderOf(port);
      return holder === undefined ? [] : [`${holderText(holder)} and gets nothing`];
    });
  }

  /** Who on this node would lose one of the ports, for people; undefined when nobody. */
  portHolder(ports: readonly NodePort[]): string | undefined {
    for (const port of ports) {
      const holder = this.#guard.holderOf(port);
      if (holder !== undefined) return holderText(holder);
    }
    return undefined;
  }

  /** Rules stay: a restarting agent must not cut a connection. */
  close(): void {
    this.#closed = true;
    this.#endSweeps();
    clearTimeout(this.#timer);
    for (const namespace of this.#namespaces.values()) namespace.close();
    this.#failing.close();
    this.#guard.close();
    this.#relay.close();
    for (const waiter of this.#waiters) {
      clearTimeout(waiter.timer);
      waiter.reject(new NetError("stopping", "netagent is stopping"));
    }
  }

  /** A restarted agent leaves the rules of its former life alone until it knows as much as that one did. */
  #maySchedule(): boolean {
    return !this.#closed && this.#agent.learned.everything();
  }

  #schedule(): void {
    if (this.#timer !== undefined || !this.#maySchedule()) return;
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
    // Who asked before a round began is answered by it, however busy the rounds after it are.
    this.#asking = [...this.#waiters];
    const sweep = this.#sweepDue;
    this.#sweepDue = false;
    if (sweep) this.#sweeps++;
    try {
      await this.#reconcile(sweep);
      this.#problem = undefined;
      for (const waiter of this.#asking) this.#release(waiter);
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
      if (this.#again) {
        this.#again = false;
        this.#schedule();
      }
    }
  }

  async #reconcile(sweep: boolean): Promise<void> {
    this.counters.rounds++;
    const input = this.#input();
    const desired = this.#planner.desired(input);
    const { repair } = this.#agent;
    const look = { everything: sweep, deep: sweep && this.#sweeps % DEEP_EVERY === 0, repair };
    let failure: unknown;
    for (const [path, state] of desired.namespaces) {
      try {
        const namespace = this.#namespace(path);
        // A sandbox that is gone: its endpoints follow.
        if (namespace === undefined) continue;
        const outcome = await namespace.reconcile(state, look);
        if (outcome === undefined) continue;
        if (!repair)
          this.#agent.stands(
            path,
            "mesh",
            outcome.standing.map((text) => ({ text })),
          );
        if (!outcome.changed) continue;
        this.counters.changes++;
        this.counters.repairs += outcome.faults.length;
        for (const fault of outcome.faults) this.#agent.repaired("mesh", fault);
      } catch (error) {
        // One broken sandbox must not keep the others from their rules.
        failure ??= error;
      }
    }
    await this.#forgetOthers(desired);
    this.#failing.watch(input.node.ingress !== undefined);
    this.#purge(input, desired);
    this.#relay.update(desired.served);
    this.#reserve(desired.served);
    if (failure !== undefined)
      throw failure instanceof NetError
        ? failure
        : new NetError("mesh", errorText(failure), { cause: failure });
  }

  /** After the rules are in place: a flow purged before would be entered again by the old ones. */
  #purge(input: MeshInput, desired: MeshDesired): void {
    const { flows } = desired;
    if (this.#flows !== undefined) {
      for (const [path, purges] of planPurges(this.#flows, flows, input.sandboxes))
        this.#namespace(path)?.conntrack.purge(purges);
    } else if (input.node.ingress !== undefined) {
      const known = new Set<string>();
      for (const { host } of flows)
        for (const { protocol, ip, port } of host) if (protocol === "udp") known.add(`${ip} ${port}`);
      this.#namespace(HOST)?.conntrack.purgeStrays(
        (ip) => subnetContains(INGRESS.subnet, ip),
        ({ reply }) => known.has(`${reply.source} ${reply.sourcePort}`),
      );
    }
    this.#flows = flows;
  }

  /** What this node alone has seen: nothing is published, and what is left when all fail is used all the same. */
  #fail(ports: readonly FailingPort[], added: readonly FailingPort[]): void {
    for (const port of added)
      this.#agent.event("backend-failing", nameOf(port), "does not take connections; others are preferred");
    if (this.#index.setFailing(ports)) this.#schedule();
  }

  #reserve(served: readonly (readonly ServedPort[])[]): void {
    const before = this.#ports;
    this.#ports = served;
    if (this.#taken.length === 0 && changedServed(before, served) !== undefined) return;
    this.#taken = this.#guard.reserve(served.flat());
    for (const port of this.#taken)
      this.#reportPort(
        `port ${port.port}/${port.protocol} is published, but a process here holds it and gets nothing`,
      );
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
      if (namespace.exists())
        await namespace.reconcile({ sysctls: new Map() }, { everything: true, deep: false, repair: true });
      namespace.close();
      this.#namespaces.delete(path);
      this.#agent.stands(path, "mesh", []);
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
    return {
      node: this.#nodeFacts(),
      services: this.#index.services(),
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
      entryNodes: this.#index.entryNodes(),
      overlayRanges: node.state.networks().map((network) => network.subnet),
      keepClientAddress: this.#legReadySince !== undefined && now - this.#legReadySince >= LEG_KNOWN_MS,
    };
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
        const { ready, wired } = this.#agent.endpoints;
        if (ready.has(record.id) || wired.has(record.id)) {
          const { ifname, ip, service } = record;
          entry.ingress = { interface: ifname, ip, ...(service === undefined ? {} : { service }) };
        }
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

  #release(waiter: Waiter): void {
    if (!this.#waiters.delete(waiter)) return;
    clearTimeout(waiter.timer);
    waiter.resolve();
  }
}
