import { Deadlines } from "../base/deadlines.ts";
import type { NetworkId, NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import { sample, type Random } from "../base/random.ts";
import { TransmitQueue } from "../base/transmit-queue.ts";
import type { NetworkDbMessage } from "../wire/networkdb/message.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import { Attachments } from "./attachment.ts";
import type { NetworkDbConfig } from "./config.ts";
import { EarlyEvents } from "./early.ts";
import type { NetworkDbEffect } from "./effect.ts";
import type { Entry } from "./entry.ts";
import { LamportClock } from "./lamport.ts";
import { NodeList } from "./node-list.ts";

/** What wakes a NetworkDb; each is armed while there is something to do. */
export type Timer =
  | "gossip"
  | "reap"
  | "reap-nodes"
  | "reconnect"
  | "rejoin"
  | "rejoin-try"
  | "grace"
  | "leave"
  | "join-sync"
  | "bulk-sync"
  | "bulk-sync-timeout"
  | "bulk-sync-page";

/** Why something was dropped or repeated. */
export type CounterName =
  | "message-invalid"
  | "message-nested-too-deep"
  | "own-claim-ignored"
  | "own-row-reasserted"
  | "own-attachment-reasserted"
  | "network-not-attached"
  | "owner-not-attached"
  | "event-stale"
  | "event-applied"
  | "value-too-long"
  | "too-many-rows"
  | "too-many-nodes"
  | "too-many-attachments"
  | "relay-too-long"
  | "relay-queue-long"
  | "gossip-packets"
  | "bulk-sync-pages"
  | "bulk-sync-succeeded"
  | "bulk-sync-failed"
  | "bulk-sync-unknown-sender"
  | "bulk-sync-jobs-full"
  | "burst-pushed"
  | "reconnect-tried"
  | "bootstrap-tried"
  | "rows-reaped"
  | "member-reincarnated";

/** What a reader may see of a row. `inherited`: its owner rests or restarted; visible until it, or its successor, is back. */
export type RowState = "live" | "inherited" | "suspended" | "tombstone";

/** The state all parts of a NetworkDb work on. Decisions are in the parts; this only holds and reports. */
export class Database {
  readonly self: NodeName;
  readonly address: SocketAddr;
  readonly config: NetworkDbConfig;
  readonly random: Random;
  readonly tableClock = new LamportClock();
  readonly networkClock = new LamportClock();
  readonly nodes = new NodeList();
  readonly attachments = new Attachments();
  /** Node and network events; drained by memberlist's gossip. */
  readonly clusterQueue: TransmitQueue;
  readonly early = new EarlyEvents();
  readonly timers = new Deadlines<Timer>();
  readonly counters = new Map<CounterName, number>();
  /** Own rows and attachments that may still be re-issued in this reap interval. */
  reassertionsLeft: number;
  #effects: NetworkDbEffect[] = [];

  constructor(self: NodeName, address: SocketAddr, random: Random, config: NetworkDbConfig) {
    this.self = self;
    this.address = address;
    this.random = random;
    this.config = config;
    this.clusterQueue = new TransmitQueue({ maxEntries: config.maxClusterEvents });
    this.reassertionsLeft = config.reassertionsPerInterval;
  }

  count(name: CounterName, by = 1): void {
    this.counters.set(name, (this.counters.get(name) ?? 0) + by);
  }

  emit(effect: NetworkDbEffect): void {
    this.#effects.push(effect);
  }

  takeEffects(): NetworkDbEffect[] {
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  /** Takes one from the allowance of re-assertions. */
  mayReassert(): boolean {
    if (this.reassertionsLeft === 0) return false;
    this.reassertionsLeft--;
    return true;
  }

  rowState(entry: Entry): RowState {
    if (entry.deleted) return "tombstone";
    if (entry.owner === this.self) return "live";
    const owner = this.nodes.get(entry.owner);
    if (owner?.state === "active") return "live";
    return owner?.rowsVisible === true ? "inherited" : "suspended";
  }

  /** The value readers see, undefined for a tombstone or a suspended row. */
  visibleValue(entry: Entry | undefined): Uint8Array | undefined {
    if (entry === undefined) return undefined;
    const state = this.rowState(entry);
    return state === "live" || state === "inherited" ? entry.value : undefined;
  }

  /** Reports a participant change once; `present` only for active nodes with an attachment that is not leaving. */
  setParticipant(network: NetworkId, node: NodeName, present: boolean): boolean {
    if (!this.attachments.setParticipant(network, node, present)) return false;
    this.emit({ type: "network-changed", network, participants: this.attachments.participants(network) });
    return true;
  }

  /** Up to `count` participants other than this node, uniformly. */
  samplePeers(network: NetworkId, count: number): NodeName[] {
    const others = this.attachments.participants(network).filter((node) => node !== this.self);
    return sample(this.random, others, count);
  }

  hasPeers(network: NetworkId): boolean {
    const participants = this.attachments.participants(network);
    return participants.length > (participants.includes(this.self) ? 1 : 0);
  }

  /** Queues a node or network event for memberlist's gossip, in place of an older one about the same. */
  broadcast(name: string, message: NetworkDbMessage): void {
    this.clusterQueue.queue(name, encodeNetworkDbMessage(message));
  }
}
