import { monitorEventLoopDelay, performance, type IntervalHistogram } from "node:perf_hooks";

/** A loop that is this late is a delay; ticks are as far apart. */
const RESOLUTION_MS = 20;
const WINDOW_MS = 60_000;
/** So much CPU time between two looks is worth measuring; after so long without, the agent is idle. */
const BUSY_MS = 10;
const CALM_MS = 10_000;

export interface LoopDelays {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly longestMs: number;
}

/**
 * How late the event loop was in the last minute or two: what gossip had to wait for the rest of the agent. Measured
 * while there is work: the ticks that measure it would be most of what an idle agent does.
 */
export class LoopDelay {
  readonly #histogram: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #timer: NodeJS.Timeout;
  #before: LoopDelays = { p50Ms: 0, p99Ms: 0, longestMs: 0 };
  #cpuMicroseconds = 0;
  #busyAt = -CALM_MS;
  #measures = false;

  constructor() {
    this.#timer = setInterval(() => {
      this.#before = this.#now();
      this.#histogram.reset();
    }, WINDOW_MS);
    this.#timer.unref();
  }

  /** To be called whenever gossip gets its turn. */
  look(): void {
    const now = performance.now();
    const { user, system } = process.cpuUsage();
    if (user + system - this.#cpuMicroseconds >= BUSY_MS * 1_000) this.#busyAt = now;
    this.#cpuMicroseconds = user + system;
    const measures = now - this.#busyAt < CALM_MS;
    if (measures === this.#measures) return;
    this.#measures = measures;
    if (measures) this.#histogram.enable();
    else this.#histogram.disable();
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
