/** A small swarm with everything that other hands can break, and those hands. */

import assert from "node:assert/strict";
import type { NetworkView } from "../src/agent/control-protocol.ts";
import { attach, httpBackend, kernelAgrees, reaches, type Attached } from "./endpoints.ts";
import type { Host } from "./host.ts";
import type { Lab } from "./lab.ts";
import { waitFor } from "./wait.ts";

const PATIENCE_MS = 20_000;

/** What another hand does. */
export interface Hand {
  /** In the network's namespace, in the endpoint's sandbox, in the backend's, or on the host. */
  readonly where: "overlay" | "sandbox" | "backend" | "host";
  /** A shell line; MAC, IP and VTEP stand for those of the peer's endpoint, PIN for the namespace's file. */
  readonly hand: string;
}

export interface Swarm {
  readonly node1: Host;
  readonly node2: Host;
  /** On node1. */
  readonly a: Attached;
  /** On node2. */
  readonly b: Attached;
  /** On node1, behind a published port. */
  readonly backend: Attached;
  readonly blue: NetworkView;
}

export async function backendAndPeer(lab: Lab): Promise<Swarm> {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  const blue = await node1.ctlJson<NetworkView>("network", "create", "blue", "--subnet", "10.7.0.0/24");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  const backend = await httpBackend(lab, node1, "blue", "web", "web.1");
  await reaches(a.place, b.ip);
  for (const node of [node1, node2]) {
    const answered = (): Promise<string | undefined> => node.httpGet("http://127.0.0.1:8000/");
    await waitFor(`${node.name} to answer on the published port`, answered, { withinMs: PATIENCE_MS });
    await kernelAgrees(node);
  }
  return { node1, node2, a, b, backend, blue };
}

/** Runs the shell line where it belongs. */
export async function handAt(swarm: Swarm, { where, hand }: Hand): Promise<void> {
  const { node1, a, backend, blue } = swarm;
  const shell = ["sh", "-c", filled(swarm, hand)] as const;
  switch (where) {
    case "overlay":
      return void (await node1.run("nsenter", `--net=${pinOf(node1, blue)}`, ...shell));
    case "sandbox":
      return void (await a.place.run(...shell));
    case "backend":
      return void (await backend.place.run(...shell));
    case "host":
      return void (await node1.run(...shell));
  }
}

/** The text with what its capitals stand for. */
export function filled({ node1, node2, b, blue }: Swarm, text: string): string {
  return text
    .replace(/\bPIN\b/g, pinOf(node1, blue))
    .replace(/\bMAC\b/g, b.mac)
    .replace(/\bVTEP\b/g, node2.address)
    .replace(/\bIP\b/g, b.ip);
}

/** Where the namespace of a network is pinned. */
export function pinOf(node: Host, network: NetworkView): string {
  return `${node.runFolder}/netns/ov-${network.id}`;
}
