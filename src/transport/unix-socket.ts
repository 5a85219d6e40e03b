import { once } from "node:events";
import { chmodSync, existsSync, unlinkSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { errorCode, errorText, NetError } from "../base/error.ts";

/** Length-prefixed JSON: 4 bytes big endian, then that many bytes of UTF-8. Protects both ends from a runaway peer. */
const MAX_FRAME_BYTES = 64 * 1024 * 1024;

/** One end of a control connection: sends values, hands over the values that arrive. Values are `unknown` until parsed. */
export class JsonConnection {
  readonly #socket: Socket;
  #buffered: Buffer[] = [];
  #bufferedBytes = 0;
  onValue: (value: unknown) => void = () => undefined;
  onClose: () => void = () => undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes) => this.#receive(bytes));
    socket.on("error", () => undefined);
    socket.on("close", () => this.onClose());
  }

  /** False when the peer reads too slowly and the caller should pause. */
  send(value: unknown): boolean {
    if (this.#socket.destroyed) return true;
    const body = Buffer.from(JSON.stringify(value), "utf8");
    const header = Buffer.alloc(4);
    header.writeUInt32BE(body.length);
    return this.#socket.write(Buffer.concat([header, body]));
  }

  /** Bytes waiting to be read by the peer. */
  get backlogBytes(): number {
    return this.#socket.writableLength;
  }

  close(): void {
    this.#socket.end();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #receive(bytes: Buffer): void {
    this.#buffered.push(bytes);
    this.#bufferedBytes += bytes.length;
    if (this.#bufferedBytes < 4) return;
    let all = this.#buffered.length === 1 ? bytes : Buffer.concat(this.#buffered);
    while (all.length >= 4) {
      const length = all.readUInt32BE(0);
      if (length > MAX_FRAME_BYTES) {
        this.#socket.destroy();
        return;
      }
      if (all.length < 4 + length) break;
      let value: unknown;
      try {
        value = JSON.parse(all.toString("utf8", 4, 4 + length));
      } catch {
        this.#socket.destroy();
        return;
      }
      all = all.subarray(4 + length);
      this.onValue(value);
    }
    this.#buffered = all.length > 0 ? [all] : [];
    this.#bufferedBytes = all.length;
  }
}

/**
 * Listens on `path` with mode 0600; a socket left by a dead process is replaced.
 * @throws NetError `agent-running` when somebody answers there already, `listen` otherwise.
 */
export async function listenUnix(
  path: string,
  onConnection: (connection: JsonConnection) => void,
): Promise<Server> {
  return listenUnixSocket(path, {}, (socket) => onConnection(new JsonConnection(socket)));
}

/** The same for bytes of any kind. @throws NetError as `listenUnix` */
export async function listenUnixSocket(
  path: string,
  options: { readonly allowHalfOpen?: boolean },
  onSocket: (socket: Socket) => void,
): Promise<Server> {
  if (existsSync(path)) {
    if (await answers(path)) {
      throw new NetError(
        "agent-running",
        `listen on ${path}: another netagent answers there (stop it or choose --run-dir)`,
      );
    }
    unlinkSync(path);
  }
  const server = createServer(options, onSocket);
  const before = process.umask(0o177);
  try {
    server.listen(path);
    await once(server, "listening");
    chmodSync(path, 0o600);
  } catch (cause) {
    throw new NetError("listen", `listen on ${path}: ${errorText(cause)}`, { cause });
  } finally {
    process.umask(before);
  }
  return server;
}

/** @throws NetError `agent-unreachable` naming the path and the cure. */
export async function connectUnix(path: string): Promise<JsonConnection> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
  } catch (cause) {
    const code = errorCode(cause);
    const why =
      code === "ENOENT"
        ? "no such socket (is netagent running? its --run-dir decides the path; see --socket)"
        : code === "ECONNREFUSED"
          ? "nobody listens there (netagent has stopped)"
          : code === "EACCES"
            ? "permission denied (run as root)"
            : errorText(cause);
    throw new NetError("agent-unreachable", `reach netagent at ${path}: ${why}`, { cause });
  }
  return new JsonConnection(socket);
}

async function answers(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
