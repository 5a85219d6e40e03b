/**
 * What a network device leaves to its card: the generic netlink family `ethtool`. `struct genlmsghdr` (command 1,
 * version 1, reserved 2), then attributes. Documentation/networking/ethtool-netlink.rst, "FEATURES_GET" and "Bit sets".
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import {
  attributeMap,
  decodeAttributes,
  decodeText,
  decodeU16,
  writeNested,
  writeTextAttribute,
} from "./message.ts";

/** Message type of requests to generic netlink itself; that of a family is asked of it. */
export const GENERIC_CONTROL = 0x10;

const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const CTRL_ATTR_FAMILY_NAME = 2;
const ETHTOOL_MSG_FEATURES_GET = 11;
const ETHTOOL_A_FEATURES_HEADER = 1;
const ETHTOOL_A_FEATURES_ACTIVE = 4;
const ETHTOOL_A_HEADER_DEV_NAME = 2;
const ETHTOOL_A_BITSET_BITS = 3;
const ETHTOOL_A_BITSET_BIT_NAME = 2;
const GENERIC_HEADER_LENGTH = 4; // bytes

/** Asks for the message type of a family. */
export function encodeFamilyQuery(name: string, out: ByteWriter): void {
  out.u8(CTRL_CMD_GETFAMILY).u8(1).zeros(2);
  writeTextAttribute(out, CTRL_ATTR_FAMILY_NAME, name);
}

/** @throws DecodeError */
export function decodeFamilyId(payload: Uint8Array): number {
  const id = attributesOf(payload).get(CTRL_ATTR_FAMILY_ID);
  if (id === undefined) throw new DecodeError("generic netlink family", payload.length, "has no id");
  return decodeU16(id);
}

/** Asks for the features of a device. */
export function encodeFeaturesQuery(ifname: string, out: ByteWriter): void {
  out.u8(ETHTOOL_MSG_FEATURES_GET).u8(1).zeros(2);
  writeNested(out, ETHTOOL_A_FEATURES_HEADER, (header) =>
    writeTextAttribute(header, ETHTOOL_A_HEADER_DEV_NAME, ifname),
  );
}

/** Names of the features that are on, as `ethtool -k` has them. @throws DecodeError */
export function decodeActiveFeatures(payload: Uint8Array): string[] {
  const active = attributesOf(payload).get(ETHTOOL_A_FEATURES_ACTIVE);
  const bits = active && attributeMap(active).get(ETHTOOL_A_BITSET_BITS);
  if (bits === undefined) return [];
  // A list without a mask: who is in it is on.
  return [...decodeAttributes(new ByteReader(bits, "ethtool features"))].flatMap(({ value }) => {
    const name = attributeMap(value).get(ETHTOOL_A_BITSET_BIT_NAME);
    return name === undefined ? [] : [decodeText(name)];
  });
}

function attributesOf(payload: Uint8Array): ReadonlyMap<number, Uint8Array> {
  const input = new ByteReader(payload, "generic netlink");
  input.skip(GENERIC_HEADER_LENGTH);
  return attributeMap(input);
}
