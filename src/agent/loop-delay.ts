import { monitorEventLoopDelay, type IntervalHistogram } from "node:perf_hooks";

/** A loop that is this late is a delay; ticks are as far apart. */
const RESOLUTION_MS = 20;
const WINDOW_MS = 60_000;

export interface LoopDelays {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly longestMs: number;
}

/** How late the event loop was in the last minute or two: what gossip had to wait for the rest of the agent. */
export class LoopDelay {
  readonly #histogram: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #timer: NodeJS.Timeout;
  #before: LoopDelays = { p50Ms: 0, p99Ms: 0, longestMs: 0 };

  constructor() {
    this.#histogram.enable();
    this.#timer = setInterval(() => {
      this.#before = this.#now();
      this.#histogram.reset();
    }, WINDOW_MS);
    this.#timer.unref();
  }

  /** Of the window before this one and of what this one has so far, the worse. */
  get delays(): LoopDelays {
    const now = this.#now();
    const before = this.#before;
    return {
      p50Ms: Math.max(now.p50Ms, before.p50Ms),
      p99Ms: Math.max(now.p99Ms, before.p99Ms),
      longestMs: Math.max(now.longestMs, before.longestMs),
    };
  }

  close(): void {
    clearInterval(this.#timer);
    this.#histogram.disable();
  }

  #now(): LoopDelays {
    // An empty histogram answers NaN for the mean and nonsense for the rest.
    const late = (nanoseconds: number): number =>
      this.#histogram.count === 0 ? 0 : Math.max(0, nanoseconds / 1e6 - RESOLUTION_MS);
    const { max } = this.#histogram;
    return {
      p50Ms: late(this.#histogram.percentile(50)),
      p99Ms: late(this.#histogram.percentile(99)),
      longestMs: late(max),
    };
  }
}
