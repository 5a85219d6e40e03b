/**
 * Cluster label (memberlist label.go, newer releases only): f4, length 1 … 255, label bytes, in front of every
 * packet and of what the dialling side of a stream sends. Traffic without exactly our label is dropped.
 */
import { assert } from "../../base/assert.ts";
import { utf8 } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import { MESSAGE_TYPE } from "./message.ts";
import { NO_BYTES } from "../msgpack.ts";

export const LABEL_HEADER_LENGTH = 2; // bytes, before the label itself

/** UTF-8 of a configured label: empty for none, else 1 … 255 bytes. */
export function labelBytes(label: string): Uint8Array {
  if (label === "") return NO_BYTES;
  if (label !== lastLabel) {
    const bytes = utf8(label);
    assert(bytes.length <= 255, "a label has at most 255 bytes");
    lastLabel = label;
    lastLabelBytes = bytes;
  }
  return lastLabelBytes;
}

/** Length of the header in front of a packet, 0 without label. */
export function labelOverhead(label: string): number {
  return label === "" ? 0 : LABEL_HEADER_LENGTH + labelBytes(label).length;
}

/**
 * Number of bytes to pass over at the start of `bytes`, or undefined if more must arrive to tell.
 * @throws DecodeError on a foreign, missing or malformed label.
 */
export function labelLength(bytes: Uint8Array, length: number, label: string): number | undefined {
  if (length === 0) return undefined;
  if (bytes[0] !== MESSAGE_TYPE.hasLabel) {
    if (label !== "") throw new DecodeError("memberlist label", 0, "label missing");
    return 0;
  }
  if (length < LABEL_HEADER_LENGTH) return undefined;
  const size = bytes[1] as number;
  if (size === 0) throw new DecodeError("memberlist label", 1, "empty label");
  const wanted = labelBytes(label);
  if (size !== wanted.length) throw new DecodeError("memberlist label", 1, "label of another cluster");
  const known = Math.min(size, length - LABEL_HEADER_LENGTH);
  for (let i = 0; i < known; i++) {
    if (bytes[LABEL_HEADER_LENGTH + i] !== wanted[i])
      throw new DecodeError("memberlist label", LABEL_HEADER_LENGTH + i, "label of another cluster");
  }
  return known < size ? undefined : LABEL_HEADER_LENGTH + size;
}

// A process has one label or two (tests): encode it once, not once per packet.
let lastLabel = "";
let lastLabelBytes: Uint8Array = NO_BYTES;
