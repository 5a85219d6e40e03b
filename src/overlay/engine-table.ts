/**
 * The desired forwarding state of all networks as the bytes the userspace engine reads: the only thing that
 * crosses from TypeScript to its threads. Decoded by native/src/engine/table.cc.
 *
 * All big endian:
 *   "nae1", u32 VTEPs, u32 forwarding entries, u32 neighbors
 *   VTEP:       16 bytes address, IPv4 mapped (::ffff:a.b.c.d)
 *   forwarding: u32 VNI, 6 bytes MAC, u16 zero, u32 VTEP index
 *   neighbor:   u32 VNI, 6 bytes MAC, u16 zero, 16 bytes address, IPv4 mapped
 */
import { assert } from "../base/assert.ts";
import { ByteReader, ByteWriter } from "../base/bytes.ts";
import { vni as parseVni, type Vni } from "../base/id.ts";
import { type IpAddr, ipFromBytes, ipToBytes, isIpv4 } from "../base/ip.ts";
import { type MacAddr, macFromBytes } from "../base/mac.ts";

const MAGIC = "nae1";
/** Of each kind, as in table.cc: bounds the engine's memory to about 80 MB. */
export const MAX_ENGINE_ENTRIES = 1_000_000;

/** One network's part; `DesiredOverlay` with its VNI has this shape. */
export interface EngineNetwork {
  readonly vni: Vni;
  readonly fdb: ReadonlyMap<MacAddr, IpAddr>;
  readonly neighbors: ReadonlyMap<IpAddr, MacAddr>;
}

/**
 * Published whole after every change, so it must not hold up the event loop: addresses go from text to bytes without
 * an intermediate value. 30,000 forwarding entries and 42,000 neighbors take some ten milliseconds; by way of `ipToBytes`
 * and `macToBytes` it was half a second.
 */
export function encodeEngineTable(networks: Iterable<EngineNetwork>): Uint8Array {
  const all = [...networks];
  const vteps = new Map<IpAddr, number>();
  let forwardingCount = 0;
  let neighborCount = 0;
  for (const { fdb, neighbors } of all) {
    forwardingCount += fdb.size;
    neighborCount += neighbors.size;
    for (const vtep of fdb.values()) if (!vteps.has(vtep)) vteps.set(vtep, vteps.size);
  }
  assert(
    forwardingCount <= MAX_ENGINE_ENTRIES && neighborCount <= MAX_ENGINE_ENTRIES,
    `engine table of ${forwardingCount} forwarding entries and ${neighborCount} neighbors`,
  );
  const head = new ByteWriter(16);
  head.text(MAGIC).u32(vteps.size).u32(forwardingCount).u32(neighborCount);
  const out = new Uint8Array(16 + 16 * vteps.size + 16 * forwardingCount + 28 * neighborCount);
  out.set(head.finish());
  const view = new DataView(out.buffer);
  let at = 16;
  for (const vtep of vteps.keys()) {
    storeIp(out, at, vtep);
    at += 16;
  }
  for (const { vni, fdb } of all) {
    for (const [mac, vtep] of fdb) {
      view.setUint32(at, vni);
      storeMac(out, at + 4, mac);
      view.setUint32(at + 12, vteps.get(vtep) ?? 0);
      at += 16;
    }
  }
  for (const { vni, neighbors } of all) {
    for (const [ip, mac] of neighbors) {
      view.setUint32(at, vni);
      storeMac(out, at + 4, mac);
      storeIp(out, at + 12, ip);
      at += 28;
    }
  }
  return out;
}

/** The inverse, for tests and dumps. @throws DecodeError */
export function decodeEngineTable(bytes: Uint8Array): EngineNetwork[] {
  const input = new ByteReader(bytes, "engine table");
  if (input.text(4) !== MAGIC) input.fail(`does not start with ${MAGIC}`);
  const [vtepCount, forwardingCount, neighborCount] = [input.u32(), input.u32(), input.u32()];
  if (input.remaining !== 16 * vtepCount + 16 * forwardingCount + 28 * neighborCount) {
    input.fail(`${input.remaining} bytes do not hold the announced entries`);
  }
  const vteps = Array.from({ length: vtepCount }, () => ipFromBytes(input.take(16)));
  const networks = new Map<Vni, { vni: Vni; fdb: Map<MacAddr, IpAddr>; neighbors: Map<IpAddr, MacAddr> }>();
  const network = (vni: Vni) => {
    const found = networks.get(vni) ?? { vni, fdb: new Map(), neighbors: new Map() };
    networks.set(vni, found);
    return found;
  };
  for (let i = 0; i < forwardingCount; i++) {
    const { fdb } = network(parseVni(input.u32()));
    const mac = macFromBytes(input.take(6));
    if (input.u16() !== 0) input.fail("padding is not zero");
    const vtep = vteps[input.u32()];
    if (vtep === undefined) input.fail("VTEP index is outside the list");
    fdb.set(mac, vtep);
  }
  for (let i = 0; i < neighborCount; i++) {
    const { neighbors } = network(parseVni(input.u32()));
    const mac = macFromBytes(input.take(6));
    if (input.u16() !== 0) input.fail("padding is not zero");
    neighbors.set(ipFromBytes(input.take(16)), mac);
  }
  return [...networks.values()];
}

/**
 * The `gso_max_size` to set on endpoints' devices so that a superframe and its headers fit one datagram run: IP and UDP
 * end at 64 KB outside, and each segment grows by the headers in front of it. With the default of 65536
 * every superframe needs two sends and coalesces into two.
 */
export function engineGsoMaxSize(mtu: number): number {
  const OUTER_LIMIT = 65_000; // bytes; kMaxRunBytes of tx_path.h
  const datagram = mtu + 14 + 8; // inner Ethernet, VXLAN
  const payload = mtu - 40 - 20 - 12; // IPv6 and TCP with timestamps: the smallest usual
  return Math.floor(OUTER_LIMIT / datagram) * payload;
}

/** A `MacAddr` is always six pairs of lower-case hex digits and colons. */
function storeMac(out: Uint8Array, at: number, mac: MacAddr): void {
  for (let i = 0; i < 6; i++) {
    out[at + i] = (nibble(mac.charCodeAt(3 * i)) << 4) | nibble(mac.charCodeAt(3 * i + 1));
  }
}

function nibble(code: number): number {
  return code < 0x3a ? code - 0x30 : code - 0x57;
}

/** 16 bytes; IPv4 mapped. An IPv4 `IpAddr` is always four decimal numbers. */
function storeIp(out: Uint8Array, at: number, ip: IpAddr): void {
  if (!isIpv4(ip)) {
    out.set(ipToBytes(ip), at);
    return;
  }
  out[at + 10] = out[at + 11] = 0xff;
  let octet = 0;
  let index = at + 12;
  for (let i = 0; i < ip.length; i++) {
    const code = ip.charCodeAt(i);
    if (code === 0x2e) {
      out[index++] = octet;
      octet = 0;
    } else {
      octet = octet * 10 + code - 0x30;
    }
  }
  out[index] = octet;
}
