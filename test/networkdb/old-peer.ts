import type { NetworkId, NodeName } from "../../src/base/id.ts";
import type { SocketAddr } from "../../src/base/ip.ts";
import { pick, randomInt, sample, type Random } from "../../src/base/random.ts";
import { after, elapsed, type Instant } from "../../src/base/time.ts";
import { TransmitQueue, transmitLimit } from "../../src/base/transmit-queue.ts";
import type { NetworkDbEffect } from "../../src/networkdb/effect.ts";
import type { AttachmentView, NetworkDb, NetworkDbInput, RowView } from "../../src/networkdb/networkdb.ts";
import {
  decodeNetworkDbMessage,
  encodeNetworkDbMessage,
  type NetworkDbMessage,
  type NetworkEvent,
} from "../../src/wire/networkdb/message.ts";
import type { BulkSync } from "../../src/wire/networkdb/bulk-sync.ts";
import type { TableEvent } from "../../src/wire/networkdb/table-event.ts";

const GOSSIP_MS = 200;
const BULK_SYNC_MS = 30_000;
const REAP_MS = 5_000;
const ROW_LIFE_MS = 30 * 60_000;

interface Row {
  owner: NodeName;
  time: number;
  value: Uint8Array;
  deleted: boolean;
  reapAt: Instant;
}

interface Attachment {
  time: number;
  leaving: boolean;
}

/**
 * A peer as Docker 20.10 is one, written down naively from its behaviour (networkdb.md §14): one queue, whole tables in
 * one message at the current clock, rows of failed nodes dropped, tombstones forged with the owner's time when a node
 * leaves a network, deletes of unknown rows forgotten. Shows that we get along with it, and that the tests of the
 * convergence do not only compare an implementation with itself.
 */
export class OldPeer {
  readonly #name: NodeName;
  readonly #random: Random;
  #tableClock = 0;
  #networkClock = 0;
  readonly #active = new Map<NodeName, SocketAddr>();
  /** Node to network. */
  readonly #attached = new Map<NodeName, Map<NetworkId, Attachment>>();
  readonly #own = new Map<NetworkId, Attachment>();
  /** "network table key" to row. */
  readonly #rows = new Map<string, Row>();
  readonly #queues = new Map<NetworkId, TransmitQueue>();
  readonly #cluster = new TransmitQueue({ maxEntries: 10_000 });
  #gossipAt: Instant;
  #bulkSyncAt: Instant;
  #reapAt: Instant;
  #effects: NetworkDbEffect[] = [];

  readonly clusterBroadcasts: {
    take(budget: number, overhead: number): Uint8Array[];
    readonly length: number;
  };

  constructor(name: NodeName, random: Random, now: Instant) {
    this.#name = name;
    this.#random = random;
    this.#gossipAt = after(now, randomInt(random, GOSSIP_MS));
    this.#bulkSyncAt = after(now, randomInt(random, BULK_SYNC_MS));
    this.#reapAt = after(now, randomInt(random, REAP_MS));
    const cluster = this.#cluster;
    const active = this.#active;
    this.clusterBroadcasts = {
      take: (budget, overhead) => cluster.take(budget, overhead, transmitLimit(4, active.size + 1)),
      get length() {
        return cluster.length;
      },
    };
  }

