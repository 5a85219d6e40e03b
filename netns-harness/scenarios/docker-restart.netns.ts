/** dockerds and a netagent that are killed and come back under new names. */

import assert from "node:assert/strict";
import { allAgree, complaintsOfUs, NETWORK, resolveOurs, shared } from "../docker-swarm.ts";
import { reaches } from "../endpoints.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";
import { ENDPOINT_TABLE } from "../../src/wire/networkdb/records.ts";

scenario("killed and restarted, dockerds and netagent agree again and nothing stale stays", async (lab) => {
  const all = await shared(lab);
  const { docker1, docker2, node, ours } = all;
  await allAgree(all, ["c1", "c2", "ours"]);
  for (const [docker, name] of [
    [docker2, "c2"],
    [docker1, "c1"],
  ] as const) {
    await docker.crash();
    await docker.restart();
    await docker.ensureRunning(name);
    await allAgree(all, ["c1", "c2", "ours"]);
    const container = await docker.container(name, NETWORK);
    await reaches(ours.place, container.ip);
    assert.ok(await container.pings(ours.ip));
    assert.deepEqual(await resolveOurs(ours, name), [container.ip]);
    assert.deepEqual(await container.resolve("ours"), [ours.ip]);
  }

  // Both at once, in order: nobody there knows of netagent any more, and it has seen them leave.
  await Promise.all([docker1.stop(), docker2.stop()]);
  await docker1.restart();
  await docker2.restart();
  await docker1.ensureRunning("c1");
  await docker2.ensureRunning("c2");
  await allAgree(all, ["c1", "c2", "ours"]);
  const c1 = await docker1.container("c1", NETWORK);
  const c2 = await docker2.container("c2", NETWORK);

  // Killed and back at once, under a new name at the old address.
  await node.crash();
  await reaches(ours.place, c1.ip);
  await node.restart();
  await allAgree(all, ["c1", "c2", "ours"]);
  await reaches(ours.place, c2.ip);

  // Killed and away until the dockerds have forgotten its rows.
  await node.crash();
  for (const docker of [docker1, docker2]) {
    await waitFor(
      `${docker.name} to forget netagent's rows`,
      () => docker.table(all.swarm.network, ENDPOINT_TABLE),
      {
        withinMs: 40_000,
        until: (rows) => rows.length === 2,
      },
    );
  }
  await node.restart();
  await allAgree(all, ["c1", "c2", "ours"]);

  // An orderly stop takes the rows back; the next life writes the same keys under another name.
  await node.stop();
  await waitFor(
    "docker1 to have no row of netagent's",
    () => docker1.table(all.swarm.network, ENDPOINT_TABLE),
    {
      withinMs: 10_000,
      until: (rows) => rows.length === 2,
    },
  );
  await node.restart();
  await allAgree(all, ["c1", "c2", "ours"]);
  for (const container of [c1, c2]) {
    await reaches(ours.place, container.ip);
    assert.ok(await container.pings(ours.ip));
    assert.deepEqual(await container.resolve("ours"), [ours.ip]);
  }
  assert.deepEqual(complaintsOfUs(all), []);
});
