import { ipFromBytes, type SocketAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";
import { TransmitQueue, transmitLimit } from "../base/transmit-queue.ts";
import {
  decodeSerfMessage,
  encodeSerfKeyResponse,
  encodeSerfMessage,
  SERF_TYPE,
  type SerfQuery,
} from "../wire/memberlist/serf.ts";
import { decodeSerfUserState } from "../wire/memberlist/serf-user-state.ts";

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
/** query.Flags (serf messages.go): the asker wants to know who heard it, and reaches everybody itself. */
const WANTS_ACK = 1;
const NO_BROADCAST = 2;
/** Flag of a response: it only says that the query was heard. */
const IS_ACK = 1;
/** What serf itself asks begins so; answers about keys are expected from every member. */
const KEY_QUERY = /^_serf_(install|use|remove|list)-keys?$/;

/** To be sent to the asker alone, as a user message. */
export interface SerfReply {
  readonly to: SocketAddr;
  readonly payload: Uint8Array;
}

const NO_REPLIES: readonly SerfReply[] = [];

/**
 * A plain member's part of serf's protocol (memberlist.md §17): the Lamport clock, and the intents by which serf tells
 * members that left from members that failed. Intents, user events and queries of others are passed on unread: serf's
 * gossip counts on every member for that, and where most members are netagents it would not reach everybody. Queries
 * to everybody are acknowledged, and one for the keys is answered: serf says who did not.
 *
 * Our names are fresh at every start, so no agent has an older intent of ours, and no join intent is needed to begin.
 */
export class AmongSerf {
  readonly #name: string;
  readonly #retransmitMult: number;
  readonly #keys: () => readonly Uint8Array[];
  readonly #broadcasts = new TransmitQueue({ maxEntries: MAX_BROADCASTS });
  /** Relayed messages, byte for byte, in two generations. */
  #relayed = new Set<string>();
  #relayedBefore = new Set<string>();
  /** Highest Lamport time used or seen. */
  #clock = 0;
  #leaving = false;

  constructor(name: string, retransmitMult: number, keys: () => readonly Uint8Array[]) {
    this.#name = name;
    this.#keys = keys;
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
  message(payload: Uint8Array): readonly SerfReply[] {
    switch (payload[0]) {
      case SERF_TYPE.leaveIntent:
      case SERF_TYPE.joinIntent:
      case SERF_TYPE.userEvent:
      case SERF_TYPE.query:
        break;
      default:
        return NO_REPLIES; // answers to somebody's question
    }
    const key = Buffer.from(payload).toString("latin1");
    if (payload.length > MAX_RELAYED_BYTES || this.#relayed.has(key) || this.#relayedBefore.has(key))
      return NO_REPLIES;
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
    return message.type === "query" ? this.#answer(message) : NO_REPLIES;
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

  /** Filters are by serf's tags and names: whoever uses them does not mean netagents. */
  #answer(query: SerfQuery): SerfReply[] {
    if (query.filters.length > 0 || (query.addr.length !== 4 && query.addr.length !== 16)) return [];
    const { ltime, id } = query;
    const to = { ip: ipFromBytes(query.addr), port: query.port };
    const response = (flags: number, payload: Uint8Array): SerfReply => {
      const message = { type: "query-response", ltime, id, from: this.#name, flags, payload } as const;
      return { to, payload: encodeSerfMessage(message) };
    };
    const replies: SerfReply[] = [];
    if ((query.flags & WANTS_ACK) !== 0) replies.push(response(IS_ACK, new Uint8Array(0)));
    const about = KEY_QUERY.exec(query.name)?.[1];
    if (about !== undefined) replies.push(response(0, this.#keyAnswer(about)));
    return replies;
  }

  #keyAnswer(about: string): Uint8Array {
    const keys = this.#keys().map((key) => Buffer.from(key).toString("base64"));
    if (about !== "list")
      return encodeSerfKeyResponse({ result: false, message: "a netagent: use netctl keys", keys: [] });
    const message = keys.length > 0 ? "" : "Keyring is empty (encryption not enabled)";
    return encodeSerfKeyResponse({ result: keys.length > 0, message, keys });
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
