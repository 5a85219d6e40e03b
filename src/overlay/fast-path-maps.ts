/**
 * What the fast path's programs (`fast-path.ts`) know: where endpoints are, how VTEPs are reached, and which flows are
 * streams. Keys and values as they stand in BPF maps, in host order but for addresses.
 */
import type { Vni } from "../base/id.ts";
import { type IpAddr, ipToBytes } from "../base/ip.ts";
import { type MacAddr, macToBytes } from "../base/mac.ts";

/** Bytes of keys and values. */
export const ENDPOINT_KEY_BYTES = 12;
export const ENDPOINT_VALUE_BYTES = 16;
export const VTEP_KEY_BYTES = 4;
export const VTEP_VALUE_BYTES = 8;

export interface FastEndpoint {
  readonly vtep: IpAddr;
  /** Our own data-path address. */
  readonly source: IpAddr;
  /** The host's end of the network's pair. */
  readonly hostIfindex: number;
}

export interface FastVtep {
  /** The underlay device that leads there. */
  readonly ifindex: number;
  /** Largest outer IP packet, bytes. */
  readonly mtu: number;
}

export interface FastMaps {
  /** Descriptors. */
  readonly endpoints: number;
  readonly vteps: number;
  /** Flows of UDP, where one-way streams are left to the device: an engine moves many of their packets as one. */
  readonly streams?: number | undefined;
}

/** Of the array of flows. */
export const STREAM_SLOTS = 4096;
export const STREAM_KEY_BYTES = 4;
export const STREAM_BYTES = 8;

/** Of the outer header. */
export const TTL = 64;
export const UDP = 17;

export function encodeEndpointKey(vni: Vni, mac: MacAddr): Uint8Array {
  const bytes = new Uint8Array(ENDPOINT_KEY_BYTES);
  new DataView(bytes.buffer).setUint32(0, vni, true);
  bytes.set(macToBytes(mac), 4);
  return bytes;
}

/** Both addresses are IPv4. */
export function encodeEndpoint({ vtep, source, hostIfindex }: FastEndpoint): Uint8Array {
  const bytes = new Uint8Array(ENDPOINT_VALUE_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(ipToBytes(vtep), 0);
  bytes.set(ipToBytes(source), 4);
  view.setUint32(8, hostIfindex, true);
  // What the checksum of each outer header has in common, in the order of the bytes (RFC 1071 §2).
  let sum = 0x45 + networkOrder((TTL << 8) | UDP);
  for (let at = 0; at < 8; at += 2) sum += view.getUint16(at, true);
  view.setUint32(12, sum, true);
  return bytes;
}

export function encodeVtepKey(vtep: IpAddr): Uint8Array {
  return ipToBytes(vtep);
}

export function encodeVtep({ ifindex, mtu }: FastVtep): Uint8Array {
  const bytes = new Uint8Array(VTEP_VALUE_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, ifindex, true);
  view.setUint32(4, mtu, true);
  return bytes;
}

/** 16 bits as the network has them, read by a little-endian machine. */
export function networkOrder(number: number): number {
  return ((number & 0xff) << 8) | ((number >> 8) & 0xff);
}
