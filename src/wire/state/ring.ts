import { ByteWriter, type ByteReader } from "../../base/bytes.ts";
import { networkId, nodeId, type NetworkId, type NodeId } from "../../base/id.ts";
import { readList, readText, readVarint, writeList, writeText, writeVarint } from "./fields.ts";

/** Bounds memory and one message: 16,384 entries of at most 20 bytes are below 400 KiB. */
export const MAX_RING_ENTRIES = 16_384;
const MAX_OWNERS = 4096;

/** The owner of the addresses from `start` up to the next entry's start. */
export interface RingEntry {
  /** IPv4 address as a number. */
  readonly start: number;
  readonly owner: NodeId;
  /** Grows with every change; only the owner changes its entry. */
  readonly version: number;
  /** Free addresses in the range when the entry last changed: a hint whom to ask. */
  readonly free: number;
}

/**
 * Who owns which addresses of a network; always the whole ring, never a part (`address-ring.ts` says why).
 * Layout: network, seeded (varint), seeder, list of owners, list of {start u32, owner index, version, free}.
 */
export interface Ring {
  readonly network: NetworkId;
  /** Unix seconds of the seeding; with `seeder` it tells two rings of one network apart. 0 for a created network. */
  readonly seeded: number;
  readonly seeder: NodeId;
  /** Ascending by `start`; the first starts the network's range. */
  readonly entries: readonly RingEntry[];
}

/** As of entries: a ring is written more often than it changes. */
const encoded = new WeakMap<Ring, Uint8Array>();

export function encodeRing(ring: Ring, out: ByteWriter): void {
  let bytes = encoded.get(ring);
  if (bytes === undefined) {
    const own = new ByteWriter(64 + ring.entries.length * 10);
    encodeFields(ring, own);
    encoded.set(ring, (bytes = own.finish()));
  }
  out.write(bytes);
}

function encodeFields(ring: Ring, out: ByteWriter): void {
  writeText(out, ring.network);
  writeVarint(out, ring.seeded);
  writeText(out, ring.seeder);
  const owners = [...new Set(ring.entries.map((entry) => entry.owner))];
  const indexes = new Map(owners.map((owner, index) => [owner, index]));
  writeList(out, owners, (owner) => writeText(out, owner));
  writeList(out, ring.entries, (entry) => {
    out.u32(entry.start);
    writeVarint(out, indexes.get(entry.owner) ?? 0);
    writeVarint(out, entry.version);
    writeVarint(out, entry.free);
  });
}

/** @throws DecodeError also when entries are not ascending. */
export function decodeRing(input: ByteReader): Ring {
  const network = networkId(readText(input, 64));
  const seeded = readVarint(input);
  const seeder = nodeId(readText(input, 64));
  const owners = readList(input, MAX_OWNERS, () => nodeId(readText(input, 64)));
  let previous = -1;
  const entries = readList(input, MAX_RING_ENTRIES, (): RingEntry => {
    const start = input.u32();
    if (start <= previous) input.fail("entries are not ascending");
    previous = start;
    const owner = owners[readVarint(input, MAX_OWNERS)] ?? input.fail("entry without owner");
    return { start, owner, version: readVarint(input, 2 ** 48), free: readVarint(input, 2 ** 32) };
  });
  return { network, seeded, seeder, entries };
}
