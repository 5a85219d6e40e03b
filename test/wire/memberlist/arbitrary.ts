import fc from "fast-check";
import type {
  Ack,
  Alive,
  Dead,
  ErrorMessage,
  IndirectPing,
  MemberlistMessage,
  Nack,
  Ping,
  Suspect,
  UserMessage,
} from "../../../src/wire/memberlist/message.ts";
import type { Sealing } from "../../../src/wire/memberlist/seal.ts";
import {
  PUSH_PULL_STATES,
  type PushPull,
  type PushPullNode,
} from "../../../src/wire/memberlist/push-pull.ts";
import type { StreamMessage } from "../../../src/wire/memberlist/stream-message.ts";

/** Values of the memberlist formats, weighted towards the edges of the integer and length forms. */
const u32 = fc.oneof(fc.nat(0xffffffff), fc.constantFrom(0, 127, 128, 255, 256, 65_535, 65_536, 0xffffffff));
const port = fc.nat(0xffff);
const bytes = fc.uint8Array({ maxLength: 40 });
const name = fc.oneof(
  fc.string({ unit: "grapheme", maxLength: 40 }),
  fc.string({ unit: "binary-ascii", maxLength: 300 }),
  fc.constantFrom("", "n1", "a".repeat(31), "a".repeat(32), "é".repeat(16), "\ufeff"),
);

export const message: fc.Arbitrary<MemberlistMessage> = fc.oneof(
  record<Ping>({
    type: fc.constant("ping"),
    seqNo: u32,
    node: name,
    sourceAddr: bytes,
    sourcePort: port,
    sourceNode: name,
  }),
  record<IndirectPing>({
    type: fc.constant("indirect-ping"),
    seqNo: u32,
    target: bytes,
    port,
    node: name,
    nack: fc.boolean(),
    sourceAddr: bytes,
    sourcePort: port,
    sourceNode: name,
  }),
  record<Ack>({ type: fc.constant("ack"), seqNo: u32, payload: bytes }),
  record<Nack>({ type: fc.constant("nack"), seqNo: u32 }),
  record<Suspect>({ type: fc.constant("suspect"), incarnation: u32, node: name, from: name }),
  record<Dead>({ type: fc.constant("dead"), incarnation: u32, node: name, from: name }),
  record<Alive>({
    type: fc.constant("alive"),
    incarnation: u32,
    node: name,
    addr: bytes,
    port,
    meta: fc.uint8Array({ maxLength: 520 }),
    vsn: fc.uint8Array({ maxLength: 7 }),
  }),
  record<UserMessage>({ type: fc.constant("user"), payload: bytes }),
);

const node: fc.Arbitrary<PushPullNode> = record<PushPullNode>({
  name,
  addr: bytes,
  port,
  meta: bytes,
  incarnation: u32,
  state: fc.constantFrom(...PUSH_PULL_STATES),
  vsn: fc.uint8Array({ maxLength: 7 }),
});

export const request: fc.Arbitrary<StreamMessage> = fc.oneof(
  pushPull(),
  record<UserMessage>({ type: fc.constant("user"), payload: fc.uint8Array({ maxLength: 300 }) }),
  record<Ping>({
    type: fc.constant("ping"),
    seqNo: u32,
    node: name,
    sourceAddr: bytes,
    sourcePort: port,
    sourceNode: name,
  }),
);

export const reply: fc.Arbitrary<StreamMessage> = fc.oneof(
  pushPull(),
  record<Ack>({ type: fc.constant("ack"), seqNo: u32, payload: bytes }),
  record<ErrorMessage>({ type: fc.constant("error"), error: name }),
);

/** Every way a cluster may be configured that both sides can agree on. */
export const sealing: fc.Arbitrary<Sealing> = record<Sealing>({
  keys: fc.array(
    fc.constantFrom(16, 24, 32).chain((length) => fc.uint8Array({ minLength: length, maxLength: length })),
    { maxLength: 2 },
  ),
  label: fc.constantFrom("", "blue", "zone-é", "L".repeat(255)),
  verifyIncoming: fc.constant(true),
  verifyOutgoing: fc.constant(true),
  encryptionVersion: fc.constantFrom(0, 1),
});

export const nonce: fc.Arbitrary<Uint8Array> = fc.uint8Array({ minLength: 12, maxLength: 12 });

function pushPull(): fc.Arbitrary<StreamMessage> {
  return record<PushPull>({
    type: fc.constant("push-pull"),
    join: fc.boolean(),
    nodes: fc.array(node, { maxLength: 8 }),
    userState: fc.uint8Array({ maxLength: 300 }),
  });
}

/** fast-check's records have no prototype unless asked, and `deepEqual` looks at it. */
function record<T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record(model, { noNullPrototype: true });
}
