/**
 * What netagents say in the push/pull of a join beyond NetworkDB's own state: their definitions, so that those who
 * join have everything with the answer, and a storm of joins needs hardly any gossip.
 *
 * They follow NetworkDB's message as one more field of its envelope, which Docker's decoder skips:
 *
 *     message GossipMessage { MessageType type = 1; bytes data = 2; bytes definitions = 64; }
 */
import { asDecodeError, protoReader, skipField, tag } from "../wire/networkdb/protobuf.ts";

const FORMAT = "push/pull state";
const DEFINITIONS = tag(64, 2);

/** NetworkDB's state with the definitions behind it. */
export function withDefinitions(state: Uint8Array, definitions: Uint8Array): Uint8Array {
  const head = [...varint(DEFINITIONS), ...varint(definitions.length)];
  const bytes = new Uint8Array(state.length + head.length + definitions.length);
  bytes.set(state);
  bytes.set(head, state.length);
  bytes.set(definitions, state.length + head.length);
  return bytes;
}

/** The definitions behind NetworkDB's state, if there are any. @throws DecodeError */
export function definitionsOf(state: Uint8Array): Uint8Array | undefined {
  const reader = protoReader(state);
  let found: Uint8Array | undefined;
  try {
    while (reader.pos < reader.len) {
      const fieldTag = reader.tag();
      if (fieldTag === DEFINITIONS) found = reader.bytes();
      else skipField(reader, fieldTag);
    }
  } catch (error) {
    throw asDecodeError(FORMAT, reader, error);
  }
  return found;
}

function varint(value: number): number[] {
  const bytes: number[] = [];
  for (; value > 127; value >>>= 7) bytes.push((value & 127) | 128);
  return [...bytes, value];
}
