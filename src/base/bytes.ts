import { DecodeError } from "./error.ts";

/** A byte order mark is text like any other: stripping it would make two names one. */
const utf8Decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const utf8Encoder = new TextEncoder();

/** Reads a byte range in order. Every read is bounds-checked and throws `DecodeError` past the end. */
export class ByteReader {
  readonly bytes: Uint8Array;
  readonly format: string;
  readonly #view: DataView;
  #offset = 0;

  /** `format` names the wire format in errors. */
  constructor(bytes: Uint8Array, format: string) {
    this.bytes = bytes;
    this.format = format;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get offset(): number {
    return this.#offset;
  }

  get remaining(): number {
    return this.bytes.length - this.#offset;
  }

  fail(detail: string): never {
    throw new DecodeError(this.format, this.#offset, detail);
  }

  #take(count: number): number {
    // A negative, fractional or NaN count comes out of arithmetic on lengths a peer sent.
    if (count >>> 0 !== count || count > this.remaining)
      this.fail(`needs ${count} bytes, has ${this.remaining}`);
    const at = this.#offset;
    this.#offset += count;
    return at;
  }

  skip(count: number): void {
    this.#take(count);
  }

  /** Next byte without consuming it. */
  peek(): number {
    if (this.remaining < 1) this.fail("needs 1 byte, has 0");
    return this.#view.getUint8(this.#offset);
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1));
  }
  /** Big endian (network order), as are all reads without a suffix. */
  u16(): number {
    return this.#view.getUint16(this.#take(2));
  }
  u24(): number {
    const at = this.#take(3);
    return (this.#view.getUint16(at) << 8) | this.#view.getUint8(at + 2);
  }
  u32(): number {
    return this.#view.getUint32(this.#take(4));
  }
  u64(): bigint {
    return this.#view.getBigUint64(this.#take(8));
  }
  i8(): number {
    return this.#view.getInt8(this.#take(1));
  }
  i16(): number {
    return this.#view.getInt16(this.#take(2));
  }
  i32(): number {
    return this.#view.getInt32(this.#take(4));
  }
  i64(): bigint {
    return this.#view.getBigInt64(this.#take(8));
  }
  f32(): number {
    return this.#view.getFloat32(this.#take(4));
  }
  f64(): number {
    return this.#view.getFloat64(this.#take(8));
  }
  /** Host endian reads, for netlink. All supported hosts are little endian. */
  u16h(): number {
    return this.#view.getUint16(this.#take(2), true);
  }
  u32h(): number {
    return this.#view.getUint32(this.#take(4), true);
  }
  i32h(): number {
    return this.#view.getInt32(this.#take(4), true);
  }
  u64h(): bigint {
    return this.#view.getBigUint64(this.#take(8), true);
  }

  /** A view into the input, not a copy: copy before keeping it past the packet. */
  take(count: number): Uint8Array {
    const at = this.#take(count);
    return this.bytes.subarray(at, at + count);
  }

  rest(): Uint8Array {
    return this.take(this.remaining);
  }

  /** UTF-8 text; invalid sequences become U+FFFD and never throw. */
  text(count: number): string {
    return utf8Decoder.decode(this.take(count));
  }
}

/** Appends bytes to a growing buffer. */
export class ByteWriter {
  #bytes: Uint8Array;
  #view: DataView;
  #length = 0;

  constructor(capacity = 256) {
    this.#bytes = new Uint8Array(capacity);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get length(): number {
    return this.#length;
  }

