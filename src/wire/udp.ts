/** UDP header, RFC 768: source port 16 bits, destination port 16, length 16, checksum 16; then the payload. */
import { assert } from "../base/assert.ts";
import type { ByteReader, ByteWriter } from "../base/bytes.ts";
import { ipToBytes, type IpAddr } from "../base/ip.ts";
import { foldChecksum, IP_PROTOCOL, sumWords } from "./ipv4.ts";

export const UDP_HEADER_LENGTH = 8; // bytes

export interface UdpDatagram {
  readonly sourcePort: number;
  readonly destinationPort: number;
  /** Of a decoded one a view into the input. */
  readonly payload: Uint8Array;
}

/** Addresses of the IPv4 datagram around it, part of the checksum. */
export interface PseudoHeader {
  readonly source: IpAddr;
  readonly destination: IpAddr;
}

/** Without `pseudo` the checksum is 0, "not computed", as VXLAN over IPv4 sends it (RFC 7348 §5). */
export function encodeUdp(datagram: UdpDatagram, pseudo: PseudoHeader | undefined, out: ByteWriter): void {
  const length = UDP_HEADER_LENGTH + datagram.payload.length;
  assert(length <= 0xffff, "a UDP datagram has at most 65535 bytes");
  const at = out.length;
  out.u16(datagram.sourcePort);
  out.u16(datagram.destinationPort);
  out.u16(length);
  out.u16(0);
  out.write(datagram.payload);
  if (pseudo === undefined) return;
  // A computed 0 is sent as all ones, since 0 means "none".
  out.patchU16(at + 6, checksum(out.view().subarray(at), pseudo) || 0xffff);
}

/**
 * With `pseudo` a checksum that is there is verified. Bytes after the announced length are left alone.
 * @throws DecodeError on an impossible length or a wrong checksum, or if cut short.
 */
export function decodeUdp(input: ByteReader, pseudo?: PseudoHeader): UdpDatagram {
  const at = input.offset;
  const sourcePort = input.u16();
  const destinationPort = input.u16();
  const length = input.u16();
  if (length < UDP_HEADER_LENGTH) input.fail("length shorter than the header");
  const sum = input.u16();
  const payload = input.take(length - UDP_HEADER_LENGTH);
  if (pseudo !== undefined && sum !== 0 && checksum(input.bytes.subarray(at, at + length), pseudo) !== 0)
    input.fail("checksum is wrong");
  return { sourcePort, destinationPort, payload };
}

function checksum(datagram: Uint8Array, pseudo: PseudoHeader): number {
  let sum = IP_PROTOCOL.udp + datagram.length;
  sum = sumWords(ipToBytes(pseudo.source), sum);
  sum = sumWords(ipToBytes(pseudo.destination), sum);
  return foldChecksum(sumWords(datagram, sum));
}
