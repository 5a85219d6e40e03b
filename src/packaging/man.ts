/** Manual pages out of the same commander programs that parse the command line, so that they cannot disagree. */
import type { Command, Option } from "commander";

export interface ManualParts {
  /** 1, 5 or 8. */
  readonly section: number;
  readonly version: string;
  /** Paragraphs of the description; the first sentence of the page is the program's own. */
  readonly description: readonly string[];
  readonly exitStatus: readonly (readonly [code: string, meaning: string])[];
  readonly environment: readonly (readonly [name: string, meaning: string])[];
  readonly files: readonly (readonly [path: string, meaning: string])[];
  readonly seeAlso: readonly string[];
}

/** The page in man(7) macros. */
export function renderManual(program: Command, parts: ManualParts): string {
  const name = program.name();
  const lines = [
    `.TH ${name.toUpperCase()} ${parts.section} "" "${name} ${parts.version}"`,
    ".SH NAME",
    `${text(name)} \\- ${text(lowerFirst(program.description()).replace(/\.$/, ""))}`,
    ".SH SYNOPSIS",
    `.B ${text(name)}`,
    text(program.usage()),
    ".SH DESCRIPTION",
    ...parts.description.flatMap((paragraph) => [text(paragraph), ".PP"]),
    ".SH OPTIONS",
    ...program.options.flatMap(optionLines),
  ];
  const leaves = leavesOf(program);
  if (leaves.length > 0) lines.push(".SH COMMANDS");
  for (const [path, command] of leaves) {
    lines.push(`.SS "${text(`${path} ${command.usage()}`.trim())}"`, text(sentence(command.description())));
    const own = command.options.filter((option) => !GLOBAL.has(option.long ?? ""));
    lines.push(...own.flatMap(optionLines));
    const example = exampleOf(command);
    if (example.length > 0) lines.push(".PP", "Example:", ...verbatim(example));
  }
  const example = exampleOf(program);
  if (example.length > 0) lines.push(".SH EXAMPLES", ...verbatim(example));
  lines.push(...terms("EXIT STATUS", parts.exitStatus));
  lines.push(...terms("ENVIRONMENT", parts.environment));
  lines.push(...terms("FILES", parts.files));
  lines.push(".SH SEE ALSO", text(parts.seeAlso.join(", ")));
  return `${lines.join("\n")}\n`;
}

/** Options every command takes; the page names them once. */
const GLOBAL: ReadonlySet<string> = new Set(["--socket", "--output", "--timeout"]);

function leavesOf(program: Command): [path: string, command: Command][] {
  const leaves: [string, Command][] = [];
  const visit = (command: Command, path: string): void => {
    if (command.commands.length === 0 && path !== "") leaves.push([path, command]);
    for (const child of command.commands) visit(child, `${path} ${child.name()}`.trim());
  };
  visit(program, "");
  return leaves;
}

/** The lines below "Example:" in the command's help. */
function exampleOf(command: Command): string[] {
  let help = "";
  command.configureOutput({ writeOut: (part) => (help += part) });
  command.outputHelp();
  const found = /\nExamples?:\n([\s\S]*)$/.exec(help)?.[1] ?? "";
  return found.split("\n").filter((line) => line.trim() !== "");
}

function optionLines(option: Option): string[] {
  const choices = option.argChoices === undefined ? "" : `: ${option.argChoices.join(", ")}`;
  return [".TP", `.B "${text(option.flags)}"`, text(sentence(option.description + choices))];
}

function terms(heading: string, entries: readonly (readonly [string, string])[]): string[] {
  if (entries.length === 0) return [];
  return [
    `.SH ${heading}`,
    ...entries.flatMap(([term, meaning]) => [".TP", `.B "${text(term)}"`, text(meaning)]),
  ];
}

function verbatim(lines: readonly string[]): string[] {
  return [".PP", ".nf", ".RS", ...lines.map((line) => text(line.replace(/^ {2}/, ""))), ".RE", ".fi"];
}

/** Nothing in it is taken for a macro or an escape. */
function text(plain: string): string {
  const escaped = plain.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll('"', "\\(dq");
  return /^[.']/.test(escaped) ? `\\&${escaped}` : escaped;
}

function sentence(words: string): string {
  const upper = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?]$/.test(upper) || upper === "" ? upper : `${upper}.`;
}

function lowerFirst(words: string): string {
  return words.charAt(0).toLowerCase() + words.slice(1);
}
