import type { Brand } from "./brand.ts";

/**
 * A point in time: milliseconds (fractions allowed) on a monotonic clock whose origin means nothing.
 * Arithmetic only; the one clock is `transport/clock.ts`, the simulator has its own.
 */
export type Instant = Brand<number, "Instant">;

export function instant(milliseconds: number): Instant {
  return milliseconds as Instant;
}

/** The instant `milliseconds` after `start`. */
export function after(start: Instant, milliseconds: number): Instant {
  return (start + milliseconds) as Instant;
}

/** Milliseconds from `start` to `end`; negative when `end` is earlier. */
export function elapsed(start: Instant, end: Instant): number {
  return end - start;
}

/** The earliest of those that are defined. */
export function earliest(...instants: readonly (Instant | undefined)[]): Instant | undefined {
  let best: Instant | undefined;
  for (const candidate of instants) best = earlier(best, candidate);
  return best;
}

/** The same of two: for what is asked after every packet. */
export function earlier(a: Instant | undefined, b: Instant | undefined): Instant | undefined {
  return b === undefined || (a !== undefined && a <= b) ? a : b;
}
