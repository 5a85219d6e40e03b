import { createHash } from "node:crypto";
import { bytesEqual, ByteReader, ByteWriter } from "../../base/bytes.ts";
import { networkId, nodeId, type NetworkId, type NodeId } from "../../base/id.ts";
import { decodeDefinition, encodeDefinition, type Network } from "./definition.ts";
import { decodeEntry, encodeEntry, MAX_VALUE_BYTES, type Entry } from "./entry.ts";
import {
  readBytes,
  readList,
  readOptional,
  readText,
  readVarint,
  writeBytes,
  writeList,
  writeOptional,
  writeText,
  writeVarint,
} from "./fields.ts";
import { decodeRing, encodeRing, type Ring } from "./ring.ts";

/**
 * What a node keeps over a restart. The node id is in it, because ranges belong to the id: a node that lost this
 * file must come back under a new one, or it would give its addresses a second time.
 *
 * Layout: "netagent state" and version u8 (1), node, clock, entries, external networks (encoded values), per
 * network {id, ring?, last u32, allocations}; then SHA-256 of all that.
 */
export interface Snapshot {
  readonly node: NodeId;
  readonly clock: number;
  readonly entries: readonly Entry[];
  readonly externals: readonly Network[];
  readonly spaces: readonly SpaceSnapshot[];
}

export interface SpaceSnapshot {
  readonly network: NetworkId;
  readonly ring?: Ring;
  /** The address given last; allocation goes on after it. */
  readonly last: number;
  readonly allocations: readonly {
    readonly address: number;
    readonly holder: { readonly id: string; readonly name: string };
  }[];
}

const MAGIC = "netagent state";
const VERSION = 1;
const DIGEST_BYTES = 32;
const MAX_ITEMS = 2 ** 24;

export function encodeSnapshot(snapshot: Snapshot): Uint8Array {
  const out = new ByteWriter(4096);
  out.text(MAGIC).u8(VERSION);
  writeText(out, snapshot.node);
  writeVarint(out, snapshot.clock);
  writeList(out, snapshot.entries, (entry) => encodeEntry(entry, out));
  writeList(out, snapshot.externals, (value) =>
    writeBytes(out, encodeDefinition({ kind: "network", value })),
  );
  writeList(out, snapshot.spaces, (space) => {
    writeText(out, space.network);
    writeOptional(out, space.ring, (ring) => encodeRing(ring, out));
    out.u32(space.last);
    writeList(out, space.allocations, ({ address, holder }) => {
      out.u32(address);
      writeText(out, holder.id);
      writeText(out, holder.name);
    });
  });
  return out.write(sha256(out.finish())).finish();
}

/** @throws DecodeError */
export function decodeSnapshot(bytes: Uint8Array): Snapshot {
  const input = new ByteReader(bytes, "state snapshot");
  if (bytes.length < MAGIC.length + DIGEST_BYTES || input.text(MAGIC.length) !== MAGIC)
    input.fail("not a snapshot of netagent");
  const version = input.u8();
  if (version !== VERSION) input.fail(`version ${version}; this netagent reads version ${VERSION}`);
  const end = bytes.length - DIGEST_BYTES;
  if (!bytesEqual(sha256(bytes.subarray(0, end)), bytes.subarray(end))) input.fail("checksum does not match");
  return {
    node: nodeId(readText(input, 64)),
    clock: readVarint(input, 2 ** 50),
    entries: readList(input, MAX_ITEMS, () => decodeEntry(input)),
    externals: readList(input, MAX_ITEMS, () => {
      const definition = decodeDefinition("network", readBytes(input, MAX_VALUE_BYTES));
      return definition.kind === "network" ? definition.value : input.fail("not a network");
    }),
    spaces: readList(input, MAX_ITEMS, () => {
      const network = networkId(readText(input, 64));
      const ring = readOptional(input, () => decodeRing(input));
      const last = input.u32();
      const allocations = readList(input, MAX_ITEMS, () => ({
        address: input.u32(),
        holder: { id: readText(input, 512), name: readText(input, 1024) },
      }));
      return { network, ...(ring === undefined ? {} : { ring }), last, allocations };
    }),
  };
}

function sha256(bytes: Uint8Array): Uint8Array {
  return createHash("sha256").update(bytes).digest();
}
