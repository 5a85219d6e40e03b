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
import { type MacAddr, macFromBytes, macToBytes } from "../base/mac.ts";

const MAGIC = "nae1";
/** Of each kind, as in table.cc: bounds the engine's memory to about 80 MB. */
export const MAX_ENGINE_ENTRIES = 1_000_000;

/** One network's part; `DesiredOverlay` with its VNI has this shape. */
export interface EngineNetwork {
  readonly vni: Vni;
  readonly fdb: ReadonlyMap<MacAddr, IpAddr>;
  readonly neighbors: ReadonlyMap<IpAddr, MacAddr>;
}

export function encodeEngineTable(networks: Iterable<EngineNetwork>): Uint8Array {
  const vteps = new Map<IpAddr, number>();
  const forwarding = new ByteWriter(4096);
  const neighbors = new ByteWriter(4096);
  for (const network of networks) {
    for (const [mac, vtep] of network.fdb) {
      let index = vteps.get(vtep);
      if (index === undefined) {
        index = vteps.size;
        vteps.set(vtep, index);
      }
      forwarding.u32(network.vni).write(macToBytes(mac)).u16(0).u32(index);
    }
    for (const [ip, mac] of network.neighbors) {
      neighbors.u32(network.vni).write(macToBytes(mac)).u16(0);
      writeIp(neighbors, ip);
    }
  }
  const forwardingCount = forwarding.length / 16;
  const neighborCount = neighbors.length / 28;
  assert(
    forwardingCount <= MAX_ENGINE_ENTRIES && neighborCount <= MAX_ENGINE_ENTRIES,
    `engine table of ${forwardingCount} forwarding entries and ${neighborCount} neighbors`,
  );
  const out = new ByteWriter(16 + 16 * vteps.size + forwarding.length + neighbors.length);
  out.text(MAGIC).u32(vteps.size).u32(forwardingCount).u32(neighborCount);
  for (const vtep of vteps.keys()) writeIp(out, vtep);
  return out.write(forwarding.finish()).write(neighbors.finish()).finish();
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

function writeIp(out: ByteWriter, ip: IpAddr): void {
  if (isIpv4(ip)) out.zeros(10).u16(0xffff);
  out.write(ipToBytes(ip));
}
