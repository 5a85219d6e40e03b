#!/usr/bin/env node
import { Command, CommanderError } from "commander";
import { packageVersion } from "../agent/version.ts";
import { errorText } from "../base/error.ts";
import { addClusterCommands } from "./commands/cluster.ts";
import { addEndpointCommands } from "./commands/endpoint.ts";
import { addLookCommands } from "./commands/look.ts";
import { addNetworkCommands } from "./commands/network.ts";
import { addServiceCommands } from "./commands/service.ts";
import { addTraceCommands } from "./commands/trace.ts";
import { completionScript, SHELLS } from "./completion.ts";
import { contextOf, exitCodeOf, globalOptions, UsageError } from "./context.ts";

function buildProgram(): Command {
  const program = new Command("netctl")
    .description("See and change the overlay network of this swarm.")
    .option(
      "--socket <path>",
      "the agent's socket (default: $NETAGENT_SOCKET or /run/netagent/netagent.sock)",
    )
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
  addClusterCommands(program);
  addNetworkCommands(program);
  addEndpointCommands(program);
  addServiceCommands(program);
  addLookCommands(program);
  addTraceCommands(program);
  program
    .command("completion")
    .description("print a completion script")
    .argument("<shell>", SHELLS.join(", "))
    .addHelpText("after", "\nExample:\n  netctl completion bash > /etc/bash_completion.d/netctl")
    .action((shell: string) => {
      process.stdout.write(completionScript(shell, program));
    });
  program
    .command("version")
    .description("print the version of netctl")
    .addHelpText("after", "\nExample:\n  netctl version")
    .action((_options, command: Command) => {
      const version = packageVersion();
      contextOf(command).print({ version }, () => `${version}\n`);
    });
  acceptGlobalOptionsEverywhere(program);
  return program;
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

// A closed pipe (`netctl peers | head -1`) is the reader's choice, not an error.
process.stdout.on("error", () => process.exit(process.exitCode ?? 0));

try {
  const program = buildProgram();
  program.exitOverride();
  await program.parseAsync(process.argv);
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else {
    process.stderr.write(`netctl: ${errorText(error)}\n`);
    process.exitCode = exitCodeOf(error);
  }
}
