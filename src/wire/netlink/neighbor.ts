/**
 * Neighbors (IP → MAC) and FDB entries (MAC → VTEP): `struct ndmsg` (family 1, pad 3, interface 4, state 2,
 * flags 1, type 1), then NDA_* attributes. include/uapi/linux/neighbour.h
 *
 * This is the one bulk format: tens of thousands of entries are written and read back in one go, so addresses
 * go between text and bytes without intermediate arrays.
 */
import { type ByteReader, ByteReader as Reader, type ByteWriter } from "../../base/bytes.ts";
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
  return new Reader(payload, "netlink neighbor").u8() === AF.bridge;
}

/** @throws DecodeError, also when it is an FDB entry without the fields a neighbor has */
export function decodeNeighbor(payload: Uint8Array): Neighbor {
  const input: ByteReader = new Reader(payload, "netlink neighbor");
  const { ifindex, state, flags, destination, lladdr } = decodeEntry(input);
  if (destination === undefined) input.fail("has no address");
  return {
    ifindex,
    ip: readIp(destination),
    mac: lladdr === undefined ? undefined : readMac(lladdr),
    state,
    flags,
  };
}

/** @throws DecodeError */
export function decodeFdbEntry(payload: Uint8Array): FdbEntry {
  const input: ByteReader = new Reader(payload, "netlink fdb entry");
  const { ifindex, state, flags, destination, lladdr } = decodeEntry(input);
  if (lladdr === undefined) input.fail("has no MAC address");
  return {
    ifindex,
    mac: readMac(lladdr),
    vtep: destination === undefined ? undefined : readIp(destination),
    state,
    flags,
  };
}

function encodeHeader(
  family: number,
  entry: { readonly ifindex: number; readonly state: number; readonly flags: number },
  out: ByteWriter,
): void {
  out.u8(family).zeros(3).i32h(entry.ifindex).u16h(entry.state).u8(entry.flags).u8(0);
}

function decodeEntry(input: ByteReader): {
  ifindex: number;
  state: number;
  flags: number;
  destination: Uint8Array | undefined;
  lladdr: Uint8Array | undefined;
} {
  input.skip(4);
  const ifindex = input.i32h();
  const state = input.u16h();
  const flags = input.u8();
  input.skip(1);
  let destination: Uint8Array | undefined;
  let lladdr: Uint8Array | undefined;
  while (input.remaining >= 4) {
    const length = input.u16h();
    const type = input.u16h();
    if (length < 4) input.fail(`attribute length ${length} is below its header's`);
    if (type === NDA.destination) destination = input.take(length - 4);
    else if (type === NDA.lladdr) lladdr = input.take(length - 4);
    else input.skip(length - 4);
    input.skip(Math.min(-length & 3, input.remaining));
  }
  // Devices without MAC addresses have neighbors, too.
  if (lladdr?.length !== 6) lladdr = undefined;
  return { ifindex, state, flags, destination, lladdr };
}

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

function readMac(b: Uint8Array): MacAddr {
  const pair = (i: number): string => HEX[b[i] ?? 0] ?? "";
  return `${pair(0)}:${pair(1)}:${pair(2)}:${pair(3)}:${pair(4)}:${pair(5)}` as MacAddr;
}

function readIp(b: Uint8Array): IpAddr {
  return b.length === 4 ? (`${b[0]}.${b[1]}.${b[2]}.${b[3]}` as IpAddr) : ipFromBytes(b);
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
