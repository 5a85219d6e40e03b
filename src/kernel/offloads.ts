import { NetError } from "../base/error.ts";
import {
  decodeActiveFeatures,
  decodeFamilyId,
  encodeFamilyQuery,
  encodeFeaturesQuery,
  GENERIC_CONTROL,
} from "../wire/netlink/ethtool.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

/**
 * What a device leaves to its card of the checksums over IP of what it sends and receives, as `ethtool -k` names it;
 * nothing where the kernel does not say.
 */
export function checksumOffloads(ifname: string, netns?: Netns): string[] {
  using socket = new NetlinkSocket("generic", netns);
  try {
    const family = socket.get(
      "find the netlink family ethtool",
      { type: GENERIC_CONTROL, encode: (out) => encodeFamilyQuery("ethtool", out) },
      ({ payload }) => decodeFamilyId(payload),
    );
    const features = socket.get(
      `read the features of ${ifname}`,
      { type: family, encode: (out) => encodeFeaturesQuery(ifname, out) },
      ({ payload }) => decodeActiveFeatures(payload),
    );
    return features.filter((name) => name === "rx-checksum" || name.startsWith("tx-checksum-ip"));
  } catch (error) {
    if (error instanceof NetError) return [];
    throw error;
  }
}
