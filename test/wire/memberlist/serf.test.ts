import assert from "node:assert/strict";
import { test } from "node:test";
import { fromHex, toHex } from "../../../src/base/bytes.ts";
import { DecodeError } from "../../../src/base/error.ts";
import { decodeSerfMessage, encodeSerfMessage, type SerfMessage } from "../../../src/wire/memberlist/serf.ts";
import { decodeSerfCoordinate, encodeSerfCoordinate } from "../../../src/wire/memberlist/serf-coordinate.ts";
import { decodeSerfTags, encodeSerfTags } from "../../../src/wire/memberlist/serf-tags.ts";
import {
  decodeSerfUserState,
  encodeSerfUserState,
  type SerfUserState,
} from "../../../src/wire/memberlist/serf-user-state.ts";
import { loadVectors } from "../../vectors/load.ts";

const vectors = loadVectors<{ name: string; hex: string; carrier: string; decoded: Decoded }>(
  "memberlist.jsonl",
).filter((vector) => vector.carrier.startsWith("serf-"));

test("sixteen vectors are of serf", () => {
  assert.equal(vectors.length, 16);
});

for (const { name, hex, carrier, decoded } of vectors) {
  test(`${name} means what serf says and is written the same`, () => {
    const bytes = fromHex(hex);
    switch (carrier) {
      case "serf-meta": {
        const tags = decodeSerfTags(bytes);
        assert.deepEqual(Object.fromEntries(tags), decoded["tags"] ?? {});
        if (bytes[0] === 0xff) assert.equal(toHex(encodeSerfTags(tags)), hex);
        return;
      }
      case "serf-user": {
        const message = decodeSerfMessage(bytes);
        assert.deepEqual(message, messageOf(decoded, bytes));
        assert.equal(toHex(encodeSerfMessage(message)), hex);
        return;
      }
      case "serf-userstate": {
        const state = decodeSerfUserState(bytes);
        assert.deepEqual(state, userStateOf(decoded));
        assert.equal(toHex(encodeSerfUserState(state)), hex);
        return;
      }
      default: {
        const coordinate = decodeSerfCoordinate(bytes);
        assert.deepEqual(
          {
            Vec: coordinate.vec,
            Error: coordinate.error,
            Adjustment: coordinate.adjustment,
            Height: coordinate.height,
            version: 1,
          },
          { ...decoded },
        );
        assert.equal(toHex(encodeSerfCoordinate(coordinate)), hex);
      }
    }
  });
}

test("a serf type we do not know is passed on as it came", () => {
  const message = decodeSerfMessage(fromHex("0780"));
  assert.deepEqual(message, { type: "other", serfType: 7, body: fromHex("80") });
  assert.equal(toHex(encodeSerfMessage(message)), "0780");
});

test("an empty message, a foreign user state and another coordinate version are refused", () => {
  assert.throws(() => decodeSerfMessage(fromHex("")), DecodeError);
  assert.throws(() => decodeSerfUserState(fromHex("0386")), DecodeError);
  assert.throws(() => decodeSerfCoordinate(fromHex("0284")), DecodeError);
});

type Decoded = Readonly<Record<string, unknown>>;

function bytesOf(value: unknown): Uint8Array {
  return typeof value === "string" ? fromHex(value.slice(4)) : new Uint8Array(0);
}

function messageOf(decoded: Decoded, bytes: Uint8Array): SerfMessage {
  const number = (name: string): number => Number(decoded[name]);
  const text = (name: string): string => String(decoded[name]);
  const ltime = number("LTime");
  switch (decoded["type"]) {
    case 0:
      return { type: "leave-intent", ltime, node: text("Node"), prune: decoded["Prune"] === true };
    case 1:
      return { type: "join-intent", ltime, node: text("Node") };
    case 3:
      return {
        type: "user-event",
        ltime,
        name: text("Name"),
        payload: bytesOf(decoded["Payload"]),
        coalesce: decoded["CC"] === true,
      };
    case 4:
      return {
        type: "query",
        ltime,
        id: number("ID"),
        addr: bytesOf(decoded["Addr"]),
        port: number("Port"),
        sourceNode: text("SourceNode"),
        filters: [],
        flags: number("Flags"),
        relayFactor: number("RelayFactor"),
        timeoutNanoseconds: number("Timeout"),
        name: text("Name"),
        payload: bytesOf(decoded["Payload"]),
      };
    case 5:
      return {
        type: "query-response",
        ltime,
        id: number("ID"),
        from: text("From"),
        flags: number("Flags"),
        payload: bytesOf(decoded["Payload"]),
      };
    default: {
      // The vector tells the type of the message inside and leaves its bytes to us.
      const inner = bytes.subarray(toHex(bytes).indexOf("a26e31") / 2 + 3);
      assert.equal(inner[0], decoded["innerType"]);
      return {
        type: "relay",
        destAddr: bytesOf(decoded["DestIP"]),
        destPort: number("DestPort"),
        destZone: "",
        destNode: text("DestName"),
        message: inner.slice(),
      };
    }
  }
}

interface DecodedEvents {
  readonly LTime: number;
  readonly Events: readonly { readonly Name: string; readonly Payload: string }[];
}

function userStateOf(decoded: Decoded): SerfUserState {
  const slots =
    decoded["Events"] === "512 nils"
      ? new Array<null>(512).fill(null)
      : (decoded["Events"] as readonly (DecodedEvents | null)[]);
  return {
    ltime: Number(decoded["LTime"]),
    statusLtimes: new Map(Object.entries(decoded["StatusLTimes"] as Record<string, number>)),
    leftMembers: decoded["LeftMembers"] as string[],
    eventLtime: Number(decoded["EventLTime"]),
    events: slots.map((slot) =>
      slot === null
        ? undefined
        : {
            ltime: slot.LTime,
            events: slot.Events.map((event) => ({ name: event.Name, payload: bytesOf(event.Payload) })),
          },
    ),
    queryLtime: Number(decoded["QueryLTime"]),
  };
}
