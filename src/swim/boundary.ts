import type { SocketAddr } from "../base/ip.ts";
import type { Alive, MemberlistMessage, Ping } from "../wire/memberlist/message.ts";
import type { PushPullNode } from "../wire/memberlist/push-pull.ts";
import type { Member } from "./member.ts";

/** Everything that can happen to a node. Streams and exchanges are named by numbers; see each input. */
export type SwimInput =
  /** Once, first: announces this node to itself and starts the timers. */
  | { readonly type: "start" }
  /** `nextWakeup()` has come; early or late is harmless, and lateness tells swim that the process was stalled. */
  | { readonly type: "wake" }
  /** One decoded datagram. User messages in it are not swim's and are skipped. */
  | {
      readonly type: "packet";
      readonly from: SocketAddr;
      readonly messages: readonly MemberlistMessage[];
    }
  /** A ping read from an accepted stream; answered by `stream-ack` or `close-stream`. */
  | { readonly type: "stream-ping"; readonly stream: number; readonly from: SocketAddr; readonly ping: Ping }
  /**
   * A completely read push/pull request on an accepted stream. Answered by `push-pull-answer`, perhaps a little
   * later, and by `push-pull-merged` at once.
   */
  | {
      readonly type: "push-pull-request";
      readonly stream: number;
      readonly from: SocketAddr;
      readonly join: boolean;
      readonly nodes: readonly PushPullNode[];
    }
  /** An accepted stream closed before its `push-pull-answer`. */
  | { readonly type: "stream-gone"; readonly stream: number }
  /** What came back for the effect `push-pull` with this `exchange`; exactly one of the two, unless abandoned. */
  | {
      readonly type: "push-pull-reply";
      readonly exchange: number;
      readonly nodes: readonly PushPullNode[];
    }
  | { readonly type: "push-pull-failed"; readonly exchange: number; readonly failure: StreamFailure }
  /** What came back for the effect `stream-ping` with this `ping`. `seqNo` is the one in the ack. */
  | {
      readonly type: "stream-ping-result";
      readonly ping: number;
      readonly result: { readonly seqNo: number } | StreamFailure;
    }
  /** Any other stream we dialled was refused (bulk sync, for one): a hint that the process there is gone. */
  | { readonly type: "peer-refused"; readonly address: SocketAddr }
  /**
   * Push/pull with every address, several at once; one `join-result` for each, then `join-done`. With `keepTrying`
   * they are remembered, and tried again whenever no member is seen there: heals islands that never met.
   */
  | {
      readonly type: "join";
      readonly request: number;
      readonly addresses: readonly SocketAddr[];
      readonly keepTrying?: boolean;
    }
  /** Gives up what is still under way of a join; addresses without a result get one, then `join-done`. */
  | { readonly type: "cancel-join"; readonly request: number }
  /** Says goodbye; `leave-done` follows. The node keeps answering, and cannot join again. */
  | { readonly type: "leave"; readonly timeoutMs: number }
  /** New metadata, at most 512 bytes; `meta-announced` follows. */
  | {
      readonly type: "set-meta";
      readonly request: number;
      readonly meta: Uint8Array;
      readonly timeoutMs: number;
    }
  /** A user message to one member by datagram, best effort, at once and alone in its packet. */
  | { readonly type: "send-user"; readonly to: string; readonly payload: Uint8Array }
  /** The event loop was blocked for this long just now (0 … ): we, not our peers, are slow. */
  | { readonly type: "loop-delay"; readonly ms: number }
  /** Bytes that encryption and label add to each packet, when that changes (key rotation). */
  | { readonly type: "packet-overhead"; readonly bytes: number };

/** Why a stream brought nothing. `detail` is for people. */
export interface StreamFailure {
  readonly failure:
    /** ECONNREFUSED from the peer's own kernel: nothing listens there. The only one that proves something. */
    | "refused"
    /** No answer in time. */
    | "timeout"
    /** No route, reset, closed early, any other errno. */
    | "broken"
    /** The peer sent an error message, or bytes that do not decode. */
    | "rejected"
    /** We gave up ourselves. */
    | "cancelled";
  readonly detail: string;
}

