import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { endpointId } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { Conntrack } from "../../src/kernel/conntrack.ts";
import { BLUE, canMakeNamespaces, connectTcp, greet, makeService, MeshLab, runIn, UdpClient } from "./lab.ts";

const VIP = parseIp("10.9.0.200");
const vips = [{ network: BLUE, ip: VIP }];

describe("virtual IPs", { skip: canMakeNamespaces ? false : "needs root" }, () => {
  test("a client reaches every backend through the VIP and they see its own address", async () => {
    await using lab = new MeshLab();
    const client = lab.sandbox(50);
    const backends = [lab.sandbox(51), lab.sandbox(52)];
    for (const backend of backends) {
      backend.serveTcp(80);
      backend.serveUdp(53, backend.ip);
    }
    const service = makeService({ vips, backends: backends.map((backend) => backend.asBackend()) });
    await lab.node1.apply([service], [client, ...backends]);
    const seen = new Set<string>();
    for (let i = 0; i < 20; i++) seen.add(await greet(client.netns, VIP, 80));
    assert.deepEqual([...seen].sort(), ["51 10.9.0.50", "52 10.9.0.50"]);
    const connection = await connectTcp(client.netns, VIP, 80);
    assert.equal(connection.socket.remoteAddress, VIP);
    connection.close();
    const flow = new UdpClient(client.netns);
    assert.match(await flow.ask(VIP, 53), /^5[12] 10\.9\.0\.50$/);
    flow.close();
    runIn(client.netns, "ping", ["-c1", "-W2", VIP]);
  });

  test("a backend reaches itself through its own VIP", async () => {
    await using lab = new MeshLab();
    const backend = lab.sandbox(51);
    backend.serveTcp(80);
    backend.serveUdp(53);
    await lab.node1.apply([makeService({ vips, backends: [backend.asBackend()] })], [backend]);
    assert.equal(await greet(backend.netns, VIP, 80), "51 10.9.0.51");
    const flow = new UdpClient(backend.netns);
    assert.equal(await flow.ask(VIP, 53), "51 10.9.0.51");
    flow.close();
  });

  test("a VIP without backends refuses at once, and dnsrr has no VIP rule", async () => {
    await using lab = new MeshLab();
    const client = lab.sandbox(50);
    await lab.node1.apply([makeService({ vips })], [client]);
    await assert.rejects(greet(client.netns, VIP, 80), { code: "ECONNREFUSED" });
    await lab.node1.apply([makeService({ vips, endpointMode: "dnsrr" })], [client]);
    assert.equal(lab.node1.desired?.namespaces.get(client.netns.path), undefined);
  });

  test("established connections and flows stay with a draining backend; when it is gone they move or are reset", async () => {
    await using lab = new MeshLab();
    const client = lab.sandbox(50);
    const [one, two] = [lab.sandbox(51), lab.sandbox(52)];
    for (const backend of [one, two]) {
      backend.serveTcp(80);
      backend.serveUdp(80);
    }
    const local = [client, one, two];
    await lab.node1.apply([makeService({ vips, backends: [one.asBackend()] })], local);
    const connection = await connectTcp(client.netns, VIP, 80);
    assert.equal(await connection.line(), "51 10.9.0.50");
    const flow = new UdpClient(client.netns);
    assert.equal(await flow.ask(VIP, 80), "51 10.9.0.50");
    const direct = new UdpClient(client.netns);
    assert.equal(await direct.ask(one.ip, 80), "51 10.9.0.50");
    const change = (...backends: ReturnType<typeof one.asBackend>[]) =>
      lab.node1.apply([makeService({ vips, backends })], local);
    await change(one.asBackend({ state: "draining" }), two.asBackend());
    assert.equal(await greet(client.netns, VIP, 80), "52 10.9.0.50");
    assert.equal(await connection.ask(), "51 again");
    assert.equal(await flow.ask(VIP, 80), "51 10.9.0.50");
    await change(two.asBackend());
    await assert.rejects(connection.ask(), { code: "ECONNRESET" });
    assert.equal(await flow.ask(VIP, 80), "52 10.9.0.50");
    assert.equal(await direct.ask(one.ip, 80), "51 10.9.0.50");
    connection.close();
    flow.close();
    direct.close();
  });

  test("a connect and a question that nobody answers go elsewhere once the backend is doubted, and no other flow", async () => {
    await using lab = new MeshLab();
    const client = lab.sandbox(50);
    const [silent, well] = [lab.sandbox(51), lab.sandbox(52)];
    for (const backend of [silent, well]) {
      backend.serveTcp(80);
      backend.serveUdp(53);
    }
    const local = [client, silent, well];
    // More of them than are asked for one by one.
    const others = Array.from({ length: 10 }, (_, index) => ({
      ...silent.asBackend(),
      ...{ endpoint: endpointId(`gone${index}`), ip: parseIp(`10.9.0.${100 + index}`) },
    }));
    const nobody = ({ ip }: { ip: string }) =>
      `neighbor add ${ip} lladdr 02:00:00:00:00:01 nud permanent dev eth0`;
    lab.ip(client.netns, ...others.map(nobody));
    for (const more of [[], others]) {
      await lab.node1.apply([makeService({ vips, backends: [silent.asBackend()] })], local);
      const established = await connectTcp(client.netns, VIP, 80);
      assert.equal(await established.line(), "51 10.9.0.50");
      runIn(silent.netns, "nft", ["add", "table", "inet", "dead"]);
      const chain = "{ type filter hook input priority 0; policy drop; }";
      runIn(silent.netns, "nft", ["add", "chain", "inet", "dead", "input", chain]);
      await lab.node1.apply([makeService({ vips, backends: [silent.asBackend(), ...more] })], local);
      const waits = connectTcp(client.netns, VIP, 80);
      const question = new UdpClient(client.netns);
      const answer = question.ask(VIP, 53);
      using conntrack = new Conntrack(client.netns);
      const asked = () =>
        conntrack.list({ protocol: 17 }).length > 0 && conntrack.list({ protocol: 6 }).length > 1;
      while (!asked()) await new Promise((turn) => setTimeout(turn, 20));
      const doubted = [silent.asBackend(), ...more].map((backend) => ({ ...backend, avoid: true }));
      await lab.node1.apply([makeService({ vips, backends: [...doubted, well.asBackend()] })], local);
      const connection = await waits;
      assert.equal(await connection.line(), "52 10.9.0.50");
      assert.equal(await answer, "52 10.9.0.50");
      runIn(silent.netns, "nft", ["delete", "table", "inet", "dead"]);
      assert.equal(await established.ask(), "51 again");
      for (const one of [connection, established, question]) one.close();
      await lab.node1.apply([], local);
    }
  });
});
