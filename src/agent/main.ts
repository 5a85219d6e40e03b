#!/usr/bin/env node
import { CommanderError } from "commander";
import { errorText, NetError } from "../base/error.ts";
import { cleanUp } from "./cleanup.ts";
import { loadConfig } from "./config.ts";
import { runDaemon } from "./daemon.ts";
import { packageVersion } from "./version.ts";

/** Wrong usage is 2, anything that keeps the agent from running 1. */
async function main(): Promise<number> {
  const argv = process.argv.slice(2);
  // Keys given on the command line must not stay readable in the process list.
  process.title = "netagent";
  try {
    if (argv[0] === "cleanup")
      await cleanUp(loadConfig(argv.slice(1), packageVersion()), (line) => console.log(`removed ${line}`));
    else await runDaemon(loadConfig(argv, packageVersion()), packageVersion(), argv);
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (!(error instanceof NetError)) throw error;
    process.stderr.write(`netagent: ${errorText(error)}\n`);
    return error.code === "config" || error.code === "bad-key" ? 2 : 1;
  }
}

// What a failed start had opened already must not keep the process: the kernel closes it.
process.exit(await main());
