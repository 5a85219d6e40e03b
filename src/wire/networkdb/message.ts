/**
 * NetworkDB messages (proto3, package networkdb), the payload of memberlist user messages and user state.
 *
 *     message GossipMessage { MessageType type = 1; bytes data = 2; }
 *     message NodeEvent     { Type type = 1; uint64 l_time = 2; string node_name = 3; }   // 1 join, 2 leave
 *     message NetworkEvent  { Type type = 1; uint64 l_time = 2; string node_name = 3; string network_id = 4; }
 *     message NetworkEntry  { string network_id = 1; uint64 l_time = 2; string node_name = 3; bool leaving = 4; }
 *     message NetworkPushPull { uint64 l_time = 1; repeated NetworkEntry networks = 2; string node_name = 3; }
 *
 * Table events, compound and bulk sync have their own files. libnetwork networkdb/networkdb.proto.
 */
import { unreachable } from "../../base/assert.ts";
import { DecodeError } from "../../base/error.ts";
import { networkId, nodeName, type NetworkId, type NodeName } from "../../base/id.ts";
import {
  decodeBulkSync,
  decodeCompound,
  MESSAGE_TYPES,
  writeBulkSync,
  writeCompound,
  type BulkSync,
  type Compound,
} from "./bulk-sync.ts";
import {
  asDecodeError,
  encodeFields,
  protoReader,
  readFields,
  readTime,
  skipField,
  writeBool,
  writeString,
  writeVarint,
  type ProtoWriter,
} from "./protobuf.ts";
import { decodeTableEvent, writeTableEvent, type TableEvent } from "./table-event.ts";

export type NetworkDbMessage = NodeEvent | NetworkEvent | TableEvent | NetworkPushPull | BulkSync | Compound;

/** A node joins or leaves the cluster. Times here are of the network clock. */
export interface NodeEvent {
  readonly type: "node-event";
  readonly change: "join" | "leave";
  readonly time: number;
  readonly node: NodeName;
}

/** A node joins or leaves a network. */
export interface NetworkEvent {
  readonly type: "network-event";
  readonly change: "join" | "leave";
  readonly time: number;
  readonly node: NodeName;
  readonly network: NetworkId;
}

export interface NetworkEntry {
  readonly network: NetworkId;
  readonly time: number;
  readonly node: NodeName;
  readonly leaving: boolean;
}

/** The user state of a push/pull: every attachment the sender knows. */
export interface NetworkPushPull {
  readonly type: "push-pull";
  readonly time: number;
  readonly networks: readonly NetworkEntry[];
  readonly node: NodeName;
}

const ENVELOPE = "NetworkDB message";
const NODE_EVENT = "NetworkDB node event";
const NETWORK_EVENT = "NetworkDB network event";
const PUSH_PULL = "NetworkDB push/pull";
const EMPTY = new Uint8Array();

/** One encoded GossipMessage. */
export function encodeNetworkDbMessage(message: NetworkDbMessage): Uint8Array {
  return encodeFields((writer) => {
    writer.uint32(0x08).uint32(MESSAGE_TYPES[message.type]);
    // As any empty field, `data` is absent when the inner message is empty; only a compound without parts is.
    if (message.type === "compound" && message.parts.length === 0) return;
    writer.uint32(0x12).fork();
    writeBody(writer, message);
    writer.ldelim();
  });
}

/** @throws DecodeError on anything that is not one valid message of type 1 … 6. */
export function decodeNetworkDbMessage(bytes: Uint8Array): NetworkDbMessage {
  const { type, body } = decodeEnvelope(bytes);
  switch (type) {
    case MESSAGE_TYPES["network-event"]:
      return decodeNetworkEvent(body);
    case MESSAGE_TYPES["table-event"]:
      return decodeTableEvent(body);
    case MESSAGE_TYPES["push-pull"]:
      return decodePushPull(body);
    case MESSAGE_TYPES["bulk-sync"]:
      return decodeBulkSync(body);
    case MESSAGE_TYPES.compound:
      return decodeCompound(body);
    case MESSAGE_TYPES["node-event"]:
      return decodeNodeEvent(body);
    default:
      throw new DecodeError(ENVELOPE, 0, `unknown type ${type}`);
  }
}

/**
 * `GossipMessage.type` of an encoded message, undefined when it is not one. NetworkDB's own are 1 … 6; larger types
 * may be given to other protocols among peers that understand them, Docker logs and drops them.
 */
export function networkDbMessageType(bytes: Uint8Array): number | undefined {
  // Every known writer puts the type first, in one byte.
  const type = bytes[1];
  return bytes[0] === 0x08 && type !== undefined && type > 0 && type < 128 ? type : undefined;
}

