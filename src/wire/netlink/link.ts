/**
 * Links: `struct ifinfomsg` (family 1, pad 1, device type 2, index 4, flags 4, change mask 4), then IFLA_*
 * attributes; the kind's own data is nested in IFLA_LINKINFO. include/uapi/linux/if_link.h
 *
 * Own code: the `netlink` package leaves link info as raw bytes, which is the part that matters here.
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { type IpAddr, ipFromBytes, ipToBytes, isIpv4 } from "../../base/ip.ts";
import { type MacAddr, macFromBytes, macToBytes } from "../../base/mac.ts";
import {
  attributeMap,
  decodeI32,
  decodeText,
  decodeU16be,
  decodeU32,
  decodeU8,
  writeAttribute,
  writeNested,
  writeTextAttribute,
  writeU16beAttribute,
  writeU32Attribute,
  writeU8Attribute,
} from "./message.ts";

/** What a VXLAN device is made of. Absent flags are the kernel's defaults when encoded, false when decoded. */
export interface VxlanInfo {
  readonly kind: "vxlan";
  readonly vni: number;
  /** UDP destination port. */
  readonly port: number;
  /** Source address of outer packets. Its family decides the underlay's. */
  readonly local?: IpAddr;
  /** Default destination (unicast or multicast): where unknown MACs go. */
  readonly group?: IpAddr;
  readonly learning: boolean;
  /** Answers ARP and neighbor discovery from the neighbor table. */
  readonly proxy: boolean;
  readonly l2miss: boolean;
  readonly l3miss: boolean;
  /** Fills the outer UDP checksum on IPv4. */
  readonly udpChecksum: boolean;
  /** Sends a zero outer UDP checksum on IPv6. */
  readonly udpZeroChecksum6Tx: boolean;
  /** Takes a zero outer UDP checksum on IPv6. */
  readonly udpZeroChecksum6Rx: boolean;
  /** One device for every VNI; never ours. */
  readonly collectMetadata: boolean;
  /** Outer IPv4 packets carry DF. */
  readonly dontFragment?: boolean;
  /** Of the outer packets; 0 is the kernel's default. Only decoded. */
  readonly ttl?: number;
  readonly tos?: number;
}

export interface BridgeInfo {
  readonly kind: "bridge";
  readonly multicastSnooping: boolean;
}

export interface MacvlanInfo {
  readonly kind: "macvlan";
  /** MACVLAN_MODE_*: bridge is 4. */
  readonly mode: number;
}

export interface VethInfo {
  readonly kind: "veth";
  /** Only when encoded: the other end. */
  readonly peer?: LinkSettings;
}

/** The part of a VXLAN device that can change while it lives. Only encoded; anything else needs a new device. */
export interface VxlanChange {
  readonly kind: "vxlan-change";
  readonly local: IpAddr;
  readonly learning: boolean;
  readonly dontFragment: boolean;
  readonly ttl: number;
  readonly tos: number;
}

export type LinkInfo = VxlanInfo | VxlanChange | BridgeInfo | MacvlanInfo | VethInfo;

/** `bridge link` settings of a port. */
export interface BridgePort {
  readonly learning: boolean;
  /** Whether frames to unknown MACs leave by it. */
  readonly unicastFlood: boolean;
}

/** What a request sets; absent fields are left alone. */
export interface LinkSettings {
  readonly ifindex?: number;
  readonly name?: string;
  readonly up?: boolean;
  readonly mtu?: number;
  readonly mac?: MacAddr;
  /** Not honored when a link is made: set it afterwards. */
  readonly alias?: string;
  /** Largest superframe the device takes, bytes; 0 … the device's own limit. */
  readonly gsoMaxSize?: number;
  /** ifindex of the bridge, 0 for none. */
  readonly master?: number;
  /** ifindex of the lower device. */
  readonly link?: number;
  /** Descriptor of the namespace to make it in, or to move it to. */
  readonly netnsFd?: number;
  /** Acts in the namespace with this id instead of the socket's. */
  readonly targetNetnsId?: number;
  readonly info?: LinkInfo;
  readonly bridgePort?: BridgePort;
}

