/** As much of a Redis client as coins need: one connection, commands in order, RESP2 replies. */

import { createConnection, type Socket } from "node:net";

const PATIENCE_MS = 2_000;

export type Reply = string | number | null | readonly Reply[];

/** Connects by name when it is first asked, and again after any trouble: the name may stand for another address then. */
export class RedisClient {
  readonly #host: string;
  readonly #port: number;
  #socket: Socket | undefined;
  #buffered = Buffer.alloc(0);
  #waiting: { resolve: (reply: Reply) => void; reject: (error: Error) => void }[] = [];

  constructor(host: string, port = 6379) {
    this.#host = host;
    this.#port = port;
  }

  /** Rejects when Redis says an error, the connection ends, or there is silence. */
  command(...words: readonly string[]): Promise<Reply> {
    const socket = (this.#socket ??= this.#connect());
    const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
    socket.write(`*${words.length}\r\n${parts.join("")}`);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  #connect(): Socket {
    const socket = createConnection({ host: this.#host, port: this.#port, noDelay: true });
    const end = (error: Error): void => {
      if (this.#socket !== socket) return;
      this.#socket = undefined;
      this.#buffered = Buffer.alloc(0);
      for (const { reject } of this.#waiting.splice(0)) reject(error);
      socket.destroy();
    };
    socket.setTimeout(PATIENCE_MS, () => {
      if (this.#waiting.length > 0) end(new Error(`${this.#host}: no answer`));
    });
    socket.on("error", end);
    socket.on("close", () => end(new Error(`${this.#host}: connection closed`)));
    socket.on("data", (chunk) => {
      this.#buffered = Buffer.concat([this.#buffered, chunk]);
      for (;;) {
        const parsed = parse(this.#buffered, 0);
        if (parsed === undefined) return;
        this.#buffered = this.#buffered.subarray(parsed.end);
        const first = this.#waiting.shift();
        if (parsed.reply instanceof Error) first?.reject(parsed.reply);
        else first?.resolve(parsed.reply);
      }
    });
    return socket;
  }
}

/** The reply that begins at `at`; undefined when it is not complete yet. */
function parse(bytes: Buffer, at: number): { reply: Reply | Error; end: number } | undefined {
  const lineEnd = bytes.indexOf("\r\n", at);
  if (lineEnd < 0) return undefined;
  const rest = bytes.toString("utf8", at + 1, lineEnd);
  let end = lineEnd + 2;
  switch (String.fromCharCode(bytes[at] ?? 0)) {
    case "+":
      return { reply: rest, end };
    case "-":
      return { reply: new Error(rest), end };
    case ":":
      return { reply: Number(rest), end };
    case "$": {
      const length = Number(rest);
      if (length < 0) return { reply: null, end };
      if (bytes.length < end + length + 2) return undefined;
      return { reply: bytes.toString("utf8", end, end + length), end: end + length + 2 };
    }
    case "*": {
      const replies: Reply[] = [];
      for (let count = Number(rest); count > 0; count--) {
        const item = parse(bytes, end);
        if (item === undefined) return undefined;
        if (item.reply instanceof Error) return item;
        replies.push(item.reply);
        end = item.end;
      }
      return { reply: replies, end };
    }
    default:
      return { reply: new Error("not RESP"), end: bytes.length };
  }
}
