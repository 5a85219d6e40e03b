/**
 * ICMP of IPv4, RFC 792, as far as echo needs it: type 1, code 1, checksum 2, id 2, sequence 2, then the payload; in
 * "fragmentation needed" (type 3, code 4) the second half is unused 2, MTU of the next hop 2 (RFC 1191). ICMPv6, RFC
 * 4443, has other types, and in "packet too big" (type 2) an MTU of 4 bytes.
 */
import { ByteReader } from "../base/bytes.ts";
import { foldChecksum, sumWords } from "./ipv4.ts";

export const ICMP_HEADER_LENGTH = 8; // bytes

export interface IcmpEcho {
  /** 0 … 65535 each. */
  readonly id: number;
  readonly sequence: number;
}

export type IcmpMessage =
  | { readonly type: "echo-reply"; readonly echo: IcmpEcho; readonly payloadBytes: number }
  /** About an echo of ours; `mtu` is 0 where the router does not tell. */
  | { readonly type: "fragmentation-needed"; readonly echo: IcmpEcho; readonly mtu: number }
  | { readonly type: "other" };

/** An echo request of `length` bytes, header included. */
export function encodeEchoRequest(echo: IcmpEcho, length: number): Uint8Array {
  const bytes = echoRequest(ECHO_REQUEST, echo, length);
  new DataView(bytes.buffer).setUint16(2, foldChecksum(sumWords(bytes)));
  return bytes;
}

/** The same of ICMPv6, without its checksum: that covers addresses, and the kernel fills it in on every raw socket. */
export function encodeEchoRequest6(echo: IcmpEcho, length: number): Uint8Array {
  return echoRequest(ECHO_REQUEST6, echo, length);
}

function echoRequest(type: number, { id, sequence }: IcmpEcho, length: number): Uint8Array {
  const bytes = new Uint8Array(Math.max(length, ICMP_HEADER_LENGTH));
  const view = new DataView(bytes.buffer);
  view.setUint8(0, type);
  view.setUint16(4, id);
  view.setUint16(6, sequence);
  return bytes;
}

/** An IPv4 packet as a raw socket hands it over. @throws DecodeError when it is cut short */
export function decodeIcmpPacket(packet: Uint8Array): IcmpMessage {
  const input = new ByteReader(packet, "ICMP");
  skipIpv4Header(input);
  const type = input.u8();
  const code = input.u8();
  input.skip(2);
  const echo: IcmpEcho = { id: input.u16(), sequence: input.u16() };
  if (type === ECHO_REPLY) return { type: "echo-reply", echo, payloadBytes: input.remaining };
  if (type !== UNREACHABLE || code !== FRAGMENTATION_NEEDED) return { type: "other" };
  // The packet that was too big: its header and the first eight bytes behind it.
  skipIpv4Header(input);
  if (input.u8() !== ECHO_REQUEST) return { type: "other" };
  input.skip(3);
  return {
    type: "fragmentation-needed",
    echo: { id: input.u16(), sequence: input.u16() },
    mtu: echo.sequence,
  };
}

/** An ICMPv6 message; raw sockets hand it over without the IPv6 header. @throws DecodeError when it is cut short */
export function decodeIcmp6Message(message: Uint8Array): IcmpMessage {
  const input = new ByteReader(message, "ICMPv6");
  const type = input.u8();
  input.skip(3);
  if (type === ECHO_REPLY6) {
    const echo = { id: input.u16(), sequence: input.u16() };
    return { type: "echo-reply", echo, payloadBytes: input.remaining };
  }
  if (type !== PACKET_TOO_BIG) return { type: "other" };
  const mtu = input.u32();
  // The packet that was too big: its next header, the rest of its header, and the echo request.
  input.skip(6);
  const protocol = input.u8();
  input.skip(IPV6_HEADER_LENGTH - 7);
  if (protocol !== ICMPV6 || input.u8() !== ECHO_REQUEST6) return { type: "other" };
  input.skip(3);
  return { type: "fragmentation-needed", echo: { id: input.u16(), sequence: input.u16() }, mtu };
}

export const IPV6_HEADER_LENGTH = 40; // bytes, without extensions
/** The next-header number. */
export const ICMPV6 = 58;
const PACKET_TOO_BIG = 2;
const ECHO_REQUEST6 = 128;
const ECHO_REPLY6 = 129;

const ECHO_REPLY = 0;
const UNREACHABLE = 3;
const FRAGMENTATION_NEEDED = 4;
const ECHO_REQUEST = 8;

function skipIpv4Header(input: ByteReader): void {
  const bytes = (input.u8() & 0xf) * 4;
  input.skip(Math.max(bytes, 20) - 1);
}
