/**
 * One UDP datagram: the order of envelopes, outside to inside.
 *
 *     label → encryption → checksum (0c, CRC-32 of the rest) → compression → compound → message
 *
 * The checksum is read only as the outermost plaintext layer; compound and compression may nest.
 */
import { assert } from "../../base/assert.ts";
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import { crc32 } from "../crc32.ts";
import { decodeCompound, encodeCompoundInto, MAX_PARTS_SENT } from "./compound.ts";
import { decodeCompressed, encodeCompressed } from "./compress.ts";
import { labelBytes, labelLength, labelOverhead } from "./label.ts";
import { decodeMessage, MESSAGE_TYPE, type MemberlistMessage } from "./message.ts";
import { open, sealedLength, sealInto, sealsOutgoing, type Sealing } from "./seal.ts";

/**
 * Sum of all decompression in one packet. A sender compresses at most its packet buffer (1400) or one user
 * message; the limit keeps a datagram of nested bombs from costing more than one honest large one.
 */
export const MAX_INFLATED_BYTES = 64 * 1024;
/** Compounds and compressions inside each other; real peers use two. */
export const MAX_NESTING = 4;
export const CRC_HEADER_LENGTH = 5; // bytes

export interface PacketOptions {
  readonly sealing: Sealing;
  /** 12 bytes, needed when `sealsOutgoing(sealing)`; never used twice with a key. */
  readonly nonce?: Uint8Array;
  /** Only towards members whose protocol maximum is at least 5. */
  readonly crc: boolean;
  /** Compresses if the result is shorter. */
  readonly compress: boolean;
}

/** One datagram of 1 … 127 encoded messages; a single one goes bare. */
export function encodePacket(parts: readonly Uint8Array[], options: PacketOptions): Uint8Array {
  assert(parts.length >= 1 && parts.length <= MAX_PARTS_SENT, "a packet carries 1 … 127 messages");
  const { sealing } = options;
  const seals = sealsOutgoing(sealing);
  scratch.reset();
  if (!seals) writeLabel(scratch, sealing.label);
  const start = scratch.length;
  if (options.crc) scratch.zeros(CRC_HEADER_LENGTH);
  const body = scratch.length;
  const [first] = parts;
  if (parts.length === 1 && first !== undefined) scratch.write(first);
  else encodeCompoundInto(parts, scratch);
  if (options.compress) {
    const plain = scratch.view().subarray(body);
    const compressed = encodeCompressed(plain);
    if (compressed.length < plain.length) {
      scratch.truncate(body);
      scratch.write(compressed);
    }
  }
  if (options.crc) {
    scratch.patchU8(start, MESSAGE_TYPE.hasCrc);
    scratch.patchU32(start + 1, crc32(scratch.view(), body));
  }
  if (!seals) return scratch.finish();

  const plain = scratch.view();
  const at = labelOverhead(sealing.label);
  const label = labelBytes(sealing.label);
  const packet = new Uint8Array(at + sealedLength(plain.length, sealing.encryptionVersion));
  if (at > 0) {
    packet[0] = MESSAGE_TYPE.hasLabel;
    packet[1] = label.length;
    packet.set(label, 2);
  }
  sealInto(packet, at, plain, sealing, options.nonce, label);
  return packet;
}

export interface DecodedPacket {
  readonly messages: MemberlistMessage[];
  /** Parts of compounds that were dropped, while the others survive. At most one per byte of the packet. */
  readonly problems: DecodeError[];
}

/**
 * The messages of a datagram in order; byte fields are copies, except user payloads, which are views.
 * @throws DecodeError when the packet as a whole is bad: label, seal, checksum, or its only message.
 */
export function decodePacket(bytes: Uint8Array, sealing: Sealing): DecodedPacket {
  const labelled = labelLength(bytes, bytes.length, sealing.label);
  if (labelled === undefined) throw new DecodeError("memberlist packet", 0, "empty or cut in its label");
  let message = labelled === 0 ? bytes : bytes.subarray(labelled);
  if (sealing.keys.length > 0) message = openPacket(message, sealing);
  if (message[0] === MESSAGE_TYPE.hasCrc && message.length >= CRC_HEADER_LENGTH) {
    const expected =
      (((message[1] as number) << 24) |
        ((message[2] as number) << 16) |
        ((message[3] as number) << 8) |
        (message[4] as number)) >>>
      0;
    if (crc32(message, CRC_HEADER_LENGTH) !== expected)
      throw new DecodeError("memberlist packet", 1, "checksum mismatch");
    message = message.subarray(CRC_HEADER_LENGTH);
  }
  const packet: Unwrapping = { messages: [], problems: [], inflatable: MAX_INFLATED_BYTES };
  unwrap(message, packet, 0);
  return { messages: packet.messages, problems: packet.problems };
}

interface Unwrapping extends DecodedPacket {
  /** Bytes of decompression left for this packet. */
  inflatable: number;
}

function unwrap(bytes: Uint8Array, packet: Unwrapping, depth: number): void {
  switch (bytes[0]) {
    case MESSAGE_TYPE.compound: {
      if (depth === MAX_NESTING) throw new DecodeError("memberlist packet", 0, "nested too deep");
      const { parts, truncated } = decodeCompound(bytes);
      for (const part of parts) {
        try {
          unwrap(part, packet, depth + 1);
        } catch (error) {
          if (!(error instanceof DecodeError)) throw error;
          packet.problems.push(error);
        }
      }
      if (truncated > 0)
        packet.problems.push(
          new DecodeError("memberlist compound", bytes.length, `${truncated} parts cut off`),
        );
      return;
    }
    case MESSAGE_TYPE.compress: {
      if (depth === MAX_NESTING) throw new DecodeError("memberlist packet", 0, "nested too deep");
      const inner = decodeCompressed(bytes, packet.inflatable);
      packet.inflatable -= inner.length;
      return unwrap(inner, packet, depth + 1);
    }
    case MESSAGE_TYPE.error:
      throw new DecodeError("memberlist packet", 0, "message type 13 not valid here");
    default:
      packet.messages.push(decodeMessage(bytes));
  }
}

function openPacket(sealed: Uint8Array, sealing: Sealing): Uint8Array {
  if (sealing.verifyIncoming) return open(sealed, sealing.keys, labelBytes(sealing.label));
  try {
    return open(sealed, sealing.keys, labelBytes(sealing.label));
  } catch (error) {
    // Encryption is being introduced: what no key opens may be plain.
    if (error instanceof DecodeError) return sealed;
    throw error;
  }
}

function writeLabel(out: ByteWriter, label: string): void {
  if (label === "") return;
  const bytes = labelBytes(label);
  out.u8(MESSAGE_TYPE.hasLabel).u8(bytes.length).write(bytes);
}

const scratch = new ByteWriter(2048);
