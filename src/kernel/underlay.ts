/** The underlay as the kernel knows it: which device carries a data-path address, and what fits through it. */
import { NetError } from "../base/error.ts";
import type { IpAddr } from "../base/ip.ts";
import { overlayMtu } from "../overlay/desired.ts";
import { encodeRouteLookup, decodeRoute } from "../wire/netlink/route.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import { listAddresses } from "./addresses.ts";
import { listLinks } from "./links.ts";
import type { NetlinkSocket } from "./netlink-socket.ts";

export interface Underlay {
  readonly ifname: string;
  readonly ifindex: number;
  /** Of the device, bytes. */
  readonly mtu: number;
  /** What fits inside: MTU of the overlay's interfaces. */
  readonly overlayMtu: number;
}

/** The device that has `vtep`. @throws NetError `EADDRNOTAVAIL` when no interface has it */
export function underlayOf(socket: NetlinkSocket, vtep: IpAddr): Underlay {
  const entry = listAddresses(socket).find(({ address }) => address.ip === vtep);
  const link = listLinks(socket).find(({ ifindex }) => ifindex === entry?.ifindex);
  if (link === undefined) {
    throw new NetError(
      "EADDRNOTAVAIL",
      `find the underlay of ${vtep}: no interface has this address; see --data-path-addr`,
    );
  }
  return { ifname: link.name, ifindex: link.ifindex, mtu: link.mtu, overlayMtu: overlayMtu(link.mtu, vtep) };
}

/**
 * What fits through on the way to one peer: the smaller of the outgoing device's MTU and the route's, less the
 * headers. @throws NetError `ENETUNREACH` when there is no way
 */
export function overlayMtuTowards(socket: NetlinkSocket, vtep: IpAddr): number {
  const route = socket.get(
    `find the route to ${vtep}`,
    { type: RTM.getRoute, encode: (out) => encodeRouteLookup(vtep, out) },
    (message) => decodeRoute(message.payload),
  );
  const link = listLinks(socket).find(({ ifindex }) => ifindex === route.ifindex);
  return overlayMtu(Math.min(link?.mtu ?? Infinity, route.mtu ?? Infinity), vtep);
}
