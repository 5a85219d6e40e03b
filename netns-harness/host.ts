/** A machine of the lab: a namespace on the underlay that may run a netagent. */

import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createConnection } from "node:net";
import { join } from "node:path";
import { mustSucceed, type Background, type CommandOptions, type CommandResult } from "./command.ts";
import { DIST, Place } from "./place.ts";
import type { LabMark } from "./teardown.ts";
import { Hopeless, waitFor } from "./wait.ts";

const AGENT = join(DIST, "src/agent/main.js");
const NETCTL = join(DIST, "src/cli/main.js");
const START_PATIENCE_MS = 15_000;

export type StartOptions = {
  /** Hosts or addresses to join. */
  readonly join?: readonly (Host | string)[];
  /** More flags of netagent, as typed. */
  readonly flags?: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  /** A program and its arguments that runs the agent, such as setpriv. */
  readonly through?: readonly string[];
};

export type DataplaneKind = "kernel" | "userspace";

export class Host extends Place {
  /** Underlay address, without prefix length. */
  readonly address: string;
  /** What its agent is told to use; "auto" where the lab leaves it to the agent. */
  readonly dataplane: DataplaneKind | "auto";
  readonly dataFolder: string;
  readonly runFolder: string;
  #agent: Background | undefined;
  #lastStart: StartOptions = {};

  /** Only Lab makes hosts: the namespace must exist. */
  constructor(lab: LabMark, name: string, address: string, dataplane: DataplaneKind | "auto") {
    super(lab, name);
    this.address = address;
    this.dataplane = dataplane;
    this.dataFolder = join(this.folder, "data");
    this.runFolder = join(this.folder, "run");
    mkdirSync(this.dataFolder, { mode: 0o700 });
    mkdirSync(this.runFolder, { mode: 0o755 });
  }

  get socketPath(): string {
    return join(this.runFolder, "netagent.sock");
  }

  /** The running agent's process; throws when there is none. */
  get agent(): Background {
    if (this.#agent?.running !== true) throw new Error(`no netagent is running on ${this.name}`);
    return this.#agent;
  }

  get agentRuns(): boolean {
    return this.#agent?.running === true;
  }

  /** Everything the agents of this host have logged, over all their lives. */
  log(): string {
    return existsSync(this.logFile) ? readFileSync(this.logFile, "utf8") : "";
  }

  get logFile(): string {
    return join(this.folder, "netagent.log");
  }

  /** The arguments the agent is started with here. */
  agentFlags(options: StartOptions = {}): string[] {
    return [
      ...["--name", this.name, "--data-dir", this.dataFolder, "--run-dir", this.runFolder],
      ...["--advertise-addr", this.address],
      ...(this.dataplane === "auto" ? [] : ["--dataplane", this.dataplane]),
      ...(options.join ?? []).flatMap((to) => ["--join", typeof to === "string" ? to : to.address]),
      ...(options.flags ?? []),
    ];
  }

  /** Starts netagent and resolves when its control socket answers; rejects with its log when it ends first. */
  async start(options: StartOptions = {}): Promise<void> {
    if (this.agentRuns) throw new Error(`netagent is already running on ${this.name}`);
    this.#lastStart = options;
    const agent = this.spawn(this.agentCommand(options), options.env ?? {}, this.logFile);
    this.#agent = agent;
    await waitFor(`netagent on ${this.name} to answer`, () => socketAnswers(this.socketPath), {
      withinMs: START_PATIENCE_MS,
      everyMs: 20,
      until: (answers) => {
        if (!agent.running) throw new Hopeless(`it ended:\n${lastLines(this.log(), 20)}`);
        return answers;
      },
    });
  }

  /** The agent's command line, for starting it in an unusual way. */
  agentCommand(options: StartOptions = {}): [string, ...string[]] {
    const [first = process.execPath, ...rest] = [...(options.through ?? []), process.execPath];
    return [first, ...rest, AGENT, ...this.agentFlags(options)];
  }

  /** Runs netagent with these flags until it ends by itself, for starts that must be refused. */
  runAgent(flags: readonly string[] = [], options: CommandOptions = {}): Promise<CommandResult> {
    return this.exec(this.agentCommand({ flags }), {
      timeoutMs: 15_000,
      ...options,
    });
  }

  /** Runs `netagent cleanup` for this host's folders. */
  cleanUp(): Promise<CommandResult> {
    return this.exec([process.execPath, AGENT, "cleanup", ...this.agentFlags()], { timeoutMs: 30_000 });
  }

  /** Kills the agent as a crash would: nothing is said, nothing is cleaned up. */
  async crash(): Promise<void> {
    await this.agent.stop("SIGKILL");
  }

  /** Resolves when the agent's process is gone, for agents somebody else killed. */
  async agentEnded(): Promise<void> {
    await this.#agent?.exited;
  }

  /** SIGTERM: leaves the cluster gracefully. Resolves with the exit code. */
  stop(withinMs = 15_000): Promise<number> {
    return this.agent.stop("SIGTERM", withinMs);
  }

  /** Starts again as last time (same flags, same folders); a running agent is stopped first. */
  async restart(): Promise<void> {
    if (this.agentRuns) await this.stop();
    await this.start(this.#lastStart);
  }

  /** Runs netctl here, as typed; any exit code. */
  netctl(...args: string[]): Promise<CommandResult> {
    return this.exec([process.execPath, NETCTL, ...args]).then((result) => ({
      ...result,
      command: `${this.name}$ netctl ${args.join(" ")}`,
    }));
  }

  /** Runs netctl here; throws CommandError unless it succeeds. Returns its standard output. */
  async ctl(...args: string[]): Promise<string> {
    return mustSucceed(await this.netctl(...args)).stdout;
  }

  /** Runs netctl with `-o json` and parses the document. The caller says what cli.md promises. */
  async ctlJson<T>(...args: string[]): Promise<T> {
    const result = mustSucceed(await this.netctl("-o", "json", ...args));
    try {
      return JSON.parse(result.stdout) as T;
    } catch (cause) {
      throw new Error(`\`${result.command}\` did not print JSON: ${result.stdout.slice(0, 500)}`, { cause });
    }
  }

  /** Starts netctl in the background, for `run`, `events` and `capture`. */
  netctlBackground(...args: string[]): Background {
    return this.spawn([process.execPath, NETCTL, ...args]);
  }

  protected override environment(): NodeJS.ProcessEnv {
    return { ...super.environment(), NETAGENT_SOCKET: this.socketPath, NO_COLOR: "1" };
  }
}

/** True when something accepts connections on the unix socket. */
function socketAnswers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

export function lastLines(text: string, count: number): string {
  return text.trimEnd().split("\n").slice(-count).join("\n");
}
