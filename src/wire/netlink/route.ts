/**
 * Routes: `struct rtmsg` (family 1, destination length 1, source length 1, TOS 1, table 1, protocol 1, scope 1,
 * type 1, flags 4), then RTA_* attributes. include/uapi/linux/rtnetlink.h
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { type Cidr, type IpAddr, ipFromBytes, ipToBytes, isIpv4 } from "../../base/ip.ts";
import { attributeMap, decodeU32, writeAttribute, writeNested, writeU32Attribute } from "./message.ts";
import { AF } from "./rtnetlink.ts";

export interface Route {
  /** `0.0.0.0/0` or `::/0` is the default route. */
  readonly destination: Cidr;
  readonly table: number;
  /** RTPROT_*: 4 (static) and 17 upwards are free for daemons. */
  readonly protocol: number;
  /** RT_SCOPE_*: 0 universe, 253 link. */
  readonly scope: number;
  /** RTN_*: 1 unicast, 2 local, 6 blackhole … */
  readonly type: number;
  readonly gateway?: IpAddr;
  /** Outgoing interface. */
  readonly ifindex?: number;
  /** Preferred source address. */
  readonly source?: IpAddr;
  readonly priority?: number;
  readonly mtu?: number;
  /** Path-MTU news does not lower `mtu`. Only encoded. */
  readonly mtuLocked?: boolean;
  /** RTNH_F_* bits: 4 (onlink) takes a gateway that no route covers. */
  readonly flags: number;
}

export const RT_TABLE = { main: 254, local: 255 } as const;
export const RT_SCOPE = { universe: 0, link: 253, host: 254 } as const;
/** The kernel's own: routes that came with an address. */
export const RTPROT_KERNEL = 2;
export const RTN = { unicast: 1, local: 2, blackhole: 6, unreachable: 7 } as const;
export const RTNH_F_ONLINK = 4;

const RTA = {
  destination: 1,
  from: 2,
  oif: 4,
  gateway: 5,
  priority: 6,
  source: 7,
  metrics: 8,
  table: 15,
} as const;
/** Answer with the route itself, not with what became of it. */
const RTM_F_FIB_MATCH = 0x2000;
const RTAX_LOCK = 1;
const RTAX_MTU = 2;

/** Payload of RTM_NEWROUTE and RTM_DELROUTE. */
export function encodeRoute(route: Route, out: ByteWriter): void {
  const { destination } = route;
  out
    .u8(isIpv4(destination.ip) ? AF.inet : AF.inet6)
    .u8(destination.prefixLength)
    .u8(0)
    .u8(0)
    .u8(route.table < 256 ? route.table : 0)
    .u8(route.protocol)
    .u8(route.scope)
    .u8(route.type)
    .u32h(route.flags);
  if (destination.prefixLength > 0) writeAttribute(out, RTA.destination, ipToBytes(destination.ip));
  writeU32Attribute(out, RTA.table, route.table);
  if (route.gateway !== undefined) writeAttribute(out, RTA.gateway, ipToBytes(route.gateway));
  if (route.ifindex !== undefined) writeU32Attribute(out, RTA.oif, route.ifindex);
  if (route.source !== undefined) writeAttribute(out, RTA.source, ipToBytes(route.source));
  if (route.priority !== undefined) writeU32Attribute(out, RTA.priority, route.priority);
  const { mtu } = route;
  if (mtu !== undefined)
    writeNested(out, RTA.metrics, (metrics) => {
      writeU32Attribute(metrics, RTAX_MTU, mtu);
      if (route.mtuLocked === true) writeU32Attribute(metrics, RTAX_LOCK, 1 << RTAX_MTU);
    });
}

/** Payload of a RTM_GETROUTE dump of one family. */
export function encodeRouteQuery(family: 4 | 6, out: ByteWriter): void {
  out.u8(family === 4 ? AF.inet : AF.inet6).zeros(11);
}

/** Payload of RTM_GETROUTE without NLM_F_DUMP: which way a packet to `destination`, from `source`, goes. */
export function encodeRouteLookup(destination: IpAddr, out: ByteWriter, source?: IpAddr): void {
  writeLookup(out, destination, 0, source);
}

/** The same, answered with the route of the tables that leads there, out of one interface where that is given. */
export function encodeRouteMatch(destination: IpAddr, ifindex: number | undefined, out: ByteWriter): void {
  writeLookup(out, destination, RTM_F_FIB_MATCH);
  if (ifindex !== undefined) writeU32Attribute(out, RTA.oif, ifindex);
}

function writeLookup(out: ByteWriter, destination: IpAddr, flags: number, source?: IpAddr): void {
  const bits = isIpv4(destination) ? 32 : 128;
  out
    .u8(isIpv4(destination) ? AF.inet : AF.inet6)
    .u8(bits)
    .u8(source === undefined ? 0 : bits)
    .zeros(5)
    .u32h(flags);
  writeAttribute(out, RTA.destination, ipToBytes(destination));
  if (source !== undefined) writeAttribute(out, RTA.from, ipToBytes(source));
}

/** Payload of RTM_NEWROUTE. Of a multipath route only the common part is read. @throws DecodeError */
export function decodeRoute(payload: Uint8Array): Route {
  const input: ByteReader = new ByteReader(payload, "netlink route");
  const family = input.u8();
  const prefixLength = input.u8();
  input.skip(2);
  const shortTable = input.u8();
  const protocol = input.u8();
  const scope = input.u8();
  const type = input.u8();
  const flags = input.u32h();
  const attributes = attributeMap(input);
  const ip = (attribute: number): IpAddr | undefined => {
    const bytes = attributes.get(attribute);
    return bytes === undefined ? undefined : ipFromBytes(bytes);
  };
  const u32 = (attribute: number): number | undefined => {
    const bytes = attributes.get(attribute);
    return bytes === undefined ? undefined : decodeU32(bytes);
  };
  const metrics = attributes.get(RTA.metrics);
  const mtu = metrics === undefined ? undefined : attributeMap(metrics).get(RTAX_MTU);
  const any = (family === AF.inet ? "0.0.0.0" : "::") as IpAddr;
  return {
    destination: { ip: ip(RTA.destination) ?? any, prefixLength },
    table: u32(RTA.table) ?? shortTable,
    protocol,
    scope,
    type,
    flags,
    ...optional("gateway", ip(RTA.gateway)),
    ...optional("ifindex", u32(RTA.oif)),
    ...optional("source", ip(RTA.source)),
    ...optional("priority", u32(RTA.priority)),
    ...optional("mtu", mtu === undefined ? undefined : decodeU32(mtu)),
  };
}

function optional<K extends string, T>(key: K, value: T | undefined): { readonly [P in K]?: T } {
  return (value === undefined ? {} : { [key]: value }) as { readonly [P in K]?: T };
}
