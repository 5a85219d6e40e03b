/**
 * Serf's user messages (hashicorp/serf serf/messages.go). Enough for a plain member to live among serf agents: read
 * all, and write the intents by which serf tells "left" from "failed". Its tags, user state and coordinates are in the
 * files beside this one.
 *
 * Lamport times are u64 in Go; those above 2⁵³ − 1 are refused rather than rounded.
 */
import { unreachable } from "../../base/assert.ts";
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import {
  fieldCount,
  fieldTable,
  MsgpackReader,
  NO_BYTES,
  writeArrayHeader,
  writeBool,
  writeBytes,
  writeMapHeader,
  writeNil,
  writeText,
} from "../msgpack.ts";
import { bytes, KEY, list, text, unsigned } from "./serf-fields.ts";

/** First byte of a serf user message. */
export const SERF_TYPE = {
  leaveIntent: 0,
  joinIntent: 1,
  pushPull: 2,
  userEvent: 3,
  query: 4,
  queryResponse: 5,
  conflictResponse: 6,
  keyRequest: 7,
  keyResponse: 8,
  relay: 9,
} as const;

/** Leaving of its own will; gossiped a while before memberlist's leave, or serf shows the member as failed. */
export interface SerfLeaveIntent {
  readonly type: "leave-intent";
  readonly ltime: number;
  readonly node: string;
  readonly prune: boolean;
}

/** Takes back an older leave intent. */
export interface SerfJoinIntent {
  readonly type: "join-intent";
  readonly ltime: number;
  readonly node: string;
}

export interface SerfUserEvent {
  readonly type: "user-event";
  readonly ltime: number;
  readonly name: string;
  readonly payload: Uint8Array;
  /** Whether receivers may coalesce it with others of the name. */
  readonly coalesce: boolean;
}

export interface SerfQuery {
  readonly type: "query";
  readonly ltime: number;
  readonly id: number;
  readonly addr: Uint8Array;
  readonly port: number;
  readonly sourceNode: string;
  readonly filters: readonly Uint8Array[];
  readonly flags: number;
  readonly relayFactor: number;
  readonly timeoutNanoseconds: number;
  readonly name: string;
  readonly payload: Uint8Array;
}

export interface SerfQueryResponse {
  readonly type: "query-response";
  readonly ltime: number;
  readonly id: number;
  readonly from: string;
  readonly flags: number;
  readonly payload: Uint8Array;
}

/** A serf message to be passed on to `destNode` at `destAddr`. */
export interface SerfRelay {
  readonly type: "relay";
  readonly destAddr: Uint8Array;
  readonly destPort: number;
  readonly destZone: string;
  readonly destNode: string;
  readonly message: Uint8Array;
}

/**
 * Payload of the answer to a query about keys (serf internal_query.go, nodeKeyResponse). `keys` in base64; a refusal
 * says why.
 */
export function encodeSerfKeyResponse(answer: {
  readonly result: boolean;
  readonly message: string;
  readonly keys: readonly string[];
}): Uint8Array {
  const out = new ByteWriter();
  out.u8(SERF_TYPE.keyResponse);
  writeMapHeader(out, 3);
  writeText(out, "Keys");
  writeArrayHeader(out, answer.keys.length);
  for (const key of answer.keys) writeText(out, key);
  writeText(out, "Message");
  writeText(out, answer.message);
  writeText(out, "Result");
  writeBool(out, answer.result);
  return out.finish();
}

/** Conflict and key messages, and whatever later releases add: not ours to understand. */
export interface SerfOther {
  readonly type: "other";
  /** 0 … 255 */
  readonly serfType: number;
  readonly body: Uint8Array;
}

export type SerfMessage =
  SerfLeaveIntent | SerfJoinIntent | SerfUserEvent | SerfQuery | SerfQueryResponse | SerfRelay | SerfOther;

