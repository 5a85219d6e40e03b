/**
 * DNS messages, RFC 1035 §4: header 12 bytes (id 16, flags 16, four counts of 16), then questions
 * (name, type 16, class 16) and records (name, type 16, class 16, TTL 32, length 16, data).
 *
 * Only what a name server inside a sandbox needs: the question of a query, answers with a handful of types, and where
 * the TTLs of somebody else's answer stand. Written for speed: a client waits for every answer.
 */
import { ByteReader, ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";

export const DNS_TYPE = {
  a: 1,
  soa: 6,
  ptr: 12,
  mx: 15,
  txt: 16,
  aaaa: 28,
  srv: 33,
  opt: 41,
  any: 255,
} as const;
export const DNS_CLASS = { internet: 1, any: 255 } as const;
export const DNS_RCODE = {
  noError: 0,
  formErr: 1,
  servFail: 2,
  nxDomain: 3,
  notImp: 4,
  refused: 5,
  /** Above 15: its upper bits are in the OPT record (RFC 6891 §6.1.3). */
  badVers: 16,
} as const;
export type DnsRcode = (typeof DNS_RCODE)[keyof typeof DNS_RCODE];

export const DNS_HEADER_LENGTH = 12; // bytes
/** Of the flags word. */
const FLAG = { response: 0x8000, opcode: 0x7800, truncated: 0x0200, recursionDesired: 0x0100 } as const;
const RECURSION_AVAILABLE = 0x0080;

const FORMAT = "DNS";
const MAX_NAME_LENGTH = 255; // bytes, RFC 1035 §2.3.4
const MAX_LABEL_LENGTH = 63;
/** A compression pointer to the question, which always begins where the header ends. */
const QUESTION_NAME = 0xc000 | DNS_HEADER_LENGTH;

export interface DnsQuery {
  readonly id: number;
  readonly opcode: number;
  readonly recursionDesired: boolean;
  /** In lower case, without trailing dot; empty for the root. A dot or backslash within a label is escaped by a backslash. */
  readonly name: string;
  readonly type: number;
  readonly class: number;
  /** The first question as it came, upper and lower case included: an answer repeats it. */
  readonly question: Uint8Array;
  /** What the client said about itself, RFC 6891 §6.1.2. */
  readonly edns: Edns | undefined;
}

export interface Edns {
  /** UDP payload the client takes, in bytes. */
  readonly payloadBytes: number;
  readonly version: number;
  /** "DNSSEC OK". */
  readonly dnssecOk: boolean;
  /** Whether options came with it, such as a cookie: an answer is then for this client alone. */
  readonly options: boolean;
}

/** A question to a resolver. @throws DecodeError when `name` is no host name */
export function encodeDnsQuery(id: number, name: string, type: number): Uint8Array {
  const out = new ByteWriter(64);
  out.u16(id).u16(FLAG.recursionDesired).u16(1).u16(0).u16(0).u16(0);
  return out.write(encodeDnsName(name)).u16(type).u16(DNS_CLASS.internet).finish();
}

/** Data of the records of `type`, A or AAAA, in the answer to question `id`: 4 or 16 bytes each. @throws DecodeError */
export function addressesOf(answer: Uint8Array, id: number, type: number): Uint8Array[] {
  const input = new ByteReader(answer, FORMAT);
  if (input.u16() !== id) input.fail("answers another question");
  if ((input.u16() & FLAG.response) === 0) input.fail("no answer");
  const questions = input.u16();
  const records = input.u16();
  input.skip(4);
  for (let i = 0; i < questions; i++) {
    skipName(input);
    input.skip(4);
  }
  const wanted = type === DNS_TYPE.a ? 4 : 16;
  const found: Uint8Array[] = [];
  for (let i = 0; i < records; i++) {
    skipName(input);
    const recordType = input.u16();
    input.skip(6);
    const data = input.take(input.u16());
    if (recordType === type && data.length === wanted) found.push(data);
  }
  return found;
}

/** Whether the message is an answer: a server must not react to one, or two of them would never stop. */
export function isDnsResponse(bytes: Uint8Array): boolean {
  return ((bytes[2] ?? 0) & 0x80) !== 0;
}

/** Further questions are skipped, as every server does. @throws DecodeError when the first is missing or anything is cut short. */
export function decodeDnsQuery(bytes: Uint8Array): DnsQuery {
  const input = new ByteReader(bytes, FORMAT);
  const id = input.u16();
  const flags = input.u16();
  const questions = input.u16();
  const records = input.u16() + input.u16();
  const additionals = input.u16();
  if (questions === 0) input.fail("no question");
  const name = readName(input);
  const type = input.u16();
  const queryClass = input.u16();
  const question = bytes.subarray(DNS_HEADER_LENGTH, input.offset);
  for (let i = 1; i < questions; i++) {
    skipName(input);
    input.skip(4);
  }
  for (let i = 0; i < records; i++) skipRecord(input);
  let edns: Edns | undefined;
  for (let i = 0; i < additionals; i++) {
    skipName(input);
    const recordType = input.u16();
    const recordClass = input.u16();
    const ttl = input.u32();
    const length = input.u16();
    input.skip(length);
    if (recordType === DNS_TYPE.opt) {
      edns = {
        payloadBytes: recordClass,
        version: (ttl >>> 16) & 0xff,
        dnssecOk: (ttl & 0x8000) !== 0,
        options: length > 0,
      };
    }
  }
  return {
    id,
    opcode: (flags & FLAG.opcode) >> 11,
    recursionDesired: (flags & FLAG.recursionDesired) !== 0,
    name,
    type,
    class: queryClass,
    question,
    edns,
  };
}

/** One record of an answer. */
export interface DnsRecord {
  /** Absent: the name that was asked for. */
  readonly name?: string;
  readonly type: number;
  /** Seconds, below 2³¹. */
  readonly ttl: number;
  readonly data: Uint8Array;
}

export interface DnsAnswer {
  readonly rcode: DnsRcode;
  readonly answers: readonly DnsRecord[];
  readonly authorities?: readonly DnsRecord[];
  readonly additionals?: readonly DnsRecord[];
}

/**
 * An answer of at most `limitBytes`. Records that do not fit are left out whole, additional ones first;
 * `markTruncated` says whether the client is told by the TC bit, so that it asks again over TCP.
 */
export function encodeDnsAnswer(
  query: Pick<DnsQuery, "id" | "opcode" | "recursionDesired" | "question" | "edns">,
  answer: DnsAnswer,
  limitBytes: number,
  markTruncated: boolean,
): Uint8Array {
  const out = answerWriter;
  out.reset();
  const flags =
    FLAG.response |
    (query.opcode << 11) |
    (query.recursionDesired ? FLAG.recursionDesired : 0) |
    RECURSION_AVAILABLE |
    (answer.rcode & 0x0f);
  out
    .u16(query.id)
    .u16(flags)
    .u16(query.question.length === 0 ? 0 : 1)
    .u16(0)
    .u16(0)
    .u16(0);
  out.write(query.question);
  const limit = limitBytes - (query.edns === undefined ? 0 : OPT_LENGTH);
  const answers = writeRecords(out, answer.answers, limit);
  const authorities = writeRecords(out, answer.authorities ?? [], limit);
  // What is left out of the additional section can be asked for: that is no truncation (RFC 2181 §9).
  let additionals = writeRecords(out, answer.additionals ?? [], limit);
  if (answers < answer.answers.length && markTruncated) out.patchU16(2, flags | FLAG.truncated);
  if (query.edns !== undefined) {
    writeOpt(out, answer.rcode);
    additionals++;
  }
  out.patchU16(6, answers);
  out.patchU16(8, authorities);
  out.patchU16(10, additionals);
  return out.finish();
}

/** Reused: an answer is written in one go and leaves as a copy. */
const answerWriter = new ByteWriter(4096);

/** How many of the records fit; they are written, the rest is not. */
function writeRecords(out: ByteWriter, records: readonly DnsRecord[], limit: number): number {
  let count = 0;
  for (const record of records) {
    const before = out.length;
    if (record.name === undefined) out.u16(QUESTION_NAME);
    else out.write(encodeDnsName(record.name));
    out.u16(record.type).u16(DNS_CLASS.internet).u32(record.ttl).u16(record.data.length).write(record.data);
    if (out.length > limit) {
      out.truncate(before);
      break;
    }
    count++;
  }
  return count;
}

const OPT_LENGTH = 11; // bytes, without options
/** What we take over UDP ourselves; more would be fragmented on most paths (RFC 6891 §6.2.5). */
export const MAX_UDP_PAYLOAD = 4096;

function writeOpt(out: ByteWriter, rcode: number): void {
  out
    .u8(0)
    .u16(DNS_TYPE.opt)
    .u16(MAX_UDP_PAYLOAD)
    .u32((rcode >> 4) << 24)
    .u16(0);
}

/** `web.1.blue` → labels of the wire. @throws DecodeError for an empty or too long label and a too long name */
export function encodeDnsName(name: string): Uint8Array {
  const out = new ByteWriter(name.length + 2);
  if (name !== "") {
    for (const label of name.split(".")) {
      if (label.length === 0 || label.length > MAX_LABEL_LENGTH || !/^[\x20-\x7e]*$/.test(label))
        throw new DecodeError(FORMAT, 0, `no host name: ${name}`);
      out.u8(label.length).ascii(label);
    }
  }
  out.u8(0);
  if (out.length > MAX_NAME_LENGTH) throw new DecodeError(FORMAT, 0, "name of more than 255 bytes");
  return out.finish();
}

/** Whether `text` can be a name on the wire; rows of others may hold anything. */
export function isDnsName(text: string): boolean {
  try {
    encodeDnsName(text);
    return text !== "";
  } catch (error) {
    if (error instanceof DecodeError) return false;
    throw error;
  }
}

/** Data of an SRV record, RFC 2782. */
export function srvData(port: number, target: string): Uint8Array {
  return new ByteWriter(64).u16(0).u16(0).u16(port).write(encodeDnsName(target)).finish();
}

/** Data of an SOA record whose minimum is the time a client remembers that there is nothing (RFC 2308 §4). */
export function soaData(minimumSeconds: number): Uint8Array {
  const out = new ByteWriter(64);
  out.write(encodeDnsName("ns.netagent")).write(encodeDnsName("netagent"));
  out.u32(1).u32(60).u32(60).u32(60).u32(minimumSeconds);
  return out.finish();
}

/** Response code of a message, without the bits an OPT record may add. */
export function responseCode(bytes: Uint8Array): number {
  return (bytes[3] ?? 0) & 0x0f;
}

export function isTruncated(bytes: Uint8Array): boolean {
  return ((bytes[2] ?? 0) & (FLAG.truncated >> 8)) !== 0;
}

/** Where the TTLs stand in somebody's answer, and the shortest of them that counts. */
export interface DnsTimes {
  readonly ttlOffsets: readonly number[];
  /** Seconds; for a negative answer its SOA's minimum (RFC 2308 §5). Undefined when nothing says how long it holds. */
  readonly seconds: number | undefined;
}

/** @throws DecodeError */
export function dnsTimes(bytes: Uint8Array): DnsTimes {
  const input = new ByteReader(bytes, FORMAT);
  input.skip(4);
  const questions = input.u16();
  const answers = input.u16();
  const authorities = input.u16();
  const additionals = input.u16();
  for (let i = 0; i < questions; i++) {
    skipName(input);
    input.skip(4);
  }
  const ttlOffsets: number[] = [];
  let seconds: number | undefined;
  for (let i = 0; i < answers + authorities + additionals; i++) {
    skipName(input);
    const type = input.u16();
    input.skip(2);
    const offset = input.offset;
    const ttl = input.u32();
    const data = input.take(input.u16());
    if (type === DNS_TYPE.opt) continue; // its TTL field is flags
    ttlOffsets.push(offset);
    const negative = answers === 0 && type === DNS_TYPE.soa && data.length >= 4;
    const bound = negative ? Math.min(ttl, lastU32(data)) : answers > 0 ? ttl : undefined;
    if (bound !== undefined && (seconds === undefined || bound < seconds)) seconds = bound;
  }
  return { ttlOffsets, seconds };
}

function lastU32(data: Uint8Array): number {
  return new DataView(data.buffer, data.byteOffset, data.byteLength).getUint32(data.length - 4);
}

/** Reads a name without compression, for questions: nothing stands before them that could be pointed to. */
function readName(input: ByteReader): string {
  const { bytes } = input;
  const start = input.offset;
  let name = "";
  for (;;) {
    const length = input.u8();
    if (length === 0) return name;
    if (length > MAX_LABEL_LENGTH) input.fail("compressed name in the first question");
    input.skip(length);
    if (input.offset - start >= MAX_NAME_LENGTH) input.fail("name of more than 255 bytes");
    if (name !== "") name += ".";
    for (let at = input.offset - length; at < input.offset; at++) {
      let byte = bytes[at] ?? 0;
      if (byte >= 0x41 && byte <= 0x5a) byte += 0x20;
      name += byte === 0x2e || byte === 0x5c ? `\\${String.fromCharCode(byte)}` : String.fromCharCode(byte);
    }
  }
}

function skipName(input: ByteReader): void {
  const start = input.offset;
  for (;;) {
    const length = input.u8();
    if (length === 0) return;
    if (length >= 0xc0) return input.skip(1);
    if (length > MAX_LABEL_LENGTH) input.fail("label of more than 63 bytes");
    input.skip(length);
    if (input.offset - start > MAX_NAME_LENGTH) input.fail("name of more than 255 bytes");
  }
}

function skipRecord(input: ByteReader): void {
  skipName(input);
  input.skip(8);
  input.skip(input.u16());
}