/** A link as dumped. */
export interface Link {
  readonly ifindex: number;
  readonly name: string;
  /** Administratively up. */
  readonly up: boolean;
  /** Has a carrier (IFF_LOWER_UP). */
  readonly running: boolean;
  readonly mtu: number;
  /** How many want to see every frame: captures, and what lies on the device. */
  readonly promiscuity: number;
  readonly mac: MacAddr | undefined;
  readonly alias: string;
  /** Largest superframe the device takes, bytes; 0 when the kernel does not say. */
  readonly gsoMaxSize: number;
  readonly master: number | undefined;
  readonly link: number | undefined;
  /** Namespace id of the lower device or peer, when it is elsewhere. */
  readonly linkNetnsId: number | undefined;
  /** Kind as the kernel spells it; undefined for physical devices and loopback. */
  readonly kind: string | undefined;
  /** Decoded for the kinds above. */
  readonly info: LinkInfo | undefined;
  readonly bridgePort: BridgePort | undefined;
}

/** A device in `mode bridge` reaches its siblings without leaving the host. */
export const MACVLAN_MODE_BRIDGE = 4;

const IFF_UP = 1;
const IFF_LOWER_UP = 0x10000;
const IFLA = {
  address: 1,
  ifname: 3,
  mtu: 4,
  link: 5,
  master: 10,
  linkInfo: 18,
  alias: 20,
  netnsFd: 28,
  extMask: 29,
  promiscuity: 30,
  linkNetnsId: 37,
  gsoMaxSize: 41,
  targetNetnsId: 46,
} as const;
const IFLA_INFO = { kind: 1, data: 2, slaveKind: 4, slaveData: 5 } as const;
const IFLA_VXLAN = {
  id: 1,
  group: 2,
  local: 4,
  ttl: 5,
  tos: 6,
  learning: 7,
  proxy: 11,
  l2miss: 13,
  l3miss: 14,
  port: 15,
  group6: 16,
  local6: 17,
  udpChecksum: 18,
  udpZeroChecksum6Tx: 19,
  udpZeroChecksum6Rx: 20,
  collectMetadata: 25,
  dontFragment: 29,
} as const;
const IFLA_BR_MCAST_SNOOPING = 23;
const IFLA_BRPORT = { learning: 8, unicastFlood: 9 } as const;
const IFLA_MACVLAN_MODE = 1;
const VETH_INFO_PEER = 1;
/** Leaves the statistics of virtual functions and the link itself out of dumps. */
const RTEXT_FILTER_SKIP_STATS = 8;

/** Payload of RTM_NEWLINK, RTM_SETLINK and RTM_DELLINK. */
export function encodeLink(settings: LinkSettings, out: ByteWriter): void {
  encodeInterfaceHeader(settings.ifindex ?? 0, settings.up, out);
  if (settings.name !== undefined) writeTextAttribute(out, IFLA.ifname, settings.name);
  if (settings.mac !== undefined) writeAttribute(out, IFLA.address, macToBytes(settings.mac));
  if (settings.mtu !== undefined) writeU32Attribute(out, IFLA.mtu, settings.mtu);
  if (settings.alias !== undefined) writeTextAttribute(out, IFLA.alias, settings.alias);
  if (settings.gsoMaxSize !== undefined) writeU32Attribute(out, IFLA.gsoMaxSize, settings.gsoMaxSize);
  if (settings.master !== undefined) writeU32Attribute(out, IFLA.master, settings.master);
  if (settings.link !== undefined) writeU32Attribute(out, IFLA.link, settings.link);
  if (settings.netnsFd !== undefined) writeU32Attribute(out, IFLA.netnsFd, settings.netnsFd);
  if (settings.targetNetnsId !== undefined)
    writeU32Attribute(out, IFLA.targetNetnsId, settings.targetNetnsId);
  const { info, bridgePort } = settings;
  if (info === undefined && bridgePort === undefined) return;
  writeNested(out, IFLA.linkInfo, (nested) => {
    if (info !== undefined) {
      writeTextAttribute(nested, IFLA_INFO.kind, info.kind === "vxlan-change" ? "vxlan" : info.kind);
      writeNested(nested, IFLA_INFO.data, (data) => encodeLinkInfo(info, data));
    }
    if (bridgePort !== undefined) {
      writeTextAttribute(nested, IFLA_INFO.slaveKind, "bridge");
      writeNested(nested, IFLA_INFO.slaveData, (data) => {
        writeU8Attribute(data, IFLA_BRPORT.learning, Number(bridgePort.learning));
        writeU8Attribute(data, IFLA_BRPORT.unicastFlood, Number(bridgePort.unicastFlood));
      });
    }
  });
}