function writeBody(writer: ProtoWriter, message: NetworkDbMessage): void {
  switch (message.type) {
    case "node-event":
      return writeNodeEvent(writer, message);
    case "network-event":
      return writeNetworkEvent(writer, message);
    case "table-event":
      return writeTableEvent(writer, message);
    case "push-pull":
      return writePushPull(writer, message);
    case "bulk-sync":
      return writeBulkSync(writer, message);
    case "compound":
      return writeCompound(writer, message);
    default:
      return unreachable(message);
  }
}

function decodeEnvelope(bytes: Uint8Array): { readonly type: number; readonly body: Uint8Array } {
  let type = 0;
  let body: Uint8Array = EMPTY;
  const reader = protoReader(bytes);
  try {
    while (reader.pos < reader.len) {
      const fieldTag = reader.tag();
      if (fieldTag === 0x08) type = reader.uint32();
      else if (fieldTag === 0x12) body = reader.bytes();
      else skipField(reader, fieldTag);
    }
  } catch (error) {
    throw asDecodeError(ENVELOPE, reader, error);
  }
  return { type, body };
}

function writeNodeEvent(writer: ProtoWriter, event: NodeEvent): void {
  writeVarint(writer, 1, event.change === "join" ? 1 : 2);
  writeVarint(writer, 2, event.time);
  writeString(writer, 3, event.node);
}

function decodeNodeEvent(bytes: Uint8Array): NodeEvent {
  let type = 0;
  let time = 0;
  let node = "";
  readFields(NODE_EVENT, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x08:
        type = reader.uint32();
        return true;
      case 0x10:
        time = readTime(reader);
        return true;
      case 0x1a:
        node = reader.stringVerify();
        return true;
      default:
        return false;
    }
  });
  return { type: "node-event", change: joinOrLeave(NODE_EVENT, type), time, node: nodeName(node) };
}

function writeNetworkEvent(writer: ProtoWriter, event: NetworkEvent): void {
  writeVarint(writer, 1, event.change === "join" ? 1 : 2);
  writeVarint(writer, 2, event.time);
  writeString(writer, 3, event.node);
  writeString(writer, 4, event.network);
}

function decodeNetworkEvent(bytes: Uint8Array): NetworkEvent {
  let type = 0;
  let time = 0;
  let node = "";
  let network = "";
  readFields(NETWORK_EVENT, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x08:
        type = reader.uint32();
        return true;
      case 0x10:
        time = readTime(reader);
        return true;
      case 0x1a:
        node = reader.stringVerify();
        return true;
      case 0x22:
        network = reader.stringVerify();
        return true;
      default:
        return false;
    }
  });
  return {
    type: "network-event",
    change: joinOrLeave(NETWORK_EVENT, type),
    time,
    node: nodeName(node),
    network: networkId(network),
  };
}

function writePushPull(writer: ProtoWriter, state: NetworkPushPull): void {
  writeVarint(writer, 1, state.time);
  for (const entry of state.networks) {
    writer.uint32(0x12).fork();
    writeString(writer, 1, entry.network);
    writeVarint(writer, 2, entry.time);
    writeString(writer, 3, entry.node);
    writeBool(writer, 4, entry.leaving);
    writer.ldelim();
  }
  writeString(writer, 3, state.node);
}

function decodePushPull(bytes: Uint8Array): NetworkPushPull {
  let time = 0;
  let node = "";
  const networks: NetworkEntry[] = [];
  readFields(PUSH_PULL, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x08:
        time = readTime(reader);
        return true;
      case 0x12:
        networks.push(decodeNetworkEntry(reader.bytes()));
        return true;
      case 0x1a:
        node = reader.stringVerify();
        return true;
      default:
        return false;
    }
  });
  return { type: "push-pull", time, networks, node: nodeName(node) };
}

function decodeNetworkEntry(bytes: Uint8Array): NetworkEntry {
  let network = "";
  let time = 0;
  let node = "";
  let leaving = false;
  readFields(PUSH_PULL, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x0a:
        network = reader.stringVerify();
        return true;
      case 0x10:
        time = readTime(reader);
        return true;
      case 0x1a:
        node = reader.stringVerify();
        return true;
      case 0x20:
        leaving = reader.bool();
        return true;
      default:
        return false;
    }
  });
  return { network: networkId(network), time, node: nodeName(node), leaving };
}

function joinOrLeave(format: string, type: number): "join" | "leave" {
  if (type === 1) return "join";
  if (type === 2) return "leave";
  throw new DecodeError(format, 0, `type ${type} is neither join nor leave`);
}
