import { Address4, Address6 } from "ip-address";
import type { Brand } from "./brand.ts";
import { DecodeError } from "./error.ts";

/**
 * IPv4 or IPv6 address as canonical text (RFC 5952 for IPv6): equal addresses are equal strings. An IPv4-mapped
 * IPv6 address (`::ffff:10.0.0.1`) is the IPv4 address.
 */
export type IpAddr = Brand<string, "IpAddr">;

/** An address with a prefix length: of a subnet the host bits are zero, of an interface they need not be. */
export interface Cidr {
  readonly ip: IpAddr;
  readonly prefixLength: number;
}

/** UDP or TCP address; port 1 … 65535. */
export interface SocketAddr {
  readonly ip: IpAddr;
  readonly port: number;
}

const IPV4 = /^(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}$/;

/** @throws DecodeError on anything but one address: no prefix, zone, leading zeros or surrounding space. */
export function parseIp(text: string): IpAddr {
  const ip = tryParseIp(text);
  if (ip === undefined)
    throw new DecodeError("IP address", undefined, `'${text.slice(0, 60)}' is neither IPv4 nor IPv6`);
  return ip;
}

export function tryParseIp(text: string): IpAddr | undefined {
  if (IPV4.test(text)) {
    return text.split(".").some((octet) => octet.length > 1 && octet.startsWith("0"))
      ? undefined
      : (text as IpAddr);
  }
  if (!text.includes(":") || /[%/]/.test(text) || !Address6.isValid(text)) return undefined;
  const canonical = new Address6(text).correctForm();
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical);
  if (mapped === null) return canonical as IpAddr;
  return ipv4FromNumber(
    Number.parseInt(mapped[1] ?? "", 16) * 0x10000 + Number.parseInt(mapped[2] ?? "", 16),
  );
}

export function isIpv4(ip: IpAddr): boolean {
  return !ip.includes(":");
}

/** 4 bytes of IPv4, 16 of IPv6. */
export function ipToBytes(ip: IpAddr): Uint8Array {
  if (isIpv4(ip)) return Uint8Array.from(ip.split("."), Number);
  return Uint8Array.from(new Address6(ip).toUnsignedByteArray());
}

/** 4 or 16 bytes; an IPv4-mapped IPv6 address becomes IPv4. @throws DecodeError on another length. */
export function ipFromBytes(bytes: Uint8Array): IpAddr {
  if (bytes.length === 4) return bytes.join(".") as IpAddr;
  if (bytes.length !== 16)
    throw new DecodeError("IP address", undefined, `has ${bytes.length} bytes, not 4 or 16`);
  const mapped =
    bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff;
  if (mapped) return bytes.subarray(12).join(".") as IpAddr;
  return Address6.fromUnsignedByteArray(Array.from(bytes)).correctForm() as IpAddr;
}

export function ipToBigInt(ip: IpAddr): bigint {
  return isIpv4(ip) ? new Address4(ip).bigInt() : new Address6(ip).bigInt();
}

/** IPv4 only: 0 … 2³² − 1. */
export function ipv4ToNumber(ip: IpAddr): number {
  // By hand: hundreds of thousands are converted at a time, and splitting would leave as much garbage.
  let number = 0;
  let octet = 0;
  for (let i = 0; i < ip.length; i++) {
    const digit = ip.charCodeAt(i) - 48; // "0"
    if (digit >= 0) {
      octet = 10 * octet + digit;
    } else {
      number = 256 * number + octet;
      octet = 0;
    }
  }
  return 256 * number + octet;
}

export function ipv4FromNumber(value: number): IpAddr {
  return [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255].join(".") as IpAddr;
}

