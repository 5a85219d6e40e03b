import { after, earliest, type Instant } from "../base/time.ts";
import { conflictKey, type Conflict } from "./conflicts.ts";

/** Half of what two sides did may arrive before the other half: only a conflict that stays is reported. */
const REPORT_MS = 2000;

/** Which conflicts are there, and which of them are still to be reported. */
export class ConflictWatch {
  #conflicts: readonly Conflict[] = [];
  /** By key, until when each is watched; undefined: reported. */
  #watched = new Map<string, Instant | undefined>();
  #next: Instant | undefined;

  get conflicts(): readonly Conflict[] {
    return this.#conflicts;
  }

  set(conflicts: readonly Conflict[], now: Instant): void {
    const watched = new Map<string, Instant | undefined>();
    this.#next = undefined;
    for (const conflict of conflicts) {
      const key = conflictKey(conflict);
      const until = this.#watched.has(key) ? this.#watched.get(key) : after(now, REPORT_MS);
      watched.set(key, until);
      this.#next = earliest(this.#next, until);
    }
    this.#conflicts = conflicts;
    this.#watched = watched;
  }

  nextWakeup(): Instant | undefined {
    return this.#next;
  }

  /** Conflicts that have stayed, each once. */
  takeDue(now: Instant): Conflict[] {
    if (this.#next === undefined || this.#next > now) return [];
    this.#next = undefined;
    const due: Conflict[] = [];
    for (const conflict of this.#conflicts) {
      const key = conflictKey(conflict);
      const until = this.#watched.get(key);
      if (until === undefined || until > now) {
        this.#next = earliest(this.#next, until);
        continue;
      }
      this.#watched.set(key, undefined);
      due.push(conflict);
    }
    return due;
  }
}
