/**
 * One exchange over TCP: the order of envelopes is label → encryption frame → compression → message.
 *
 *     f4 len label                     only in what the dialling side sends
 *     0a len32 sealed                  len counts the sealed bytes; associated data: these 5 bytes, then the label
 *     09 {Algo, Buf}                   at most once
 *     06 {Join, Nodes, UserStateLen}   then `Nodes` member maps, then the user state
 *     08 {UserMsgLen}                  then the payload
 *     00 ping   02 ack   0d error      as in packets
 *
 * One request and at most one reply per connection; what follows a complete message is ignored.
 */
import { assert } from "../../base/assert.ts";
import { DecodeError } from "../../base/error.ts";
import { MsgpackReader, NO_BYTES, ValueScanner } from "../msgpack.ts";
import { encodeCompressed } from "./compress.ts";
import { labelBytes, labelLength, labelOverhead } from "./label.ts";
import { MESSAGE_TYPE } from "./message.ts";
import { decodePushPullHeader } from "./push-pull.ts";
import {
  KeyMismatch,
  open,
  sealedLength,
  sealInto,
  sealOverhead,
  sealsOutgoing,
  type Sealing,
} from "./seal.ts";
import {
  decodeStreamMessage,
  decodeUserHeader,
  encodeStreamMessage,
  STREAM_LIMITS,
  STREAM_TYPES,
  type StreamDirection,
  type StreamLimits,
  type StreamMessage,
} from "./stream-message.ts";

export interface StreamOptions {
  readonly sealing: Sealing;
  /** 12 bytes, needed when `sealsOutgoing(sealing)`; never used twice with a key. */
  readonly nonce?: Uint8Array;
  /** Go compresses every stream message while compression is on, also when that makes it longer. */
  readonly compress: boolean;
  readonly direction: StreamDirection;
}

/** Type byte and length in front of an encrypted stream message. */
export const FRAME_HEADER_LENGTH = 5; // bytes

/** Everything to write on the connection. */
export function encodeStream(message: StreamMessage, options: StreamOptions): Uint8Array {
  return encodeStreamEnvelopes(encodeStreamPayload(message, options.compress), options);
}

/** What goes into the envelopes, the same for everybody who gets this message. */
export function encodeStreamPayload(message: StreamMessage, compress: boolean): Uint8Array {
  const plain = encodeStreamMessage(message);
  return compress ? encodeCompressed(plain) : plain;
}

/** Puts encryption frame and label, as `options` ask for, around a message that may be compressed already. */
export function encodeStreamEnvelopes(
  plain: Uint8Array,
  options: Omit<StreamOptions, "compress">,
): Uint8Array {
  const { sealing } = options;
  const label = labelBytes(sealing.label);
  const at = options.direction === "request" ? labelOverhead(sealing.label) : 0;
  const seals = sealsOutgoing(sealing);
  if (at === 0 && !seals) return plain;
  const sealed = seals ? sealedLength(plain.length, sealing.encryptionVersion) : 0;
  const out = new Uint8Array(at + (seals ? FRAME_HEADER_LENGTH + sealed : plain.length));
  if (at > 0) {
    out[0] = MESSAGE_TYPE.hasLabel;
    out[1] = label.length;
    out.set(label, 2);
  }
  if (!seals) {
    out.set(plain, at);
    return out;
  }
  assert(sealed <= STREAM_LIMITS.maxFrameBytes, "an encrypted stream message has at most 20 MiB");
  out[at] = MESSAGE_TYPE.encrypt;
  new DataView(out.buffer).setUint32(at + 1, sealed);
  const header = out.subarray(at, at + FRAME_HEADER_LENGTH);
  sealInto(out, at + FRAME_HEADER_LENGTH, plain, sealing, options.nonce, associatedData(header, label));
  return out;
}

