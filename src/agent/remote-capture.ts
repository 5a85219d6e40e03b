import { setTimeout as pause } from "node:timers/promises";
import { z } from "zod";
import { NetError } from "../base/error.ts";
import { nodeName } from "../base/id.ts";
import type { Agent } from "./agent.ts";
import { captureChunk } from "./capture-sessions.ts";
import type { ParsedParams } from "./control-protocol.ts";
import type { Reporter } from "./control-server.ts";
import type { Views } from "./views.ts";

const ASK_TIMEOUT_MS = 5_000;
const READ_EVERY_MS = 250;

const started = z.object({ session: z.number().int() });
const envelope = z.union([z.object({ result: z.unknown() }), z.object({ error: z.string() })]);

/**
 * Frames of a network as another node sees them: pcap bytes as events of type `capture`, base64 in `detail`, until its
 * tcpdump or the caller ends. @throws NetError with what that node says
 */
export async function captureRemotely(
  { agent, views }: { readonly agent: Agent; readonly views: Views },
  { network, node, filter, count }: ParsedParams<"capture.remote">,
  reporter: Reporter,
): Promise<Record<string, never>> {
  const { id, name } = views.findNode(node);
  const ask = async (question: object): Promise<unknown> => {
    const member = agent.memberOf(id);
    if (member === undefined)
      throw new NetError(
        "node-away",
        `capture on ${name}: it is not among the living members (netctl peers)`,
      );
    const body = { method: "capture", ...question };
    const answer = envelope.parse(await agent.loop.ask(nodeName(member), body, ASK_TIMEOUT_MS));
    if ("error" in answer) throw new NetError("capture", `capture on ${name}: ${answer.error}`);
    return answer.result;
  };
  const { session } = started.parse(
    await ask({
      operation: "start",
      network,
      ...(filter === undefined ? {} : { filter }),
      ...(count === undefined ? {} : { count }),
    }),
  );
  let seen = false;
  for (;;) {
    if (reporter.closed.aborted) {
      await ask({ operation: "stop", session });
      return {};
    }
    const { bytes, ended, said } = captureChunk.parse(await ask({ operation: "read", session }));
    seen ||= bytes !== "";
    if (bytes !== "")
      reporter.event({ time: new Date().toISOString(), type: "capture", subject: name, detail: bytes });
    if (ended) {
      if (seen) return {};
      throw new NetError(
        "capture",
        `capture on ${name}: ${said.trim().split("\n").at(-1) ?? "tcpdump ended"}`,
      );
    }
    await pause(READ_EVERY_MS);
  }
}
