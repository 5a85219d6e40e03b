import { type IpAddr, ipv4FromNumber } from "../base/ip.ts";
import { Conntrack } from "../kernel/conntrack.ts";
import { hasLegacyFilter, reconcileForwardPolicy } from "../kernel/forward-policy.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { Netns } from "../kernel/netns.ts";
import { NftTableKeeper } from "../kernel/nft.ts";
import { applyReturnPath, readDefaultSource, readReturnPath } from "../kernel/return-path.ts";
import { HOST, type NamespaceState } from "../mesh/desired.ts";
import { ADDRESS_PORTS, FAILING, PORTS } from "../mesh/host-rules.ts";
import { REFUSE_CHAIN } from "../mesh/pick-chains.ts";
import { asDue, describeRepair, isEmptyPlan } from "../mesh/plan.ts";
import { describeReturnPathStep, planReturnPath } from "../mesh/return-path.ts";
import { TABLE } from "../mesh/ruleset.ts";
import { PROTOCOL_NUMBERS } from "../mesh/service-blocks.ts";
import { INGRESS_HOST_LINK } from "../overlay/naming.ts";
import type { PortCount } from "./port-counts.ts";

const FORWARD_FAULT = "the FORWARD chain of iptables lacked our rules, or had too many: set";
/** Sweeps and changes between two looks at iptables when nobody seems to have changed anything. */
const FORWARD_EVERY = 10;

export interface MeshOutcome {
  readonly changed: boolean;
  /** What another hand had done, and what was done about it. */
  readonly faults: readonly string[];
  /** What it had done and was left, since nothing may be repaired. */
  readonly standing: readonly string[];
}

export interface MeshLook {
  /** At the kernel, even where the state is the one that was brought about last. */
  readonly everything: boolean;
  /** At every element. */
  readonly deep: boolean;
  /** False: what another hand did stays. */
  readonly repair: boolean;
}

/** The mesh's handles on one namespace, the host's or a sandbox's. */
export class MeshNamespace {
  readonly conntrack: Conntrack;
  readonly #path: string;
  readonly #netns: Netns;
  readonly #keeper: NftTableKeeper;
  readonly #routes: NetlinkSocket;
  #last: NamespaceState | undefined;
  /** The last state that was brought about; unlike `#last` it outlives a failure. */
  #agreed: NamespaceState | undefined;
  /** Sysctls this kernel did not have when last looked at: connection tracking's come with its module. */
  readonly #absent = new Set<string>();
  #forwardLeg: string | undefined;
  /** The ruleset's when FORWARD was looked at last. */
  #forwardGeneration: number | undefined;
  #forwardAge = 0;
  #forwardStands = false;

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

