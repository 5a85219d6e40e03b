import assert from "node:assert/strict";
import type { EndpointView, NetworkView, ServiceView } from "../../src/agent/control-protocol.ts";
import {
  attach,
  Connection,
  httpBackend,
  kernelAgrees,
  reaches,
  readyBackends,
  stateOf,
} from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive, labDataplanes, NODES } from "../lab.ts";
import { allAnsweredBy, askHttp, Pings, RequestLoop } from "../observe.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

/** After a pause TCP tries again ever more rarely: as long after it as it lasted. */
const RESUMED_MS = 60_000;

scenarioOnEach(
  "a killed agent leaves connections running, and a restarted one adopts what is there",
  async (lab) => {
    const nodes = await lab.swarm(2);
    const [node1, node2] = nodes;
    assert.ok(node1 && node2);
    await node1.ctl("network", "create", "blue");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    await reaches(a.place, b.ip);
    const connection = await Connection.open(a.place, b.place, b.ip);
    const pings = Pings.start(a.place, b.ip);
    const before = await endpoints(node1);
    // An engine dies with its agent, and the connection waits for the next one.
    const byEngine = [node1, node2].some(({ dataplane }) => dataplane === "userspace");
    for (const host of [node1, node2]) {
      await host.crash();
      if (host.dataplane !== "userspace") await connection.beatsOn();
      await host.restart();
      await allAlive(nodes, 30_000);
      await connection.beatsOn(RESUMED_MS);
      await kernelAgrees(host);
    }
    assert.deepEqual(await endpoints(node1), before);
    await connection.beatsOn();
    if (!byEngine) assert.deepEqual(pings.lost(), []);
  },
);

scenario("endpoints of a killed agent stay connected also when the others hold it for dead", async (lab) => {
  const nodes = await lab.swarm(2);
  const [node1, node2] = nodes;
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  const connection = await Connection.open(a.place, b.place, b.ip);
  await node2.crash();
  await waitFor("node1 to hold node2 for dead", () => stateOf(node1, "node2"), {
    withinMs: 20_000,
    until: (state) => state === "dead",
  });
  await holds("the connection is alive", () => connection.alive, { forMs: 5_000 });
  if (node2.dataplane !== "userspace") await connection.beatsOn();
  await node2.restart();
  await allAlive(nodes, 30_000);
  await connection.beatsOn(RESUMED_MS);
});

scenario("an agent that is stopped in an orderly way and started again cuts nothing", async (lab) => {
  // An engine stops with its agent: the next scenario.
  if (labDataplanes().includes("userspace")) return;
  const nodes = await lab.swarm(2);
  const [node1, node2] = nodes;
  assert.ok(node1 && node2);
  const client = lab.client();
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  const a = await attach(lab, node1, "blue", "a");
  const b = await httpBackend(lab, node2, "blue", "web", "b");
  await answers(client, node1, ["b"]);
  const connection = await Connection.open(a.place, b.place, b.ip);
  const requests = RequestLoop.start(client, [`http://${node1.address}:8000/`]);
  assert.equal(await node2.stop(), 0);
  assert.equal(await stateOf(node1, "node2"), "left");
  await connection.beatsOn();
  await node2.restart();
  await allAlive(nodes, 30_000);
  await connection.beatsOn();
  const { asked, failed } = await requests.stop();
  assert.ok(asked > 10 && failed === 0, `${failed} of ${asked} requests to the only backend failed`);

  // Without a return the backend leaves the rotation, and what is connected stays so.
  await node2.stop();
  await waitFor("the backend of a node that stays away to leave", () => readyBackends(node1, "web"), {
    withinMs: 30_000,
    until: (ready) => ready.length === 0,
  });
  await connection.beatsOn();
});

scenario(
  "an agent that moves frames itself takes its backends out of the rotation when it stops",
  async (lab) => {
    const node1 = lab.host(...NODES[0]);
    const node2 = lab.host(...NODES[1], "userspace");
    const nodes = [node1, node2];
    await node1.start();
    await node2.start({ join: [node1] });
    await allAlive(nodes);
    const client = lab.client();
    await node1.ctl("network", "create", "blue");
    await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
    const a = await httpBackend(lab, node1, "blue", "web", "a");
    const b = await httpBackend(lab, node2, "blue", "web", "b");
    await answers(client, node1, ["a", "b"]);
    const connection = await Connection.open(a.place, b.place, b.ip);
    const requests = RequestLoop.start(client, [`http://${node1.address}:8000/`]);
    assert.equal(await node2.stop(), 0);
    await waitFor("its backend to leave the rotation", () => readyBackends(node1, "web"), {
      withinMs: 10_000,
      until: (ready) => ready.join() === "a",
    });
    await answers(client, node1, ["a"]);
    await node2.restart();
    await allAlive(nodes, 30_000);
    await answers(client, node1, ["a", "b"]);
    await connection.beatsOn(RESUMED_MS);
    const { asked } = await requests.stop();
    assert.ok(asked > 10);
  },
);

