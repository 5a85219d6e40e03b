/** Real `serf agent`s on hosts of a lab. */

import { join } from "node:path";
import { mustSucceed, type Background } from "./command.ts";
import type { Host } from "./host.ts";
import { started } from "./place.ts";
import { waitFor } from "./wait.ts";

/** As `serf members -format json` has it. */
export type SerfMember = {
  readonly name: string;
  /** `address:port` */
  readonly addr: string;
  readonly tags: Readonly<Record<string, string>>;
  readonly status: "alive" | "leaving" | "left" | "failed" | "none";
};

export type SerfOptions = {
  /** Hosts or addresses to join; at least one must answer. */
  readonly join?: readonly (Host | string)[];
  /** Base64 of 32 bytes (older agents take 16 and 24, too). */
  readonly key?: string;
  /** More flags of `serf agent`, as typed. */
  readonly flags?: readonly string[];
};

/** One serf agent; its name is the host's unless flags say otherwise. */
export class SerfAgent {
  readonly host: Host;
  readonly #options: SerfOptions;
  readonly #process: Background;

  private constructor(host: Host, options: SerfOptions, process: Background) {
    this.host = host;
    this.#options = options;
    this.#process = process;
  }

  /** Resolves when it runs, and has joined if it was to. */
  static async start(host: Host, options: SerfOptions = {}): Promise<SerfAgent> {
    const process = host.spawn(
      [
        ...(["serf", "agent", "-node", host.name, "-bind", `${host.address}:7946`] as const),
        ...["-log-level", "debug"],
        ...(options.key === undefined ? [] : ["-encrypt", options.key]),
        ...(options.join ?? []).flatMap((to) => ["-join", typeof to === "string" ? to : to.address]),
        ...(options.flags ?? []),
      ],
      {},
      join(host.folder, "serf.log"),
    );
    await started(process, "Serf agent running!");
    // Started means that it listens; it joins after that, and ends when nobody answers.
    const agent = new SerfAgent(host, options, process);
    const wanted = options.join?.length ? 2 : 1;
    await waitFor(`serf on ${host.name} to have joined`, () => agent.members(), {
      withinMs: 10_000,
      until: (members) => members.length >= wanted,
    });
    return agent;
  }

  get name(): string {
    return this.host.name;
  }

  get pid(): number {
    return this.#process.pid;
  }

  get running(): boolean {
    return this.#process.running;
  }

  /** Everything it has logged, and what its earlier lives on the same host have. */
  log(): string {
    return this.#process.output();
  }

  /** What it complains about: lines of level WARN and ERR. */
  complaints(): string[] {
    return this.log()
      .split("\n")
      .filter((line) => /\[(WARN|ERR)\]/.test(line));
  }

  async members(): Promise<SerfMember[]> {
    return (JSON.parse(await this.#serf("members", "-format", "json")) as { members: SerfMember[] }).members;
  }

  /** Status by name; for netagents the name shown to people, the latest of those that have had it. */
  async statuses(): Promise<Record<string, SerfMember["status"]>> {
    const statuses: Record<string, SerfMember["status"]> = {};
    for (const { name, tags, status } of await this.members()) {
      const shown = tags["role"] === "netagent" ? (tags["name"] ?? name) : name;
      if (statuses[shown] === undefined || status === "alive") statuses[shown] = status;
    }
    return statuses;
  }

  event(name: string, payload = ""): Promise<string> {
    return this.#serf("event", name, payload);
  }

  /** Output of the query; agents without a handler acknowledge and do not answer. */
  query(name: string, payload = ""): Promise<string> {
    return this.#serf("query", "-timeout", "1s", name, payload);
  }

  /** Output and exit code: 1 when a member did not answer, or refused, as netagents do to all but `-list`. */
  async keys(...args: string[]): Promise<{ code: number; output: string }> {
    const { code, stdout, stderr } = await this.host.exec(["serf", "keys", ...args]);
    return { code, output: stdout + stderr };
  }

  async forceLeave(name: string): Promise<void> {
    await this.#serf("force-leave", name);
  }

  /** Leaves gracefully; the process ends. */
  async leave(): Promise<void> {
    await this.#serf("leave");
    await this.#process.exited;
  }

  async crash(): Promise<void> {
    await this.#process.stop("SIGKILL");
  }

  /** Resolves when the process is gone. */
  async ended(): Promise<void> {
    await this.#process.exited;
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.signal(signal);
  }

  /** A new life with the same options, or others; it must have ended. */
  restart(options: SerfOptions = this.#options): Promise<SerfAgent> {
    return SerfAgent.start(this.host, options);
  }

  async #serf(...args: [string, ...string[]]): Promise<string> {
    return mustSucceed(await this.host.exec(["serf", ...args], { timeoutMs: 20_000 })).stdout;
  }
}
