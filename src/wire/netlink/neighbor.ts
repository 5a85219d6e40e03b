/**
 * Neighbors (IP → MAC) and FDB entries (MAC → VTEP): `struct ndmsg` (family 1, pad 3, interface 4, state 2,
 * flags 1, type 1), then NDA_* attributes. include/uapi/linux/neighbour.h
 *
 * This is the one bulk format: tens of thousands of entries are written and read back in one go, so addresses
 * go between text and bytes without intermediate arrays.
 */
import type { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import { type IpAddr, ipFromBytes, ipToBytes } from "../../base/ip.ts";
import type { MacAddr } from "../../base/mac.ts";
import { AF } from "./rtnetlink.ts";
import { writeAttribute, writeU32Attribute } from "./message.ts";

/** IP → MAC on an interface. */
export interface Neighbor {
  readonly ifindex: number;
  readonly ip: IpAddr;
  /** Undefined in an unfinished entry. */
  readonly mac: MacAddr | undefined;
  /** NUD_* bits. */
  readonly state: number;
  /** NTF_* bits. */
  readonly flags: number;
}

/** MAC → destination on a VXLAN device (NTF_SELF), or MAC → port on a bridge (NTF_MASTER). */
export interface FdbEntry {
  readonly ifindex: number;
  readonly mac: MacAddr;
  /** VTEP, of NTF_SELF entries. */
  readonly vtep: IpAddr | undefined;
  readonly state: number;
  readonly flags: number;
}

export const NUD = {
  incomplete: 0x01,
  reachable: 0x02,
  stale: 0x04,
  failed: 0x20,
  noArp: 0x40,
  permanent: 0x80,
} as const;

export const NTF = { self: 0x02, master: 0x04, proxy: 0x08, extLearned: 0x10, sticky: 0x40 } as const;

const NDA = { destination: 1, lladdr: 2, vlan: 5, port: 6, vni: 7, ifindex: 8, master: 9 } as const;

/** Payload of RTM_NEWNEIGH and RTM_DELNEIGH for a neighbor: 32 bytes for IPv4. */
export function encodeNeighbor(neighbor: Neighbor, out: ByteWriter): void {
  encodeHeader(neighbor.ip.includes(":") ? AF.inet6 : AF.inet, neighbor, out);
  writeIp(NDA.destination, neighbor.ip, out);
  if (neighbor.mac !== undefined) writeMac(neighbor.mac, out);
}

/** Payload of RTM_NEWNEIGH and RTM_DELNEIGH for an FDB entry. A delete without VTEP takes every destination. */
export function encodeFdbEntry(entry: FdbEntry, out: ByteWriter): void {
  encodeHeader(AF.bridge, entry, out);
  writeMac(entry.mac, out);
  if (entry.vtep !== undefined) writeIp(NDA.destination, entry.vtep, out);
}

/** Payload of a RTM_GETNEIGH dump of one interface's neighbors of both families. */
export function encodeNeighborQuery(ifindex: number, out: ByteWriter): void {
  out.zeros(12);
  // The header's field must be 0 under strict checking: the filter is an attribute.
  writeU32Attribute(out, NDA.ifindex, ifindex);
}

/** Payload of a RTM_GETNEIGH dump of one device's own FDB (`bridge fdb show dev X self`). */
export function encodeFdbQuery(ifindex: number, out: ByteWriter): void {
  // Unlike for neighbors, here the header's field is the filter.
  out.u8(AF.bridge).zeros(3).i32h(ifindex).zeros(4);
}

/** Payload of a RTM_GETNEIGH dump of all ports' entries of one bridge. */
export function encodeBridgeFdbQuery(bridgeIfindex: number, out: ByteWriter): void {
  out.u8(AF.bridge).zeros(11);
  writeU32Attribute(out, NDA.master, bridgeIfindex);
}

/** Whether a RTM_NEWNEIGH or RTM_DELNEIGH payload is an FDB entry. @throws DecodeError on an empty one */
export function isFdbPayload(payload: Uint8Array): boolean {
  if (payload.length === 0) throw new DecodeError("netlink neighbor", 0, "is empty");
  return payload[0] === AF.bridge;
}

/** @throws DecodeError, also when it is an FDB entry without the fields a neighbor has */
export function decodeNeighbor(payload: Uint8Array): Neighbor {
  const entry = decodeEntry(payload, "netlink neighbor");
  const { ifindex, state, flags, destination, lladdr } = entry;
  if (destination < 0) throw new DecodeError("netlink neighbor", 12, "has no address");
  const ip = readIp(payload, destination, entry.destinationBytes);
  return { ifindex, ip, mac: lladdr < 0 ? undefined : readMac(payload, lladdr), state, flags };
}

/** @throws DecodeError */
export function decodeFdbEntry(payload: Uint8Array): FdbEntry {
  const entry = decodeEntry(payload, "netlink fdb entry");
  const { ifindex, state, flags, destination, lladdr } = entry;
  if (lladdr < 0) throw new DecodeError("netlink fdb entry", 12, "has no MAC address");
  const vtep = destination < 0 ? undefined : readIp(payload, destination, entry.destinationBytes);
  return { ifindex, mac: readMac(payload, lladdr), vtep, state, flags };
}

function encodeHeader(
  family: number,
  entry: { readonly ifindex: number; readonly state: number; readonly flags: number },
  out: ByteWriter,
): void {
  out.u8(family).zeros(3).i32h(entry.ifindex).u16h(entry.state).u8(entry.flags).u8(0);
}

interface EntryFields {
  readonly ifindex: number;
  readonly state: number;
  readonly flags: number;
  /** Offset of the address, −1 for none. */
  readonly destination: number;
  readonly destinationBytes: number;
  /** Offset of the MAC's six bytes, −1 for none. */
  readonly lladdr: number;
}

/** By offsets instead of a reader and views: those cost more than all the rest of an entry. */
function decodeEntry(b: Uint8Array, format: string): EntryFields {
  if (b.length < HEADER_LENGTH) throw new DecodeError(format, b.length, `needs ${HEADER_LENGTH} bytes`);
  let destination = -1;
  let destinationBytes = 0;
  let lladdr = -1;
  for (let at = HEADER_LENGTH; at + 4 <= b.length;) {
    const length = u16h(b, at);
    if (length < 4 || at + length > b.length)
      throw new DecodeError(format, at, `attribute length ${length} does not fit`);
    const type = u16h(b, at + 2);
    if (type === NDA.destination) {
      destination = at + 4;
      destinationBytes = length - 4;
    } else if (type === NDA.lladdr && length === 10) lladdr = at + 4; // other devices have other lengths
    at += (length + 3) & ~3;
  }
  const ifindex = u16h(b, 4) | (u16h(b, 6) << 16) | 0;
  return { ifindex, state: u16h(b, 8), flags: b[10] ?? 0, destination, destinationBytes, lladdr };
}

const HEADER_LENGTH = 12;

function u16h(b: Uint8Array, at: number): number {
  return (b[at] ?? 0) | ((b[at + 1] ?? 0) << 8);
}

/** ASCII codes of the two hex digits of each byte. */
const HIGH = Uint8Array.from({ length: 256 }, (_, byte) => "0123456789abcdef".charCodeAt(byte >> 4));
const LOW = Uint8Array.from({ length: 256 }, (_, byte) => "0123456789abcdef".charCodeAt(byte & 15));

/** In one call on purpose: concatenation makes a rope, which every later map look-up has to flatten. */
function readMac(b: Uint8Array, start: number): MacAddr {
  const high = (i: number): number => HIGH[b[start + i] ?? 0] ?? 0;
  const low = (i: number): number => LOW[b[start + i] ?? 0] ?? 0;
  // prettier-ignore
  return String.fromCharCode(
    high(0), low(0), COLON, high(1), low(1), COLON, high(2), low(2), COLON,
    high(3), low(3), COLON, high(4), low(4), COLON, high(5), low(5),
  ) as MacAddr;
}

const COLON = 58;

function readIp(b: Uint8Array, at: number, length: number): IpAddr {
  if (length !== 4) return ipFromBytes(b.subarray(at, at + length));
  return `${b[at]}.${b[at + 1]}.${b[at + 2]}.${b[at + 3]}` as IpAddr;
}

/** `0`–`9`, `a`–`f` only: a MacAddr is canonical. */
function hexDigit(code: number): number {
  return code < 58 ? code - 48 : code - 87;
}

function writeMac(mac: MacAddr, out: ByteWriter): void {
  out.u16h(10).u16h(NDA.lladdr);
  for (let at = 0; at < 18; at += 3) {
    out.u8((hexDigit(mac.charCodeAt(at)) << 4) | hexDigit(mac.charCodeAt(at + 1)));
  }
  out.u16h(0);
}

function writeIp(type: number, ip: IpAddr, out: ByteWriter): void {
  if (ip.includes(":")) return writeAttribute(out, type, ipToBytes(ip));
  out.u16h(8).u16h(type);
  let octet = 0;
  for (let at = 0; at < ip.length; at++) {
    const code = ip.charCodeAt(at);
    if (code === 46) {
      out.u8(octet);
      octet = 0;
    } else octet = octet * 10 + (code - 48);
  }
  out.u8(octet);
}
