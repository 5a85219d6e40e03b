/** Serf's tags, in a member's metadata. */
import { ByteWriter, fromUtf8 } from "../../base/bytes.ts";
import { MsgpackReader, writeMapHeader, writeText } from "../msgpack.ts";

export type SerfTags = ReadonlyMap<string, string>;

const TAGS_MAGIC = 0xff;

/** `ff`, then a map of texts; memberlist carries at most 512 bytes of it. */
export function encodeSerfTags(tags: SerfTags): Uint8Array {
  const out = new ByteWriter();
  out.u8(TAGS_MAGIC);
  writeMapHeader(out, tags.size);
  for (const [name, value] of tags) {
    writeText(out, name);
    writeText(out, value);
  }
  return out.finish();
}

/** Meta without the magic byte, of any other application too, is one old tag "role". @throws DecodeError */
export function decodeSerfTags(meta: Uint8Array): SerfTags {
  if (meta[0] !== TAGS_MAGIC) return new Map([["role", fromUtf8(meta)]]);
  const input = new MsgpackReader(meta, "serf tags", 1);
  const tags = new Map<string, string>();
  for (let left = input.mapHeader(); left > 0; left--) {
    const name = input.text();
    tags.set(name, input.text());
  }
  return tags;
}
