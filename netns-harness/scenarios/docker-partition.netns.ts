/** Real dockerds and a netagent cut off from each other, for shorter and for longer than gossip remembers the dead. */

import assert from "node:assert/strict";
import type { PeerView } from "../../src/agent/control-protocol.ts";
import type { Host } from "../host.ts";
import { allAgree, complaintsOfUs, NETWORK, resolveOurs, serveOurs, shared } from "../docker-swarm.ts";
import { reaches } from "../endpoints.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

scenario("after a partition of ten seconds, and of sixty, everybody agrees again", async (lab) => {
  const all = await shared(lab);
  const { docker1, docker2, node, c1, c2, ours } = all;
  await allAgree(all, ["c1", "c2", "ours"]);

  // About as long as it takes to hold somebody for dead.
  lab.partition([docker1.host, docker2.host], [node]);
  await holds(
    "netagent forwards to the containers and knows their names as long as they may come back",
    async () => [...(await resolveOurs(ours, "c1")), ...(await fdbOf(node, all.swarm.network))],
    {
      forMs: 10_000,
      everyMs: 500,
      until: (seen) => seen[0] === c1.ip && [c1, c2].every(({ mac }) => seen.includes(mac)),
    },
  );
  lab.heal();
  await allAgree(all, ["c1", "c2", "ours"]);
  await reaches(ours.place, c1.ip);
  assert.ok(await c2.pings(ours.ip));

  // Sixty seconds between one dockerd and the others, with changes on both sides.
  const start = performance.now();
  lab.partition([docker1.host, node], [docker2.host]);
  await waitFor("netagent to hold docker2 for dead", () => memberAt(node, docker2.address), {
    withinMs: 30_000,
    until: (state) => state === "dead",
    everyMs: 500,
  });
  await c1.remove();
  await node.ctl("detach", ours.id);
  const c3 = await docker1.serve("c3", NETWORK);
  const late = await serveOurs(lab, node, "late");
  await reaches(late.place, c3.ip);
  await waitFor("sixty seconds to pass", () => performance.now() - start > 60_000, {
    withinMs: 70_000,
    everyMs: 500,
  });
  lab.heal();
  await allAgree(all, ["c2", "c3", "late"]);
  await reaches(late.place, c2.ip);
  assert.deepEqual(await c2.resolve("late"), [late.ip]);
  for (const gone of ["c1", "ours"]) {
    assert.deepEqual(await c2.resolve(gone), []);
    assert.deepEqual(await resolveOurs(late, gone), []);
  }

  // Cut off from one dockerd only: the other one vouches for both, and passes on what they have to say.
  lab.partition([node], [docker2.host]);
  await docker2.serve("c4", NETWORK);
  await serveOurs(lab, node, "relayed");
  await allAgree(all, ["c2", "c3", "c4", "late", "relayed"]);
  assert.deepEqual(complaintsOfUs(all), []);
});

/** State of the member at an address, in netagent's eyes. */
async function memberAt(node: Host, address: string): Promise<PeerView["state"] | undefined> {
  return (await node.ctlJson<PeerView[]>("peers")).find((peer) => peer.address === address)?.state;
}

/** MACs that netagent's kernel forwards to another host on the network. */
async function fdbOf(node: Host, network: string): Promise<string[]> {
  const namespace = `${node.runFolder}/netns/ov-${network}`;
  const fdb = await node.run("nsenter", `--net=${namespace}`, "bridge", "fdb", "show", "dev", "vxlan0");
  return [...fdb.matchAll(/^(\S+) .*dst/gm)].map((match) => match[1] ?? "");
}
