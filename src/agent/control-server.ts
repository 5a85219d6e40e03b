import type { Server } from "node:net";
import { z } from "zod";
import { DecodeError, errorCode, errorText, NetError } from "../base/error.ts";
import { listenUnix, type JsonConnection } from "../transport/unix-socket.ts";
import {
  requests,
  type EventView,
  type Method,
  type ParsedParams,
  type Results,
} from "./control-protocol.ts";
import type { Logger } from "./log.ts";

/** What a handler may do besides answering. */
export interface Reporter {
  progress(text: string): void;
  event(event: EventView): void;
  /** Fires when the client goes away; a stream then stops. */
  readonly closed: AbortSignal;
}

/** One function a method, with parameters already valid. A thrown NetError is the client's answer. */
export type ControlHandlers = {
  readonly [M in Method]: (params: ParsedParams<M>, reporter: Reporter) => Promise<Results[M]> | Results[M];
};

const envelope = z.object({ method: z.string(), params: z.unknown() });

/** A client that reads events too slowly is cut off here, so that it cannot fill our memory. */
const MAX_BACKLOG_BYTES = 8 * 1024 * 1024;

/** Serves the control API on a unix socket (mode 0600). Anything malformed is answered with an error, never thrown. */
export class ControlServer {
  readonly #server: Server;
  readonly #connections: Set<JsonConnection>;

  private constructor(server: Server, connections: Set<JsonConnection>) {
    this.#server = server;
    this.#connections = connections;
  }

  static async listen(path: string, handlers: ControlHandlers, log: Logger): Promise<ControlServer> {
    const connections = new Set<JsonConnection>();
    const server = await listenUnix(path, (connection) => {
      connections.add(connection);
      serve(connection, handlers, log, () => connections.delete(connection));
    });
    return new ControlServer(server, connections);
  }

  async close(): Promise<void> {
    for (const connection of this.#connections) connection.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

function serve(
  connection: JsonConnection,
  handlers: ControlHandlers,
  log: Logger,
  onClose: () => void,
): void {
  const closed = new AbortController();
  let started = false;
  connection.onClose = () => {
    closed.abort();
    onClose();
  };
  connection.onValue = (value) => {
    if (started) return connection.destroy();
    started = true;
    const reporter: Reporter = {
      progress: (text) => void connection.send({ progress: text }),
      event: (event) => {
        connection.send({ event });
        if (connection.backlogBytes > MAX_BACKLOG_BYTES) connection.destroy();
      },
      closed: closed.signal,
    };
    void answer(value, handlers, reporter)
      .then((result) => connection.send({ result }))
      .catch((error: unknown) => {
        const code = errorCode(error) ?? (error instanceof DecodeError ? "bad-request" : "internal");
        // These two are answers; anything else is a bug here and belongs in the log with its stack.
        if (!(error instanceof NetError || error instanceof DecodeError))
          log.error({ err: error }, "control request failed");
        connection.send({ error: { code, message: errorText(error) } });
      })
      .finally(() => connection.close());
  };
}

async function answer(value: unknown, handlers: ControlHandlers, reporter: Reporter): Promise<unknown> {
  const request = envelope.safeParse(value);
  if (!request.success) throw new NetError("bad-request", "the request is not { method, params }");
  const { method, params } = request.data;
  if (!isMethod(method))
    throw new NetError("bad-request", `netagent does not know '${method}' (is netctl newer than netagent?)`);
  return dispatch(method, params, handlers, reporter);
}

async function dispatch<M extends Method>(
  method: M,
  params: unknown,
  handlers: ControlHandlers,
  reporter: Reporter,
): Promise<unknown> {
  const parsed = requests[method].safeParse(params ?? {});
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new NetError(
      "bad-request",
      `${method.replace(".", " ")}: ${String(issue?.path[0] ?? "parameters")}: ${issue?.message ?? "invalid"}`,
    );
  }
  return handlers[method](parsed.data as ParsedParams<M>, reporter);
}

function isMethod(text: string): text is Method {
  return Object.hasOwn(requests, text);
}
