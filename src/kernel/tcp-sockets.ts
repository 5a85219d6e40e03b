/**
 * TCP sockets of the namespace the calling thread is in, from /proc/thread-self/net/tcp and tcp6
 * (Documentation/networking/proc_net_tcp.rst): hexadecimal, addresses as 32-bit words in host order.
 */
import { readFileSync } from "node:fs";
import { type IpAddr, ipFromBytes } from "../base/ip.ts";

const LISTEN = "0A";
/**
 * Both sides may still have something to say: ESTABLISHED, SYN_RECV, FIN_WAIT1 (our last bytes are on the way),
 * CLOSE_WAIT (the client waits for the rest), LAST_ACK, CLOSING.
 */
const OPEN: ReadonlySet<string> = new Set(["01", "03", "04", "08", "09", "0B"]);

interface TcpSocket {
  readonly ip: IpAddr;
  readonly port: number;
  readonly state: string;
}

/**
 * Connections to one of `addresses` that somebody opened from outside and that are not over: at a port that is listened
 * on or is one of `ports` (a server that is stopping no longer listens). Synchronous, for `Netns.run`.
 */
export function countServed(addresses: readonly IpAddr[], ports: readonly number[]): number {
  const sockets = ["tcp", "tcp6"].flatMap(readSockets);
  const served = new Set(ports);
  for (const { port, state } of sockets) if (state === LISTEN) served.add(port);
  const own = new Set(addresses);
  return sockets.filter(({ ip, port, state }) => OPEN.has(state) && own.has(ip) && served.has(port)).length;
}

/** An IPv4 address of an IPv6 socket is given as IPv4. */
export function parseTcpSockets(text: string): TcpSocket[] {
  const sockets: TcpSocket[] = [];
  for (const line of text.split("\n").slice(1)) {
    // sl, local address:port, remote, state, …
    const [, local, , state] = line.trim().split(/\s+/);
    const [address, port] = local?.split(":") ?? [];
    if (address === undefined || port === undefined || state === undefined) continue;
    sockets.push({ ip: parseAddress(address), port: Number.parseInt(port, 16), state });
  }
  return sockets;
}

const MAPPED = "0000000000000000FFFF0000";

function parseAddress(hex: string): IpAddr {
  const words = hex.startsWith(MAPPED) ? hex.slice(MAPPED.length) : hex;
  const bytes = Buffer.from(words, "hex");
  // Little-endian words on every machine node runs on.
  return ipFromBytes(bytes.swap32());
}

function readSockets(file: string): TcpSocket[] {
  try {
    return parseTcpSockets(readFileSync(`/proc/thread-self/net/${file}`, "utf8"));
  } catch {
    return []; // a kernel without IPv6
  }
}
