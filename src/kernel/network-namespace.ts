/**
 * The pinned namespace of one network: its sockets, and what was last seen in it and in the sandboxes it knows.
 *
 * The namespace itself is the register of its endpoints: every sandbox that got an interface has a namespace
 * id in it, and over that id links elsewhere are listed and deleted. So an agent that lost all its state, or a
 * sandbox whose path is gone, still leaves nothing behind.
 */
import { errorCode } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import type { Sliced } from "../base/sliced.ts";
import { NAMESPACE_SYSCTLS } from "../overlay/plan.ts";
import { BRIDGE_LINK, FAST_LINK, GATEWAY_LINK, VXLAN_LINK } from "../overlay/naming.ts";
import type { InterfaceAddress } from "../wire/netlink/address.ts";
import type { Link } from "../wire/netlink/link.ts";
import type { NetlinkMessage } from "../wire/netlink/message.ts";
import {
  decodeNamespaceId,
  encodeNamespaceIdAssignment,
  encodeNamespaceIdQuery,
} from "../wire/netlink/namespace-id.ts";
import { RTM, RTNLGRP } from "../wire/netlink/rtnetlink.ts";
import { listAddresses } from "./addresses.ts";
import { findLink, listLinks } from "./links.ts";
import { EntryMirror } from "./neighbors.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

/** Links of one sandbox that may be ours. */
export interface SandboxLinks {
  /** The sandbox's id in the network's namespace. */
  readonly nsid: number;
  readonly links: readonly Link[];
  readonly addresses: readonly InterfaceAddress[];
}

export interface LinkSnapshot {
  /** Of any kind: a dataplane that is not ours may have made it. */
  readonly vxlan: Link | undefined;
  readonly macvlanGateway: Link | undefined;
  readonly bridge: Link | undefined;
  /** This end of the fast path's pair. */
  readonly fast: Link | undefined;
  /** The bridge's ends of veth pairs. */
  readonly ports: readonly Link[];
  readonly addresses: readonly InterfaceAddress[];
  readonly sandboxes: readonly SandboxLinks[];
  readonly wrongSysctls: readonly string[];
}

/** Tables up to this size are dumped at every sweep, larger ones every so many: notifications find drift at once. */
const SMALL_TABLE = 4096;
const LARGE_TABLE_SWEEPS = 10;
/** How often a dump under which the table changed is made again before the notifications must do. */
const SURVEY_ATTEMPTS = 3;

export class NetworkNamespace {
  readonly network: NetworkId;
  readonly netns: Netns;
  readonly socket: NetlinkSocket;
  #links: LinkSnapshot | undefined;
  #mirror: EntryMirror | undefined;
  #entriesKnown = false;
  /** Something may have happened unheard: while we were deaf. */
  #entriesDoubtful = false;
  #sweeps = 0;
  #overruns = 0;
  #events: { readonly entries: NetlinkSocket; readonly links: NetlinkSocket } | undefined;
  /** While we act ourselves, notifications are echoes. */
  #quiet = false;

  /** Takes over `netns`. @throws NetError */
  constructor(network: NetworkId, netns: Netns) {
    this.network = network;
    this.netns = netns;
    this.socket = new NetlinkSocket("route", netns);
  }

