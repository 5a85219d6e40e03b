import { ByteReader, ByteWriter } from "../../base/bytes.ts";
import { networkId, nodeId, type NetworkId, type NodeId } from "../../base/id.ts";
import { ipv4FromNumber, ipv4ToNumber, type IpAddr } from "../../base/ip.ts";
import { decodeEntry, encodeEntry, type Entry } from "./entry.ts";
import {
  readBytes,
  readList,
  readOptional,
  readText,
  writeList,
  writeOptional,
  writeText,
  writeVarint,
} from "./fields.ts";
import { decodeRing, encodeRing, type Ring } from "./ring.ts";

/**
 * Messages of `state/`, for members that announce the capability only.
 *
 * On the wire each is a NetworkDB `GossipMessage` (protobuf: field 1 type, field 2 data) of type 64, which
 * Docker does not use, around: version u8 (1), kind u8, fields. User messages of memberlist do not say who sent
 * them, so messages that want an answer carry the sender's node id.
 */
export const STATE_MESSAGE_TYPE = 64;

/** Keys (entries and rings) are spread over this many buckets; a digest has one hash per bucket. */
export const BUCKETS = 64;
const MAX_DETAIL_BYTES = 512;
const MAX_ITEMS = 65_536;

export type StateMessage =
  /** Changes on their way to everybody. */
  | { readonly type: "update"; readonly entries: readonly Entry[]; readonly rings: readonly Ring[] }
  /** One hash (u32) per bucket of everything the sender knows. */
  | { readonly type: "digest"; readonly sender: NodeId; readonly buckets: readonly number[] }
  /**
   * All that the sender has in `buckets` (a bit mask) with keys in (`after`, `until`], in key order; an empty
   * `after` is the start, an absent `until` the end.
   */
  | {
      readonly type: "page";
      readonly sender: NodeId;
      readonly buckets: bigint;
      readonly after: string;
      readonly until?: string;
      readonly entries: readonly Entry[];
      readonly rings: readonly Ring[];
    }
  /** A node without a free address asks an owner for a part of its range, or for one address. */
  | {
      readonly type: "ask";
      readonly sender: NodeId;
      readonly ask: number;
      readonly network: NetworkId;
      readonly address?: IpAddr;
    }
  /** The part given away is in the ring. */
  | { readonly type: "grant"; readonly sender: NodeId; readonly ask: number; readonly ring: Ring }
  /** `ring` when the sender knows one: it says who owns what was asked for. */
  | {
      readonly type: "refusal";
      readonly sender: NodeId;
      readonly ask: number;
      readonly network: NetworkId;
      readonly reason: RefusalReason;
      /** Who holds a taken address, for people. */
      readonly detail: string;
      readonly ring?: Ring;
    }
  /** What ring of `network` do you know? Asked before a removed node's ranges are taken over. */
  | {
      readonly type: "ring-query";
      readonly sender: NodeId;
      readonly network: NetworkId;
      readonly removed: readonly NodeId[];
    }
  | {
      readonly type: "ring-answer";
      readonly sender: NodeId;
      readonly network: NetworkId;
      /** Virtual IPs on the network in the services the sender knows, as numbers. */
      readonly vips: readonly number[];
      readonly ring?: Ring;
    };

export type RefusalReason = "full" | "taken" | "not-owner" | "unknown-network" | "removed";
const REFUSALS: readonly RefusalReason[] = ["full", "taken", "not-owner", "unknown-network", "removed"];
const KINDS: readonly StateMessage["type"][] = [
  "update",
  "digest",
  "page",
  "ask",
  "grant",
  "refusal",
  "ring-query",
  "ring-answer",
];
const VERSION = 1;

/** Whether a NetworkDB payload is one of ours, by its first bytes; it may still be damaged. */
export function isStateMessage(payload: Uint8Array): boolean {
  return payload[0] === 0x08 && payload[1] === STATE_MESSAGE_TYPE;
}

export function encodeStateMessage(message: StateMessage): Uint8Array {
  const out = new ByteWriter();
  out.u8(VERSION).u8(KINDS.indexOf(message.type));
  encodeFields(message, out);
  const data = out.finish();
  const envelope = new ByteWriter(data.length + 8);
  envelope.u8(0x08).u8(STATE_MESSAGE_TYPE).u8(0x12);
  writeVarint(envelope, data.length);
  return envelope.write(data).finish();
}

