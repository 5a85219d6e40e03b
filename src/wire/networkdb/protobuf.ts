/**
 * What all NetworkDB messages share: proto3 fields by hand over protobufjs' reader and writer, so that
 * nothing is generated or evaluated at run time. Zero values are not written, unknown fields are skipped.
 */
import protobuf from "protobufjs/minimal.js";
import { copyBytes } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";

export type ProtoReader = protobuf.Reader;
export type ProtoWriter = protobuf.Writer;

/**
 * Largest Lamport time taken from the wire, where it is a uint64. Counting honestly nobody gets near it; it keeps
 * every time an exact JavaScript number and leaves room to count on from the largest.
 */
export const MAX_LAMPORT_TIME = 2 ** 52;

/** Tag of a field: number and wire type (0 varint, 2 length-delimited). */
export function tag(field: number, wireType: 0 | 2): number {
  return (field << 3) | wireType;
}

/**
 * Reads all fields of one message. `onField` reads the value of a tag it knows and returns true; anything else is skipped.
 * @throws DecodeError of `format` on anything that is not protobuf, and on what `onField` rejects.
 */
export function readFields(
  format: string,
  bytes: Uint8Array,
  onField: (fieldTag: number, reader: ProtoReader) => boolean,
): void {
  const reader = protoReader(bytes);
  try {
    while (reader.pos < reader.len) {
      const fieldTag = reader.tag();
      if (!onField(fieldTag, reader)) skipField(reader, fieldTag);
    }
  } catch (error) {
    throw asDecodeError(format, reader, error);
  }
}

/** For messages that come by the thousand, whose decoders loop over `reader.tag()` themselves. */
export function protoReader(bytes: Uint8Array): ProtoReader {
  return new protobuf.Reader(bytes);
}

/** Skips the value of an unknown field. */
export function skipField(reader: ProtoReader, fieldTag: number): void {
  reader.skipType(fieldTag & 7, 0, fieldTag >>> 3);
}

/** protobufjs throws RangeError past the end and Error or TypeError on bad varints and text. */
export function asDecodeError(format: string, reader: ProtoReader, error: unknown): DecodeError {
  if (error instanceof DecodeError) return error;
  return new DecodeError(format, reader.pos, error instanceof Error ? error.message : "not protobuf");
}

/** A uint64 Lamport time. protobufjs would allocate a Long; times fit a number. */
export function readTime(reader: ProtoReader): number {
  let value = 0;
  let scale = 1;
  for (let i = 0; i < 10; i++) {
    if (reader.pos >= reader.len) throw new RangeError("varint runs past the end");
    const byte = reader.buf[reader.pos++] ?? 0;
    value += (byte & 127) * scale;
    if (byte < 128) {
      if (value > MAX_LAMPORT_TIME) throw new RangeError("Lamport time above 2^52");
      return value;
    }
    scale *= 128;
  }
  throw new RangeError("varint longer than 10 bytes");
}

/**
 * Reads text that repeats from message to message (owner, network, table): a text seen before is neither decoded nor
 * parsed again, and is the same string object, whose hash is known. A memo of fixed size, nothing more.
 */
export class RepeatedText<T extends string> {
  readonly #parse: (text: string) => T;
  readonly #seen: ({ readonly bytes: Uint8Array; readonly value: T } | undefined)[] = [];

  /** `parse` throws DecodeError on what is not a `T`. */
  constructor(parse: (text: string) => T) {
    this.#parse = parse;
    for (let i = 0; i < REPEATED_SLOTS; i++) this.#seen.push(undefined);
  }

  read(reader: ProtoReader): T {
    const { buf, pos: before } = reader;
    const length = reader.uint32();
    const start = reader.pos;
    const slot = ((buf[start] ?? 0) * 31 + (buf[start + length - 1] ?? 0) * 7 + length) % REPEATED_SLOTS;
    const seen = this.#seen[slot];
    if (seen !== undefined && start + length <= reader.len && startsWith(buf, start, seen.bytes, length)) {
      reader.pos = start + length;
      return seen.value;
    }
    reader.pos = before;
    const value = this.#parse(reader.stringVerify());
    this.#seen[slot] = { bytes: copyBytes(buf.subarray(start, start + length)), value };
    return value;
  }
}

const REPEATED_SLOTS = 64;

function startsWith(buffer: Uint8Array, at: number, bytes: Uint8Array, length: number): boolean {
  if (bytes.length !== length) return false;
  for (let i = 0; i < length; i++) if (buffer[at + i] !== bytes[i]) return false;
  return true;
}

/** The bytes of one message written by `write`. */
export function encodeFields(write: (writer: ProtoWriter) => void): Uint8Array {
  const writer = new protobuf.Writer();
  write(writer);
  return writer.finish();
}

export function writeVarint(writer: ProtoWriter, field: number, value: number): void {
  if (value === 0) return;
  writer.uint32(tag(field, 0));
  if (value < 0x1_0000_0000) writer.uint32(value);
  else writer.uint64(value);
}

export function writeBool(writer: ProtoWriter, field: number, value: boolean): void {
  if (value) writer.uint32(tag(field, 0)).bool(true);
}

export function writeString(writer: ProtoWriter, field: number, value: string): void {
  if (value !== "") writer.uint32(tag(field, 2)).string(value);
}

export function writeBytes(writer: ProtoWriter, field: number, value: Uint8Array): void {
  if (value.length > 0) writer.uint32(tag(field, 2)).bytes(value);
}

/** Bytes a varint takes. */
export function varintLength(value: number): number {
  let length = 1;
  for (let rest = value; rest >= 128; rest = Math.floor(rest / 128)) length++;
  return length;
}
