/**
 * Who holds a port on this node, and keeping others from taking one we publish.
 *
 * A published port is translated before any socket sees it, so a process that listens there silently gets
 * nothing (moby 40065 is somebody publishing 22). So publishing asks first who holds the port, and afterwards
 * the port is reserved: the next process that wants it hears EADDRINUSE. Reserving means a bound TCP socket that
 * never listens: the kernel still answers a SYN that nobody translates with a reset, where Docker's listening
 * and never reading socket made clients hang. A bound UDP socket would swallow datagrams, but those of IPv4
 * are translated or refused by our rules before; IPv6 has the relay's own sockets.
 */
import { closeSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { errorCode } from "../base/error.ts";
import { type IpAddr, isIpv4, parseIp } from "../base/ip.ts";
import type { NodePort } from "../mesh/claims.ts";
import type { MeshProtocol } from "../mesh/input.ts";
import { Netns } from "./netns.ts";

export interface PortHolder {
  readonly protocol: MeshProtocol;
  readonly port: number;
  /** Absent when the socket's owner cannot be seen: another pid namespace, or too few rights. */
  readonly pid?: number;
  readonly command?: string;
}

/** `port 8000/tcp is held by nginx (pid 12)`. */
export function holderText(holder: PortHolder): string {
  const who =
    holder.pid === undefined
      ? "a process that this one cannot see"
      : `${holder.command ?? "a process"} (pid ${holder.pid})`;
  return `port ${holder.port}/${holder.protocol} is held by ${who}`;
}

const ANY4 = parseIp("0.0.0.0");
const ANY6 = parseIp("::");

/** Guards the ports of one namespace, the one it is made with: the host's. */
export class PortGuard implements Disposable {
  readonly #netns: Netns;
  readonly #reserved = new Map<string, number>();

  constructor(netns: Netns = Netns.current()) {
    this.#netns = netns;
  }

  /** Who would lose the port; undefined when it is free, or is ours already. */
  holderOf(port: NodePort): PortHolder | undefined {
    if (this.#reserved.has(keyOf(port))) return undefined;
    const addresses = port.address === undefined ? [ANY4, ANY6] : [port.address];
    if (addresses.every((address) => this.#isFree(port.protocol, address, port.port))) return undefined;
    const found = this.#netns.run(() => findHolder(port.protocol, port.port));
    // Our own relay's sockets are no stranger's.
    return found.pid === process.pid ? undefined : found;
  }

  /** Holds exactly these ports from now on; returns those that somebody else holds. IPv6 addresses are skipped. */
  reserve(ports: readonly NodePort[]): NodePort[] {
    const wanted = new Map(ports.filter(isReservable).map((port) => [keyOf(port), port]));
    for (const [key, fd] of this.#reserved) {
      if (wanted.has(key)) continue;
      closeSync(fd);
      this.#reserved.delete(key);
    }
    const taken: NodePort[] = [];
    for (const [key, port] of wanted) {
      if (this.#reserved.has(key)) continue;
      const fd = this.#bind(port.protocol, port.address ?? ANY4, port.port, false);
      if (typeof fd === "number") this.#reserved.set(key, fd);
      // An address that this node does not have needs no guard here.
      else if (fd === "EADDRINUSE") taken.push(port);
    }
    return taken;
  }

  close(): void {
    for (const fd of this.#reserved.values()) closeSync(fd);
    this.#reserved.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #isFree(protocol: MeshProtocol, address: IpAddr, port: number): boolean {
    // With reuse a port that only has connections in TIME-WAIT counts as free; one that is listened on does not.
    const fd = this.#bind(protocol, address, port, protocol === "tcp");
    if (typeof fd !== "number") return fd !== "EADDRINUSE";
    closeSync(fd);
    return true;
  }

  /** A descriptor, or the errno's name. */
  #bind(protocol: MeshProtocol, address: IpAddr, port: number, reuseAddress: boolean): number | string {
    const options = { port, reuseAddress, v6Only: !isIpv4(address) };
    try {
      return protocol === "tcp"
        ? this.#netns.bindTcp(address, options)
        : this.#netns.bindUdp(address, options);
    } catch (error) {
      return errorCode(error) ?? "EIO";
    }
  }
}

function isReservable(port: NodePort): boolean {
  return port.address === undefined || isIpv4(port.address);
}

function keyOf(port: NodePort): string {
  return `${port.protocol} ${port.port} ${port.address ?? ""}`;
}

/** States in /proc/net: listening, for TCP; without a peer, for UDP. */
const HOLDING_STATE = { tcp: "0A", udp: "07" } as const;

/** Run inside the namespace in question. */
function findHolder(protocol: MeshProtocol, port: number): PortHolder {
  const inodes = new Set<string>();
  for (const file of [protocol, `${protocol}6`]) {
    for (const line of readLines(`/proc/thread-self/net/${file}`)) {
      // sl, local address:port, remote, state, queues, timer, retransmits, uid, timeout, inode
      const fields = line.trim().split(/\s+/);
      const local = fields[1]?.split(":")[1];
      if (local === undefined || Number.parseInt(local, 16) !== port) continue;
      if (fields[3] === HOLDING_STATE[protocol] && fields[9] !== undefined) inodes.add(fields[9]);
    }
  }
  const pid = inodes.size === 0 ? undefined : ownerOf(inodes);
  if (pid === undefined) return { protocol, port };
  const command = readLines(`/proc/${pid}/comm`)[0];
  return { protocol, port, pid, ...(command === undefined || command === "" ? {} : { command }) };
}

/** The process that has one of these sockets open. */
function ownerOf(inodes: ReadonlySet<string>): number | undefined {
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    let descriptors: string[];
    try {
      descriptors = readdirSync(`/proc/${entry}/fd`);
    } catch {
      continue; // it ended, or is not ours to look into
    }
    for (const descriptor of descriptors) {
      try {
        const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${entry}/fd/${descriptor}`))?.[1];
        if (inode !== undefined && inodes.has(inode)) return Number(entry);
      } catch {
        // closed meanwhile
      }
    }
  }
  return undefined;
}

function readLines(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split("\n");
  } catch {
    return [];
  }
}