export interface LinkQuery {
  /** One link, by name or by index. */
  readonly name?: string;
  readonly ifindex?: number;
  /** Dumps only: links of this kind, all of them when the kernel does not know the kind. */
  readonly kind?: string;
  /** Looks in the namespace with this id instead of the socket's. */
  readonly targetNetnsId?: number;
}

/** Payload of RTM_GETLINK: one link, or with NLM_F_DUMP all of a namespace. */
export function encodeLinkQuery(query: LinkQuery, out: ByteWriter): void {
  encodeInterfaceHeader(query.ifindex ?? 0, undefined, out);
  writeU32Attribute(out, IFLA.extMask, RTEXT_FILTER_SKIP_STATS);
  if (query.name !== undefined) writeTextAttribute(out, IFLA.ifname, query.name);
  if (query.targetNetnsId !== undefined) writeU32Attribute(out, IFLA.targetNetnsId, query.targetNetnsId);
  const { kind } = query;
  if (kind !== undefined)
    writeNested(out, IFLA.linkInfo, (info) => writeTextAttribute(info, IFLA_INFO.kind, kind));
}

/** Payload of RTM_NEWLINK. @throws DecodeError */
export function decodeLink(payload: Uint8Array): Link {
  const input: ByteReader = new ByteReader(payload, "netlink link");
  input.skip(4);
  const ifindex = input.i32h();
  const flags = input.u32h();
  input.skip(4);
  const attributes = attributeMap(input);
  const u32 = (type: number): number | undefined => mapped(attributes.get(type), decodeU32);
  const address = attributes.get(IFLA.address);
  const nested = mapped(attributes.get(IFLA.linkInfo), attributeMap);
  const kind = mapped(nested?.get(IFLA_INFO.kind), decodeText);
  const slaveKind = mapped(nested?.get(IFLA_INFO.slaveKind), decodeText);
  const slaveData = nested?.get(IFLA_INFO.slaveData);
  return {
    ifindex,
    name: mapped(attributes.get(IFLA.ifname), decodeText) ?? "",
    up: (flags & IFF_UP) !== 0,
    running: (flags & IFF_LOWER_UP) !== 0,
    mtu: u32(IFLA.mtu) ?? 0,
    promiscuity: u32(IFLA.promiscuity) ?? 0,
    mac: address?.length === 6 ? macFromBytes(address) : undefined,
    alias: mapped(attributes.get(IFLA.alias), decodeText) ?? "",
    gsoMaxSize: u32(IFLA.gsoMaxSize) ?? 0,
    master: u32(IFLA.master),
    link: u32(IFLA.link),
    linkNetnsId: mapped(attributes.get(IFLA.linkNetnsId), decodeI32),
    kind,
    info: decodeLinkInfo(kind, nested?.get(IFLA_INFO.data)),
    bridgePort: slaveKind === "bridge" && slaveData !== undefined ? decodeBridgePort(slaveData) : undefined,
  };
}

function encodeInterfaceHeader(ifindex: number, up: boolean | undefined, out: ByteWriter): void {
  out
    .zeros(4)
    .i32h(ifindex)
    .u32h(up ? IFF_UP : 0)
    .u32h(up === undefined ? 0 : IFF_UP);
}

function encodeLinkInfo(info: LinkInfo, out: ByteWriter): void {
  switch (info.kind) {
    case "vxlan":
      encodeVxlan(info, out);
      break;
    case "vxlan-change":
      writeVxlanAddress(out, info.local, IFLA_VXLAN.local, IFLA_VXLAN.local6);
      writeU8Attribute(out, IFLA_VXLAN.learning, Number(info.learning));
      writeU8Attribute(out, IFLA_VXLAN.ttl, info.ttl);
      writeU8Attribute(out, IFLA_VXLAN.tos, info.tos);
      writeU8Attribute(out, IFLA_VXLAN.dontFragment, Number(info.dontFragment));
      break;
    case "bridge":
      writeU8Attribute(out, IFLA_BR_MCAST_SNOOPING, Number(info.multicastSnooping));
      break;
    case "macvlan":
      writeU32Attribute(out, IFLA_MACVLAN_MODE, info.mode);
      break;
    case "veth": {
      const { peer } = info;
      if (peer !== undefined) writeNested(out, VETH_INFO_PEER, (nested) => encodeLink(peer, nested));
      break;
    }
  }
}

