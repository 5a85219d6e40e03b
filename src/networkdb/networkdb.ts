import type { NetworkId, NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import type { NetworkDbConfig } from "./config.ts";
import type { NetworkDbEffect } from "./effect.ts";

export type NetworkDbInput =
  /** memberlist considers the node alive: new, returned, or with another address. Members precede the user state of their push/pull. */
  | { readonly type: "member-joined"; readonly name: NodeName; readonly address: SocketAddr }
  /** Dead or left. `graceful`: memberlist's own state is "left"; otherwise only a node-leave event received before makes it so. */
  | { readonly type: "member-left"; readonly name: NodeName; readonly graceful?: boolean }
  /** The payload of a memberlist user message of GossipMessage type 1–6. */
  | { readonly type: "user-message"; readonly bytes: Uint8Array; readonly via: "packet" | "stream" }
  /** The user state of a push/pull, after its members were merged. */
  | { readonly type: "push-pull-state"; readonly bytes: Uint8Array; readonly join: boolean }
  | { readonly type: "join-network"; readonly network: NetworkId }
  | { readonly type: "leave-network"; readonly network: NetworkId }
  /** Create or update an own row. `only`: refuse unless the row is visible (update) or is not (create). */
  | {
      readonly type: "put-row";
      readonly network: NetworkId;
      readonly table: string;
      readonly key: string;
      readonly value: Uint8Array;
      readonly only?: "create" | "update";
    }
  | {
      readonly type: "delete-row";
      readonly network: NetworkId;
      readonly table: string;
      readonly key: string;
    }
  /** Gossip that this node leaves the cluster; `left` follows. */
  | { readonly type: "leave" }
  /** Whom to re-join when none of them is an active member any more. This node's own address among them is skipped. */
  | { readonly type: "set-bootstrap"; readonly addresses: readonly SocketAddr[] }
  /** A `send-stream` to this node failed. */
  | { readonly type: "stream-failed"; readonly to: NodeName }
  | { readonly type: "wake" };

export interface NetworkDbOptions {
  /** This node's memberlist name: 12 hex digits, fresh at every start, so that the clocks may begin at 0. */
  readonly node: NodeName;
  /** Where peers reach this node. */
  readonly address: SocketAddr;
  readonly random: Random;
  readonly config: NetworkDbConfig;
}

/** Where memberlist's gossip asks for messages to fill a packet with; the shape swim expects. */
export interface ClusterBroadcastSource {
  /** Payloads of user messages (no memberlist type byte), each costing its length plus `overheadPerMessage`. */
  take(budgetBytes: number, overheadPerMessage: number): Uint8Array[];
  readonly length: number;
}

/** A row as it is stored. `suspended`: its owner failed. `inherited`: its owner restarted under a new name. */
export interface RowView {
  readonly network: NetworkId;
  readonly table: string;
  readonly key: string;
  readonly owner: NodeName;
  readonly value: Uint8Array;
  /** Lamport time of the table clock. */
  readonly time: number;
  readonly state: "live" | "inherited" | "suspended" | "tombstone";
  /** When this node learned this version. */
  readonly changedAt: Instant;
  /** When a tombstone or suspended row is forgotten. */
  readonly reapAt: Instant | undefined;
}

export interface AttachmentView {
  readonly network: NetworkId;
  readonly leaving: boolean;
  readonly inSync: boolean;
  readonly rows: number;
  readonly ownQueue: number;
  readonly relayQueue: number;
}

/**
 * Docker's NetworkDB as a value you drive: replicated tables whose rows belong to the node that wrote them.
 * Owns no socket, clock or timer. `../wire/networkdb/` has the bytes.
 */
export class NetworkDb {
  constructor(options: NetworkDbOptions, now: Instant) {
    void options;
    void now;
  }

  handle(input: NetworkDbInput, now: Instant): NetworkDbEffect[] {
    void input;
    void now;
    return [];
  }

  /** When to call `handle({ type: "wake" })` next; undefined when idle. Ask again after every call and every `take`. */
  nextWakeup(): Instant | undefined {
    return undefined;
  }

  /** Node and network events for memberlist's own gossip. */
  readonly clusterBroadcasts: ClusterBroadcastSource = { take: () => [], length: 0 };

  /** The user state of a push/pull. With `join` the own attachments are stamped anew, so ask once per push/pull. */
  localState(join: boolean): Uint8Array {
    void join;
    return new Uint8Array();
  }

  /** Visible rows of one table (`live` and `inherited`); with `suspended` also those of failed owners. */
  *rows(network: NetworkId, table: string, options?: { readonly suspended?: boolean }): Iterable<RowView> {
    void network;
    void table;
    void options;
  }

  /** A visible row. */
  row(network: NetworkId, table: string, key: string): RowView | undefined {
    void network;
    void table;
    void key;
    return undefined;
  }

  /** Every stored row of every network, tombstones included. */
  *allRows(): Iterable<RowView> {}

  participants(network: NetworkId): readonly NodeName[] {
    void network;
    return [];
  }

  attachments(): readonly AttachmentView[] {
    return [];
  }

  /** Things dropped or retried, by reason. */
  counters(): Readonly<Record<string, number>> {
    return {};
  }
}
