/** The voice of the demo: numbered steps, commands as a person types them with what came back, claims checked. */

import { mustSucceed, type Background, type CommandResult } from "./command.ts";
import type { Host } from "./host.ts";
import { DIST, started, type Place } from "./place.ts";
import { waitFor, type WaitOptions } from "./wait.ts";

const colour = process.stdout.isTTY === true && !process.env["NO_COLOR"];
const bold = (text: string): string => (colour ? `\x1b[1m${text}\x1b[0m` : text);
const green = (text: string): string => (colour ? `\x1b[32m${text}\x1b[0m` : text);
const dim = (text: string): string => (colour ? `\x1b[2m${text}\x1b[0m` : text);

/** More lines of output than this are shown by their beginning and end. */
const SHOWN_LINES = 14;

let stepNumber = 0;

export function step(title: string): void {
  stepNumber += 1;
  console.log(`\n${bold(`${stepNumber}. ${title}`)}`);
}

/** A sentence between commands. */
export function say(text: string): void {
  console.log(`\n   ${text}`);
}

/**
 * Runs a command line in a shell on a place, as a person would: prints prompt, command and what came back. `netctl`
 * and relative paths work because the shell starts in the project with netctl in its PATH.
 * @throws CommandError when it fails
 */
export async function type(place: Place, line: string): Promise<string> {
  return mustSucceed(await attempt(place, line)).stdout;
}

/** The same for a command that is meant to be refused. */
export async function attempt(place: Place, line: string): Promise<CommandResult> {
  prompt(place, line);
  const result = await place.exec(["sh", "-c", line], { env: toolEnvironment() });
  show(result.stdout + result.stderr);
  return { ...result, command: `${place.name}$ ${line}` };
}

/** Starts a command line that goes on; resolves when it has written `mark`. */
export async function typeInBackground(place: Place, line: string, mark: string): Promise<Background> {
  prompt(place, `${line} &`);
  const process = place.spawn(["sh", "-c", `exec ${line}`], toolEnvironment());
  await started(process, mark);
  // Some programs have much more to say before.
  show(
    process
      .lines()
      .filter((line) => line.includes(mark))
      .join("\n"),
  );
  return process;
}

/** Starts the agent of a host and prints how. */
export async function typeAgent(host: Host, join: readonly Host[] = []): Promise<void> {
  prompt(host, `netagent ${host.agentFlags({ join }).join(" ")} &`);
  await host.start({ join });
}

/** Prints a claim that holds at once, or throws with the reason. */
export function claim(text: string, holds: boolean, seen: unknown = undefined): void {
  if (!holds) throw new ClaimError(text, seen);
  console.log(`   ${green("✓")} ${text}`);
}

/** A claim that becomes true in time; says after how long it did. */
export async function claimSoon<T>(
  text: string,
  observe: () => T | Promise<T>,
  options: WaitOptions<T>,
): Promise<T> {
  const start = performance.now();
  const seen = await waitFor(text, observe, options);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`   ${green("✓")} ${text} ${dim(`(${seconds} s)`)}`);
  return seen;
}

/** A claim of the tutorial that does not hold. */
export class ClaimError extends Error {
  override readonly name = "ClaimError";
  constructor(text: string, seen: unknown) {
    super(`does not hold: ${text}${seen === undefined ? "" : `\n   seen: ${JSON.stringify(seen, null, 1)}`}`);
  }
}

function prompt(place: Place, line: string): void {
  console.log(`   ${dim(`${place.name}$`)} ${line}`);
}

function show(output: string): void {
  const lines = output
    .trimEnd()
    .split("\n")
    .filter((line, index, all) => all.length > 1 || line !== "");
  const shown =
    lines.length <= SHOWN_LINES
      ? lines
      : [
          ...lines.slice(0, SHOWN_LINES - 4),
          `… ${lines.length - SHOWN_LINES + 1} lines …`,
          ...lines.slice(-3),
        ];
  for (const line of shown) console.log(`     ${line}`);
}

let tools: string | undefined;
/** Puts `netctl` and `netagent` of this clone into the PATH. */
export function useTools(folder: string): void {
  tools = folder;
}

function toolEnvironment(): NodeJS.ProcessEnv {
  return { PATH: `${tools ?? DIST}:${process.env["PATH"] ?? ""}` };
}
