/** The exchange of member lists: `06 {Join, Nodes, UserStateLen}`, then `Nodes` member maps, then the user state. */
import type { ByteWriter } from "../../base/bytes.ts";
import {
  fieldCount,
  fieldKey,
  fieldTable,
  MsgpackReader,
  NO_BYTES,
  writeBool,
  writeBytes,
  writeMapHeader,
  writeText,
  writeUnsigned,
  type EmptyBytes,
} from "../msgpack.ts";
import { MESSAGE_TYPE } from "./message.ts";

/** As in Go's NodeStateType: the index is the number on the wire. */
export const PUSH_PULL_STATES = ["alive", "suspect", "dead", "left"] as const;
export type PushPullState = (typeof PUSH_PULL_STATES)[number];

/** What the sender knows of one member. Fields as in `Alive`. */
export interface PushPullNode {
  readonly name: string;
  readonly addr: Uint8Array;
  readonly port: number;
  readonly meta: Uint8Array;
  readonly incarnation: number;
  readonly state: PushPullState;
  readonly vsn: Uint8Array;
}

export interface PushPull {
  readonly type: "push-pull";
  /** The sender is joining, as opposed to periodic anti-entropy; a reply repeats the request's. */
  readonly join: boolean;
  readonly nodes: readonly PushPullNode[];
  /** Of the application; of a decoded one a view into the input. */
  readonly userState: Uint8Array;
}

export interface PushPullLimits {
  /** Members in one push/pull: bounds the records made of a message of empty maps. */
  readonly maxNodes: number;
  readonly maxUserStateBytes: number;
}

/** Appends the message, its type byte included. `empty`: as in `encodeMessage`. */
export function encodePushPullInto(message: PushPull, out: ByteWriter, empty: EmptyBytes): void {
  out.u8(MESSAGE_TYPE.pushPull);
  writeMapHeader(out, 3);
  out.write(KEY.join);
  writeBool(out, message.join);
  out.write(KEY.nodes);
  writeUnsigned(out, message.nodes.length);
  out.write(KEY.userStateLen);
  writeUnsigned(out, message.userState.length);
  for (const node of message.nodes) encodeNode(node, out, empty);
  out.write(message.userState);
}

export interface PushPullHeader {
  readonly join: boolean;
  readonly nodes: number;
  readonly userStateBytes: number;
}

const PUSH_PULL_HEADER = fieldTable("Nodes", "UserStateLen", "Join");

/** @throws DecodeError when it announces more than `limits` allow */
export function decodePushPullHeader(input: MsgpackReader, limits: PushPullLimits): PushPullHeader {
  let nodes = 0;
  let userStateBytes = 0;
  let join = false;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, PUSH_PULL_HEADER)) {
      case 0:
        nodes = input.int();
        break;
      case 1:
        userStateBytes = input.int();
        break;
      case 2:
        join = input.bool();
        break;
      default:
        input.skip();
    }
  }
  if (nodes < 0 || nodes > limits.maxNodes) input.fail(`${nodes} members are outside 0 … ${limits.maxNodes}`);
  if (userStateBytes < 0 || userStateBytes > limits.maxUserStateBytes)
    input.fail(`user state of ${userStateBytes} bytes is outside 0 … ${limits.maxUserStateBytes}`);
  return { join, nodes, userStateBytes };
}

/** A message all of whose bytes are there; it may announce more than there are. @throws DecodeError */
export function decodePushPull(bytes: Uint8Array, limits: PushPullLimits): PushPull {
  const input = new MsgpackReader(bytes, "memberlist push/pull", 1);
  const header = decodePushPullHeader(input, limits);
  const nodes: PushPullNode[] = [];
  for (let i = 0; i < header.nodes; i++) {
    const node = decodeNode(input);
    // A state of some later release: Go's merge passes over it too.
    if (node !== undefined) nodes.push(node);
  }
  return {
    type: "push-pull",
    join: header.join,
    nodes,
    userState: input.raw(header.userStateBytes),
  };
}

const NODE = fieldTable("Name", "Addr", "Port", "Meta", "Incarnation", "State", "Vsn");

function decodeNode(input: MsgpackReader): PushPullNode | undefined {
  let name = "";
  let addr = NO_BYTES;
  let port = 0;
  let meta = NO_BYTES;
  let incarnation = 0;
  let state = 0;
  let vsn = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, NODE)) {
      case 0:
        name = input.text();
        break;
      case 1:
        addr = input.bytes();
        break;
      case 2:
        port = input.u16();
        break;
      case 3:
        meta = input.bytes();
        break;
      case 4:
        incarnation = input.u32();
        break;
      case 5:
        state = input.int();
        break;
      case 6:
        vsn = input.bytes();
        break;
      default:
        input.skip();
    }
  }
  const known = PUSH_PULL_STATES[state];
  return known === undefined ? undefined : { name, addr, port, meta, incarnation, state: known, vsn };
}

function encodeNode(node: PushPullNode, out: ByteWriter, empty: EmptyBytes): void {
  writeMapHeader(out, 7);
  out.write(KEY.addr);
  writeBytes(out, node.addr, empty);
  out.write(KEY.incarnation);
  writeUnsigned(out, node.incarnation);
  out.write(KEY.meta);
  writeBytes(out, node.meta, empty);
  out.write(KEY.name);
  writeText(out, node.name);
  out.write(KEY.port);
  writeUnsigned(out, node.port);
  out.write(KEY.state);
  writeUnsigned(out, PUSH_PULL_STATES.indexOf(node.state));
  out.write(KEY.vsn);
  writeBytes(out, node.vsn, empty);
}

const KEY = {
  addr: fieldKey("Addr"),
  incarnation: fieldKey("Incarnation"),
  join: fieldKey("Join"),
  meta: fieldKey("Meta"),
  name: fieldKey("Name"),
  nodes: fieldKey("Nodes"),
  port: fieldKey("Port"),
  state: fieldKey("State"),
  userStateLen: fieldKey("UserStateLen"),
  vsn: fieldKey("Vsn"),
} as const;
