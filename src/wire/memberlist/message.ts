/**
 * memberlist messages: one type byte, then a msgpack map with Go's field names (hashicorp/memberlist net.go).
 *
 *    0 ping      1 indirect ping   2 ack     3 suspect   4 alive   5 dead
 *    8 user: raw payload instead of a map    11 nack     13 error (streams only)
 *
 * Envelopes (compound, compression, checksum, encryption, label) are the business of `packet.ts`; push/pull
 * and the stream form of user messages that of `stream.ts`.
 */
import { unreachable } from "../../base/assert.ts";
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import {
  fieldCount,
  fieldKey,
  fieldTable,
  MsgpackReader,
  NO_BYTES,
  writeBool,
  writeBytes,
  writeMapHeader,
  writeText,
  writeUnsigned,
  type EmptyBytes,
} from "../msgpack.ts";

export const MESSAGE_TYPE = {
  ping: 0,
  indirectPing: 1,
  ack: 2,
  suspect: 3,
  alive: 4,
  dead: 5,
  pushPull: 6,
  compound: 7,
  user: 8,
  compress: 9,
  encrypt: 10,
  nack: 11,
  hasCrc: 12,
  error: 13,
  hasLabel: 244,
} as const;

/** Probe. `node` is the name probed, empty for "whoever is there"; the ack goes to the source when given. */
export interface Ping {
  readonly type: "ping";
  readonly seqNo: number;
  readonly node: string;
  readonly sourceAddr: Uint8Array;
  readonly sourcePort: number;
  readonly sourceNode: string;
}

/** Request to probe `node` at `target` on the sender's behalf. Port 0 means the relay's own port. */
export interface IndirectPing {
  readonly type: "indirect-ping";
  readonly seqNo: number;
  readonly target: Uint8Array;
  readonly port: number;
  readonly node: string;
  /** Whether the sender wants to hear that the relay got no answer either. */
  readonly nack: boolean;
  readonly sourceAddr: Uint8Array;
  readonly sourcePort: number;
  readonly sourceNode: string;
}

export interface Ack {
  readonly type: "ack";
  readonly seqNo: number;
  /** Of the application (serf: coordinates). */
  readonly payload: Uint8Array;
}

export interface Nack {
  readonly type: "nack";
  readonly seqNo: number;
}

export interface Suspect {
  readonly type: "suspect";
  readonly incarnation: number;
  readonly node: string;
  readonly from: string;
}

/** `from` equal to `node`: a leave of its own will. */
export interface Dead {
  readonly type: "dead";
  readonly incarnation: number;
  readonly node: string;
  readonly from: string;
}

export interface Alive {
  readonly type: "alive";
  readonly incarnation: number;
  readonly node: string;
  /** As received, never normalised: members compare addresses byte for byte. Any length. */
  readonly addr: Uint8Array;
  readonly port: number;
  /** At most 512 bytes from a sender; receivers accept more. */
  readonly meta: Uint8Array;
  /** Protocol min, max, current; delegate min, max, current. May be short or empty: check before use. */
  readonly vsn: Uint8Array;
}

/** Application message; `payload` of a decoded one is a view into the packet. */
export interface UserMessage {
  readonly type: "user";
  readonly payload: Uint8Array;
}

/** Why a stream was refused. */
export interface ErrorMessage {
  readonly type: "error";
  readonly error: string;
}

/**
 * Sequence numbers and incarnations are 32 bits, ports 16. Names are any text, also empty; bytes that are not
 * UTF-8 become U+FFFD. A nil and an empty byte field are both an empty array.
 */
export type MemberlistMessage =
  Ping | IndirectPing | Ack | Nack | Suspect | Alive | Dead | UserMessage | ErrorMessage;

/** `empty` selects how empty `addr`, `meta`, `vsn`, `payload` and `target` are written; Go agents write nil. */
export function encodeMessage(message: MemberlistMessage, empty: EmptyBytes = "nil"): Uint8Array {
  scratch.reset();
  encodeMessageInto(message, scratch, empty);
  return scratch.finish();
}

