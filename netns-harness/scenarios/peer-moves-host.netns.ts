import assert from "node:assert/strict";
import type { EndpointView } from "../../src/agent/control-protocol.ts";
import { attach, kernelAgrees, reaches } from "../endpoints.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { waitFor } from "../wait.ts";

scenarioOnEach(
  "an address that moves to another node is reached there, by nodes that reached it before",
  async (lab) => {
    const [node1, node2, node3] = await lab.swarm(3);
    assert.ok(node1 && node2 && node3);
    await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
    const watcher = await attach(lab, node3, "blue", "watcher");
    let [from, to] = [node1, node2];
    const first = await attach(lab, from, "blue", "mover-0", "--ip", "10.7.0.50");
    await reaches(watcher.place, first.ip);
    for (let round = 1; round <= 4; round++) {
      await from.ctl("detach", `mover-${round - 1}`);
      [from, to] = [to, from];
      const moved = await attach(lab, from, "blue", `mover-${round}`, "--ip", "10.7.0.50");
      assert.equal(moved.mac, first.mac);
      await reaches(watcher.place, moved.ip);
      await waitFor(
        `node3 to list it on ${from.name}`,
        () => node3.ctlJson<EndpointView[]>("endpoint", "ls", "--network", "blue"),
        {
          withinMs: 10_000,
          until: (list) => {
            const found = list.filter((one) => one.ip === "10.7.0.50");
            return found.length === 1 && found[0]?.vtep === from.address;
          },
        },
      );
      await kernelAgrees(node3);
    }
  },
);

scenario("an address is refused while another node has it, and free as soon as that lets go", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
  await attach(lab, node1, "blue", "first", "--ip", "10.7.0.50");
  const box = lab.sandbox(node2, "second");
  const refused = await node2.netctl(
    "attach",
    "--network",
    "blue",
    "--netns",
    box.netns,
    "--ip",
    "10.7.0.50",
  );
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /10\.7\.0\.50/);
  await node1.ctl("detach", "first");
  await waitFor(
    "node2 to be given it",
    () => node2.netctl("attach", "--network", "blue", "--netns", box.netns, "--ip", "10.7.0.50"),
    {
      withinMs: 10_000,
      until: (result) => result.code === 0,
    },
  );
});
