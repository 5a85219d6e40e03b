/**
 * NetworkDB compound and bulk sync: many messages in one.
 *
 *     message CompoundMessage { repeated SimpleMessage messages = 1; }
 *     message SimpleMessage   { bytes Payload = 1; }                     // an encoded GossipMessage
 *     message BulkSyncMessage {
 *       uint64 l_time = 1;            // table clock of the sender
 *       bool unsolicited = 2;         // true opens an exchange, false answers
 *       string node_name = 3;         // sender
 *       repeated string networks = 4;
 *       bytes payload = 5;            // an encoded GossipMessage of type compound with table events
 *       bool partial = 100;           // ours: more pages follow, do not count the exchange as done
 *     }
 *
 * Docker skips field 100 as unknown and never sends it.
 */
import protobuf from "protobufjs/minimal.js";
import { networkId, nodeName, type NetworkId, type NodeName } from "../../base/id.ts";
import {
  readFields,
  readTime,
  varintLength,
  writeBool,
  writeBytes,
  writeString,
  writeVarint,
  type ProtoWriter,
} from "./protobuf.ts";
import { writeTableEvent, type TableEvent } from "./table-event.ts";

export interface Compound {
  readonly type: "compound";
  /** Encoded GossipMessages, views into the decoded bytes; each may be bad without harm to the others. */
  readonly parts: readonly Uint8Array[];
}

export interface BulkSync {
  readonly type: "bulk-sync";
  readonly time: number;
  /** True opens an exchange and wants a reply. */
  readonly unsolicited: boolean;
  readonly node: NodeName;
  readonly networks: readonly NetworkId[];
  /** An encoded GossipMessage of type compound. */
  readonly payload: Uint8Array;
  /** More pages of this exchange follow. */
  readonly partial: boolean;
}

/** `GossipMessage.type` values, in the order of the names below. */
export const MESSAGE_TYPES = {
  "network-event": 1,
  "table-event": 2,
  "push-pull": 3,
  "bulk-sync": 4,
  compound: 5,
  "node-event": 6,
} as const;

const COMPOUND = "NetworkDB compound";
const BULK_SYNC = "NetworkDB bulk sync";
const EMPTY = new Uint8Array();

export function writeCompound(writer: ProtoWriter, compound: Compound): void {
  for (const part of compound.parts) {
    writer.uint32(0x0a).fork();
    writeBytes(writer, 1, part);
    writer.ldelim();
  }
}

export function decodeCompound(bytes: Uint8Array): Compound {
  const parts: Uint8Array[] = [];
  readFields(COMPOUND, bytes, (fieldTag, reader) => {
    if (fieldTag !== 0x0a) return false;
    parts.push(decodeSimple(reader.bytes()));
    return true;
  });
  return { type: "compound", parts };
}

/** What a compound adds to a part of `length` bytes: two tags and two lengths. */
export function compoundOverhead(length: number): number {
  const simple = 1 + varintLength(length) + length;
  return 1 + varintLength(simple) + simple - length;
}

/** Bytes a compound adds once, with its envelope: type, tag and a length of up to three bytes. */
export const COMPOUND_ENVELOPE_BYTES = 6;

export function writeBulkSync(writer: ProtoWriter, message: BulkSync): void {
  writeVarint(writer, 1, message.time);
  writeBool(writer, 2, message.unsolicited);
  writeString(writer, 3, message.node);
  for (const network of message.networks) writeString(writer, 4, network);
  writeBytes(writer, 5, message.payload);
  writeBool(writer, 100, message.partial);
}

export function decodeBulkSync(bytes: Uint8Array): BulkSync {
  let time = 0;
  let unsolicited = false;
  let node = "";
  const networks: NetworkId[] = [];
  let payload: Uint8Array = EMPTY;
  let partial = false;
  readFields(BULK_SYNC, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x08:
        time = readTime(reader);
        return true;
      case 0x10:
        unsolicited = reader.bool();
        return true;
      case 0x1a:
        node = reader.stringVerify();
        return true;
      case 0x22:
        networks.push(networkId(reader.stringVerify()));
        return true;
      case 0x2a:
        payload = reader.bytes();
        return true;
      case 0x320:
        partial = reader.bool();
        return true;
      default:
        return false;
    }
  });
  return { type: "bulk-sync", time, unsolicited, node: nodeName(node), networks, payload, partial };
}

/** Collects table events into the payload of one bulk sync message, without a buffer per event. */
export class BulkSyncPayload {
  readonly #writer = new protobuf.Writer();
  #bytes = 0;
  #events = 0;

  constructor() {
    this.#writer.uint32(0x08).uint32(MESSAGE_TYPES.compound).uint32(0x12).fork();
  }

  /** At least the size of what was added, at most a few percent more. */
  get estimatedBytes(): number {
    return this.#bytes;
  }

  get events(): number {
    return this.#events;
  }

  add(event: TableEvent): void {
    const writer = this.#writer;
    writer.uint32(0x0a).fork().uint32(0x0a).fork();
    writer.uint32(0x08).uint32(MESSAGE_TYPES["table-event"]).uint32(0x12).fork();
    writeTableEvent(writer, event);
    writer.ldelim().ldelim().ldelim();
    this.#events++;
    // Tags, lengths, time and residual need less than 48 bytes; names are ASCII in practice, at most 3 bytes a character.
    this.#bytes +=
      48 +
      event.value.length +
      event.node.length +
      event.network.length +
      event.table.length +
      event.key.length;
  }

  /** An encoded GossipMessage of type compound; the collector is used up. */
  finish(): Uint8Array {
    if (this.#events === 0) return Uint8Array.of(0x08, MESSAGE_TYPES.compound);
    return this.#writer.ldelim().finish();
  }
}

function decodeSimple(bytes: Uint8Array): Uint8Array {
  let payload: Uint8Array = EMPTY;
  readFields(COMPOUND, bytes, (fieldTag, reader) => {
    if (fieldTag !== 0x0a) return false;
    payload = reader.bytes();
    return true;
  });
  return payload;
}
