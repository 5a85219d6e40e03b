/** Links over one netlink socket: list, find, create, change, delete. */
import { errorCode } from "../base/error.ts";
import type { BridgePort, Link, LinkSettings } from "../wire/netlink/link.ts";
import { decodeLink, encodeLink, encodeLinkQuery } from "../wire/netlink/link.ts";
import { NLM_F } from "../wire/netlink/message.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import type { NetlinkSocket } from "./netlink-socket.ts";

/** All links of the socket's namespace, or of the one it knows by `targetNetnsId`. @throws NetError */
export function listLinks(socket: NetlinkSocket, targetNetnsId?: number): readonly Link[] {
  const query = targetNetnsId === undefined ? {} : { targetNetnsId };
  return socket.dump(
    "list links",
    { type: RTM.getLink, encode: (out) => encodeLinkQuery(query, out) },
    (message) => decodeLink(message.payload),
  );
}

/** The link called `name`, or undefined. @throws NetError */
export function findLink(socket: NetlinkSocket, name: string): Link | undefined {
  try {
    return socket.get(
      `find link ${name}`,
      { type: RTM.getLink, encode: (out) => encodeLinkQuery({ name }, out) },
      (message) => decodeLink(message.payload),
    );
  } catch (error) {
    if (errorCode(error) === "ENODEV") return undefined;
    throw error;
  }
}

/** `what` begins the error. @throws NetError `EEXIST` when there is one of that name */
export function createLink(socket: NetlinkSocket, what: string, settings: LinkSettings): void {
  socket.request(what, {
    type: RTM.newLink,
    flags: NLM_F.create | NLM_F.exclusive,
    encode: (out) => encodeLink(settings, out),
  });
}

/** Changes the link with the settings' `ifindex`. @throws NetError */
export function setLink(socket: NetlinkSocket, what: string, settings: LinkSettings): void {
  socket.request(what, { type: RTM.newLink, encode: (out) => encodeLink(settings, out) });
}

/** Bridge port settings have their own road: they are no part of what SETLINK accepts on creation. @throws NetError */
export function setBridgePort(
  socket: NetlinkSocket,
  what: string,
  ifindex: number,
  bridgePort: BridgePort,
): void {
  setLink(socket, what, { ifindex, bridgePort });
}

/** Deletes by name, in the socket's namespace or another one. Gone already is not an error. @throws NetError */
export function deleteLink(
  socket: NetlinkSocket,
  what: string,
  link: { readonly name: string; readonly targetNetnsId?: number },
): void {
  try {
    socket.request(what, { type: RTM.deleteLink, encode: (out) => encodeLink(link, out) });
  } catch (error) {
    // EINVAL: the namespace id is no longer known, so the namespace died and its links with it.
    const gone =
      errorCode(error) === "ENODEV" || (link.targetNetnsId !== undefined && errorCode(error) === "EINVAL");
    if (!gone) throw error;
  }
}
