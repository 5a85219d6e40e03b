import { earliest, type Instant } from "../base/time.ts";
import type { Entry } from "./entry.ts";

/** The rows of one network: one index per table. Tombstones count as rows. */
export class RowStore {
  readonly #tables = new Map<string, Map<string, Entry>>();
  #size = 0;
  /** No row dies before; may be too early, never too late. */
  #nextReap: Instant | undefined;

  get size(): number {
    return this.#size;
  }

  get tableCount(): number {
    return this.#tables.size;
  }

  hasTable(table: string): boolean {
    return this.#tables.has(table);
  }

  get(table: string, key: string): Entry | undefined {
    return this.#tables.get(table)?.get(key);
  }

  set(table: string, key: string, entry: Entry): void {
    let rows = this.#tables.get(table);
    if (rows === undefined) {
      rows = new Map();
      this.#tables.set(table, rows);
    }
    const before = rows.size;
    rows.set(key, entry);
    this.#size += rows.size - before;
    this.#nextReap = earliest(this.#nextReap, entry.reapAt);
  }

  delete(table: string, key: string): void {
    const rows = this.#tables.get(table);
    if (rows?.delete(key) !== true) return;
    this.#size--;
    if (rows.size === 0) this.#tables.delete(table);
  }

  /** Moves the death of a stored row. */
  setReapAt(entry: Entry, at: Instant | undefined): void {
    entry.reapAt = at;
    this.#nextReap = earliest(this.#nextReap, at);
  }

  table(table: string): Iterable<[string, Entry]> {
    return this.#tables.get(table) ?? [];
  }

  /** Every row as [table, key, entry]. Rows may be set and deleted while this goes on. */
  *all(): Generator<[string, string, Entry], void, undefined> {
    for (const [table, rows] of this.#tables) {
      for (const [key, entry] of rows) yield [table, key, entry];
    }
  }

  /** Calls `visit` for every row; `visit` may set and delete rows. Several times faster than `all`. */
  forEach(visit: (table: string, key: string, entry: Entry) => void): void {
    for (const [table, rows] of this.#tables) {
      for (const [key, entry] of rows) visit(table, key, entry);
    }
  }

  /** Forgets rows that die at or before `until`; returns how many. Costs nothing while none does. */
  reap(until: Instant): number {
    if (this.#nextReap === undefined || this.#nextReap > until) return 0;
    let next: Instant | undefined;
    const before = this.#size;
    this.forEach((table, key, entry) => {
      if (entry.reapAt === undefined) return;
      if (entry.reapAt <= until) this.delete(table, key);
      else next = earliest(next, entry.reapAt);
    });
    this.#nextReap = next;
    return before - this.#size;
  }
}
