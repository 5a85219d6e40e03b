/** A netagent in the gossip of two real dockerds: one overlay network, one table, three kernels. */

import assert from "node:assert/strict";
import type { InfoView } from "../../src/agent/control-protocol.ts";
import { allAgree, complaints, NETWORK, resolveOurs, serveOurs, shared } from "../docker-swarm.ts";
import { reaches, stateOf } from "../endpoints.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const MEGABYTE = 1024 * 1024;
/** Several probes of every member by every other. */
const QUIET_MS = 10_000;

scenario("containers of a Docker swarm and an endpoint of netagent share a network", async (lab) => {
  const all = await shared(lab, { dataPath: true });
  const { docker1, docker2, node, c1, c2, ours } = all;
  await allAgree(all, ["c1", "c2", "ours"]);

  for (const container of [c1, c2]) {
    await reaches(ours.place, container.ip);
    assert.ok(await container.pings(ours.ip));
    assert.equal(await ours.place.httpGet(`http://${container.ip}/`), container.name);
    assert.equal(await container.httpGet(`http://${ours.ip}/`), `ours ${container.ip}`);
    assert.deepEqual(await container.resolve("ours"), [ours.ip]);
    assert.deepEqual(await container.resolve(ours.id.slice(0, 12)), [ours.ip]);
    assert.deepEqual(await resolveOurs(ours, container.name), [container.ip]);
    assert.deepEqual(await resolveOurs(ours, container.id.slice(0, 12)), [container.ip]);
  }
  await waitFor("doctor to find nothing wrong", () => node.ctl("doctor"), {
    withinMs: 20_000,
    everyMs: 1_000,
  });

  // From here on frames to both dockerds go round our VXLAN device, and theirs come round it.
  await waitFor("the fast path to both dockerds", () => node.ctlJson<InfoView>("info"), {
    withinMs: 20_000,
    until: ({ fastPath }) => fastPath.vteps === 2 && fastPath.reason === "",
  });

  // Full frames in both directions: the MTU is the same, and checksums and segments survive.
  const got = await ours.place.run("curl", "-sS", "--max-time", "20", `http://${c1.ip}/megabyte`);
  assert.equal(got.length, MEGABYTE);
  const download = `timeout 20 wget -q -O - http://${ours.ip}/bytes/${MEGABYTE} | wc -c`;
  assert.equal((await c2.exec("sh", "-c", download)).stdout.trim(), String(MEGABYTE));
  await ours.place.run(...("ping -n -c 1 -W 2 -M do -s 1422".split(" ") as [string]), c1.ip);

  // Something stops on either side: gone from the others' tables, kernels and names.
  const c3 = await docker2.serve("c3", NETWORK);
  const more = await serveOurs(lab, node, "more");
  await allAgree(all, ["c1", "c2", "c3", "more", "ours"]);
  assert.ok(await c3.pings(more.ip));
  await docker2.run("stop", "--time", "0", "c3");
  await node.ctl("detach", more.id);
  await allAgree(all, ["c1", "c2", "ours"]);
  assert.deepEqual(await resolveOurs(ours, "c3"), []);
  for (const container of [c1, c2]) assert.deepEqual(await container.resolve("more"), []);

  // Tasks of a service: names shared by several addresses, rows that are disabled before they are deleted.
  await docker1.serveTasks("web", NETWORK, 2);
  await allAgree(all, ["c1", "c2", "ours", "web.1", "web.2"]);
  const tasks = await resolveOurs(ours, "web");
  assert.equal(tasks.length, 2);
  assert.deepEqual(await resolveOurs(ours, "tasks.web"), tasks);
  assert.deepEqual(await c1.resolve("web"), tasks);
  for (const task of tasks) assert.ok(await ours.place.httpGet(`http://${task}/`));
  await docker1.run("service", "rm", "web");
  await allAgree(all, ["c1", "c2", "ours"]);
  assert.deepEqual(await resolveOurs(ours, "web"), []);

  // The last container of a dockerd and the last endpoint of netagent: now a node leaves the network.
  await docker2.run("rm", "--force", "c2", "c3");
  await allAgree({ ...all, without: docker2 }, ["c1", "ours"]);
  const back = await docker2.serve("c2", NETWORK);
  await allAgree(all, ["c1", "c2", "ours"]);
  await node.ctl("detach", ours.id);
  await waitFor("docker1 to know c1 and c2 only", () => docker1.table(all.swarm.network, "endpoint_table"), {
    withinMs: 30_000,
    until: (rows) => rows.length === 2,
  });
  const again = await serveOurs(lab, node, "again");
  await allAgree(all, ["again", "c1", "c2"]);
  await reaches(again.place, back.ip);
  assert.ok(await c1.pings(again.ip));

  await holds(
    "everybody alive",
    async () => {
      const members = await docker1.clusterPeers();
      const states = await Promise.all(members.map((name) => stateOf(node, name)));
      return { members, states };
    },
    {
      forMs: QUIET_MS,
      everyMs: 1_000,
      until: ({ members, states }) =>
        members.length === 3 && states.filter((state) => state === "alive").length === 2,
    },
  );
  assert.deepEqual(complaints(all), []);
  assert.doesNotMatch(node.log(), /is gone|tables:/);
});
