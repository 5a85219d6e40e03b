/**
 * Messages waiting to ride in gossip packets, each sent a limited number of times.
 * Used by swim (membership broadcasts) and by networkdb (cluster, own and relay queues), which do not know each other.
 *
 * Selection order is memberlist's (queue.go, TransmitLimitedQueue): fewest transmissions first, then the
 * longest that fits, then the newest. A named entry replaces the older one of the same name.
 */
export class TransmitQueue {
  readonly #limits: TransmitQueueLimits;
  readonly #named = new Map<string, Entry>();
  /** Index = transmissions so far. */
  readonly #tiers: Tier[] = [];
  #length = 0;
  #bytes = 0;
  #nextId = 0;
  #overflowed = 0;
  readonly #onGone: ((name: string) => void) | undefined;

  /** `onGone` hears of every named entry that leaves: sent often enough, replaced, deleted or pushed out. */
  constructor(limits: TransmitQueueLimits, onGone?: (name: string) => void) {
    this.#limits = limits;
    this.#onGone = onGone;
  }

  /** Entries waiting. */
  get length(): number {
    return this.#length;
  }

  /** Sum of the payload lengths waiting. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Entries pushed out because `maxEntries` was reached. */
  get overflowed(): number {
    return this.#overflowed;
  }

  /** Everything waiting, least sent first. */
  payloads(): Uint8Array[] {
    return this.#tiers.flatMap((tier) => tier.entries().map((entry) => entry.payload));
  }

  has(name: string): boolean {
    return this.#named.has(name);
  }

  /**
   * Adds a message; an entry of the same name is dropped, whatever its state. Unnamed entries never replace.
   * A full queue gives up its most transmitted entry (peers most likely have it), the longest first.
   */
  queue(name: string | undefined, payload: Uint8Array): void {
    if (name !== undefined) this.delete(name);
    if (this.#length >= this.#limits.maxEntries) this.#dropMostSent();
    const entry: Entry = { id: this.#nextId++, name, payload, transmissions: 0 };
    if (name !== undefined) this.#named.set(name, entry);
    this.#length++;
    this.#bytes += payload.length;
    this.#insert(entry);
  }

  /** Whether there was one. */
  delete(name: string): boolean {
    const entry = this.#named.get(name);
    if (entry === undefined) return false;
    this.#tiers[entry.transmissions]?.remove(entry);
    this.#forget(entry);
    return true;
  }

  clear(): void {
    this.#named.clear();
    this.#tiers.length = 0;
    this.#length = 0;
    this.#bytes = 0;
  }

  /**
   * Takes messages that fit `budgetBytes`, each costing its length plus `overheadPerMessage`, and counts one
   * transmission for each. An entry that reaches `transmitLimit` leaves the queue. No entry comes twice in one call.
   * `skip` says of a named entry whether it is left out, and whether that counts as a transmission all the same.
   */
  take(
    budgetBytes: number,
    overheadPerMessage: number,
    transmitLimit: number,
    skip?: (name: string) => "no" | "counted" | "uncounted",
  ): Uint8Array[] {
    const uncounted: Entry[] = [];
    const counted: Entry[] = [];
    const taken: Uint8Array[] = [];
    let left = budgetBytes;
    for (const tier of this.#tiers) {
      for (;;) {
        const entry = tier.popLongest(left - overheadPerMessage);
        if (entry === undefined) break;
        const skipped = entry.name === undefined ? undefined : skip?.(entry.name);
        (skipped === "uncounted" ? uncounted : counted).push(entry);
        if (skipped === "counted" || skipped === "uncounted") continue;
        left -= entry.payload.length + overheadPerMessage;
        taken.push(entry.payload);
      }
    }
    for (const entry of uncounted) this.#insert(entry);
    for (const entry of counted) {
      entry.transmissions++;
      if (entry.transmissions >= transmitLimit) this.#forget(entry);
      else this.#insert(entry);
    }
    return taken;
  }

  /** Counts one transmission of a named entry that somebody else made. */
  transmitted(name: string, transmitLimit: number): void {
    const entry = this.#named.get(name);
    if (entry === undefined) return;
    this.#tiers[entry.transmissions]?.remove(entry);
    entry.transmissions++;
    if (entry.transmissions >= transmitLimit) this.#forget(entry);
    else this.#insert(entry);
  }

  /** Takes everything at once, least transmitted first. */
  drain(): Uint8Array[] {
    const payloads: Uint8Array[] = [];
    for (const tier of this.#tiers) {
      for (let entry = tier.popLongest(Infinity); entry !== undefined; entry = tier.popLongest(Infinity)) {
        payloads.push(entry.payload);
      }
    }
    this.clear();
    return payloads;
  }

  /** Takes out those whose payload is longer than `bytes`, which no packet will ever hold. */
  takeLongerThan(bytes: number): Uint8Array[] {
    const payloads: Uint8Array[] = [];
    for (const tier of this.#tiers) {
      while (tier.longest > bytes) {
        const entry = tier.popLongest(Infinity);
        if (entry === undefined) break;
        this.#forget(entry);
        payloads.push(entry.payload);
      }
    }
    return payloads;
  }

  #forget(entry: Entry): void {
    this.#length--;
    this.#bytes -= entry.payload.length;
    if (this.#length === 0) this.#tiers.length = 0;
    if (entry.name === undefined) return;
    this.#named.delete(entry.name);
    this.#onGone?.(entry.name);
  }

  #insert(entry: Entry): void {
    while (this.#tiers.length <= entry.transmissions) this.#tiers.push(new Tier());
    this.#tiers[entry.transmissions]?.insert(entry);
  }

  #dropMostSent(): void {
    for (let sent = this.#tiers.length - 1; sent >= 0; sent--) {
      const entry = this.#tiers[sent]?.popLongest(Infinity);
      if (entry === undefined) continue;
      this.#forget(entry);
      this.#overflowed++;
      return;
    }
  }
}

export interface TransmitQueueLimits {
  /** Protects memory when the network feeds messages faster than gossip drains them. At least 1. */
  readonly maxEntries: number;
}

/** Transmissions of one message in a group of `members`: multiplier · ⌈log10(members + 1)⌉, as memberlist counts. */
export function transmitLimit(multiplier: number, members: number): number {
  return multiplier * Math.ceil(Math.log10(members + 1));
}

interface Entry {
  readonly id: number;
  readonly name: string | undefined;
  readonly payload: Uint8Array;
  transmissions: number;
}

/** Entries with one number of transmissions, by payload length, oldest to newest within a length. */
class Tier {
  /** Ascending lengths. Empty buckets stay: gossip has few lengths, and they come again. */
  readonly #buckets: Bucket[] = [];

