/**
 * Published ports over IPv6: a relay in this process, from `[::]:PORT` to a backend's IPv4 ingress address.
 *
 * The ingress network is IPv4, and the kernel cannot translate one into the other. The way chosen against was
 * IPv6 addresses on the ingress legs: it would reach only servers that listen on IPv6, and many listen on
 * 0.0.0.0 alone. So `[::1]:8000` works with every server, like `127.0.0.1:8000`; the price is that the backend
 * sees the entry node's ingress address, and that bytes pass through here. Without backends nothing listens
 * and the kernel refuses.
 */
import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { createServer, createConnection, type Server, type Socket } from "node:net";
import { errorCode, errorText } from "../base/error.ts";
import { isIpv4 } from "../base/ip.ts";
import { hashText } from "../mesh/choice.ts";
import { changedServed, type ServedPort } from "../mesh/service-blocks.ts";

/** Per port; protects this process from a flood. Beyond it TCP connections are closed, datagrams dropped. */
const FLOWS_MAX = 4096;
/** As conntrack's for an answered UDP flow. */
const UDP_IDLE_MS = 120_000;
const SWEEP_MS = 10_000;
const CONNECT_TIMEOUT_MS = 3_000;

export interface RelayProblem {
  readonly port: ServedPort;
  readonly text: string;
}

/** Relays in the namespace this process lives in. */
export class Ipv6Relay implements Disposable {
  readonly #listeners = new Map<string, Listener>();
  readonly #onProblem: (problem: RelayProblem) => void;
  #served: readonly (readonly ServedPort[])[] | undefined;

  /** `onProblem` hears why a port cannot be listened on; it is tried again at the next update. */
  constructor(onProblem: (problem: RelayProblem) => void) {
    this.#onProblem = onProblem;
  }

  /**
   * Serves exactly these ports; those published on an IPv4 address only are not ours. The list as the mesh gives
   * it, per service: nothing is done when it is the same array as before and no port failed.
   */
  update(served: readonly (readonly ServedPort[])[]): void {
    const before = this.#served;
    if (served === before) return;
    this.#served = served;
    const changed = before === undefined ? undefined : changedServed(before, served);
    if (changed !== undefined) {
      for (const port of changed) this.#listeners.get(listenerKey(port))?.update(port);
      return;
    }
    const wanted = new Map<string, ServedPort>();
    for (const port of served.flat()) {
      if (port.address !== undefined && isIpv4(port.address)) continue;
      wanted.set(listenerKey(port), port);
    }
    for (const [key, listener] of this.#listeners) {
      if (wanted.has(key)) continue;
      listener.close();
      this.#listeners.delete(key);
    }
    for (const [key, port] of wanted) {
      const listener = this.#listeners.get(key);
      if (listener !== undefined) {
        listener.update(port);
        continue;
      }
      const failed = (error: Error): void => {
        this.#listeners.delete(key);
        this.#served = undefined;
        // A port of one address is served where that address is; it may come here yet.
        if (errorCode(error) === "EADDRNOTAVAIL") return;
        this.#onProblem({
          port,
          text: `listen on [${port.address ?? "::"}]:${port.port}/${port.protocol}: ${errorText(error)}`,
        });
      };
      this.#listeners.set(
        key,
        port.protocol === "tcp" ? new TcpRelay(port, failed) : new UdpRelay(port, failed),
      );
    }
  }

  close(): void {
    for (const listener of this.#listeners.values()) listener.close();
    this.#listeners.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function listenerKey(port: ServedPort): string {
  return `${port.protocol} ${port.port} ${port.address ?? "::"}`;
}

interface Listener {
  update(port: ServedPort): void;
  close(): void;
}

type RelayBackend = ServedPort["backends"][number];

/** Best first: rendezvous hashing, so that a change of one backend moves only its own clients. */
function ranked(port: ServedPort, address: string, sourcePort: number): readonly RelayBackend[] {
  const client = port.affinity === "client-ip" ? address : `${address} ${sourcePort}`;
  return port.backends
    .map((backend) => ({ backend, score: hashText(`${client} ${backend.endpoint}`) }))
    .sort((a, b) => b.score - a.score)
    .map(({ backend }) => backend);
}

class TcpRelay implements Listener {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #port: ServedPort;

  constructor(port: ServedPort, onFailure: (error: Error) => void) {
    this.#port = port;
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (client) => {
      this.#track(client);
      this.#connect(client, ranked(this.#port, client.remoteAddress ?? "", client.remotePort ?? 0), 0);
    });
    this.#server.maxConnections = FLOWS_MAX;
    this.#server.on("error", onFailure);
    this.#server.listen({ host: port.address ?? "::", port: port.port, ipv6Only: true });
  }

  update(port: ServedPort): void {
    this.#port = port;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** The next backend when one does not take the connection: the client has sent nothing that could be lost. */
  #connect(client: Socket, backends: readonly RelayBackend[], attempt: number): void {
    const backend = backends[attempt];
    if (backend === undefined || client.destroyed) {
      client.resetAndDestroy();
      return;
    }
    const upstream = createConnection({
      host: backend.ip,
      port: backend.port,
      allowHalfOpen: true,
      noDelay: true,
    });
    this.#track(upstream);
    upstream.setTimeout(CONNECT_TIMEOUT_MS, () => upstream.destroy(new Error("no answer")));
    const next = (): void => this.#connect(client, backends, attempt + 1);
    upstream.once("error", next);
    upstream.once("connect", () => {
      upstream.removeListener("error", next);
      upstream.setTimeout(0);
      joinSockets(client, upstream);
    });
  }

  #track(socket: Socket): void {
    this.#sockets.add(socket);
    // Every end of a connection is reported by "close" as well; this only keeps an error from being uncaught.
    socket.on("error", () => undefined);
    socket.once("close", () => this.#sockets.delete(socket));
  }
}

