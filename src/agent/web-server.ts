import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { NetError } from "../base/error.ts";
import type { Status } from "./status.ts";
import { PAGE, SCRIPT, STYLE } from "./web-page.ts";

const REQUEST_TIMEOUT_MS = 5_000;
/** Pages open at a time, and connections beside them. */
const MAX_VIEWERS = 16;
const MAX_CONNECTIONS = 32;
const LOOK_EVERY_MS = 1_000;
/** A comment now and then, so that proxies and browsers keep a quiet stream open. */
const HEARTBEAT_LOOKS = 15;
/** A reader who does not read is let go at so much unread. */
const MAX_UNREAD_BYTES = 4 * 1024 * 1024;

const HEADERS = {
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  // Nothing from elsewhere: it works without a network, and nobody can make it load anything.
  "content-security-policy":
    `default-src 'none'; connect-src 'self'; img-src data:; script-src '${hashOf(SCRIPT)}'; ` +
    `style-src '${hashOf(STYLE)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
} as const;

/** Serves the status page: `/`, its picture as `/status.json`, and live as `/events`. Read-only. */
export class WebServer {
  readonly #server: Server;
  readonly #status: Pick<Status, "view">;
  readonly #viewers = new Set<ServerResponse>();
  #timer: NodeJS.Timeout | undefined;
  #sent = "";
  #quietLooks = 0;

  private constructor(status: Pick<Status, "view">) {
    this.#status = status;
    this.#server = createServer((request, response) => this.#answer(request, response));
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.requestTimeout = REQUEST_TIMEOUT_MS;
    this.#server.headersTimeout = REQUEST_TIMEOUT_MS;
  }

  /** @throws NetError `listen` */
  static async listen(
    address: { readonly host: string; readonly port: number },
    status: Pick<Status, "view">,
  ): Promise<WebServer> {
    const web = new WebServer(status);
    const server = web.#server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause) =>
        reject(
          new NetError(
            "listen",
            `serve the status page on ${address.host}:${address.port}: ${cause.message} (choose another address with --web)`,
            { cause },
          ),
        ),
      );
      server.listen(address.port, address.host, resolve);
    });
    // Afterwards an error concerns one connection.
    server.on("error", () => undefined);
    server.unref();
    return web;
  }

  /** Where it listens; the port is the kernel's choice when 0 was asked for. */
  get port(): number {
    const address = this.#server.address();
    return typeof address === "object" && address !== null ? address.port : 0;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = (request.url ?? "").split("?", 1)[0];
    const send = (status: number, type: string, body: string): void => {
      response.writeHead(status, { ...HEADERS, "content-type": `${type}; charset=utf-8` });
      response.end(request.method === "HEAD" ? "" : body);
    };
    if (request.method !== "GET" && request.method !== "HEAD")
      return send(405, "text/plain", "this page only shows; netctl changes\n");
    switch (path) {
      case "/":
        return send(200, "text/html", PAGE);
      case "/status.json":
        return send(200, "application/json", `${JSON.stringify(this.#status.view(), null, 2)}\n`);
      case "/events":
        if (request.method === "HEAD") return send(200, "text/event-stream", "");
        return this.#stream(response);
      default:
        return send(404, "text/plain", "/, /status.json or /events\n");
    }
  }

  #stream(response: ServerResponse): void {
    if (this.#viewers.size >= MAX_VIEWERS) {
      response.writeHead(503, { ...HEADERS, "content-type": "text/plain", "retry-after": "10" });
      response.end(`${MAX_VIEWERS} pages are open already\n`);
      return;
    }
    response.writeHead(200, { ...HEADERS, "content-type": "text/event-stream" });
    response.on("error", () => undefined);
    this.#viewers.add(response);
    response.on("close", () => {
      this.#viewers.delete(response);
      if (this.#viewers.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
    });
    this.#sent = JSON.stringify(this.#status.view());
    response.write(eventOf(this.#sent));
    this.#timer ??= setInterval(() => this.#look(), LOOK_EVERY_MS).unref();
  }

  /** Only changes are sent. */
  #look(): void {
    const text = JSON.stringify(this.#status.view());
    if (text !== this.#sent) this.#tell(eventOf(text));
    else if (++this.#quietLooks >= HEARTBEAT_LOOKS) this.#tell(": still here\n\n");
    this.#sent = text;
  }

  #tell(text: string): void {
    this.#quietLooks = 0;
    for (const viewer of this.#viewers) {
      if (viewer.writableLength > MAX_UNREAD_BYTES) viewer.destroy();
      else viewer.write(text);
    }
  }
}

function eventOf(json: string): string {
  return `data: ${json}\n\n`;
}

function hashOf(text: string): string {
  return `sha256-${createHash("sha256").update(text).digest("base64")}`;
}
