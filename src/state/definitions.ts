import { ByteWriter, compareBytes, utf8 } from "../base/bytes.ts";
import type { NodeId } from "../base/id.ts";
import { elapsed, after, type Instant } from "../base/time.ts";
import {
  encodeDefinition,
  type Definition,
  type DefinitionKind,
  type Network,
  type NodeDefinition,
  type Service,
} from "../wire/state/definition.ts";
import { encodeEntry, type Entry } from "../wire/state/entry.ts";
import { hash32 } from "./hash.ts";

export interface DefinitionChange {
  readonly kind: DefinitionKind;
  readonly id: string;
}

export interface MergeResult {
  /** Entries that were news, to pass on. */
  readonly accepted: readonly Entry[];
  /** What readers see differently now. */
  readonly changes: readonly DefinitionChange[];
  /** Entries not taken because the map is full. */
  readonly refused: number;
  /** Keys of tombstones forgotten because there are too many. */
  readonly dropped: readonly string[];
}

interface Stored {
  readonly entry: Entry;
  readonly hash: number;
  /** When this replica learned the entry, less the age it came with: what a tombstone's age counts from. */
  readonly since: Instant;
}

/** A tombstone must outlive every partition, or a definition removed on one side comes back from the other. */
export const TOMBSTONE_MS = 7 * 24 * 3600 * 1000;
/** Bound the memory that members can make us use. */
const MAX_LIVE = 65_536;
const MAX_TOMBSTONES = 16_384;

/**
 * The replicated map of definitions. Merging takes the maximum of a total order per entry, so it is commutative,
 * associative and idempotent; every delivery order gives the same map.
 *
 * Removal is final: a tombstone (or a removed node) beats a live entry of any Lamport time. Ids are random and
 * never used again, so nothing legitimate is lost, and a write made in a partition cannot bring back a service
 * whose virtual addresses are in other hands by then.
 */
export class Definitions {
  readonly #stored = new Map<string, Stored>();
  #live = 0;
  #clock = 0;

  /** The highest Lamport time seen or used. */
  get clock(): number {
    return this.#clock;
  }

  witness(lamport: number): void {
    this.#clock = Math.max(this.#clock, lamport);
  }

  get(kind: DefinitionKind, id: string): Definition | undefined {
    return this.#stored.get(entryKey(kind, id))?.entry.definition;
  }

  network(id: string): Network | undefined {
    const definition = this.get("network", id);
    return definition?.kind === "network" ? definition.value : undefined;
  }

  service(id: string): Service | undefined {
    const definition = this.get("service", id);
    return definition?.kind === "service" ? definition.value : undefined;
  }

  node(id: string): NodeDefinition | undefined {
    const definition = this.get("node", id);
    return definition?.kind === "node" ? definition.value : undefined;
  }

  /** Whether the entry was removed here or elsewhere, as long as its tombstone is kept. */
  isRemoved(kind: DefinitionKind, id: string): boolean {
    const stored = this.#stored.get(entryKey(kind, id));
    return stored !== undefined && stored.entry.definition === undefined;
  }

