import type { Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import type { PushPullNode } from "../wire/memberlist/stream.ts";
import type { SwimEffect, SwimInput, UserBroadcasts } from "./boundary.ts";
import type { SwimConfig } from "./config.ts";
import type { Identity, Member } from "./member.ts";

export interface SwimOptions {
  /** 1 – 255 characters, unique in the cluster. */
  readonly name: string;
  /** Announced to others: 4 or 16 bytes, written as they are; port 1 … 65535. */
  readonly address: { readonly addr: Uint8Array; readonly port: number };
  /** At most 512 bytes. */
  readonly meta: Uint8Array;
  /** Six bytes: protocol min, max, current; delegate min, max, current. `1 5 2 0 0 0` for Docker, `1 5 2 2 5 4` for serf. */
  readonly vsn: Uint8Array;
  readonly config: SwimConfig;
  readonly random: Random;
  readonly userBroadcasts: UserBroadcasts;
  /** Bytes that encryption and label add to each packet. Default 0. */
  readonly packetOverhead?: number;
  /** Returns an equal identity to keep instead, for many nodes in one process. Default: the argument. */
  readonly shareIdentity?: (identity: Identity) => Identity;
}

/** SWIM with Lifeguard as memberlist speaks it: who is there, who is not. Owns no socket and no timer. */
export class Swim {
  constructor(options: SwimOptions) {
    void options;
  }

  handle(input: SwimInput, now: Instant): SwimEffect[] {
    throw new Error(`${input.type} at ${now}: to come`);
  }

  /** When to call `handle({ type: "wake" })` next; undefined before `start`. */
  nextWakeup(): Instant | undefined {
    return undefined;
  }

  /** This node. */
  get self(): Member {
    throw new Error("to come");
  }

  /** Everybody known, this node included, in whatever state. */
  members(): Iterable<Member> {
    return [];
  }

  member(name: string): Member | undefined {
    void name;
    return undefined;
  }

  /** The member list for a push/pull, in whatever state each is. */
  snapshot(): PushPullNode[] {
    return [];
  }

  /** Smoothed round trip to a member, once measured. */
  rttMs(name: string): number | undefined {
    void name;
    return undefined;
  }

  /** 0 (well) … `awarenessMaxMultiplier` − 1. */
  get healthScore(): number {
    return 0;
  }

  /** Broadcasts waiting. */
  get queueLength(): number {
    return 0;
  }

  /** Totals since the start, by name, for metrics. */
  get counters(): Readonly<Record<string, number>> {
    return {};
  }
}
