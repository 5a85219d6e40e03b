/**
 * IPv4 header, RFC 791 §3.1: version 4 bits (4), header length 4 (in 4 bytes), DSCP 6 (RFC 2474), ECN 2, total
 * length 16, identification 16, reserved 1, DF 1, MF 1, fragment offset 13 (in 8 bytes), TTL 8, protocol 8,
 * header checksum 16, source 32, destination 32, options.
 */
import { assert } from "../base/assert.ts";
import type { ByteReader, ByteWriter } from "../base/bytes.ts";
import { ipFromBytes, ipToBytes, type IpAddr } from "../base/ip.ts";
import { NO_BYTES } from "./msgpack.ts";

export const IPV4_HEADER_LENGTH = 20; // bytes, without options

export const IP_PROTOCOL = { icmp: 1, tcp: 6, udp: 17 } as const;

export interface Ipv4Header {
  readonly dscp: number;
  readonly ecn: number;
  /** Bytes after the header, as the header says it. */
  readonly payloadLength: number;
  readonly identification: number;
  readonly dontFragment: boolean;
  readonly moreFragments: boolean;
  /** In bytes, a multiple of 8. */
  readonly fragmentOffset: number;
  readonly ttl: number;
  readonly protocol: number;
  readonly source: IpAddr;
  readonly destination: IpAddr;
  /** 0 … 40 bytes, a multiple of 4. */
  readonly options: Uint8Array;
}

/** A whole datagram without options: what nearly every sender fills in the same way. */
export function plainIpv4(
  source: IpAddr,
  destination: IpAddr,
  protocol: number,
  payloadLength: number,
): Ipv4Header {
  return {
    ...{
      dscp: 0,
      ecn: 0,
      identification: 0,
      dontFragment: true,
      moreFragments: false,
      fragmentOffset: 0,
      ttl: 64,
    },
    ...{ source, destination, protocol, payloadLength, options: NO_BYTES },
  };
}

export function encodeIpv4Header(header: Ipv4Header, out: ByteWriter): void {
  const headerLength = IPV4_HEADER_LENGTH + header.options.length;
  assert(header.options.length <= 40 && header.options.length % 4 === 0, "options are 0 … 40 bytes in fours");
  assert(
    header.fragmentOffset % 8 === 0 && header.fragmentOffset <= 0xfff8,
    "fragments start at multiples of 8",
  );
  assert(headerLength + header.payloadLength <= 0xffff, "an IPv4 datagram has at most 65535 bytes");
  const at = out.length;
  out.u8(0x40 | (headerLength / 4));
  out.u8((header.dscp << 2) | header.ecn);
  out.u16(headerLength + header.payloadLength);
  out.u16(header.identification);
  out.u16(
    (header.dontFragment ? DONT_FRAGMENT : 0) |
      (header.moreFragments ? MORE_FRAGMENTS : 0) |
      (header.fragmentOffset / 8),
  );
  out.u8(header.ttl).u8(header.protocol);
  out.u16(0);
  out.write(ipToBytes(header.source));
  out.write(ipToBytes(header.destination));
  out.write(header.options);
  out.patchU16(at + 10, foldChecksum(sumWords(out.view().subarray(at))));
}

/** @throws DecodeError on another version, impossible lengths, a wrong checksum, or if cut short. */
export function decodeIpv4Header(input: ByteReader): Ipv4Header {
  const at = input.offset;
  const versionAndLength = input.u8();
  const headerLength = (versionAndLength & 0x0f) * 4;
  if (versionAndLength >>> 4 !== 4) input.fail("version is not 4");
  if (headerLength < IPV4_HEADER_LENGTH) input.fail("header shorter than 20 bytes");
  const service = input.u8();
  const totalLength = input.u16();
  if (totalLength < headerLength) input.fail("total length shorter than the header");
  const identification = input.u16();
  const fragment = input.u16();
  const ttl = input.u8();
  const protocol = input.u8();
  input.skip(2); // checksum, in the sum below
  const source = ipFromBytes(input.take(4));
  const destination = ipFromBytes(input.take(4));
  const options = input.take(headerLength - IPV4_HEADER_LENGTH).slice();
  if (foldChecksum(sumWords(input.bytes.subarray(at, at + headerLength))) !== 0)
    input.fail("header checksum is wrong");
  return {
    dscp: service >>> 2,
    ecn: service & 3,
    payloadLength: totalLength - headerLength,
    identification,
    dontFragment: (fragment & DONT_FRAGMENT) !== 0,
    moreFragments: (fragment & MORE_FRAGMENTS) !== 0,
    fragmentOffset: (fragment & 0x1fff) * 8,
    ttl,
    protocol,
    source,
    destination,
    options,
  };
}

/** Sum of 16-bit words for the internet checksum (RFC 1071); an odd last byte counts as the high half. */
export function sumWords(bytes: Uint8Array, sum = 0): number {
  const even = bytes.length & ~1;
  for (let i = 0; i < even; i += 2) sum += ((bytes[i] as number) << 8) | (bytes[i + 1] as number);
  return even < bytes.length ? sum + ((bytes[even] as number) << 8) : sum;
}

/** One's complement of the folded sum: the checksum field, or 0 over data that contains a right one. */
export function foldChecksum(sum: number): number {
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return ~sum & 0xffff;
}

const DONT_FRAGMENT = 0x4000;
const MORE_FRAGMENTS = 0x2000;
