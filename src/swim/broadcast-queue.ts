import { unreachable } from "../base/assert.ts";
import { TransmitOrder, transmitLimit, type Broadcast, type Skip } from "../base/transmit-queue.ts";
import type { Facts } from "./facts.ts";

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

/** Whoever there is one rumor about at a time: a new one replaces the old. Written by `BroadcastQueue` alone. */
export interface Subject {
  rumor: Rumor | undefined;
  /** In the member list; −1 outside. */
  readonly number: number;
}

/** The member list, as far as the queue needs it. */
export interface Subjects {
  /** N. */
  readonly size: number;
  readonly facts: Pick<Facts, "heard" | "takeHeard">;
}

/** A broadcast about `subject`. */
export interface Rumor extends Broadcast {
  readonly subject: Subject;
  /** The subject's, without a look at it. */
  readonly number: number;
  /** What it says. Not the claim itself, which may hold on to the whole packet it came in. */
  readonly about: Claim["type"];
  readonly incarnation: number;
  /** Places that told us the same; not kept in large clusters, where they are hardly met again. */
  knownAt: readonly string[] | undefined;
  /** Sends saved by that so far: made up for, but only so often, as in a small cluster everybody may know. */
  saved: number;
  readonly spread: Spread;
  readonly waiting: Waiting | undefined;
}

/**
 * How a rumor is told in a large cluster. `full`: as often as memberlist does. In storms, less often: `shared`: half as
 * often, and what is heard again counts as sent, as something follows that reaches whom gossip misses: the own clock
 * after a suspicion, an exchange after a storm of newcomers. `echo`: passed on once, as hardly anything depends on it: a
 * higher number of somebody alive, or one of the many accusations of a mass failure, of which only so many need to hear
 * as will then give the verdict.
 */
export type Spread = "full" | "shared" | "echo";

function toAnybody(): Skip {
  return "no";
}

/** Protects a rumor's memory; the first few tellers are the ones met again soon. */
const MAX_KNOWN_AT = 8;

/** From this size on storms are so large that redundant gossip is most of their cost. */
export const LARGE_CLUSTER = 128;

/**
 * Membership broadcasts waiting for gossip (memberlist queue.go and broadcast.go).
 *
 * Beyond memberlist: a place that is known to have a broadcast is not sent it. If it has exchanged its whole state
 * with us since, that counts as a transmission all the same: a storm of joins costs hardly any gossip. If it told
 * us the same, the transmission is kept for somebody else: fewer members are missed by the same number of messages.
 */
export class BroadcastQueue {
  readonly #queue: TransmitOrder<Rumor>;
  /** Place → everything queued up to this sequence is known there. Emptied with the queue. */
  readonly #synced = new Map<string, number>();
  /** Places about to be given our whole state. Bounded by the answers kept back at a time. */
  readonly #held = new Set<string>();
  readonly #retransmitMult: number;
  readonly #gossipNodes: number;
  readonly #skipInformed: boolean;
  readonly #members: Subjects;
  #done: Waiting[] = [];

  constructor(
    limits: {
      readonly maxBroadcasts: number;
      readonly retransmitMult: number;
      readonly gossipNodes: number;
      readonly skipInformed: boolean;
    },
    members: Subjects,
  ) {
    this.#skipInformed = limits.skipInformed;
    this.#retransmitMult = limits.retransmitMult;
    this.#gossipNodes = limits.gossipNodes;
    this.#members = members;
    this.#queue = new TransmitOrder({ maxEntries: limits.maxBroadcasts }, (rumor) => this.#gone(rumor));
  }

  get length(): number {
    return this.#queue.length;
  }

  /** Sum of their lengths. */
  get bytes(): number {
    return this.#queue.bytes;
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
    return this.#queue.latest;
  }

  /** Replaces what is queued about `subject`. `knownAt`: places that need not be told. */
  queue(
    subject: Subject,
    claim: Claim,
    payload: Uint8Array,
    knownAt: readonly string[] | undefined,
    spread: Spread = "full",
    waiting?: Waiting,
  ): void {
    const before = subject.rumor;
    if (before !== undefined) this.#queue.remove(before);
    const known = this.large ? undefined : knownAt;
    const rumor = {
      subject,
      number: subject.number,
      about: claim.type,
      incarnation: claim.incarnation,
      payload,
      knownAt: known,
      saved: 0,
      spread,
      waiting,
      order: 0,
      transmissions: this.#skipInformed && this.large ? this.#spared(spread) : 0,
    };
    subject.rumor = rumor;
    this.#members.facts.takeHeard(subject.number);
    this.#queue.add(rumor);
  }

