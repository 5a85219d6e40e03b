import { NetError } from "../base/error.ts";
import { connectUnix } from "../transport/unix-socket.ts";
import type { EventView, Method, Params, Reply, Results } from "../agent/control-protocol.ts";

export const DEFAULT_SOCKET = "/run/netagent/netagent.sock";

/** Talks to one agent; each call is one connection. */
export class Client {
  readonly #path: string;
  readonly #onProgress: (text: string) => void;

  constructor(path: string, onProgress: (text: string) => void) {
    this.#path = path;
    this.#onProgress = onProgress;
  }

  /**
   * @param onEvent takes the events of a streaming method.
   * @param enough ends a stream when it fires; the call then resolves as if the agent had ended it.
   * @throws NetError `agent-unreachable` when nobody answers; else with the agent's own code and message.
   */
  async call<M extends Method>(
    method: M,
    params: Params<M>,
    onEvent?: (event: EventView) => void,
    enough?: AbortSignal,
  ): Promise<Results[M]> {
    const connection = await connectUnix(this.#path);
    try {
      return await new Promise<Results[M]>((resolve, reject) => {
        connection.onClose = () =>
          reject(
            new NetError(
              "agent-unreachable",
              `${method}: netagent at ${this.#path} went away before it answered`,
            ),
          );
        connection.onValue = (value) => {
          const frame = parseReply(value);
          if (frame === undefined) {
            reject(
              new NetError(
                "bad-reply",
                `${method}: netagent answered something this netctl does not understand (versions differ?)`,
              ),
            );
            return;
          }
          if ("progress" in frame) this.#onProgress(frame.progress);
          // The agent is the same package and trusted by its socket's mode: its views are not parsed again.
          else if ("event" in frame) onEvent?.(frame.event as EventView);
          else if ("error" in frame) reject(new NetError(frame.error.code, frame.error.message));
          else resolve(frame.result as Results[M]);
        };
        enough?.addEventListener("abort", () => resolve({} as Results[M]));
        connection.send({ method, params });
      });
    } finally {
      connection.destroy();
    }
  }
}

/** By hand, because the library the agent checks requests with takes a third of the time a short netctl runs. */
function parseReply(value: unknown): Reply | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if ("progress" in value)
    return typeof value.progress === "string" ? { progress: value.progress } : undefined;
  if ("event" in value) return { event: value.event };
  if ("result" in value) return { result: value.result };
  if (!("error" in value) || typeof value.error !== "object" || value.error === null) return undefined;
  const { code, message } = value.error as Record<string, unknown>;
  return typeof code === "string" && typeof message === "string" ? { error: { code, message } } : undefined;
}
