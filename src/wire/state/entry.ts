import { ByteWriter, type ByteReader } from "../../base/bytes.ts";
import { nodeId, type NodeId } from "../../base/id.ts";
import { decodeDefinition, type Definition, type DefinitionKind } from "./definition.ts";
import { readBytes, readFlag, readText, readVarint, writeBytes, writeText, writeVarint } from "./fields.ts";

/** Bounds one value, so that a page of entries stays below 1 MiB. */
export const MAX_VALUE_BYTES = 128 * 1024;
/** Lamport times stay exact numbers with room to count on: a time above this is not believed. */
export const MAX_LAMPORT = 2 ** 48;

const KINDS: readonly DefinitionKind[] = ["network", "service", "node"];

/**
 * One entry of the replicated map, live or a tombstone. `raw` is the encoded value, passed on as it came.
 * Layout: kind u8 (1 network, 2 service, 3 node), id, lamport varint, writer, tombstone u8; then the age of the
 * tombstone in seconds (varint), or the value after its length.
 */
export interface Entry {
  readonly kind: DefinitionKind;
  readonly id: string;
  readonly lamport: number;
  readonly writer: NodeId;
  /** Empty: a tombstone. */
  readonly raw: Uint8Array;
  /** Undefined: a tombstone. */
  readonly definition?: Definition;
  /** Of a tombstone: how long the sender has known it. */
  readonly ageSeconds: number;
}

/** Entries are values and written over and over: into packets, pages and every snapshot. */
const encoded = new WeakMap<Entry, Uint8Array>();

export function encodeEntry(entry: Entry, out: ByteWriter): void {
  let bytes = encoded.get(entry);
  if (bytes === undefined) {
    const own = new ByteWriter(entry.raw.length + 96);
    encodeFields(entry, own);
    encoded.set(entry, (bytes = own.finish()));
  }
  out.write(bytes);
}

function encodeFields(entry: Entry, out: ByteWriter): void {
  out.u8(KINDS.indexOf(entry.kind) + 1);
  writeText(out, entry.id);
  writeVarint(out, entry.lamport);
  writeText(out, entry.writer);
  if (entry.definition === undefined) {
    out.u8(1);
    writeVarint(out, entry.ageSeconds);
  } else {
    out.u8(0);
    writeBytes(out, entry.raw);
  }
}

/** Copies what it keeps: the entry outlives the packet. @throws DecodeError */
export function decodeEntry(input: ByteReader): Entry {
  const kind = KINDS[input.u8() - 1] ?? input.fail("unknown kind of definition");
  const id = readText(input, 64);
  if (!/^[A-Za-z0-9_.-]{1,64}$/.test(id)) input.fail("not a valid id");
  const lamport = readVarint(input, MAX_LAMPORT);
  const writer = nodeId(readText(input, 64));
  const tombstone = readFlag(input);
  if (tombstone) {
    const ageSeconds = readVarint(input, 0xffffffff);
    return { kind, id, lamport, writer, raw: new Uint8Array(0), ageSeconds };
  }
  const raw = readBytes(input, MAX_VALUE_BYTES).slice();
  const definition = decodeDefinition(kind, raw);
  if (definition.value.id !== id) input.fail(`${kind} ${id} holds the value of ${definition.value.id}`);
  return { kind, id, lamport, writer, raw, definition, ageSeconds: 0 };
}