/**
 * Takes a stream piece by piece and gives its one message as soon as it is complete. The outcome does not
 * depend on how the input was cut, the work is linear in it, and the memory at most twice
 * `limits.maxMessageBytes` plus what decompression gives.
 */
export class StreamDecoder {
  readonly #sealing: Sealing;
  readonly #limits: StreamLimits;
  readonly #direction: StreamDirection;
  #step: "label" | "type" | "frame" | "message" | "done" = "label";
  #buffer: Uint8Array = NO_BYTES;
  #length = 0;
  /** Where the encryption frame or the plain message begins. */
  #start = 0;
  #frameEnd = 0;
  #scanner: MessageScanner | undefined;

  constructor(sealing: Sealing, limits: StreamLimits, direction: StreamDirection) {
    this.#sealing = sealing;
    this.#limits = limits;
    this.#direction = direction;
  }

  /**
   * The message once it is complete, undefined before and ever after. Keeps no reference to `bytes` after
   * it returned undefined; payload and user state of a message may be views into it.
   * @throws DecodeError when no further input can make it good: close the connection.
   */
  push(bytes: Uint8Array): StreamMessage | undefined {
    if (this.#step === "done") return undefined;
    if (this.#length > 0) this.#append(bytes);
    else {
      this.#buffer = bytes;
      this.#length = bytes.length;
    }
    let message: StreamMessage | undefined;
    try {
      message = this.#advance();
    } catch (error) {
      this.#release();
      throw error;
    }
    if (message !== undefined) this.#release();
    else if (this.#buffer === bytes) this.#buffer = bytes.slice(0, this.#length);
    return message;
  }

  /** The peer has closed. @throws DecodeError unless a message came. */
  end(): void {
    if (this.#step === "done") return;
    const got = this.#length;
    this.#release();
    throw new DecodeError("memberlist stream", got, "input ends early");
  }

  #advance(): StreamMessage | undefined {
    if (this.#step === "label") {
      if (!this.#passLabel()) return undefined;
      this.#step = "type";
    }
    if (this.#step === "type") {
      if (this.#length <= this.#start) return undefined;
      this.#step = this.#chooseEnvelope();
    }
    if (this.#step === "frame") return this.#advanceFrame();
    const scanner = this.#scanner;
    assert(scanner !== undefined, "a plain message has a scanner");
    return scanner.advance(this.#buffer, this.#length)
      ? decodeStreamMessage(this.#buffer.subarray(this.#start, scanner.end), this.#limits, this.#direction)
      : undefined;
  }

  #passLabel(): boolean {
    // A reply carries no label header, whatever label the cluster has.
    if (this.#direction === "reply") return true;
    const length = labelLength(this.#buffer, this.#length, this.#sealing.label);
    if (length === undefined) return false;
    this.#start = length;
    return true;
  }

  #chooseEnvelope(): "frame" | "message" {
    const keys = this.#sealing.keys.length;
    if (this.#buffer[this.#start] === MESSAGE_TYPE.encrypt) {
      if (keys === 0)
        throw new KeyMismatch(
          "no-key",
          "memberlist stream",
          this.#start,
          "encrypted, but no key is installed",
        );
      return "frame";
    }
    if (keys > 0 && this.#sealing.verifyIncoming)
      throw new KeyMismatch(
        "not-sealed",
        "memberlist stream",
        this.#start,
        "not encrypted, but encryption is required",
      );
    this.#scanner = new MessageScanner(this.#start, this.#limits);
    return "message";
  }

  #advanceFrame(): StreamMessage | undefined {
    const body = this.#start + FRAME_HEADER_LENGTH;
    if (this.#length < body) return undefined;
    if (this.#frameEnd === 0) {
      const view = new DataView(this.#buffer.buffer, this.#buffer.byteOffset + this.#start);
      const length = view.getUint32(1);
      if (length > this.#limits.maxFrameBytes)
        throw new DecodeError(
          "memberlist stream",
          this.#start + 1,
          `frame of ${length} bytes exceeds the limit`,
        );
      if (length < sealOverhead(1))
        throw new DecodeError("memberlist stream", this.#start + 1, `frame of ${length} bytes is too short`);
      this.#frameEnd = body + length;
    }
    if (this.#length < this.#frameEnd) return undefined;
    const header = this.#buffer.subarray(this.#start, body);
    const associated = associatedData(header, labelBytes(this.#sealing.label));
    const plain = open(this.#buffer.subarray(body, this.#frameEnd), this.#sealing.keys, associated);
    return decodeStreamMessage(plain, this.#limits, this.#direction);
  }

  /** What exceeds the largest message can only be rubbish after it, so it is not kept. */
  #append(bytes: Uint8Array): void {
    const { maxMessageBytes, maxFrameBytes } = this.#limits;
    const most = Math.max(maxMessageBytes, maxFrameBytes) + MAX_ENVELOPE_BYTES;
    const count = Math.min(bytes.length, most - this.#length);
    const needed = this.#length + count;
    if (needed > this.#buffer.length) {
      const larger = new Uint8Array(Math.max(needed, 2 * this.#buffer.length));
      larger.set(this.#buffer.subarray(0, this.#length));
      this.#buffer = larger;
    }
    this.#buffer.set(bytes.subarray(0, count), this.#length);
    this.#length = needed;
  }

  #release(): void {
    this.#step = "done";
    this.#buffer = NO_BYTES;
    this.#length = 0;
    this.#scanner = undefined;
  }
}

/** Label header and frame header. */
const MAX_ENVELOPE_BYTES = 2 + 255 + FRAME_HEADER_LENGTH;

function associatedData(frameHeader: Uint8Array, label: Uint8Array): Uint8Array {
  if (label.length === 0) return frameHeader;
  const bytes = new Uint8Array(frameHeader.length + label.length);
  bytes.set(frameHeader);
  bytes.set(label, frameHeader.length);
  return bytes;
}

/** Finds where a plain message ends, and refuses announced sizes before their bytes are waited for. */
class MessageScanner {
  readonly #values: ValueScanner;
  readonly #limits: StreamLimits;
  readonly #start: number;
  #step: "type" | "header" | "body" = "type";
  #kind = -1;
  /** Raw bytes after the last map. */
  #trailing = 0;

  constructor(start: number, limits: StreamLimits) {
    this.#values = new ValueScanner("memberlist stream", start + 1, start + limits.maxMessageBytes);
    this.#limits = limits;
    this.#start = start;
  }

  /** First byte after the message, once `advance` has said true. */
  get end(): number {
    return this.#values.offset;
  }

  advance(bytes: Uint8Array, length: number): boolean {
    if (this.#step === "type") {
      if (length <= this.#start) return false;
      this.#kind = bytes[this.#start] as number;
      if (!STREAM_TYPES.has(this.#kind))
        throw new DecodeError("memberlist stream", this.#start, `message type ${this.#kind} not valid here`);
      this.#values.expect(1);
      this.#step = "header";
    }
    if (!this.#values.advance(bytes, length)) return false;
    if (this.#step === "header") {
      this.#step = "body";
      if (this.#kind === MESSAGE_TYPE.pushPull) {
        const input = new MsgpackReader(bytes, "memberlist push/pull", this.#start + 1);
        const header = decodePushPullHeader(input, this.#limits);
        this.#values.expect(header.nodes);
        this.#trailing = header.userStateBytes;
      } else if (this.#kind === MESSAGE_TYPE.user) {
        const input = new MsgpackReader(bytes, "memberlist stream user message", this.#start + 1);
        this.#trailing = decodeUserHeader(input, this.#limits);
      }
    }
    if (!this.#values.advance(bytes, length)) return false;
    if (this.#trailing > 0) {
      this.#values.expectBytes(this.#trailing);
      this.#trailing = 0;
    }
    return this.#values.advance(bytes, length);
  }
}
