/** Serf's user state of a push/pull: its clocks, and what happened lately (serf/messages.go, messagePushPull). */
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import {
  fieldCount,
  fieldTable,
  MsgpackReader,
  NO_BYTES,
  writeArrayHeader,
  writeMapHeader,
  writeNil,
  writeText,
  writeUnsigned,
} from "../msgpack.ts";
import { bytes, KEY, list, text, unsigned } from "./serf-fields.ts";
import { SERF_TYPE } from "./serf.ts";

export interface SerfRecentEvents {
  readonly ltime: number;
  readonly events: readonly { readonly name: string; readonly payload: Uint8Array }[];
}

/** User state of a push/pull. The clocks are one ahead of the last time used. */
export interface SerfUserState {
  readonly ltime: number;
  /** Lamport time of each member's latest intent. */
  readonly statusLtimes: ReadonlyMap<string, number>;
  readonly leftMembers: readonly string[];
  readonly eventLtime: number;
  /** The sender's ring of recent events, empty slots and all. */
  readonly events: readonly (SerfRecentEvents | undefined)[];
  readonly queryLtime: number;
}

export function encodeSerfUserState(state: SerfUserState): Uint8Array {
  const out = new ByteWriter(1024);
  out.u8(SERF_TYPE.pushPull);
  writeMapHeader(out, 6);
  unsigned(out, KEY.eventLtime, state.eventLtime);
  out.write(KEY.events);
  writeArrayHeader(out, state.events.length);
  for (const slot of state.events) {
    if (slot === undefined) {
      writeNil(out);
      continue;
    }
    writeMapHeader(out, 2);
    out.write(KEY.events);
    writeArrayHeader(out, slot.events.length);
    for (const event of slot.events) {
      writeMapHeader(out, 2);
      text(out, KEY.name, event.name);
      bytes(out, KEY.payload, event.payload);
    }
    unsigned(out, KEY.ltime, slot.ltime);
  }
  unsigned(out, KEY.ltime, state.ltime);
  out.write(KEY.leftMembers);
  writeArrayHeader(out, state.leftMembers.length);
  for (const member of state.leftMembers) writeText(out, member);
  unsigned(out, KEY.queryLtime, state.queryLtime);
  out.write(KEY.statusLtimes);
  writeMapHeader(out, state.statusLtimes.size);
  for (const [member, ltime] of state.statusLtimes) {
    writeText(out, member);
    writeUnsigned(out, ltime);
  }
  return out.finish();
}

const USER_STATE = fieldTable("LTime", "StatusLTimes", "LeftMembers", "EventLTime", "Events", "QueryLTime");

/** @throws DecodeError unless it starts with serf's push/pull type and fits it. */
export function decodeSerfUserState(userState: Uint8Array): SerfUserState {
  if (userState[0] !== SERF_TYPE.pushPull)
    throw new DecodeError("serf user state", 0, "not a push/pull message");
  const input = new MsgpackReader(userState, "serf user state", 1);
  let ltime = 0;
  const statusLtimes = new Map<string, number>();
  let leftMembers: readonly string[] = [];
  let eventLtime = 0;
  let events: readonly (SerfRecentEvents | undefined)[] = [];
  let queryLtime = 0;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, USER_STATE)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        for (let left = input.mapHeader(); left > 0; left--) {
          const member = input.text();
          statusLtimes.set(member, input.u53());
        }
        break;
      case 2:
        leftMembers = list(input, () => input.text());
        break;
      case 3:
        eventLtime = input.u53();
        break;
      case 4:
        events = list(input, () => (input.nil() ? undefined : decodeRecentEvents(input)));
        break;
      case 5:
        queryLtime = input.u53();
        break;
      default:
        input.skip();
    }
  }
  return { ltime, statusLtimes, leftMembers, eventLtime, events, queryLtime };
}

const RECENT_EVENTS = fieldTable("LTime", "Events");
const RECENT_EVENT = fieldTable("Name", "Payload");

function decodeRecentEvents(input: MsgpackReader): SerfRecentEvents {
  let ltime = 0;
  let events: SerfRecentEvents["events"] = [];
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, RECENT_EVENTS)) {
      case 0:
        ltime = input.u53();
        break;
      case 1:
        events = list(input, () => decodeRecentEvent(input));
        break;
      default:
        input.skip();
    }
  }
  return { ltime, events };
}

function decodeRecentEvent(input: MsgpackReader): SerfRecentEvents["events"][number] {
  let name = "";
  let payload = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, RECENT_EVENT)) {
      case 0:
        name = input.text();
        break;
      case 1:
        payload = input.bytes();
        break;
      default:
        input.skip();
    }
  }
  return { name, payload };
}
