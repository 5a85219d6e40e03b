import assert from "node:assert/strict";
import type { ServiceView } from "../../src/agent/control-protocol.ts";
import { attach, httpBackend, kernelAgrees, reaches, udpBackend } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { allAnsweredBy, askHttp, askUdp, hostObjects } from "../observe.ts";
import type { Place } from "../place.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const SOON_MS = 10_000;
const REQUESTS = 40;

scenarioOnEach(
  "a published port answers on every node, also on one without a backend and on 127.0.0.1",
  async (lab) => {
    const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
    await httpBackend(lab, nodes[0], "blue", "web", "web.1");
    for (const node of nodes) {
      await answeredBy(client, `http://${node.address}:8000/`, ["web.1"]);
      await answeredBy(node, "http://127.0.0.1:8000/", ["web.1"]);
      await answeredBy(node, `http://${node.address}:8000/`, ["web.1"]);
    }
    // From one node to another's address, as well.
    await answeredBy(nodes[1], `http://${nodes[2].address}:8000/`, ["web.1"]);
  },
);

scenario("answers rotate over the backends there are", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  const everywhere = async (names: readonly string[]): Promise<void> => {
    for (const node of nodes) await answeredBy(client, `http://${node.address}:8000/`, names);
  };
  for (const [index, node] of nodes.entries())
    await httpBackend(lab, node, "blue", "web", `web.${index + 1}`);
  await everywhere(["web.1", "web.2", "web.3"]);
  await nodes[2].ctl("detach", "web.3");
  await everywhere(["web.1", "web.2"]);
  await nodes[0].ctl("detach", "web.1");
  await everywhere(["web.2"]);
  await httpBackend(lab, nodes[2], "blue", "web", "web.4");
  await everywhere(["web.2", "web.4"]);
  for (const node of nodes) await kernelAgrees(node);
});

scenario("two backends on one node share the work", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[1], "blue", "web", "web.1");
  await httpBackend(lab, nodes[1], "blue", "web", "web.2");
  for (const node of nodes) await answeredBy(client, `http://${node.address}:8000/`, ["web.1", "web.2"]);
});

scenario("UDP ports work the same", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "dns", "5300:53/udp");
  await udpBackend(lab, nodes[0], "blue", "dns", "dns.1");
  await udpBackend(lab, nodes[1], "blue", "dns", "dns.2");
  const udpAnsweredBy = async (from: Place, address: string, names: readonly string[]): Promise<void> => {
    await waitFor(
      `UDP 5300 of ${address} to be answered by ${names.join(", ")}`,
      () => askUdp(from, address, 5300, 20),
      {
        withinMs: SOON_MS,
        until: (answers) => allAnsweredBy(answers)?.join() === names.join(),
      },
    );
  };
  for (const node of nodes) await udpAnsweredBy(client, node.address, ["dns.1", "dns.2"]);
  await udpAnsweredBy(nodes[2], "127.0.0.1", ["dns.1", "dns.2"]);
  await nodes[1].ctl("detach", "dns.2");
  for (const node of nodes) await udpAnsweredBy(client, node.address, ["dns.1"]);
});

scenario("several services and ports stand side by side", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await nodes[1].ctl(
    "service",
    "create",
    "api",
    "--network",
    "blue",
    "--publish",
    "8001:80",
    "--publish",
    "8002:80",
  );
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  await httpBackend(lab, nodes[1], "blue", "api", "api.1");
  for (const node of nodes) {
    await answeredBy(client, `http://${node.address}:8000/`, ["web.1"]);
    await answeredBy(client, `http://${node.address}:8001/`, ["api.1"]);
    await answeredBy(client, `http://${node.address}:8002/`, ["api.1"]);
  }
});

scenario("endpoints of the network reach the service at its virtual IP", async (lab) => {
  const { nodes } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  await httpBackend(lab, nodes[1], "blue", "web", "web.2");
  const { networks } = await nodes[2].ctlJson<ServiceView>("service", "inspect", "web");
  const vip = networks.find((one) => one.network === "blue")?.vip;
  assert.ok(vip, "the service has a VIP on blue");
  for (const node of nodes) {
    const user = await attach(lab, node, "blue", `user-${node.name}`);
    await answeredBy(user.place, `http://${vip}/`, ["web.1", "web.2"]);
  }
});