function encodeVxlan(info: VxlanInfo, out: ByteWriter): void {
  writeU32Attribute(out, IFLA_VXLAN.id, info.vni);
  writeVxlanAddress(out, info.group, IFLA_VXLAN.group, IFLA_VXLAN.group6);
  writeVxlanAddress(out, info.local, IFLA_VXLAN.local, IFLA_VXLAN.local6);
  writeU8Attribute(out, IFLA_VXLAN.learning, Number(info.learning));
  writeU8Attribute(out, IFLA_VXLAN.proxy, Number(info.proxy));
  writeU8Attribute(out, IFLA_VXLAN.l2miss, Number(info.l2miss));
  writeU8Attribute(out, IFLA_VXLAN.l3miss, Number(info.l3miss));
  writeU16beAttribute(out, IFLA_VXLAN.port, info.port);
  writeU8Attribute(out, IFLA_VXLAN.udpChecksum, Number(info.udpChecksum));
  writeU8Attribute(out, IFLA_VXLAN.udpZeroChecksum6Tx, Number(info.udpZeroChecksum6Tx));
  writeU8Attribute(out, IFLA_VXLAN.udpZeroChecksum6Rx, Number(info.udpZeroChecksum6Rx));
  if (info.collectMetadata) writeU8Attribute(out, IFLA_VXLAN.collectMetadata, 1);
  // VXLAN_DF_SET; kernels before 5.0 ignore it.
  if (info.dontFragment === true) writeU8Attribute(out, IFLA_VXLAN.dontFragment, 1);
}

function writeVxlanAddress(out: ByteWriter, ip: IpAddr | undefined, type4: number, type6: number): void {
  if (ip !== undefined) writeAttribute(out, isIpv4(ip) ? type4 : type6, ipToBytes(ip));
}

function decodeLinkInfo(kind: string | undefined, data: Uint8Array | undefined): LinkInfo | undefined {
  const attributes = data === undefined ? new Map<number, Uint8Array>() : attributeMap(data);
  const flag = (type: number): boolean => (mapped(attributes.get(type), decodeU8) ?? 0) !== 0;
  switch (kind) {
    case "vxlan": {
      const local = attributes.get(IFLA_VXLAN.local) ?? attributes.get(IFLA_VXLAN.local6);
      const group = attributes.get(IFLA_VXLAN.group) ?? attributes.get(IFLA_VXLAN.group6);
      return {
        kind,
        vni: mapped(attributes.get(IFLA_VXLAN.id), decodeU32) ?? 0,
        port: mapped(attributes.get(IFLA_VXLAN.port), decodeU16be) ?? 0,
        ...(local === undefined ? {} : { local: ipFromBytes(local) }),
        ...(group === undefined ? {} : { group: ipFromBytes(group) }),
        learning: flag(IFLA_VXLAN.learning),
        proxy: flag(IFLA_VXLAN.proxy),
        l2miss: flag(IFLA_VXLAN.l2miss),
        l3miss: flag(IFLA_VXLAN.l3miss),
        udpChecksum: flag(IFLA_VXLAN.udpChecksum),
        udpZeroChecksum6Tx: flag(IFLA_VXLAN.udpZeroChecksum6Tx),
        udpZeroChecksum6Rx: flag(IFLA_VXLAN.udpZeroChecksum6Rx),
        collectMetadata: flag(IFLA_VXLAN.collectMetadata),
        dontFragment: flag(IFLA_VXLAN.dontFragment),
        ttl: mapped(attributes.get(IFLA_VXLAN.ttl), decodeU8) ?? 0,
        tos: mapped(attributes.get(IFLA_VXLAN.tos), decodeU8) ?? 0,
      };
    }
    case "bridge":
      return { kind, multicastSnooping: flag(IFLA_BR_MCAST_SNOOPING) };
    case "macvlan":
      return { kind, mode: mapped(attributes.get(IFLA_MACVLAN_MODE), decodeU32) ?? 0 };
    case "veth":
      return { kind };
    default:
      return undefined;
  }
}

function decodeBridgePort(data: Uint8Array): BridgePort {
  const attributes = attributeMap(data);
  const flag = (type: number): boolean => (mapped(attributes.get(type), decodeU8) ?? 0) !== 0;
  return { learning: flag(IFLA_BRPORT.learning), unicastFlood: flag(IFLA_BRPORT.unicastFlood) };
}

function mapped<T>(value: Uint8Array | undefined, decode: (value: Uint8Array) => T): T | undefined {
  return value === undefined ? undefined : decode(value);
}
