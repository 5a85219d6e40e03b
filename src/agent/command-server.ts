import { once } from "node:events";
import type { Server, Socket } from "node:net";
import { errorText } from "../base/error.ts";
import { runNetctl, verbOf } from "../cli/program.ts";
import { listenUnixSocket } from "../transport/unix-socket.ts";
import type { Logger } from "./log.ts";

/**
 * Runs short commands of netctl in the agent: node's own start takes several times as long as an attach, and the
 * native front (`native/src/front/netctl.cc`) has none. It is netctl's own code on the same control socket.
 *
 * Request: the words after `netctl`, each ended by a zero byte, then the end of that direction.
 * Answer: exit code (1 byte), length of what goes to standard output (4 bytes, big endian), that text, and what goes
 * to standard error; then the end. The exit code 255 means that the front has to run netctl itself.
 */

/** Commands that ask the agent and print, and need no terminal, signal or process of their own. */
const RUN_HERE: ReadonlySet<string> = new Set([
  ...["attach", "detach", "endpoint", "info", "network", "node", "resolve", "service"],
]);
const NOT_HERE = 255;
/** More words than a person or program types are cut off, so that they cannot fill our memory. */
const MAX_REQUEST_BYTES = 256 * 1024;

/** What the front asks at, for a control socket. */
export function commandSocketPath(controlSocket: string): string {
  return `${controlSocket}.cmd`;
}

/** Serves the words of netctl's front on a unix socket (mode 0600). */
export class CommandServer {
  /** Commands run here, and those the front was told to run itself. */
  readonly counters = { run: 0, declined: 0 };
  #server: Server | undefined;
  readonly #controlSocket: string;
  readonly #sockets = new Set<Socket>();

  private constructor(controlSocket: string) {
    this.#controlSocket = controlSocket;
  }

  /** `controlSocket`: where the commands themselves ask. @throws NetError as `listenUnix` */
  static async listen(controlSocket: string, log: Logger): Promise<CommandServer> {
    const commands = new CommandServer(controlSocket);
    // The request's end is the end of one direction only.
    const options = { allowHalfOpen: true };
    commands.#server = await listenUnixSocket(commandSocketPath(controlSocket), options, (socket) => {
      commands.#sockets.add(socket);
      socket.on("close", () => commands.#sockets.delete(socket));
      commands.#serve(socket).catch((error: unknown) => {
        log.debug({}, `command socket: ${errorText(error)}`);
        socket.destroy();
      });
    });
    return commands;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server?.close(() => resolve()));
  }

  async #serve(socket: Socket): Promise<void> {
    const words = await readWords(socket);
    const here = RUN_HERE.has(verbOf(words) ?? "");
    this.counters[here ? "run" : "declined"]++;
    const { code, out, err } = here
      ? await run(words, this.#controlSocket)
      : { code: NOT_HERE, out: "", err: "" };
    const header = Buffer.alloc(5);
    const text = Buffer.from(out, "utf8");
    header.writeUInt8(code);
    header.writeUInt32BE(text.length, 1);
    socket.end(Buffer.concat([header, text, Buffer.from(err, "utf8")]));
  }
}

/** Rejects when the client goes away, and cuts one off that does not stop. */
async function readWords(socket: Socket): Promise<string[]> {
  const parts: Buffer[] = [];
  let bytes = 0;
  socket.on("data", (part) => {
    bytes += part.length;
    if (bytes > MAX_REQUEST_BYTES) socket.destroy(new Error("the request has no end"));
    else parts.push(part);
  });
  await once(socket, "end");
  return Buffer.concat(parts).toString("utf8").split("\0").slice(0, -1);
}

/** What a command would have printed, to a pipe. */
async function run(
  words: readonly string[],
  controlSocket: string,
): Promise<{ readonly code: number; readonly out: string; readonly err: string }> {
  let out = "";
  let err = "";
  const code = await runNetctl(["--socket", controlSocket, ...words], {
    out: (text) => (out += text),
    err: (text) => (err += text),
    screen: { columns: Number.POSITIVE_INFINITY, colour: false },
    watched: false,
  });
  return { code, out, err };
}