  /** From now on what was read is remembered, and `onDrift` tells when it stopped being true. */
  watch(onDrift: () => void): void {
    const entries = new NetlinkSocket("route", this.netns);
    const links = new NetlinkSocket("route", this.netns);
    const report = (): void => {
      if (!this.#quiet) onDrift();
    };
    entries.subscribe({
      groups: [RTNLGRP.neighbor],
      onMessage: (message) => {
        if (this.#noticeEntry(message)) report();
      },
      onOverrun: () => {
        this.#overruns++;
        this.#entriesKnown = false;
        report();
      },
    });
    const linksChanged = (): void => {
      this.#links = undefined;
      report();
    };
    links.subscribe({
      groups: [RTNLGRP.link, RTNLGRP.ipv4Address, RTNLGRP.ipv6Address, RTNLGRP.namespaceId],
      allNamespaces: true,
      // A new id is no news of links, and our own listing of other namespaces makes the kernel give some.
      onMessage: (message) => {
        if (message.type !== RTM.newNamespaceId) linksChanged();
      },
      onOverrun: linksChanged,
    });
    this.#events = { entries, links };
    this.forget();
  }

  /** The next read asks the kernel for everything. */
  forget(): void {
    this.forgetLinks();
    this.#entriesKnown = false;
  }

  /** The next read asks for links, addresses and sysctls; entries are what `survey` compares. */
  forgetLinks(): void {
    this.#links = undefined;
  }

  /**
   * Reads the device's entries a slice at a time, so that what is remembered is true: when nothing is known yet,
   * when something may have gone unheard, and for a sweep now and then. @throws NetError
   */
  *survey(vxlan: Link, sweep: boolean): Sliced<void> {
    const events = this.#events;
    if (events === undefined) return; // nothing is remembered, every read asks
    events.entries.pump();
    const mirror = this.#mirrorFor(vxlan.ifindex);
    const due =
      sweep &&
      (mirror.size <= SMALL_TABLE || ++this.#sweeps % LARGE_TABLE_SWEEPS === 0 || this.#entriesDoubtful);
    if (this.#entriesKnown && !due) return;
    // Its own: between the slices others ask questions here.
    using socket = new NetlinkSocket("route", this.netns);
    for (let attempt = 0; attempt < SURVEY_ATTEMPTS; attempt++) {
      const { changes } = mirror;
      const overruns = this.#overruns;
      const found = yield* EntryMirror.read(socket, mirror.ifindex);
      if (this.#events !== events || this.#mirror !== mirror) return; // closed, or another device
      events.entries.pump();
      if (mirror.changes !== changes || this.#overruns !== overruns) continue;
      mirror.become(found);
      this.#entriesKnown = true;
      this.#entriesDoubtful = false;
      return;
    }
  }

  /** Runs `action`, ours, and takes the notifications it causes for echoes. What was queued before is drift. */
  settle(action: () => void): void {
    this.#pump();
    this.#quiet = true;
    try {
      action();
      this.#pump();
    } finally {
      this.#quiet = false;
    }
  }

  /** Takes everything queued for echoes of ours: after the namespace was made. */
  swallow(): void {
    this.#quiet = true;
    try {
      this.#pump();
    } finally {
      this.#quiet = false;
    }
  }

  /** For many entry steps at once: their echo is not even listened to. */
  deafly(action: () => void): void {
    if (this.#events === undefined) return action();
    this.#entriesDoubtful = true;
    this.#events.entries.withoutNotifications(action);
  }

  /** @throws NetError */
  links(): LinkSnapshot {
    this.#events?.links.pump();
    const snapshot = this.#links ?? this.#readLinks();
    // Without notifications nothing read stays true.
    if (this.#events !== undefined) this.#links = snapshot;
    return snapshot;
  }

  /** What is known of the VXLAN device's entries. @throws NetError */
  entries(vxlan: Link): EntryMirror {
    this.#events?.entries.pump();
    const mirror = this.#mirrorFor(vxlan.ifindex);
    if (!this.#entriesKnown) {
      mirror.load(this.socket);
      this.#entriesKnown = this.#events !== undefined;
    }
    return mirror;
  }

  /** The mirror to enter accepted steps into, if there is one for that device. */
  mirrorOf(ifindex: number): EntryMirror | undefined {
    return this.#mirror?.ifindex === ifindex ? this.#mirror : undefined;
  }

  /** Enters `sandbox` into the register. @throws NetError */
  register(sandbox: Netns): void {
    if (namespaceIdOf(this.socket, sandbox) >= 0) return;
    this.socket.request(`register namespace ${sandbox.path}`, {
      type: RTM.newNamespaceId,
      encode: (out) => encodeNamespaceIdAssignment(sandbox.fd, out),
    });
  }

  close(): void {
    this.#events?.entries.close();
    this.#events?.links.close();
    this.#events = undefined;
    this.socket.close();
    this.netns.close();
  }

  #pump(): void {
    this.#events?.entries.pump();
    this.#events?.links.pump();
  }

  #mirrorFor(ifindex: number): EntryMirror {
    if (this.#mirror?.ifindex !== ifindex) {
      this.#mirror = new EntryMirror(ifindex);
      this.#entriesKnown = false;
    }
    return this.#mirror;
  }

  #noticeEntry(message: NetlinkMessage): boolean {
    if (message.type !== RTM.newNeighbor && message.type !== RTM.deleteNeighbor) return false;
    return this.#mirror?.notice(message) ?? false;
  }

  #readLinks(): LinkSnapshot {
    const links = listLinks(this.socket);
    const ports = links.filter((link) => link.kind === "veth" && link.name !== FAST_LINK);
    const named = (name: string, kind: string): Link | undefined =>
      links.find((link) => link.name === name && link.kind === kind);
    return {
      vxlan: links.find((link) => link.name === VXLAN_LINK),
      macvlanGateway: named(GATEWAY_LINK, "macvlan"),
      bridge: named(BRIDGE_LINK, "bridge"),
      fast: named(FAST_LINK, "veth"),
      ports,
      addresses: listAddresses(this.socket),
      sandboxes: this.#listSandboxes(ports),
      wrongSysctls: this.#wrongSysctls(),
    };
  }

  /**
   * Interfaces of this network elsewhere: macvlan children by asking every namespace known here, veth ends by
   * following the pairs from here.
   *
   * Only what hangs on this namespace counts, which the link's own netns id tells: others may have a network of
   * the same id (two hosts of a lab on one machine). And never all links of a namespace: listing a veth pair
   * gives its other end's namespace an id here (rtnl_fill_link_netnsid allocates), so that the register would
   * come to hold every container of the host.
   */
  #listSandboxes(ports: readonly Link[]): SandboxLinks[] {
    const found = new Map<number, Link[]>();
    for (const nsid of this.#knownNamespaces()) {
      const children = this.#listMacvlans(nsid);
      if (children.length > 0) found.set(nsid, [...children]);
    }
    for (const { link: ifindex, linkNetnsId: nsid } of ports) {
      if (ifindex === undefined || nsid === undefined) continue;
      const end = findLink(this.socket, { ifindex, targetNetnsId: nsid });
      if (end !== undefined) found.set(nsid, [...(found.get(nsid) ?? []), end]);
    }
    return [...found].map(([nsid, links]) => ({ nsid, links, addresses: this.#listAddresses(nsid) }));
  }

  #knownNamespaces(): readonly number[] {
    return this.socket.dump(
      "list namespace ids",
      { type: RTM.getNamespaceId, encode: (out) => encodeNamespaceIdQuery(undefined, out) },
      (message) => decodeNamespaceId(message.payload),
    );
  }

  #listMacvlans(nsid: number): readonly Link[] {
    const links = unlessGone(() => listLinks(this.socket, { targetNetnsId: nsid, kind: "macvlan" })) ?? [];
    if (links.length === 0) return links;
    // Asked after the list, which is what gives this namespace an id in its own eyes.
    const own = namespaceIdOf(this.socket, this.netns);
    return links.filter((link) => link.kind === "macvlan" && link.linkNetnsId === own);
  }

  #listAddresses(nsid: number): readonly InterfaceAddress[] {
    return unlessGone(() => listAddresses(this.socket, nsid)) ?? [];
  }

  #wrongSysctls(): string[] {
    // A sysctl this kernel lacks is as good as off.
    return [...NAMESPACE_SYSCTLS].flatMap(([name, value]) => {
      const actual = this.netns.readSysctl(name);
      return actual === undefined || actual === value ? [] : [name];
    });
  }
}

/** The id under which the socket's namespace knows `other`, −1 when it does not. @throws NetError */
export function namespaceIdOf(socket: NetlinkSocket, other: Netns): number {
  return socket.get(
    `find namespace ${other.path}`,
    { type: RTM.getNamespaceId, encode: (out) => encodeNamespaceIdQuery(other.fd, out) },
    (message) => decodeNamespaceId(message.payload),
  );
}

/** Undefined when the namespace asked about died meanwhile. */
function unlessGone<T>(ask: () => T): T | undefined {
  try {
    return ask();
  } catch (error) {
    if (errorCode(error) === "EINVAL") return undefined;
    throw error;
  }
}
