/** Membership among netagents: what dies, comes back, moves and is cut off is known to the others, and soon. */

import assert from "node:assert/strict";
import type { PeerView } from "../../src/agent/control-protocol.ts";
import { stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

/** Longer than memberlist remembers its dead: its own clusters do not heal after this. */
const PARTITION_MS = 25_000;
const HEAL_MS = 10_000;

scenario("a killed agent is dead for the others, and alive again after its restart", async (lab) => {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  await node3.crash();
  await all([node1, node2], "node3", "dead");
  await node3.restart();
  await allAlive([node1, node2, node3]);
  await node2.stop();
  await all([node1, node3], "node2", "left");
});

scenario("an agent that comes back at another address is believed at once", async (lab) => {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  lab.powerOff(node3);
  const moved = lab.host("node3b", "192.168.1.150");
  // The same node as far as it knows: name and files are the old ones.
  const flags = ["--name", "node3", "--data-dir", node3.dataFolder];
  await moved.start({ flags, join: [node1] });
  for (const host of [node1, node2]) {
    await waitFor(`${host.name} to see node3 at its new address`, () => peers(host, "node3"), {
      withinMs: 10_000,
      until: (seen) => seen.some((peer) => peer.state === "alive" && peer.address === moved.address),
    });
    await waitFor(`${host.name} to have buried the old node3`, () => peers(host, "node3"), {
      withinMs: 30_000,
      until: (seen) => seen.filter((peer) => peer.state === "alive").length === 1,
    });
  }
});

scenario("a partition of 25 s heals by itself within 10 s", async (lab) => {
  const hosts = await lab.swarm(3);
  const [node1, node2, node3] = hosts;
  assert.ok(node1 && node2 && node3);
  lab.partition([node1, node2], [node3]);
  await Promise.all([all([node1, node2], "node3", "dead"), all([node3], "node1", "dead")]);
  await holds("both sides apart", () => stateOf(node3, "node2"), {
    forMs: PARTITION_MS,
    until: (state) => state !== "alive",
    everyMs: 1_000,
  });
  lab.heal();
  await allAlive(hosts, HEAL_MS);
});

async function all(hosts: readonly Host[], name: string, state: PeerView["state"]): Promise<void> {
  await Promise.all(
    hosts.map((host) =>
      waitFor(`${host.name} to see ${name} ${state}`, () => stateOf(host, name), {
        withinMs: 30_000,
        until: (seen) => seen === state,
        everyMs: 100,
      }),
    ),
  );
}

async function peers(host: Host, name: string): Promise<PeerView[]> {
  return (await host.ctlJson<PeerView[]>("peers")).filter((peer) => peer.name === name);
}
