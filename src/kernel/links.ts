/** Links over one netlink socket: list, find, create, change, delete. */
import { errorCode } from "../base/error.ts";
import type { Link, LinkQuery, LinkSettings } from "../wire/netlink/link.ts";
import { decodeLink, encodeLink, encodeLinkQuery } from "../wire/netlink/link.ts";
import { NLM_F } from "../wire/netlink/message.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import type { NetlinkSocket } from "./netlink-socket.ts";

/** Links of the socket's namespace, or of the one it knows by `targetNetnsId`, of one kind or all. @throws NetError */
export function listLinks(
  socket: NetlinkSocket,
  query: Pick<LinkQuery, "kind" | "targetNetnsId"> = {},
): readonly Link[] {
  return socket.dump(
    "list links",
    { type: RTM.getLink, encode: (out) => encodeLinkQuery(query, out) },
    (message) => decodeLink(message.payload),
  );
}

/** The link with that name or index, or undefined. @throws NetError */
export function findLink(
  socket: NetlinkSocket,
  query: Pick<LinkQuery, "name" | "ifindex" | "targetNetnsId">,
): Link | undefined {
  try {
    return socket.get(
      `find link ${query.name ?? query.ifindex}`,
      { type: RTM.getLink, encode: (out) => encodeLinkQuery(query, out) },
      (message) => decodeLink(message.payload),
    );
  } catch (error) {
    if (isGone(error, query.targetNetnsId)) return undefined;
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

/** Deletes by name, in the socket's namespace or another one. Gone already is not an error. @throws NetError */
export function deleteLink(
  socket: NetlinkSocket,
  what: string,
  link: { readonly name: string; readonly targetNetnsId?: number },
): void {
  try {
    socket.request(what, { type: RTM.deleteLink, encode: (out) => encodeLink(link, out) });
  } catch (error) {
    if (!isGone(error, link.targetNetnsId)) throw error;
  }
}

/** EINVAL: the namespace id is no longer known, so the namespace died and its links with it. */
function isGone(error: unknown, targetNetnsId: number | undefined): boolean {
  const code = errorCode(error);
  return code === "ENODEV" || (targetNetnsId !== undefined && code === "EINVAL");
}
