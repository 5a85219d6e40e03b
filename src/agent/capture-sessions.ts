import { spawn, type ChildProcess } from "node:child_process";
import { z } from "zod";
import { NetError } from "../base/error.ts";

/** tcpdumps run for others at a time. */
const MAX_SESSIONS = 4;
/** Unread bytes at which tcpdump is no longer read: it then drops frames and says how many. */
const MAX_UNREAD_BYTES = 1024 * 1024;
/** Of one answer, before base64; a peer call carries 4 MiB. */
const MAX_CHUNK_BYTES = 512 * 1024;
/** A reader that does not come back is gone. */
const IDLE_MS = 10_000;
const MAX_SECONDS = 3_600;
const MAX_SAID = 2_048;

export const captureQuestion = z.discriminatedUnion("operation", [
  z.object({
    operation: z.literal("start"),
    network: z.string().min(1).max(64),
    filter: z.string().max(4_096).optional(),
    count: z.number().int().min(1).optional(),
  }),
  z.object({ operation: z.literal("read"), session: z.number().int() }),
  z.object({ operation: z.literal("stop"), session: z.number().int() }),
]);

/** What a reader gets: pcap bytes, and whether there will be more. */
export const captureChunk = z.object({
  bytes: z.string(),
  ended: z.boolean(),
  /** What tcpdump said, once it has ended. */
  said: z.string().max(2 * MAX_SAID),
});
export type CaptureChunk = z.output<typeof captureChunk>;

interface Session {
  readonly child: ChildProcess;
  readonly unread: Buffer[];
  unreadBytes: number;
  said: string;
  ended: boolean;
  idle: NodeJS.Timeout;
}

/** Captures other agents ask for: bounded in number, in what is kept, and in time. */
export class CaptureSessions {
  readonly #sessions = new Map<number, Session>();
  readonly #place: (network: string) => { readonly netns: string; readonly link: string };
  #next = 1;

  /** `place` says where frames of a network pass on this node. It throws a NetError where they do not. */
  constructor(place: (network: string) => { readonly netns: string; readonly link: string }) {
    this.#place = place;
  }

  /** @throws NetError what cannot be captured, or a session that is over */
  answer(question: z.output<typeof captureQuestion>): { readonly session: number } | CaptureChunk {
    switch (question.operation) {
      case "start":
        return { session: this.#start(question.network, question.filter, question.count) };
      case "read":
        return this.#read(question.session);
      case "stop":
        this.#end(question.session);
        return { bytes: "", ended: true, said: "" };
    }
  }

  close(): void {
    for (const id of this.#sessions.keys()) this.#end(id);
  }

  #start(network: string, filter: string | undefined, count: number | undefined): number {
    if (this.#sessions.size >= MAX_SESSIONS)
      throw new NetError("captures-busy", `capture ${network}: ${MAX_SESSIONS} captures run here already`);
    const { netns, link } = this.#place(network);
    const tcpdump = ["tcpdump", "-i", link, "-n", "--immediate-mode", "-U", "-w", "-"];
    if (count !== undefined) tcpdump.push("-c", String(count));
    // After "--" nothing is taken for an option.
    tcpdump.push("--", ...(filter === undefined ? [] : [filter]));
    const child = spawn("timeout", [String(MAX_SECONDS), "nsenter", `--net=${netns}`, "--", ...tcpdump], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const id = this.#next++;
    const session: Session = {
      child,
      unread: [],
      unreadBytes: 0,
      said: "",
      ended: false,
      idle: setTimeout(() => this.#end(id), IDLE_MS),
    };
    session.idle.unref();
    child.stdout?.on("data", (chunk: Buffer) => {
      session.unread.push(chunk);
      session.unreadBytes += chunk.length;
      if (session.unreadBytes >= MAX_UNREAD_BYTES) child.stdout?.pause();
    });
    child.stderr?.on(
      "data",
      (chunk: Buffer) => (session.said = (session.said + chunk.toString()).slice(-MAX_SAID)),
    );
    child.once("error", (error) => {
      session.said = `run timeout and nsenter: ${error.message}`;
      session.ended = true;
    });
    child.once("close", () => (session.ended = true));
    this.#sessions.set(id, session);
    return id;
  }

  #read(id: number): CaptureChunk {
    const session = this.#sessions.get(id);
    if (session === undefined) throw new NetError("capture-over", `capture ${id}: it has ended`);
    session.idle.refresh();
    const all = Buffer.concat(session.unread);
    const chunk = all.subarray(0, MAX_CHUNK_BYTES);
    const rest = all.subarray(chunk.length);
    session.unread.splice(0, session.unread.length, ...(rest.length === 0 ? [] : [rest]));
    session.unreadBytes = rest.length;
    if (session.unreadBytes < MAX_UNREAD_BYTES) session.child.stdout?.resume();
    const ended = session.ended && rest.length === 0;
    if (ended) this.#end(id);
    return { bytes: chunk.toString("base64"), ended, said: ended ? session.said : "" };
  }

  #end(id: number): void {
    const session = this.#sessions.get(id);
    if (session === undefined) return;
    this.#sessions.delete(id);
    clearTimeout(session.idle);
    if (!session.ended) session.child.kill("SIGTERM");
  }
}
