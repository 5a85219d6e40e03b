#!/usr/bin/env node
import { CommanderError } from "commander";
import { errorText } from "../base/error.ts";
import { exitCodeOf } from "./context.ts";
import { buildProgram } from "./program.ts";

// A closed pipe (`netctl peers | head -1`) is the reader's choice, not an error.
process.stdout.on("error", () => process.exit(process.exitCode ?? 0));

try {
  const program = await buildProgram(process.argv.slice(2));
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
