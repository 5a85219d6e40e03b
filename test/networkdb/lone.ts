import { utf8, fromUtf8 } from "../../src/base/bytes.ts";
import { networkId, nodeName, type NetworkId, type NodeName } from "../../src/base/id.ts";
import { parseIp, type SocketAddr } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { after, instant, type Instant } from "../../src/base/time.ts";
import { networkDbConfig, type NetworkDbConfig } from "../../src/networkdb/config.ts";
import type { NetworkDbEffect, RowChange } from "../../src/networkdb/effect.ts";
import type { Departure } from "../../src/networkdb/membership.ts";
import { NetworkDb, type NetworkDbInput } from "../../src/networkdb/networkdb.ts";
import { BulkSyncPayload } from "../../src/wire/networkdb/bulk-sync.ts";
import {
  decodeNetworkDbMessage,
  encodeNetworkDbMessage,
  type NetworkDbMessage,
} from "../../src/wire/networkdb/message.ts";
import type { BulkSync } from "../../src/wire/networkdb/bulk-sync.ts";
import type { TableEvent } from "../../src/wire/networkdb/table-event.ts";

export const NET: NetworkId = networkId("blue");
export const TABLE = "t";

/** One NetworkDb named `self`, to which the test plays the rest of the world, byte by byte. */
export class Lone {
  readonly db: NetworkDb;
  now: Instant = instant(0);
  readonly effects: NetworkDbEffect[] = [];
  #networkTime = 100;

  constructor(config: Partial<NetworkDbConfig> = {}, seed = 1) {
    this.db = new NetworkDb(
      {
        node: nodeName("self"),
        address: addressOf(0),
        random: seededRandom(seed),
        config: networkDbConfig(config),
      },
      this.now,
    );
  }

  handle(input: NetworkDbInput): NetworkDbEffect[] {
    const effects = this.db.handle(input, this.now);
    this.effects.push(...effects);
    return effects;
  }

  /** Lets time pass, waking the database whenever it asks for it; what it did on the way. */
  pass(milliseconds: number): NetworkDbEffect[] {
    const end = after(this.now, milliseconds);
    const effects: NetworkDbEffect[] = [];
    for (;;) {
      const at = this.db.nextWakeup();
      if (at === undefined || at > end) break;
      this.now = at > this.now ? at : this.now;
      effects.push(...this.handle({ type: "wake" }));
    }
    this.now = end;
    return effects;
  }

  member(name: string, index: number): NodeName {
    this.handle({ type: "member-joined", name: nodeName(name), address: addressOf(index) });
    return nodeName(name);
  }

  lose(name: string, how: Departure = "failed"): NetworkDbEffect[] {
    return this.handle({ type: "member-left", name: nodeName(name), how });
  }

  /** A member that is on the network. */
  peer(name: string, index: number): NodeName {
    const node = this.member(name, index);
    this.networkEvent(name, "join");
    return node;
  }

  networkEvent(name: string, change: "join" | "leave", time = ++this.#networkTime): void {
    this.receive({ type: "network-event", change, time, node: nodeName(name), network: NET });
  }

  receive(message: NetworkDbMessage, via: "packet" | "stream" = "packet"): NetworkDbEffect[] {
    return this.handle({ type: "user-message", bytes: encodeNetworkDbMessage(message), via });
  }

  event(fields: EventFields): NetworkDbEffect[] {
    return this.receive(tableEvent(fields));
  }

  bulk(node: string, events: readonly EventFields[], fields: Partial<BulkSync> = {}): NetworkDbEffect[] {
    const payload = new BulkSyncPayload();
    for (const event of events) payload.add(tableEvent(event));
    return this.receive(
      {
        type: "bulk-sync",
        time: 1_000,
        unsolicited: false,
        node: nodeName(node),
        networks: [NET],
        payload: payload.finish(),
        page: "whole",
        digests: [],
        ...fields,
      },
      "stream",
    );
  }

  join(): void {
    this.handle({ type: "join-network", network: NET });
  }

  put(key: string, value: string, only?: "create" | "update"): NetworkDbEffect[] {
    const mode = only === undefined ? {} : { only };
    return this.handle({ type: "put-row", network: NET, table: TABLE, key, value: utf8(value), ...mode });
  }

  delete(key: string): NetworkDbEffect[] {
    return this.handle({ type: "delete-row", network: NET, table: TABLE, key });
  }

  value(key: string): string | undefined {
    const row = this.db.row(NET, TABLE, key);
    return row && fromUtf8(row.value);
  }

  stored(key: string): { readonly time: number; readonly owner: string; readonly state: string } | undefined {
    for (const row of this.db.allRows()) {
      if (row.key === key) return { time: row.time, owner: row.owner, state: row.state };
    }
    return undefined;
  }

  counter(name: Parameters<ReturnType<NetworkDb["counters"]>["get"]>[0]): number {
    return this.db.counters().get(name) ?? 0;
  }

  /** Reads and forgets the effects so far. */
  takeEffects(): NetworkDbEffect[] {
    return this.effects.splice(0);
  }
}

export interface EventFields {
  readonly node: string;
  readonly key: string;
  readonly time: number;
  readonly value?: string;
  readonly change?: TableEvent["change"];
  readonly residual?: number;
}

export function tableEvent({ node, key, time, value, change, residual }: EventFields): TableEvent {
  return {
    type: "table-event",
    change: change ?? "create",
    time,
    node: nodeName(node),
    network: NET,
    table: TABLE,
    key,
    value: utf8(value ?? ""),
    residualReapSeconds: residual ?? (change === "delete" ? 1_800 : 0),
  };
}

export function addressOf(index: number): SocketAddr {
  return { ip: parseIp(`10.0.0.${index + 1}`), port: 7946 };
}

/** Row changes in short: `key: previous → current`, with `-` for absent. */
export function changesIn(effects: readonly NetworkDbEffect[]): string[] {
  return effects
    .filter((effect): effect is RowChange => effect.type === "row-changed")
    .map(({ key, previous, current }) => `${key}: ${text(previous)} → ${text(current)}`);
}

/** The bulk syncs sent, decoded, with the table events inside. */
export function bulkSyncsIn(
  effects: readonly NetworkDbEffect[],
): { readonly to: NodeName; readonly message: BulkSync; readonly events: readonly TableEvent[] }[] {
  return effects.flatMap((effect) => {
    if (effect.type !== "send-stream") return [];
    const message = decodeNetworkDbMessage(effect.payload);
    if (message.type !== "bulk-sync") return [];
    return [{ to: effect.to, message, events: eventsIn(message.payload) }];
  });
}

/** The table events gossiped, to whomever. */
export function gossipIn(effects: readonly NetworkDbEffect[]): TableEvent[] {
  return effects.flatMap((effect) => (effect.type === "send-packet" ? eventsIn(effect.payload) : []));
}

function eventsIn(bytes: Uint8Array): TableEvent[] {
  const message = decodeNetworkDbMessage(bytes);
  if (message.type === "compound") return message.parts.flatMap(eventsIn);
  return message.type === "table-event" ? [message] : [];
}

function text(value: Uint8Array | undefined): string {
  return value === undefined ? "-" : fromUtf8(value);
}
