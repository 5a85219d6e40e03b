/** What goes over a memberlist stream, without its envelopes (`stream.ts`). */
import { assert, unreachable } from "../../base/assert.ts";
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import {
  fieldCount,
  fieldKey,
  fieldTable,
  MsgpackReader,
  writeMapHeader,
  writeUnsigned,
  type EmptyBytes,
} from "../msgpack.ts";
import { decodeCompressed } from "./compress.ts";
import {
  decodeMessage,
  encodeMessageInto,
  MESSAGE_TYPE,
  type Ack,
  type ErrorMessage,
  type Ping,
  type UserMessage,
} from "./message.ts";
import { decodePushPull, encodePushPullInto, type PushPull, type PushPullLimits } from "./push-pull.ts";

export type StreamMessage = PushPull | UserMessage | Ping | Ack | ErrorMessage;

/** "request": what the dialling side sends. "reply": what comes back. */
export type StreamDirection = "request" | "reply";

export interface StreamLimits extends PushPullLimits {
  readonly maxUserMessageBytes: number;
  /** Length of one encryption frame. */
  readonly maxFrameBytes: number;
  /** A whole message, as it arrives and after decompression: bounds what one connection holds in memory. */
  readonly maxMessageBytes: number;
}

/** Those of newer memberlist releases, tighter where the number of members is concerned (theirs: 1,048,576). */
export const STREAM_LIMITS: StreamLimits = {
  maxNodes: 131_072,
  maxUserStateBytes: 20 * 1024 * 1024,
  maxUserMessageBytes: 20 * 1024 * 1024,
  maxFrameBytes: 20 * 1024 * 1024,
  maxMessageBytes: 40 * 1024 * 1024,
};

/** The message without envelopes. `empty`: as in `encodeMessage`. */
export function encodeStreamMessage(message: StreamMessage, empty: EmptyBytes = "nil"): Uint8Array {
  const out = new ByteWriter(
    message.type === "push-pull" ? 64 + 128 * message.nodes.length + message.userState.length : 256,
  );
  switch (message.type) {
    case "push-pull":
      encodePushPullInto(message, out, empty);
      break;
    case "user":
      out.u8(MESSAGE_TYPE.user);
      writeMapHeader(out, 1);
      out.write(USER_MSG_LEN);
      writeUnsigned(out, message.payload.length);
      out.write(message.payload);
      break;
    case "ping":
    case "ack":
    case "error":
      encodeMessageInto(message, out, empty);
      break;
    default:
      unreachable(message);
  }
  return out.finish();
}

/** Type bytes a message may begin with. */
export const STREAM_TYPES: ReadonlySet<number> = new Set([
  MESSAGE_TYPE.ping,
  MESSAGE_TYPE.ack,
  MESSAGE_TYPE.pushPull,
  MESSAGE_TYPE.user,
  MESSAGE_TYPE.compress,
  MESSAGE_TYPE.error,
]);

/** A message all of whose bytes are there; it may announce more than there are. */
export function decodeStreamMessage(
  bytes: Uint8Array,
  limits: StreamLimits,
  direction: StreamDirection,
  compressed = false,
): StreamMessage {
  const kind = bytes[0];
  switch (kind) {
    case MESSAGE_TYPE.compress: {
      if (compressed) throw new DecodeError("memberlist stream", 0, "compressed twice");
      return decodeStreamMessage(decodeCompressed(bytes, limits.maxMessageBytes), limits, direction, true);
    }
    case MESSAGE_TYPE.pushPull:
      return decodePushPull(bytes, limits);
    case MESSAGE_TYPE.user: {
      if (direction !== "request") break;
      const input = new MsgpackReader(bytes, "memberlist stream user message", 1);
      const length = decodeUserHeader(input, limits);
      return { type: "user", payload: input.raw(length) };
    }
    case MESSAGE_TYPE.ping:
    case MESSAGE_TYPE.ack:
    case MESSAGE_TYPE.error: {
      if ((kind === MESSAGE_TYPE.ping) !== (direction === "request")) break;
      const message = decodeMessage(bytes);
      assert(
        message.type === "ping" || message.type === "ack" || message.type === "error",
        "the type byte decides",
      );
      return message;
    }
    case undefined:
      throw new DecodeError("memberlist stream", 0, "empty message");
    default:
      break;
  }
  throw new DecodeError("memberlist stream", 0, `message type ${kind} not valid in a ${direction}`);
}

const USER_HEADER = fieldTable("UserMsgLen");

/** Length of the payload. @throws DecodeError when it is more than `limits` allow */
export function decodeUserHeader(input: MsgpackReader, limits: StreamLimits): number {
  let length = 0;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    if (input.field(shape, i, USER_HEADER) === 0) length = input.int();
    else input.skip();
  }
  if (length < 0 || length > limits.maxUserMessageBytes)
    input.fail(`user message of ${length} bytes is outside 0 … ${limits.maxUserMessageBytes}`);
  return length;
}

const USER_MSG_LEN = fieldKey("UserMsgLen");
