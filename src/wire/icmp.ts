/**
 * ICMP of IPv4, RFC 792, as far as echo needs it: type 1, code 1, checksum 2, id 2, sequence 2, then the payload; in
 * "fragmentation needed" (type 3, code 4) the second half is unused 2, MTU of the next hop 2 (RFC 1191).
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
export function encodeEchoRequest({ id, sequence }: IcmpEcho, length: number): Uint8Array {
  const bytes = new Uint8Array(Math.max(length, ICMP_HEADER_LENGTH));
  const view = new DataView(bytes.buffer);
  view.setUint8(0, ECHO_REQUEST);
  view.setUint16(4, id);
  view.setUint16(6, sequence);
  view.setUint16(2, foldChecksum(sumWords(bytes)));
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

const ECHO_REPLY = 0;
const UNREACHABLE = 3;
const FRAGMENTATION_NEEDED = 4;
const ECHO_REQUEST = 8;

function skipIpv4Header(input: ByteReader): void {
  const bytes = (input.u8() & 0xf) * 4;
  input.skip(Math.max(bytes, 20) - 1);
}
