import { copyBytes } from "../base/bytes.ts";
import type { NetworkId, NodeName } from "../base/id.ts";
import type { NetworkEvent } from "../wire/networkdb/message.ts";

/** How a table event got here: a datagram of table gossip, or one item of a bulk sync. */
export type Road = "gossip" | "bulk-sync";

/** A table event that came before the network event that lets its owner write. */
export interface EarlyRow {
  readonly encoded: Uint8Array;
  readonly road: Road;
}

/** Bounds what a peer can make us keep by writing for nodes nobody knows. */
const MAX_EVENTS = 2_048;
const MAX_BYTES = 1024 * 1024;

/**
 * Events that overtook what they depend on. A node that starts, joins a network and writes sends all three at once by
 * different roads; upstream drops what comes too soon, and when every repetition does, the rows wait for the next sweep.
 * Kept for one to two turns, then forgotten.
 */
export class EarlyEvents {
  #current = new Generation();
  #previous = new Generation();

  /** A network event of a node memberlist has not reported yet. */
  keepNetworkEvent(event: NetworkEvent): void {
    if (this.#current.hasRoom(64)) this.#current.addNetworkEvent(event);
  }

  /** A row of a node that is not known to be on the network. `encoded` is copied. */
  keepRow(node: NodeName, network: NetworkId, encoded: Uint8Array, road: Road): void {
    if (this.#current.hasRoom(encoded.length))
      this.#current.addRow(node, network, { encoded: copyBytes(encoded), road });
  }

  /** The networks in a bulk sync request of a node memberlist has not reported yet. */
  keepRequest(node: NodeName, networks: readonly NetworkId[]): void {
    if (this.#current.hasRoom(64 * networks.length)) this.#current.addRequest(node, networks);
  }

  /** By time, so that a leave after a join counts. */
  takeNetworkEvents(node: NodeName): NetworkEvent[] {
    const events = [...this.#previous.takeNetworkEvents(node), ...this.#current.takeNetworkEvents(node)];
    return events.sort((a, b) => a.time - b.time);
  }

  takeRows(node: NodeName, network: NetworkId): EarlyRow[] {
    return [...this.#previous.takeRows(node, network), ...this.#current.takeRows(node, network)];
  }

  /** The networks of the latest request. */
  takeRequest(node: NodeName): readonly NetworkId[] | undefined {
    const earlier = this.#previous.takeRequest(node);
    return this.#current.takeRequest(node) ?? earlier;
  }

  /** Called every few seconds: forgets what was kept before the last turn. */
  turn(): void {
    this.#previous = this.#current;
    this.#current = new Generation();
  }
}

class Generation {
  readonly #networkEvents = new Map<NodeName, NetworkEvent[]>();
  readonly #rows = new Map<string, EarlyRow[]>();
  readonly #requests = new Map<NodeName, readonly NetworkId[]>();
  #events = 0;
  #bytes = 0;

  hasRoom(bytes: number): boolean {
    return this.#events < MAX_EVENTS && this.#bytes + bytes <= MAX_BYTES;
  }

  addNetworkEvent(event: NetworkEvent): void {
    this.#count(64);
    append(this.#networkEvents, event.node, event);
  }

  addRow(node: NodeName, network: NetworkId, row: EarlyRow): void {
    this.#count(row.encoded.length);
    append(this.#rows, `${node} ${network}`, row);
  }

  addRequest(node: NodeName, networks: readonly NetworkId[]): void {
    this.#count(64 * networks.length);
    this.#requests.set(node, networks);
  }

  takeNetworkEvents(node: NodeName): NetworkEvent[] {
    const events = this.#networkEvents.get(node) ?? [];
    this.#networkEvents.delete(node);
    return events;
  }

  takeRows(node: NodeName, network: NetworkId): EarlyRow[] {
    const id = `${node} ${network}`;
    const rows = this.#rows.get(id) ?? [];
    this.#rows.delete(id);
    return rows;
  }

  takeRequest(node: NodeName): readonly NetworkId[] | undefined {
    const networks = this.#requests.get(node);
    this.#requests.delete(node);
    return networks;
  }

  #count(bytes: number): void {
    this.#events++;
    this.#bytes += bytes;
  }
}

function append<K, V>(map: Map<K, V[]>, key: K, value: V): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [value]);
  else list.push(value);
}
