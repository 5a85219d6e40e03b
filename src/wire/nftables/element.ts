/**
 * Elements of sets and maps, NFT_MSG_NEWSETELEM / DELSETELEM / GETSETELEM.
 *
 * A row of words (32-bit numbers) stands for one element: the words of its key, then those of its value. In
 * the kernel each field fills whole 4-byte registers (net/netfilter/nf_tables_api.c): a protocol is 1 byte, a
 * port 2 bytes big endian, an IPv4 address 4, an Ethernet address 6 in two registers, an IPv6 address 16 in
 * four, a hash or mark 4 and a conntrack zone 2 in host order; the rest of a register is zero. All elements of one set have the same
 * encoded length, so that a hundred thousand are one template copied and patched.
 */
import { DecodeError } from "../../base/error.ts";
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import {
  attributeMap,
  decodeAttributes,
  decodeText,
  type NetlinkBatch,
  NLM_F,
  writeTextAttribute,
} from "../netlink/message.ts";
import { NFPROTO_INET, NFT_MESSAGE, writeNfgenmsg } from "./message.ts";

export type ElementField = "protocol" | "port" | "ipv4" | "ipv6" | "ether" | "number" | "zone";

/** Registers, and so words, of a field. */
export const FIELD_WORDS = {
  protocol: 1,
  port: 1,
  ipv4: 1,
  ipv6: 4,
  ether: 2,
  number: 1,
  zone: 1,
} as const;

export interface ElementLayout {
  readonly key: readonly ElementField[];
  /** Empty for a set. `verdicts`: the value is one word, the index of the chain to go to. */
  readonly value: readonly ElementField[] | { readonly verdicts: readonly string[] };
  /** The key is two words, first and last address of a range (IPv4), and the set holds intervals. */
  readonly range?: boolean;
}

/** Bytes of a field that stands alone; in a concatenation it is padded to its registers. */
const FIELD_BYTES = { protocol: 1, port: 2, ipv4: 4, ipv6: 16, ether: 6, number: 4, zone: 2 } as const;

/** Words of one row: `key` of them identify it. */
export function rowWords(layout: ElementLayout): { readonly key: number; readonly value: number } {
  const key = layout.range ? 2 : wordsOf(layout.key);
  return { key, value: "verdicts" in layout.value ? 1 : wordsOf(layout.value) };
}

const NFTA_SET_ELEM_LIST_TABLE = 1;
const NFTA_SET_ELEM_LIST_SET = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS = 3;
const NFTA_LIST_ELEM = 1;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_SET_ELEM_DATA = 2;
const NFTA_SET_ELEM_FLAGS = 3;
const NFTA_DATA_VALUE = 1;
const NFTA_DATA_VERDICT = 2;
const NFTA_VERDICT_CODE = 1;
const NFTA_VERDICT_CHAIN = 2;
const NFT_GOTO = 0xfffffffc; // −4 as an unsigned number
const NFT_SET_ELEM_INTERVAL_END = 1;
const NESTED = 0x8000;
/** Attribute type without the nested and byte-order bits. */
const TYPE_MASK = 0x3fff;
/** The list of elements is one attribute, whose length has 16 bits. */
const LIST_BYTES_MAX = 60_000;

/**
 * Appends messages that add or delete the elements in `rows` (whole rows; for a deletion too). The last
 * message asks for an acknowledgement.
 */
export function addElements(
  batch: NetlinkBatch,
  operation: "add" | "delete",
  table: string,
  set: string,
  layout: ElementLayout,
  rows: Uint32Array,
): void {
  const words = rowWords(layout);
  const rowLength = words.key + words.value;
  const type = operation === "add" ? NFT_MESSAGE.newElement : NFT_MESSAGE.deleteElement;
  const writer = new ElementWriter(layout, operation === "add");
  for (let at = 0; at < rows.length;) {
    const start = at;
    writer.reset();
    while (at < rows.length && writer.length < LIST_BYTES_MAX) {
      writer.write(rows, at);
      at += rowLength;
    }
    if (at === start) return;
    const flags = (operation === "add" ? NLM_F.create : 0) | (at >= rows.length ? NLM_F.ack : 0);
    batch.add(type, flags, (out) => {
      writeNfgenmsg(out, NFPROTO_INET);
      writeTextAttribute(out, NFTA_SET_ELEM_LIST_TABLE, table);
      writeTextAttribute(out, NFTA_SET_ELEM_LIST_SET, set);
      out.u16h(4 + writer.length).u16h(NFTA_SET_ELEM_LIST_ELEMENTS | NESTED);
      out.write(writer.bytes());
    });
  }
}