  /** Makes room and tells where. Call it before touching `#bytes` or `#view`: it may replace both. */
  #grow(count: number): number {
    const at = this.#length;
    const needed = at + count;
    if (needed > this.#bytes.length) {
      const bytes = new Uint8Array(Math.max(needed, this.#bytes.length * 2));
      bytes.set(this.#bytes.subarray(0, at));
      this.#bytes = bytes;
      this.#view = new DataView(bytes.buffer);
    }
    this.#length = needed;
    return at;
  }

  u8(value: number): this {
    const at = this.#grow(1);
    this.#bytes[at] = value;
    return this;
  }
  u16(value: number): this {
    const at = this.#grow(2);
    this.#view.setUint16(at, value);
    return this;
  }
  u24(value: number): this {
    const at = this.#grow(3);
    this.#view.setUint16(at, value >>> 8);
    this.#view.setUint8(at + 2, value & 0xff);
    return this;
  }
  u32(value: number): this {
    const at = this.#grow(4);
    this.#view.setUint32(at, value);
    return this;
  }
  u64(value: bigint): this {
    const at = this.#grow(8);
    this.#view.setBigUint64(at, value);
    return this;
  }
  i32(value: number): this {
    const at = this.#grow(4);
    this.#view.setInt32(at, value);
    return this;
  }
  f64(value: number): this {
    const at = this.#grow(8);
    this.#view.setFloat64(at, value);
    return this;
  }
  u16h(value: number): this {
    const at = this.#grow(2);
    this.#view.setUint16(at, value, true);
    return this;
  }
  u32h(value: number): this {
    const at = this.#grow(4);
    this.#view.setUint32(at, value, true);
    return this;
  }
  i32h(value: number): this {
    const at = this.#grow(4);
    this.#view.setInt32(at, value, true);
    return this;
  }
  u64h(value: bigint): this {
    const at = this.#grow(8);
    this.#view.setBigUint64(at, value, true);
    return this;
  }

  write(bytes: Uint8Array): this {
    const at = this.#grow(bytes.length);
    // Most writes are a key or an address: a loop beats the call behind `set` up to a few dozen bytes.
    const target = this.#bytes;
    const count = bytes.length;
    if (count > 24) target.set(bytes, at);
    else for (let i = 0; i < count; i++) target[at + i] = bytes[i] as number;
    return this;
  }

  /** Text the caller knows to be ASCII, without a detour over an encoder. */
  ascii(text: string): this {
    const at = this.#grow(text.length);
    const target = this.#bytes;
    for (let i = 0; i < text.length; i++) target[at + i] = text.charCodeAt(i);
    return this;
  }

  text(value: string): this {
    return this.write(utf8Encoder.encode(value));
  }

  zeros(count: number): this {
    const at = this.#grow(count);
    this.#bytes.fill(0, at, at + count);
    return this;
  }

  /** Zero padding up to a multiple of `alignment` bytes. */
  align(alignment: number): this {
    return this.zeros((alignment - (this.#length % alignment)) % alignment);
  }

  /** Overwrites bytes already written, for lengths known only later. */
  patchU8(at: number, value: number): void {
    this.#view.setUint8(at, value);
  }
  patchU16(at: number, value: number): void {
    this.#view.setUint16(at, value);
  }
  patchU16h(at: number, value: number): void {
    this.#view.setUint16(at, value, true);
  }
  patchU32(at: number, value: number): void {
    this.#view.setUint32(at, value);
  }
  patchU32h(at: number, value: number): void {
    this.#view.setUint32(at, value, true);
  }

  /** Forgets what was written and keeps the space. */
  reset(): void {
    this.#length = 0;
  }

  /** Forgets all but the first `length` bytes. */
  truncate(length: number): void {
    if (length < this.#length) this.#length = length;
  }

  /** What was written, without a copy: valid until the next write. */
  view(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** A copy of what was written. */
  finish(): Uint8Array {
    return this.#bytes.slice(0, this.#length);
  }
}

export function utf8(text: string): Uint8Array {
  return utf8Encoder.encode(text);
}

export function fromUtf8(bytes: Uint8Array): string {
  return utf8Decoder.decode(bytes);
}

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

export function toHex(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += HEX[byte];
  return text;
}

/** @throws DecodeError on an odd length or a character outside `[0-9a-fA-F]`. */
export function fromHex(text: string): Uint8Array {
  if (text.length % 2 !== 0 || /[^0-9a-fA-F]/.test(text))
    throw new DecodeError("hex", undefined, "is not pairs of hex digits");
  const bytes = new Uint8Array(text.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = Number.parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

export function concatBytes(parts: readonly Uint8Array[]): Uint8Array {
  let length = 0;
  for (const part of parts) length += part.length;
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** A copy with memory of its own. (`slice` of a Node Buffer would share it.) */
export function copyBytes(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes);
}

export function bytesEqual(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Orders byte strings lexicographically: negative, zero or positive. */
export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const difference = (a[i] ?? 0) - (b[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return a.length - b.length;
}