  insert(entry: Entry): void {
    const { length } = entry.payload;
    const index = this.#firstAbove(length);
    const below = this.#buckets[index - 1];
    if (below?.length === length) below.insert(entry);
    else this.#buckets.splice(index, 0, new Bucket(length, entry));
  }

  /** Length of the longest entry, 0 without one. */
  get longest(): number {
    for (let i = this.#buckets.length - 1; i >= 0; i--) {
      const bucket = this.#buckets[i];
      if (bucket !== undefined && bucket.entries.length > 0) return bucket.length;
    }
    return 0;
  }

  entries(): Entry[] {
    return this.#buckets.flatMap((bucket) => bucket.entries);
  }

  /** Removes the newest of the longest entries not longer than `limit` bytes. */
  popLongest(limit: number): Entry | undefined {
    for (let i = this.#firstAbove(limit) - 1; i >= 0; i--) {
      const entry = this.#buckets[i]?.entries.pop();
      if (entry !== undefined) return entry;
    }
    return undefined;
  }

  remove(entry: Entry): void {
    const { length } = entry.payload;
    const bucket = this.#buckets[this.#firstAbove(length) - 1];
    if (bucket?.length === length) bucket.remove(entry);
  }

  /** Index of the first bucket of a length greater than `limit`. */
  #firstAbove(limit: number): number {
    let low = 0;
    let high = this.#buckets.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#buckets[middle]?.length ?? 0) > limit) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Entries of one length, by id. */
class Bucket {
  readonly length: number;
  readonly entries: Entry[];

  constructor(length: number, entry: Entry) {
    this.length = length;
    this.entries = [entry];
  }

  insert(entry: Entry): void {
    const at = this.#firstNotBelow(entry.id);
    if (at === this.entries.length) this.entries.push(entry);
    else this.entries.splice(at, 0, entry);
  }

  remove(entry: Entry): void {
    const at = this.#firstNotBelow(entry.id);
    if (this.entries[at] === entry) this.entries.splice(at, 1);
  }

  #firstNotBelow(id: number): number {
    let low = 0;
    let high = this.entries.length;
    if ((this.entries[high - 1]?.id ?? -1) < id) return high;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.entries[middle]?.id ?? 0) < id) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