/** Asks for all elements of a set. */
export function writeGetElements(out: ByteWriter, table: string, set: string): void {
  writeNfgenmsg(out, NFPROTO_INET);
  writeTextAttribute(out, NFTA_SET_ELEM_LIST_TABLE, table);
  writeTextAttribute(out, NFTA_SET_ELEM_LIST_SET, set);
}

/** Collects the rows of a dump, message by message. */
export class ElementReader {
  readonly #layout: ElementLayout;
  readonly #rowLength: number;
  readonly #keyLength: number;
  #rows: Uint32Array;
  #length = 0;
  /** Of an interval set: starts and ends as the kernel lists them, joined when all are there. */
  readonly #edges: { readonly address: number; readonly end: boolean }[] = [];

  constructor(layout: ElementLayout) {
    this.#layout = layout;
    const words = rowWords(layout);
    this.#keyLength = words.key;
    this.#rowLength = words.key + words.value;
    this.#rows = new Uint32Array(64 * this.#rowLength);
  }

  /** @throws DecodeError when the bytes are not elements of this layout. */
  push(payload: Uint8Array): void {
    const input = new ByteReader(payload, "nft elements");
    input.skip(4);
    for (const { type, value } of decodeAttributes(input)) {
      if (type !== NFTA_SET_ELEM_LIST_ELEMENTS) continue;
      const view = new DataView(value.buffer, value.byteOffset, value.byteLength);
      for (let at = 0; at + 4 <= value.length;) {
        const length = view.getUint16(at, true);
        if (length < 4 || at + length > value.length)
          throw new DecodeError("nft elements", at, `bad length ${length}`);
        this.#pushElement(view, at + 4, at + length);
        at += (length + 3) & ~3;
      }
    }
  }

