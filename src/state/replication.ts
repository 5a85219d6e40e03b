import { ByteWriter } from "../base/bytes.ts";
import { sample, shuffle, type Random } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import type { NodeId, NodeName } from "../base/id.ts";
import { encodeEntry, type Entry } from "../wire/state/entry.ts";
import { BUCKETS, encodeStateMessage, type StateMessage } from "../wire/state/message.ts";
import { encodeRing, type Ring } from "../wire/state/ring.ts";
import { bucketOf, compareText } from "./definitions.ts";
import type { Members } from "./members.ts";
import type { Outbox } from "./outbox.ts";

/** One replicated thing: an entry of the definitions or the ring of a network. */
export type Item =
  { readonly type: "entry"; readonly entry: Entry } | { readonly type: "ring"; readonly ring: Ring };

/** A piece of a packet, and when it was queued. */
interface Part {
  readonly item: Item;
  readonly sequence: number;
}

export interface ReplicationOptions {
  readonly node: NodeId;
  readonly random: Random;
  readonly members: Members;
  readonly outbox: Outbox;
  readonly gossipMs: number;
  readonly gossipUntoldMs: number;
  readonly gossipFanout: number;
  readonly retransmitMultiplier: number;
  readonly digestMs: number;
  readonly packetBytes: number;
  /** What to send for a key; undefined when it is gone. */
  readonly item: (key: string, now: Instant) => Item | undefined;
}

/** Pages stay well below 1 MiB; one exchange is bounded, the next digest continues. */
const PAGE_BYTES = 256 * 1024;
const EXCHANGE_BYTES = 4 * 1024 * 1024;
/** Between two exchanges we offer: many digests may differ at once after a join. */
const EXCHANGE_PAUSE_MS = 300;
/** After so many digests without any change they come more rarely: they would be half of an idle cluster's traffic. */
const CALM_AFTER = 10;
const CALM_FACTOR = 8;
const AFTER_GREETING = 2;
/** Digests sent at once to members that have just joined, per digest interval. */
const JOIN_DIGESTS = 2;
/** What a join brought is gossiped after this long: by then all who joined together have their answers. */
const AFTER_JOIN_MS = 400;
/** A greeting with more than this would make joins slow; the digests that follow bring the same. */
const GREETING_BYTES = 64 * 1024;
const PACKETS_PER_ROUND = 4;
/** More changes than this from one exchange reach others through their own digests. */
export const FORWARD_LIMIT = 64;

/**
 * Spreads changes by gossip (packets to a few random members until told often enough) and repairs what was
 * missed by digests (hashes in buckets to one random member, and an exchange of the buckets that differ).
 */
export class Replication {
  readonly #options: ReplicationOptions;
  readonly #hashes = new Map<string, number>();
  readonly #buckets: { readonly keys: Set<string>; hash: number }[];
  /** Keys to tell, with how often they were told and when they were queued. */
  readonly #queue = new Map<string, { readonly sequence: number; told: number }>();
  #sequence = 0;
  /** Members that were given everything, as of what was queued by then. Emptied with the queue. */
  readonly #synced = new Map<NodeName, number>();
  /** The next round of everything that waits. */
  #gossipAt: Instant | undefined;
  /** The next round of what nobody was told of. */
  #untoldAt: Instant | undefined;
  #roundAt: Instant | undefined;
  #digestAt: Instant | undefined;
  /** Something changed, here or at somebody who compared notes with us. */
  #stirred = false;
  /** Digests sent since. */
  #calm = 0;
  #joinDigests = 0;
  #offerAt: Instant | undefined;

  constructor(options: ReplicationOptions) {
    this.#options = options;
    this.#buckets = Array.from({ length: BUCKETS }, () => ({ keys: new Set(), hash: 0 }));
  }

