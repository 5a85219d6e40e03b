/** Child processes of a lab: short commands with their output, and background processes. */

import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { processIdentity } from "./teardown.ts";

/** A command that ends: exit code and everything it wrote. */
export type CommandResult = {
  /** As typed, for messages. */
  readonly command: string;
  /** Exit code; 128 + signal number when a signal ended it, as in a shell. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
};

export type CommandOptions = {
  readonly env?: NodeJS.ProcessEnv;
  readonly input?: string;
  /** The command is killed after this long (ms); its code is then 137. Default one minute. */
  readonly timeoutMs?: number;
};

/** A command that was expected to succeed and did not. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  readonly result: CommandResult;
  constructor(result: CommandResult) {
    const said = (result.stderr.trim() || result.stdout.trim()).slice(0, 2000);
    super(`\`${result.command}\` exited with ${result.code}: ${said}`);
    this.result = result;
  }
}

/** Runs a command to its end. Rejects only when it cannot be started. */
export async function runCommand(
  argv: readonly [string, ...string[]],
  options: CommandOptions = {},
): Promise<CommandResult> {
  const child = spawn(argv[0], argv.slice(1), {
    env: { ...process.env, ...options.env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => stderr.push(chunk));
  child.stdin.on("error", () => {}); // a command may end without reading its input
  child.stdin.end(options.input ?? "");
  const timer = setTimeout(() => child.kill("SIGKILL"), options.timeoutMs ?? 60_000);
  try {
    const code = await exitOf(child, "close");
    return {
      command: argv.join(" "),
      code,
      stdout: Buffer.concat(stdout).toString(),
      stderr: Buffer.concat(stderr).toString(),
    };
  } finally {
    clearTimeout(timer);
  }
}

/** Throws CommandError unless the command succeeded. */
export function mustSucceed(result: CommandResult): CommandResult {
  if (result.code !== 0) throw new CommandError(result);
  return result;
}

/**
 * A process that runs until it is stopped. Its output goes to a file, so that it outlives us in a kept lab, and it is
 * in a session of its own, so that Ctrl-C reaches only whoever runs the lab.
 */
export class Background {
  readonly command: string;
  readonly pid: number;
  /** Standard output and error, in the order written. */
  readonly outputFile: string;
  readonly #exited: Promise<number>;
  #child: ChildProcess;

  private constructor(child: ChildProcess, command: string, outputFile: string) {
    this.#child = child;
    this.command = command;
    this.outputFile = outputFile;
    this.pid = child.pid ?? 0;
    this.#exited = exitOf(child, "exit");
    this.#exited.catch(() => {}); // reported where it is awaited
  }

  static start(argv: readonly [string, ...string[]], env: NodeJS.ProcessEnv, outputFile: string): Background {
    const output = openSync(outputFile, "a");
    try {
      const child = spawn(argv[0], argv.slice(1), {
        env: { ...process.env, ...env },
        stdio: ["ignore", output, output],
        detached: true,
      });
      child.unref();
      return new Background(child, argv.join(" "), outputFile);
    } finally {
      closeSync(output);
    }
  }

  /** Resolves with the exit code when the process has ended. */
  get exited(): Promise<number> {
    this.#child.ref(); // until somebody asks, the process does not keep our event loop turning
    return this.#exited;
  }

  get running(): boolean {
    // Node hears of an end later than it happens; /proc knows.
    return (
      this.#child.exitCode === null &&
      this.#child.signalCode === null &&
      processIdentity(this.pid) !== undefined
    );
  }

  /** Everything written so far. */
  output(): string {
    return readFileSync(this.outputFile, "utf8");
  }

  /** The complete lines written so far. */
  lines(): string[] {
    return this.output().split("\n").slice(0, -1);
  }

  signal(signal: NodeJS.Signals): void {
    if (this.running) this.#child.kill(signal);
  }

  /** Sends the signal and waits for the end; SIGKILL follows after `withinMs`. Resolves with the exit code. */
  async stop(signal: NodeJS.Signals = "SIGTERM", withinMs = 5_000): Promise<number> {
    this.signal(signal);
    const timer = setTimeout(() => this.signal("SIGKILL"), withinMs);
    try {
      return await this.exited;
    } finally {
      clearTimeout(timer);
    }
  }
}

const SIGNAL_NUMBERS: Readonly<Partial<Record<NodeJS.Signals, number>>> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGABRT: 6,
  SIGKILL: 9,
  SIGSEGV: 11,
  SIGTERM: 15,
};

function exitOf(child: ChildProcess, event: "exit" | "close"): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once(event, (code: number | null, signal: NodeJS.Signals | null) => {
      resolve(code ?? 128 + (SIGNAL_NUMBERS[signal ?? "SIGKILL"] ?? 0));
    });
  });
}
