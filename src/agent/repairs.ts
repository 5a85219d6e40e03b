import { elapsed, type Instant } from "../base/time.ts";

/** A repair is told about for so long: whoever looks after an incident finds it. */
const KEPT_MS = 600_000;
/** Different ones kept at a time; the oldest go first. */
const MAX_KEPT = 64;

/** One fault that another hand made and the agent mended, perhaps many times. */
export interface RecentRepair {
  /** The network, or which table. */
  readonly subject: string;
  /** What was wrong and what was done. */
  readonly text: string;
  readonly times: number;
  /** Since the last one. */
  readonly agoMs: number;
  /** What it was about, as `driftObject` names it; empty where nobody asks. */
  readonly objects?: readonly string[];
}

/** What was mended lately: a fault that lasts milliseconds is still seen by whoever asks what is wrong. */
export class Repairs {
  readonly #kept = new Map<string, Omit<RecentRepair, "agoMs"> & { readonly at: Instant }>();

  add(subject: string, text: string, now: Instant, objects?: readonly string[]): void {
    const key = `${subject} ${text}`;
    const times = (this.#kept.get(key)?.times ?? 0) + 1;
    // Deleted first, so that the order is by the last time.
    this.#kept.delete(key);
    this.#kept.set(key, { subject, text, times, at: now, ...(objects === undefined ? {} : { objects }) });
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > MAX_KEPT && oldest !== undefined) this.#kept.delete(oldest);
  }

  /** The latest first. */
  recent(now: Instant): RecentRepair[] {
    for (const [key, { at }] of this.#kept) if (elapsed(at, now) > KEPT_MS) this.#kept.delete(key);
    return [...this.#kept.values()]
      .map(({ at, ...repair }) => ({ ...repair, agoMs: elapsed(at, now) }))
      .reverse();
  }

  /** The last repair of one object. */
  lastOf(subject: string, object: string, now: Instant): RecentRepair | undefined {
    return this.recent(now).find((one) => one.subject === subject && one.objects?.includes(object) === true);
  }
}
