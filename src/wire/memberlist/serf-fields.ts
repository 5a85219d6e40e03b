/** What the codecs of serf's own messages share: keys and fields in its msgpack dialect. */
import type { ByteWriter } from "../../base/bytes.ts";
import { fieldKey, type MsgpackReader, writeBytes, writeText, writeUnsigned } from "../msgpack.ts";

/** An array, item by item. */
export function list<T>(input: MsgpackReader, item: () => T): T[] {
  const items: T[] = [];
  for (let left = input.arrayHeader(); left > 0; left--) items.push(item());
  return items;
}

export function unsigned(out: ByteWriter, key: Uint8Array, value: number): void {
  writeUnsigned(out.write(key), value);
}

export function text(out: ByteWriter, key: Uint8Array, value: string): void {
  writeText(out.write(key), value);
}

export function bytes(out: ByteWriter, key: Uint8Array, value: Uint8Array): void {
  writeBytes(out.write(key), value);
}

/** Every key serf writes, encoded once. */
export const KEY = {
  addr: fieldKey("Addr"),
  adjustment: fieldKey("Adjustment"),
  cc: fieldKey("CC"),
  destAddr: fieldKey("DestAddr"),
  destName: fieldKey("DestName"),
  error: fieldKey("Error"),
  eventLtime: fieldKey("EventLTime"),
  events: fieldKey("Events"),
  filters: fieldKey("Filters"),
  flags: fieldKey("Flags"),
  from: fieldKey("From"),
  height: fieldKey("Height"),
  id: fieldKey("ID"),
  ip: fieldKey("IP"),
  leftMembers: fieldKey("LeftMembers"),
  ltime: fieldKey("LTime"),
  name: fieldKey("Name"),
  node: fieldKey("Node"),
  payload: fieldKey("Payload"),
  port: fieldKey("Port"),
  prune: fieldKey("Prune"),
  queryLtime: fieldKey("QueryLTime"),
  relayFactor: fieldKey("RelayFactor"),
  sourceNode: fieldKey("SourceNode"),
  statusLtimes: fieldKey("StatusLTimes"),
  timeout: fieldKey("Timeout"),
  vec: fieldKey("Vec"),
  zone: fieldKey("Zone"),
} as const;