export function encodeMessageInto(
  message: MemberlistMessage,
  out: ByteWriter,
  empty: EmptyBytes = "nil",
): void {
  switch (message.type) {
    case "ping":
      out.u8(MESSAGE_TYPE.ping);
      writeMapHeader(out, 2 + sourceFields(message));
      out.write(KEY.node);
      writeText(out, message.node);
      out.write(KEY.seqNo);
      writeUnsigned(out, message.seqNo);
      return writeSource(out, message);
    case "indirect-ping":
      out.u8(MESSAGE_TYPE.indirectPing);
      writeMapHeader(out, 5 + sourceFields(message));
      out.write(KEY.nack);
      writeBool(out, message.nack);
      out.write(KEY.node);
      writeText(out, message.node);
      out.write(KEY.port);
      writeUnsigned(out, message.port);
      out.write(KEY.seqNo);
      writeUnsigned(out, message.seqNo);
      writeSource(out, message);
      out.write(KEY.target);
      return writeBytes(out, message.target, empty);
    case "ack":
      out.u8(MESSAGE_TYPE.ack);
      writeMapHeader(out, 2);
      out.write(KEY.payload);
      writeBytes(out, message.payload, empty);
      out.write(KEY.seqNo);
      return writeUnsigned(out, message.seqNo);
    case "nack":
      out.u8(MESSAGE_TYPE.nack);
      writeMapHeader(out, 1);
      out.write(KEY.seqNo);
      return writeUnsigned(out, message.seqNo);
    case "suspect":
    case "dead":
      out.u8(message.type === "dead" ? MESSAGE_TYPE.dead : MESSAGE_TYPE.suspect);
      writeMapHeader(out, 3);
      out.write(KEY.from);
      writeText(out, message.from);
      out.write(KEY.incarnation);
      writeUnsigned(out, message.incarnation);
      out.write(KEY.node);
      return writeText(out, message.node);
    case "alive":
      out.u8(MESSAGE_TYPE.alive);
      writeMapHeader(out, 6);
      out.write(KEY.addr);
      writeBytes(out, message.addr, empty);
      out.write(KEY.incarnation);
      writeUnsigned(out, message.incarnation);
      out.write(KEY.meta);
      writeBytes(out, message.meta, empty);
      out.write(KEY.node);
      writeText(out, message.node);
      out.write(KEY.port);
      writeUnsigned(out, message.port);
      out.write(KEY.vsn);
      return writeBytes(out, message.vsn, empty);
    case "user":
      out.u8(MESSAGE_TYPE.user).write(message.payload);
      return;
    case "error":
      out.u8(MESSAGE_TYPE.error);
      writeMapHeader(out, 1);
      out.write(KEY.error);
      return writeText(out, message.error);
    default:
      unreachable(message);
  }
}

/**
 * One bare message; bytes after its map are ignored, as Go does.
 * @throws DecodeError on an empty message, an envelope or unknown type, or a body that does not fit.
 */
export function decodeMessage(bytes: Uint8Array): MemberlistMessage {
  switch (bytes[0]) {
    case undefined:
      throw new DecodeError("memberlist message", 0, "empty message");
    case MESSAGE_TYPE.ping:
      return decodePing(new MsgpackReader(bytes, "memberlist ping", 1));
    case MESSAGE_TYPE.indirectPing:
      return decodeIndirectPing(new MsgpackReader(bytes, "memberlist indirect ping", 1));
    case MESSAGE_TYPE.ack:
      return decodeAck(new MsgpackReader(bytes, "memberlist ack", 1));
    case MESSAGE_TYPE.nack:
      return decodeNack(new MsgpackReader(bytes, "memberlist nack", 1));
    case MESSAGE_TYPE.suspect:
      return decodeAccusation("suspect", new MsgpackReader(bytes, "memberlist suspect", 1));
    case MESSAGE_TYPE.dead:
      return decodeAccusation("dead", new MsgpackReader(bytes, "memberlist dead", 1));
    case MESSAGE_TYPE.alive:
      return decodeAlive(new MsgpackReader(bytes, "memberlist alive", 1));
    case MESSAGE_TYPE.user:
      return { type: "user", payload: bytes.subarray(1) };
    case MESSAGE_TYPE.error:
      return decodeError(new MsgpackReader(bytes, "memberlist error", 1));
    default:
      throw new DecodeError("memberlist message", 0, `message type ${bytes[0]} not valid here`);
  }
}

const PING = fieldTable("SeqNo", "Node", "SourceAddr", "SourcePort", "SourceNode");

function decodePing(input: MsgpackReader): Ping {
  let seqNo = 0;
  let node = "";
  let sourceAddr = NO_BYTES;
  let sourcePort = 0;
  let sourceNode = "";
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, PING)) {
      case 0:
        seqNo = input.u32();
        break;
      case 1:
        node = input.text();
        break;
      case 2:
        sourceAddr = input.bytes();
        break;
      case 3:
        sourcePort = input.u16();
        break;
      case 4:
        sourceNode = input.text();
        break;
      default:
        input.skip();
    }
  }
  return { type: "ping", seqNo, node, sourceAddr, sourcePort, sourceNode };
}

const INDIRECT_PING = fieldTable(
  ...["SeqNo", "Target", "Port", "Node", "Nack", "SourceAddr", "SourcePort", "SourceNode"],
);