scenario("an agent that is killed again and again settles when it is left alone", async (lab) => {
  const nodes = await lab.swarm(2);
  const [node1, node2] = nodes;
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  const connection = await Connection.open(a.place, b.place, b.ip);
  for (let round = 0; round < 5; round++) {
    await node2.crash();
    await node2.restart();
  }
  await allAlive(nodes, 30_000);
  await kernelAgrees(node2);
  await connection.beatsOn(RESUMED_MS);
  assert.deepEqual(
    (await endpoints(node1)).map((one) => one.split(" ")[0]),
    ["a", "b"],
  );
});

scenario(
  "what was attached while an agent was down to detach is detached: its sandbox may go first",
  async (lab) => {
    const [node1] = await lab.swarm(1);
    assert.ok(node1);
    await node1.ctl("network", "create", "blue");
    const a = await attach(lab, node1, "blue", "a");
    await node1.crash();
    lab.removeSandbox(a.place);
    await node1.restart();
    await kernelAgrees(node1);
    await waitFor(
      "endpoint a to be gone or detachable",
      async () => {
        const left = await endpoints(node1);
        return left.length === 0 || (await node1.netctl("detach", "a")).code === 0;
      },
      { withinMs: 10_000 },
    );
  },
);

for (const how of ["stopped", "killed"] as const) {
  scenario(
    `when all three nodes are ${how} and start again, networks, services and addresses are the same`,
    async (lab) => {
      const nodes = await lab.swarm(3);
      const [node1, node2, node3] = nodes;
      assert.ok(node1 && node2 && node3);
      const client = lab.client();
      await node1.ctl("network", "create", "blue");
      await node2.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
      for (const node of nodes) await httpBackend(lab, node, "blue", "web", `web-${node.name}`);
      const names = ["web-node1", "web-node2", "web-node3"];
      await answers(client, node1, names);
      const before = await picture(node3);
      await Promise.all(nodes.map((node) => (how === "stopped" ? node.stop() : node.crash())));
      await Promise.all(nodes.map((node) => node.restart()));
      await allAlive(nodes, 30_000);
      await waitFor("the same picture on node3", () => picture(node3), {
        withinMs: 20_000,
        until: (now) => JSON.stringify(now) === JSON.stringify(before),
        everyMs: 300,
      });
      for (const node of nodes) await answers(client, node, names);
      assert.equal(nodes.length, NODES.length);
      // Nothing is given twice after the restart either.
      const { ip } = await attach(lab, node2, "blue", "late");
      assert.ok(!JSON.stringify(before).includes(`"${ip}"`));
    },
  );
}

/** Networks, VIPs, ports and addresses as a node tells them, without what may change in a restart. */
async function picture(host: Host): Promise<unknown> {
  const networks = await host.ctlJson<NetworkView[]>("network", "ls");
  const service = await host.ctlJson<ServiceView>("service", "inspect", "web");
  return {
    networks: networks.map(({ id, name, vni, subnet }) => ({ id, name, vni, subnet })),
    service: { id: service.id, networks: service.networks, ports: service.ports },
    endpoints: await endpoints(host),
  };
}

/** `name address node id` of every endpoint of the network, sorted. */
async function endpoints(host: Host): Promise<string[]> {
  const list = await host.ctlJson<EndpointView[]>("endpoint", "ls", "--network", "blue");
  return list.map(({ name, ip, node, id }) => `${name} ${ip} ${node} ${id}`).sort();
}

async function answers(client: Host, node: Host, names: readonly string[]): Promise<void> {
  await waitFor(
    `port 8000 of ${node.name} to be answered by ${names.join(", ")}`,
    () => askHttp(client, `http://${node.address}:8000/`, 40),
    {
      withinMs: 20_000,
      until: (seen) => allAnsweredBy(seen)?.join() === names.join(),
    },
  );
}