/** Payload of a memberlist user message. */
export function encodeSerfMessage(message: SerfMessage): Uint8Array {
  const out = new ByteWriter();
  switch (message.type) {
    case "leave-intent":
      out.u8(SERF_TYPE.leaveIntent);
      writeMapHeader(out, 3);
      unsigned(out, KEY.ltime, message.ltime);
      text(out, KEY.node, message.node);
      out.write(KEY.prune);
      writeBool(out, message.prune);
      break;
    case "join-intent":
      out.u8(SERF_TYPE.joinIntent);
      writeMapHeader(out, 2);
      unsigned(out, KEY.ltime, message.ltime);
      text(out, KEY.node, message.node);
      break;
    case "user-event":
      out.u8(SERF_TYPE.userEvent);
      writeMapHeader(out, 4);
      out.write(KEY.cc);
      writeBool(out, message.coalesce);
      unsigned(out, KEY.ltime, message.ltime);
      text(out, KEY.name, message.name);
      bytes(out, KEY.payload, message.payload);
      break;
    case "query":
      out.u8(SERF_TYPE.query);
      writeMapHeader(out, 11);
      bytes(out, KEY.addr, message.addr);
      out.write(KEY.filters);
      if (message.filters.length === 0) writeNil(out);
      else {
        writeArrayHeader(out, message.filters.length);
        for (const filter of message.filters) writeBytes(out, filter);
      }
      unsigned(out, KEY.flags, message.flags);
      unsigned(out, KEY.id, message.id);
      unsigned(out, KEY.ltime, message.ltime);
      text(out, KEY.name, message.name);
      bytes(out, KEY.payload, message.payload);
      unsigned(out, KEY.port, message.port);
      unsigned(out, KEY.relayFactor, message.relayFactor);
      text(out, KEY.sourceNode, message.sourceNode);
      unsigned(out, KEY.timeout, message.timeoutNanoseconds);
      break;
    case "query-response":
      out.u8(SERF_TYPE.queryResponse);
      writeMapHeader(out, 5);
      unsigned(out, KEY.flags, message.flags);
      text(out, KEY.from, message.from);
      unsigned(out, KEY.id, message.id);
      unsigned(out, KEY.ltime, message.ltime);
      bytes(out, KEY.payload, message.payload);
      break;
    case "relay":
      out.u8(SERF_TYPE.relay);
      writeMapHeader(out, 2);
      out.write(KEY.destAddr);
      writeMapHeader(out, 3);
      bytes(out, KEY.ip, message.destAddr);
      unsigned(out, KEY.port, message.destPort);
      text(out, KEY.zone, message.destZone);
      text(out, KEY.destName, message.destNode);
      out.write(message.message);
      break;
    case "other":
      out.u8(message.serfType).write(message.body);
      break;
    default:
      unreachable(message);
  }
  return out.finish();
}

/** @throws DecodeError on an empty payload or a body that does not fit its type. */
export function decodeSerfMessage(payload: Uint8Array): SerfMessage {
  const serfType = payload[0];
  if (serfType === undefined) throw new DecodeError("serf message", 0, "empty message");
  const input = new MsgpackReader(payload, "serf message", 1);
  switch (serfType) {
    case SERF_TYPE.leaveIntent:
      return decodeLeaveIntent(input);
    case SERF_TYPE.joinIntent:
      return decodeJoinIntent(input);
    case SERF_TYPE.userEvent:
      return decodeUserEvent(input);
    case SERF_TYPE.query:
      return decodeQuery(input);
    case SERF_TYPE.queryResponse:
      return decodeQueryResponse(input);
    case SERF_TYPE.relay:
      return decodeRelay(input, payload);
    default:
      return { type: "other", serfType, body: payload.subarray(1) };
  }
}

const LEAVE_INTENT = fieldTable("LTime", "Node", "Prune");

function decodeLeaveIntent(input: MsgpackReader): SerfLeaveIntent {
  let ltime = 0;
  let node = "";
  let prune = false;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, LEAVE_INTENT)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        node = input.text();
        break;
      case 2:
        prune = input.bool();
        break;
      default:
        input.skip();
    }
  }
  return { type: "leave-intent", ltime, node, prune };
}

