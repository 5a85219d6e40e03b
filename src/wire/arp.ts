/**
 * ARP for IPv4 over Ethernet, RFC 826: hardware type 2 bytes (1), protocol type 2 (0x0800), lengths 1 + 1
 * (6, 4), operation 2, sender MAC 6, sender IP 4, target MAC 6, target IP 4.
 */
import type { ByteReader, ByteWriter } from "../base/bytes.ts";
import { ipFromBytes, ipToBytes, type IpAddr } from "../base/ip.ts";
import { macFromBytes, macToBytes, type MacAddr } from "../base/mac.ts";
import { ETHER_TYPE } from "./ethernet.ts";

export const ARP_LENGTH = 28; // bytes

export interface ArpPacket {
  readonly operation: "request" | "reply";
  readonly senderMac: MacAddr;
  /** IPv4, as is `targetIp`. */
  readonly senderIp: IpAddr;
  /** All zero in a request. */
  readonly targetMac: MacAddr;
  readonly targetIp: IpAddr;
}

export function encodeArp(packet: ArpPacket, out: ByteWriter): void {
  out.u16(HARDWARE_ETHERNET);
  out.u16(ETHER_TYPE.ipv4);
  out.u8(6).u8(4);
  out.u16(packet.operation === "request" ? OPERATION_REQUEST : OPERATION_REPLY);
  out.write(macToBytes(packet.senderMac));
  out.write(ipToBytes(packet.senderIp));
  out.write(macToBytes(packet.targetMac));
  out.write(ipToBytes(packet.targetIp));
}

/** @throws DecodeError on other hardware, protocol or operation, or if cut short. Padding after it is left alone. */
export function decodeArp(input: ByteReader): ArpPacket {
  if (input.u16() !== HARDWARE_ETHERNET || input.u16() !== ETHER_TYPE.ipv4)
    input.fail("not IPv4 over Ethernet");
  if (input.u8() !== 6 || input.u8() !== 4) input.fail("address lengths are not 6 and 4");
  const operation = input.u16();
  if (operation !== OPERATION_REQUEST && operation !== OPERATION_REPLY)
    input.fail(`operation ${operation} is neither request nor reply`);
  return {
    operation: operation === OPERATION_REQUEST ? "request" : "reply",
    senderMac: macFromBytes(input.take(6)),
    senderIp: ipFromBytes(input.take(4)),
    targetMac: macFromBytes(input.take(6)),
    targetIp: ipFromBytes(input.take(4)),
  };
}

const HARDWARE_ETHERNET = 1;
const OPERATION_REQUEST = 1;
const OPERATION_REPLY = 2;
