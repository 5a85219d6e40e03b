import type { NetworkId, NodeName } from "../base/id.ts";
import type { Instant } from "../base/time.ts";
import { TransmitQueue } from "../base/transmit-queue.ts";
import type { NetworkDbConfig } from "./config.ts";
import { RowStore } from "./row-store.ts";

/** This node is on a network, or was until recently. Only here rows are held. */
export class OwnAttachment {
  readonly network: NetworkId;
  /** Network clock of the last join or leave. */
  time: number;
  leaving = false;
  reapAt: Instant | undefined;
  /** Whether what others send is passed on: a node that just joined would only repeat what everybody knows. */
  inSync = false;
  /** Whether one exchange succeeded since the join. */
  loaded = false;
  /** Peers asked since the join. */
  readonly asked = new Set<NodeName>();
  readonly rows = new RowStore();
  readonly ownQueue: TransmitQueue;
  readonly relayQueue: TransmitQueue;

  constructor(network: NetworkId, time: number, config: NetworkDbConfig) {
    this.network = network;
    this.time = time;
    // Own events are local and replace each other by key, so there are never more than own rows.
    this.ownQueue = new TransmitQueue({ maxEntries: config.maxRowsPerNetwork });
    this.relayQueue = new TransmitQueue({ maxEntries: config.maxRelayEvents });
  }
}

/** Another node is on a network, or was until recently. */
export interface RemoteAttachment {
  time: number;
  leaving: boolean;
  reapAt: Instant | undefined;
}

/**
 * Who is on which network. Tracked for all networks, because a later join picks its sync peers from here.
 * Participants are the nodes gossip and bulk sync may pick: active, attached, not leaving; this node too.
 */
export class Attachments {
  readonly own = new Map<NetworkId, OwnAttachment>();
  readonly #remote = new Map<NodeName, Map<NetworkId, RemoteAttachment>>();
  readonly #participants = new Map<NetworkId, Set<NodeName>>();
  /** The same as arrays, for sampling; built on demand. */
  readonly #lists = new Map<NetworkId, readonly NodeName[]>();

  /** This node's attachment unless it is leaving. */
  joined(network: NetworkId): OwnAttachment | undefined {
    const attachment = this.own.get(network);
    return attachment?.leaving === false ? attachment : undefined;
  }

  remote(node: NodeName, network: NetworkId): RemoteAttachment | undefined {
    return this.#remote.get(node)?.get(network);
  }

  remotesOf(node: NodeName): ReadonlyMap<NetworkId, RemoteAttachment> {
    return this.#remote.get(node) ?? NONE;
  }

  *remotes(): Generator<[NodeName, NetworkId, RemoteAttachment], void, undefined> {
    for (const [node, networks] of this.#remote) {
      for (const [network, attachment] of networks) yield [node, network, attachment];
    }
  }

  addRemote(node: NodeName, network: NetworkId, attachment: RemoteAttachment): void {
    let networks = this.#remote.get(node);
    if (networks === undefined) {
      networks = new Map();
      this.#remote.set(node, networks);
    }
    networks.set(network, attachment);
  }

  deleteRemote(node: NodeName, network: NetworkId): void {
    const networks = this.#remote.get(node);
    networks?.delete(network);
    if (networks?.size === 0) this.#remote.delete(node);
  }

  forgetNode(node: NodeName): void {
    this.#remote.delete(node);
  }

  /** Whether `node` is a participant changed. */
  setParticipant(network: NetworkId, node: NodeName, present: boolean): boolean {
    let nodes = this.#participants.get(network);
    if (nodes?.has(node) === present || (nodes === undefined && !present)) return false;
    if (nodes === undefined) {
      nodes = new Set();
      this.#participants.set(network, nodes);
    }
    if (present) nodes.add(node);
    else nodes.delete(node);
    if (nodes.size === 0) this.#participants.delete(network);
    this.#lists.delete(network);
    return true;
  }

  participants(network: NetworkId): readonly NodeName[] {
    let list = this.#lists.get(network);
    if (list === undefined) {
      list = [...(this.#participants.get(network) ?? [])];
      this.#lists.set(network, list);
    }
    return list;
  }

  /** Networks with participants. */
  networks(): Iterable<NetworkId> {
    return this.#participants.keys();
  }
}

const NONE: ReadonlyMap<NetworkId, RemoteAttachment> = new Map();