  handle(input: NetworkDbInput, now: Instant): NetworkDbEffect[] {
    switch (input.type) {
      case "member-joined":
        this.#active.set(input.name, input.address);
        break;
      case "member-left":
        this.#active.delete(input.name);
        this.#attached.delete(input.name);
        for (const [id, row] of this.#rows) if (row.owner === input.name) this.#rows.delete(id);
        break;
      case "user-message":
        this.#receive(input.bytes, false, now);
        break;
      case "push-pull-state":
        this.#receivePushPull(input.bytes, now);
        break;
      case "join-network":
        this.#join(input.network, now);
        break;
      case "leave-network":
        this.#leave(input.network, now);
        break;
      case "put-row":
        this.#write(input, input.value, false, now);
        break;
      case "delete-row":
        this.#write(input, this.#rows.get(rowId(input))?.value ?? new Uint8Array(), true, now);
        break;
      case "wake":
        this.#wake(now);
        break;
      default:
        break;
    }
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  nextWakeup(): Instant {
    return [this.#gossipAt, this.#bulkSyncAt, this.#reapAt].reduce((a, b) => (a < b ? a : b));
  }

  localState(join: boolean): Uint8Array {
    if (join) {
      this.#networkClock++;
      for (const attachment of this.#own.values()) attachment.time = this.#networkClock;
    }
    const entries = [[this.#name, this.#own] as const, ...this.#attached];
    return encodeNetworkDbMessage({
      type: "push-pull",
      time: this.#networkClock,
      node: this.#name,
      networks: entries.flatMap(([node, networks]) =>
        [...networks].map(([network, { time, leaving }]) => ({ network, time, node, leaving })),
      ),
    });
  }

  *rows(network: NetworkId, table: string): Generator<RowView, void, undefined> {
    for (const row of this.allRows()) {
      if (row.network === network && row.table === table && row.state === "live") yield row;
    }
  }

  row(network: NetworkId, table: string, key: string): RowView | undefined {
    return [...this.rows(network, table)].find((row) => row.key === key);
  }

  *allRows(): Generator<RowView, void, undefined> {
    for (const [id, { owner, time, value, deleted, reapAt }] of this.#rows) {
      const [network, table, key] = id.split("\n") as [NetworkId, string, string];
      const state = deleted ? "tombstone" : "live";
      yield { network, table, key, owner, value, time, state, changedAt: reapAt, reapAt };
    }
  }

  participants(network: NetworkId): readonly NodeName[] {
    const others = [...this.#active.keys()].filter(
      (node) => this.#attached.get(node)?.get(network)?.leaving === false,
    );
    return this.#isOn(network) ? [this.#name, ...others] : others;
  }

  attachments(): readonly AttachmentView[] {
    return [...this.#own].map(([network, { leaving }]) => ({
      network,
      leaving,
      inSync: true,
      rows: 0,
      ownQueue: this.#queues.get(network)?.length ?? 0,
      relayQueue: 0,
    }));
  }

  nodes(): { name: NodeName; address: SocketAddr; state: string }[] {
    return [...this.#active].map(([name, address]) => ({ name, address, state: "active" }));
  }

  counters(): ReturnType<NetworkDb["counters"]> {
    return new Map();
  }

  #join(network: NetworkId, now: Instant): void {
    this.#own.set(network, { time: ++this.#networkClock, leaving: false });
    this.#queues.set(network, new TransmitQueue({ maxEntries: 100_000 }));
    this.#announce(network, "join");
    for (const peer of this.participants(network)) this.#bulkSync(peer, [network], true, now);
    this.#effects.push({ type: "network-in-sync", network });
  }

  #leave(network: NetworkId, now: Instant): void {
    const attachment = this.#own.get(network);
    if (attachment === undefined) return;
    attachment.leaving = true;
    attachment.time = ++this.#networkClock;
    this.#announce(network, "leave");
    for (const [id, row] of this.#rows) {
      if (!id.startsWith(`${network}\n`)) continue;
      if (row.owner !== this.#name) this.#rows.delete(id);
      else if (!row.deleted) this.#rows.set(id, tombstone(row, row.time + 1, now));
    }
  }

  #announce(network: NetworkId, change: "join" | "leave"): void {
    this.#broadcast({ type: "network-event", change, time: this.#networkClock, node: this.#name, network });
  }

  #broadcast(event: NetworkEvent): void {
    this.#cluster.queue(`${event.network} ${event.node}`, encodeNetworkDbMessage(event));
  }

  #write(
    place: { readonly network: NetworkId; readonly table: string; readonly key: string },
    value: Uint8Array,
    deleted: boolean,
    now: Instant,
  ): void {
    const row: Row = {
      owner: this.#name,
      time: ++this.#tableClock,
      value,
      deleted,
      reapAt: after(now, ROW_LIFE_MS),
    };
    this.#rows.set(rowId(place), row);
    const event = this.#eventOf(rowId(place), row, now);
    this.#queues.get(place.network)?.queue(rowId(place), encodeNetworkDbMessage(event));
  }

  #receive(bytes: Uint8Array, bulk: boolean, now: Instant): void {
    const message = decodeNetworkDbMessage(bytes);
    if (message.type === "compound") for (const part of message.parts) this.#receive(part, bulk, now);
    else if (message.type === "network-event") this.#receiveNetworkEvent(message, true, now);
    else if (message.type === "table-event") this.#receiveTableEvent(message, bytes, bulk, now);
    else if (message.type === "bulk-sync") {
      this.#tableClock = witness(this.#tableClock, message.time);
      this.#receive(message.payload, true, now);
      if (message.unsolicited) this.#bulkSync(message.node, message.networks, false, now);
    }
  }

