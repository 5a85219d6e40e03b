/**
 * The msgpack dialect of memberlist and serf (hashicorp/go-msgpack 0.5, "old spec" writer).
 *
 *   raw (text and bytes alike)  a0|len   da len16   db len32   never d9, never the bin family
 *   unsigned                    00…7f    cc u8   cd u16   ce u32   cf u64, always the shortest
 *   struct                      map with ASCII keys in ascending byte order
 *   nil bytes                   c0 (an empty non-nil slice is a0; both read as an empty Uint8Array)
 *
 * The reader is as lenient as Go's and takes any integer width and sign that fits, str8 and bin, a struct as an
 * array in declaration order, nil for anything, unknown keys (skipped).
 */
import { assert } from "../base/assert.ts";
import { ByteWriter, fromUtf8, utf8 } from "../base/bytes.ts";
import { DecodeError } from "../base/error.ts";

/** Shared by every empty byte field: nothing in it to change. */
export const NO_BYTES: Uint8Array = new Uint8Array(0);

/** How an empty byte field is written: `c0` as Go writes nil, or `a0` as it writes an empty slice. */
export type EmptyBytes = "nil" | "raw";

/** Map header and key of a struct field, encoded once: `fieldKey("Node")` is `a4 4e6f6465`. */
export function fieldKey(name: string): Uint8Array {
  assert(name.length <= 31, "a field name fits the short form");
  return Uint8Array.from([0xa0 | name.length, ...utf8(name)]);
}

export function writeMapHeader(out: ByteWriter, pairs: number): void {
  if (pairs <= 15) out.u8(0x80 | pairs);
  else if (pairs <= 0xffff) out.u8(0xde).u16(pairs);
  else out.u8(0xdf).u32(pairs);
}

export function writeArrayHeader(out: ByteWriter, items: number): void {
  if (items <= 15) out.u8(0x90 | items);
  else if (items <= 0xffff) out.u8(0xdc).u16(items);
  else out.u8(0xdd).u32(items);
}

/** `value`: an integer in 0 … 2⁵³ − 1. */
export function writeUnsigned(out: ByteWriter, value: number): void {
  if (value <= 0x7f) {
    assert(value >= 0, "an unsigned field is not negative");
    out.u8(value);
  } else if (value <= 0xff) out.u8(0xcc).u8(value);
  else if (value <= 0xffff) out.u8(0xcd).u16(value);
  else if (value <= 0xffffffff) out.u8(0xce).u32(value);
  else {
    assert(Number.isSafeInteger(value), "an unsigned field is a safe integer");
    out.u8(0xcf).u64(BigInt(value));
  }
}

export function writeBool(out: ByteWriter, value: boolean): void {
  out.u8(value ? 0xc3 : 0xc2);
}

export function writeNil(out: ByteWriter): void {
  out.u8(0xc0);
}

export function writeDouble(out: ByteWriter, value: number): void {
  out.u8(0xcb).f64(value);
}

export function writeText(out: ByteWriter, text: string): void {
  const length = text.length;
  for (let i = 0; i < length; i++) {
    if (text.charCodeAt(i) > 0x7f) {
      const bytes = utf8(text);
      writeRawHeader(out, bytes.length);
      out.write(bytes);
      return;
    }
  }
  writeRawHeader(out, length);
  out.ascii(text);
}

export function writeBytes(out: ByteWriter, bytes: Uint8Array, empty: EmptyBytes = "nil"): void {
  if (bytes.length === 0 && empty === "nil") out.u8(0xc0);
  else {
    writeRawHeader(out, bytes.length);
    out.write(bytes);
  }
}

function writeRawHeader(out: ByteWriter, length: number): void {
  if (length <= 31) out.u8(0xa0 | length);
  else if (length <= 0xffff) out.u8(0xda).u16(length);
  else out.u8(0xdb).u32(length);
}

