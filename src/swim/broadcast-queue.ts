import { TransmitQueue, transmitLimit } from "../base/transmit-queue.ts";

/** What waits for a broadcast to be sent its full number of times. */
export interface Waiting {
  readonly request: number;
  readonly what: "leave" | "meta";
}

/** What was said about a member, without the words. */
export interface Claim {
  readonly type: "alive" | "suspect" | "dead";
  readonly incarnation: number;
}

interface Rumor {
  readonly claim: Claim;
  /** Order of queueing. */
  readonly sequence: number;
  /** Places that told us the same. */
  readonly knownAt: string[];
  /** Sends saved by that so far: made up for, but only so often, as in a small cluster everybody may know. */
  saved: number;
  readonly waiting: Waiting | undefined;
}

/** Protects a rumor's memory; the first few tellers are the ones met again soon. */
const MAX_KNOWN_AT = 8;

/**
 * From this size on, an accusation or death heard again counts as sent: a mass failure is the largest storm of all,
 * and who misses one such message finds out by its own probes.
 */
const LARGE_CLUSTER = 128;

/**
 * Membership broadcasts waiting for gossip (memberlist queue.go and broadcast.go).
 *
 * Beyond memberlist: a place that is known to have a broadcast is not sent it. If it has exchanged its whole state
 * with us since, that counts as a transmission all the same: a storm of joins costs hardly any gossip. If it told
 * us the same, the transmission is kept for somebody else: fewer members are missed by the same number of messages.
 */
export class BroadcastQueue {
  readonly #queue: TransmitQueue;
  readonly #rumors = new Map<string, Rumor>();
  /** Place → everything queued up to this sequence is known there. Emptied with the queue. */
  readonly #synced = new Map<string, number>();
  /** Places about to be given our whole state. Bounded by the answers kept back at a time. */
  readonly #held = new Set<string>();
  readonly #retransmitMult: number;
  readonly #skipInformed: boolean;
  #sequence = 0;
  #done: Waiting[] = [];

  constructor(limits: {
    readonly maxBroadcasts: number;
    readonly retransmitMult: number;
    readonly skipInformed: boolean;
  }) {
    this.#skipInformed = limits.skipInformed;
    this.#retransmitMult = limits.retransmitMult;
    this.#queue = new TransmitQueue({ maxEntries: limits.maxBroadcasts }, (name) => this.#gone(name));
  }

  get length(): number {
    return this.#queue.length;
  }

  payloads(): Uint8Array[] {
    return this.#queue.payloads();
  }

  /** Pushed out of a full queue. */
  get overflowed(): number {
    return this.#queue.overflowed;
  }

  /** Marks the present for `synced`. */
  get sequence(): number {
    return this.#sequence;
  }

  /** Replaces what is queued under `name`: the member's, or our own address for refutations. */
  queue(
    name: string,
    claim: Claim,
    bytes: Uint8Array,
    heardFrom: string | undefined,
    waiting?: Waiting,
  ): void {
    // First the bytes: what they replace reports back through #gone.
    this.#queue.queue(name, bytes);
    const knownAt = heardFrom === undefined ? [] : [heardFrom];
    this.#rumors.set(name, { claim, sequence: ++this.#sequence, knownAt, saved: 0, waiting });
  }

  /** Somebody told us what we are telling: it need not be told. */
  heardAgain(name: string, claim: Claim, place: string, members: number): void {
    const rumor = this.#rumors.get(name);
    if (rumor === undefined) return;
    if (rumor.claim.type !== claim.type || rumor.claim.incarnation !== claim.incarnation) return;
    if (rumor.knownAt.length < MAX_KNOWN_AT && !rumor.knownAt.includes(place)) rumor.knownAt.push(place);
    if (this.#skipInformed && claim.type !== "alive" && members >= LARGE_CLUSTER) {
      this.#queue.transmitted(name, transmitLimit(this.#retransmitMult, members));
    }
  }

  /** Everybody who should know has it by other ways. */
  drop(name: string): void {
    this.#queue.delete(name);
  }

  /** The place is about to be given our whole state: until `synced` or `release` it is sent no part of it. */
  hold(place: string): void {
    if (this.#skipInformed) this.#held.add(place);
  }

  release(place: string): void {
    this.#held.delete(place);
  }

  /** The place has seen our whole state as it was at `sequence`. */
  synced(place: string, sequence: number): void {
    this.#held.delete(place);
    if (this.#queue.length > 0) this.#synced.set(place, Math.max(sequence, this.#synced.get(place) ?? 0));
  }

  /** Messages for one packet to `place`, each costing its length plus `overheadPerMessage`. */
  take(budgetBytes: number, overheadPerMessage: number, members: number, place: string): Uint8Array[] {
    if (this.#queue.length === 0 || this.#held.has(place)) return [];
    const limit = transmitLimit(this.#retransmitMult, members);
    const syncedTo = this.#synced.get(place) ?? 0;
    const skip = (name: string): "no" | "counted" | "uncounted" => {
      const rumor = this.#rumors.get(name);
      if (rumor === undefined) return "no";
      if (rumor.sequence <= syncedTo) return "counted";
      if (!rumor.knownAt.includes(place)) return "no";
      return ++rumor.saved > rumor.knownAt.length ? "counted" : "uncounted";
    };
    const taken = this.#queue.take(
      budgetBytes,
      overheadPerMessage,
      limit,
      this.#skipInformed ? skip : undefined,
    );
    if (this.#queue.length === 0) this.#synced.clear();
    return taken;
  }

  /** Broadcasts somebody waited for and that have left the queue since the last call. */
  takeDone(): readonly Waiting[] {
    if (this.#done.length === 0) return this.#done;
    const done = this.#done;
    this.#done = [];
    return done;
  }

  #gone(name: string): void {
    const waiting = this.#rumors.get(name)?.waiting;
    this.#rumors.delete(name);
    if (waiting !== undefined) this.#done.push(waiting);
  }
}