  /** How many connections came to each published port since its element was made. @throws NetError */
  portCounts(): PortCount[] {
    return [PORTS, ADDRESS_PORTS].flatMap(({ name, key: fields }) =>
      this.#keeper.countedElements(name).map(({ key, packets, chain }) => {
        const view = new DataView(key.buffer, key.byteOffset, key.byteLength);
        const at = 4 * (fields.length - 2);
        const address = at === 0 ? {} : { address: ipv4FromNumber(view.getUint32(0)) };
        const protocol = view.getUint8(at) === PROTOCOL_NUMBERS.udp ? "udp" : "tcp";
        const port = view.getUint16(at + 4);
        return { ...address, protocol, port, connections: Number(packets), refused: chain === REFUSE_CHAIN };
      }),
    );
  }

  /**
   * Undefined when nobody looked: the kernel is looked at only for `everything`, or when the state is not the one that
   * was brought about last. @throws NetError
   */
  async reconcile(state: NamespaceState, look: MeshLook): Promise<MeshOutcome | undefined> {
    const unchanged = this.#last !== undefined && sameState(state, this.#last);
    if (!look.everything && unchanged) return undefined;
    this.#last = undefined;
    const outcome = await this.#apply(state, look);
    this.#last = state;
    this.#agreed = state;
    return outcome;
  }

  async #apply(state: NamespaceState, look: MeshLook): Promise<MeshOutcome> {
    const faults: string[] = [];
    const standing: string[] = [];
    // What differs from this is another hand's doing.
    const agreed = this.#agreed;
    const mayMend = look.repair || agreed === undefined;
    let changed = false;
    for (const [name, value] of state.sysctls) {
      const now = this.#netns.readSysctl(name);
      // One of connection tracking is there once its module is, which our first rules load; the next sweep sets it.
      const isNew = this.#absent.delete(name);
      if (now === undefined) this.#absent.add(name);
      if (now === undefined || now === value) continue;
      const fault = `sysctl ${name} was ${now}: set to ${value}`;
      const isDrift = agreed?.sysctls.get(name) === value && !isNew;
      if (isDrift) (mayMend ? faults : standing).push(fault);
      if (isDrift && !mayMend) continue;
      this.#netns.writeSysctl(name, value);
      changed = true;
    }
    // Ways back before the rules that mark connections for them.
    if (this.#path !== HOST) {
      const ways = readReturnPath(this.#routes);
      const before = agreed === undefined ? [] : planReturnPath(agreed.returnPath, ways);
      const drift = new Set(before.map((step) => describeReturnPathStep(step, ways)));
      const steps = planReturnPath(state.returnPath, ways).map(
        (step) => [step, describeReturnPathStep(step, ways)] as const,
      );
      (mayMend ? faults : standing).push(...steps.flatMap(([, text]) => (drift.has(text) ? [text] : [])));
      const due = steps.flatMap(([step, text]) => (mayMend || !drift.has(text) ? [step] : []));
      if (due.length > 0) applyReturnPath(this.#routes, due);
      changed ||= due.length > 0;
    } else {
      const isDrift = agreed !== undefined && agreed.forwards === state.forwards;
      const opened = await this.#letForward(state, mayMend || !isDrift);
      changed ||= opened;
      if (opened && isDrift) faults.push(FORWARD_FAULT);
      if (this.#forwardStands) standing.push(FORWARD_FAULT);
    }
    const { deep } = look;
    const { plan, repaired, drift } = await this.#keeper.reconcile(state.ruleset, {
      deep,
      repair: mayMend,
    });
    if (!isEmptyPlan(plan)) {
      changed = true;
      if (repaired) faults.push(`nftables table ${TABLE}: ${describeRepair(plan)}`);
    }
    if (drift !== undefined) standing.push(`nftables table ${TABLE}: ${describeRepair(drift)}`);
    return {
      changed,
      faults: faults.map((fault) => `${fault} in ${this.#path}`),
      standing: standing.map((fault) => asDue(`${fault} in ${this.#path}`)),
    };
  }

  /**
   * iptables' FORWARD policy is looked at when somebody changed a ruleset, and now and then; where the legacy back end
   * is in use, which counts no generation, every time.
   */
  async #letForward({ forwards }: NamespaceState, mayChange: boolean): Promise<boolean> {
    const leg = forwards ? INGRESS_HOST_LINK : undefined;
    const due = this.#forwardAge++ % FORWARD_EVERY === 0 || (forwards && hasLegacyFilter(this.#netns));
    // Where no rules of ours are, the keeper takes everything for changed.
    const touched = this.#keeper.generation() !== this.#forwardGeneration && this.#keeper.changedByOthers();
    const stood = this.#forwardStands;
    if (!due && leg === this.#forwardLeg && !touched && !(stood && mayChange)) return false;
    const differs = await reconcileForwardPolicy(this.#netns, leg, mayChange);
    const changed = differs && mayChange;
    this.#forwardStands = differs && !mayChange;
    // Who changed it may be at it still: looked at once more at the next round.
    if (changed) this.#forwardAge = 0;
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
    if (this.#forwardStands) steps.push(`${FORWARD_FAULT} in ${this.#path}`);
    const plan = this.#keeper.plan(state.ruleset, { deep: true });
    if (!isEmptyPlan(plan)) steps.push(`nftables table ${TABLE}: ${describeRepair(plan)} in ${this.#path}`);
    return steps.map(asDue);
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
