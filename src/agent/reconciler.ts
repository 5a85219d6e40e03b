import { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { elapsed, type Instant } from "../base/time.ts";
import type { AppliedStep, Dataplane } from "../kernel/dataplane.ts";
import type { DesiredOverlay } from "../overlay/desired.ts";
import { formatStep, planOverlay, type OverlayPlan, type OverlayStep } from "../overlay/plan.ts";

export interface ReconcilerOptions {
  readonly dataplane: Dataplane;
  /** What the kernel should look like now; undefined for a network nobody knows any more: its objects go. */
  readonly desired: (network: NetworkId) => DesiredOverlay;
  /** False while the tables may be incomplete: forwarding entries are then only added. */
  readonly mayPrune: (network: NetworkId) => boolean;
  readonly now: () => Instant;
  /** Steps a sweep or a drift event made necessary, without any change of ours before. */
  readonly onRepair: (network: NetworkId, steps: readonly OverlayStep[]) => void;
  readonly onFailure: (network: NetworkId, error: NetError) => void;
}

/** A bulk sync of a thousand rows is one round, a single attach is not kept waiting. */
const BREATH_MS = 2;
/** Lost messages and other hands' changes heal within this. */
const SWEEP_MS = 3_000;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 10_000;

interface Work {
  /** Somebody else changed the kernel: trust nothing remembered. */
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

/** The only writer of the overlay's kernel state: desired − actual, applied, until nothing is left. */
export class Reconciler {
  readonly counters = { rounds: 0, steps: 0, failures: 0, repairs: 0 };
  readonly #options: ReconcilerOptions;
  readonly #dirty = new Map<NetworkId, Work>();
  readonly #known = new Set<NetworkId>();
  readonly #waiters = new Set<Waiter>();
  readonly #problems = new Map<
    NetworkId,
    { readonly error: NetError; readonly retryMs: number; readonly since: Instant }
  >();
  #timer: NodeJS.Timeout | undefined;
  readonly #sweep: NodeJS.Timeout;
  #closed = false;

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    for (const network of options.dataplane.list()) this.#known.add(network);
    options.dataplane.watch((network) => {
      if (network === undefined) for (const one of this.#known) this.#mark(one, { fresh: true, ours: false });
      else this.#mark(network, { fresh: true, ours: false });
    });
    this.#sweep = setInterval(() => {
      for (const network of this.#known) this.#mark(network, { fresh: true, ours: false });
    }, SWEEP_MS);
    this.#sweep.unref();
  }

  /** Networks that have, or should have, kernel objects. */
  get networks(): ReadonlySet<NetworkId> {
    return this.#known;
  }

  /** What is wrong with a network just now. */
  problem(network: NetworkId): NetError | undefined {
    return this.#problems.get(network)?.error;
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
  plan(network: NetworkId): OverlayPlan {
    const desired = this.#options.desired(network);
    return planOverlay(desired, this.#options.dataplane.read(desired, { fresh: true }));
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#sweep);
    clearTimeout(this.#timer);
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
    if (this.#timer === undefined) this.#schedule(BREATH_MS);
  }

  #schedule(delayMs: number): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#round();
    }, delayMs);
  }

  #round(): void {
    const work = [...this.#dirty];
    this.#dirty.clear();
    for (const [network, how] of work) {
      this.counters.rounds++;
      try {
        this.#reconcile(network, how);
      } catch (error) {
        if (!(error instanceof NetError)) throw error;
        this.#fail(network, error);
      }
    }
    if (this.#dirty.size > 0 && this.#timer === undefined) this.#schedule(BREATH_MS);
  }

  #reconcile(network: NetworkId, { fresh, ours }: Work): void {
    const { dataplane } = this.#options;
    const desired = this.#options.desired(network);
    if (desired.core !== undefined) this.#known.add(network);
    const actual = dataplane.read(desired, { fresh });
    const plan = planOverlay(desired, actual);
    const steps = this.#options.mayPrune(network) ? plan.steps : plan.steps.filter((step) => !isPrune(step));
    if (steps.length > 0) {
      const applied = dataplane.apply(desired, steps);
      this.counters.steps += steps.length;
      if (!ours) {
        this.counters.repairs += steps.length;
        this.#options.onRepair(network, steps);
      }
      const failed = firstFailure(applied);
      if (failed !== undefined) return this.#fail(network, failed);
      // What was done must be there when looked at again; a kernel that forgets at once is a failure, too.
      const left = planOverlay(desired, dataplane.read(desired)).steps.filter(
        (step) => this.#options.mayPrune(network) || !isPrune(step),
      );
      const first = left[0];
      if (first !== undefined)
        return this.#fail(
          network,
          new NetError("drift", `${formatStep(network, first)}: done, but the kernel does not show it`),
        );
    }
    const blocked = plan.blocked[0];
    if (blocked !== undefined) {
      const where = blocked.endpoint.sandbox.type === "netns" ? blocked.endpoint.sandbox.path : "the host";
      return this.#fail(
        network,
        new NetError(blocked.reason, `attach ${blocked.endpoint.ifname}: no network namespace at ${where}`),
      );
    }
    this.#problems.delete(network);
    if (desired.core === undefined) this.#known.delete(network);
    this.#release(network);
  }

  #release(network: NetworkId): void {
    if (this.#dirty.has(network)) return;
    for (const waiter of this.#waiters) {
      if (waiter.network !== network) continue;
      this.#waiters.delete(waiter);
      clearTimeout(waiter.timer);
      waiter.resolve();
    }
  }

  /** The rest is left to a later round, ever less often while it does not help. */
  #fail(network: NetworkId, error: NetError): void {
    this.counters.failures++;
    const now = this.#options.now();
    const before = this.#problems.get(network);
    const recent = before !== undefined && elapsed(before.since, now) < 2 * before.retryMs + RETRY_MIN_MS;
    const retryMs =
      recent && before !== undefined ? Math.min(RETRY_MAX_MS, 2 * before.retryMs) : RETRY_MIN_MS;
    this.#problems.set(network, { error, retryMs, since: now });
    if (before === undefined || before.error.message !== error.message)
      this.#options.onFailure(network, error);
    setTimeout(() => this.#mark(network, { fresh: true, ours: true }), retryMs).unref();
  }
}

/** Steps that take a path away; all others only add or mend. */
function isPrune(step: OverlayStep): boolean {
  return step.type === "delete-neighbor" || step.type === "delete-fdb";
}

function firstFailure(applied: readonly AppliedStep[]): NetError | undefined {
  for (const { result } of applied) if (result.status === "failed") return result.error;
  return undefined;
}
