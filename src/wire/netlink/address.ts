/**
 * Interface addresses: `struct ifaddrmsg` (family 1, prefix length 1, flags 1, scope 1, interface 4), then
 * IFA_* attributes. include/uapi/linux/if_addr.h
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { type Cidr, type IpAddr, ipFromBytes, ipToBytes, isIpv4 } from "../../base/ip.ts";
import { attributeMap, decodeU32, writeAttribute, writeU32Attribute } from "./message.ts";
import { AF } from "./rtnetlink.ts";

export interface InterfaceAddress {
  readonly ifindex: number;
  readonly address: Cidr;
  /** IFA_F_* bits. */
  readonly flags: number;
  /** RT_SCOPE_*: 0 global, 253 link, 254 host. */
  readonly scope: number;
}

/** No duplicate address detection, which would hold an IPv6 address back for a second. */
export const IFA_F_NODAD = 0x02;

const IFA = { address: 1, local: 2, flags: 8, targetNetnsId: 10 } as const;

/** Payload of RTM_NEWADDR and RTM_DELADDR. */
export function encodeAddress(value: InterfaceAddress, out: ByteWriter): void {
  const { ip, prefixLength } = value.address;
  out
    .u8(isIpv4(ip) ? AF.inet : AF.inet6)
    .u8(prefixLength)
    .u8(value.flags & 0xff)
    .u8(value.scope)
    .u32h(value.ifindex);
  const bytes = ipToBytes(ip);
  writeAttribute(out, IFA.local, bytes);
  writeAttribute(out, IFA.address, bytes);
  writeU32Attribute(out, IFA.flags, value.flags);
}

/** Payload of a RTM_GETADDR dump; every family, optionally of another namespace. */
export function encodeAddressQuery(
  query: { readonly ifindex?: number; readonly targetNetnsId?: number },
  out: ByteWriter,
): void {
  out.zeros(4).u32h(query.ifindex ?? 0);
  if (query.targetNetnsId !== undefined) writeU32Attribute(out, IFA.targetNetnsId, query.targetNetnsId);
}

/** Payload of RTM_NEWADDR and RTM_DELADDR. @throws DecodeError */
export function decodeAddress(payload: Uint8Array): InterfaceAddress {
  const input: ByteReader = new ByteReader(payload, "netlink address");
  input.skip(1);
  const prefixLength = input.u8();
  const shortFlags = input.u8();
  const scope = input.u8();
  const ifindex = input.u32h();
  const attributes = attributeMap(input);
  // On point-to-point links IFA_ADDRESS is the peer's; IFA_LOCAL, absent on IPv6, is always ours.
  const bytes = attributes.get(IFA.local) ?? attributes.get(IFA.address);
  if (bytes === undefined) input.fail("has no address");
  const flags = attributes.get(IFA.flags);
  const ip: IpAddr = ipFromBytes(bytes);
  return {
    ifindex,
    address: { ip, prefixLength },
    flags: flags === undefined ? shortFlags : decodeU32(flags),
    scope,
  };
}
