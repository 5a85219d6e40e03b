import { errorText, NetError } from "../base/error.ts";
import type { IpAddr } from "../base/ip.ts";
import { Netns } from "../kernel/netns.ts";
import { NftTableKeeper, type CountedAddress } from "../kernel/nft.ts";
import { asDue, describeRepair, isEmptyPlan } from "../mesh/plan.ts";
import {
  STRANGER_SETS,
  STRANGERS_COUNTER,
  VTEPS,
  VTEPS6,
  VXLAN_TABLE,
  vxlanFilter,
} from "../mesh/vxlan-filter.ts";
import { peerRecordOf } from "../overlay/rows.ts";
import { PEER_TABLE } from "../wire/networkdb/records.ts";
import type { Agent, Dependent } from "./agent.ts";

/** Changes that come together are one transaction. */
const BREATH_MS = 5;
/** Another hand's changes heal within this, and strangers are noticed. */
const SWEEP_MS = 3_000;
/** Without endpoints there is nothing to protect; a moment later they may be back, and making it takes 20 ms. */
const LINGER_MS = 1_000;
/** Strangers told about in events; the counters go on. */
const MAX_TOLD = 64;

/** Keeps strangers' VXLAN away from this node's networks: a set of members' VTEPs, and counters of the others. */
export class UnderlayFilter implements Dependent {
  readonly counters = { changes: 0, repairs: 0, failures: 0 };
  readonly #agent: Agent;
  readonly #host = Netns.current();
  readonly #keeper = new NftTableKeeper(this.#host, VXLAN_TABLE);
  readonly #endSweeps: () => void;
  readonly #told = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #working: Promise<void> = Promise.resolve();
  #neededAt: number | undefined;
  /** Members of our former life, until we know those of this one. */
  #inherited: readonly IpAddr[] | undefined;
  #problem: NetError | undefined;
  #closed = false;

