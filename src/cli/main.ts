#!/usr/bin/env node
import { runNetctl } from "./program.ts";

// A closed pipe (`netctl peers | head -1`) is the reader's choice, not an error.
process.stdout.on("error", () => process.exit(process.exitCode ?? 0));

const code = await runNetctl(process.argv.slice(2));
if (code !== 0) process.exitCode = code;
