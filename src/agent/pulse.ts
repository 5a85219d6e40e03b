import { after, earlier, earliest, instant, type Instant } from "../base/time.ts";

/** Nobody misses what is done so much later: sweeps come every few seconds. Gossip is awake more often. */
const LATE_MS = 1_000;

interface Task {
  readonly everyMs: number;
  readonly run: () => void;
  dueAt: Instant;
}

/**
 * Work to be done every few seconds whatever happens. What an idle agent costs is its wakeups, so none is made for this:
 * what is due is done when gossip is awake anyway, all of it in one go.
 */
export class Pulse {
  readonly #tasks = new Set<Task>();
  readonly #now: () => Instant;
  /** The earliest that is due. */
  #firstAt: Instant | undefined;
  #waiting = false;

  constructor(now: () => Instant) {
    this.#now = now;
  }

  /** Runs about every `everyMs`, and up to a second later. The result ends it. */
  every(everyMs: number, run: () => void): () => void {
    const task: Task = { everyMs, run, dueAt: nextOf(everyMs, this.#now()) };
    this.#tasks.add(task);
    this.#firstAt = earlier(this.#firstAt, task.dueAt);
    return () => void this.#tasks.delete(task);
  }

  /** When `beat` must be called although nothing else is to be done. */
  latest(): Instant | undefined {
    return this.#firstAt === undefined ? undefined : after(this.#firstAt, LATE_MS);
  }

  /** The process is awake. What is due is done in this turn of the loop, after what woke it. */
  beat(): void {
    const now = this.#now();
    if (this.#waiting || this.#firstAt === undefined || this.#firstAt > now) return;
    this.#waiting = true;
    setImmediate(() => {
      this.#waiting = false;
      const due = [...this.#tasks].filter(({ dueAt }) => dueAt <= now);
      for (const task of due) task.dueAt = nextOf(task.everyMs, now);
      this.#firstAt = earliest(...[...this.#tasks].map(({ dueAt }) => dueAt));
      for (const task of due) if (this.#tasks.has(task)) task.run();
    });
  }
}

/** Multiples of the period, so that those of equal periods meet. */
function nextOf(everyMs: number, now: Instant): Instant {
  return instant((Math.floor(now / everyMs) + 1) * everyMs);
}
