/**
 * Netlink framing: `struct nlmsghdr` (length 4, type 2, flags 2, sequence 4, port 4), attributes
 * (`struct nlattr`: length 2, type 2), acknowledgements with extended-ack text. include/uapi/linux/netlink.h,
 * Documentation/userspace-api/netlink/intro.rst. Host byte order; lengths exclude the padding to 4 bytes.
 *
 * The `netlink` package supplies the constants (protocol, flags and message types). Its codec is not used: it
 * builds each message from dozens of small buffers (a batch of 70,000 entries must become one buffer), leaves
 * link info and extended acks unparsed, and throws RangeError on short input where ours throws DecodeError.
 */
import { ByteReader, ByteWriter, fromUtf8 } from "../../base/bytes.ts";
import {
  Flags,
  FlagsAck,
  FlagsGet,
  FlagsNew,
  MessageType as ControlType,
  Protocol,
} from "netlink/dist/constants.js";

export const NETLINK_HEADER_LENGTH = 16; // bytes
export const NETLINK_PROTOCOL = {
  route: Protocol.ROUTE,
  netfilter: Protocol.NETFILTER,
  xfrm: Protocol.XFRM,
  generic: Protocol.GENERIC,
} as const;
export type NetlinkProtocol = keyof typeof NETLINK_PROTOCOL;

export const NLM_F = {
  request: Flags.REQUEST,
  multi: Flags.MULTI,
  ack: Flags.ACK,
  echo: Flags.ECHO,
  dumpInterrupted: Flags.DUMP_INTR,
  dump: FlagsGet.DUMP,
  root: FlagsGet.ROOT,
  replace: FlagsNew.REPLACE,
  exclusive: FlagsNew.EXCL,
  create: FlagsNew.CREATE,
  append: FlagsNew.APPEND,
  /** In acknowledgements only: the request's payload was left out. */
  capped: FlagsAck.CAPPED,
  /** In acknowledgements only: extended-ack attributes follow. */
  ackAttributes: FlagsAck.ACK_TLVS,
} as const;

export const NLMSG = { error: ControlType.ERROR, done: ControlType.DONE } as const;

export interface NetlinkMessage {
  readonly type: number;
  readonly flags: number;
  readonly sequence: number;
  /** Of an answer: the socket that asked. Of a notification: the socket that made the change, 0 for the kernel. */
  readonly portId: number;
  /** What follows the header; a view into the received bytes. */
  readonly payload: Uint8Array;
}

/** Result of one request. `errno` 0 is success. */
export interface NetlinkAck {
  /** Positive errno. */
  readonly errno: number;
  /** Sequence number of the request. */
  readonly sequence: number;
  /** The kernel's own words, when it has any. */
  readonly text?: string;
}

/** Requests encoded one after the other into one buffer, to be sent as one datagram. */
export class NetlinkBatch {
  readonly #writer: ByteWriter;
  readonly #starts: number[] = [];

  constructor(capacityBytes = 4096) {
    this.#writer = new ByteWriter(capacityBytes);
  }

  /** Number of messages. */
  get count(): number {
    return this.#starts.length;
  }

  get byteLength(): number {
    return this.#writer.length;
  }

  /** Appends a request; `encode` writes the payload. NLM_F_REQUEST is added, the sequence number comes later. */
  add(type: number, flags: number, encode: (out: ByteWriter) => void): void {
    const out = this.#writer;
    const start = out.length;
    this.#starts.push(start);
    out
      .u32h(0)
      .u16h(type)
      .u16h(flags | NLM_F.request)
      .u32h(0)
      .u32h(0);
    encode(out);
    out.patchU32h(start, out.length - start);
    out.align(4);
  }

  /** Numbers the messages from `firstSequence` up, makes the last ask for an answer if wanted, and gives the bytes. */
  finish(firstSequence: number, acknowledgeLast: boolean): Uint8Array {
    this.#starts.forEach((start, index) => this.#writer.patchU32h(start + 8, (firstSequence + index) >>> 0));
    const bytes = this.#writer.finish();
    const last = this.#starts.at(-1);
    if (acknowledgeLast && last !== undefined) bytes[last + 6] = (bytes[last + 6] ?? 0) | NLM_F.ack;
    return bytes;
  }
}

/** Splits received bytes into messages. @throws DecodeError when a length does not fit. */
export function* decodeMessages(bytes: Uint8Array): Generator<NetlinkMessage> {
  const input = new ByteReader(bytes, "netlink");
  while (input.remaining >= NETLINK_HEADER_LENGTH) {
    const length = input.u32h();
    const type = input.u16h();
    const flags = input.u16h();
    const sequence = input.u32h();
    const portId = input.u32h();
    if (length < NETLINK_HEADER_LENGTH) input.fail(`message length ${length} is below the header's`);
    const payload = input.take(length - NETLINK_HEADER_LENGTH);
    yield { type, flags, sequence, portId, payload };
    input.skip(Math.min(-length & 3, input.remaining));
  }
}

