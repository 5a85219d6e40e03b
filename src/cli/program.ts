import { Command, CommanderError } from "commander";
import { packageVersion } from "../agent/version.ts";
import { errorText } from "../base/error.ts";
import {
  contextOf,
  exitCodeOf,
  globalOptions,
  PROCESS_OUTPUT,
  UsageError,
  writeTo,
  type Output,
} from "./context.ts";

/** Commands that come together, and what adds them to a program. Order is that of the help. */
interface Group {
  readonly verbs: readonly string[];
  readonly load: () => Promise<(program: Command) => void>;
}

const GROUPS: readonly Group[] = [
  {
    verbs: ["info", "peers", "join", "leave", "keys", "node"],
    load: async () => (await import("./commands/cluster.ts")).addClusterCommands,
  },
  { verbs: ["network"], load: async () => (await import("./commands/network.ts")).addNetworkCommands },
  {
    verbs: ["attach", "detach", "endpoint", "run"],
    load: async () => (await import("./commands/endpoint.ts")).addEndpointCommands,
  },
  { verbs: ["service"], load: async () => (await import("./commands/service.ts")).addServiceCommands },
  { verbs: ["tables"], load: async () => (await import("./commands/tables.ts")).addTablesCommand },
  {
    verbs: ["plan", "events", "doctor", "repair", "resolve"],
    load: async () => (await import("./commands/look.ts")).addLookCommands,
  },
  { verbs: ["trace", "capture"], load: async () => (await import("./commands/trace.ts")).addTraceCommands },
  { verbs: ["completion"], load: async () => (await import("./completion.ts")).addCompletionCommand },
  { verbs: ["version"], load: () => Promise.resolve(addVersionCommand) },
];

/** Global options that take the next word. */
const WITH_VALUE = ["--socket", "-o", "--output", "--timeout"];

/** One run of netctl on the words after its name. Its exit code, unless a command set that of the process. */
export async function runNetctl(words: readonly string[], output: Output = PROCESS_OUTPUT): Promise<number> {
  try {
    const program = await buildProgram(words, output);
    program.exitOverride();
    await program.parseAsync(words, { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    output.err(`netctl: ${errorText(error)}\n`);
    return exitCodeOf(error);
  }
}

/**
 * netctl's commands. Of those `argv` does not need only the ones that could be meant are loaded: a short command is
 * over before the rest would have been read.
 */
export async function buildProgram(
  argv: readonly string[],
  output: Output = PROCESS_OUTPUT,
): Promise<Command> {
  const program = new Command("netctl");
  // Before any command is made, which all take it over.
  writeTo(output, program);
  program
    .description("See and change the overlay network of this swarm.")
    .option("--socket <path>", "default: $NETAGENT_SOCKET or /run/netagent/netagent.sock")
    .option("-o, --output <format>", "table or json", "table")
    .option("--timeout <duration>", "how long a change may take", "10s")
    .enablePositionalOptions()
    .showHelpAfterError("(netctl --help shows all commands)")
    .addHelpText("after", "\nExample:\n  netctl peers")
    .hook("preAction", (_program, command) => {
      const { output } = globalOptions(command);
      if (output !== "table" && output !== "json")
        throw new UsageError(`--output '${output}' is not table or json`);
    });
  const verb = verbOf(argv);
  const meant = GROUPS.filter(({ verbs }) => verb !== undefined && verbs.includes(verb));
  // Help, completion and "did you mean" are about all commands.
  const wanted = meant.length === 0 || verb === "completion" ? GROUPS : meant;
  for (const { load } of wanted) (await load())(program);
  acceptGlobalOptionsEverywhere(program);
  return program;
}

/** The first word that is neither an option nor an option's value. */
export function verbOf(argv: readonly string[]): string | undefined {
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] ?? "";
    if (WITH_VALUE.includes(word)) at++;
    else if (!word.startsWith("-")) return word;
  }
  return undefined;
}

/** `netctl peers -o json` and `netctl -o json peers` mean the same: people type both. */
function acceptGlobalOptionsEverywhere(command: Command): void {
  for (const child of command.commands) {
    if (child.commands.length === 0) {
      child
        .option("--socket <path>", "the agent's socket")
        .option("-o, --output <format>", "table or json")
        .option("--timeout <duration>", "how long it may take (default 10s)");
    }
    child.exitOverride();
    acceptGlobalOptionsEverywhere(child);
  }
}

function addVersionCommand(program: Command): void {
  program
    .command("version")
    .description("print the version of netctl")
    .addHelpText("after", "\nExample:\n  netctl version")
    .action((_options, command: Command) => {
      const version = packageVersion();
      contextOf(command).print({ version }, () => `${version}\n`);
    });
}
