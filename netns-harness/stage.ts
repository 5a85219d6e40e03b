/** What the demos share: three hosts and a client that become a swarm, and endpoints started as a person would. */

import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Background } from "./command.ts";
import type { Host } from "./host.ts";
import { aliveNames, NODES, type Lab } from "./lab.ts";
import { hostObjects } from "./observe.ts";
import { DIST } from "./place.ts";
import { claim, claimSoon, step, type, typeAgent, typeInBackground, useTools } from "./tutorial.ts";

const SOON_MS = 10_000;

/** Everything the steps share. */
export type Stage = {
  readonly lab: Lab;
  readonly nodes: readonly [Host, Host, Host];
  readonly client: Host;
  /** Backends and other endpoints that run, by name. */
  readonly running: Map<string, Background>;
};

export function setUp(lab: Lab): Stage {
  console.log("Three hosts and a client in network namespaces, joined by a bridge:\n");
  const [node1, node2, node3] = NODES.map(([name, address]) => lab.host(name, address)) as [Host, Host, Host];
  const client = lab.client();
  for (const host of lab.hosts) console.log(`   ${host.name.padEnd(7)} ${host.address}`);
  console.log("\n`node1$` is what you type on node1. There, NETAGENT_SOCKET names its agent's socket.");
  const tools = join(lab.mark.folder, "bin");
  mkdirSync(tools);
  for (const [name, script] of [
    ["netctl", "src/cli/main.js"],
    ["netagent", "src/agent/main.js"],
  ] as const) {
    writeFileSync(join(tools, name), `#!/bin/sh\nexec ${process.execPath} ${join(DIST, script)} "$@"\n`);
    chmodSync(join(tools, name), 0o755);
  }
  useTools(tools);
  process.chdir(join(DIST, ".."));
  return { lab, nodes: [node1, node2, node3], client, running: new Map() };
}

export async function membersFindEachOther({ nodes }: Stage): Promise<void> {
  const [node1, node2, node3] = nodes;
  step("Three agents become one swarm");
  await typeAgent(node1);
  await typeAgent(node2, [node1]);
  await typeAgent(node3, [node1]);
  await claimSoon("every node sees three members alive", () => Promise.all(nodes.map(aliveNames)), {
    withinMs: SOON_MS,
    until: (views) => views.every((names) => names.join() === "node1,node2,node3"),
  });
  for (const node of nodes) await type(node, "netctl peers");
}

/** `netctl run` of a command that says `mark` when it serves. */
export async function runEndpoint(
  stage: Stage,
  node: Host,
  name: string,
  command: string,
  service?: string,
  mark = "listening on",
): Promise<void> {
  const flags = `--network dockercoins --name ${name}${service === undefined ? "" : ` --service ${service}`}`;
  const process = await typeInBackground(node, `netctl run ${flags} -- ${command}`, mark);
  stage.running.set(name, process);
}

/** Ends what was started by `runEndpoint` as its owner would. */
export async function endpointsEnd({ running }: Stage): Promise<void> {
  for (const [name, process] of running) {
    const code = await process.stop("SIGTERM", SOON_MS);
    claim(`${name} ends`, code !== 137, code);
  }
}

/** Ends the agents and looks at what they leave. */
export async function agentsEnd({ nodes }: Stage): Promise<void> {
  for (const node of nodes) {
    console.log(`   (SIGTERM to ${node.name}'s agent)`);
    const code = await node.stop();
    claim(`${node.name}'s agent ends orderly`, code === 0, code);
    const rest = await hostObjects(node);
    claim(`no link, rule, namespace or socket is left on ${node.name}`, rest.length === 0, rest);
  }
}
