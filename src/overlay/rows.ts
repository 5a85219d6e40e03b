/** The rows an endpoint of this node has in the gossiped tables, and what rows of others mean. */
import { DecodeError } from "../base/error.ts";
import { type EndpointId, type NetworkId, type NodeName, type ServiceId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import type { RowView } from "../networkdb/networkdb.ts";
import {
  decodeEndpointRecord,
  decodePeerRecord,
  ENDPOINT_TABLE,
  encodeEndpointRecord,
  encodePeerRecord,
  PEER_TABLE,
  type EndpointRecord,
  type PeerRecord,
  type PortConfig,
} from "../wire/networkdb/records.ts";
import type { RemotePeer } from "./desired.ts";

/** Name under which a node publishes its own leg in the ingress network, as Docker does: entry nodes are known by it. */
export const INGRESS_ENDPOINT_NAME = "ingress-endpoint";

export interface OwnEndpoint {
  readonly id: EndpointId;
  readonly network: NetworkId;
  /** Empty: the id's first 12 digits. */
  readonly name: string;
  readonly aliases: readonly string[];
  readonly ip: IpAddr;
  readonly prefixLength: number;
  readonly mac: MacAddr;
  readonly service?: { readonly id: ServiceId; readonly name: string; readonly vip?: IpAddr };
  /** Published ports; on the ingress network only. */
  readonly ports: readonly PortConfig[];
  /** The kernel agrees, so that it can serve: only then it gets a name. */
  readonly named: boolean;
  /** Draining, detaching or unhealthy: no new connections. */
  readonly disabled: boolean;
}

export interface OwnRow {
  readonly network: NetworkId;
  readonly table: string;
  readonly key: EndpointId;
  readonly value: Uint8Array;
}

/** One row in overlay_peer_table, and one in endpoint_table once it is named (overlay.md §2). */
export function ownRows(endpoint: OwnEndpoint, vtep: IpAddr): OwnRow[] {
  const { id: key, network } = endpoint;
  const peer = encodePeerRecord({
    endpointIp: { ip: endpoint.ip, prefixLength: endpoint.prefixLength },
    endpointMac: endpoint.mac,
    vtep,
  });
  const rows: OwnRow[] = [{ network, table: PEER_TABLE, key, value: peer }];
  if (!endpoint.named) return rows;
  const shortId = key.slice(0, 12);
  const value = encodeEndpointRecord({
    name: endpoint.name === "" ? shortId : endpoint.name,
    serviceName: endpoint.service?.name ?? "",
    serviceId: endpoint.service?.id ?? "",
    virtualIp: endpoint.service?.vip,
    endpointIp: endpoint.ip,
    ingressPorts: endpoint.ports,
    aliases: [],
    taskAliases: [...endpoint.aliases, shortId],
    serviceDisabled: endpoint.disabled,
  });
  rows.push({ network, table: ENDPOINT_TABLE, key, value });
  return rows;
}

export interface RowDifference {
  readonly puts: readonly OwnRow[];
  readonly deletes: readonly OwnRow[];
}

/**
 * From the rows we have put to those we want. `stands` says whether the table has a row as wanted, since another
 * node may have taken a key over. Deletes of the name come before those of the path.
 */
export function diffOwnRows(
  wanted: readonly OwnRow[],
  published: readonly OwnRow[],
  stands: (row: OwnRow) => boolean,
): RowDifference {
  const keys = new Set(wanted.map(rowKey));
  return {
    puts: wanted.filter((row) => !stands(row)),
    deletes: published
      .filter((row) => !keys.has(rowKey(row)))
      .sort((a, b) => (a.table < b.table ? -1 : a.table > b.table ? 1 : 0)),
  };
}

/** Names a row among all rows; networks, tables and keys hold no slash. */
export function rowKey(row: Pick<OwnRow, "network" | "table" | "key">): string {
  return `${row.network}/${row.table}/${row.key}`;
}

/** Rows are decoded once: the table keeps a row's bytes as one object until the row changes. */
const peerRecords = new WeakMap<Uint8Array, PeerRecord | "invalid">();
const endpointRecords = new WeakMap<Uint8Array, EndpointRecord | "invalid">();

/** Undefined for a row with an unparsable field, which is no record. */
export function peerRecordOf(row: Pick<RowView, "value">): PeerRecord | undefined {
  return cached(peerRecords, row.value, decodePeerRecord);
}

export function endpointRecordOf(row: Pick<RowView, "value">): EndpointRecord | undefined {
  return cached(endpointRecords, row.value, decodeEndpointRecord);
}

/** The peers other nodes announce, suspended ones included: a cable pulled for ten seconds costs no forwarding entry. */
export function* remotePeers(
  rows: Iterable<RowView>,
  self: NodeName,
  isNetagent: (owner: NodeName) => boolean = () => false,
): Iterable<RemotePeer> {
  const assured = new Map<NodeName, boolean>();
  for (const row of rows) {
    if (row.owner === self || row.state === "tombstone") continue;
    const record = peerRecordOf(row);
    if (record === undefined) continue;
    let known = assured.get(row.owner);
    if (known === undefined) assured.set(row.owner, (known = isNetagent(row.owner)));
    yield {
      endpoint: row.key as EndpointId,
      owner: row.owner,
      ip: record.endpointIp.ip,
      prefixLength: record.endpointIp.prefixLength,
      mac: record.endpointMac,
      vtep: record.vtep,
      assured: known,
      suspended: row.state === "suspended",
      lamportTime: row.time,
    };
  }
}

function cached<T extends object>(
  cache: WeakMap<Uint8Array, T | "invalid">,
  bytes: Uint8Array,
  decode: (bytes: Uint8Array) => T,
): T | undefined {
  let record = cache.get(bytes);
  if (record === undefined) {
    try {
      record = decode(bytes);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      record = "invalid";
    }
    cache.set(bytes, record);
  }
  return record === "invalid" ? undefined : record;
}
