/** Network coordinates, as serf puts them into acks (coordinate/coordinate.go). */
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import {
  fieldCount,
  fieldTable,
  MsgpackReader,
  writeArrayHeader,
  writeDouble,
  writeMapHeader,
} from "../msgpack.ts";
import { KEY, list } from "./serf-fields.ts";

/** Vivaldi coordinate, in seconds. */
export interface SerfCoordinate {
  /** 8 dimensions by default. */
  readonly vec: readonly number[];
  readonly error: number;
  readonly adjustment: number;
  readonly height: number;
}

const PING_VERSION = 1;

/** Payload of an ack. */
export function encodeSerfCoordinate(coordinate: SerfCoordinate): Uint8Array {
  const out = new ByteWriter();
  out.u8(PING_VERSION);
  writeMapHeader(out, 4);
  out.write(KEY.adjustment);
  writeDouble(out, coordinate.adjustment);
  out.write(KEY.error);
  writeDouble(out, coordinate.error);
  out.write(KEY.height);
  writeDouble(out, coordinate.height);
  out.write(KEY.vec);
  writeArrayHeader(out, coordinate.vec.length);
  for (const component of coordinate.vec) writeDouble(out, component);
  return out.finish();
}

const COORDINATE = fieldTable("Vec", "Error", "Adjustment", "Height");

/** @throws DecodeError on another version or a body that does not fit. */
export function decodeSerfCoordinate(payload: Uint8Array): SerfCoordinate {
  if (payload[0] !== PING_VERSION) throw new DecodeError("serf coordinate", 0, "unknown version");
  const input = new MsgpackReader(payload, "serf coordinate", 1);
  let vec: readonly number[] = [];
  let error = 0;
  let adjustment = 0;
  let height = 0;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, COORDINATE)) {
      case 0:
        vec = list(input, () => input.double());
        break;
      case 1:
        error = input.double();
        break;
      case 2:
        adjustment = input.double();
        break;
      case 3:
        height = input.double();
        break;
      default:
        input.skip();
    }
  }
  return { vec, error, adjustment, height };
}
