/** A network namespace of the lab and what can be done inside: commands, servers, captures. */

import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, mkdirSync, openSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { Background, mustSucceed, runCommand, type CommandOptions, type CommandResult } from "./command.ts";
import { LAB_VARIABLE, type LabMark } from "./teardown.ts";
import { Hopeless, waitFor } from "./wait.ts";

/** The compiled project: dist/. */
export const DIST = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const START_PATIENCE_MS = 10_000;

export class Place {
  /** Short name in the lab: `node1`, `client`, `sandbox-a`. */
  readonly name: string;
  /** Name of the network namespace, as `ip netns` shows it. */
  readonly netns: string;
  /** Files of this place: logs, data, sockets. Gone with the lab. */
  readonly folder: string;
  readonly lab: LabMark;
  #backgrounds = 0;

  constructor(lab: LabMark, name: string) {
    this.lab = lab;
    this.name = name;
    this.netns = `${lab.prefix}${name}`;
    this.folder = join(lab.folder, name);
    mkdirSync(this.folder, { recursive: true });
  }

  get netnsPath(): string {
    return `/run/netns/${this.netns}`;
  }

  /** Identity of the namespace: two places with the same number are the same namespace. */
  get netnsInode(): number {
    return statSync(this.netnsPath).ino;
  }

  /** Runs a command here to its end, whatever its exit code. */
  exec(argv: readonly [string, ...string[]], options: CommandOptions = {}): Promise<CommandResult> {
    return runCommand(this.#inside(argv), { ...options, env: { ...this.environment(), ...options.env } });
  }

  /** Runs a command here; returns its standard output; throws CommandError when it fails. */
  async run(...argv: [string, ...string[]]): Promise<string> {
    return mustSucceed(await this.exec(argv)).stdout;
  }

  /** Starts a command here that goes on in the background; the lab's end is its end. Output is appended. */
  spawn(
    argv: readonly [string, ...string[]],
    env: NodeJS.ProcessEnv = {},
    outputFile: string = this.#nextOutputFile(argv[0]),
  ): Background {
    return Background.start(this.#inside(argv), { ...this.environment(), ...env }, outputFile);
  }

  /** The same, talked to over its descriptors 3 (towards it) and 4 (from it). It ends with us or with the lab. */
  spawnPiped(argv: readonly [string, ...string[]], env: NodeJS.ProcessEnv = {}): ChildProcess {
    const output = openSync(this.#nextOutputFile(argv[0]), "a");
    try {
      const [program, ...words] = this.#inside(argv);
      return spawn(program, words, {
        env: { ...process.env, ...this.environment(), ...env },
        stdio: ["ignore", output, output, "pipe", "pipe"],
        detached: true,
      });
    } finally {
      closeSync(output);
    }
  }

  /** True when `address` answers a ping within two seconds; ten are sent. */
  async pings(address: string): Promise<boolean> {
    const { code } = await this.exec(["ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", "2", address]);
    return code === 0;
  }

  /** The body of an HTTP answer, or undefined when there is none within two seconds. A new connection each time. */
  async httpGet(url: string, timeoutSeconds = 2): Promise<string | undefined> {
    const { code, stdout } = await this.exec(["curl", "-sS", "--max-time", String(timeoutSeconds), url]);
    return code === 0 ? stdout.trim() : undefined;
  }

  /** The answer to one datagram, or undefined when there is none within a second. A new source port each time. */
  async udpAsk(address: string, port: number, text = "hello"): Promise<string | undefined> {
    const { code, stdout } = await this.exec(program("udp-ask", address, String(port), text));
    return code === 0 ? stdout.trim() : undefined;
  }

  /** One of `programs/` in the background. */
  spawnProgram(name: string, ...args: string[]): Background {
    return this.spawn(program(name, ...args), {}, this.#nextOutputFile(name));
  }

  /** One of the servers in `programs/`; resolves when it listens. */
  async serve(name: string, ...args: string[]): Promise<Background> {
    const server = this.spawnProgram(name, ...args);
    await started(server, "listening on");
    return server;
  }

  /** An HTTP server that answers `name client-address`; resolves when it listens. */
  serveHttp(port: number, name: string = this.name): Promise<Background> {
    return this.serve("http-server", name, String(port));
  }

  /** A UDP server that answers `name client-address text`; resolves when it listens. */
  serveUdp(port: number, name: string = this.name): Promise<Background> {
    return this.serve("udp-server", name, String(port));
  }

  /** Captures on an interface; resolves when tcpdump listens. `filter` in tcpdump's language. */
  async capture(filter: string, link = "eth0"): Promise<Capture> {
    const tcpdump = this.spawn([
      "tcpdump",
      "--immediate-mode",
      "-nvv",
      "-l",
      "-i",
      link,
      ...filter.split(" ").filter(Boolean),
    ]);
    await started(tcpdump, "listening on");
    return new Capture(tcpdump);
  }

  /** What every process of this place finds in its environment. */
  protected environment(): NodeJS.ProcessEnv {
    return { [LAB_VARIABLE]: this.folder };
  }

  #nextOutputFile(program: string): string {
    this.#backgrounds += 1;
    return join(this.folder, `${this.#backgrounds}-${basename(program)}.log`);
  }

  #inside(argv: readonly [string, ...string[]]): [string, ...string[]] {
    return ["nsenter", `--net=${this.netnsPath}`, "--", ...argv];
  }
}

/** Frames seen so far, as tcpdump -vv prints them. */
export class Capture {
  #tcpdump: Background;
  constructor(tcpdump: Background) {
    this.#tcpdump = tcpdump;
  }

  /** One string per frame; continuation lines joined. */
  frames(): string[] {
    const frames: string[] = [];
    for (const line of this.#tcpdump.lines()) {
      if (/^\d\d:\d\d:\d\d\./.test(line)) frames.push(line);
      else if (/^\s/.test(line) && frames.length > 0) frames[frames.length - 1] += ` ${line.trim()}`;
    }
    return frames;
  }

  async stop(): Promise<string[]> {
    await this.#tcpdump.stop("SIGINT");
    return this.frames();
  }
}

/** The command line of one of `programs/`. */
export function program(name: string, ...args: string[]): [string, ...string[]] {
  return [process.execPath, join(DIST, `netns-harness/programs/${name}.js`), ...args];
}

/** Waits until a background process has written `mark`; throws with its output when it ends first. */
export async function started(process: Background, mark: string): Promise<void> {
  await waitFor(`"${mark}" from \`${process.command}\``, () => process.output(), {
    withinMs: START_PATIENCE_MS,
    until: (output) => {
      if (output.includes(mark)) return true;
      if (!process.running) throw new Hopeless(`it ended; it wrote: ${output.trim()}`);
      return false;
    },
    everyMs: 20,
  });
}