  /** What we hold under `key` now; undefined: nothing. */
  set(key: string, hash: number | undefined): void {
    const bucket = this.#buckets[bucketOf(key, BUCKETS)];
    if (bucket === undefined || this.#hashes.get(key) === hash) return;
    this.#stirred = true;
    bucket.hash = (bucket.hash ^ (this.#hashes.get(key) ?? 0) ^ (hash ?? 0)) >>> 0;
    if (hash === undefined) {
      this.#hashes.delete(key);
      bucket.keys.delete(key);
    } else {
      this.#hashes.set(key, hash);
      bucket.keys.add(key);
    }
  }

  hashOf(key: string): number | undefined {
    return this.#hashes.get(key);
  }

  /** Tells the members about `key`, the first of them at once; after a join once its answer is out. */
  spread(key: string, now: Instant, how: "at-once" | "after-join" = "at-once"): void {
    if (this.#options.members.size === 0) return;
    this.#queue.set(key, { sequence: ++this.#sequence, told: 0 });
    if (how === "at-once") this.#untoldAt ??= this.#soon(now);
    else this.#gossipAt ??= after(now, AFTER_JOIN_MS);
  }

  /** Everything, for whoever joins through us or through whom we join; undefined when it is too much. */
  greeting(now: Instant): Uint8Array | undefined {
    const items: Item[] = [];
    let bytes = 0;
    for (const key of this.#hashes.keys()) {
      const item = this.#options.item(key, now);
      if (item === undefined) continue;
      bytes += sizeOf(item);
      if (bytes > GREETING_BYTES) return undefined;
      items.push(item);
    }
    return encodeStateMessage(updateOf(items));
  }

  /** The greeting we have taken in was all there is to know: a few digests are enough to find what it lacked. */
  settle(): void {
    this.#stirred = false;
    this.#calm = CALM_AFTER - AFTER_GREETING;
  }

  /** The member was given a greeting made just now. */
  greeted(member: NodeName): void {
    if (this.#queue.size > 0) this.#synced.set(member, this.#sequence);
  }

  nextWakeup(): Instant | undefined {
    if (this.#options.members.size === 0) return undefined;
    return earliest(this.#gossipAt, this.#untoldAt, this.#digestAt);
  }

  /** A new member. `compare` notes with it at once, or only with a few of them when many join together. */
  joined(member: NodeId, compare: boolean): void {
    this.#stirred = true;
    if (!compare || this.#joinDigests >= JOIN_DIGESTS) return;
    this.#joinDigests++;
    this.#options.outbox.stream(member, this.#digest());
  }

  /** Gossips and sends the digest when due. Call at the end of every input: a change is then told at once. */
  step(now: Instant): void {
    const { members, digestMs, random, outbox } = this.#options;
    if (members.size === 0) {
      this.#queue.clear();
      this.#synced.clear();
      this.#gossipAt = this.#untoldAt = this.#digestAt = undefined;
      return;
    }
    if (this.#gossipAt !== undefined && this.#gossipAt <= now) this.#round(now, "all");
    else if (this.#untoldAt !== undefined && this.#untoldAt <= now) this.#round(now, "untold");
    if (this.#stirred) {
      this.#stirred = false;
      this.#calm = 0;
      const soon = after(now, digestMs);
      if (this.#digestAt === undefined || this.#digestAt > soon) this.#digestAt = soon;
    }
    this.#digestAt ??= after(now, digestMs);
    if (this.#digestAt > now) return;
    this.#calm++;
    this.#digestAt = after(now, this.#calm > CALM_AFTER ? CALM_FACTOR * digestMs : digestMs);
    this.#joinDigests = 0;
    const [to] = sample(random, members.names(), 1);
    if (to !== undefined)
      outbox.add({ type: "send-packet", to, payload: encodeStateMessage(this.#digest()) });
  }

  onDigest(message: StateMessage & { readonly type: "digest" }, now: Instant): void {
    const differing = this.#buckets.flatMap((bucket, index) =>
      bucket.hash === message.buckets[index] ? [] : [index],
    );
    if (differing.length > 0) this.#stirred = true;
    if (differing.length === 0 || (this.#offerAt !== undefined && this.#offerAt > now)) return;
    this.#offerAt = after(now, EXCHANGE_PAUSE_MS);
    this.#offer(message.sender, differing, now);
  }

  /** Sends back what the sender of the page lacks; call after its items were merged. */
  onPage(
    message: StateMessage & { readonly type: "page" },
    theirs: ReadonlyMap<string, number>,
    now: Instant,
  ): void {
    const keys: string[] = [];
    for (const [index, bucket] of this.#buckets.entries()) {
      if ((message.buckets & (1n << BigInt(index))) === 0n) continue;
      for (const key of bucket.keys) {
        if (compareText(key, message.after) <= 0) continue;
        if (message.until !== undefined && compareText(key, message.until) > 0) continue;
        if (theirs.get(key) !== this.#hashes.get(key)) keys.push(key);
      }
    }
    for (const page of this.#pages(keys.sort(compareText), now))
      this.#options.outbox.stream(message.sender, { type: "update", ...page.items });
  }

  #digest(): StateMessage {
    return {
      type: "digest",
      sender: this.#options.node,
      buckets: this.#buckets.map((bucket) => bucket.hash),
    };
  }

  #offer(to: NodeId, differing: readonly number[], now: Instant): void {
    let buckets = 0n;
    let bytes = 0;
    const keys: string[] = [];
    // In random order, so that a bounded exchange gets everywhere in the end.
    for (const index of shuffle(this.#options.random, [...differing])) {
      if (bytes >= EXCHANGE_BYTES) break;
      buckets |= 1n << BigInt(index);
      for (const key of this.#buckets[index]?.keys ?? []) {
        keys.push(key);
        const item = this.#options.item(key, now);
        if (item !== undefined) bytes += sizeOf(item);
      }
    }
    let from = "";
    const pages = this.#pages(keys.sort(compareText), now);
    for (const [index, page] of pages.entries()) {
      const isLast = index === pages.length - 1;
      this.#options.outbox.stream(to, {
        type: "page",
        sender: this.#options.node,
        buckets,
        after: from,
        ...(isLast ? {} : { until: page.until }),
        ...page.items,
      });
      from = page.until;
    }
    if (pages.length > 0) return;
    // Nothing to offer, but much to get.
    this.#options.outbox.stream(to, {
      type: "page",
      sender: this.#options.node,
      buckets,
      after: "",
      entries: [],
      rings: [],
    });
  }

  #pages(keys: readonly string[], now: Instant): Page[] {
    const pages: Page[] = [];
    let entries: Entry[] = [];
    let rings: Ring[] = [];
    let bytes = 0;
    for (const [index, key] of keys.entries()) {
      const item = this.#options.item(key, now);
      if (item?.type === "entry") entries.push(item.entry);
      else if (item?.type === "ring") rings.push(item.ring);
      if (item !== undefined) bytes += sizeOf(item);
      if (bytes < PAGE_BYTES && index < keys.length - 1) continue;
      pages.push({ until: key, items: { entries, rings } });
      entries = [];
      rings = [];
      bytes = 0;
    }
    return pages;
  }

  /** The first round for a change that comes now: changes that come together share their packets. */
  #soon(now: Instant): Instant {
    if (this.#roundAt === undefined) return now;
    const paced = after(this.#roundAt, this.#options.gossipUntoldMs);
    return paced > now ? paced : now;
  }

  #round(now: Instant, which: "all" | "untold"): void {
    if (this.#queue.size > 0) {
      this.#gossip(now, which);
      this.#roundAt = now;
    }
    const waits = this.#queue.size > 0;
    const untold = [...this.#queue.values()].some(({ told }) => told === 0);
    this.#untoldAt = untold ? this.#soon(now) : undefined;
    if (!waits) this.#gossipAt = undefined;
    else if (which === "all" || this.#gossipAt === undefined)
      this.#gossipAt = after(now, this.#options.gossipMs);
  }

  /** The least told changes, in as few packets as they need, to a few random members. */
  #gossip(now: Instant, which: "all" | "untold"): void {
    const { members, random, gossipFanout } = this.#options;
    const targets = sample(random, members.names(), gossipFanout);
    const limit = this.#options.retransmitMultiplier * Math.ceil(Math.log10(members.size + 2));
    const queue =
      which === "all"
        ? [...this.#queue].sort(([, a], [, b]) => a.told - b.told)
        : [...this.#queue].filter(([, { told }]) => told === 0);
    const packets: { parts: Part[]; bytes: number }[] = [];
    for (const [key, telling] of queue) {
      const item = this.#options.item(key, now);
      if (item === undefined) {
        this.#queue.delete(key);
        continue;
      }
      const size = sizeOf(item);
      if (size + ENVELOPE_BYTES > this.#options.packetBytes) {
        // Too large for a packet: a definition goes by stream, once; a ring waits for the digests.
        this.#queue.delete(key);
        if (item.type === "entry") this.#streamTo(targets, item.entry);
        continue;
      }
      let packet = packets.at(-1);
      if (packet === undefined || packet.bytes + size > this.#options.packetBytes) {
        if (packets.length === PACKETS_PER_ROUND) break;
        packet = { parts: [], bytes: ENVELOPE_BYTES };
        packets.push(packet);
      }
      packet.bytes += size;
      packet.parts.push({ item, sequence: telling.sequence });
      telling.told += targets.length;
      if (telling.told >= limit) this.#queue.delete(key);
    }
    for (const { parts } of packets) this.#send(targets, parts);
    if (this.#queue.size === 0) this.#synced.clear();
  }

  /** To each of them what it was not greeted with: that counts as told. */
  #send(targets: readonly NodeName[], parts: readonly Part[]): void {
    const payloads = new Map<number, Uint8Array | undefined>();
    for (const to of targets) {
      const known = this.#synced.get(to) ?? 0;
      if (!payloads.has(known)) {
        const items = parts.filter(({ sequence }) => sequence > known).map(({ item }) => item);
        payloads.set(known, items.length === 0 ? undefined : encodeStateMessage(updateOf(items)));
      }
      const payload = payloads.get(known);
      if (payload !== undefined) this.#options.outbox.add({ type: "send-packet", to, payload });
    }
  }

  #streamTo(targets: readonly NodeName[], entry: Entry): void {
    const payload = encodeStateMessage({ type: "update", entries: [entry], rings: [] });
    for (const to of targets) this.#options.outbox.add({ type: "send-stream", to, payload });
  }
}

interface Page {
  readonly until: string;
  readonly items: { readonly entries: readonly Entry[]; readonly rings: readonly Ring[] };
}

/** Message, version, kind and the two list lengths. */
const ENVELOPE_BYTES = 16;

function sizeOf(item: Item): number {
  const out = new ByteWriter();
  if (item.type === "entry") encodeEntry(item.entry, out);
  else encodeRing(item.ring, out);
  return out.length;
}

function updateOf(items: readonly Item[]): StateMessage {
  return {
    type: "update",
    entries: items.flatMap((item) => (item.type === "entry" ? [item.entry] : [])),
    rings: items.flatMap((item) => (item.type === "ring" ? [item.ring] : [])),
  };
}