  /**
   * Somebody told us what we are telling: it need not be told. A large cluster does this millions of times, so it
   * touches nothing but the subject; `claim` is what the member list says.
   */
  heardAgain(subject: Subject, claim: Claim, place: string): void {
    const { rumor } = subject;
    if (rumor === undefined) return;
    if (this.large) this.#members.facts.heard(subject.number);
    else if (rumor.about !== claim.type || rumor.incarnation !== claim.incarnation) return;
    else if (rumor.knownAt === undefined) rumor.knownAt = [place];
    else if (rumor.knownAt.length < MAX_KNOWN_AT && !rumor.knownAt.includes(place)) {
      rumor.knownAt = [...rumor.knownAt, place];
    }
  }

  /** Everybody who should know has it by other ways. */
  drop({ rumor }: Subject): void {
    if (rumor !== undefined) this.#queue.remove(rumor);
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
    if (this.#queue.length > 0) this.#synced.set(place, Math.max(sequence, this.#synced.get(place) ?? -1));
  }

  /** Messages for one packet to `place`, each costing its length plus `overheadPerMessage`. */
  take(budgetBytes: number, overheadPerMessage: number, place: string): Uint8Array[] {
    if (this.#queue.length === 0 || this.#held.has(place)) return [];
    const syncedTo = this.#synced.get(place) ?? -1;
    const skip = (rumor: Rumor): Skip => {
      if (rumor.order <= syncedTo) return "counted";
      if (rumor.knownAt?.includes(place) !== true) return "no";
      return ++rumor.saved > rumor.knownAt.length ? "counted" : "uncounted";
    };
    const knowing = this.#skipInformed ? { skip, heard: this.#heardOf } : undefined;
    const taken = this.#queue.take(budgetBytes, overheadPerMessage, this.#limit(), knowing);
    if (this.#queue.length === 0) this.#synced.clear();
    return taken;
  }

  /**
   * Messages for the same packet to `places`: a large cluster's storms fill packet after packet, so that it matters
   * little to whom which of them goes. Who the places are, but for their number, is not looked at.
   */
  takeForAll(budgetBytes: number, overheadPerMessage: number, places: number): Uint8Array[] {
    const knowing = this.#skipInformed ? { skip: toAnybody, heard: this.#heardOf } : undefined;
    const taken = this.#queue.take(budgetBytes, overheadPerMessage, this.#limit(), knowing, Infinity, places);
    if (this.#queue.length === 0) this.#synced.clear();
    return taken;
  }

  /** The place is about to be given our whole state. */
  isHeld(place: string): boolean {
    return this.#held.has(place);
  }

  /** Broadcasts somebody waited for and that have left the queue since the last call. */
  takeDone(): readonly Waiting[] {
    if (this.#done.length === 0) return this.#done;
    const done = this.#done;
    this.#done = [];
    return done;
  }

  /** Of the transmissions a rumor is due, those that are left out. */
  #spared(spread: Spread): number {
    switch (spread) {
      case "full":
        return 0;
      case "shared":
        return Math.floor(this.#limit() / 2);
      case "echo":
        return Math.max(0, this.#limit() - this.#gossipNodes);
      default:
        return unreachable(spread);
    }
  }

  #limit(): number {
    return transmitLimit(this.#retransmitMult, this.#members.size);
  }

  /** So many members that hearing something again is counted, and not by whom. */
  get large(): boolean {
    return this.#members.size >= LARGE_CLUSTER;
  }

  /** Transmissions others made since this was asked last. */
  readonly #heardOf = ({ number, spread }: Rumor): number => {
    const heard = this.#members.facts.takeHeard(number);
    return spread === "full" ? 0 : heard;
  };

  #gone({ subject, waiting }: Rumor): void {
    subject.rumor = undefined;
    if (waiting !== undefined) this.#done.push(waiting);
  }
}