scenario("without a backend a connection is refused at once and not left hanging", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  await answeredBy(client, `http://${nodes[1].address}:8000/`, ["web.1"]);
  await nodes[0].ctl("detach", "web.1");
  for (const node of nodes) {
    // curl: 7 is "connection refused", 28 a time-out.
    await waitFor(
      `${node.name} to refuse`,
      async () => {
        const url = `http://${node.address}:8000/`;
        return (await client.exec(["curl", "-sS", "--max-time", "2", url])).code;
      },
      { withinMs: SOON_MS, until: (code) => code === 7 },
    );
  }
});

scenario("removing a service frees its port and its rules", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  const [node1, node2] = nodes;
  await httpBackend(lab, node1, "blue", "web", "web.1");
  await answeredBy(client, `http://${node2.address}:8000/`, ["web.1"]);
  await node2.ctl("service", "rm", "web");
  await waitFor("node1 to forget it", () => node1.netctl("service", "inspect", "web"), {
    withinMs: SOON_MS,
    until: (result) => result.code !== 0,
  });
  const server = await node2.serveHttp(8000, "own");
  await waitFor("node2's own server to answer", () => client.httpGet(`http://${node2.address}:8000/`), {
    withinMs: SOON_MS,
    until: (page) => page?.startsWith("own ") === true,
  });
  await server.stop();
  await node1.ctl("service", "create", "other", "--network", "blue", "--publish", "8000:80");
});

scenario("a port that is taken, by a process or a service, is refused with who holds it", async (lab) => {
  const { nodes } = await swarmWithService(lab, "web", "8000:80");
  const [node1, node2] = nodes;
  await node1.serveHttp(9000);
  const byProcess = await node1.netctl("service", "create", "a", "--network", "blue", "--publish", "9000:80");
  assert.equal(byProcess.code, 1);
  assert.match(byProcess.stderr, /9000.*(node|pid|process)/i);
  await waitFor("node2 to know web", () => node2.netctl("service", "inspect", "web"), {
    withinMs: SOON_MS,
    until: (result) => result.code === 0,
  });
  const byService = await node2.netctl("service", "create", "b", "--network", "blue", "--publish", "8000:80");
  assert.equal(byService.code, 1);
  assert.match(byService.stderr, /8000.*web/);
  const twice = await node2.netctl("service", "create", "c", "--publish", "8005:80", "--publish", "8005:81");
  assert.notEqual(twice.code, 0);
  for (const port of ["0:80", "65536:80", "x:80"]) {
    assert.notEqual((await node2.netctl("service", "create", "d", "--publish", port)).code, 0, port);
  }
  // The same number in the other protocol is another port.
  await node2.ctl("service", "create", "e", "--network", "blue", "--publish", "8000:53/udp");
  const names = (await node2.ctlJson<ServiceView[]>("service", "ls")).map((one) => one.name).sort();
  assert.deepEqual(names, ["e", "web"], "nothing was half created");
});

scenarioOnEach("a large download through another node arrives whole", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  const url = `http://${nodes[2].address}:8000/`;
  await answeredBy(client, url, ["web.1"]);
  const { stdout } = await client.exec(["sh", "-c", `curl -sS --max-time 20 ${url}bytes/20000000 | wc -c`]);
  assert.equal(stdout.trim(), "20000000");
});

scenario("an agent that ends leaves no rule once nothing is attached", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  await httpBackend(lab, node1, "blue", "web", "web.1");
  await reaches(node1, "127.0.0.1");
  await node1.ctl("detach", "web.1");
  await node1.ctl("service", "rm", "web");
  await node1.ctl("network", "rm", "blue");
  await node1.stop();
  assert.deepEqual(await hostObjects(node1), []);
});

async function swarmWithService(
  lab: Lab,
  service: string,
  publish: string,
): Promise<{ nodes: readonly [Host, Host, Host]; client: Host }> {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  const client = lab.client();
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", service, "--network", "blue", "--publish", publish);
  for (const node of [node2, node3]) {
    await waitFor(`${node.name} to know ${service}`, () => node.netctl("service", "inspect", service), {
      withinMs: SOON_MS,
      until: (result) => result.code === 0,
    });
  }
  return { nodes: [node1, node2, node3], client };
}

/** Waits until every one of a number of requests is answered, by exactly these backends. */
async function answeredBy(from: Place, url: string, names: readonly string[]): Promise<void> {
  await waitFor(
    `${url} asked from ${from.name} to be answered by ${names.join(", ")}`,
    () => askHttp(from, url, REQUESTS),
    {
      withinMs: SOON_MS,
      until: (answers) => allAnsweredBy(answers)?.join() === names.join(),
    },
  );
}
