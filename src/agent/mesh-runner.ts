import { errorText, NetError } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import { Netns } from "../kernel/netns.ts";
import { NftTableKeeper } from "../kernel/nft.ts";
import { HOST, MeshPlanner, type MeshDesired } from "../mesh/desired.ts";
import type { Backend, EntryNode, MeshInput, NodeFacts, Sandbox, Service } from "../mesh/input.ts";
import { isEmptyPlan, planSize } from "../mesh/plan.ts";
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
  readonly #keepers = new Map<
    string,
    { readonly keeper: NftTableKeeper; readonly netns: Netns | undefined; readonly id: string }
  >();
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

  constructor(agent: Agent) {
    this.#agent = agent;
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
    for (const [namespace, { ruleset }] of desired.namespaces) {
      const plan = this.#keeper(namespace)?.plan(ruleset, { deep: true });
      if (plan === undefined) continue;
      const { added, deleted } = planSize(plan);
      const steps = isEmptyPlan(plan)
        ? []
        : [`change nftables table netagent in ${namespace}: ${added} elements added, ${deleted} deleted`];
      views.push({ network: "mesh", steps });
    }
    return views;
  }

  /** Rules stay: a restarting agent must not cut a connection. */
  close(): void {
    this.#closed = true;
    clearInterval(this.#sweep);
    clearTimeout(this.#timer);
    for (const { keeper, netns } of this.#keepers.values()) {
      keeper[Symbol.dispose]();
      netns?.close();
    }
    for (const waiter of this.#waiters) {
      clearTimeout(waiter.timer);
      waiter.reject(new NetError("stopping", "netagent is stopping"));
    }
  }

  #schedule(): void {
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
    const desired = this.#planner.desired(this.#input());
    const deep = !ours && this.#sweeps % DEEP_EVERY === 0;
    let failure: unknown;
    for (const [namespace, state] of desired.namespaces) {
      try {
        const keeper = this.#keeper(namespace);
        if (keeper === undefined) continue; // the sandbox is gone; its endpoints follow
        this.#applySysctls(namespace, state.sysctls);
        const { plan, repaired } = await keeper.reconcile(state.ruleset, { deep });
        if (isEmptyPlan(plan)) continue;
        this.counters.changes++;
        if (!repaired) continue;
        const { added, deleted } = planSize(plan);
        this.counters.repairs++;
        this.#agent.event(
          "repair",
          "mesh",
          `rules in ${namespace}: ${added} elements added, ${deleted} deleted`,
        );
      } catch (error) {
        // One broken sandbox must not keep the others from their rules.
        failure ??= error;
      }
    }
    await this.#forgetOthers(desired);
    if (failure !== undefined)
      throw failure instanceof NetError
        ? failure
        : new NetError("mesh", errorText(failure), { cause: failure });
  }

  #applySysctls(namespace: string, sysctls: ReadonlyMap<string, string>): void {
    const netns = this.#keepers.get(namespace)?.netns;
    for (const [name, value] of sysctls) {
      const write = (where: Netns): void => {
        if (where.readSysctl(name) !== value) where.writeSysctl(name, value);
      };
      if (netns !== undefined) write(netns);
      else {
        using host = Netns.current();
        write(host);
      }
    }
  }

  /** Sandboxes without anything desired lose their table; those that no longer exist lose only our handle. */
  async #forgetOthers(desired: MeshDesired): Promise<void> {
    for (const [namespace, { keeper, netns, id }] of this.#keepers) {
      if (desired.namespaces.has(namespace)) continue;
      if (namespace === HOST || Netns.idOf(namespace) === id) await keeper.reconcile(undefined);
      keeper[Symbol.dispose]();
      netns?.close();
      this.#keepers.delete(namespace);
    }
  }

  #keeper(namespace: string): NftTableKeeper | undefined {
    const known = this.#keepers.get(namespace);
    const id = namespace === HOST ? HOST : Netns.idOf(namespace);
    if (known !== undefined && known.id === id) return known.keeper;
    if (known !== undefined) {
      known.keeper[Symbol.dispose]();
      known.netns?.close();
      this.#keepers.delete(namespace);
    }
    if (id === undefined) return undefined;
    const netns = namespace === HOST ? undefined : Netns.open(namespace);
    const keeper = new NftTableKeeper(netns);
    this.#keepers.set(namespace, { keeper, netns, id });
    return keeper;
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
    const vteps = new Set(this.#agent.config.dataPathAddrs);
    for (const member of node.swim.members()) {
      const facts = node.peer(member.name);
      for (const vtep of facts?.vteps ?? [member.address.ip]) vteps.add(vtep);
    }
    return {
      ...(leg !== undefined && ready
        ? { ingress: { ip: leg.ip, mac: leg.mac, interface: INGRESS_HOST_LINK, subnet: INGRESS.subnet } }
        : {}),
      entryNodes: this.#entryNodes(),
      overlayRanges: node.state.networks().map((network) => network.subnet),
      keepClientAddress: false,
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
    return [...byPath].map(([namespace, entry]) => ({ namespace, ...entry }));
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