/** What a node wants done, in order. */
export type SwimEffect =
  /**
   * One datagram of these messages: a single one bare, several as a compound. `crc` when the receiver understands
   * checksums. Never more than 127 parts, nor more bytes than the UDP budget before compression and checksum.
   */
  | {
      readonly type: "send";
      readonly to: SocketAddr;
      readonly parts: readonly Uint8Array[];
      readonly crc: boolean;
    }
  /** Dial, send `snapshot()` and our user state, read the reply; then `push-pull-reply` or `push-pull-failed`. */
  | {
      readonly type: "push-pull";
      readonly exchange: number;
      readonly to: SocketAddr;
      readonly join: boolean;
      readonly timeoutMs: number;
    }
  /** Close the stream of this exchange; no result is wanted any more. */
  | { readonly type: "abandon-exchange"; readonly exchange: number }
  /** Send `snapshot()` as it is now and our user state on this accepted stream, then close it. */
  | { readonly type: "push-pull-answer"; readonly stream: number; readonly join: boolean }
  /** The member list of this exchange was merged (or refused, and why): deliver or drop the user state with it. */
  | {
      readonly type: "push-pull-merged";
      readonly source: { readonly exchange: number } | { readonly stream: number };
      readonly join: boolean;
      readonly refused: string | undefined;
    }
  /** Dial, send the ping, read an ack, all within `timeoutMs`; then `stream-ping-result`. */
  | {
      readonly type: "stream-ping";
      readonly ping: number;
      readonly to: SocketAddr;
      readonly message: Ping;
      readonly timeoutMs: number;
    }
  | { readonly type: "stream-ack"; readonly stream: number; readonly seqNo: number }
  /** Close an accepted stream without an answer. */
  | { readonly type: "close-stream"; readonly stream: number }
  | MemberEvent
  | {
      readonly type: "join-result";
      readonly request: number;
      readonly address: SocketAddr;
      /** Absent when it worked. */
      readonly failure: StreamFailure | undefined;
    }
  | { readonly type: "join-done"; readonly request: number; readonly joined: number }
  /** `complete`: the goodbye went out its full number of times, or there was nobody to tell. */
  | { readonly type: "leave-done"; readonly complete: boolean }
  | { readonly type: "meta-announced"; readonly request: number; readonly complete: boolean };

/** Changes in the member list. `member` is live: read it before the next `handle`, or copy what is needed. */
export type MemberEvent =
  | { readonly type: "member-joined"; readonly member: Member; readonly returned: boolean }
  | { readonly type: "member-left"; readonly member: Member; readonly reason: LeaveReason }
  /** Metadata changed. */
  | { readonly type: "member-updated"; readonly member: Member }
  | { readonly type: "member-suspected"; readonly member: Member; readonly accuser: string }
  /** Suspect → alive: it refuted. */
  | { readonly type: "member-recovered"; readonly member: Member }
  /** Somebody claims the member's name at another address; `claim` was not believed. */
  | { readonly type: "member-conflict"; readonly member: Member; readonly claim: Alive };

export type LeaveReason =
  /** Of its own will. */
  | { readonly why: "left" }
  /** Our suspicion ran out; `confirmations` other members had accused it too. */
  | { readonly why: "timeout"; readonly confirmations: number }
  /** Its own kernel refused our connections: the process is gone. */
  | { readonly why: "refused" }
  /** Another member, that answers us, now owns its address. */
  | { readonly why: "replaced"; readonly by: string }
  /** `accuser` said so. */
  | { readonly why: "told"; readonly accuser: string };

/** The application's own gossip, riding in what room packets have left. `TransmitQueue` can be wrapped into one. */
export interface UserBroadcasts {
  /** Messages waiting; swim gossips only while something waits. */
  readonly length: number;
  /**
   * Payloads for one packet, each costing its length plus `overheadPerMessage`, together at most `budgetBytes`.
   * Each counts as sent once. `members` is the member count for the transmit limit.
   */
  take(budgetBytes: number, overheadPerMessage: number, members: number): Uint8Array[];
}
