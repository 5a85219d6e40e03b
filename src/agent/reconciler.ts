import { setTimeout as pause } from "node:timers/promises";
import { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import type { Sliced } from "../base/sliced.ts";
import { elapsed, instant, type Instant } from "../base/time.ts";
import type { Dataplane } from "../kernel/dataplane.ts";
import { isEntryStep } from "../kernel/neighbors.ts";
import type { DesiredOverlay } from "../overlay/desired.ts";
import { describeDrift, type Drift, separateDrift } from "../overlay/drift.ts";
import {
  type ActualOverlay,
  derivePlan,
  formatStep,
  type OverlayPlan,
  type OverlayStep,
} from "../overlay/plan.ts";
import { Slices } from "./slices.ts";

export interface ReconcilerOptions {
  readonly dataplane: Dataplane;
  /** What the kernel should look like now; for a network nobody knows any more: nothing, its objects go. */
  readonly desired: (network: NetworkId) => Sliced<DesiredOverlay>;
  /** False while the tables may be incomplete: forwarding entries are then only added. */
  readonly mayPrune: (network: NetworkId) => boolean;
  /** Awaited before a network's device is made: what keeps strangers out of it. @throws NetError to put it off */
  readonly beforeDevice: () => Promise<void>;
  readonly now: () => Instant;
  /** Calls `run` about every `everyMs`; the result ends that. */
  readonly every: (everyMs: number, run: () => void) => () => void;
  /**
   * A sweep or a drift event made steps necessary, without any change of ours before: what was wrong, of the first
   * few, and how many steps it took.
   */
  readonly onRepair: (network: NetworkId, faults: readonly Drift[], steps: number) => void;
  /** While repair is off: what stands that another hand did, the first of it; empty when all agrees again. */
  readonly onStanding: (network: NetworkId, faults: readonly Drift[]) => void;
  readonly onFailure: (network: NetworkId, error: NetError) => void;
}

/** A bulk sync of a thousand rows is few rounds; what comes after a quiet time is not kept waiting. */
const BREATH_MS = 2;
const QUIET_MS = 20;
/** Lost messages and other hands' changes heal within this. */
const SWEEP_MS = 3_000;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 10_000;
/** Entries written in one go: a few ms in which gossip waits. */
const CHUNK_STEPS = 512;
/** Faults that are put into words; a flushed table has a hundred thousand. */
const DESCRIBED = 50;
const REPAIRS_DESCRIBED = 3;
/** A network whose round took longer than this rests as long as it worked: others need the processor, too. */
const LONG_ROUND_MS = 20;
const REST_MAX_MS = 1_000;

interface Work {
  /** Trust nothing remembered: the sweep, and after failures. */
  fresh: boolean;
  /** A change of ours is behind it, so steps are no repair. */
  ours: boolean;
}

interface Waiter {
  readonly network: NetworkId;
  readonly resolve: () => void;
  readonly reject: (error: NetError) => void;
  readonly timer: NodeJS.Timeout;
}

/**
 * The only writer of the overlay's kernel state: desired − actual, applied, until nothing is left. Networks are
 * worked on side by side and in slices, so that seventy thousand entries neither starve gossip nor a small network.
 */
export class Reconciler {
  readonly counters = { rounds: 0, steps: 0, failures: 0, repairs: 0 };
  readonly #options: ReconcilerOptions;
  readonly #dirty = new Map<NetworkId, Work>();
  readonly #known = new Set<NetworkId>();
  /** The core that was desired last, in one text. */
  readonly #wanted = new Map<NetworkId, string | undefined>();
  readonly #waiters = new Set<Waiter>();
  readonly #problems = new Map<
    NetworkId,
    { readonly error: NetError; readonly retryMs: number; readonly since: Instant }
  >();
  readonly #running = new Set<NetworkId>();
  readonly #slices = new Slices();
  /** Cancels the round to come. */
  #cancel: (() => void) | undefined;
  #lastRound = instant(-Infinity);
  #repair = true;
  /**
   * While repair is off: what was desired of a network when the kernel last agreed but for drift. Afterwards until the
   * drift is mended.
   */
  readonly #agreed = new Map<NetworkId, DesiredOverlay>();
  readonly #endSweeps: () => void;
  #closed = false;

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    for (const network of options.dataplane.list()) this.#known.add(network);
    options.dataplane.watch((network) => {
      // What changed is remembered as it is now: there is no need to ask for everything.
      if (network === undefined)
        for (const one of this.#known) this.#mark(one, { fresh: false, ours: false });
      else this.#mark(network, { fresh: false, ours: false });
    });
    this.#endSweeps = options.every(SWEEP_MS, () => {
      for (const network of this.#known) this.#mark(network, { fresh: true, ours: false });
    });
  }

  /** Networks that have, or should have, kernel objects. */
  get networks(): ReadonlySet<NetworkId> {
    return this.#known;
  }

  /** The longest time reconciling has kept the event loop in one go, ms. */
  get longestSliceMs(): number {
    return this.#slices.longestMs;
  }

  /** What is wrong with a network just now. */
  problem(network: NetworkId): NetError | undefined {
    return this.#problems.get(network)?.error;
  }

  /**
   * Without repair only what our own changes ask for is done, and what another hand did is told. What has not been
   * brought about yet is no drift: it still is.
   */
  setRepair(repair: boolean): void {
    if (repair === this.#repair) return;
    this.#repair = repair;
    for (const network of this.#known) this.#mark(network, { fresh: true, ours: !repair });
  }

  /** Something this network's kernel state depends on has changed. */
  markDirty(network: NetworkId): void {
    this.#mark(network, { fresh: false, ours: true });
  }

  markAllDirty(): void {
    for (const network of this.#known) this.markDirty(network);
  }

  /** Resolves when the kernel agrees with what is desired. @throws NetError what is still missing, after `timeoutMs`. */
  settled(network: NetworkId, timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.delete(waiter);
        const problem = this.problem(network);
        reject(
          problem ??
            new NetError(
              "timeout",
              `the kernel does not agree after ${timeoutMs} ms (netctl plan shows what is missing)`,
            ),
        );
      }, timeoutMs);
      const waiter: Waiter = { network, resolve, reject, timer };
      this.#waiters.add(waiter);
      this.markDirty(network);
    });
  }

  /** Desired minus actual, now, without changing anything. @throws NetError when the kernel cannot be asked. */
  async plan(network: NetworkId): Promise<
    OverlayPlan & {
      readonly desired: DesiredOverlay;
      /** What is wrong where the first steps are needed, in their order. */
      readonly faults: readonly string[];
    }
  > {
    const { dataplane } = this.#options;
    const desired = await this.#slices.run(this.#options.desired(network));
    await this.#slices.run(dataplane.refresh(desired, { fresh: true }));
    const actual = dataplane.read(desired);
    const plan = await this.#slices.run(derivePlan(desired, actual));
    const faults = plan.steps.slice(0, DESCRIBED).map((step) => describeDrift(desired, actual, step).text);
    return { ...plan, desired, faults };
  }

  close(): void {
    this.#closed = true;
    this.#endSweeps();
    this.#cancel?.();
    for (const waiter of this.#waiters) {
      clearTimeout(waiter.timer);
      waiter.reject(new NetError("stopping", "netagent is stopping"));
    }
    this.#waiters.clear();
  }

  #mark(network: NetworkId, work: Work): void {
    if (this.#closed) return;
    const before = this.#dirty.get(network);
    this.#dirty.set(network, {
      fresh: work.fresh || before?.fresh === true,
      ours: work.ours || before?.ours === true,
    });
    if (this.#cancel === undefined && !this.#running.has(network)) this.#schedule();
  }

  #schedule(): void {
    const round = (): void => {
      this.#cancel = undefined;
      this.#lastRound = this.#options.now();
      this.#round();
    };
    if (elapsed(this.#lastRound, this.#options.now()) > QUIET_MS) {
      const soon = setImmediate(round);
      this.#cancel = () => clearImmediate(soon);
    } else {
      const timer = setTimeout(round, BREATH_MS);
      this.#cancel = () => clearTimeout(timer);
    }
  }

  #round(): void {
    for (const network of this.#dirty.keys()) if (!this.#running.has(network)) void this.#work(network);
  }

  /** Rounds of one network until it is quiet. */
  async #work(network: NetworkId): Promise<void> {
    this.#running.add(network);
    try {
      for (let how = this.#take(network); how !== undefined; how = this.#take(network)) {
        this.counters.rounds++;
        // Who asked before the round began is answered by it, however busy the rounds after it are.
        const asking = [...this.#waiters].filter((waiter) => waiter.network === network);
        const busy = this.#slices.busyMs;
        try {
          const desired = await this.#slices.run(this.#options.desired(network));
          try {
            if (await this.#reconcile(desired, how)) for (const waiter of asking) this.#release(waiter);
          } finally {
            const accelerating = this.#closed ? undefined : this.#options.dataplane.accelerate?.(desired);
            if (accelerating !== undefined) await this.#slices.run(accelerating);
          }
        } catch (error) {
          if (!(error instanceof NetError)) throw error;
          this.#fail(network, error, how.ours);
        }
        const tookMs = this.#slices.busyMs - busy;
        if (tookMs > LONG_ROUND_MS) await pause(Math.min(REST_MAX_MS, tookMs), undefined, { ref: false });
        else if (this.#dirty.has(network)) await pause(BREATH_MS);
      }
    } finally {
      this.#running.delete(network);
    }
  }

  #take(network: NetworkId): Work | undefined {
    const work = this.#closed ? undefined : this.#dirty.get(network);
    this.#dirty.delete(network);
    return work;
  }

  /** Whether the kernel agrees now. */
  async #reconcile(desired: DesiredOverlay, { fresh, ours }: Work): Promise<boolean> {
    const { dataplane } = this.#options;
    const { network } = desired;
    if (desired.core !== undefined) this.#known.add(network);
    // The underlay's MTU, which nobody tells us of: what is wanted changed, not what is there.
    const wanted = JSON.stringify(desired.core);
    const mended = !ours && (this.#wanted.get(network) ?? wanted) === wanted;
    this.#wanted.set(network, wanted);
    await this.#slices.run(dataplane.refresh(desired, { fresh }));
    const actual = dataplane.read(desired);
    const plan = await this.#slices.run(derivePlan(desired, actual));
    const due = this.#options.mayPrune(network) ? plan.steps : plan.steps.filter((step) => !isPrune(step));
    const { drift, ours: own } = await this.#parted(desired, actual, due, mended);
    const steps = this.#repair ? due : own;
    if (!this.#repair) this.#options.onStanding(network, described(desired, actual, drift, DESCRIBED));
    if (steps.length > 0) {
      // Before anything is done: `actual` follows the kernel.
      const faults = this.#repair ? described(desired, actual, drift, REPAIRS_DESCRIBED) : [];
      if (steps.some(({ type }) => type === "create-vxlan")) await this.#options.beforeDevice();
      const failed = await this.#slices.run(this.#apply(desired, steps));
      this.counters.steps += steps.length;
      if (failed !== undefined) {
        const cure = "repair is off, and another hand changed what this may stand on: netctl repair on";
        const stands = !this.#repair && drift.length > 0;
        const error = stands
          ? new NetError(failed.code, `${failed.message} (${cure})`, { cause: failed })
          : failed;
        return this.#fail(network, error, ours);
      }
      // What was done must be there when looked at again; a kernel that forgets at once is a failure, too.
      const again = await this.#slices.run(derivePlan(desired, dataplane.read(desired)));
      const left = again.steps.filter((step) => this.#options.mayPrune(network) || !isPrune(step));
      const after = await this.#parted(desired, dataplane.read(desired), left, mended);
      const [first] = this.#repair ? left : after.ours;
      if (first !== undefined && !this.#dirty.has(network))
        return this.#fail(
          network,
          new NetError("drift", `${formatStep(network, first)}: done, but the kernel does not show it`),
          ours,
        );
      if (faults.length > 0) {
        this.counters.repairs += drift.length;
        this.#options.onRepair(network, faults, drift.length);
      }
    }
    const blocked = plan.blocked[0];
    if (blocked !== undefined) {
      const where = blocked.endpoint.sandbox.type === "netns" ? blocked.endpoint.sandbox.path : "the host";
      return this.#fail(
        network,
        new NetError(blocked.reason, `attach ${blocked.endpoint.ifname}: no network namespace at ${where}`),
        ours,
      );
    }
    this.#problems.delete(network);
    // What was not pruned yet is our own to do, later.
    if (this.#repair || desired.core === undefined) this.#agreed.delete(network);
    else if (due.length === plan.steps.length) this.#agreed.set(network, desired);
    if (desired.core === undefined) {
      this.#known.delete(network);
      this.#wanted.delete(network);
    }
    return true;
  }

  /** What another hand's doing makes necessary and what our own: all one or the other, where no more is known. */
  async #parted(
    desired: DesiredOverlay,
    actual: ActualOverlay,
    steps: readonly OverlayStep[],
    mended: boolean,
  ): Promise<{ readonly drift: readonly OverlayStep[]; readonly ours: readonly OverlayStep[] }> {
    const agreed = this.#agreed.get(desired.network);
    if (agreed !== undefined) return this.#slices.run(separateDrift(agreed, actual, steps));
    return mended && this.#repair ? { drift: steps, ours: [] } : { drift: [], ours: steps };
  }

  /** All steps in order, many entries at a time. What failed first, if anything. */
  *#apply(desired: DesiredOverlay, steps: readonly OverlayStep[]): Sliced<NetError | undefined> {
    let failed: NetError | undefined;
    for (let at = 0; at < steps.length;) {
      if (this.#closed) return failed;
      const end = chunkEnd(steps, at);
      const applied = this.#options.dataplane.apply(desired, steps.slice(at, end));
      for (const { result } of applied) if (result.status === "failed") failed ??= result.error;
      // What these steps stand on could not be made, and the rest stands on it, too.
      if (applied.some(({ result }) => result.status === "skipped")) return failed;
      at = end;
      yield;
    }
    return failed;
  }

  #release(waiter: Waiter): void {
    this.#waiters.delete(waiter);
    clearTimeout(waiter.timer);
    waiter.resolve();
  }

  /** The rest is left to a later round, ever less often while it does not help. */
  #fail(network: NetworkId, error: NetError, ours: boolean): false {
    this.counters.failures++;
    const now = this.#options.now();
    const before = this.#problems.get(network);
    const recent = before !== undefined && elapsed(before.since, now) < 2 * before.retryMs + RETRY_MIN_MS;
    const retryMs =
      recent && before !== undefined ? Math.min(RETRY_MAX_MS, 2 * before.retryMs) : RETRY_MIN_MS;
    this.#problems.set(network, { error, retryMs, since: now });
    if (before === undefined || before.error.message !== error.message)
      this.#options.onFailure(network, error);
    setTimeout(() => this.#mark(network, { fresh: true, ours }), retryMs).unref();
    return false;
  }
}

function described(
  desired: DesiredOverlay,
  actual: ActualOverlay,
  steps: readonly OverlayStep[],
  most: number,
): Drift[] {
  return steps.slice(0, most).map((step) => describeDrift(desired, actual, step));
}

/** Steps that take a path away; all others only add or mend. */
function isPrune(step: OverlayStep): boolean {
  return step.type === "delete-neighbor" || step.type === "delete-fdb";
}

/** Where the chunk that begins at `start` ends: it has so many entries, and whatever else is between them. */
function chunkEnd(steps: readonly OverlayStep[], start: number): number {
  let end = start;
  for (let entries = 0; end < steps.length && entries < CHUNK_STEPS; end++) {
    const step = steps[end];
    if (step !== undefined && isEntryStep(step)) entries++;
  }
  return end;
}
