import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { once } from "node:events";
import { createServer, connect, type Server, type Socket } from "node:net";
import { plainBytes } from "./plain-bytes.ts";
import { errorCode, errorText, NetError } from "../base/error.ts";
import { formatSocketAddr, isIpv4, parseIp, tryParseIp, type IpAddr, type SocketAddr } from "../base/ip.ts";
import type { TransportInput } from "../base/transport-input.ts";

export interface TransportOptions {
  /** Address to listen on; `0.0.0.0` takes IPv4 only, `::` both families. */
  readonly bindAddr: IpAddr;
  readonly port: number;
  /** A stream without traffic for this long is closed. */
  readonly streamIdleMs: number;
  readonly onInput: (input: TransportInput) => void;
}

/** Accepted streams at one time; more are closed unread. Protects memory and file descriptors from a flood of dials. */
const MAX_ACCEPTED_STREAMS = 512;
const RECEIVE_BUFFER_BYTES = 2 * 1024 * 1024;
/** Senders' addresses remembered in parsed form: members speak every second. Bounds what strangers can fill. */
const MAX_KNOWN_SOURCES = 4_096;

/** UDP and TCP on one port. Hands over bytes and never looks inside. */
export class GossipTransport {
  readonly counters = {
    packetsIn: 0,
    packetsOut: 0,
    bytesIn: 0,
    bytesOut: 0,
    sendErrors: 0,
    streamsRefused: 0,
  };
  readonly #udp: UdpSocket;
  readonly #tcp: Server;
  readonly #onInput: (input: TransportInput) => void;
  readonly #streamIdleMs: number;
  readonly #streams = new Map<number, Socket>();
  readonly #sources = new Map<string, IpAddr>();
  #accepted = 0;
  #nextAccepted = 1;
  #closed = false;

