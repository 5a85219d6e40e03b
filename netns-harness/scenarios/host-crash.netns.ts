import assert from "node:assert/strict";
import type { EndpointView } from "../../src/agent/control-protocol.ts";
import { attach, attachPlace, kernelAgrees, reaches, stateOf } from "../endpoints.ts";
import { allAlive } from "../lab.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const NOTICE_MS = 20_000;

scenarioOnEach(
  "when a machine loses power the others forget its endpoints, and it is whole after its boot",
  async (lab) => {
    const nodes = await lab.swarm(3);
    const [node1, node2, node3] = nodes;
    assert.ok(node1 && node2 && node3);
    await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    const c = await attach(lab, node3, "blue", "c", "--ip", "10.7.0.50");
    await reaches(a.place, c.ip);
    lab.powerOff(node3);
    await waitFor(
      "node1 to hold node3 for dead and to forget c",
      async () => ({
        state: await stateOf(node1, "node3"),
        names: (await node1.ctlJson<EndpointView[]>("endpoint", "ls", "--network", "blue"))
          .map((one) => one.name)
          .sort(),
      }),
      {
        withinMs: NOTICE_MS,
        until: ({ state, names }) => state === "dead" && names.join() === "a,b",
      },
    );
    await kernelAgrees(node1);
    await reaches(a.place, b.ip);

    lab.powerOn(node3);
    await node3.start({ join: [node1] });
    await allAlive(nodes, 30_000);
    const box = lab.sandbox(node3, "c");
    const again = await attachPlace(node3, "blue", "c", box, "--ip", "10.7.0.50");
    await reaches(a.place, again.ip);
    await reaches(box, b.ip);
    for (const node of nodes) await kernelAgrees(node);
  },
);

scenario("definitions outlive the machine that made them", async (lab) => {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  await node3.ctl("network", "create", "blue");
  await node3.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  await waitFor("node1 to know the service", () => node1.netctl("service", "inspect", "web"), {
    withinMs: 10_000,
    until: (result) => result.code === 0,
  });
  lab.powerOff(node3);
  await waitFor("node1 to notice", () => stateOf(node1, "node3"), {
    withinMs: NOTICE_MS,
    until: (state) => state === "dead",
  });
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  assert.equal((await node2.netctl("service", "inspect", "web")).code, 0);
  await node2.ctl("network", "create", "red");
});
