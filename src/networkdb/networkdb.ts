import { unreachable } from "../base/assert.ts";
import { DecodeError } from "../base/error.ts";
import type { NetworkId, NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import { randomInt, type Random } from "../base/random.ts";
import { after, type Instant } from "../base/time.ts";
import { transmitLimit } from "../base/transmit-queue.ts";
import {
  decodeNetworkDbMessage,
  encodeNetworkDbMessage,
  type NetworkEntry,
} from "../wire/networkdb/message.ts";
import { BulkSync } from "./bulk-sync.ts";
import type { NetworkDbConfig } from "./config.ts";
import { Database, type CounterName, type RowState, type Timer } from "./database.ts";
import type { Road } from "./early.ts";
import type { NetworkDbEffect, RefusalReason, RowChange } from "./effect.ts";
import type { Entry } from "./entry.ts";
import { TableGossip } from "./gossip.ts";
import { deleteRow, issueNodeEvent, joinNetwork, leaveNetwork, nodeEventName, putRow } from "./local.ts";
import { expireGraces, heardFrom, memberJoined, memberLeft, type Departure } from "./membership.ts";
import {
  mergeAttachment,
  mergeEarlyEvents,
  mergeNetworkEvent,
  mergeNodeEvent,
  mergeTableEvent,
} from "./merge.ts";
import { reapNodes, reapRowsAndAttachments } from "./reap.ts";
import { Rejoin } from "./rejoin.ts";
import { snapshot, type RowFilter } from "./watch.ts";

export type NetworkDbInput =
  /** memberlist considers the node alive: new, returned, or with another address. Members precede the user state of their push/pull. */
  /** `kin`: a netagent, which needs no node event to know that we joined. */
  | {
      readonly type: "member-joined";
      readonly name: NodeName;
      readonly address: SocketAddr;
      readonly kin?: boolean;
    }
  /** Dead or left in memberlist. After a node-leave event of its own a node has left, whatever `how` says. */
  | { readonly type: "member-left"; readonly name: NodeName; readonly how: Departure }
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

/** A row as it is stored. */
export interface RowView {
  readonly network: NetworkId;
  readonly table: string;
  readonly key: string;
  readonly owner: NodeName;
  readonly value: Uint8Array;
  /** Lamport time of the table clock. */
  readonly time: number;
  /** `suspended`: its owner failed. `inherited`: its owner rests, or restarted under a new name. Both still have an owner. */
  readonly state: RowState;
  /** When this node learned this version. */
  readonly changedAt: Instant;
  /** When a tombstone or suspended row is forgotten. */
  readonly reapAt: Instant | undefined;
}

export interface AttachmentView {
  readonly network: NetworkId;
  readonly leaving: boolean;
  readonly inSync: boolean;
  /** Tombstones and suspended rows included. */
  readonly rows: number;
  readonly ownQueue: number;
  readonly relayQueue: number;
}

/** Compounds and bulk syncs may hold each other; no honest sender goes deeper. */
const MAX_NESTING = 4;
/** How often a leaving node looks whether its goodbye has been gossiped. */
const LEAVE_CHECK_MS = 100;

/**
 * Docker's NetworkDB as a value you drive: replicated tables whose rows belong to the node that wrote them.
 * Owns no socket, clock or timer. `../wire/networkdb/` has the bytes.
 */
export class NetworkDb {
  readonly #db: Database;
  readonly #gossip: TableGossip;
  readonly #bulkSync: BulkSync;
  readonly #rejoin: Rejoin;
  #leavingUntil: Instant | undefined;
  /** We joined somebody, and nobody was there so far who waits for the event that says so. */
  #joinUntold = false;

  /** Node and network events for memberlist's own gossip. */
  readonly clusterBroadcasts: ClusterBroadcastSource;

  constructor({ node, address, random, config }: NetworkDbOptions, now: Instant) {
    const db = new Database(node, address, random, config);
    this.#db = db;
    this.#bulkSync = new BulkSync(db);
    this.#gossip = new TableGossip(db, this.#bulkSync.push);
    this.#rejoin = new Rejoin(db);
    this.clusterBroadcasts = {
      take: (budgetBytes, overheadPerMessage) => {
        const limit = transmitLimit(config.retransmitMultiplier, db.nodes.activeCount + 1);
        return db.clusterQueue.take(budgetBytes, overheadPerMessage, limit);
      },
      get length() {
        return db.clusterQueue.length;
      },
    };
    // The first of each comes after a random part of its period, so that nodes started together do not act together.
    for (const [timer, periodMs] of this.#periods())
      db.timers.set(timer, after(now, randomInt(random, periodMs)));
  }

  handle(input: NetworkDbInput, now: Instant): NetworkDbEffect[] {
    switch (input.type) {
      case "member-joined":
        this.#memberJoined(input.name, input.address, input.kin === true, now);
        break;
      case "member-left":
        this.#memberLeft(input.name, input.how, now);
        break;
      case "user-message":
        this.#receive(input.bytes, "gossip", 0, now);
        break;
      case "push-pull-state":
        this.#receivePushPull(input.bytes, now);
        break;
      case "join-network":
        if (joinNetwork(this.#db, input.network) === undefined) this.#refuse(input, "already-attached");
        break;
      case "leave-network":
        if (!leaveNetwork(this.#db, input.network, now)) this.#refuse(input, "not-attached");
        break;
      case "put-row":
        this.#refuse(input, putRow(this.#db, input, now));
        break;
      case "delete-row":
        this.#refuse(input, deleteRow(this.#db, input, now));
        break;
      case "leave":
        this.#leave(now);
        break;
      case "set-bootstrap":
        this.#rejoin.setBootstrap(input.addresses);
        break;
      case "stream-failed":
        this.#bulkSync.peerFailed(input.to, now);
        break;
      case "wake":
        for (const timer of this.#db.timers.takeDue(now)) this.#wake(timer, now);
        break;
      default:
        unreachable(input);
    }
    this.#gossip.arm(now);
    this.#bulkSync.arm(now);
    this.#rejoin.arm(now);
    return this.#db.takeEffects();
  }

  /** When to call `handle({ type: "wake" })` next. Only `handle` changes it. */
  nextWakeup(): Instant | undefined {
    return this.#db.timers.earliest();
  }

  /** The user state of a push/pull. With `join` the own attachments are stamped anew, so ask once per push/pull. */
  localState(join: boolean): Uint8Array {
    const { attachments, networkClock, self } = this.#db;
    // Peers that still believe us to be leaving or gone accept a newer time.
    const joinTime = join ? networkClock.increment() : undefined;
    const networks: NetworkEntry[] = [];
    for (const attachment of attachments.own.values()) {
      if (joinTime !== undefined) attachment.time = joinTime;
      const { network, time, leaving } = attachment;
      networks.push({ network, time, node: self, leaving });
    }
    for (const [node, network, { time, leaving }] of attachments.remotes()) {
      networks.push({ network, time, node, leaving });
    }
    return encodeNetworkDbMessage({ type: "push-pull", time: networkClock.time, networks, node: self });
  }

  /**
   * Our attachments as gossip, for a peer that is not told of them by a push/pull; undefined without any. Unlike a
   * push/pull state it is kept by a peer that does not know us yet.
   */
  introduction(): Uint8Array | undefined {
    const { attachments, self } = this.#db;
    const parts: Uint8Array[] = [];
    for (const { network, time, leaving } of attachments.own.values()) {
      const change = leaving ? "leave" : "join";
      parts.push(encodeNetworkDbMessage({ type: "network-event", change, time, node: self, network }));
    }
    return parts.length === 0 ? undefined : encodeNetworkDbMessage({ type: "compound", parts });
  }

  /** Visible rows of one table (`live` and `inherited`); with `suspended` also those of failed owners. */
  *rows(
    network: NetworkId,
    table: string,
    options?: { readonly suspended?: boolean },
  ): Generator<RowView, void, undefined> {
    const attachment = this.#db.attachments.own.get(network);
    if (attachment === undefined) return;
    for (const [key, entry] of attachment.rows.table(table)) {
      const view = this.#view(network, table, key, entry);
      if (view.state === "tombstone" || (view.state === "suspended" && options?.suspended !== true)) continue;
      yield view;
    }
  }

  /** A visible row; with `suspended` also one of a failed owner. */
  row(
    network: NetworkId,
    table: string,
    key: string,
    options?: { readonly suspended?: boolean },
  ): RowView | undefined {
    const entry = this.#db.attachments.own.get(network)?.rows.get(table, key);
    if (entry === undefined) return undefined;
    if (this.#db.visibleValue(entry) !== undefined) return this.#view(network, table, key, entry);
    if (options?.suspended !== true) return undefined;
    const view = this.#view(network, table, key, entry);
    return view.state === "suspended" ? view : undefined;
  }

  /** Every stored row of every network, tombstones included. */
  *allRows(): Generator<RowView, void, undefined> {
    for (const { network, rows } of this.#db.attachments.own.values()) {
      for (const [table, key, entry] of rows.all()) yield this.#view(network, table, key, entry);
    }
  }

  /** Creates for all visible rows that match, own ones too; the `row-changed` effects that follow continue it. */
  snapshot(filter: RowFilter = {}): RowChange[] {
    return snapshot(this.#db, filter);
  }

  /** Active nodes on the network, this one included when it is. */
  participants(network: NetworkId): readonly NodeName[] {
    return this.#db.attachments.participants(network);
  }

  /** Networks with participants, whether this node is on them or not. */
  networks(): readonly NetworkId[] {
    return [...this.#db.attachments.networks()];
  }

  attachments(): readonly AttachmentView[] {
    return [...this.#db.attachments.own.values()].map(
      ({ network, leaving, inSync, rows, ownQueue, relayQueue }) => ({
        network,
        leaving,
        inSync,
        rows: rows.size,
        ownQueue: ownQueue.length,
        relayQueue: relayQueue.length,
      }),
    );
  }

  /** The other nodes, also those that failed or left within the last day. */
  nodes(): readonly { readonly name: NodeName; readonly address: SocketAddr; readonly state: string }[] {
    return [...this.#db.nodes].map(({ name, address, state }) => ({ name, address, state }));
  }

  /** Things dropped, repeated or done, by reason. */
  counters(): ReadonlyMap<CounterName, number> {
    return this.#db.counters;
  }

  #memberJoined(name: NodeName, address: SocketAddr, kin: boolean, now: Instant): void {
    const alone = this.#db.nodes.activeCount === 0;
    const arrival = memberJoined(this.#db, name, address, now);
    if (arrival === "new") {
      mergeEarlyEvents(this.#db, name, now);
      this.#bulkSync.replyEarly(name, now);
    } else if (arrival === "returned") {
      // What was gossiped meanwhile went past one of us.
      this.#bulkSync.withPeer(name, now);
    }
    const rejoined = this.#rejoin.tookEffort(name);
    // Has no function beyond compatibility with old nodes of Docker's, which expect it after every successful join.
    // Each member passes each of them on: among netagents alone they would be a third of a join storm.
    if ((alone && arrival !== "refused") || rejoined) this.#joinUntold = true;
    if (!this.#joinUntold || kin) return;
    this.#joinUntold = false;
    issueNodeEvent(this.#db, "join");
  }

  #memberLeft(name: NodeName, how: Departure, now: Instant): void {
    const back = memberLeft(this.#db, name, how, now);
    this.#bulkSync.peerFailed(name, now);
    if (back !== undefined) this.#bulkSync.withPeer(back.name, now);
  }

  #heardFrom(name: NodeName, now: Instant): void {
    if (heardFrom(this.#db, name, now)) this.#bulkSync.withPeer(name, now);
  }

  #receive(bytes: Uint8Array, road: Road, depth: number, now: Instant): void {
    if (depth > MAX_NESTING) return this.#db.count("message-nested-too-deep");
    try {
      const message = decodeNetworkDbMessage(bytes);
      switch (message.type) {
        case "node-event":
          if (mergeNodeEvent(this.#db, message, now)) this.#bulkSync.peerFailed(message.node, now);
          return;
        case "network-event":
          return mergeNetworkEvent(this.#db, message, now);
        case "table-event":
          return mergeTableEvent(this.#db, message, bytes, road, now);
        case "compound":
          // One bad part does not harm the others: each is decoded on its own.
          for (const part of message.parts) this.#receive(part, road, depth + 1, now);
          return;
        case "bulk-sync":
          this.#db.tableClock.witness(message.time);
          this.#heardFrom(message.node, now);
          this.#receive(message.payload, "bulk-sync", depth + 1, now);
          return this.#bulkSync.receive(message, now);
        case "push-pull":
          // Comes only as user state of a push/pull.
          return this.#db.count("message-invalid");
        default:
          return unreachable(message);
      }
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.#db.count("message-invalid");
    }
  }

  #receivePushPull(bytes: Uint8Array, now: Instant): void {
    try {
      const state = decodeNetworkDbMessage(bytes);
      if (state.type !== "push-pull") return this.#db.count("message-invalid");
      mergeNodeEvent(
        this.#db,
        { type: "node-event", change: "join", time: state.time, node: state.node },
        now,
      );
      for (const entry of state.networks) {
        this.#db.networkClock.witness(entry.time);
        mergeAttachment(this.#db, entry, entry.leaving, now);
      }
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.#db.count("message-invalid");
    }
  }

  #leave(now: Instant): void {
    if (this.#leavingUntil !== undefined) return;
    issueNodeEvent(this.#db, "leave");
    this.#leavingUntil = after(now, this.#db.config.leaveTimeoutMs);
    this.#checkLeft(now);
  }

  /** Whether the goodbye was gossiped as often as it should, or waiting for it is over. */
  #checkLeft(now: Instant): void {
    if (this.#leavingUntil === undefined) return;
    const told = !this.#db.clusterQueue.has(nodeEventName(this.#db)) || this.#db.nodes.activeCount === 0;
    if (told || now >= this.#leavingUntil) this.#db.emit({ type: "left" });
    else this.#db.timers.set("leave", after(now, LEAVE_CHECK_MS));
  }

  #wake(timer: Timer, now: Instant): void {
    const period = this.#periods().get(timer);
    if (period !== undefined) this.#db.timers.set(timer, after(now, period));
    switch (timer) {
      case "gossip":
        return this.#gossip.round(now);
      case "reap":
        return reapRowsAndAttachments(this.#db, now);
      case "reap-nodes":
        return reapNodes(this.#db, now);
      case "reconnect":
        return this.#rejoin.reconnect(now);
      case "rejoin":
        return this.#rejoin.checkBootstrap(now);
      case "rejoin-try":
        return this.#rejoin.tryBootstrap(now);
      case "grace":
        return expireGraces(this.#db, now);
      case "leave":
        return this.#checkLeft(now);
      case "join-sync":
        return this.#bulkSync.joinSync(now);
      case "bulk-sync":
        return this.#bulkSync.periodic(now);
      case "bulk-sync-timeout":
        return this.#bulkSync.expire(now);
      case "bulk-sync-page":
        return this.#bulkSync.sendPages(now);
      default:
        return unreachable(timer);
    }
  }

  #periods(): ReadonlyMap<Timer, number> {
    const { reapIntervalMs, nodeReapIntervalMs, rejoinIntervalMs, bulkSyncIntervalMs } = this.#db.config;
    return new Map<Timer, number>([
      ["reap", reapIntervalMs],
      ["reap-nodes", nodeReapIntervalMs],
      ["rejoin", rejoinIntervalMs],
      ["bulk-sync", bulkSyncIntervalMs],
    ]);
  }

  #refuse(input: RefusableInput, reason: RefusalReason | undefined): void {
    if (reason === undefined) return;
    const { type, network } = input;
    const row = "key" in input ? { table: input.table, key: input.key } : {};
    this.#db.emit({ type: "refused", input: type, network, ...row, reason });
  }

  #view(network: NetworkId, table: string, key: string, entry: Entry): RowView {
    const { owner, value, time, changedAt, reapAt } = entry;
    return { network, table, key, owner, value, time, state: this.#db.rowState(entry), changedAt, reapAt };
  }
}

type RefusableInput = Extract<
  NetworkDbInput,
  { readonly type: "join-network" | "leave-network" | "put-row" | "delete-row" }
>;
