/** The traffic programs of `netbench.cc`. */

import { join } from "node:path";
import { mustSucceed, runCommand } from "../command.ts";
import type { Lab } from "../lab.ts";
import { DIST } from "../place.ts";

/** Compiles them into the lab's folder; returns the path. */
export async function compile(lab: Lab): Promise<string> {
  const program = join(lab.mark.folder, "netbench");
  const source = join(DIST, "../netns-harness/bench/netbench.cc");
  mustSucceed(await runCommand(["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-o", program, source]));
  return program;
}

/** A number the program printed as `name=number`. */
export function value(output: string, name: string): number {
  const match = new RegExp(`\\b${name}=([\\d.]+)`).exec(output);
  if (match?.[1] === undefined) throw new Error(`netbench did not print ${name}: ${output}`);
  return Number(match[1]);
}