  *all(): Iterable<Definition> {
    for (const { entry } of this.#stored.values()) if (entry.definition !== undefined) yield entry.definition;
  }

  /** Every entry with its key, tombstones with their age at `now`; in no particular order. */
  *entries(now: Instant): Iterable<readonly [key: string, entry: Entry]> {
    for (const [key, stored] of this.#stored) yield [key, agedEntry(stored, now)];
  }

  entry(key: string, now: Instant): Entry | undefined {
    const stored = this.#stored.get(key);
    return stored && agedEntry(stored, now);
  }

  /** A hash of the entry that is the same on every replica that has it. */
  hashOf(key: string): number | undefined {
    return this.#stored.get(key)?.hash;
  }

  /** Sets a definition in the name of `writer`. */
  write(definition: Definition, writer: NodeId, now: Instant): Entry {
    const entry: Entry = {
      kind: definition.kind,
      id: definition.value.id,
      lamport: ++this.#clock,
      writer,
      raw: encodeDefinition(definition),
      definition,
      ageSeconds: 0,
    };
    this.#store(entry, now);
    return entry;
  }

  /** Leaves a tombstone. */
  remove(kind: DefinitionKind, id: string, writer: NodeId, now: Instant): Entry {
    const entry: Entry = {
      kind,
      id,
      lamport: ++this.#clock,
      writer,
      raw: new Uint8Array(0),
      ageSeconds: 0,
    };
    this.#store(entry, now);
    return entry;
  }

  merge(entries: readonly Entry[], now: Instant): MergeResult {
    const accepted: Entry[] = [];
    const changes: DefinitionChange[] = [];
    let refused = 0;
    for (const entry of entries) {
      this.witness(entry.lamport);
      const key = entryKey(entry.kind, entry.id);
      const known = this.#stored.get(key);
      const order = known === undefined ? 1 : compareEntries(entry, known.entry);
      if (order <= 0) {
        if (order === 0 && known !== undefined) this.#adoptAge(key, known, entry, now);
        continue;
      }
      const live = entry.definition !== undefined;
      if (known === undefined && !live && entry.ageSeconds * 1000 >= TOMBSTONE_MS) continue;
      if (known === undefined && live && this.#live >= MAX_LIVE) {
        refused++;
        continue;
      }
      this.#store(entry, now);
      accepted.push(entry);
      if (live || known?.entry.definition !== undefined) changes.push({ kind: entry.kind, id: entry.id });
    }
    return { accepted, changes, refused, dropped: this.#boundTombstones() };
  }

  /** Forgets tombstones that are old enough; returns their keys. */
  expire(now: Instant): string[] {
    const expired: string[] = [];
    for (const [key, stored] of this.#stored) {
      if (stored.entry.definition === undefined && elapsed(stored.since, now) >= TOMBSTONE_MS)
        expired.push(key);
    }
    for (const key of expired) this.#stored.delete(key);
    return expired;
  }

  #store(entry: Entry, now: Instant): void {
    const key = entryKey(entry.kind, entry.id);
    if (this.#stored.get(key)?.entry.definition !== undefined) this.#live--;
    if (entry.definition !== undefined) this.#live++;
    const since = after(now, -entry.ageSeconds * 1000);
    this.#stored.set(key, { entry, since, hash: hashEntry(entry) });
  }

  /** Replicas agree on the greater age, or one that forgot a tombstone would get it back as new, for ever. */
  #adoptAge(key: string, known: Stored, entry: Entry, now: Instant): void {
    const since = after(now, -entry.ageSeconds * 1000);
    if (entry.definition === undefined && since < known.since) this.#stored.set(key, { ...known, since });
  }

  /** Beyond the bound the lowest in merge order go: the same ones on every replica. */
  #boundTombstones(): string[] {
    if (this.#stored.size - this.#live <= MAX_TOMBSTONES) return [];
    const tombstones = [...this.#stored].filter(([, stored]) => stored.entry.definition === undefined);
    tombstones.sort((a, b) => compareEntries(a[1].entry, b[1].entry));
    const dropped = tombstones.slice(0, tombstones.length - MAX_TOMBSTONES).map(([key]) => key);
    for (const key of dropped) this.#stored.delete(key);
    return dropped;
  }
}

export function entryKey(kind: DefinitionKind, id: string): string {
  return `${kind}/${id}`;
}

/** Positive when `a` wins over `b`: final first, then the higher Lamport time, then the writer, then the bytes. */
export function compareEntries(a: Entry, b: Entry): number {
  return (
    Number(isFinal(a)) - Number(isFinal(b)) ||
    a.lamport - b.lamport ||
    compareText(a.writer, b.writer) ||
    compareBytes(a.raw, b.raw)
  );
}

export function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function isFinal(entry: Entry): boolean {
  const { definition } = entry;
  return definition === undefined || (definition.kind === "node" && definition.value.removed);
}

function agedEntry({ entry, since }: Stored, now: Instant): Entry {
  if (entry.definition !== undefined) return entry;
  return { ...entry, ageSeconds: Math.max(0, Math.floor(elapsed(since, now) / 1000)) };
}

/** The same on every replica: without the age. */
export function hashEntry(entry: Entry): number {
  const out = new ByteWriter(64 + entry.raw.length);
  encodeEntry({ ...entry, ageSeconds: 0 }, out);
  return hash32(out.finish());
}

/** Which bucket of the digest a key belongs to. */
export function bucketOf(key: string, buckets: number): number {
  return hash32(utf8(key)) % buckets;
}
