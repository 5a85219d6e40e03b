import type { NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import type { TransportInput } from "../base/transport-input.ts";
import type { NetworkDbConfig } from "../networkdb/config.ts";
import type { NetworkDbEffect } from "../networkdb/effect.ts";
import type { NetworkDbInput } from "../networkdb/networkdb.ts";
import type { StateEffect, StateInput } from "../state/effect.ts";
import type { StateOptions } from "../state/state.ts";
import type { SwimEffect, SwimInput } from "../swim/boundary.ts";
import type { SwimConfig } from "../swim/config.ts";
import type { Sealing } from "../wire/memberlist/seal.ts";
import type { NodeFacts } from "./metadata.ts";
import type { PeerCallEffect, PeerQuestion } from "./peer-call.ts";

/** What arrives at a node: from the transport, the clock, or an operator. */
export type GossipInput =
  | { readonly type: "start"; readonly seed: boolean; readonly unixSeconds: number }
  | { readonly type: "wake" }
  | TransportInput
  | {
      readonly type: "swim";
      readonly input: Extract<SwimInput, { type: "join" | "cancel-join" | "loop-delay" | "set-meta" }>;
    }
  | { readonly type: "networkdb"; readonly input: NetworkDbInput }
  | { readonly type: "state"; readonly input: StateInput }
  /**
   * Says goodbye; the effect `left` follows. A node that rests leaves memberlist but not NetworkDB: its endpoints run
   * on without it, and it is expected back.
   */
  | { readonly type: "leave"; readonly timeoutMs: number; readonly rest?: boolean }
  /** Other keys, from now on; connections under way keep the ones they began with. */
  | { readonly type: "set-keys"; readonly keys: readonly Uint8Array[] }
  | {
      readonly type: "ask-peer";
      readonly to: NodeName;
      readonly request: number;
      readonly body: unknown;
      readonly timeoutMs: number;
    }
  | { readonly type: "answer-peer"; readonly question: PeerQuestion; readonly body: unknown };

/** What a node wants done, strictly in this order: what follows a `persist` may only happen once it is on disk. */
export type GossipEffect =
  | { readonly type: "send-packet"; readonly to: SocketAddr; readonly bytes: Uint8Array }
  | {
      readonly type: "open-stream";
      readonly stream: number;
      readonly to: SocketAddr;
      readonly timeoutMs: number;
    }
  | { readonly type: "write-stream"; readonly stream: number; readonly bytes: Uint8Array }
  | { readonly type: "close-stream"; readonly stream: number }
  | Extract<SwimEffect, { type: `member-${string}` | "join-result" | "join-done" }>
  | Extract<NetworkDbEffect, { type: "row-changed" | "network-changed" | "network-in-sync" | "refused" }>
  | { readonly type: "state"; readonly effect: Exclude<StateEffect, { type: "send-packet" | "send-stream" }> }
  | Exclude<PeerCallEffect, { type: "send" }>
  | { readonly type: "left" };

export interface GossipNodeOptions {
  /** Fresh at every start. */
  readonly name: NodeName;
  readonly facts: NodeFacts;
  /** Where others reach us; `bytes` is how the address is announced. */
  readonly address: { readonly socket: SocketAddr; readonly bytes: Uint8Array };
  /**
   * Whose cluster this is: decides the delegate protocol versions we announce, which all members must share. Serf
   * agents log NetworkDB messages as errors, so among them tables are between netagents only.
   */
  readonly compat: "docker" | "serf";
  readonly sealing: Sealing;
  readonly swim: SwimConfig;
  readonly networkDb?: Partial<NetworkDbConfig>;
  readonly state: Omit<StateOptions, "node" | "memberName" | "random">;
  readonly random: Random;
  /** 12 bytes never given before: AES-GCM breaks when a nonce repeats under one key. */
  readonly nonce: () => Uint8Array;
}