/** @throws DecodeError unless `address/length` with a length of 0 … 32 or 0 … 128. */
export function parseCidr(text: string): Cidr {
  const slash = text.lastIndexOf("/");
  const ip = slash < 0 ? undefined : tryParseIp(text.slice(0, slash));
  const length = slash < 0 ? "" : text.slice(slash + 1);
  if (ip === undefined || !/^(0|[1-9]\d{0,2})$/.test(length) || Number(length) > (isIpv4(ip) ? 32 : 128)) {
    throw new DecodeError(
      "CIDR",
      undefined,
      `'${text.slice(0, 60)}' is not ADDRESS/PREFIX-LENGTH, as in 10.0.9.0/24`,
    );
  }
  return { ip, prefixLength: Number(length) };
}

export function formatCidr(cidr: Cidr): string {
  return `${cidr.ip}/${cidr.prefixLength}`;
}

/** The same prefix with all host bits zero. */
export function subnetOf(cidr: Cidr): Cidr {
  const bytes = ipToBytes(cidr.ip);
  return { ip: ipFromBytes(maskBytes(bytes, cidr.prefixLength)), prefixLength: cidr.prefixLength };
}

export function subnetContains(subnet: Cidr, ip: IpAddr): boolean {
  if (isIpv4(subnet.ip) !== isIpv4(ip)) return false;
  return subnetOf({ ip, prefixLength: subnet.prefixLength }).ip === subnetOf(subnet).ip;
}

export function subnetsOverlap(a: Cidr, b: Cidr): boolean {
  return a.prefixLength <= b.prefixLength ? subnetContains(a, b.ip) : subnetContains(b, a.ip);
}

/** Number of addresses, network and broadcast included. IPv4 only. */
export function subnetSize(subnet: Cidr): number {
  return 2 ** (32 - subnet.prefixLength);
}

/** IPv4 broadcast address of the subnet (its last address). */
export function lastAddress(subnet: Cidr): IpAddr {
  return ipv4FromNumber(ipv4ToNumber(subnetOf(subnet).ip) + subnetSize(subnet) - 1);
}

export function isLoopback(ip: IpAddr): boolean {
  return isIpv4(ip) ? ip.startsWith("127.") : ip === "::1";
}

export function isUnspecified(ip: IpAddr): boolean {
  return ip === "0.0.0.0" || ip === "::";
}

/** Numeric order; all IPv4 before all IPv6. */
export function compareIp(a: IpAddr, b: IpAddr): number {
  if (isIpv4(a) !== isIpv4(b)) return isIpv4(a) ? -1 : 1;
  const difference = ipToBigInt(a) - ipToBigInt(b);
  return difference < 0n ? -1 : difference > 0n ? 1 : 0;
}

/** `192.0.2.1:7946` or `[2001:db8::1]:7946`. */
export function formatSocketAddr(addr: SocketAddr): string {
  return isIpv4(addr.ip) ? `${addr.ip}:${addr.port}` : `[${addr.ip}]:${addr.port}`;
}

/** `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address, where HOST may be a name. @throws DecodeError */
export function parseHostPort(
  text: string,
  defaultPort: number,
): { readonly host: string; readonly port: number } {
  const bare = tryParseIp(text);
  if (bare !== undefined) return { host: bare, port: defaultPort };
  const match = /^(?:\[([^\]]+)\]|([^\s:[\]/]+))(?::(\d{1,5}))?$/.exec(text);
  const bracketed = match?.[1];
  // Only IPv6 needs brackets, so nothing else has them.
  const host =
    bracketed === undefined ? match?.[2] : bracketed.includes(":") ? tryParseIp(bracketed) : undefined;
  if (match === null || host === undefined)
    throw new DecodeError("address", undefined, `'${text.slice(0, 80)}' is not HOST or HOST:PORT`);
  const port = match[3] === undefined ? defaultPort : Number(match[3]);
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw new DecodeError("address", undefined, `'${text.slice(0, 80)}' has a port outside 1 … 65535`);
  }
  return { host, port };
}

function maskBytes(bytes: Uint8Array, prefixLength: number): Uint8Array {
  return bytes.map((byte, index) => {
    const bits = Math.min(8, Math.max(0, prefixLength - 8 * index));
    return byte & (0xff << (8 - bits)) & 0xff;
  });
}
