import { assert } from "../base/assert.ts";
import { ByteWriter } from "../base/bytes.ts";
import type { NetworkId, NodeId } from "../base/id.ts";
import { ipv4ToNumber, subnetSize, type Cidr } from "../base/ip.ts";
import { encodeRing, MAX_RING_ENTRIES, type Ring, type RingEntry } from "../wire/state/ring.ts";
import { compareText } from "./definitions.ts";
import { hash32 } from "./hash.ts";

/** Addresses as numbers, `end` excluded. */
export interface AddressRange {
  readonly first: number;
  readonly end: number;
}

export interface OwnedRange extends AddressRange {
  readonly entry: RingEntry;
}

/** A part smaller than this is not worth dividing further: a node attaches a few endpoints at least. */
const MIN_PART = 4;
/** What an heir adds to the version: whatever the removed node still wrote in the dark loses. */
const TAKEOVER_STEP = 2 ** 20;

/** The addresses of a subnet without network and broadcast address; the gateway is among them, never given. */
export function hostRange(subnet: Cidr): AddressRange {
  const first = ipv4ToNumber(subnet.ip);
  return { first: first + 1, end: first + subnetSize(subnet) - 1 };
}

/** Of a range inside a subnet: all of it, but never the subnet's own first and last address. */
export function rangeWithin(subnet: Cidr, range: Cidr): AddressRange {
  const [whole, part] = [hostRange(subnet), hostRange(range)];
  return { first: Math.max(part.first - 1, whole.first), end: Math.min(part.end + 1, whole.end) };
}

/**
 * The ring as created: the range in equal parts, one per seed, in their order. A function of the definition, so
 * whoever knows a network knows its first ring, and a creator that dies early takes nothing with it.
 */
export function seedRing(
  network: NetworkId,
  range: AddressRange,
  seeds: readonly NodeId[],
  identity: { readonly seeded: number; readonly seeder: NodeId },
): Ring {
  const size = range.end - range.first;
  const parts = Math.max(1, Math.min(seeds.length, Math.floor(size / MIN_PART)));
  const entries = Array.from({ length: parts }, (_, index): RingEntry => {
    const start = range.first + Math.floor((size * index) / parts);
    const end = range.first + Math.floor((size * (index + 1)) / parts);
    return { start, owner: seeds[index] ?? identity.seeder, version: 0, free: end - start };
  });
  return { network, ...identity, entries };
}

/**
 * Who owns which addresses of one network, as Weave's allocator had it: entries start ranges; only the owner of
 * an entry changes it, splits its range or gives a part away, and starts are never taken out. So two replicas
 * merge entry by entry, the higher version wins, and no two nodes ever own one address.
 *
 * A ring travels as a whole: who hears that P gave a range to Q then also knows everything P had decided before.
 * `inherit` rests on that.
 */
export class AddressRing {
  readonly range: AddressRange;
  #ring: Ring;
  #hash: number | undefined;

  /** `ring` must be well-formed for `range` (`fits`). */
  constructor(range: AddressRange, ring: Ring) {
    this.range = range;
    this.#ring = ring;
  }

  static fits(range: AddressRange, ring: Ring): boolean {
    const last = ring.entries.at(-1);
    return ring.entries[0]?.start === range.first && last !== undefined && last.start < range.end;
  }

  get ring(): Ring {
    return this.#ring;
  }

