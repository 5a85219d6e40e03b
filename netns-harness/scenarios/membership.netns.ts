import assert from "node:assert/strict";
import type { InfoView, KeyAnswer } from "../../src/agent/control-protocol.ts";
import { stateOf } from "../endpoints.ts";
import { aliveNames, allAlive } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const KEY = "MDEyMzQ1Njc4OWFiY2RlZg==";
const OTHER_KEY = "ZmVkY2JhOTg3NjU0MzIxMA==";
const NOTICE_MS = 20_000;

scenario("three agents find each other through one seed", async (lab) => {
  const nodes = await lab.swarm(3);
  for (const node of nodes) {
    const info = await node.ctlJson<InfoView>("info");
    assert.equal(info.name, node.name);
    assert.equal(info.members, 3);
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

scenario("agents with the same key form a swarm; another key and no key stay outside", async (lab) => {
  const [node1, node2] = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
  const [wrong, none] = [lab.host("wrong", "192.168.1.106"), lab.host("none", "192.168.1.107")];
  await node1.start({ flags: ["--gossip-key", KEY] });
  await node2.start({ flags: ["--gossip-key", KEY], join: [node1] });
  await allAlive([node1, node2]);
  await wrong.start({ flags: ["--gossip-key", OTHER_KEY], join: [node1] });
  await none.start({ join: [node1] });
  const refused = await wrong.netctl("join", node1.address);
  assert.notEqual(refused.code, 0);
  await holds("the swarm has two members", () => Promise.all([node1, node2].map(aliveNames)), {
    forMs: 3_000,
    until: (views) => views.every((names) => names.join() === "node1,node2"),
    everyMs: 500,
  });
  assert.deepEqual(await aliveNames(wrong), ["wrong"]);
  assert.deepEqual(await aliveNames(none), ["none"]);
});

scenario("a key is replaced on all nodes while they stay together", async (lab) => {
  const nodes = await lab.swarm(3, { flags: ["--gossip-key", KEY] });
  const [node1] = nodes;
  assert.ok(node1);
  for (const verb of ["install", "use"]) {
    const answers = await node1.ctlJson<KeyAnswer[]>("keys", verb, OTHER_KEY);
    assert.ok(answers.length === 3 && answers.every((answer) => answer.ok), JSON.stringify(answers));
  }
  await node1.ctl("keys", "remove", KEY);
  await allAlive(nodes);
  const kept = await node1.ctlJson<KeyAnswer[]>("keys", "list");
  assert.ok(
    kept.every((answer) => answer.keys.length === 1),
    JSON.stringify(kept),
  );
});
