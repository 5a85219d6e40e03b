import assert from "node:assert/strict";
import type { BackendView, NodeView } from "../../src/agent/control-protocol.ts";
import { attach, httpBackend, readyBackends, stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { allAnsweredBy, askHttp, RequestLoop } from "../observe.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const SOON_MS = 10_000;
const NOTICE_MS = 20_000;

scenario(
  "draining a node moves its backends out of the rotation everywhere, without losing a request",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2, node3] = nodes;
    const loop = RequestLoop.start(
      client,
      nodes.map((node) => `http://${node.address}:8000/`),
    );
    await node1.ctl("node", "update", "node3", "--availability", "drain");
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2"]);
    const backends = await node2.ctlJson<BackendView[]>("service", "ps", "web");
    assert.equal(backends.find((one) => one.node === "node3")?.state, "draining");
    assert.equal((await availability(node3)).join(), "node1 active,node2 active,node3 drain");
    await node2.ctl("node", "update", "node3", "--availability", "active");
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
    const { asked, failed } = await loop.stop();
    assert.deepEqual({ failed, some: asked > 0 }, { failed: 0, some: true });
  },
);

scenario(
  "a drained node still takes requests for the others, and its endpoints stay connected",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, , node3] = nodes;
    await node1.ctl("node", "update", "node3", "--availability", "drain");
    await answeredBy(client, node3, ["web.1", "web.2"]);
    const user = await attach(lab, node3, "blue", "user");
    assert.ok(await user.place.pings((await attach(lab, node1, "blue", "other")).ip));
  },
);

scenario("a drain outlives the agent of the drained node and of the one that asked for it", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  const [node1, node2, node3] = nodes;
  await node1.ctl("node", "update", "node3", "--availability", "drain");
  await answeredBy(client, node2, ["web.1", "web.2"]);
  for (const node of [node1, node3]) {
    await node.crash();
    await node.restart();
  }
  await waitFor(
    "all to be back and node3 still drained",
    async () => [await readyBackends(node2, "web"), await availability(node2)],
    {
      withinMs: NOTICE_MS,
      until: ([ready, states]) => ready?.join() === "web.1,web.2" && states?.includes("node3 drain") === true,
    },
  );
  await holds("node3 stays out of the rotation", () => readyBackends(node2, "web"), {
    forMs: 3_000,
    until: (names) => !names.includes("web.3"),
    everyMs: 300,
  });
});

scenario(
  "when an agent dies its backends leave the rotation, no request fails, and they return with it",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2, node3] = nodes;
    const ask = (): RequestLoop =>
      RequestLoop.start(
        client,
        [node1, node2].map((node) => `http://${node.address}:8000/`),
      );
    let loop = ask();
    await node3.crash();
    await waitFor("node1 to notice", () => stateOf(node1, "node3"), {
      withinMs: NOTICE_MS,
      until: (state) => state === "dead",
    });
    for (const node of [node1, node2]) await answeredBy(client, node, ["web.1", "web.2"]);
    if (node3.dataplane === "userspace") {
      // The engine died with the agent: what was sent there until the others noticed had no answer.
      await loop.stop();
      loop = ask();
    }
    await node3.restart();
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"], NOTICE_MS);
    const { asked, failed } = await loop.stop();
    assert.deepEqual({ failed, some: asked > 0 }, { failed: 0, some: true });
  },
);

scenario(
  "when a machine loses power its backends leave the rotation and the others answer everything",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2, node3] = nodes;
    lab.powerOff(node3);
    await waitFor(
      "node1 and node2 to drop web.3",
      () => Promise.all([node1, node2].map((node) => readyBackends(node, "web"))),
      {
        withinMs: NOTICE_MS,
        until: (views) => views.every((names) => names.join() === "web.1,web.2"),
      },
    );
    for (const node of [node1, node2]) await answeredBy(client, node, ["web.1", "web.2"]);
    lab.powerOn(node3);
    await node3.start({ join: [node1] });
    await httpBackend(lab, node3, "blue", "web", "web.3");
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"], NOTICE_MS);
  },
);

/** Service `web` on port 8000 with `web.1` … `web.3` on node1 … node3. */
async function oneBackendEach(lab: Lab): Promise<{ nodes: readonly [Host, Host, Host]; client: Host }> {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  const nodes = [node1, node2, node3] as const;
  const client = lab.client();
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  for (const [index, node] of nodes.entries()) {
    await waitFor(`${node.name} to know web`, () => node.netctl("service", "inspect", "web"), {
      withinMs: SOON_MS,
      until: (result) => result.code === 0,
    });
    await httpBackend(lab, node, "blue", "web", `web.${index + 1}`);
  }
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
  return { nodes, client };
}

async function answeredBy(
  client: Host,
  node: Host,
  names: readonly string[],
  withinMs = SOON_MS,
): Promise<void> {
  await waitFor(
    `port 8000 of ${node.name} to be answered by ${names.join(", ")}`,
    () => askHttp(client, `http://${node.address}:8000/`, 40),
    {
      withinMs,
      until: (answers) => allAnsweredBy(answers)?.join() === names.join(),
    },
  );
}

/** `name availability` of every node, sorted. */
async function availability(node: Host): Promise<string[]> {
  const list = await node.ctlJson<NodeView[]>("node", "ls");
  return list.map((one) => `${one.name} ${one.availability}`).sort();
}
