import assert from "node:assert/strict";
import { test } from "node:test";
import { fromHex, toHex } from "../../../src/base/bytes.ts";
import { decodePacket } from "../../../src/wire/memberlist/packet.ts";
import { UNSEALED } from "../../../src/wire/memberlist/seal.ts";
import { STREAM_LIMITS } from "../../../src/wire/memberlist/stream-message.ts";
import { StreamDecoder } from "../../../src/wire/memberlist/stream.ts";
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
import { loadVectors } from "../../vectors/load.ts";

for (const [file, expectedMessages] of [
  ["networkdb.jsonl", 43],
  ["docker-swarm-encrypted.jsonl", 61],
] as const) {
  test(`${file}: every NetworkDB message means what was recorded, and ours are the same bytes`, () => {
    let messages = 0;
    for (const vector of loadVectors<Vector>(file)) {
      const found = payloads(vector).map(meaningOf);
      assert.deepEqual(found, meanings(vector.decoded), vector.name);
      messages += found.length;
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
      assert.equal(message.page, "whole");
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
  readonly transport: "udp" | "tcp";
  readonly hex: string;
  /** Absent in the unencrypted captures. */
  readonly keys?: readonly string[];
  readonly decoded: Layer;
}

/** One recorded memberlist layer; which members it has depends on `ml`. */
interface Layer {
  readonly ml: string;
  readonly msg?: Layer;
  readonly parts?: readonly Layer[];
  readonly userState?: unknown;
}

/** The NetworkDB payloads in one captured packet or stream, opened and unwrapped by `wire/memberlist`. */
function payloads({ name, transport, hex, keys }: Vector): Uint8Array[] {
  const sealing = { ...UNSEALED, keys: (keys ?? []).map(fromHex) };
  if (transport === "udp") {
    const packet = decodePacket(fromHex(hex), sealing);
    assert.deepEqual(packet.problems, []);
    return packet.messages.flatMap((message) => (message.type === "user" ? [message.payload] : []));
  }
  const direction = name === "tcp-ack" ? "reply" : "request";
  const stream = new StreamDecoder(sealing, STREAM_LIMITS, direction).push(fromHex(hex));
  if (stream?.type === "push-pull") return [stream.userState];
  return stream?.type === "user" ? [stream.payload] : [];
}

/** What was recorded of each of them, in the same order. */
function meanings(layer: Layer): unknown[] {
  if (layer.ml === "user" || layer.ml === "userStream") return [layer.msg];
  if (layer.ml === "pushPull") return [layer.userState];
  const inner = layer.msg === undefined ? (layer.parts ?? []) : [layer.msg];
  return inner.flatMap(meanings);
}
