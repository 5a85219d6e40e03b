/**
 * Messages waiting to ride in gossip packets, each sent a limited number of times.
 * Used by swim (membership broadcasts) and by networkdb (cluster, own and relay queues), which do not know each other.
 *
 * Selection order is memberlist's (queue.go, TransmitLimitedQueue): fewest transmissions first, then the
 * longest that fits, then the newest.
 */

/** A message that waits. The queue it is in writes `order` and `transmissions`; nobody else does. */
export interface Broadcast {
  readonly payload: Uint8Array;
  /** Rises with each entry of a queue. */
  order: number;
  transmissions: number;
}

/** What keeps an entry out of a packet, and whether that counts as a transmission all the same. */
export type Skip = "no" | "counted" | "uncounted";

/** What is known of those a packet goes to, and of what others send. */
export interface Knowing<E> {
  readonly skip: (entry: E) => Skip;
  /** Transmissions somebody else made since this was asked last. */
  readonly heard?: (entry: E) => number;
}

export interface TransmitQueueLimits {
  /** Protects memory when the network feeds messages faster than gossip drains them. At least 1. */
  readonly maxEntries: number;
}

/** Transmissions of one message in a group of `members`: multiplier · ⌈log10(members + 1)⌉, as memberlist counts. */
export function transmitLimit(multiplier: number, members: number): number {
  return multiplier * Math.ceil(Math.log10(members + 1));
}

/** `transmissions` of an entry that has left. */
const GONE = 0x3fff_ffff;
/** So many of those may lie around besides one for each that waits. */
const LITTER = 64;

/**
 * The queue itself. Its entries are objects of the caller, who finds them again without a look-up.
 *
 * An entry that is removed stays where it lies until a packet comes across it, and then is asked how often others have
 * sent it: storms make thousands of such changes between two packets.
 */
export class TransmitOrder<E extends Broadcast> {
  readonly #limits: TransmitQueueLimits;
  readonly #onGone: ((entry: E) => void) | undefined;
  /** Index = transmissions so far. */
  readonly #tiers: Tier<E>[] = [];
  #length = 0;
  #unsent = 0;
  #bytes = 0;
  #nextOrder = 0;
  #overflowed = 0;
  #litter = 0;

  /** `onGone` hears of every entry that leaves: sent often enough, removed or pushed out. */
  constructor(limits: TransmitQueueLimits, onGone?: (entry: E) => void) {
    this.#limits = limits;
    this.#onGone = onGone;
  }

  /** Entries waiting. */
  get length(): number {
    return this.#length;
  }

  /** Of those, never sent. */
  get unsent(): number {
    return this.#unsent;
  }

  /** Sum of the payload lengths waiting. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Entries pushed out because `maxEntries` was reached. */
  get overflowed(): number {
    return this.#overflowed;
  }

  /** The `order` of the latest entry; −1 before the first. */
  get latest(): number {
    return this.#nextOrder - 1;
  }

  /** Everything waiting, least sent first. */
  payloads(): Uint8Array[] {
    const waiting = this.#tiers.flatMap((tier) => tier.entries().filter(here));
    return waiting.sort((a, b) => a.transmissions - b.transmissions).map((entry) => entry.payload);
  }