  private constructor(udp: UdpSocket, tcp: Server, options: TransportOptions) {
    this.#udp = udp;
    this.#tcp = tcp;
    this.#onInput = options.onInput;
    this.#streamIdleMs = options.streamIdleMs;
    udp.on("message", (bytes, from) => {
      const ip = this.#sourceOf(from.address);
      if (ip === undefined || bytes.length === 0 || this.#closed) return;
      this.counters.packetsIn++;
      this.counters.bytesIn += bytes.length;
      this.#onInput({ type: "packet", from: { ip, port: from.port }, bytes: plainBytes(bytes) });
    });
    udp.on("error", () => this.counters.sendErrors++);
    tcp.on("connection", (socket) => this.#accept(socket));
  }

  /** @throws NetError `listen` when the address or port cannot be had, saying why and what to do. */
  static async listen(options: TransportOptions): Promise<GossipTransport> {
    const at = formatSocketAddr({ ip: options.bindAddr, port: options.port });
    const udp = createSocket({
      type: isIpv4(options.bindAddr) ? "udp4" : "udp6",
      // We send to addresses only: the resolver would put each packet off to a later turn of the loop.
      lookup: (address, _options, found) => found(null, address, isIpv4(address as IpAddr) ? 4 : 6),
    });
    const tcp = createServer();
    try {
      const listening = once(udp, "listening");
      udp.bind(options.port, options.bindAddr);
      await listening;
      tcp.listen({ host: options.bindAddr, port: options.port, backlog: 512 });
      await once(tcp, "listening");
    } catch (cause) {
      udp.close();
      tcp.close();
      const cure =
        errorCode(cause) === "EADDRINUSE"
          ? "another agent or program holds the port: stop it or choose --gossip-port"
          : "check --bind-addr";
      throw new NetError(
        "listen",
        `listen for gossip on ${at} (UDP and TCP): ${errorText(cause)} (${cure})`,
        { cause },
      );
    }
    // The kernel caps the request at net.core.rmem_max; whatever it grants is fine.
    try {
      udp.setRecvBufferSize(RECEIVE_BUFFER_BYTES);
    } catch {
      // Only a larger buffer is lost.
    }
    return new GossipTransport(udp, tcp, options);
  }

  /** Best effort: a packet that cannot be sent is counted and lost, as on the wire. */
  send(to: SocketAddr, bytes: Uint8Array): void {
    if (this.#closed) return;
    this.counters.packetsOut++;
    this.counters.bytesOut += bytes.length;
    this.#udp.send(bytes, to.port, to.ip, (error) => {
      if (error) this.counters.sendErrors++;
    });
  }

  /** Dials; the outcome comes as `stream-opened` or `stream-closed`. `timeoutMs` bounds the connect. */
  open(stream: number, to: SocketAddr, timeoutMs: number): void {
    const socket = connect({ host: to.ip, port: to.port, noDelay: true });
    const timer = setTimeout(() => socket.destroy(timeoutError(to)), timeoutMs);
    socket.once("connect", () => {
      clearTimeout(timer);
      this.#onInput({ type: "stream-opened", stream });
    });
    socket.once("close", () => clearTimeout(timer));
    this.#adopt(stream, socket);
  }

  write(stream: number, bytes: Uint8Array): void {
    const socket = this.#streams.get(stream);
    if (socket === undefined) return;
    this.counters.bytesOut += bytes.length;
    socket.write(bytes);
  }

  /** Closes after everything written has been sent. No further input comes from this stream. */
  closeStream(stream: number): void {
    const socket = this.#streams.get(stream);
    if (socket === undefined) return;
    this.#streams.delete(stream);
    socket.end();
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const socket of this.#streams.values()) socket.destroy();
    this.#streams.clear();
    await Promise.all([
      new Promise<void>((resolve) => this.#udp.close(() => resolve())),
      new Promise<void>((resolve) => this.#tcp.close(() => resolve())),
    ]);
  }

  #sourceOf(address: string): IpAddr | undefined {
    const known = this.#sources.get(address);
    if (known !== undefined) return known;
    const ip = tryParseIp(address.replace(/^::ffff:(?=\d+\.)/, "").replace(/%.*$/, ""));
    if (ip === undefined) return undefined;
    if (this.#sources.size >= MAX_KNOWN_SOURCES) this.#sources.clear();
    this.#sources.set(address, ip);
    return ip;
  }

  #accept(socket: Socket): void {
    const ip = this.#sourceOf(socket.remoteAddress ?? "");
    if (this.#closed || this.#accepted >= MAX_ACCEPTED_STREAMS || ip === undefined) {
      this.counters.streamsRefused++;
      socket.destroy();
      return;
    }
    const stream = this.#nextAccepted;
    this.#nextAccepted += 2;
    this.#accepted++;
    socket.once("close", () => this.#accepted--);
    socket.setNoDelay(true);
    this.#onInput({ type: "stream-accepted", stream, from: { ip, port: socket.remotePort ?? 0 } });
    this.#adopt(stream, socket);
  }

  #adopt(stream: number, socket: Socket): void {
    this.#streams.set(stream, socket);
    let failure: { readonly code: string; readonly message: string } | undefined;
    const live = (): boolean => this.#streams.get(stream) === socket;
    const ended = (): void => {
      if (!live()) return;
      this.#streams.delete(stream);
      this.#onInput(
        failure === undefined
          ? { type: "stream-closed", stream }
          : { type: "stream-closed", stream, error: failure },
      );
      socket.end();
    };
    socket.setTimeout(this.#streamIdleMs, () => socket.destroy(timeoutError(undefined)));
    socket.on("data", (bytes) => {
      this.counters.bytesIn += bytes.length;
      if (live()) this.#onInput({ type: "stream-data", stream, bytes: plainBytes(bytes) });
    });
    socket.on("error", (error) => {
      failure = { code: errorCode(error) ?? "EIO", message: errorText(error) };
    });
    socket.on("end", ended);
    socket.on("close", ended);
  }
}

/** Resolves a host name to its addresses through the system resolver; an address is itself. @throws NetError `resolve` */
export async function resolveHost(host: string): Promise<IpAddr[]> {
  const literal = tryParseIp(host);
  if (literal !== undefined) return [literal];
  const { lookup } = await import("node:dns/promises");
  try {
    const found = await lookup(host, { all: true });
    return found.map((entry) => parseIp(entry.address));
  } catch (cause) {
    throw new NetError(
      "resolve",
      `look up ${host}: ${errorText(cause)} (check the name, or give an address)`,
      { cause },
    );
  }
}

function timeoutError(to: SocketAddr | undefined): Error {
  const message = to === undefined ? "no traffic" : `no answer from ${formatSocketAddr(to)}`;
  return Object.assign(new Error(message), { code: "ETIMEDOUT" });
}
