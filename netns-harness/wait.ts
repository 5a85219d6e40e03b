/** Waiting for a condition, never for a time to pass. */

import { setTimeout as pause } from "node:timers/promises";
import { inspect } from "node:util";

export type WaitOptions<T> = {
  /** Give up after this long (ms). */
  readonly withinMs: number;
  /** When an observation is what was waited for; default: when it is truthy. */
  readonly until?: (seen: T) => boolean;
  /** Pause between two observations (ms). */
  readonly everyMs?: number;
};

/** A condition that did not come true in time; the message ends with the last observation. */
export class WaitError extends Error {
  override readonly name = "WaitError";
}

/** Thrown by an observation that makes further waiting pointless. */
export class Hopeless extends Error {
  override readonly name = "Hopeless";
}

/**
 * Observes until the observation is accepted and returns it. An observation that throws counts as not accepted,
 * unless it is `Hopeless`.
 * `what` completes the sentence "waited for …".
 */
export async function waitFor<T>(
  what: string,
  observe: () => T | Promise<T>,
  { withinMs, until = Boolean, everyMs = 50 }: WaitOptions<T>,
): Promise<T> {
  const start = performance.now();
  for (;;) {
    let last: string;
    let cause: unknown;
    try {
      const seen = await observe();
      if (until(seen)) return seen;
      last = typeof seen === "string" ? seen : inspect(seen, { depth: 5, breakLength: 110 });
    } catch (error) {
      if (error instanceof Hopeless) throw new WaitError(`waited for ${what}: ${error.message}`);
      cause = error;
      last = error instanceof Error ? error.message : String(error);
    }
    if (performance.now() - start >= withinMs) {
      throw new WaitError(`waited ${withinMs} ms for ${what}; last seen: ${last.slice(0, 2000)}`, { cause });
    }
    await pause(everyMs);
  }
}

/** Observes for `forMs` and throws at the first observation that is not accepted: "this stays so". */
export async function holds<T>(
  what: string,
  observe: () => T | Promise<T>,
  { forMs, until = Boolean, everyMs = 50 }: { forMs: number; until?: (seen: T) => boolean; everyMs?: number },
): Promise<void> {
  const start = performance.now();
  do {
    const seen = await observe();
    if (!until(seen)) {
      throw new WaitError(`${what} did not stay so for ${forMs} ms; seen: ${inspect(seen, { depth: 5 })}`);
    }
    await pause(everyMs);
  } while (performance.now() - start < forMs);
}