  /** As sent as it says. A full queue gives up its most transmitted entry (peers most likely have it), the longest first. */
  add(entry: E): void {
    if (this.#length >= this.#limits.maxEntries) this.#dropMostSent();
    entry.order = this.#nextOrder++;
    this.#length++;
    if (entry.transmissions === 0) this.#unsent++;
    this.#bytes += entry.payload.length;
    this.#insert(entry);
  }

  /** The entry must be in the queue. */
  remove(entry: E): void {
    this.#leave(entry);
    this.#litter++;
    if (this.#length === 0) this.#sweep();
    else if (this.#litter > this.#length + LITTER) this.#tidy();
  }

  clear(): void {
    this.#sweep();
    this.#length = 0;
    this.#unsent = 0;
    this.#bytes = 0;
  }

  /**
   * Takes messages that fit `budgetBytes`, each costing its length plus `overheadPerMessage`, and counts one
   * transmission for each, or as many as there are `copies` of the packet. An entry that reaches `transmitLimit` leaves
   * the queue. No entry comes twice in one call. Only those are taken that were sent fewer than `below` times.
   */
  take(
    budgetBytes: number,
    overheadPerMessage: number,
    transmitLimit: number,
    knowing?: Knowing<E>,
    below = Infinity,
    copies = 1,
  ): Uint8Array[] {
    const uncounted: E[] = [];
    const counted: E[] = [];
    const taken: Uint8Array[] = [];
    let left = budgetBytes;
    for (let sent = 0; sent < this.#tiers.length && sent < below; sent++) {
      for (;;) {
        const entry = this.#pop(sent, left - overheadPerMessage, transmitLimit, knowing?.heard);
        if (entry === undefined) break;
        const skipped = knowing === undefined ? "no" : knowing.skip(entry);
        (skipped === "uncounted" ? uncounted : counted).push(entry);
        if (skipped !== "no") continue;
        left -= entry.payload.length + overheadPerMessage;
        taken.push(entry.payload);
      }
    }
    for (const entry of uncounted) this.#insert(entry);
    for (const entry of counted) {
      if (entry.transmissions === 0) this.#unsent--;
      entry.transmissions += copies;
      if (entry.transmissions >= transmitLimit) this.#leave(entry);
      else this.#insert(entry);
    }
    if (this.#length === 0) this.#sweep();
    return taken;
  }

  /** Takes everything at once, least transmitted first. */
  drain(): Uint8Array[] {
    const payloads: Uint8Array[] = [];
    for (let sent = 0; sent < this.#tiers.length; sent++) {
      for (let entry = this.#pop(sent, Infinity); entry !== undefined; entry = this.#pop(sent, Infinity)) {
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
        if (!here(entry)) {
          this.#litter--;
          continue;
        }
        this.#leave(entry);
        payloads.push(entry.payload);
      }
    }
    return payloads;
  }

  /** The longest that fits of those sent so often; others found in their place go where they belong. */
  #pop(sent: number, longest: number, limit = Infinity, heard?: (entry: E) => number): E | undefined {
    const tier = this.#tiers[sent];
    for (;;) {
      const entry = tier?.popLongest(longest);
      if (entry === undefined) return undefined;
      if (!here(entry)) this.#litter--;
      else {
        if (heard !== undefined) this.#hear(entry, heard(entry));
        if (entry.transmissions >= limit) this.#leave(entry);
        else if (entry.transmissions > sent) this.#insert(entry);
        else return entry;
      }
    }
  }

  #hear(entry: E, times: number): void {
    if (entry.transmissions === 0 && times > 0) this.#unsent--;
    entry.transmissions += times;
  }

  #leave(entry: E): void {
    if (entry.transmissions === 0) this.#unsent--;
    entry.transmissions = GONE;
    this.#length--;
    this.#bytes -= entry.payload.length;
    this.#onGone?.(entry);
  }

  #sweep(): void {
    this.#tiers.length = 0;
    this.#litter = 0;
  }

  #tidy(): void {
    const waiting = this.#tiers.flatMap((tier) => tier.entries().filter(here));
    this.#sweep();
    for (const entry of waiting.sort((a, b) => a.order - b.order)) this.#insert(entry);
  }

  #insert(entry: E): void {
    while (this.#tiers.length <= entry.transmissions) this.#tiers.push(new Tier());
    this.#tiers[entry.transmissions]?.insert(entry);
  }

  #dropMostSent(): void {
    for (let sent = this.#tiers.length - 1; sent >= 0; sent--) {
      const entry = this.#pop(sent, Infinity);
      if (entry === undefined) continue;
      this.#leave(entry);
      this.#overflowed++;
      return;
    }
  }
}

function here(entry: Broadcast): boolean {
  return entry.transmissions !== GONE;
}

interface Named extends Broadcast {
  readonly name: string | undefined;
}

