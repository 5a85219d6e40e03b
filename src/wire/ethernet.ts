/**
 * Ethernet II header, IEEE 802.3 §3.1.1 and 802.1Q §9.6:
 * destination 6 bytes, source 6, [0x8100, tag control 2,] EtherType 2. No preamble, no frame check sequence.
 */
import { assert } from "../base/assert.ts";
import type { ByteReader, ByteWriter } from "../base/bytes.ts";
import { macFromBytes, macToBytes, type MacAddr } from "../base/mac.ts";

export const ETHERNET_HEADER_LENGTH = 14; // bytes, untagged
export const VLAN_TAG_LENGTH = 4; // bytes

export const ETHER_TYPE = { ipv4: 0x0800, arp: 0x0806, vlan: 0x8100, ipv6: 0x86dd } as const;

export interface VlanTag {
  /** 0 … 7 */
  readonly priority: number;
  readonly dropEligible: boolean;
  /** 0 … 4095; 0 means "priority only". */
  readonly id: number;
}

export interface EthernetHeader {
  readonly destination: MacAddr;
  readonly source: MacAddr;
  /** The outermost 802.1Q tag, if there is one. */
  readonly vlan?: VlanTag;
  /** 16 bits; below 0x0600 it is the length of an 802.3 frame. */
  readonly etherType: number;
}

export function encodeEthernetHeader(header: EthernetHeader, out: ByteWriter): void {
  out.write(macToBytes(header.destination));
  out.write(macToBytes(header.source));
  if (header.vlan !== undefined) {
    const { priority, dropEligible, id } = header.vlan;
    assert(priority >= 0 && priority <= 7 && id >= 0 && id <= 0xfff, "a VLAN tag has 3 and 12 bits");
    out.u16(ETHER_TYPE.vlan);
    out.u16((priority << 13) | (dropEligible ? 0x1000 : 0) | id);
  } else assert(header.etherType !== ETHER_TYPE.vlan, "a tag is given as `vlan`");
  out.u16(header.etherType);
}

/** @throws DecodeError if cut short. */
export function decodeEthernetHeader(input: ByteReader): EthernetHeader {
  const destination = macFromBytes(input.take(6));
  const source = macFromBytes(input.take(6));
  const etherType = input.u16();
  if (etherType !== ETHER_TYPE.vlan) return { destination, source, etherType };
  const control = input.u16();
  const vlan = { priority: control >>> 13, dropEligible: (control & 0x1000) !== 0, id: control & 0xfff };
  return { destination, source, vlan, etherType: input.u16() };
}
