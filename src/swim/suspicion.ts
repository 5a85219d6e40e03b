import { Deadlines } from "../base/deadlines.ts";
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

export interface Suspicion {
  readonly terms: SuspicionTerms;
  readonly startedAt: Instant;
  /** The first accuser, then those that confirmed; at most `confirmationsWanted` + 1. */
  readonly accusers: string[];
}

/** All running suspicions by member. Bounded by the member table. */
export class Suspicions {
  readonly #running = new Map<string, Suspicion>();
  readonly #deadlines = new Deadlines<string>();
  /** Verdicts are looked at so much earlier than they are due. */
  readonly #leadMs: number;

  constructor(leadMs: number) {
    this.#leadMs = leadMs;
  }

  get size(): number {
    return this.#running.size;
  }

  get(name: string): Suspicion | undefined {
    return this.#running.get(name);
  }

  start(name: string, accuser: string, terms: SuspicionTerms, now: Instant): void {
    this.#running.set(name, { terms, startedAt: now, accusers: [accuser] });
    this.#schedule(name, suspicionTimeoutMs(terms, 0), now);
  }

  /** Counts an accuser; whether it was news. */
  confirm(name: string, accuser: string): boolean {
    const suspicion = this.#running.get(name);
    if (suspicion === undefined || confirmations(suspicion) >= suspicion.terms.confirmationsWanted)
      return false;
    if (suspicion.accusers.includes(accuser)) return false;
    suspicion.accusers.push(accuser);
    const timeoutMs = suspicionTimeoutMs(suspicion.terms, confirmations(suspicion));
    this.#schedule(name, timeoutMs, suspicion.startedAt);
    return true;
  }

  cancel(name: string): void {
    if (this.#running.delete(name)) this.#deadlines.delete(name);
  }

  /** Looks at a running one again at `at`, whatever it was due. */
  postpone(name: string, at: Instant): void {
    if (this.#running.has(name)) this.#deadlines.set(name, at);
  }

  /** This node stood still for so long: nobody had a chance to refute meanwhile. */
  shift(milliseconds: number): void {
    this.#deadlines.shift(milliseconds);
  }

  /** Those to be judged now. They keep running until cancelled. */
  takeDue(now: Instant): string[] {
    return this.#deadlines.takeDue(now);
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  #schedule(name: string, timeoutMs: number, startedAt: Instant): void {
    this.#deadlines.set(name, after(startedAt, timeoutMs - Math.min(this.#leadMs, timeoutMs)));
  }
}

/** Accusers other than the first. */
export function confirmations(suspicion: Suspicion): number {
  return suspicion.accusers.length - 1;
}
