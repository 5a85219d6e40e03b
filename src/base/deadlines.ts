import { after, type Instant } from "./time.ts";

/** Deadlines by key, the only timer a core needs: set, forget, ask for the earliest, collect what is due. */
export class Deadlines<K> {
  readonly #at = new Map<K, Instant>();
  /** Binary min-heap; entries no longer in `#at` at that instant are stale and skipped when they surface. */
  readonly #heap: { readonly key: K; readonly at: Instant }[] = [];

  get size(): number {
    return this.#at.size;
  }

  get(key: K): Instant | undefined {
    return this.#at.get(key);
  }

  /** Sets or moves the deadline of `key`. */
  set(key: K, at: Instant): void {
    this.#at.set(key, at);
    this.#push({ key, at });
    // Stale entries must not outgrow the live ones without bound.
    if (this.#heap.length > 64 && this.#heap.length > 4 * this.#at.size) this.#rebuild();
  }

  /** Whether there was one. */
  delete(key: K): boolean {
    return this.#at.delete(key);
  }

  /** Moves all of them: `milliseconds` later. */
  shift(milliseconds: number): void {
    for (const [key, at] of this.#at) this.#at.set(key, after(at, milliseconds));
    this.#rebuild();
  }

  clear(): void {
    this.#at.clear();
    this.#heap.length = 0;
  }

  earliest(): Instant | undefined {
    this.#dropStale();
    return this.#heap[0]?.at;
  }

  /** Removes and returns every key whose deadline is at or before `now`, earliest first. */
  takeDue(now: Instant): K[] {
    const due: K[] = [];
    for (;;) {
      this.#dropStale();
      const top = this.#heap[0];
      if (top === undefined || top.at > now) return due;
      this.#pop();
      this.#at.delete(top.key);
      due.push(top.key);
    }
  }

  #dropStale(): void {
    for (let top = this.#heap[0]; top !== undefined; top = this.#heap[0]) {
      if (this.#at.get(top.key) === top.at) return;
      this.#pop();
    }
  }

  #rebuild(): void {
    this.#heap.length = 0;
    for (const [key, at] of this.#at) this.#push({ key, at });
  }

  #push(entry: { readonly key: K; readonly at: Instant }): void {
    const heap = this.#heap;
    let i = heap.push(entry) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      const above = heap[parent];
      if (above === undefined || above.at <= entry.at) break;
      heap[i] = above;
      i = parent;
    }
    heap[i] = entry;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      const left = heap[child];
      if (left === undefined) break;
      let smallest = left;
      const right = heap[child + 1];
      if (right !== undefined && right.at < left.at) {
        child++;
        smallest = right;
      }
      if (smallest.at >= last.at) break;
      heap[i] = smallest;
      i = child;
    }
    heap[i] = last;
  }
}

/** What a `DueHeap` holds. The heap writes `heapIndex`; `dueAt` is moved through `DueHeap.set`. */
export interface Due {
  dueAt: Instant;
  /** Its place in the heap; −1 outside. */
  heapIndex: number;
}

/** Deadlines that are kept in what they are about: for tens of thousands at a time, without a map beside the heap. */
export class DueHeap<T extends Due> {
  readonly #heap: T[] = [];

  get size(): number {
    return this.#heap.length;
  }

  earliest(): Instant | undefined {
    return this.#heap[0]?.dueAt;
  }

  /** Adds `item`, or moves its deadline. */
  set(item: T, at: Instant): void {
    item.dueAt = at;
    const index = item.heapIndex >= 0 ? item.heapIndex : this.#heap.push(item) - 1;
    this.#down(item, this.#up(item, index));
  }

  /** Whether it was in. */
  delete(item: T): boolean {
    const index = item.heapIndex;
    if (index < 0) return false;
    item.heapIndex = -1;
    const last = this.#heap.pop();
    if (last !== undefined && last !== item) this.#down(last, this.#up(last, index));
    return true;
  }

  /** Moves all of them: `milliseconds` later. */
  shift(milliseconds: number): void {
    for (const item of this.#heap) item.dueAt = after(item.dueAt, milliseconds);
  }

  /** Removes and returns everything due at or before `now`, earliest first. */
  takeDue(now: Instant): T[] {
    const due: T[] = [];
    for (let top = this.#heap[0]; top !== undefined && top.dueAt <= now; top = this.#heap[0]) {
      this.delete(top);
      due.push(top);
    }
    return due;
  }

  #up(item: T, index: number): number {
    let at = index;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = this.#heap[parent] as T;
      if (above.dueAt <= item.dueAt) break;
      this.#put(above, at);
      at = parent;
    }
    this.#put(item, at);
    return at;
  }

  #down(item: T, index: number): void {
    let at = index;
    for (;;) {
      let child = 2 * at + 1;
      let below = this.#heap[child];
      if (below === undefined) break;
      const right = this.#heap[child + 1];
      if (right !== undefined && right.dueAt < below.dueAt) {
        below = right;
        child++;
      }
      if (below.dueAt >= item.dueAt) break;
      this.#put(below, at);
      at = child;
    }
    this.#put(item, at);
  }

  #put(item: T, at: number): void {
    this.#heap[at] = item;
    item.heapIndex = at;
  }
}
