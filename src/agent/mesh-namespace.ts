import type { IpAddr } from "../base/ip.ts";
import { Conntrack } from "../kernel/conntrack.ts";
import { reconcileForwardPolicy } from "../kernel/forward-policy.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { Netns } from "../kernel/netns.ts";
import { NftTableKeeper } from "../kernel/nft.ts";
import { applyReturnPath, readDefaultSource, readReturnPath } from "../kernel/return-path.ts";
import { HOST, type NamespaceState } from "../mesh/desired.ts";
import { FAILING } from "../mesh/host-rules.ts";
import { isEmptyPlan, planSize } from "../mesh/plan.ts";
import { planReturnPath } from "../mesh/return-path.ts";
import { INGRESS_HOST_LINK } from "../overlay/naming.ts";

/** Sweeps and changes between two looks at iptables when nobody seems to have changed anything. */
const FORWARD_EVERY = 10;

/** The mesh's handles on one namespace, the host's or a sandbox's. */
export class MeshNamespace {
  readonly conntrack: Conntrack;
  readonly #path: string;
  readonly #netns: Netns;
  readonly #keeper: NftTableKeeper;
  readonly #routes: NetlinkSocket;
  #last: NamespaceState | undefined;
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
   * What had to be changed; undefined when all agreed. The kernel is looked at only for `everything`, or when the
   * state is not the one that was brought about last. @throws NetError
   */
  async reconcile(
    state: NamespaceState,
    look: { readonly everything: boolean; readonly deep: boolean },
  ): Promise<{ readonly repaired: boolean; readonly text: string } | undefined> {
    if (!look.everything && this.#last !== undefined && sameState(state, this.#last)) return undefined;
    this.#last = undefined;
    const outcome = await this.#apply(state, look.deep);
    this.#last = state;
    return outcome;
  }

  async #apply(
    state: NamespaceState,
    deep: boolean,
  ): Promise<{ readonly repaired: boolean; readonly text: string } | undefined> {
    for (const [name, value] of state.sysctls) {
      const now = this.#netns.readSysctl(name);
      // One of connection tracking is there once its module is, which our first rules load; the next sweep sets it.
      if (now !== undefined && now !== value) this.#netns.writeSysctl(name, value);
    }
    // Ways back before the rules that mark connections for them.
    const ways = this.#path === HOST ? [] : planReturnPath(state.returnPath, readReturnPath(this.#routes));
    if (ways.length > 0) applyReturnPath(this.#routes, ways);
    if (this.#path === HOST) await this.#letForward(state);
    const { plan, repaired } = await this.#keeper.reconcile(state.ruleset, { deep });
    if (isEmptyPlan(plan)) return undefined;
    const { added, deleted } = planSize(plan);
    return { repaired, text: `rules in ${this.#path}: ${added} elements added, ${deleted} deleted` };
  }

  /**
   * iptables' FORWARD policy is looked at when somebody changed a ruleset, and now and then: that of the legacy back
   * end counts no generation.
   */
  async #letForward({ forwards }: NamespaceState): Promise<void> {
    const leg = forwards ? INGRESS_HOST_LINK : undefined;
    const due = this.#forwardAge++ % FORWARD_EVERY === 0;
    // Where no rules of ours are, the keeper takes everything for changed.
    const changed = this.#keeper.generation() !== this.#forwardGeneration && this.#keeper.changedByOthers();
    if (!due && leg === this.#forwardLeg && !changed) return;
    await reconcileForwardPolicy(this.#netns, leg);
    this.#forwardLeg = leg;
    this.#forwardGeneration = this.#keeper.generation();
  }

  /** The same, only said. @throws NetError */
  plan(state: NamespaceState): string[] {
    const steps: string[] = [];
    for (const [name, value] of state.sysctls) {
      const now = this.#netns.readSysctl(name);
      if (now !== undefined && now !== value) steps.push(`set sysctl ${name} = ${value} in ${this.#path}`);
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
