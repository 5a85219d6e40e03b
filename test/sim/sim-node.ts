import type { SocketAddr } from "../../src/base/ip.ts";
import type { Instant } from "../../src/base/time.ts";
import type { GossipInput } from "../../src/cluster/boundary.ts";
import type { MemberEvent } from "../../src/swim/boundary.ts";
import type { Member } from "../../src/swim/member.ts";

/** What travels: bytes, or a value that stands for them and knows how long they would be. */
export interface Payload {
  readonly length: number;
}

/** As `transport/` and the agent feed a node. */
export type SimInput =
  | { readonly type: "start" }
  | { readonly type: "wake" }
  | { readonly type: "packet"; readonly from: SocketAddr; readonly bytes: Payload }
  | { readonly type: "stream-accepted"; readonly stream: number; readonly from: SocketAddr }
  | { readonly type: "stream-opened"; readonly stream: number }
  | { readonly type: "stream-data"; readonly stream: number; readonly bytes: Payload }
  | { readonly type: "stream-closed"; readonly stream: number; readonly error?: StreamError }
  | { readonly type: "join"; readonly addresses: readonly SocketAddr[] }
  | { readonly type: "leave" }
  | { readonly type: "set-meta"; readonly meta: Uint8Array }
  | { readonly type: "loop-delay"; readonly ms: number }
  /** For worlds of whole gossip nodes. */
  | { readonly type: "gossip"; readonly input: GossipInput };

export interface StreamError {
  readonly code: string;
  readonly message: string;
}

export type SimEffect =
  | { readonly type: "send-packet"; readonly to: SocketAddr; readonly bytes: Payload }
  | {
      readonly type: "open-stream";
      readonly stream: number;
      readonly to: SocketAddr;
      readonly timeoutMs: number;
    }
  | { readonly type: "write-stream"; readonly stream: number; readonly bytes: Payload }
  | { readonly type: "close-stream"; readonly stream: number }
  | MemberEvent
  | { readonly type: "join-done"; readonly joined: number }
  | { readonly type: "left" };

/** One simulated process: a `Swim` alone, or a whole gossip node. */
export interface SimNode {
  readonly name: string;
  handle(input: SimInput, now: Instant): SimEffect[];
  nextWakeup(): Instant | undefined;
  members(): Iterable<Member>;
  member(name: string): Member | undefined;
  readonly aliveCount: number;
  /** Lengths that must stay bounded, by name. */
  queues(): Readonly<Record<string, number>>;
  /** Input that did not decode, by reason. */
  readonly drops: number;
  readonly counters: Readonly<Record<string, number>>;
}
