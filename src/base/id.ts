import type { Brand } from "./brand.ts";
import { DecodeError } from "./error.ts";
import { randomInt, type Random } from "./random.ts";

/** A memberlist member name: 12 hex digits of ours and Docker's, any 1–255 byte text of others. Fresh at every start. */
export type NodeName = Brand<string, "NodeName">;
/** Outlives restarts: 25 characters of base 36 in the data directory. Owns address ranges and definitions. */
export type NodeId = Brand<string, "NodeId">;
/** 25 characters of base 36, as swarmkit makes them; others' ids are any 1–64 characters without `/`. */
export type NetworkId = Brand<string, "NetworkId">;
export type ServiceId = Brand<string, "ServiceId">;
/** 64 hex digits. */
export type EndpointId = Brand<string, "EndpointId">;
/** VXLAN network identifier, 0 … 16777215 (24 bits). */
export type Vni = Brand<number, "Vni">;

const OBJECT_ID = /^[A-Za-z0-9_.-]{1,64}$/;

function parseWith(pattern: RegExp, format: string, text: string): string {
  if (!pattern.test(text)) throw new DecodeError(format, undefined, `'${text.slice(0, 80)}' is not valid`);
  return text;
}

export function nodeName(text: string): NodeName {
  if (text.length === 0 || text.length > 255)
    throw new DecodeError("node name", undefined, "must have 1 to 255 characters");
  return text as NodeName;
}
export function nodeId(text: string): NodeId {
  return parseWith(OBJECT_ID, "node id", text) as NodeId;
}
export function networkId(text: string): NetworkId {
  return parseWith(OBJECT_ID, "network id", text) as NetworkId;
}
export function serviceId(text: string): ServiceId {
  return parseWith(OBJECT_ID, "service id", text) as ServiceId;
}
/** Accepts any key a peer may use; ours are 64 hex digits. */
export function endpointId(text: string): EndpointId {
  return parseWith(/^[A-Za-z0-9_.-]{1,128}$/, "endpoint id", text) as EndpointId;
}
export function vni(value: number): Vni {
  if (!Number.isInteger(value) || value < 0 || value > 0xffffff) {
    throw new DecodeError("VNI", undefined, `${value} is outside 0 … 16777215`);
  }
  return value as Vni;
}

/** `length` digits of base 36 (`0-9a-z`), for network, service and node ids. */
export function randomBase36(random: Random, length = 25): string {
  let text = "";
  for (let i = 0; i < length; i++) text += "0123456789abcdefghijklmnopqrstuvwxyz"[randomInt(random, 36)];
  return text;
}

/** `length` hex digits: 12 for a member name, 64 for an endpoint id. */
export function randomHex(random: Random, length: number): string {
  let text = "";
  for (let i = 0; i < length; i++) text += "0123456789abcdef"[randomInt(random, 16)];
  return text;
}
