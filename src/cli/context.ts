import type { Command } from "commander";
import { NetError } from "../base/error.ts";
import { Client, DEFAULT_SOCKET } from "./client.ts";
import { screenOf, type Screen } from "./render.ts";

/** What every command needs: where the agent is, how to print. */
export interface Context {
  readonly client: Client;
  readonly json: boolean;
  readonly screen: Screen;
  /** How long a change may take, from `--timeout`. */
  readonly timeoutMs: number;
  /** Prints `value` as JSON, or what `people` makes of it. */
  print<T>(value: T, people: (value: T, screen: Screen) => string): void;
}

/** Where a run of netctl writes to. */
export interface Output {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  readonly screen: Screen;
  /** Somebody watches `err`: long work shows how far it is. */
  readonly watched: boolean;
}

export const PROCESS_OUTPUT: Output = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  screen: screenOf(process.stdout, process.env),
  watched: process.stderr.isTTY === true,
};

/** By root command: commander hands commands around and has no room for more. */
const outputs = new WeakMap<Command, Output>();

/** Everything the program and its commands print goes there, help and usage errors too. */
export function writeTo(output: Output, program: Command): void {
  outputs.set(program, output);
  const { columns, colour } = output.screen;
  const helpWidth = (): number => (Number.isFinite(columns) ? columns : 80);
  // Without "[options]" at each: what is left fits 80 columns.
  program.configureHelp({
    subcommandTerm: (command) =>
      `${command.name()} ${command.usage().replaceAll(/\[(options|command)\]/g, "")}`
        .replaceAll(/ +/g, " ")
        .trim(),
  });
  program.configureOutput({
    writeOut: output.out,
    writeErr: output.err,
    getOutHelpWidth: helpWidth,
    getErrHelpWidth: helpWidth,
    getOutHasColors: () => colour,
    getErrHasColors: () => colour,
  });
}

/** Wrong usage found by a command itself: exit code 2. */
export class UsageError extends Error {}

export function contextOf(command: Command): Context {
  const options = globalOptions(command);
  const json = options.output === "json";
  const { out, err, screen, watched } = outputs.get(rootOf(command)) ?? PROCESS_OUTPUT;
  const showProgress = watched && !json;
  const path = options.socket ?? process.env["NETAGENT_SOCKET"] ?? DEFAULT_SOCKET;
  return {
    client: new Client(path, (text) => {
      if (showProgress) err(`\r\u001b[K${text}`);
    }),
    json,
    screen,
    timeoutMs: parseDuration(options.timeout ?? "10s"),
    print(value, people) {
      if (showProgress) err("\r\u001b[K");
      out(json ? `${JSON.stringify(value, null, 2)}\n` : people(value, screen));
    },
  };
}

function rootOf(command: Command): Command {
  return command.parent === null ? command : rootOf(command.parent);
}

/** The options every command takes; one given after the command wins over one given before it. */
export function globalOptions(command: Command): { socket?: string; output?: string; timeout?: string } {
  const merged = command.parent === null ? {} : globalOptions(command.parent);
  for (const key of ["socket", "output", "timeout"] as const) {
    const value: unknown = command.getOptionValue(key);
    if (typeof value === "string") merged[key] = value;
  }
  return merged;
}

/** `10`, `10s`, `500ms`, `2m`: milliseconds. @throws UsageError */
export function parseDuration(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text);
  if (match === null) throw new UsageError(`'${text}' is not a duration such as 10s, 500ms or 2m`);
  const scale = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[match[2] ?? "s"] ?? 1000;
  return Math.round(Number(match[1]) * scale);
}

/** @throws UsageError unless a whole number. */
export function parseInteger(text: string): number {
  if (!/^-?\d+$/.test(text)) throw new UsageError(`'${text}' is not a whole number`);
  return Number(text);
}

export interface PublishSpec {
  published: number;
  target: number;
  protocol: "tcp" | "udp";
  address?: string;
  mode: "ingress" | "host";
}

/** `[IP:]PUBLISHED:TARGET[/tcp|udp]`, IPv6 in brackets. @throws UsageError */
export function parsePublish(text: string): PublishSpec {
  const match = /^(?:(\[[^\]]+\]|[^:/]+):)?(\d+):(\d+)(?:\/(tcp|udp))?$/.exec(text);
  if (match === null)
    throw new UsageError(`--publish '${text}' is not [IP:]PUBLISHED:TARGET[/tcp|udp], as in 8000:80/tcp`);
  const [published, target] = [Number(match[2]), Number(match[3])];
  if (![published, target].every((port) => port >= 1 && port <= 65_535))
    throw new UsageError(`--publish '${text}': a port is 1 to 65535`);
  return {
    published,
    target,
    protocol: match[4] === "udp" ? "udp" : "tcp",
    mode: "ingress",
    ...(match[1] === undefined ? {} : { address: match[1].replace(/^\[|\]$/g, "") }),
  };
}

/** `K=V` pairs. @throws UsageError */
export function parseLabels(pairs: readonly string[]): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const pair of pairs) {
    const at = pair.indexOf("=");
    if (at < 1) throw new UsageError(`--label '${pair}' is not KEY=VALUE`);
    labels[pair.slice(0, at)] = pair.slice(at + 1);
  }
  return labels;
}

/** Collects a repeatable option. */
export function collect(value: string, previous: string[] | undefined): string[] {
  return [...(previous ?? []), value];
}

/** 3 when the agent cannot be reached, 2 for wrong usage, else 1. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return 2;
  return error instanceof NetError && error.code === "agent-unreachable" ? 3 : 1;
}