  #receivePushPull(bytes: Uint8Array, now: Instant): void {
    const state = decodeNetworkDbMessage(bytes);
    if (state.type !== "push-pull") return;
    for (const { node, network, time, leaving } of state.networks) {
      const change = leaving ? "leave" : "join";
      this.#receiveNetworkEvent({ type: "network-event", change, time, node, network }, false, now);
    }
  }

  #receiveNetworkEvent(event: NetworkEvent, relay: boolean, now: Instant): void {
    const { node, network, time } = event;
    this.#networkClock = witness(this.#networkClock, time);
    const leaving = event.change === "leave";
    const known = this.#attached.get(node)?.get(network);
    if (node === this.#name || (known?.time ?? 0) >= time) return;
    if (known === undefined && (leaving || !this.#active.has(node))) return;
    const networks = this.#attached.get(node) ?? new Map<NetworkId, Attachment>();
    this.#attached.set(node, networks.set(network, { time, leaving }));
    if (leaving) {
      for (const [id, row] of this.#rows) {
        // The forged tombstone: the leaver's own time, which nothing but a newer write beats.
        if (id.startsWith(`${network}\n`) && row.owner === node)
          this.#rows.set(id, tombstone(row, row.time, now));
      }
    }
    if (relay) this.#broadcast(event);
  }

  #receiveTableEvent(event: TableEvent, bytes: Uint8Array, bulk: boolean, now: Instant): void {
    if (event.node === this.#name) return;
    this.#tableClock = witness(this.#tableClock, event.time);
    if (!this.#isOn(event.network) || !this.participants(event.network).includes(event.node)) return;
    const stored = this.#rows.get(rowId(event));
    const deleted = event.change === "delete";
    if ((stored?.time ?? 0) >= event.time || (deleted && stored === undefined && !bulk)) return;
    this.#rows.set(rowId(event), {
      owner: event.node,
      time: event.time,
      value: event.value.slice(),
      deleted,
      reapAt: after(now, event.residualReapSeconds * 1000 || ROW_LIFE_MS),
    });
    this.#queues.get(event.network)?.queue(rowId(event), bytes.slice());
  }

  #bulkSync(peer: NodeName, networks: readonly NetworkId[], unsolicited: boolean, now: Instant): void {
    const address = this.#active.get(peer);
    if (address === undefined) return;
    const parts = [...this.#rows]
      .filter(([id]) => networks.some((network) => id.startsWith(`${network}\n`)))
      .map(([id, row]) => encodeNetworkDbMessage(this.#eventOf(id, row, now)));
    const message: BulkSync = {
      type: "bulk-sync",
      time: this.#tableClock,
      unsolicited,
      node: this.#name,
      networks,
      payload: encodeNetworkDbMessage({ type: "compound", parts }),
      page: "whole",
      digests: [],
    };
    this.#effects.push({ type: "send-stream", to: peer, address, payload: encodeNetworkDbMessage(message) });
  }

  #wake(now: Instant): void {
    if (this.#gossipAt <= now) {
      this.#gossipAt = after(now, GOSSIP_MS);
      for (const [network, queue] of this.#queues) this.#gossip(network, queue);
    }
    if (this.#bulkSyncAt <= now) {
      this.#bulkSyncAt = after(now, BULK_SYNC_MS);
      for (const [network, { leaving }] of this.#own) {
        const peer = pick(
          this.#random,
          this.participants(network).filter((node) => node !== this.#name),
        );
        if (!leaving && peer !== undefined) this.#bulkSync(peer, [network], true, now);
      }
    }
    if (this.#reapAt <= now) {
      this.#reapAt = after(now, REAP_MS);
      for (const [id, row] of this.#rows) if (row.deleted && row.reapAt <= now) this.#rows.delete(id);
    }
  }

  #gossip(network: NetworkId, queue: TransmitQueue): void {
    const participants = this.participants(network);
    const parts = queue.take(1_395, 4, transmitLimit(4, participants.length));
    if (parts.length === 0) return;
    const message: NetworkDbMessage = { type: "compound", parts };
    const others = participants.filter((node) => node !== this.#name);
    for (const to of sample(this.#random, others, 3)) {
      const address = this.#active.get(to);
      if (address === undefined) continue;
      this.#effects.push({ type: "send-packet", to, address, payload: encodeNetworkDbMessage(message) });
    }
  }

  #isOn(network: NetworkId): boolean {
    return this.#own.get(network)?.leaving === false;
  }

  #eventOf(id: string, row: Row, now: Instant): TableEvent {
    const [network, table, key] = id.split("\n") as [NetworkId, string, string];
    return {
      type: "table-event",
      change: row.deleted ? "delete" : "create",
      time: row.time,
      node: row.owner,
      network,
      table,
      key,
      value: row.value,
      residualReapSeconds: row.deleted ? Math.floor(elapsed(now, row.reapAt) / 1000) : 0,
    };
  }
}

function rowId({ network, table, key }: { network: NetworkId; table: string; key: string }): string {
  return `${network}\n${table}\n${key}`;
}

function tombstone(row: Row, time: number, now: Instant): Row {
  return { ...row, time, deleted: true, reapAt: after(now, ROW_LIFE_MS) };
}

function witness(clock: number, seen: number): number {
  return seen >= clock ? seen + 1 : clock;
}