/** Names of a struct's fields in declaration order, ready to be compared with bytes on the wire. */
export type FieldTable = readonly Uint8Array[];

export function fieldTable(...names: readonly string[]): FieldTable {
  return names.map(utf8);
}

/** What `struct()` found: number of fields, shifted by one, and whether they come without keys. */
export type StructShape = number;

export function fieldCount(shape: StructShape): number {
  return Math.floor(shape / 2);
}

/**
 * Reads values in order and throws `DecodeError` on anything that does not fit the asked type.
 * A struct is read field by field, without an object or a string per key:
 *
 *     const shape = input.struct();
 *     for (let i = 0; i < fieldCount(shape); i++)
 *       switch (input.field(shape, i, PING)) { case 0: seqNo = input.u32(); break; …; default: input.skip(); }
 */
export class MsgpackReader {
  readonly #bytes: Uint8Array;
  readonly #format: string;
  #at: number;

  /** `format` names the message in errors. Reads from byte `start` on. */
  constructor(bytes: Uint8Array, format: string, start = 0) {
    this.#bytes = bytes;
    this.#format = format;
    this.#at = start;
  }

  get offset(): number {
    return this.#at;
  }

  fail(detail: string): never {
    throw new DecodeError(this.#format, this.#at, detail);
  }

  /** A struct in either form; nil has no fields. */
  struct(): StructShape {
    const head = this.#u8();
    if ((head & 0xf0) === 0x80) return (head & 0x0f) * 2;
    if ((head & 0xf0) === 0x90) return (head & 0x0f) * 2 + 1;
    switch (head) {
      case 0xc0:
        return 0;
      case 0xde:
        return this.#u16() * 2;
      case 0xdf:
        return this.#u32() * 2;
      case 0xdc:
        return this.#u16() * 2 + 1;
      case 0xdd:
        return this.#u32() * 2 + 1;
      default:
        return this.fail("body is neither a map nor an array");
    }
  }

  /** Declaration index of the struct's `index`-th field, or −1 for one to `skip()`. */
  field(shape: StructShape, index: number, table: FieldTable): number {
    if (shape % 2 === 1) return index < table.length ? index : -1;
    const bytes = this.#bytes;
    const length = this.#rawLength("a key is not a string");
    const start = this.#take(length);
    for (let field = 0; field < table.length; field++) {
      const name = table[field] as Uint8Array;
      if (name.length !== length || name[0] !== bytes[start]) continue;
      let i = 1;
      while (i < length && name[i] === bytes[start + i]) i++;
      if (i >= length) return field;
    }
    return -1;
  }

  /** Entries of a map with keys of its own; nil has none. Each entry takes at least two bytes. */
  mapHeader(): number {
    const shape = this.struct();
    if (shape % 2 === 1) this.fail("not a map");
    return this.#plausible(shape / 2, 2);
  }

  /** Items of an array; nil has none. Each item takes at least one byte. */
  arrayHeader(): number {
    if (this.#peek() === 0xc0) {
      this.#at++;
      return 0;
    }
    const shape = this.struct();
    if (shape % 2 === 0) this.fail("not an array");
    return this.#plausible((shape - 1) / 2, 1);
  }

  /** Whether the next value is nil; consumes it if so. */
  nil(): boolean {
    if (this.#peek() !== 0xc0) return false;
    this.#at++;
    return true;
  }

  u8(): number {
    return this.#unsigned(0xff);
  }
  u16(): number {
    return this.#unsigned(0xffff);
  }
  u32(): number {
    return this.#unsigned(0xffffffff);
  }
  /** 0 … 2⁵³ − 1; larger ones are refused rather than rounded. */
  u53(): number {
    return this.#unsigned(Number.MAX_SAFE_INTEGER);
  }
  /** −2⁵³ + 1 … 2⁵³ − 1. */
  int(): number {
    return this.#integer();
  }

  bool(): boolean {
    switch (this.#u8()) {
      case 0xc3:
      case 0x01:
        return true;
      case 0xc2:
      case 0x00:
      case 0xc0:
        return false;
      default:
        return this.fail("not a boolean");
    }
  }

  double(): number {
    const head = this.#peek();
    if (head !== 0xcb && head !== 0xca) return this.#integer();
    this.#at++;
    const width = head === 0xcb ? 8 : 4;
    const at = this.#take(width);
    const view = new DataView(this.#bytes.buffer, this.#bytes.byteOffset + at, width);
    return width === 8 ? view.getFloat64(0) : view.getFloat32(0);
  }

  /** UTF-8, invalid sequences as U+FFFD; nil is the empty text. */
  text(): string {
    const length = this.#rawLength("not a string or byte value");
    return textOf(this.#bytes, this.#take(length), length);
  }

  /**
   * Not a view, so that what a member record keeps does not hold a whole packet in memory, but possibly the
   * array an earlier equal field gave: never write into it. Nil is empty.
   */
  bytes(): Uint8Array {
    const head = this.#peek();
    if ((head & 0xf0) === 0x90 || head === 0xdc || head === 0xdd) return this.#bytesFromArray();
    const length = this.#byteLength();
    if (length === 0) return NO_BYTES;
    return bytesOf(this.#bytes, this.#take(length), length);
  }

  /** Like `bytes()` but a view into the input. */
  bytesView(): Uint8Array {
    const head = this.#peek();
    if ((head & 0xf0) === 0x90 || head === 0xdc || head === 0xdd) return this.#bytesFromArray();
    const length = this.#byteLength();
    const at = this.#take(length);
    return this.#bytes.subarray(at, at + length);
  }

  /** The next bytes as they are, no value; a view into the input. */
  raw(length: number): Uint8Array {
    const at = this.#take(length);
    return this.#bytes.subarray(at, at + length);
  }

  /** Passes over one value of any kind, however deep. */
  skip(): void {
    const scan = new ValueScanner(this.#format, this.#at, this.#bytes.length);
    scan.expect(1);
    if (!scan.advance(this.#bytes, this.#bytes.length)) {
      this.#at = this.#bytes.length;
      this.fail("input ends inside a value");
    }
    this.#at = scan.offset;
  }

  #bytesFromArray(): Uint8Array {
    const length = this.arrayHeader();
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.u8();
    return bytes;
  }

  #byteLength(): number {
    const head = this.#peek();
    if (head < 0xc4 || head > 0xc6) return this.#rawLength("not a string or byte value");
    this.#at++;
    return head === 0xc4 ? this.#u8() : head === 0xc5 ? this.#u16() : this.#u32();
  }

  #rawLength(what: string): number {
    const head = this.#u8();
    if ((head & 0xe0) === 0xa0) return head & 0x1f;
    switch (head) {
      case 0xc0:
        return 0;
      case 0xd9:
        return this.#u8();
      case 0xda:
        return this.#u16();
      case 0xdb:
        return this.#u32();
      default:
        this.#at--;
        return this.fail(what);
    }
  }

  #unsigned(max: number): number {
    // Nearly every integer on the wire is short and unsigned.
    const head = this.#peek();
    if (head <= 0x7f) {
      this.#at++;
      return head;
    }
    const value = this.#integer();
    if (value < 0) this.fail("negative number for an unsigned field");
    if (value > max) this.fail("integer too large for the field");
    return value;
  }

  #integer(): number {
    const head = this.#u8();
    if (head <= 0x7f) return head;
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xc0:
        return 0;
      case 0xcc:
        return this.#u8();
      case 0xcd:
        return this.#u16();
      case 0xce:
        return this.#u32();
      case 0xcf:
        return this.#safe(this.#u32(), this.#u32());
      case 0xd0:
        return (this.#u8() << 24) >> 24;
      case 0xd1:
        return (this.#u16() << 16) >> 16;
      case 0xd2:
        return this.#u32() | 0;
      case 0xd3:
        return this.#safe(this.#u32() | 0, this.#u32());
      default:
        this.#at--;
        return this.fail("not an integer");
    }
  }

  #safe(high: number, low: number): number {
    const value = high * 0x1_0000_0000 + low;
    if (!Number.isSafeInteger(value)) this.fail("integer too large for the field");
    return value;
  }

  /** A count that the rest of the input can hold, so that nothing is allocated for a lie. */
  #plausible(count: number, bytesEach: number): number {
    if (count * bytesEach > this.#bytes.length - this.#at) this.fail("input ends early");
    return count;
  }

  #take(count: number): number {
    const at = this.#at;
    if (count > this.#bytes.length - at) this.fail("input ends inside a value");
    this.#at = at + count;
    return at;
  }

  #peek(): number {
    const byte = this.#bytes[this.#at];
    return byte === undefined ? this.fail("input ends early") : byte;
  }
  #u8(): number {
    const byte = this.#bytes[this.#at];
    if (byte === undefined) return this.fail("input ends early");
    this.#at++;
    return byte;
  }
  #u16(): number {
    const at = this.#take(2);
    return ((this.#bytes[at] as number) << 8) | (this.#bytes[at + 1] as number);
  }
  #u32(): number {
    const at = this.#take(4);
    const bytes = this.#bytes;
    return (
      (((bytes[at] as number) << 24) |
        ((bytes[at + 1] as number) << 16) |
        ((bytes[at + 2] as number) << 8) |
        (bytes[at + 3] as number)) >>>
      0
    );
  }
}

