import type { Brand } from "./brand.ts";
import { DecodeError } from "./error.ts";
import { ipToBytes, type IpAddr } from "./ip.ts";

/** Ethernet address as lower-case text `02:42:0a:00:00:05`. */
export type MacAddr = Brand<string, "MacAddr">;

/** @throws DecodeError unless six pairs of hex digits with colons. */
export function parseMac(text: string): MacAddr {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text))
    throw new DecodeError(
      "MAC address",
      undefined,
      `'${text.slice(0, 40)}' is not six bytes in hex, as in 02:42:0a:00:09:05`,
    );
  return text.toLowerCase() as MacAddr;
}

export function macFromBytes(bytes: Uint8Array): MacAddr {
  if (bytes.length !== 6) throw new DecodeError("MAC address", undefined, `has ${bytes.length} bytes, not 6`);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(":") as MacAddr;
}

export function macToBytes(mac: MacAddr): Uint8Array {
  return Uint8Array.from(mac.split(":"), (pair) => Number.parseInt(pair, 16));
}

/** Group bit set: broadcast or multicast, never an endpoint's own address. */
export function isMulticastMac(mac: MacAddr): boolean {
  return (Number.parseInt(mac.slice(0, 2), 16) & 1) === 1;
}

/** Docker's scheme: `02:42` and the four IPv4 octets, so that address and MAC are one to one. */
export function macFromIpv4(ip: IpAddr): MacAddr {
  const bytes = ipToBytes(ip);
  if (bytes.length !== 4) throw new DecodeError("MAC address", undefined, `${ip} is not IPv4`);
  return macFromBytes(Uint8Array.from([0x02, 0x42, ...bytes]));
}
