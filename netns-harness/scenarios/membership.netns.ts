/** Membership among netagents: who dies, comes back, moves or is cut off is known to the others, and soon. */
import assert from "node:assert/strict";
import { describe } from "node:test";
import type { InfoView, PeerView } from "../../src/agent/control-protocol.ts";
import { stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { aliveNames, allAlive } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const NOTICE_MS = 20_000;

// They mostly wait.
describe("membership", { concurrency: 3 }, () => {
  scenario("three agents find each other through one seed", async (lab) => {
    const nodes = await lab.swarm(3);
    for (const node of nodes) {
      const info = await node.ctlJson<InfoView>("info");
      assert.equal(info.name, node.name);
      assert.equal(info.members, 3);
      await waitFor(`${node.name} to have measured the way to both others`, () => roundTrips(node), {
        withinMs: 10_000,
        until: (measured) => measured.length === 2,
      });
      assert.match(await node.ctl("peers"), /\d\.\dms/);
    }
  });

  scenario("netctl join joins an agent that started alone", async (lab) => {
    const [node1, node2] = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
    await node1.start();
    await node2.start();
    assert.deepEqual(await aliveNames(node2), ["node2"]);
    await node2.ctl("join", node1.address);
    await allAlive([node1, node2]);
  });

  scenario("an agent whose seed is silent runs alone and joins when the seed appears", async (lab) => {
    const [node1, node2] = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
    await node2.start({ join: [node1] });
    assert.deepEqual(await aliveNames(node2), ["node2"]);
    await node1.start();
    await allAlive([node1, node2], 30_000);
  });

  scenario("a node that is stopped has left, one that is killed is dead, and both come back", async (lab) => {
    const [node1, node2, node3] = await lab.swarm(3);
    assert.ok(node1 && node2 && node3);
    assert.equal(await node2.stop(), 0);
    await node3.crash();
    await waitFor(
      "node1 to tell one from the other",
      async () => [await stateOf(node1, "node2"), await stateOf(node1, "node3")],
      {
        withinMs: NOTICE_MS,
        until: ([second, third]) => second === "left" && third === "dead",
      },
    );
    await node2.restart();
    await node3.restart();
    await allAlive([node1, node2, node3]);
  });

  scenario(
    "a silent node is suspected, declared dead, and welcomed back when it is heard again",
    async (lab) => {
      const [node1, node2, node3] = await lab.swarm(3);
      assert.ok(node1 && node2 && node3);
      lab.cut(node3);
      await waitFor(
        "node1 and node2 to hold node3 for dead",
        () => Promise.all([node1, node2].map((node) => stateOf(node, "node3"))),
        {
          withinMs: NOTICE_MS,
          until: (states) => states.every((state) => state === "dead"),
        },
      );
      lab.heal();
      await allAlive([node1, node2, node3], 30_000);
    },
  );

  scenario("a stalled node does not make healthy ones dead", async (lab) => {
    const [node1, node2, node3] = await lab.swarm(3);
    assert.ok(node1 && node2 && node3);
    node3.agent.signal("SIGSTOP");
    await waitFor("node3 to be dead", () => stateOf(node1, "node3"), {
      withinMs: NOTICE_MS,
      until: (state) => state === "dead",
    });
    node3.agent.signal("SIGCONT");
    await holds("node1 sees node2 alive", () => stateOf(node1, "node2"), {
      forMs: 3_000,
      until: (state) => state === "alive",
      everyMs: 200,
    });
    await allAlive([node1, node2, node3], 30_000);
  });

  scenario("members lose nobody at 10 % packet loss", async (lab) => {
    const nodes = await lab.swarm(3);
    for (const node of nodes) lab.loss(node, 0.05);
    await holds("every node sees three alive", () => Promise.all(nodes.map(aliveNames)), {
      forMs: 15_000,
      until: (views) => views.every((names) => names.length === 3),
      everyMs: 500,
    });
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
});

async function peers(host: Host, name: string): Promise<PeerView[]> {
  return (await host.ctlJson<PeerView[]>("peers")).filter((peer) => peer.name === name);
}

/** Of the others, as far as they are known (ms). */
async function roundTrips(host: Host): Promise<number[]> {
  return (await host.ctlJson<PeerView[]>("peers")).flatMap(({ self, rttMs }) =>
    self || rttMs === null ? [] : [rttMs],
  );
}