/**
 * Finds the end of values that arrive in pieces. Remembers where it was, so the work over all pieces is
 * linear; needs no stack, because for finding the end only the number of values still to come counts.
 */
export class ValueScanner {
  readonly #format: string;
  /** No value may reach beyond this byte: bounds what a caller buffers. */
  readonly #limit: number;
  #at: number;
  #pending = 0;

  constructor(format: string, start: number, limit: number) {
    this.#format = format;
    this.#at = start;
    this.#limit = limit;
  }

  /** First byte after what was scanned; may lie beyond what has arrived. */
  get offset(): number {
    return this.#at;
  }

  /** `values` more are to come. */
  expect(values: number): void {
    this.#pending += values;
    this.#check();
  }

  /** `count` raw bytes are to come before the next value. */
  expectBytes(count: number): void {
    this.#at += count;
    this.#check();
  }

  /** Whether all that was expected lies within the first `length` bytes. @throws DecodeError past the limit. */
  advance(bytes: Uint8Array, length: number): boolean {
    while (this.#pending > 0) {
      const at = this.#at;
      if (at >= length) return false;
      const head = bytes[at] as number;
      const header = headerLength(head);
      if (header === 0) throw new DecodeError(this.#format, at, "reserved byte c1");
      if (at + header > length) return false;
      let payload = 0;
      let children = 0;
      if (head >= 0x80 && head <= 0x8f) children = 2 * (head & 0x0f);
      else if (head >= 0x90 && head <= 0x9f) children = head & 0x0f;
      else if (head >= 0xa0 && head <= 0xbf) payload = head & 0x1f;
      else if (head >= 0xc0 && head <= 0xdf) {
        switch (head) {
          case 0xc4:
          case 0xd9:
          case 0xc7:
            payload = bigEndian(bytes, at + 1, 1);
            break;
          case 0xc5:
          case 0xda:
          case 0xc8:
            payload = bigEndian(bytes, at + 1, 2);
            break;
          case 0xc6:
          case 0xdb:
          case 0xc9:
            payload = bigEndian(bytes, at + 1, 4);
            break;
          case 0xdc:
            children = bigEndian(bytes, at + 1, 2);
            break;
          case 0xdd:
            children = bigEndian(bytes, at + 1, 4);
            break;
          case 0xde:
            children = 2 * bigEndian(bytes, at + 1, 2);
            break;
          case 0xdf:
            children = 2 * bigEndian(bytes, at + 1, 4);
            break;
          default:
            break; // fixed width: counted as header
        }
      }
      this.#at = at + header + payload;
      this.#pending += children - 1;
      this.#check();
    }
    return this.#at <= length;
  }

  /** Every value still to come takes a byte at least. */
  #check(): void {
    if (this.#at + this.#pending > this.#limit)
      throw new DecodeError(this.#format, this.#at, "input ends inside a value or exceeds its limit");
  }
}

/** Bytes before the payload or the children; for fixed-width values all of them; 0 for the reserved c1. */
function headerLength(head: number): number {
  if (head < 0xc0 || head > 0xdf) return 1;
  return HEADER_LENGTH[head - 0xc0] as number;
}

// prettier-ignore
const HEADER_LENGTH = [
  1, 0, 1, 1, 2, 3, 5, 3, 4, 6, 5, 9, 2, 3, 5, 9, // c0 nil … cf u64; ext (c7–c9) counts its type byte
  2, 3, 5, 9, 3, 4, 6, 10, 18, 2, 3, 5, 3, 5, 3, 5, // d0 i8 … df map32; fixext (d4–d8) counts its data
];

function bigEndian(bytes: Uint8Array, at: number, width: number): number {
  let value = 0;
  for (let i = 0; i < width; i++) value = value * 256 + (bytes[at + i] as number);
  return value;
}

/**
 * Short ASCII texts seen before, by hash. Member names come again with every packet: finding the same
 * string spares the allocation, and its hash for the next Map lookup is known already. One slot each, the
 * newest wins, so the memory is bounded by 16,384 × 32 characters whatever peers send.
 */
const KNOWN_TEXTS: string[] = new Array<string>(16_384).fill("");
const KNOWN_TEXT_MAX = 32; // characters

function textOf(bytes: Uint8Array, at: number, length: number): string {
  if (length === 0) return "";
  const end = at + length;
  if (length > KNOWN_TEXT_MAX) return fromUtf8(bytes.subarray(at, end));
  let hash = 0x811c9dc5;
  for (let i = at; i < end; i++) {
    const byte = bytes[i] as number;
    if (byte > 0x7f) return fromUtf8(bytes.subarray(at, end));
    hash = Math.imul(hash ^ byte, 0x01000193);
  }
  const slot = (hash ^ (hash >>> 16)) & 16_383;
  const known = KNOWN_TEXTS[slot] as string;
  if (known.length === length) {
    let i = 0;
    while (i < length && known.charCodeAt(i) === bytes[at + i]) i++;
    if (i === length) return known;
  }
  const text = fromUtf8(bytes.subarray(at, end));
  KNOWN_TEXTS[slot] = text;
  return text;
}

/**
 * Addresses, metas and versions seen before, as with texts. They too come again with every mention of a
 * member; a simulation of thousands of nodes fits in memory because all of them share one array per value.
 * Bounded by 16,384 × 512 bytes.
 */
const KNOWN_BYTES: Uint8Array[] = new Array<Uint8Array>(16_384).fill(NO_BYTES);
const KNOWN_BYTES_MAX = 512; // bytes, the longest meta

function bytesOf(bytes: Uint8Array, at: number, length: number): Uint8Array {
  const end = at + length;
  if (length > KNOWN_BYTES_MAX) return bytes.slice(at, end);
  let hash = 0x811c9dc5;
  for (let i = at; i < end; i++) hash = Math.imul(hash ^ (bytes[i] as number), 0x01000193);
  const slot = (hash ^ (hash >>> 16)) & 16_383;
  const known = KNOWN_BYTES[slot] as Uint8Array;
  if (known.length === length) {
    let i = 0;
    while (i < length && known[i] === bytes[at + i]) i++;
    if (i === length) return known;
  }
  const copy = bytes.slice(at, end);
  KNOWN_BYTES[slot] = copy;
  return copy;
}
