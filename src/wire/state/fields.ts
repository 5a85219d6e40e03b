import { utf8, type ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { ipFromBytes, ipToBytes, isIpv4, subnetOf, type Cidr, type IpAddr } from "../../base/ip.ts";

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Field shapes shared by the formats in this folder. Every read is bounded and throws only `DecodeError`. */

/** LEB128 of a non-negative integer up to 2⁵³ − 1, at most 8 bytes, as protobuf writes it. */
export function writeVarint(out: ByteWriter, value: number): void {
  while (value >= 0x80) {
    out.u8((value % 0x80) | 0x80);
    value = Math.floor(value / 0x80);
  }
  out.u8(value);
}

export function readVarint(input: ByteReader, max = Number.MAX_SAFE_INTEGER): number {
  let value = 0;
  let scale = 1;
  for (let i = 0; i < 8; i++) {
    const byte = input.u8();
    value += (byte & 0x7f) * scale;
    if (byte < 0x80) return value <= max ? value : input.fail(`${value} is above ${max}`);
    scale *= 0x80;
  }
  return input.fail("number of more than 8 bytes");
}

/** UTF-8 text after its length in bytes. */
export function writeText(out: ByteWriter, text: string): void {
  const bytes = utf8(text);
  writeVarint(out, bytes.length);
  out.write(bytes);
}

/** Strict: replacement characters would make another text, and a longer one, of what is passed on. */
export function readText(input: ByteReader, maxBytes: number): string {
  const bytes = readBytes(input, maxBytes);
  try {
    return strictUtf8.decode(bytes);
  } catch {
    return input.fail("text is not UTF-8");
  }
}

export function writeBytes(out: ByteWriter, bytes: Uint8Array): void {
  writeVarint(out, bytes.length);
  out.write(bytes);
}

/** A view into the input. */
export function readBytes(input: ByteReader, maxBytes: number): Uint8Array {
  return input.take(readVarint(input, maxBytes));
}

/** 4 or 6 (the IP version), then the address. */
export function writeIp(out: ByteWriter, ip: IpAddr): void {
  out.u8(isIpv4(ip) ? 4 : 6).write(ipToBytes(ip));
}

export function readIp(input: ByteReader): IpAddr {
  const version = input.u8();
  if (version !== 4 && version !== 6) input.fail(`IP version ${version}`);
  const ip = ipFromBytes(input.take(version === 4 ? 4 : 16));
  return isIpv4(ip) === (version === 4) ? ip : input.fail("IPv4 address written as IPv6");
}

/** A subnet: host bits must be zero. */
export function writeSubnet(out: ByteWriter, subnet: Cidr): void {
  writeIp(out, subnet.ip);
  out.u8(subnet.prefixLength);
}

export function readSubnet(input: ByteReader): Cidr {
  const ip = readIp(input);
  const prefixLength = input.u8();
  if (prefixLength > (isIpv4(ip) ? 32 : 128)) input.fail(`prefix length ${prefixLength}`);
  if (subnetOf({ ip, prefixLength }).ip !== ip) input.fail(`host bits set in ${ip}/${prefixLength}`);
  return { ip, prefixLength };
}

export function writeOptional<T>(out: ByteWriter, value: T | undefined, write: (value: T) => void): void {
  out.u8(value === undefined ? 0 : 1);
  if (value !== undefined) write(value);
}

export function readOptional<T>(input: ByteReader, read: () => T): T | undefined {
  return readFlag(input) ? read() : undefined;
}

export function writeList<T>(out: ByteWriter, items: readonly T[], write: (item: T) => void): void {
  writeVarint(out, items.length);
  for (const item of items) write(item);
}

/** At most `max` items; memory grows only with bytes that are really there. */
export function readList<T>(input: ByteReader, max: number, read: () => T): T[] {
  const count = readVarint(input, max);
  const items: T[] = [];
  for (let i = 0; i < count; i++) items.push(read());
  return items;
}

export function readFlag(input: ByteReader): boolean {
  const value = input.u8();
  return value > 1 ? input.fail(`flag ${value}`) : value === 1;
}
