/** Several messages in one packet: type 7, count 1 byte, count × length 2 bytes, then the parts back to back. */
import { assert } from "../../base/assert.ts";
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import { MESSAGE_TYPE } from "./message.ts";

/** What we send at most: old releases compute the length table in 8 bits and misread 128 parts or more. */
export const MAX_PARTS_SENT = 127;
/** What the format can hold, and what we read. */
export const MAX_PARTS = 255;
export const COMPOUND_HEADER_LENGTH = 2; // bytes
/** Bytes of the length table per part; what a part costs beyond itself. */
export const COMPOUND_PART_OVERHEAD = 2;

/** `parts`: at most 255, each at most 65,535 bytes. */
export function encodeCompoundInto(parts: readonly Uint8Array[], out: ByteWriter): void {
  assert(parts.length <= MAX_PARTS, "a compound has at most 255 parts");
  out.u8(MESSAGE_TYPE.compound).u8(parts.length);
  for (const part of parts) {
    assert(part.length <= 0xffff, "a part of a compound has at most 65535 bytes");
    out.u16(part.length);
  }
  for (const part of parts) out.write(part);
}

export interface Compound {
  /** Views into the input. */
  readonly parts: readonly Uint8Array[];
  /** Parts announced but cut off; the complete ones before them are good. */
  readonly truncated: number;
}

/** `bytes` starts with the type byte. @throws DecodeError if the length table does not fit. */
export function decodeCompound(bytes: Uint8Array): Compound {
  const count = bytes[1];
  if (count === undefined) throw new DecodeError("memberlist compound", 1, "compound without a count");
  let at = COMPOUND_HEADER_LENGTH + count * COMPOUND_PART_OVERHEAD;
  if (at > bytes.length) throw new DecodeError("memberlist compound", 2, "length table cut short");
  const parts: Uint8Array[] = [];
  for (let i = 0; i < count; i++) {
    const entry = COMPOUND_HEADER_LENGTH + i * COMPOUND_PART_OVERHEAD;
    const length = ((bytes[entry] as number) << 8) | (bytes[entry + 1] as number);
    if (length > bytes.length - at) return { parts, truncated: count - i };
    parts.push(bytes.subarray(at, at + length));
    at += length;
  }
  return { parts, truncated: 0 };
}
