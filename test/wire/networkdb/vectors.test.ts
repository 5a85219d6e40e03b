import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fromHex, toHex } from "../../../src/base/bytes.ts";
import { decodeNetworkDbMessage, encodeNetworkDbMessage } from "../../../src/wire/networkdb/message.ts";
import type { TableEvent } from "../../../src/wire/networkdb/table-event.ts";
import {
  decodeEndpointRecord,
  decodePeerRecord,
  encodeEndpointRecord,
  encodePeerRecord,
  ENDPOINT_TABLE,
  PEER_TABLE,
} from "../../../src/wire/networkdb/records.ts";

for (const [file, expectedMessages] of [
  ["networkdb.jsonl", 43],
  ["docker-swarm-encrypted.jsonl", 61],
] as const) {
  test(`${file}: every NetworkDB message means what was recorded, and ours are the same bytes`, () => {
    let messages = 0;
    for (const vector of vectors(file)) {
      for (const { payload, meaning } of networkDbPayloads(vector)) {
        messages++;
        assert.deepEqual(meaningOf(payload), meaning, vector.name);
      }
    }
    assert.equal(messages, expectedMessages);
  });
}

/** The recorded meaning of one encoded message, in the words of the vectors. Checks the encoder on the way. */
function meaningOf(bytes: Uint8Array): unknown {
  const message = decodeNetworkDbMessage(bytes);
  assert.equal(toHex(encodeNetworkDbMessage(message)), toHex(bytes));
  switch (message.type) {
    case "node-event":
      return {
        kind: "NodeEvent",
        ltime: message.time,
        node: message.node,
        type: message.change.toUpperCase(),
      };
    case "network-event":
      return {
        kind: "NetworkEvent",
        ltime: message.time,
        network: message.network,
        node: message.node,
        type: message.change.toUpperCase(),
      };
    case "push-pull":
      return {
        kind: "NetworkPushPull",
        ltime: message.time,
        networks: orNull(
          message.networks.map(({ leaving, time, network, node }) => ({
            leaving,
            ltime: time,
            network,
            node,
          })),
        ),
        node: message.node,
      };
    case "bulk-sync":
      assert.equal(message.partial, false);
      return {
        kind: "BulkSync",
        ltime: message.time,
        networks: message.networks,
        node: message.node,
        payload: meaningOf(message.payload),
        unsolicited: message.unsolicited,
      };
    case "compound":
      return { kind: "Compound", messages: orNull(message.parts.map(meaningOf)) };
    case "table-event":
      return {
        key: message.key,
        kind: "TableEvent",
        ltime: message.time,
        network: message.network,
        node: message.node,
        residualReapTime: message.residualReapSeconds,
        table: message.table,
        type: message.change.toUpperCase(),
        value: recordMeaning(message),
        valueHex: toHex(message.value),
      };
  }
}

function recordMeaning(event: TableEvent): unknown {
  if (event.table === PEER_TABLE) {
    const record = decodePeerRecord(event.value);
    assert.equal(toHex(encodePeerRecord(record)), toHex(event.value));
    return {
      endpoint_ip: `${record.endpointIp.ip}/${record.endpointIp.prefixLength}`,
      endpoint_mac: record.endpointMac,
      tunnel_endpoint_ip: record.vtep,
    };
  }
  assert.equal(event.table, ENDPOINT_TABLE);
  const record = decodeEndpointRecord(event.value);
  assert.equal(toHex(encodeEndpointRecord(record)), toHex(event.value));
  return {
    aliases: orNull(record.aliases),
    endpoint_ip: record.endpointIp,
    ingress_ports: orNull(
      record.ingressPorts.map((port) => ({
        name: port.name,
        protocol: port.protocol.toUpperCase(),
        published_port: port.publishedPort,
        target_port: port.targetPort,
      })),
    ),
    name: record.name,
    service_disabled: record.serviceDisabled,
    service_id: record.serviceId,
    service_name: record.serviceName,
    task_aliases: orNull(record.taskAliases),
    virtual_ip: record.virtualIp ?? "<nil>",
  };
}

function orNull<T>(list: readonly T[]): readonly T[] | null {
  return list.length === 0 ? null : list;
}

interface Vector {
  readonly name: string;
  readonly hex: string;
  readonly plainHex?: string;
  readonly decoded: Layer;
}

/** One recorded memberlist layer; which members it has depends on `ml`. */
interface Layer {
  readonly ml: string;
  readonly msg?: Layer;
  readonly parts?: readonly Layer[];
  readonly inflatedHex?: string;
  readonly header?: { readonly UserStateLen?: number; readonly UserMsgLen?: number };
  readonly userState?: unknown;
}

function vectors(file: string): Vector[] {
  return readFileSync(new URL(`../../../../test/vectors/${file}`, import.meta.url), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Vector);
}

/** The NetworkDB payloads in one captured packet or stream, beside what was recorded of each. */
function networkDbPayloads(vector: Vector): { readonly payload: Uint8Array; readonly meaning: unknown }[] {
  return unwrap(fromHex(vector.plainHex ?? vector.hex), vector.decoded);
}

function unwrap(
  bytes: Uint8Array,
  layer: Layer,
): { readonly payload: Uint8Array; readonly meaning: unknown }[] {
  switch (layer.ml) {
    case "hasCrc":
      return layer.msg === undefined ? [] : unwrap(bytes.subarray(5), layer.msg);
    case "compress":
      return layer.msg === undefined ? [] : unwrap(fromHex(layer.inflatedHex ?? ""), layer.msg);
    case "compound": {
      const count = bytes[1] ?? 0;
      let at = 2 + 2 * count;
      return (layer.parts ?? []).flatMap((part, index) => {
        const length = (bytes[2 + 2 * index] ?? 0) * 256 + (bytes[3 + 2 * index] ?? 0);
        at += length;
        return unwrap(bytes.subarray(at - length, at), part);
      });
    }
    case "user":
      return [{ payload: bytes.subarray(1), meaning: layer.msg }];
    case "userStream":
      return [
        { payload: bytes.subarray(bytes.length - (layer.header?.UserMsgLen ?? 0)), meaning: layer.msg },
      ];
    case "pushPull":
      return [
        {
          payload: bytes.subarray(bytes.length - (layer.header?.UserStateLen ?? 0)),
          meaning: layer.userState,
        },
      ];
    default:
      return [];
  }
}
