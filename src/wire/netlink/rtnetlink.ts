/** rtnetlink's message types, multicast groups and address families. include/uapi/linux/rtnetlink.h */
import { MessageType, MulticastGroups } from "netlink/dist/rt/gen_structs.js";

export const RTM = {
  newLink: MessageType.NEWLINK,
  deleteLink: MessageType.DELLINK,
  getLink: MessageType.GETLINK,
  newAddress: MessageType.NEWADDR,
  deleteAddress: MessageType.DELADDR,
  getAddress: MessageType.GETADDR,
  newRoute: MessageType.NEWROUTE,
  deleteRoute: MessageType.DELROUTE,
  getRoute: MessageType.GETROUTE,
  newNeighbor: MessageType.NEWNEIGH,
  deleteNeighbor: MessageType.DELNEIGH,
  getNeighbor: MessageType.GETNEIGH,
  newRule: MessageType.NEWRULE,
  deleteRule: MessageType.DELRULE,
  getRule: MessageType.GETRULE,
  newNamespaceId: MessageType.NEWNSID,
  getNamespaceId: MessageType.GETNSID,
} as const;

export const RTNLGRP = {
  link: MulticastGroups.LINK,
  neighbor: MulticastGroups.NEIGH,
  ipv4Address: MulticastGroups.IPV4_IFADDR,
  ipv4Route: MulticastGroups.IPV4_ROUTE,
  ipv6Address: MulticastGroups.IPV6_IFADDR,
  namespaceId: MulticastGroups.NSID,
} as const;

export const AF = { unspecified: 0, inet: 2, bridge: 7, inet6: 10 } as const;
