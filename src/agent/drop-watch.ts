import { elapsed, type Instant } from "../base/time.ts";

/** One reason is told again after this, with all that came meanwhile. */
const QUIET_MS = 60_000;

/** What was dropped so far, where and why; the number never falls. */
export type Drops = readonly (readonly [where: string, reason: string, count: number])[];

/** Tells in the events what is dropped, by reason: packets are counted, not logged one by one. To be asked to `look`. */
export class DropWatch {
  readonly #read: () => Drops;
  readonly #now: () => Instant;
  readonly #emit: (where: string, detail: string) => void;
  readonly #told = new Map<string, { count: number; at: Instant | undefined }>();

  /** The reasons `read` knows must be bounded in number. */
  constructor(read: () => Drops, now: () => Instant, emit: (where: string, detail: string) => void) {
    this.#read = read;
    this.#now = now;
    this.#emit = emit;
  }

  look(): void {
    const now = this.#now();
    for (const [where, reason, count] of this.#read()) {
      const key = `${where} ${reason}`;
      const told = this.#told.get(key) ?? { count: 0, at: undefined };
      if (count <= told.count || (told.at !== undefined && elapsed(told.at, now) < QUIET_MS)) continue;
      this.#emit(where, `${count - told.count} dropped: ${reason}`);
      this.#told.set(key, { count, at: now });
    }
  }
}
