import type { IpAddr } from "../base/ip.ts";
import { Conntrack } from "../kernel/conntrack.ts";
import { reconcileForwardPolicy } from "../kernel/forward-policy.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { Netns } from "../kernel/netns.ts";
import { NftTableKeeper } from "../kernel/nft.ts";
import { applyReturnPath, readDefaultSource, readReturnPath } from "../kernel/return-path.ts";
import { HOST, type NamespaceState } from "../mesh/desired.ts";
import { FAILING } from "../mesh/host-rules.ts";
import { describeRepair, isEmptyPlan } from "../mesh/plan.ts";
import { describeReturnPathStep, planReturnPath } from "../mesh/return-path.ts";
import { TABLE } from "../mesh/ruleset.ts";
import { INGRESS_HOST_LINK } from "../overlay/naming.ts";

/** Sweeps and changes between two looks at iptables when nobody seems to have changed anything. */
const FORWARD_EVERY = 10;

/** Something was changed; `faults` are what another hand had done, and what was done about it. */
export interface MeshOutcome {
  readonly faults: readonly string[];
}

/** The mesh's handles on one namespace, the host's or a sandbox's. */
export class MeshNamespace {
  readonly conntrack: Conntrack;
  readonly #path: string;
  readonly #netns: Netns;
  readonly #keeper: NftTableKeeper;
  readonly #routes: NetlinkSocket;
  #last: NamespaceState | undefined;
  /** Sysctls this kernel did not have when last looked at: connection tracking's come with its module. */
  readonly #absent = new Set<string>();
  #forwardLeg: string | undefined;
  /** The ruleset's when FORWARD was looked at last. */
  #forwardGeneration: number | undefined;
  #forwardAge = 0;

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

  /** What the rules have noted in `FAILING`, as rows. */
  failing(): Uint32Array {
    return this.#keeper.readSet(FAILING);
  }

  /**
   * What had to be changed; undefined when nothing had to. The kernel is looked at only for `everything`, or when the
   * state is not the one that was brought about last. @throws NetError
   */
  async reconcile(
    state: NamespaceState,
    look: { readonly everything: boolean; readonly deep: boolean },
  ): Promise<MeshOutcome | undefined> {
    const unchanged = this.#last !== undefined && sameState(state, this.#last);
    if (!look.everything && unchanged) return undefined;
    this.#last = undefined;
    const outcome = await this.#apply(state, look.deep, unchanged);
    this.#last = state;
    return outcome;
  }

  /** `unchanged`: the same state was brought about before, so that what differs now is another hand's doing. */
  async #apply(state: NamespaceState, deep: boolean, unchanged: boolean): Promise<MeshOutcome | undefined> {
    const faults: string[] = [];
    let changed = false;
    for (const [name, value] of state.sysctls) {
      const now = this.#netns.readSysctl(name);
      // One of connection tracking is there once its module is, which our first rules load; the next sweep sets it.
      const isNew = this.#absent.delete(name);
      if (now === undefined) this.#absent.add(name);
      if (now === undefined || now === value) continue;
      this.#netns.writeSysctl(name, value);
      changed = true;
      if (unchanged && !isNew) faults.push(`sysctl ${name} was ${now}: set to ${value}`);
    }
    // Ways back before the rules that mark connections for them.
    if (this.#path !== HOST) {
      const ways = readReturnPath(this.#routes);
      const steps = planReturnPath(state.returnPath, ways);
      if (steps.length > 0) {
        applyReturnPath(this.#routes, steps);
        changed = true;
        if (unchanged) faults.push(...steps.map((step) => describeReturnPathStep(step, ways)));
      }
    } else if (await this.#letForward(state)) {
      changed = true;
      if (unchanged) faults.push("the FORWARD chain of iptables lacked our rules, or had too many: set");
    }
    const { plan, repaired } = await this.#keeper.reconcile(state.ruleset, { deep });
    if (!isEmptyPlan(plan)) {
      changed = true;
      if (repaired) faults.push(`nftables table ${TABLE}: ${describeRepair(plan)}`);
    }
    return changed ? { faults: faults.map((fault) => `${fault} in ${this.#path}`) } : undefined;
  }

  /**
   * iptables' FORWARD policy is looked at when somebody changed a ruleset, and now and then: that of the legacy back
   * end counts no generation.
   */
  async #letForward({ forwards }: NamespaceState): Promise<boolean> {
    const leg = forwards ? INGRESS_HOST_LINK : undefined;
    const due = this.#forwardAge++ % FORWARD_EVERY === 0;
    // Where no rules of ours are, the keeper takes everything for changed.
    const touched = this.#keeper.generation() !== this.#forwardGeneration && this.#keeper.changedByOthers();
    if (!due && leg === this.#forwardLeg && !touched) return false;
    const changed = await reconcileForwardPolicy(this.#netns, leg);
    this.#forwardLeg = leg;
    this.#forwardGeneration = this.#keeper.generation();
    return changed;
  }

  /** The same, only said. @throws NetError */
  plan(state: NamespaceState): string[] {
    const steps: string[] = [];
    for (const [name, value] of state.sysctls) {
      const now = this.#netns.readSysctl(name);
      if (now !== undefined && now !== value)
        steps.push(`sysctl ${name} was ${now}: set to ${value} in ${this.#path}`);
    }
    if (this.#path !== HOST) {
      const ways = readReturnPath(this.#routes);
      for (const step of planReturnPath(state.returnPath, ways))
        steps.push(`${describeReturnPathStep(step, ways)} in ${this.#path}`);
    }
    const plan = this.#keeper.plan(state.ruleset, { deep: true });
    if (!isEmptyPlan(plan)) steps.push(`nftables table ${TABLE}: ${describeRepair(plan)} in ${this.#path}`);
    return steps;
  }

  close(): void {
    this.#keeper[Symbol.dispose]();
    this.#routes.close();
    this.conntrack[Symbol.dispose]();
    this.#netns.close();
  }
}

/** Whether both lead to the same kernel state; cheap, and false for some that do. */
function sameState(a: NamespaceState, b: NamespaceState): boolean {
  const [groups, others] = [a.ruleset?.groups ?? [], b.ruleset?.groups ?? []];
  return (
    a.ruleset?.skeleton === b.ruleset?.skeleton &&
    groups.length === others.length &&
    groups.every((group, index) => group === others[index]) &&
    a.returnPath === b.returnPath &&
    a.sysctls.size === b.sysctls.size &&
    [...a.sysctls].every(([name, value]) => b.sysctls.get(name) === value)
  );
}
