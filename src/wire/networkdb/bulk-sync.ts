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
 *       Page page = 100;              // ours: 1 last page, 2 more follow
 *       repeated NetworkDigest digests = 101;  // ours
 *     }
 *     message NetworkDigest { string network_id = 1; bytes buckets = 2; }
 *
 * Docker skips fields 100 and 101 as unknown and never sends them: that is how its nodes are told from ours.
 */
import protobuf from "protobufjs/minimal.js";
import { DecodeError } from "../../base/error.ts";
import { networkId, nodeName, type NetworkId, type NodeName } from "../../base/id.ts";
import {
  readFields,
  readTime,
  skipField,
  tag,
  varintLength,
  writeBool,
  writeBytes,
  writeString,
  writeVarint,
  type ProtoReader,
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
  /** Docker's are always whole; ours say whether more pages of the exchange follow. */
  readonly page: "whole" | "last" | "more";
  /** What the sender holds, for a receiver of our kind to leave out what both have. */
  readonly digests: readonly NetworkDigest[];
}

/** Hashes of one network's rows, by bucket. */
export interface NetworkDigest {
  readonly network: NetworkId;
  /** 8 bytes for each of 1, 2, 4 … `MAX_DIGEST_BUCKETS` buckets. */
  readonly buckets: Uint8Array;
}

export const MAX_DIGEST_BUCKETS = 1_024;
export const DIGEST_BUCKET_BYTES = 8;
const PAGES = ["whole", "last", "more"] as const;

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
const PAGE_TAG = tag(100, 0);
const DIGEST_TAG = tag(101, 2);
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
    parts.push(readSimple(reader, reader.uint32()));
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
  writeVarint(writer, 100, PAGES.indexOf(message.page));
  for (const digest of message.digests) {
    writer.uint32(tag(101, 2)).fork();
    writeString(writer, 1, digest.network);
    writeBytes(writer, 2, digest.buckets);
    writer.ldelim();
  }
}

export function decodeBulkSync(bytes: Uint8Array): BulkSync {
  let time = 0;
  let unsolicited = false;
  let node = "";
  const networks: NetworkId[] = [];
  let payload: Uint8Array = EMPTY;
  let page: BulkSync["page"] = "whole";
  const digests: NetworkDigest[] = [];
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
      case PAGE_TAG:
        // A page of a kind we do not know is not the last.
        page = PAGES[reader.uint32()] ?? "more";
        return true;
      case DIGEST_TAG:
        digests.push(decodeDigest(reader.bytes()));
        return true;
      default:
        return false;
    }
  });
  return { type: "bulk-sync", time, unsolicited, node: nodeName(node), networks, payload, page, digests };
}

function decodeDigest(bytes: Uint8Array): NetworkDigest {
  let network = "";
  let buckets: Uint8Array = EMPTY;
  readFields(BULK_SYNC, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x0a:
        network = reader.stringVerify();
        return true;
      case 0x12:
        buckets = reader.bytes();
        return true;
      default:
        return false;
    }
  });
  const count = buckets.length / DIGEST_BUCKET_BYTES;
  if (!Number.isInteger(Math.log2(count)) || count > MAX_DIGEST_BUCKETS)
    throw new DecodeError(BULK_SYNC, 0, `digest of ${buckets.length} bytes`);
  return { network: networkId(network), buckets };
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

/** The payload of one SimpleMessage at the reader's position, which `length` bytes belong to. */
function readSimple(reader: ProtoReader, length: number): Uint8Array {
  const end = reader.pos + length;
  if (end > reader.len) throw new RangeError("part runs past the end");
  let payload: Uint8Array = EMPTY;
  while (reader.pos < end) {
    const fieldTag = reader.tag();
    if (fieldTag === 0x0a) payload = reader.bytes();
    else skipField(reader, fieldTag);
  }
  if (reader.pos !== end) throw new RangeError("field runs past its part");
  return payload;
}