  /** The same on every replica that knows the same. */
  get hash(): number {
    return (this.#hash ??= hashRing(this.#ring));
  }

  *ranges(): Iterable<OwnedRange> {
    const { entries } = this.#ring;
    for (const [index, entry] of entries.entries())
      yield { entry, first: entry.start, end: entries[index + 1]?.start ?? this.range.end };
  }

  rangesOf(owner: NodeId): OwnedRange[] {
    return [...this.ranges()].filter(({ entry }) => entry.owner === owner);
  }

  /** The range that holds `address`; undefined outside the network. */
  find(address: number): OwnedRange | undefined {
    if (address < this.range.first || address >= this.range.end) return undefined;
    const index = this.#indexOf(address);
    const entry = this.#ring.entries[index];
    return (
      entry && { entry, first: entry.start, end: this.#ring.entries[index + 1]?.start ?? this.range.end }
    );
  }

  /** Gives a part of one range of `from` to `to`; false when the ring is too fragmented to be split further. */
  give(part: AddressRange, from: NodeId, to: NodeId): boolean {
    const source = this.find(part.first);
    assert(source !== undefined && source.entry.owner === from, `gives ${part.first}, which is not its own`);
    assert(
      part.end > part.first && part.end <= source.end,
      `gives ${part.first}…${part.end} beyond its range`,
    );
    if (this.#ring.entries.length + 2 > MAX_RING_ENTRIES) return false;
    const version = source.entry.version + 1;
    const replaced: RingEntry[] = [];
    const free = part.end - part.first;
    if (part.first > source.first)
      replaced.push({ start: source.first, owner: from, version, free: part.first - source.first });
    replaced.push({ start: part.first, owner: to, version, free });
    if (part.end < source.end)
      replaced.push({ start: part.end, owner: from, version, free: source.end - part.end });
    const entries = [...this.#ring.entries];
    entries.splice(this.#indexOf(part.first), 1, ...replaced);
    this.#set({ ...this.#ring, entries });
    return true;
  }

  /** The owner's count of free addresses in the range that starts at `start`. */
  setFree(start: number, free: number): void {
    const index = this.#indexOf(start);
    const entry = this.#ring.entries[index];
    assert(entry?.start === start, `no range starts at ${start}`);
    const entries = this.#ring.entries.with(index, { ...entry, free, version: entry.version + 1 });
    this.#set({ ...this.#ring, entries });
  }

  /** Whether something changed. `other` must be a ring of the same identity and fit the range. */
  merge(other: Ring): boolean {
    const mine = this.#ring.entries;
    const merged: RingEntry[] = [];
    let changed = false;
    let i = 0;
    let j = 0;
    for (;;) {
      const a = mine[i];
      const b = other.entries[j];
      if (a === undefined && b === undefined) break;
      if (b === undefined || (a !== undefined && a.start < b.start)) {
        if (a !== undefined) merged.push(a);
        i++;
      } else if (a === undefined || b.start < a.start) {
        merged.push(b);
        changed = true;
        j++;
      } else {
        const theirs = compareRingEntries(b, a) > 0;
        merged.push(theirs ? b : a);
        changed ||= theirs;
        i++;
        j++;
      }
    }
    if (!changed || merged.length > MAX_RING_ENTRIES) return false;
    this.#set({ ...this.#ring, entries: merged });
    return true;
  }

  /**
   * Ranges of removed nodes that pass to `heir`: those that follow a range of its own, directly or over other
   * removed nodes' ranges. The right to inherit a range thus belongs to exactly one node, the owner of the range
   * before it, and is handed on only by its own act of giving that range away.
   */
  inheritance(heir: NodeId, removed: ReadonlySet<NodeId>): number[] {
    const { entries } = this.#ring;
    const starts: number[] = [];
    let owner: NodeId | undefined;
    // The ring is closed: what precedes the first range is the last. Two rounds settle the wrap.
    for (const pass of [0, 1]) {
      for (const entry of entries) {
        if (!removed.has(entry.owner)) owner = entry.owner;
        else if (pass === 1 && owner === heir) starts.push(entry.start);
      }
    }
    return starts;
  }

  /** Takes over the ranges that start at `starts`; the heir's count of free addresses follows. */
  inherit(heir: NodeId, starts: readonly number[]): void {
    const taken = new Set(starts);
    const entries = this.#ring.entries.map((entry) =>
      taken.has(entry.start) ? { ...entry, owner: heir, version: entry.version + TAKEOVER_STEP } : entry,
    );
    this.#set({ ...this.#ring, entries });
  }

  #set(ring: Ring): void {
    this.#ring = ring;
    this.#hash = undefined;
  }

  /** Index of the last entry that starts at or before `address`. */
  #indexOf(address: number): number {
    const { entries } = this.#ring;
    let low = 0;
    let high = entries.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((entries[middle]?.start ?? 0) <= address) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

export function hashRing(ring: Ring): number {
  const out = new ByteWriter(64 + ring.entries.length * 10);
  encodeRing(ring, out);
  return hash32(out.finish());
}

/** Negative when `a` is the one to keep of two rings seeded apart: the older, then the smaller seeder. */
export function compareRings(a: Ring, b: Ring): number {
  return a.seeded - b.seeded || compareText(a.seeder, b.seeder);
}

/** Positive when `a` wins. Beyond the version only a takeover of a live node can make a difference. */
function compareRingEntries(a: RingEntry, b: RingEntry): number {
  return a.version - b.version || compareText(a.owner, b.owner) || a.free - b.free;
}
