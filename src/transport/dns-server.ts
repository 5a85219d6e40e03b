import { createSocket } from "node:dgram";
import { connect, createServer, type Server, type Socket } from "node:net";
import { plainBytes } from "./plain-bytes.ts";

export type DatagramReply = (answer: Uint8Array) => void;

/** A bound UDP socket; `kernel/datagram-socket.ts` is one. */
export interface DatagramPort {
  /** The local one. */
  readonly port: number;
  /** Bytes are the callback's only until it returns; the reply may come later. */
  listen(onDatagram: (bytes: Uint8Array, reply: DatagramReply) => void): void;
  close(): void;
}

/** Takes a query, whose bytes are its own only until it returns, and, once, its answer; a query without one is dropped. */
export type QueryHandler = (
  bytes: Uint8Array,
  transport: "udp" | "tcp",
  reply: (answer: Uint8Array) => void,
) => void;

/** TCP clients of one listener at one time, and how long one may stay silent. */
const MAX_TCP_CLIENTS = 64;
const TCP_IDLE_MS = 10_000;
/** Answers waiting for a TCP client that asks and does not read; more and it is cut off. */
const MAX_UNREAD_BYTES = 1 << 20;

/** A DNS listener on two sockets that were bound elsewhere (inside a sandbox); takes over the descriptor. */
export class DnsListener {
  readonly #udp: DatagramPort;
  readonly #tcp: Server;
  readonly #clients = new Set<Socket>();
  readonly #ready: Promise<void>;

  constructor(udp: DatagramPort, tcpFd: number, onQuery: QueryHandler) {
    this.#udp = udp;
    udp.listen((bytes, reply) => onQuery(bytes, "udp", reply));
    this.#tcp = createServer((client) => this.#serve(client, onQuery));
    this.#tcp.on("error", () => undefined);
    this.#tcp.maxConnections = MAX_TCP_CLIENTS;
    this.#ready = new Promise((resolve) => {
      this.#tcp.once("listening", resolve);
      this.#tcp.once("close", resolve);
    });
    this.#tcp.listen({ fd: tcpFd });
    // Names alone keep no agent alive.
    this.#tcp.unref();
  }

  /** Where it listens, once both sockets do; the kernel chose the ports. Undefined when it was closed meanwhile. */
  async ports(): Promise<{ readonly udp: number; readonly tcp: number } | undefined> {
    await this.#ready;
    const tcp = this.#tcp.address();
    if (typeof tcp !== "object" || tcp === null) return undefined;
    return { udp: this.#udp.port, tcp: tcp.port };
  }

  close(): void {
    this.#udp.close();
    this.#tcp.close();
    for (const client of this.#clients) client.destroy();
  }

  #serve(client: Socket, onQuery: QueryHandler): void {
    this.#clients.add(client);
    client.on("close", () => this.#clients.delete(client));
    client.on("error", () => undefined);
    client.setTimeout(TCP_IDLE_MS, () => client.destroy());
    readFrames(client, (bytes) =>
      onQuery(bytes, "tcp", (answer) => {
        if (client.destroyed) return;
        client.write(frame(answer));
        if (client.writableLength > MAX_UNREAD_BYTES) client.destroy();
      }),
    );
  }
}

/** Exchanges with upstream servers from the host's side, each on a socket of its own: a fresh source port a question. */
export class DnsUpstream {
  readonly #exchanges = new Map<number, () => void>();
  readonly #onAnswer: (exchange: number, bytes: Uint8Array) => void;
  readonly #onFailure: (exchange: number) => void;

  constructor(
    onAnswer: (exchange: number, bytes: Uint8Array) => void,
    onFailure: (exchange: number) => void,
  ) {
    this.#onAnswer = onAnswer;
    this.#onFailure = onFailure;
  }

  ask(exchange: number, server: string, transport: "udp" | "tcp", bytes: Uint8Array): void {
    if (transport === "udp") this.#askUdp(exchange, server, bytes);
    else this.#askTcp(exchange, server, bytes);
  }

  end(exchange: number): void {
    this.#exchanges.get(exchange)?.();
    this.#exchanges.delete(exchange);
  }

  close(): void {
    for (const exchange of [...this.#exchanges.keys()]) this.end(exchange);
  }

  #fail(exchange: number): void {
    if (this.#exchanges.has(exchange)) this.#onFailure(exchange);
  }

  #askUdp(exchange: number, server: string, bytes: Uint8Array): void {
    const socket = createSocket(server.includes(":") ? "udp6" : "udp4");
    this.#exchanges.set(exchange, () => socket.close());
    socket.on("error", () => this.#fail(exchange));
    socket.on("message", (answer) => this.#onAnswer(exchange, plainBytes(answer)));
    // Connected, so that only this server can answer and a closed port is heard at once.
    // The callback gets the error of a connect that failed, which the types do not know.
    socket.connect(53, server, (error?: Error) => {
      if (!this.#exchanges.has(exchange)) return;
      if (error !== undefined && error !== null) return this.#fail(exchange);
      socket.send(bytes, (failed) => {
        if (failed) this.#fail(exchange);
      });
    });
  }

  #askTcp(exchange: number, server: string, bytes: Uint8Array): void {
    const socket = connect(53, server, () => socket.write(frame(bytes)));
    this.#exchanges.set(exchange, () => socket.destroy());
    socket.on("error", () => this.#fail(exchange));
    socket.on("close", () => this.#fail(exchange));
    readFrames(socket, (answer) => this.#onAnswer(exchange, answer));
  }
}

/** DNS over TCP: two bytes of length before each message (RFC 1035 §4.2.2). */
function frame(bytes: Uint8Array): Uint8Array {
  const framed = new Uint8Array(bytes.length + 2);
  framed[0] = bytes.length >> 8;
  framed[1] = bytes.length & 0xff;
  framed.set(bytes, 2);
  return framed;
}

function readFrames(socket: Socket, onMessage: (bytes: Uint8Array) => void): void {
  let buffered = Buffer.alloc(0);
  socket.on("data", (chunk) => {
    buffered = Buffer.concat([buffered, chunk]);
    while (buffered.length >= 2 && buffered.length >= 2 + buffered.readUInt16BE(0)) {
      const length = buffered.readUInt16BE(0);
      onMessage(plainBytes(buffered.subarray(2, 2 + length)));
      buffered = buffered.subarray(2 + length);
    }
  });
}
