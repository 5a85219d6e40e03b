/** Deletes what connection tracking remembers of backends that are gone. In process: no `conntrack` program. */
import type { IpAddr } from "../base/ip.ts";
import type { FlowPurge } from "../mesh/flows.ts";
import { PROTOCOL_NUMBERS } from "../mesh/service-blocks.ts";
import { NetlinkBatch } from "../wire/netlink/message.ts";
import {
  CONNTRACK_MESSAGE,
  type ConntrackEntry,
  type ConntrackFilter,
  decodeConntrack,
  encodeConntrackDelete,
  encodeConntrackQuery,
  matchesFilter,
} from "../wire/nftables/conntrack.ts";
import { NetlinkSocket, refusal } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

/** Backends that are asked for one by one: each time the kernel walks its whole table. For more it gives all of it, once. */
const QUERIES_MAX = 8;
/** Deletions per netlink datagram. */
const BATCH = 1024;

/** The connection table of one namespace. */
export class Conntrack implements Disposable {
  readonly #socket: NetlinkSocket;
  readonly #where: string;

  /** In `netns`, or in the namespace of this process. @throws NetError */
  constructor(netns?: Netns) {
    this.#where = netns?.path ?? "the host";
    this.#socket = new NetlinkSocket("netfilter", netns);
  }

  /** IPv4 entries the filter asks for. @throws NetError */
  list(filter: ConntrackFilter): ConntrackEntry[] {
    return this.#socket.dump(
      `read the connections in ${this.#where}`,
      { type: CONNTRACK_MESSAGE.get, encode: (out) => encodeConntrackQuery(filter, out) },
      (message) => {
        const entry = decodeConntrack(message.payload);
        return entry !== undefined && matchesFilter(entry, filter) ? entry : undefined;
      },
    );
  }

  /**
   * Deletes the translated flows to backends that are gone, so that the next packet of each goes to another one: a
   * client that keeps sending would keep the entry alive for ever. Direct flows to the same address (without
   * translation) stay. Returns how many were deleted. @throws NetError
   */
  purge(purges: readonly FlowPurge[]): number {
    let deleted = 0;
    for (const protocol of ["tcp", "udp"] as const) {
      const own = purges.filter((purge) => purge.protocol === protocol);
      deleted += this.delete(this.#translatedTo(protocol, own));
    }
    return deleted;
  }

  /**
   * Deletes translated UDP flows to addresses of `inRange` that `isBackend` does not know: after a restart, nobody
   * remembers which backends went away meanwhile. TCP connections stay: the node of one may only be silent. Reads every
   * UDP entry. Returns how many were deleted.
   */
  purgeStrays(
    inRange: (ip: ConntrackEntry["reply"]["source"]) => boolean,
    isBackend: (entry: ConntrackEntry) => boolean,
  ): number {
    const strays = this.list({ protocol: PROTOCOL_NUMBERS.udp }).filter(
      (entry) => entry.destinationTranslated && inRange(entry.reply.source) && !isBackend(entry),
    );
    return this.delete(strays);
  }

  #translatedTo(protocol: FlowPurge["protocol"], purges: readonly FlowPurge[]): ConntrackEntry[] {
    const byAddress = new Map<IpAddr, FlowPurge[]>();
    for (const purge of purges) {
      const list = byAddress.get(purge.ip);
      if (list === undefined) byAddress.set(purge.ip, [purge]);
      else list.push(purge);
    }
    const number = PROTOCOL_NUMBERS[protocol];
    const entries =
      byAddress.size > QUERIES_MAX
        ? this.list({ protocol: number })
        : [...byAddress.keys()].flatMap((ip) => this.list({ protocol: number, replySource: ip }));
    return entries.filter(
      ({ destinationTranslated, answered, reply }) =>
        destinationTranslated &&
        byAddress
          .get(reply.source)
          ?.some(
            ({ port, unanswered }) =>
              (port === undefined || port === reply.sourcePort) && !(unanswered === true && answered),
          ),
    );
  }

  /** Entries that are gone already are not an error. Returns how many there were. @throws NetError */
  delete(entries: readonly ConntrackEntry[]): number {
    let deleted = 0;
    for (let at = 0; at < entries.length; at += BATCH) {
      const batch = new NetlinkBatch();
      const part = entries.slice(at, at + BATCH);
      for (const entry of part)
        batch.add(CONNTRACK_MESSAGE.delete, 0, (out) => encodeConntrackDelete(entry, out));
      const failures = this.#socket.transact(batch);
      const failure = failures.find(({ code }) => code !== "ENOENT");
      if (failure !== undefined) throw refusal(`delete connections in ${this.#where}`, failure);
      deleted += part.length - failures.length;
    }
    return deleted;
  }

  close(): void {
    this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
