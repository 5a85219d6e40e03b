import { performance } from "node:perf_hooks";
import { instant, type Instant } from "../base/time.ts";

/** Longest sleep between two looks at the clock; setTimeout overflows at 2³¹ ms. */
const MAX_SLEEP_MS = 60_000;

/** The only clock: monotonic time and one armed wakeup. */
export class Clock {
  readonly #onWake: () => void;
  #timer: NodeJS.Timeout | undefined;
  #waking: NodeJS.Immediate | undefined;
  #armedFor: Instant | undefined;

  constructor(onWake: () => void) {
    this.#onWake = onWake;
  }

  now(): Instant {
    return instant(performance.now());
  }

  /** Arms the wakeup for `at`, replacing the one armed before; undefined disarms. A past instant wakes at once. */
  wakeAt(at: Instant | undefined): void {
    if (at === this.#armedFor) return;
    this.close();
    this.#armedFor = at;
    if (at === undefined) return;
    const sleepMs = Math.min(MAX_SLEEP_MS, Math.max(0, Math.ceil(at - this.now())));
    // Timers run before sockets are read. After a delay of this process what came meanwhile must be heard first, or
    // answers that wait in the socket count as missing.
    this.#timer = setTimeout(() => {
      this.#waking = setImmediate(() => {
        this.#armedFor = undefined;
        this.#onWake();
      });
    }, sleepMs);
  }

  close(): void {
    clearTimeout(this.#timer);
    clearImmediate(this.#waking);
  }
}
