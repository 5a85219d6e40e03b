/** A test with a lab of its own; a failure shows what the agents logged and saves their logs. */

import { cpSync, existsSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { errorText } from "../src/base/error.ts";
import { lastLines } from "./host.ts";
import { Lab, labDataplanes } from "./lab.ts";

const LOG_LINES = 25;

/**
 * Registers a test. The lab is gone when it ends, whatever happens; KEEP_LAB=1 keeps it, KEEP_LAB=failed keeps it
 * when the test fails.
 *
 * Real daemons with real timers share the machine with whatever else runs on it, so a failure is shown and tried
 * again in a fresh lab, twice at most. SCENARIO_ATTEMPTS=1 is for hunting such a failure down.
 */
export function scenario(name: string, body: (lab: Lab) => Promise<void>): void {
  if (process.env["SCENARIOS"] !== "on-each") scenarioOnEach(name, body);
}

/** A scenario that run-tests repeats with the userspace engine on all nodes: it is about one node at a time. */
export function scenarioOnBoth(name: string, body: (lab: Lab) => Promise<void>): void {
  const mixed = new Set(labDataplanes()).size > 1;
  if (process.env["SCENARIOS"] !== "on-each" || !mixed) scenarioOnEach(name, body);
}

/** A scenario that run-tests repeats with other data planes: it is about what a data plane does. */
export function scenarioOnEach(name: string, body: (lab: Lab) => Promise<void>): void {
  const dataplanes = labDataplanes().join(", ");
  void test(dataplanes === "" ? name : `${name} (${dataplanes})`, async () => {
    const attempts = Number(process.env["SCENARIO_ATTEMPTS"] ?? 3);
    for (let attempt = 1; ; attempt++) {
      try {
        return await tryOnce(name, body);
      } catch (error) {
        if (attempt >= attempts) throw error;
        console.error(`--- ${name}: attempt ${attempt} failed, trying again: ${errorText(error)}`);
      }
    }
  });
}

async function tryOnce(name: string, body: (lab: Lab) => Promise<void>): Promise<void> {
  await using lab = Lab.create();
  try {
    await body(lab);
  } catch (error) {
    showEvidence(name, lab);
    if (process.env["KEEP_LAB"] === "failed") console.error(lab.keep());
    throw error;
  }
}

function showEvidence(name: string, lab: Lab): void {
  const folder = join(tmpdir(), "netagent-failed", name.replace(/[^a-z0-9]+/gi, "-").slice(0, 60));
  mkdirSync(folder, { recursive: true });
  for (const host of lab.hosts) {
    const dockerLog = join(host.folder, "dockerd.log");
    if (existsSync(dockerLog)) cpSync(dockerLog, join(folder, `${host.name}-dockerd.log`));
    if (!existsSync(host.logFile)) continue;
    const copy = join(folder, `${host.name}.log`);
    cpSync(host.logFile, copy);
    console.error(`--- ${host.name}, end of ${copy}\n${lastLines(host.log(), LOG_LINES)}`);
  }
}