/** Bytes and ends both ways; a reset on one side is a reset on the other. */
function joinSockets(a: Socket, b: Socket): void {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    from.pipe(to);
    from.once("close", (hadError) => {
      if (hadError && !to.destroyed) to.resetAndDestroy();
    });
  }
}

class UdpRelay implements Listener {
  readonly #socket: UdpSocket;
  readonly #flows = new Map<
    string,
    { readonly socket: UdpSocket; readonly backend: RelayBackend; lastMs: number }
  >();
  readonly #sweep: NodeJS.Timeout;
  #port: ServedPort;

  constructor(port: ServedPort, onFailure: (error: Error) => void) {
    this.#port = port;
    this.#socket = createSocket({ type: "udp6", ipv6Only: true });
    this.#socket.on("error", (error) => {
      clearInterval(this.#sweep);
      onFailure(error);
    });
    this.#socket.on("message", (bytes, from) => this.#forward(bytes, from.address, from.port));
    this.#socket.bind(port.port, port.address ?? "::");
    this.#sweep = setInterval(() => this.#expire(), SWEEP_MS).unref();
  }

  /** Flows to a backend that is gone start anew; the others stay. */
  update(port: ServedPort): void {
    if (this.#port === port) return;
    this.#port = port;
    for (const [client, { backend }] of this.#flows) {
      if (!port.backends.some(({ ip, port: target }) => ip === backend.ip && target === backend.port))
        this.#end(client);
    }
  }

  close(): void {
    clearInterval(this.#sweep);
    for (const client of [...this.#flows.keys()]) this.#end(client);
    this.#socket.close();
  }

  #forward(bytes: Buffer, address: string, port: number): void {
    const client = `${address} ${port}`;
    let flow = this.#flows.get(client);
    if (flow === undefined) {
      const [backend] = ranked(this.#port, address, port);
      if (backend === undefined || this.#flows.size >= FLOWS_MAX) return;
      const socket = createSocket("udp4");
      socket.on("message", (answer) => this.#socket.send(answer, port, address, () => undefined));
      // Port unreachable: the backend does not listen; the next datagram may find another one.
      socket.on("error", () => this.#end(client));
      socket.connect(backend.port, backend.ip);
      flow = { socket, backend, lastMs: performance.now() };
      this.#flows.set(client, flow);
      socket.once("connect", () => socket.send(bytes, () => undefined));
      return;
    }
    flow.lastMs = performance.now();
    try {
      flow.socket.send(bytes, () => undefined);
    } catch {
      // Not connected yet: the client repeats what it needs, as with any lost datagram.
    }
  }

  #expire(): void {
    const oldest = performance.now() - UDP_IDLE_MS;
    for (const [client, { lastMs }] of this.#flows) if (lastMs < oldest) this.#end(client);
  }

  #end(client: string): void {
    this.#flows.get(client)?.socket.close();
    this.#flows.delete(client);
  }
}
