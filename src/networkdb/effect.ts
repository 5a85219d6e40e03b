import type { NetworkId, NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";

/** What NetworkDb wants done, in order. */
export type NetworkDbEffect =
  /** A memberlist user message by datagram, best effort. `address` is the member's last known one. */
  | {
      readonly type: "send-packet";
      readonly to: NodeName;
      readonly address: SocketAddr;
      readonly payload: Uint8Array;
    }
  /** A memberlist user message by stream; answer a failure with the input `stream-failed`. */
  | {
      readonly type: "send-stream";
      readonly to: NodeName;
      readonly address: SocketAddr;
      readonly payload: Uint8Array;
    }
  /** Ask swim to join this address (push/pull with `join`); success shows as `member-joined`, failure as silence. */
  | {
      readonly type: "join-member";
      readonly address: SocketAddr;
      readonly reason: "reconnect" | "bootstrap";
    }
  | RowChange
  /** The other nodes and this one, active and on the network; of networks this node is not on, too. */
  | {
      readonly type: "network-changed";
      readonly network: NetworkId;
      readonly participants: readonly NodeName[];
    }
  /** Once per join: the tables hold what a peer knew, or there is nobody to ask. Until then do not prune by them. */
  | { readonly type: "network-in-sync"; readonly network: NetworkId }
  /** An input of ours that changed nothing. */
  | {
      readonly type: "refused";
      readonly input: "join-network" | "leave-network" | "put-row" | "delete-row";
      readonly network: NetworkId;
      readonly table?: string;
      readonly key?: string;
      readonly reason: RefusalReason;
    }
  /** The node-leave event was gossiped as often as it should be, or `leaveTimeoutMs` passed: leave memberlist now. */
  | { readonly type: "left" };

/**
 * A row as readers see it changed: `previous` absent = created, `current` absent = deleted or suspended.
 * Own rows are reported too. Values may jump: undo `previous`, apply `current`.
 */
export interface RowChange {
  readonly type: "row-changed";
  readonly network: NetworkId;
  readonly table: string;
  readonly key: string;
  /** Owner after the change; of a row that vanished, before it. */
  readonly owner: NodeName;
  readonly previous: Uint8Array | undefined;
  readonly current: Uint8Array | undefined;
}

export type RefusalReason =
  | "already-attached"
  | "not-attached"
  | "row-exists"
  | "row-absent"
  | "invalid-key"
  | "invalid-table"
  | "value-too-long"
  | "too-many-rows";