  /** The rows so far, in the kernel's order (of an interval set: ascending). */
  rows(): Uint32Array {
    if (this.#layout.range) return joinEdges(this.#edges);
    return this.#rows.slice(0, this.#length);
  }

  #pushElement(view: DataView, start: number, end: number): void {
    // Ranges of the attributes' values; found by hand, because a hundred thousand maps would cost a second.
    let keyAt = -1;
    let keyEnd = -1;
    let dataAt = -1;
    let dataEnd = -1;
    let flags = 0;
    for (let at = start; at + 4 <= end;) {
      const length = view.getUint16(at, true);
      const type = view.getUint16(at + 2, true) & TYPE_MASK;
      if (length < 4 || at + length > end) throw new DecodeError("nft element", at, `bad length ${length}`);
      if (type === NFTA_SET_ELEM_KEY) {
        keyAt = at + 4;
        keyEnd = at + length;
      } else if (type === NFTA_SET_ELEM_DATA) {
        dataAt = at + 4;
        dataEnd = at + length;
      } else if (type === NFTA_SET_ELEM_FLAGS && length >= 8) {
        flags = view.getUint32(at + 4);
      }
      at += (length + 3) & ~3;
    }
    const key = dataValue(view, keyAt, keyEnd, NFTA_DATA_VALUE);
    if (this.#layout.range) {
      if (key.end - key.at < 4) throw new DecodeError("nft element", start, "has a short key");
      this.#edges.push({ address: view.getUint32(key.at), end: (flags & NFT_SET_ELEM_INTERVAL_END) !== 0 });
      return;
    }
    if (this.#length + this.#rowLength > this.#rows.length) {
      const rows = new Uint32Array(2 * this.#rows.length);
      rows.set(this.#rows);
      this.#rows = rows;
    }
    readFields(view, key.at, key.end, this.#layout.key, this.#rows, this.#length);
    const valueAt = this.#length + this.#keyLength;
    const { value } = this.#layout;
    if ("verdicts" in value) {
      const verdictBytes = dataValue(view, dataAt, dataEnd, NFTA_DATA_VERDICT);
      const bytes = new Uint8Array(
        view.buffer,
        view.byteOffset + verdictBytes.at,
        verdictBytes.end - verdictBytes.at,
      );
      this.#rows[valueAt] = verdictIndex(bytes, value.verdicts);
    } else if (value.length > 0) {
      const data = dataValue(view, dataAt, dataEnd, NFTA_DATA_VALUE);
      readFields(view, data.at, data.end, value, this.#rows, valueAt);
    }
    this.#length += this.#rowLength;
  }
}

/** What stands in a row for a verdict that is not one of ours. */
export const UNKNOWN_VERDICT = 0xffffffff;

/** Writes elements one after the other; grows, and is used again after `reset`. */
class ElementWriter {
  readonly #layout: ElementLayout;
  /** Templates of the elements (one per verdict; one otherwise) and where in them key and value go. */
  readonly #templates: readonly Uint8Array[];
  readonly #keyAt: number;
  readonly #valueAt: number;
  readonly #keyLength: number;
  readonly #buffer: Uint8Array;
  readonly #view: DataView;
  length = 0;

  constructor(layout: ElementLayout, withValue: boolean) {
    this.#layout = layout;
    this.#keyLength = rowWords(layout).key;
    const key = nest(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, new Uint8Array(bytesOf(layout.key))));
    // Behind the headers of the element, its key (or its data) and the bytes themselves: 4 each.
    this.#keyAt = 12;
    const hasValue = withValue && !("verdicts" in layout.value) && layout.value.length > 0;
    this.#valueAt = hasValue ? 4 + key.length + 8 : 0;
    const values: Uint8Array[] = [];
    if (layout.range) {
      values.push(new Uint8Array(0), attribute(NFTA_SET_ELEM_FLAGS, be32(NFT_SET_ELEM_INTERVAL_END)));
    } else if (!withValue) {
      values.push(new Uint8Array(0));
    } else if ("verdicts" in layout.value) {
      for (const chain of layout.value.verdicts) values.push(verdict(chain));
    } else if (layout.value.length > 0) {
      const zeros = new Uint8Array(bytesOf(layout.value));
      values.push(nest(NFTA_SET_ELEM_DATA, attribute(NFTA_DATA_VALUE, zeros)));
    } else {
      values.push(new Uint8Array(0));
    }
    this.#templates = values.map((value) => nest(NFTA_LIST_ELEM, join(key, value)));
    const longest = Math.max(...this.#templates.map((template) => template.length));
    this.#buffer = new Uint8Array(LIST_BYTES_MAX + 2 * longest);
    this.#view = new DataView(this.#buffer.buffer);
  }

  reset(): void {
    this.length = 0;
  }

  bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.length);
  }

  write(rows: Uint32Array, at: number): void {
    if (this.#layout.range) {
      this.#element(0, rows, at);
      // The end is the first address behind the range; a range up to the last address has none.
      const last = rows[at + 1] ?? 0;
      if (last === 0xffffffff) return;
      this.#element(1, Uint32Array.of(last + 1), 0);
      return;
    }
    const value = this.#layout.value;
    const single = this.#templates.length === 1;
    const start = this.#element(
      single || !("verdicts" in value) ? 0 : (rows[at + this.#keyLength] ?? 0),
      rows,
      at,
    );
    if (this.#valueAt > 0 && !("verdicts" in value))
      writeFields(this.#view, start + this.#valueAt, value, rows, at + this.#keyLength);
  }

  #element(index: number, rows: Uint32Array, at: number): number {
    const template = this.#templates[index];
    if (template === undefined) throw new Error(`invariant broken: no chain ${index} for a verdict`);
    const start = this.length;
    this.#buffer.set(template, start);
    writeFields(this.#view, start + this.#keyAt, this.#layout.key, rows, at);
    this.length += template.length;
    return start;
  }
}

function writeFields(
  view: DataView,
  offset: number,
  fields: readonly ElementField[],
  rows: Uint32Array,
  from: number,
): void {
  let at = offset;
  let word = from;
  for (const field of fields) {
    const first = rows[word] ?? 0;
    switch (field) {
      case "protocol":
        view.setUint8(at, first);
        break;
      case "port":
        view.setUint16(at, first);
        break;
      case "ipv4":
        view.setUint32(at, first);
        break;
      case "number":
        view.setUint32(at, first, true);
        break;
      case "zone":
        view.setUint16(at, first, true);
        break;
      case "ether":
        view.setUint32(at, first);
        view.setUint16(at + 4, rows[word + 1] ?? 0);
        break;
      case "ipv6":
        for (let i = 0; i < 4; i++) view.setUint32(at + 4 * i, rows[word + i] ?? 0);
        break;
    }
    at += 4 * FIELD_WORDS[field];
    word += FIELD_WORDS[field];
  }
}

function readFields(
  view: DataView,
  start: number,
  end: number,
  fields: readonly ElementField[],
  rows: Uint32Array,
  to: number,
): void {
  // A lone field is stored without the padding that fields of a concatenation have.
  if (end - start < bytesOf(fields))
    throw new DecodeError("nft element", start, "is shorter than its fields");
  let at = start;
  let word = to;
  for (const field of fields) {
    switch (field) {
      case "protocol":
        rows[word] = view.getUint8(at);
        break;
      case "port":
        rows[word] = view.getUint16(at);
        break;
      case "ipv4":
        rows[word] = view.getUint32(at);
        break;
      case "number":
        rows[word] = view.getUint32(at, true);
        break;
      case "zone":
        rows[word] = view.getUint16(at, true);
        break;
      case "ether":
        rows[word] = view.getUint32(at);
        rows[word + 1] = view.getUint16(at + 4);
        break;
      case "ipv6":
        for (let i = 0; i < 4; i++) rows[word + i] = view.getUint32(at + 4 * i);
        break;
    }
    at += 4 * FIELD_WORDS[field];
    word += FIELD_WORDS[field];
  }
}

/** Where the value of attribute `wanted` is inside a key or data attribute. */
function dataValue(
  view: DataView,
  start: number,
  end: number,
  wanted: number,
): { readonly at: number; readonly end: number } {
  for (let at = start; start >= 0 && at + 4 <= end;) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > end) throw new DecodeError("nft element", at, `bad length ${length}`);
    if ((view.getUint16(at + 2, true) & TYPE_MASK) === wanted) return { at: at + 4, end: at + length };
    at += (length + 3) & ~3;
  }
  throw new DecodeError("nft element", Math.max(0, start), "has no key or no value");
}

function wordsOf(fields: readonly ElementField[]): number {
  let words = 0;
  for (const field of fields) words += FIELD_WORDS[field];
  return words;
}

function bytesOf(fields: readonly ElementField[]): number {
  const [only] = fields;
  return fields.length === 1 && only !== undefined ? FIELD_BYTES[only] : 4 * wordsOf(fields);
}

function verdictIndex(verdictBytes: Uint8Array | undefined, chains: readonly string[]): number {
  const attributes = attributeMap(verdictBytes ?? new Uint8Array(0));
  const code = attributes.get(NFTA_VERDICT_CODE);
  const chain = attributes.get(NFTA_VERDICT_CHAIN);
  if (code === undefined || chain === undefined) return UNKNOWN_VERDICT;
  if (new ByteReader(code, "nft verdict").u32() !== NFT_GOTO) return UNKNOWN_VERDICT;
  const index = chains.indexOf(decodeText(chain));
  return index < 0 ? UNKNOWN_VERDICT : index;
}

function joinEdges(edges: readonly { readonly address: number; readonly end: boolean }[]): Uint32Array {
  const sorted = [...edges].sort((a, b) => a.address - b.address || Number(b.end) - Number(a.end));
  const rows: number[] = [];
  let first: number | undefined;
  for (const edge of sorted) {
    if (first !== undefined) rows.push(first, edge.address - 1);
    first = edge.end ? undefined : edge.address;
  }
  if (first !== undefined) rows.push(first, 0xffffffff);
  return Uint32Array.from(rows);
}

function attribute(type: number, value: Uint8Array): Uint8Array {
  const out = new Uint8Array((4 + value.length + 3) & ~3);
  const view = new DataView(out.buffer);
  view.setUint16(0, 4 + value.length, true);
  view.setUint16(2, type, true);
  out.set(value, 4);
  return out;
}

function nest(type: number, value: Uint8Array): Uint8Array {
  return attribute(type | NESTED, value);
}

function verdict(chain: string): Uint8Array {
  const name = new Uint8Array(chain.length + 1);
  for (let i = 0; i < chain.length; i++) name[i] = chain.charCodeAt(i);
  const body = join(attribute(NFTA_VERDICT_CODE, be32(NFT_GOTO)), attribute(NFTA_VERDICT_CHAIN, name));
  return nest(NFTA_SET_ELEM_DATA, nest(NFTA_DATA_VERDICT, body));
}

function be32(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  const out = new Uint8Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}