/** @throws DecodeError */
export function decodeStateMessage(payload: Uint8Array): StateMessage {
  const envelope = new ByteReader(payload, "state message");
  if (envelope.u8() !== 0x08 || envelope.u8() !== STATE_MESSAGE_TYPE || envelope.u8() !== 0x12)
    envelope.fail("not an envelope of ours");
  const input = new ByteReader(readBytes(envelope, envelope.remaining), "state message");
  const version = input.u8();
  if (version !== VERSION) input.fail(`version ${version}`);
  return decodeFields(KINDS[input.u8()] ?? input.fail("unknown kind"), input);
}

function encodeFields(message: StateMessage, out: ByteWriter): void {
  const writeRing = (ring: Ring): void => encodeRing(ring, out);
  switch (message.type) {
    case "update":
      encodeItems(message, out);
      return;
    case "digest":
      writeText(out, message.sender);
      for (let i = 0; i < BUCKETS; i++) out.u32(message.buckets[i] ?? 0);
      return;
    case "page":
      writeText(out, message.sender);
      out.u64(message.buckets);
      writeText(out, message.after);
      writeOptional(out, message.until, (until) => writeText(out, until));
      encodeItems(message, out);
      return;
    case "ask":
      writeText(out, message.sender);
      out.u32(message.ask);
      writeText(out, message.network);
      writeOptional(out, message.address, (address) => out.u32(ipv4ToNumber(address)));
      return;
    case "grant":
      writeText(out, message.sender);
      out.u32(message.ask);
      writeRing(message.ring);
      return;
    case "refusal":
      writeText(out, message.sender);
      out.u32(message.ask);
      writeText(out, message.network);
      out.u8(REFUSALS.indexOf(message.reason));
      writeText(out, message.detail);
      writeOptional(out, message.ring, writeRing);
      return;
    case "ring-query":
      writeText(out, message.sender);
      writeText(out, message.network);
      writeList(out, message.removed, (node) => writeText(out, node));
      return;
    case "ring-answer":
      writeText(out, message.sender);
      writeText(out, message.network);
      writeList(out, message.vips, (vip) => out.u32(vip));
      writeOptional(out, message.ring, writeRing);
      return;
  }
}

function decodeFields(type: StateMessage["type"], input: ByteReader): StateMessage {
  const sender = (): NodeId => nodeId(readText(input, 64));
  const network = (): NetworkId => networkId(readText(input, 64));
  const optionalRing = (): { readonly ring?: Ring } => {
    const ring = readOptional(input, () => decodeRing(input));
    return ring === undefined ? {} : { ring };
  };
  switch (type) {
    case "update":
      return { type, ...decodeItems(input) };
    case "digest":
      return { type, sender: sender(), buckets: Array.from({ length: BUCKETS }, () => input.u32()) };
    case "page": {
      const from = sender();
      const buckets = input.u64();
      const after = readText(input, 128);
      const until = readOptional(input, () => readText(input, 128));
      const range = until === undefined ? { after } : { after, until };
      return { type, sender: from, buckets, ...range, ...decodeItems(input) };
    }
    case "ask": {
      const from = sender();
      const ask = input.u32();
      const of = network();
      const address = readOptional(input, () => ipv4FromNumber(input.u32()));
      return { type, sender: from, ask, network: of, ...(address === undefined ? {} : { address }) };
    }
    case "grant":
      return { type, sender: sender(), ask: input.u32(), ring: decodeRing(input) };
    case "refusal": {
      const head = { type, sender: sender(), ask: input.u32(), network: network() } as const;
      const reason = REFUSALS[input.u8()] ?? input.fail("unknown reason");
      return { ...head, reason, detail: readText(input, MAX_DETAIL_BYTES), ...optionalRing() };
    }
    case "ring-query":
      return { type, sender: sender(), network: network(), removed: readList(input, 4096, sender) };
    case "ring-answer":
      return {
        type,
        sender: sender(),
        network: network(),
        vips: readList(input, MAX_ITEMS, () => input.u32()),
        ...optionalRing(),
      };
  }
}

interface Items {
  readonly entries: readonly Entry[];
  readonly rings: readonly Ring[];
}

function encodeItems(items: Items, out: ByteWriter): void {
  writeList(out, items.entries, (entry) => encodeEntry(entry, out));
  writeList(out, items.rings, (ring) => encodeRing(ring, out));
}

function decodeItems(input: ByteReader): Items {
  return {
    entries: readList(input, MAX_ITEMS, () => decodeEntry(input)),
    rings: readList(input, MAX_ITEMS, () => decodeRing(input)),
  };
}