  constructor(agent: Agent) {
    this.#agent = agent;
    this.#keeper.onTouched = () => this.refresh();
    this.#endSweeps = agent.loop.every(SWEEP_MS, () => {
      void this.#reconcile();
      this.#tellStrangers();
    });
  }

  refresh(): void {
    if (this.#closed || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#reconcile();
    }, BREATH_MS);
  }

  lookAgain(): void {
    this.refresh();
  }

  /** Resolves when the filter stands, so that a network may come up. @throws NetError */
  async ensure(): Promise<void> {
    // A network that comes up is our own change: it must not be without the filter, whoever took it away.
    await this.#reconcile(true);
    if (this.#problem !== undefined) throw this.#problem;
  }

  get problem(): NetError | undefined {
    return this.#problem;
  }

  /**
   * Who sent VXLAN in the last hour without being a member, most packets first. At most some hundred. Who is one by
   * now is left out: members send before they have heard that this node is back, and it before it has heard of them.
   */
  strangers(): CountedAddress[] {
    if (this.#neededAt === undefined) return [];
    const members = new Set(this.#vteps());
    return STRANGER_SETS.flatMap((name) => this.#keeper.countedAddresses(name))
      .filter(({ address }) => !members.has(address))
      .sort((a, b) => Number(b.packets - a.packets));
  }

  /** Packets of strangers dropped since the filter was made. */
  get dropped(): number {
    return Number(this.#keeper.counter(STRANGERS_COUNTER)?.packets ?? 0n);
  }

  /** The rules stay while there are endpoints: a restarting agent must not leave a gap. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#endSweeps();
    clearTimeout(this.#timer);
    await this.#working;
    try {
      if (this.#agent.endpoints.networks().size === 0) await this.#keeper.reconcile(undefined);
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      this.#agent.log.warn({ code: error.code }, `VXLAN filter: ${error.message}`);
    } finally {
      this.#keeper.close();
      this.#host.close();
    }
  }

  /** One after the other: a keeper does one thing at a time. */
  #reconcile(repair = this.#agent.repair): Promise<void> {
    this.#working = this.#working.then(() => this.#reconcileOnce(repair));
    return this.#working;
  }

  async #reconcileOnce(repair: boolean): Promise<void> {
    if (this.#closed) return;
    try {
      const desired = this.#isNeeded()
        ? vxlanFilter(this.#agent.config.dataPathPort, this.#vteps())
        : undefined;
      const { plan, repaired, drift } = await this.#keeper.reconcile(desired, { repair });
      this.#problem = undefined;
      if (!this.#agent.repair) {
        const text = drift && asDue(`nftables table ${VXLAN_TABLE}: ${describeRepair(drift)}`);
        this.#agent.stands(VXLAN_TABLE, VXLAN_TABLE, text === undefined ? [] : [{ text }]);
      }
      if (isEmptyPlan(plan)) return;
      this.counters.changes++;
      if (!repaired) return;
      this.counters.repairs++;
      this.#agent.repaired(VXLAN_TABLE, `nftables table ${VXLAN_TABLE}: ${describeRepair(plan)}`);
    } catch (error) {
      if (this.#closed) return;
      this.counters.failures++;
      const problem =
        error instanceof NetError ? error : new NetError("filter", errorText(error), { cause: error });
      if (this.#problem?.message !== problem.message) {
        this.#agent.log.warn({ code: problem.code }, `VXLAN filter: ${problem.message}`);
        this.#agent.event("failure", VXLAN_TABLE, problem.message);
      }
      this.#problem = problem;
    }
  }

  #isNeeded(): boolean {
    const now = this.#agent.loop.now();
    if (this.#agent.endpoints.networks().size > 0) this.#neededAt = now;
    if (this.#neededAt === undefined) return false;
    const rest = LINGER_MS - (now - this.#neededAt);
    if (rest > 0) setTimeout(() => this.refresh(), rest + 1).unref();
    else this.#neededAt = undefined;
    return rest > 0;
  }

  #vteps(): IpAddr[] {
    const { node } = this.#agent.loop;
    const vteps = new Set<IpAddr>(this.#agent.config.dataPathAddrs);
    let foreign = false;
    for (const member of node.swim.members()) {
      // Those that failed or left, too, until they are forgotten: their endpoints may go on without an agent, for a
      // restart or a partition, and their rows stand.
      const facts = node.peer(member.name);
      foreign ||= facts === undefined;
      for (const vtep of facts?.vteps ?? [member.address.ip]) vteps.add(vtep);
    }
    // A member that is no netagent tells its data-path address in its rows only (Docker's --data-path-addr).
    if (foreign) for (const vtep of this.#vtepsOfForeignRows()) vteps.add(vtep);
    if (this.#agent.learned.everything()) this.#inherited = [];
    else for (const vtep of (this.#inherited ??= this.#standing())) vteps.add(vtep);
    return [...vteps];
  }

  *#vtepsOfForeignRows(): Iterable<IpAddr> {
    const { node } = this.#agent.loop;
    for (const { network } of node.networkDb.attachments()) {
      for (const row of node.networkDb.rows(network, PEER_TABLE, { suspended: true })) {
        if (row.owner === node.name || node.peer(row.owner) !== undefined) continue;
        const vtep = peerRecordOf(row)?.vtep;
        if (vtep !== undefined) yield vtep;
      }
    }
  }

  /** Whom the filter of a former life lets in. */
  #standing(): IpAddr[] {
    return [VTEPS, VTEPS6].flatMap((set) => this.#keeper.addresses(set));
  }

  #tellStrangers(): void {
    if (this.#closed || this.#neededAt === undefined) return;
    try {
      for (const { address, packets } of this.strangers()) {
        if (this.#told.has(address) || this.#told.size >= MAX_TOLD) continue;
        this.#told.add(address);
        this.#agent.log.warn({ address }, `VXLAN from ${address}, which is no member: dropped`);
        this.#agent.event(
          "stranger",
          address,
          `${packets} VXLAN packets dropped: it is no member's data-path address`,
        );
      }
    } catch (error) {
      // The table is being replaced, or was taken away: the next sweep mends that, and looks again.
      if (!(error instanceof NetError)) throw error;
    }
  }
}
