import { setImmediate as turn } from "node:timers/promises";
import type { Sliced } from "../base/sliced.ts";

/** How long work may keep the loop before gossip gets its turn. One step of the work may overrun it. */
const SLICE_MS = 5;

/** Runs long work a slice at a time, and remembers how long the loop was kept. */
export class Slices {
  /** The longest slice so far, ms. */
  longestMs = 0;
  /** All slices so far, ms. */
  busyMs = 0;

  async run<T>(work: Sliced<T>): Promise<T> {
    for (;;) {
      const start = performance.now();
      let step: IteratorResult<undefined, T>;
      try {
        do step = work.next();
        while (step.done !== true && performance.now() - start < SLICE_MS);
      } finally {
        const took = performance.now() - start;
        this.busyMs += took;
        this.longestMs = Math.max(this.longestMs, took);
      }
      if (step.done === true) return step.value;
      await turn();
    }
  }
}