function decodeIndirectPing(input: MsgpackReader): IndirectPing {
  let seqNo = 0;
  let target = NO_BYTES;
  let port = 0;
  let node = "";
  let nack = false;
  let sourceAddr = NO_BYTES;
  let sourcePort = 0;
  let sourceNode = "";
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, INDIRECT_PING)) {
      case 0:
        seqNo = input.u32();
        break;
      case 1:
        target = input.bytes();
        break;
      case 2:
        port = input.u16();
        break;
      case 3:
        node = input.text();
        break;
      case 4:
        nack = input.bool();
        break;
      case 5:
        sourceAddr = input.bytes();
        break;
      case 6:
        sourcePort = input.u16();
        break;
      case 7:
        sourceNode = input.text();
        break;
      default:
        input.skip();
    }
  }
  return { type: "indirect-ping", seqNo, target, port, node, nack, sourceAddr, sourcePort, sourceNode };
}

const ACK = fieldTable("SeqNo", "Payload");

function decodeAck(input: MsgpackReader): Ack {
  let seqNo = 0;
  let payload = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, ACK)) {
      case 0:
        seqNo = input.u32();
        break;
      case 1:
        payload = input.bytes();
        break;
      default:
        input.skip();
    }
  }
  return { type: "ack", seqNo, payload };
}

const NACK = fieldTable("SeqNo");

function decodeNack(input: MsgpackReader): Nack {
  let seqNo = 0;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    if (input.field(shape, i, NACK) === 0) seqNo = input.u32();
    else input.skip();
  }
  return { type: "nack", seqNo };
}

const ACCUSATION = fieldTable("Incarnation", "Node", "From");

function decodeAccusation(type: "suspect" | "dead", input: MsgpackReader): Suspect | Dead {
  let incarnation = 0;
  let node = "";
  let from = "";
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, ACCUSATION)) {
      case 0:
        incarnation = input.u32();
        break;
      case 1:
        node = input.text();
        break;
      case 2:
        from = input.text();
        break;
      default:
        input.skip();
    }
  }
  return { type, incarnation, node, from };
}

const ALIVE = fieldTable("Incarnation", "Node", "Addr", "Port", "Meta", "Vsn");

function decodeAlive(input: MsgpackReader): Alive {
  let incarnation = 0;
  let node = "";
  let addr = NO_BYTES;
  let port = 0;
  let meta = NO_BYTES;
  let vsn = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, ALIVE)) {
      case 0:
        incarnation = input.u32();
        break;
      case 1:
        node = input.text();
        break;
      case 2:
        addr = input.bytes();
        break;
      case 3:
        port = input.u16();
        break;
      case 4:
        meta = input.bytes();
        break;
      case 5:
        vsn = input.bytes();
        break;
      default:
        input.skip();
    }
  }
  return { type: "alive", incarnation, node, addr, port, meta, vsn };
}

const ERROR = fieldTable("Error");

function decodeError(input: MsgpackReader): ErrorMessage {
  let error = "";
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    if (input.field(shape, i, ERROR) === 0) error = input.text();
    else input.skip();
  }
  return { type: "error", error };
}

const KEY = {
  addr: fieldKey("Addr"),
  error: fieldKey("Error"),
  from: fieldKey("From"),
  incarnation: fieldKey("Incarnation"),
  meta: fieldKey("Meta"),
  nack: fieldKey("Nack"),
  node: fieldKey("Node"),
  payload: fieldKey("Payload"),
  port: fieldKey("Port"),
  seqNo: fieldKey("SeqNo"),
  sourceAddr: fieldKey("SourceAddr"),
  sourceNode: fieldKey("SourceNode"),
  sourcePort: fieldKey("SourcePort"),
  target: fieldKey("Target"),
  vsn: fieldKey("Vsn"),
} as const;

/** The three source fields are left out when empty ("omitempty"). */
function sourceFields(message: Ping | IndirectPing): number {
  return (
    (message.sourceAddr.length > 0 ? 1 : 0) +
    (message.sourceNode !== "" ? 1 : 0) +
    (message.sourcePort !== 0 ? 1 : 0)
  );
}

function writeSource(out: ByteWriter, message: Ping | IndirectPing): void {
  if (message.sourceAddr.length > 0) {
    out.write(KEY.sourceAddr);
    writeBytes(out, message.sourceAddr);
  }
  if (message.sourceNode !== "") {
    out.write(KEY.sourceNode);
    writeText(out, message.sourceNode);
  }
  if (message.sourcePort !== 0) {
    out.write(KEY.sourcePort);
    writeUnsigned(out, message.sourcePort);
  }
}

/** Encoding never nests, so one writer serves all and grows once to the largest message. */
const scratch = new ByteWriter(2048);
