/** Interface addresses over one netlink socket. */
import { errorCode } from "../base/error.ts";
import { type Cidr, formatCidr } from "../base/ip.ts";
import {
  decodeAddress,
  encodeAddress,
  encodeAddressQuery,
  IFA_F_NODAD,
  type InterfaceAddress,
} from "../wire/netlink/address.ts";
import { NLM_F } from "../wire/netlink/message.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import type { NetlinkSocket } from "./netlink-socket.ts";

/** All addresses of the socket's namespace, or of the one it knows by `targetNetnsId`. @throws NetError */
export function listAddresses(socket: NetlinkSocket, targetNetnsId?: number): readonly InterfaceAddress[] {
  const query = targetNetnsId === undefined ? {} : { targetNetnsId };
  return socket.dump(
    "list addresses",
    { type: RTM.getAddress, encode: (out) => encodeAddressQuery(query, out) },
    (message) => decodeAddress(message.payload),
  );
}

/** Adds it if it is not there. @throws NetError */
export function setAddress(socket: NetlinkSocket, what: string, ifindex: number, address: Cidr): void {
  const flags = address.ip.includes(":") ? IFA_F_NODAD : 0;
  socket.request(`${what}: add address ${formatCidr(address)}`, {
    type: RTM.newAddress,
    flags: NLM_F.create | NLM_F.replace,
    encode: (out) => encodeAddress({ ifindex, address, flags, scope: 0 }, out),
  });
}

/** Gone already is not an error. @throws NetError */
export function deleteAddress(socket: NetlinkSocket, what: string, ifindex: number, address: Cidr): void {
  try {
    socket.request(`${what}: delete address ${formatCidr(address)}`, {
      type: RTM.deleteAddress,
      encode: (out) => encodeAddress({ ifindex, address, flags: 0, scope: 0 }, out),
    });
  } catch (error) {
    if (errorCode(error) !== "EADDRNOTAVAIL") throw error;
  }
}