/** The same by name: a named entry replaces the older one of its name. */
export class TransmitQueue {
  readonly #order: TransmitOrder<Named>;
  readonly #named = new Map<string, Named>();

  constructor(limits: TransmitQueueLimits) {
    this.#order = new TransmitOrder(limits, ({ name }) => {
      if (name !== undefined) this.#named.delete(name);
    });
  }

  /** Entries waiting. */
  get length(): number {
    return this.#order.length;
  }

  /** Of those, never sent. */
  get unsent(): number {
    return this.#order.unsent;
  }

  /** Sum of the payload lengths waiting. */
  get bytes(): number {
    return this.#order.bytes;
  }

  /** Entries pushed out because `maxEntries` was reached. */
  get overflowed(): number {
    return this.#order.overflowed;
  }

  has(name: string): boolean {
    return this.#named.has(name);
  }

  /** Adds a message; an entry of the same name is dropped, whatever its state. Unnamed entries never replace. */
  queue(name: string | undefined, payload: Uint8Array): void {
    const entry: Named = { name, payload, order: 0, transmissions: 0 };
    if (name !== undefined) {
      this.delete(name);
      this.#named.set(name, entry);
    }
    this.#order.add(entry);
  }

  /** Whether there was one. */
  delete(name: string): boolean {
    const entry = this.#named.get(name);
    if (entry === undefined) return false;
    this.#order.remove(entry);
    return true;
  }

  clear(): void {
    this.#named.clear();
    this.#order.clear();
  }

  /** See `TransmitOrder.take`. */
  take(budgetBytes: number, overheadPerMessage: number, transmitLimit: number): Uint8Array[] {
    return this.#order.take(budgetBytes, overheadPerMessage, transmitLimit);
  }

  /** The same of those never sent. */
  takeUnsent(budgetBytes: number, overheadPerMessage: number, transmitLimit: number): Uint8Array[] {
    return this.#order.take(budgetBytes, overheadPerMessage, transmitLimit, undefined, 1);
  }

  /** Takes everything at once, least transmitted first. */
  drain(): Uint8Array[] {
    this.#named.clear();
    return this.#order.drain();
  }

  /** Takes out those whose payload is longer than `bytes`, which no packet will ever hold. */
  takeLongerThan(bytes: number): Uint8Array[] {
    return this.#order.takeLongerThan(bytes);
  }
}

/** Entries with one number of transmissions, by payload length, oldest to newest within a length. */
class Tier<E extends Broadcast> {
  /** Ascending lengths. Empty buckets stay: gossip has few lengths, and they come again. */
  readonly #buckets: Bucket<E>[] = [];

  insert(entry: E): void {
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

  entries(): E[] {
    return this.#buckets.flatMap((bucket) => bucket.entries);
  }

  /** Removes the newest of the longest entries not longer than `limit` bytes. */
  popLongest(limit: number): E | undefined {
    for (let i = this.#firstAbove(limit) - 1; i >= 0; i--) {
      const entry = this.#buckets[i]?.entries.pop();
      if (entry !== undefined) return entry;
    }
    return undefined;
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

/** So far from its end a bucket is searched step by step. */
const NEARBY = 32;

/** Entries of one length, by order. */
class Bucket<E extends Broadcast> {
  readonly length: number;
  readonly entries: E[];

  constructor(length: number, entry: E) {
    this.length = length;
    this.entries = [entry];
  }

  insert(entry: E): void {
    const { entries } = this;
    if (entries.length > NEARBY && (entries[entries.length - NEARBY]?.order ?? 0) > entry.order) {
      entries.splice(this.#indexOf(entry), 0, entry);
      return;
    }
    // By hand: most belong near the end, and `splice` leaves an array behind.
    let at = entries.push(entry) - 1;
    for (; at > 0; at--) {
      const before = entries[at - 1] as E;
      if (before.order < entry.order) break;
      entries[at] = before;
    }
    entries[at] = entry;
  }

  #indexOf({ order }: E): number {
    let low = 0;
    let high = this.entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.entries[middle]?.order ?? 0) < order) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
