import assert from "node:assert/strict";
import { describe } from "node:test";
import type { EndpointView, NetworkView } from "../../src/agent/control-protocol.ts";
import { attach, kernelAgrees, reaches, stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const NOTICE_MS = 20_000;
/** From the end of the cut until all see all again, however long it was. */
const HEAL_MS = 10_000;
const AGREE_MS = 30_000;

// They mostly wait.
describe("partitions", { concurrency: 3 }, () => {
  scenario("both sides of a partition go on, and after it everybody knows everything", async (lab) => {
    const nodes = await lab.swarm(3);
    const [node1, node2, node3] = nodes;
    assert.ok(node1 && node2 && node3);
    await node1.ctl("network", "create", "blue");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    const c = await attach(lab, node3, "blue", "c");
    await reaches(a.place, c.ip);

    lab.partition([node1, node2], [node3]);
    await eachHoldsForDead(node1, "node3");
    await eachHoldsForDead(node3, "node1");
    await reaches(a.place, b.ip);
    await node1.ctl("network", "create", "left");
    await node3.ctl("network", "create", "right");

    lab.heal();
    await allAlive(nodes, HEAL_MS);
    const lists = await Promise.all(
      nodes.map((node) =>
        waitFor(`${node.name} to know all networks`, () => node.ctlJson<NetworkView[]>("network", "ls"), {
          withinMs: AGREE_MS,
          until: (list) => ["blue", "left", "right"].every((name) => list.some((one) => one.name === name)),
        }),
      ),
    );
    const [first] = lists;
    const facts = (list: readonly NetworkView[]): string[] =>
      list.map(({ id, name, vni, subnet }) => `${name} ${id} ${vni} ${subnet}`).sort();
    for (const list of lists) assert.deepEqual(facts(list), facts(first ?? []));
    assert.equal(
      new Set(first?.map((one) => one.vni)).size,
      first?.length,
      "every network has a VNI of its own",
    );
    await reaches(a.place, c.ip);
    await reaches(c.place, b.ip);
    for (const node of nodes) await kernelAgrees(node);
  });

  scenario("no address is given twice while the swarm is split", async (lab) => {
    const nodes = await lab.swarm(3);
    const [node1, node2, node3] = nodes;
    assert.ok(node1 && node2 && node3);
    await node1.ctl("network", "create", "blue");
    for (const node of nodes) await attach(lab, node, "blue", `first-${node.name}`);
    lab.partition([node1, node2], [node3]);
    await eachHoldsForDead(node1, "node3");
    await eachHoldsForDead(node3, "node1");
    for (let index = 0; index < 5; index++) {
      for (const node of nodes) await attach(lab, node, "blue", `${node.name}-${index}`);
    }
    lab.heal();
    await allAlive(nodes, HEAL_MS);
    for (const node of nodes) {
      const list = await waitFor(
        `${node.name} to list 18 endpoints`,
        () => node.ctlJson<EndpointView[]>("endpoint", "ls", "--network", "blue"),
        {
          withinMs: AGREE_MS,
          until: (all) => all.length === 18,
        },
      );
      assert.equal(new Set(list.map((one) => one.ip)).size, 18);
    }
  });

  scenario(
    "a name created on both sides ends as one network everywhere, and the other is told",
    async (lab) => {
      const nodes = await lab.swarm(2);
      const [node1, node2] = nodes;
      assert.ok(node1 && node2);
      lab.partition([node1], [node2]);
      await eachHoldsForDead(node1, "node2");
      await eachHoldsForDead(node2, "node1");
      await node1.ctl("network", "create", "blue");
      await node2.ctl("network", "create", "blue");
      lab.heal();
      await allAlive(nodes, HEAL_MS);
      const owners = async (): Promise<string[]> =>
        Promise.all(
          nodes.map(async (node) => {
            const list = await node.ctlJson<NetworkView[]>("network", "ls");
            return list
              .filter((one) => one.name === "blue" && one.conflict === undefined)
              .map((one) => one.id)
              .join();
          }),
        );
      await waitFor("both nodes to agree which network is blue", owners, {
        withinMs: AGREE_MS,
        until: ([left, right]) => left !== "" && left === right,
      });
      const all = (await node1.ctlJson<NetworkView[]>("network", "ls")).filter(
        (one) => one.conflict !== undefined,
      );
      assert.equal(all.length, 1, "the losing network is reported");
    },
  );

  scenario(
    "a swarm that is split for longer than members are remembered by gossip finds together",
    async (lab) => {
      const nodes = await lab.swarm(2);
      const [node1, node2] = nodes;
      assert.ok(node1 && node2);
      lab.partition([node1], [node2]);
      await eachHoldsForDead(node1, "node2");
      // Past gossip-to-the-dead (30 s): from here on only our own search for lost members can join the halves.
      const start = performance.now();
      await waitFor("40 s to pass", () => performance.now() - start > 40_000, {
        withinMs: 60_000,
        everyMs: 1_000,
      });
      lab.heal();
      await allAlive(nodes, HEAL_MS);
    },
  );
});

async function eachHoldsForDead(host: Host, name: string): Promise<void> {
  await waitFor(`${host.name} to hold ${name} for dead`, () => stateOf(host, name), {
    withinMs: NOTICE_MS,
    until: (state) => state === "dead",
    everyMs: 200,
  });
}
