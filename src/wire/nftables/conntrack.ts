/**
 * Connection tracking entries over ctnetlink: find those translated to one backend, delete them.
 * include/uapi/linux/netfilter/nfnetlink_conntrack.h. Behind the netlink header `struct nfgenmsg`, then CTA_*
 * attributes, big endian, except for the filter's flags, which are in host order.
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { type IpAddr, ipFromBytes, ipToBytes } from "../../base/ip.ts";
import {
  attributeMap,
  writeAttribute,
  writeNested,
  writeU16beAttribute,
  writeU32Attribute,
  writeU8Attribute,
} from "../netlink/message.ts";
import { writeNfgenmsg } from "./message.ts";

const NFNL_SUBSYS_CTNETLINK = 1;
export const CONNTRACK_MESSAGE = {
  get: (NFNL_SUBSYS_CTNETLINK << 8) | 1,
  delete: (NFNL_SUBSYS_CTNETLINK << 8) | 2,
} as const;

const AF_INET = 2;
const CTA = { tupleOrig: 1, tupleReply: 2, status: 3, id: 12, zone: 18, filter: 25 } as const;
const CTA_TUPLE = { ip: 1, protocol: 2 } as const;
const CTA_IP = { v4Source: 1, v4Destination: 2, v6Source: 3, v6Destination: 4 } as const;
const CTA_PROTO = { number: 1, sourcePort: 2, destinationPort: 3 } as const;
const CTA_FILTER_REPLY_FLAGS = 2;
const CTA_FILTER_ORIG_FLAGS = 1;
/** CTA_FILTER_F_*: which parts of the tuple the kernel compares (net/netfilter/nf_conntrack_netlink.c). */
const FILTER = { source: 1 << 0, protocol: 1 << 3, sourcePort: 1 << 4 } as const;
/** Packets went both ways: IPS_SEEN_REPLY. */
const IPS_SEEN_REPLY = 1 << 1;
/** The destination was translated: IPS_DST_NAT. */
const IPS_DST_NAT = 1 << 5;

export interface ConntrackTuple {
  readonly source: IpAddr;
  readonly destination: IpAddr;
  /** 6 TCP, 17 UDP. */
  readonly protocol: number;
  /** 0 where the protocol has none. */
  readonly sourcePort: number;
  readonly destinationPort: number;
}

export interface ConntrackEntry {
  readonly original: ConntrackTuple;
  readonly reply: ConntrackTuple;
  readonly destinationTranslated: boolean;
  /** Packets went both ways. */
  readonly answered: boolean;
  /** What a deletion must repeat, as it came: the original tuple and the id, so that no successor is hit. */
  readonly identity: { readonly tuple: Uint8Array; readonly id?: Uint8Array; readonly zone?: Uint8Array };
}

/** Whose replies come from `ip` (and `port`): flows translated to that backend, and direct ones to it. */
export interface ConntrackFilter {
  readonly protocol: number;
  readonly replySource?: IpAddr;
  readonly replySourcePort?: number;
}

/** Payload of a dump of IPv4 entries; kernels before 5.8 ignore the filter and give all. */
export function encodeConntrackQuery(filter: ConntrackFilter, out: ByteWriter): void {
  writeNfgenmsg(out, AF_INET);
  const { replySource, replySourcePort, protocol } = filter;
  if (replySource === undefined) return;
  writeNested(out, CTA.tupleReply, (tuple) => {
    writeNested(tuple, CTA_TUPLE.ip, (ip) => writeAttribute(ip, CTA_IP.v4Source, ipToBytes(replySource)));
    writeNested(tuple, CTA_TUPLE.protocol, (proto) => {
      writeU8Attribute(proto, CTA_PROTO.number, protocol);
      if (replySourcePort !== undefined) writeU16beAttribute(proto, CTA_PROTO.sourcePort, replySourcePort);
    });
  });
  const flags = FILTER.source | FILTER.protocol | (replySourcePort === undefined ? 0 : FILTER.sourcePort);
  writeNested(out, CTA.filter, (nested) => {
    writeU32Attribute(nested, CTA_FILTER_ORIG_FLAGS, 0);
    writeU32Attribute(nested, CTA_FILTER_REPLY_FLAGS, flags);
  });
}

/** Whether the entry is one the filter asks for: for kernels that did not filter. */
export function matchesFilter(entry: ConntrackEntry, filter: ConntrackFilter): boolean {
  return (
    entry.original.protocol === filter.protocol &&
    (filter.replySource === undefined || entry.reply.source === filter.replySource) &&
    (filter.replySourcePort === undefined || entry.reply.sourcePort === filter.replySourcePort)
  );
}

/** Payload of IPCTNL_MSG_CT_DELETE for one entry. */
export function encodeConntrackDelete(entry: ConntrackEntry, out: ByteWriter): void {
  const { tuple, id, zone } = entry.identity;
  writeNfgenmsg(out, AF_INET);
  writeAttribute(out, CTA.tupleOrig | NESTED, tuple);
  if (id !== undefined) writeAttribute(out, CTA.id, id);
  if (zone !== undefined) writeAttribute(out, CTA.zone, zone);
}

const NESTED = 0x8000;

/** Undefined for an entry without tuples (none such is known). @throws DecodeError */
export function decodeConntrack(payload: Uint8Array): ConntrackEntry | undefined {
  const input = new ByteReader(payload, "conntrack entry");
  input.skip(4);
  const attributes = attributeMap(input);
  const tuple = attributes.get(CTA.tupleOrig);
  const replyTuple = attributes.get(CTA.tupleReply);
  if (tuple === undefined || replyTuple === undefined) return undefined;
  const original = decodeTuple(tuple);
  const reply = decodeTuple(replyTuple);
  if (original === undefined || reply === undefined) return undefined;
  const statusBytes = attributes.get(CTA.status);
  const status = statusBytes === undefined ? 0 : new ByteReader(statusBytes, "conntrack status").u32();
  const id = attributes.get(CTA.id)?.slice();
  const zone = attributes.get(CTA.zone)?.slice();
  return {
    original,
    reply,
    destinationTranslated: (status & IPS_DST_NAT) !== 0,
    answered: (status & IPS_SEEN_REPLY) !== 0,
    identity: {
      tuple: tuple.slice(),
      ...(id === undefined ? {} : { id }),
      ...(zone === undefined ? {} : { zone }),
    },
  };
}

function decodeTuple(bytes: Uint8Array): ConntrackTuple | undefined {
  const parts = attributeMap(bytes);
  const ip = parts.get(CTA_TUPLE.ip);
  const proto = parts.get(CTA_TUPLE.protocol);
  if (ip === undefined || proto === undefined) return undefined;
  const addresses = attributeMap(ip);
  const source = addresses.get(CTA_IP.v4Source) ?? addresses.get(CTA_IP.v6Source);
  const destination = addresses.get(CTA_IP.v4Destination) ?? addresses.get(CTA_IP.v6Destination);
  const ports = attributeMap(proto);
  const number = ports.get(CTA_PROTO.number);
  if (source === undefined || destination === undefined || number === undefined) return undefined;
  const port = (type: number): number => {
    const value = ports.get(type);
    return value === undefined ? 0 : new ByteReader(value, "conntrack port").u16();
  };
  return {
    source: ipFromBytes(source),
    destination: ipFromBytes(destination),
    protocol: new ByteReader(number, "conntrack protocol").u8(),
    sourcePort: port(CTA_PROTO.sourcePort),
    destinationPort: port(CTA_PROTO.destinationPort),
  };
}
