import { after, type Instant } from "../base/time.ts";
import { TransmitQueue, transmitLimit } from "../base/transmit-queue.ts";
import {
  decodeSerfMessage,
  decodeSerfUserState,
  encodeSerfMessage,
  SERF_TYPE,
} from "../wire/memberlist/serf.ts";

/**
 * How long our leave intent has to spread before memberlist's goodbye. Serf agents that hear the goodbye first take
 * us for failed until the intent comes, and try to reconnect meanwhile.
 */
const INTENT_SPREAD_MS = 1_000;
/** Broadcasts waiting, ours and relayed ones; above it those sent most often go first. Protects memory in a storm. */
const MAX_BROADCASTS = 256;
const OWN_INTENT = "own intent";
/** Messages remembered as relayed, twice; serf itself remembers 512 Lamport times of each kind. */
const MAX_REMEMBERED = 1_024;
/** Serf's default limit for queries and their payload; nothing it gossips is larger. */
const MAX_RELAYED_BYTES = 1_300;
/** query.Flags: the asker reaches everybody itself (serf messages.go, queryFlagNoBroadcast). */
const NO_BROADCAST = 2;

/**
 * A plain member's part of serf's protocol (memberlist.md §17): the Lamport clock, and the intents by which serf tells
 * members that left from members that failed. Intents, user events and queries of others are passed on unread: serf's
 * gossip counts on every member for that, and where most members are netagents it would not reach everybody.
 *
 * Our names are fresh at every start, so no agent has an older intent of ours, and no join intent is needed to begin.
 */
export class AmongSerf {
  readonly #name: string;
  readonly #retransmitMult: number;
  readonly #broadcasts = new TransmitQueue({ maxEntries: MAX_BROADCASTS });
  /** Relayed messages, byte for byte, in two generations. */
  #relayed = new Set<string>();
  #relayedBefore = new Set<string>();
  /** Highest Lamport time used or seen. */
  #clock = 0;
  #leaving = false;

  constructor(name: string, retransmitMult: number) {
    this.#name = name;
    this.#retransmitMult = retransmitMult;
  }

  /** Messages that wait to be gossiped; the shape swim asks for. */
  get length(): number {
    return this.#broadcasts.length;
  }

  take(budgetBytes: number, overheadPerMessage: number, members: number): Uint8Array[] {
    return this.#broadcasts.take(
      budgetBytes,
      overheadPerMessage,
      transmitLimit(this.#retransmitMult, members),
    );
  }

  /** A user message that is none of ours. @throws DecodeError on one that should be passed on and does not decode. */
  message(payload: Uint8Array): void {
    switch (payload[0]) {
      case SERF_TYPE.leaveIntent:
      case SERF_TYPE.joinIntent:
      case SERF_TYPE.userEvent:
      case SERF_TYPE.query:
        break;
      default:
        return; // answers to somebody's question
    }
    const key = Buffer.from(payload).toString("latin1");
    if (payload.length > MAX_RELAYED_BYTES || this.#relayed.has(key) || this.#relayedBefore.has(key)) return;
    const message = decodeSerfMessage(payload);
    this.#remember(key);
    if (message.type === "leave-intent" || message.type === "join-intent") this.#witness(message.ltime);
    const aboutUs = message.type === "leave-intent" && message.node === this.#name;
    // Somebody declares us gone (`serf force-leave`): as long as we live, that is wrong.
    if (aboutUs) {
      if (!this.#leaving) this.#announce("join-intent");
    } else if (message.type !== "query" || (message.flags & NO_BROADCAST) === 0) {
      this.#broadcasts.queue(undefined, payload.slice());
    }
  }

  /** The user state of a push/pull. @throws DecodeError */
  userState(bytes: Uint8Array): void {
    // The clock in it is one ahead of the last time used.
    this.#witness(decodeSerfUserState(bytes).ltime - 1);
  }

  /** Announces that we go; when memberlist may say so, too. */
  leave(timeoutMs: number, now: Instant): Instant {
    this.#leaving = true;
    this.#announce("leave-intent");
    return after(now, Math.min(INTENT_SPREAD_MS, timeoutMs));
  }

  #announce(type: "leave-intent" | "join-intent"): void {
    const intent = { ltime: ++this.#clock, node: this.#name };
    const message = type === "join-intent" ? { type, ...intent } : { type, ...intent, prune: false };
    const payload = encodeSerfMessage(message);
    this.#remember(Buffer.from(payload).toString("latin1"));
    this.#broadcasts.queue(OWN_INTENT, payload);
  }

  #remember(key: string): void {
    if (this.#relayed.size >= MAX_REMEMBERED) {
      this.#relayedBefore = this.#relayed;
      this.#relayed = new Set();
    }
    this.#relayed.add(key);
  }

  #witness(ltime: number): void {
    this.#clock = Math.max(this.#clock, ltime);
  }
}