const JOIN_INTENT = fieldTable("LTime", "Node");

function decodeJoinIntent(input: MsgpackReader): SerfJoinIntent {
  let ltime = 0;
  let node = "";
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, JOIN_INTENT)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        node = input.text();
        break;
      default:
        input.skip();
    }
  }
  return { type: "join-intent", ltime, node };
}

const USER_EVENT = fieldTable("LTime", "Name", "Payload", "CC");

function decodeUserEvent(input: MsgpackReader): SerfUserEvent {
  let ltime = 0;
  let name = "";
  let payload = NO_BYTES;
  let coalesce = false;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, USER_EVENT)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        name = input.text();
        break;
      case 2:
        payload = input.bytes();
        break;
      case 3:
        coalesce = input.bool();
        break;
      default:
        input.skip();
    }
  }
  return { type: "user-event", ltime, name, payload, coalesce };
}

const QUERY = fieldTable(
  ...[
    "LTime",
    "ID",
    "Addr",
    "Port",
    "SourceNode",
    "Filters",
    "Flags",
    "RelayFactor",
    "Timeout",
    "Name",
    "Payload",
  ],
);

function decodeQuery(input: MsgpackReader): SerfQuery {
  let ltime = 0;
  let id = 0;
  let addr = NO_BYTES;
  let port = 0;
  let sourceNode = "";
  let filters: readonly Uint8Array[] = [];
  let flags = 0;
  let relayFactor = 0;
  let timeoutNanoseconds = 0;
  let name = "";
  let payload = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, QUERY)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        id = input.u32();
        break;
      case 2:
        addr = input.bytes();
        break;
      case 3:
        port = input.u16();
        break;
      case 4:
        sourceNode = input.text();
        break;
      case 5:
        filters = list(input, () => input.bytes());
        break;
      case 6:
        flags = input.u32();
        break;
      case 7:
        relayFactor = input.u8();
        break;
      case 8:
        timeoutNanoseconds = input.u53();
        break;
      case 9:
        name = input.text();
        break;
      case 10:
        payload = input.bytes();
        break;
      default:
        input.skip();
    }
  }
  return {
    ...{ type: "query", ltime, id, addr, port, sourceNode, filters, flags, relayFactor, timeoutNanoseconds },
    ...{ name, payload },
  };
}

const QUERY_RESPONSE = fieldTable("LTime", "ID", "From", "Flags", "Payload");

function decodeQueryResponse(input: MsgpackReader): SerfQueryResponse {
  let ltime = 0;
  let id = 0;
  let from = "";
  let flags = 0;
  let payload = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, QUERY_RESPONSE)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        id = input.u32();
        break;
      case 2:
        from = input.text();
        break;
      case 3:
        flags = input.u32();
        break;
      case 4:
        payload = input.bytes();
        break;
      default:
        input.skip();
    }
  }
  return { type: "query-response", ltime, id, from, flags, payload };
}

const RELAY = fieldTable("DestAddr", "DestName");
const UDP_ADDR = fieldTable("IP", "Port", "Zone");

function decodeRelay(input: MsgpackReader, payload: Uint8Array): SerfRelay {
  let destAddr = NO_BYTES;
  let destPort = 0;
  let destZone = "";
  let destNode = "";
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, RELAY)) {
      case 0: {
        const inner = input.struct();
        for (let j = 0, fields = fieldCount(inner); j < fields; j++) {
          switch (input.field(inner, j, UDP_ADDR)) {
            case 0:
              destAddr = input.bytes();
              break;
            case 1:
              destPort = input.u16();
              break;
            case 2:
              destZone = input.text();
              break;
            default:
              input.skip();
          }
        }
        break;
      }
      case 1:
        destNode = input.text();
        break;
      default:
        input.skip();
    }
  }
  return { type: "relay", destAddr, destPort, destZone, destNode, message: payload.slice(input.offset) };
}
