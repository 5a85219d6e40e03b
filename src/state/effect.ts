import type { NetError } from "../base/error.ts";
import type { NetworkId, NodeId, NodeName } from "../base/id.ts";
import type { Conflict } from "./conflicts.ts";
import type { DefinitionChange } from "./definitions.ts";
import type { StateRequest, StateResult } from "./request.ts";

/**
 * What happens to `State`. Members are capable ones only: those whose memberlist metadata announces the
 * capability and their node id.
 */
export type StateInput =
  | {
      readonly type: "start";
      /** This node's name for people. */
      readonly name: string;
      /** Started without --join: it may seed `ingress` at once, there is nobody to ask. */
      readonly seed: boolean;
      /** Wall clock at `now`: of two rings seeded apart the older one wins. */
      readonly unixSeconds: number;
    }
  /** Also when its node id or shown name changes. */
  | {
      readonly type: "member-joined";
      readonly name: NodeName;
      readonly id: NodeId;
      /** For people, in errors. */
      readonly shown: string;
      /** We met by an exchange that carried no greetings: each lacks what the other knows. */
      readonly compare?: boolean;
    }
  | { readonly type: "member-left"; readonly name: NodeName }
  /** A NetworkDB payload for which `isStateMessage` holds. Damaged ones are counted and dropped. */
  | { readonly type: "user-message"; readonly bytes: Uint8Array; readonly via: "packet" | "stream" }
  /** A peer's `greeting()`. `passOn` unless it passes ours on and there was nobody else to tell. */
  | { readonly type: "greeting"; readonly bytes: Uint8Array; readonly passOn: boolean }
  /** The member was given our `greeting()`. */
  | { readonly type: "greeted"; readonly name: NodeName }
  | { readonly type: "stream-failed"; readonly to: NodeName }
  | { readonly type: "wake" }
  | StateRequest;

/**
 * What `State` wants done, in this order. Everything before a `persist` may be done at once; **everything after
 * it only when `snapshot()` (taken then or later) is safely on disk**: an address is used, and a range given
 * away, only after a restart could no longer forget it. While a save is running, effects of later inputs queue
 * behind it.
 */
export type StateEffect =
  | { readonly type: "persist" }
  /** Learned from others, who still have it should it be lost: to be saved too, but nothing waits for it. */
  | { readonly type: "persist-soon" }
  /** Payloads are complete NetworkDB messages; a packet's is at most `packetBytes` long. */
  | { readonly type: "send-packet"; readonly to: NodeName; readonly payload: Uint8Array }
  | { readonly type: "send-stream"; readonly to: NodeName; readonly payload: Uint8Array }
  | { readonly type: "definitions-changed"; readonly changes: readonly DefinitionChange[] }
  | { readonly type: "ring-changed"; readonly network: NetworkId }
  | { readonly type: "done"; readonly request: number; readonly result: StateResult }
  | { readonly type: "refused"; readonly request: number; readonly error: NetError }
  /** Once, when it has been there for two seconds; `conflicts()` lists those that are there. */
  | { readonly type: "conflict"; readonly conflict: Conflict };
