import type { NodeName } from "../base/id.ts";
import { after, elapsed, type Instant } from "../base/time.ts";

/** One version of one row. Network, table and key are where it is stored; 100,000 of these exist, so no more than this. */
export interface Entry {
  readonly owner: NodeName;
  /** Lamport time of the owner's table clock. */
  readonly time: number;
  /** Of a tombstone: the last value, which upstream keeps and sends along. */
  readonly value: Uint8Array;
  readonly deleted: boolean;
  readonly changedAt: Instant;
  /** When a tombstone, or a row whose owner failed, is forgotten. */
  reapAt: Instant | undefined;
}

/** Whether a version of `time` replaces what is stored. Equal times are stale: there is no tie-break by owner. */
export function isNewer(time: number, stored: Entry | undefined): boolean {
  return stored === undefined || time > stored.time;
}

/** Seconds left as they go on the wire: 0 for a live row, at least 1 for a mortal one. */
export function residualSeconds(entry: Entry, now: Instant): number {
  if (entry.reapAt === undefined) return 0;
  return Math.max(1, Math.floor(elapsed(now, entry.reapAt) / 1000));
}

/**
 * When a received version dies. A tombstone, or a row of a failed owner, without a residual time (old peers) gets
 * the whole life; no peer can make it live longer than that.
 */
export function reapInstant(
  mortal: boolean,
  residualReapSeconds: number,
  rowReapMs: number,
  now: Instant,
): Instant | undefined {
  if (!mortal) return undefined;
  const life = residualReapSeconds === 0 ? rowReapMs : Math.min(residualReapSeconds * 1000, rowReapMs);
  return after(now, life);
}
