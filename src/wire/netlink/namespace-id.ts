/**
 * Namespace ids: how one network namespace numbers the others it knows. `struct rtgenmsg` (family 1, padded to
 * 4), then NETNSA_* attributes. include/uapi/linux/net_namespace.h
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { attributeMap, decodeI32, writeU32Attribute } from "./message.ts";

/** The kernel's answer for a namespace that has no id here. */
export const NSID_NOT_ASSIGNED = -1;

const NETNSA = { nsid: 1, fd: 3 } as const;

/** Payload of RTM_NEWNSID: give the namespace behind `fd` the next free id. */
export function encodeNamespaceIdAssignment(fd: number, out: ByteWriter): void {
  out.zeros(4);
  writeU32Attribute(out, NETNSA.nsid, NSID_NOT_ASSIGNED >>> 0);
  writeU32Attribute(out, NETNSA.fd, fd);
}

/** Payload of RTM_GETNSID for the namespace behind `fd`; without it, and with NLM_F_DUMP, all. */
export function encodeNamespaceIdQuery(fd: number | undefined, out: ByteWriter): void {
  out.zeros(4);
  if (fd !== undefined) writeU32Attribute(out, NETNSA.fd, fd);
}

/** Payload of RTM_NEWNSID: the id, possibly NSID_NOT_ASSIGNED. @throws DecodeError */
export function decodeNamespaceId(payload: Uint8Array): number {
  const input: ByteReader = new ByteReader(payload, "netlink namespace id");
  input.skip(Math.min(4, input.remaining));
  const nsid = attributeMap(input).get(NETNSA.nsid);
  if (nsid === undefined) input.fail("has no id");
  return decodeI32(nsid);
}
