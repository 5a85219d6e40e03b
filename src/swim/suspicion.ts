import { DueHeap, type Due } from "../base/deadlines.ts";
import { after, type Instant } from "../base/time.ts";

/** Lifeguard's dynamic suspicion (memberlist suspicion.go): the more members accuse, the less time is left. */
export interface SuspicionTerms {
  readonly minMs: number;
  readonly maxMs: number;
  /** Independent confirmations that bring the time down to `minMs`; 0 starts there. */
  readonly confirmationsWanted: number;
}

/** Terms for a suspicion starting among `members`, in memberlist's arithmetic (util.go, suspicionTimeout). */
export function suspicionTerms(
  settings: {
    readonly suspicionMult: number;
    readonly suspicionMaxTimeoutMult: number;
    readonly probeIntervalMs: number;
  },
  members: number,
): SuspicionTerms {
  const scale = Math.max(1, Math.log10(Math.max(1, members)));
  const minMs = (settings.suspicionMult * Math.floor(scale * 1000) * settings.probeIntervalMs) / 1000;
  const wanted = settings.suspicionMult - 2;
  return {
    minMs,
    maxMs: settings.suspicionMaxTimeoutMult * minMs,
    confirmationsWanted: members - 2 < wanted ? 0 : Math.max(0, wanted),
  };
}

/** From the start of the suspicion to its end, after `confirmations`. */
export function suspicionTimeoutMs(terms: SuspicionTerms, confirmations: number): number {
  if (terms.confirmationsWanted < 1) return terms.minMs;
  const fraction = Math.log(confirmations + 1) / Math.log(terms.confirmationsWanted + 1);
  return Math.max(terms.minMs, Math.floor(terms.maxMs - (terms.maxMs - terms.minMs) * fraction));
}

/** Whoever can be suspected: a member. `suspicion` is written by `Suspicions` alone. */
export interface Suspect {
  suspicion: Suspicion<this> | undefined;
}

export interface Suspicion<S> extends Due {
  readonly suspect: S;
  readonly terms: SuspicionTerms;
  readonly startedAt: Instant;
  /** The first accuser, then those that confirmed; at most `confirmationsWanted` + 1. */
  accusers: readonly string[];
  /** Confirmations still wanted. */
  left: number;
  /** Its time was up once, and others were left to look first. */
  waited: boolean;
}

/** All running suspicions; each is found at its member. Bounded by the member table. */
export class Suspicions<S extends Suspect> {
  readonly #deadlines = new DueHeap<Suspicion<S>>();
  /** Verdicts are looked at so much earlier than they are due. */
  readonly #leadMs: number;

  constructor(leadMs: number) {
    this.#leadMs = leadMs;
  }

  start(suspect: S, accuser: string, terms: SuspicionTerms, now: Instant): void {
    this.cancel(suspect);
    const suspicion: Suspicion<S> = {
      suspect,
      terms,
      startedAt: now,
      accusers: [accuser],
      left: terms.confirmationsWanted,
      waited: false,
      dueAt: now,
      heapIndex: -1,
    };
    suspect.suspicion = suspicion;
    this.#schedule(suspicion, 0);
  }

  /** Counts an accuser; whether it was news. */
  confirm({ suspicion }: S, accuser: string): boolean {
    if (suspicion === undefined || suspicion.left === 0 || suspicion.accusers.includes(accuser)) return false;
    suspicion.left--;
    // A new array has no room to spare; there may be thousands of suspicions.
    suspicion.accusers = [...suspicion.accusers, accuser];
    this.#schedule(suspicion, confirmations(suspicion));
    return true;
  }

  cancel(suspect: S): void {
    if (suspect.suspicion === undefined) return;
    this.#deadlines.delete(suspect.suspicion);
    suspect.suspicion = undefined;
  }

  /** Looks at a running one again at `at`, whatever it was due. */
  postpone({ suspicion }: S, at: Instant): void {
    if (suspicion !== undefined) this.#deadlines.set(suspicion, at);
  }

  /** This node stood still for so long: nobody had a chance to refute meanwhile. */
  shift(milliseconds: number): void {
    this.#deadlines.shift(milliseconds);
  }

  /** Those to be judged now. They keep running until cancelled. */
  takeDue(now: Instant): S[] {
    return this.#deadlines.takeDue(now).map(({ suspect }) => suspect);
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  #schedule(suspicion: Suspicion<S>, confirmations: number): void {
    const timeoutMs = suspicionTimeoutMs(suspicion.terms, confirmations);
    this.#deadlines.set(suspicion, after(suspicion.startedAt, timeoutMs - Math.min(this.#leadMs, timeoutMs)));
  }
}

/** Accusers other than the first. */
export function confirmations(suspicion: { readonly accusers: readonly string[] }): number {
  return suspicion.accusers.length - 1;
}