/**
 * `struct nlmsgerr`: errno 4 (negative), the request's header 16 (and payload unless capped), attributes.
 * NLMSG_DONE carries the errno alone, then attributes.
 */
export function decodeAck(message: NetlinkMessage): NetlinkAck {
  const input = new ByteReader(message.payload, "netlink ack");
  // An NLMSG_DONE of an old kernel may be empty.
  if (message.type === NLMSG.done && input.remaining < 4) return { errno: 0, sequence: message.sequence };
  const errno = -input.i32h();
  if (message.type === NLMSG.error) {
    const requestLength = input.u32h();
    input.skip(NETLINK_HEADER_LENGTH - 4);
    if ((message.flags & NLM_F.capped) === 0 && (message.flags & NLM_F.ackAttributes) !== 0) {
      const request = Math.max(0, requestLength - NETLINK_HEADER_LENGTH);
      input.skip(request + (-request & 3));
    }
  }
  let text: string | undefined;
  if ((message.flags & NLM_F.ackAttributes) !== 0) {
    for (const attribute of decodeAttributes(input)) {
      if (attribute.type === NLMSGERR_ATTR_MSG) text = decodeText(attribute.value);
    }
  }
  return { errno, sequence: message.sequence, ...(text === undefined ? {} : { text }) };
}

const NLMSGERR_ATTR_MSG = 1;

export interface Attribute {
  /** Without the nested and byte-order bits. */
  readonly type: number;
  /** A view into the input. */
  readonly value: Uint8Array;
}

const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;

/** The attributes that fill the rest of `input`. @throws DecodeError when a length does not fit. */
export function* decodeAttributes(input: ByteReader): Generator<Attribute> {
  while (input.remaining >= 4) {
    const length = input.u16h();
    const type = input.u16h() & NLA_TYPE_MASK;
    if (length < 4) input.fail(`attribute length ${length} is below its header's`);
    const value = input.take(length - 4);
    input.skip(Math.min(-length & 3, input.remaining));
    yield { type, value };
  }
}

/** The attributes by type; of a repeated one the last stays. */
export function attributeMap(value: Uint8Array | ByteReader): ReadonlyMap<number, Uint8Array> {
  const input = value instanceof ByteReader ? value : new ByteReader(value, "netlink attributes");
  const map = new Map<number, Uint8Array>();
  for (const attribute of decodeAttributes(input)) map.set(attribute.type, attribute.value);
  return map;
}

export function writeAttribute(out: ByteWriter, type: number, value: Uint8Array): void {
  out
    .u16h(4 + value.length)
    .u16h(type)
    .write(value)
    .align(4);
}

export function writeU8Attribute(out: ByteWriter, type: number, value: number): void {
  out.u16h(5).u16h(type).u8(value).zeros(3);
}

export function writeU16Attribute(out: ByteWriter, type: number, value: number): void {
  out.u16h(6).u16h(type).u16h(value).zeros(2);
}

/** Port numbers travel in network order. */
export function writeU16beAttribute(out: ByteWriter, type: number, value: number): void {
  out.u16h(6).u16h(type).u16(value).zeros(2);
}

export function writeU32Attribute(out: ByteWriter, type: number, value: number): void {
  out.u16h(8).u16h(type).u32h(value);
}

export function writeU32beAttribute(out: ByteWriter, type: number, value: number): void {
  out.u16h(8).u16h(type).u32(value);
}

/** NUL-terminated. */
export function writeTextAttribute(out: ByteWriter, type: number, value: string): void {
  const start = out.length;
  out.u16h(0).u16h(type).text(value).u8(0);
  out.patchU16h(start, out.length - start);
  out.align(4);
}

export function writeNested(out: ByteWriter, type: number, encode: (out: ByteWriter) => void): void {
  const start = out.length;
  out.u16h(0).u16h(type | NLA_F_NESTED);
  encode(out);
  out.patchU16h(start, out.length - start);
  out.align(4);
}

/** Text up to the first NUL or the end. */
export function decodeText(value: Uint8Array): string {
  const end = value.indexOf(0);
  return fromUtf8(end < 0 ? value : value.subarray(0, end));
}

export function decodeU8(value: Uint8Array): number {
  return new ByteReader(value, "netlink u8").u8();
}
export function decodeU16(value: Uint8Array): number {
  return new ByteReader(value, "netlink u16").u16h();
}
export function decodeU16be(value: Uint8Array): number {
  return new ByteReader(value, "netlink be16").u16();
}
export function decodeU32(value: Uint8Array): number {
  return new ByteReader(value, "netlink u32").u32h();
}
export function decodeI32(value: Uint8Array): number {
  return new ByteReader(value, "netlink s32").i32h();
}
