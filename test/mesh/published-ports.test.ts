import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ipv4FromNumber } from "../../src/base/ip.ts";
import { HOST } from "../../src/mesh/desired.ts";
import { FAILING } from "../../src/mesh/host-rules.ts";
import { TABLE } from "../../src/mesh/ruleset.ts";
import { canMakeNamespaces, connectTcp, greet, makeService, MeshLab, runIn, UdpClient } from "./lab.ts";

describe("published ports", { skip: canMakeNamespaces ? false : "needs root" }, () => {
  test("the client's address reaches the backend over TCP from every entry node, and 127.0.0.1 works", async () => {
    await using lab = new MeshLab();
    const one = lab.backend();
    const two = lab.backend({ defaultRoute: false });
    for (const backend of [one, two]) backend.serveTcp(80);
    const service = makeService({
      publish: [[8000, 80, "tcp"]],
      backends: [one.asBackend(), two.asBackend()],
    });
    await lab.node1.apply([service], [one]);
    await lab.node2.apply([service], [two]);
    const seen = new Set<string>();
    for (const node of [lab.node1, lab.node2])
      for (let i = 0; i < 20; i++) seen.add(await greet(lab.client, node.address, 8000));
    assert.deepEqual([...seen].sort(), ["11 192.168.77.10", "12 192.168.77.10"]);
    const local = new Set<string>();
    for (let i = 0; i < 20; i++) local.add(await greet(lab.node1.netns, "127.0.0.1", 8000));
    assert.deepEqual([...local].sort(), ["11 10.255.0.2", "12 10.255.0.2"]);
    const own = new Set<string>();
    for (let i = 0; i < 20; i++) own.add(await greet(lab.node1.netns, lab.node1.address, 8000));
    assert.deepEqual([...own].sort(), ["11 192.168.77.1", "12 192.168.77.1"]);
  });

  test("the client's address reaches UDP servers on 0.0.0.0, with and without a default route", async () => {
    await using lab = new MeshLab();
    const one = lab.backend();
    const two = lab.backend({ defaultRoute: false });
    for (const backend of [one, two]) backend.serveUdp(53);
    const service = makeService({
      publish: [[8053, 53, "udp"]],
      backends: [one.asBackend(), two.asBackend()],
    });
    await lab.node1.apply([service], [one, two]);
    await lab.node2.apply([service], []);
    const seen = new Set<string>();
    for (const node of [lab.node1, lab.node2]) {
      for (let i = 0; i < 12; i++) {
        const client = new UdpClient(lab.client);
        seen.add(await client.ask(node.address, 8053));
        client.close();
      }
    }
    assert.deepEqual([...seen].sort(), ["11 192.168.77.10", "12 192.168.77.10"]);
    const client = new UdpClient(lab.node2.netns, "127.0.0.1");
    assert.match(await client.ask("127.0.0.1", 8053), /^1[12] 10\.255\.0\.3$/);
    client.close();
  });

  test("a service without backends refuses at once, TCP and UDP, and a removed one leaves no rule", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend();
    const service = makeService({
      publish: [
        [8000, 80, "tcp"],
        [8000, 80, "udp"],
      ],
    });
    await lab.node1.apply([service], [backend]);
    await assert.rejects(greet(lab.client, lab.node1.address, 8000), { code: "ECONNREFUSED" });
    await assert.rejects(greet(lab.node1.netns, "127.0.0.1", 8000), { code: "ECONNREFUSED" });
    const client = new UdpClient(lab.client, "0.0.0.0");
    await client.connect(lab.node1.address, 8000);
    await assert.rejects(client.ask(), { code: "ECONNREFUSED" });
    client.close();
    await lab.node1.apply([], [backend]);
    const text = runIn(lab.node1.netns, "nft", ["list", "map", "inet", "netagent", "ports"]);
    assert.doesNotMatch(text, /elements/);
    await lab.node1.keepers.get("host")?.reconcile(undefined);
    assert.equal(runIn(lab.node1.netns, "nft", ["list", "ruleset"]), "");
  });

  test("a draining backend gets no new flows, keeps its established ones, and is used when none is ready", async () => {
    await using lab = new MeshLab();
    const one = lab.backend();
    const two = lab.backend();
    for (const backend of [one, two]) {
      backend.serveTcp(80);
      backend.serveUdp(80);
    }
    const service = (...backends: ReturnType<typeof one.asBackend>[]) =>
      makeService({
        publish: [
          [8000, 80, "tcp"],
          [8000, 80, "udp"],
        ],
        backends,
      });
    await lab.node1.apply([service(one.asBackend())], [one, two]);
    const established = await connectTcp(lab.client, lab.node1.address, 8000);
    assert.equal(await established.line(), "11 192.168.77.10");
    const flow = new UdpClient(lab.client);
    assert.equal(await flow.ask(lab.node1.address, 8000), "11 192.168.77.10");
    await lab.node1.apply([service(one.asBackend({ state: "draining" }), two.asBackend())], [one, two]);
    for (let i = 0; i < 10; i++)
      assert.equal(await greet(lab.client, lab.node1.address, 8000), "12 192.168.77.10");
    assert.equal(await established.ask(), "11 again");
    assert.equal(await flow.ask(lab.node1.address, 8000), "11 192.168.77.10");
    // Its node held for dead: what goes there by TCP may go on, for the node may only be silent.
    await lab.node1.apply([service(one.asBackend({ state: "suspended" }), two.asBackend())], [one, two]);
    assert.equal(await established.ask(), "11 again");
    // Gone: the UDP flow moves over although its client never paused; the TCP connection is reset, not left hanging.
    await lab.node1.apply([service(two.asBackend())], [one, two]);
    assert.equal(await flow.ask(lab.node1.address, 8000), "12 192.168.77.10");
    await assert.rejects(established.ask(), { code: "ECONNRESET" });
    await lab.node1.apply([service(two.asBackend({ state: "draining" }))], [one, two]);
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "12 192.168.77.10");
    established.close();
    flow.close();
  });

  test("a backend that refuses or stays silent is noted, and no longer once it accepts", async () => {
    await using lab = new MeshLab();
    const [well, refusing, silent] = [lab.backend(), lab.backend(), lab.backend()];
    well.serveTcp(80);
    const service = (...backends: readonly (typeof well)[]) =>
      makeService({
        publish: [[8000, 80, "tcp"]],
        backends: backends.map((backend) => backend.asBackend()),
      });
    const all = [well, refusing, silent];
    await lab.node1.apply([service(...all)], all);
    // From now on what is in the backends' own namespaces is not this node's to change.
    const use = (backend: typeof well) => lab.node1.apply([service(backend)], []);
    const failing = (): string[] => {
      const rows = lab.node1.keepers.get(HOST)?.readSet(FAILING) ?? new Uint32Array(0);
      return Array.from({ length: rows.length / 3 }, (_, row) => `${ipv4FromNumber(rows[3 * row] ?? 0)}`);
    };
    await use(well);
    await greet(lab.client, lab.node1.address, 8000);
    assert.deepEqual(failing(), []);
    await use(refusing);
    await assert.rejects(greet(lab.client, lab.node1.address, 8000), { code: "ECONNREFUSED" });
    assert.deepEqual(failing(), [refusing.ingressIp]);
    // A client on the node itself: another chain sees its SYNs.
    const here = () => greet(lab.node1.netns, "127.0.0.1", 8000);
    await assert.rejects(here(), { code: "ECONNREFUSED" });
    refusing.serveTcp(80);
    await here();
    assert.deepEqual(failing(), []);
    const { netns } = refusing;
    runIn(netns, "nft", ["insert", "rule", "inet", TABLE, "input", "tcp", "dport", "80", "drop"]);
    const unanswered = here();
    while (failing().length === 0) await new Promise((turn) => setTimeout(turn, 50));
    assert.deepEqual(failing(), [refusing.ingressIp]);
    runIn(netns, "nft", ["flush", "chain", "inet", TABLE, "input"]);
    await unanswered;
    assert.deepEqual(failing(), []);
    await assert.rejects(
      greet(lab.client, lab.node1.address, 8001),
      { code: "ECONNREFUSED" },
      "a refusal of the node itself is no backend's",
    );
    assert.deepEqual(failing(), []);
    await use(silent);
    lab.ip(silent.netns, "link set eth1 down");
    const client = greet(lab.client, lab.node1.address, 8000);
    // The client's second SYN, a second after the first, is what tells.
    while (failing().length === 0) await new Promise((turn) => setTimeout(turn, 50));
    assert.deepEqual(failing(), [silent.ingressIp]);
    // What waits for it is freed for another one, which its next SYN finds.
    const avoiding = [well.asBackend(), silent.asBackend({ avoid: true })];
    await lab.node1.apply([makeService({ publish: [[8000, 80, "tcp"]], backends: avoiding })], []);
    assert.equal(await client, "11 192.168.77.10");
  });

  test("two entry nodes send one flow to the same backend, and affinity keeps a client's", async () => {
    await using lab = new MeshLab();
    const backends = Array.from({ length: 3 }, () => lab.backend());
    for (const backend of backends) backend.serveTcp(80);
    const service = (affinity: "none" | "client-ip") =>
      makeService({
        affinity,
        publish: [[8000, 80, "tcp"]],
        backends: backends.map((backend) => backend.asBackend()),
      });
    for (const node of [lab.node1, lab.node2])
      await node.apply([service("none")], node === lab.node1 ? backends : []);
    const seen = new Set<string>();
    for (let localPort = 20_000; localPort < 20_016; localPort++) {
      const first = await greet(lab.client, lab.node1.address, 8000, { localPort });
      assert.equal(await greet(lab.client, lab.node2.address, 8000, { localPort }), first);
      seen.add(first);
    }
    assert.ok(seen.size > 1);
    await lab.node1.apply([service("client-ip")], backends);
    const kept = new Set<string>();
    for (let i = 0; i < 10; i++) kept.add(await greet(lab.client, lab.node1.address, 8000));
    assert.equal(kept.size, 1);
  });

  test("one source port towards two entry nodes at once is two connections, and so after the first has ended", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend();
    backend.serveTcp(80);
    backend.serveUdp(80);
    const services = [
      makeService({
        publish: [
          [8000, 80, "tcp"],
          [8000, 80, "udp"],
        ],
        backends: [backend.asBackend()],
      }),
    ];
    await lab.node1.apply(services, [backend]);
    await lab.node2.apply(services, []);
    for (let localPort = 20_000; localPort < 20_008; localPort++) {
      const first = await connectTcp(lab.client, lab.node1.address, 8000, { localPort });
      const second = await connectTcp(lab.client, lab.node2.address, 8000, { localPort, timeoutMs: 900 });
      for (const connection of [first, second]) assert.equal(await connection.line(), "11 192.168.77.10");
      for (const connection of [second, first]) assert.equal(await connection.ask(), "11 again");
      // Half of all clients have a clock that is behind that of the other connection in the backend's eyes.
      first.socket.end();
      second.socket.end();
      await greet(lab.client, lab.node2.address, 8000, { localPort: localPort + 100, timeoutMs: 900 });
      await greet(lab.client, lab.node1.address, 8000, { localPort: localPort + 100, timeoutMs: 900 });
    }
    const flow = new UdpClient(lab.client, "0.0.0.0", 20_500);
    for (const node of [lab.node1, lab.node2, lab.node1])
      assert.equal(await flow.ask(node.address, 8000), "11 192.168.77.10");
    flow.close();
  });

  test("a flushed or damaged table is restored, and planning again gives nothing", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend();
    backend.serveTcp(80);
    const services = [makeService({ publish: [[8000, 80, "tcp"]], backends: [backend.asBackend()] })];
    await lab.node1.apply(services, [backend]);
    for (const damage of [
      ["flush", "ruleset"],
      ["flush", "chain", "inet", "netagent", "postrouting"],
      ["add", "rule", "inet", "netagent", "published", "drop"],
    ]) {
      runIn(lab.node1.netns, "nft", damage);
      assert.equal((await lab.node1.apply(services, [backend])).repaired, true);
      assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 192.168.77.10");
    }
    const keeper = lab.node1.keepers.get("host");
    const ruleset = lab.node1.desired?.namespaces.get("host")?.ruleset;
    assert.deepEqual(keeper?.plan(ruleset, { deep: true }), { changes: [] });
    // An element alone is missed by the quick look, and found by the deep one.
    runIn(lab.node1.netns, "nft", ["flush", "map", "inet", "netagent", "ports"]);
    assert.equal((await keeper?.reconcile(ruleset, { deep: true }))?.repaired, true);
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 192.168.77.10");
  });

  test("source NAT for nodes without the capability, for overlay clients, and when switched off", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend();
    backend.serveTcp(80);
    const service = (options: object) =>
      makeService({ publish: [[8000, 80, "tcp"]], backends: [backend.asBackend()], ...options });
    // A foreign node's container: nothing of ours inside.
    await lab.node1.apply([service({ backends: [backend.asBackend({ capable: false })] })], []);
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 10.255.0.2");
    await lab.node1.apply([service({ keepClientAddress: false })], [backend]);
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 10.255.0.2");
    await lab.node1.apply([service({})], [backend], { keep: false });
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 10.255.0.2");
    await lab.node1.apply([service({})], [backend], { overlayRanges: ["192.168.77.0/28"] });
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 10.255.0.2");
    await lab.node1.apply([service({})], [backend]);
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 192.168.77.10");
    // Hairpin: the backend asks the node's published port and is its own answer.
    assert.equal(await greet(backend.netns, "10.255.0.2", 8000), "11 10.255.0.2");
  });

  test("a port published on one address is there only, and host mode needs a local backend", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend();
    backend.serveTcp(80);
    const service = makeService({
      ports: [
        { published: 8000, target: 80, protocol: "tcp", mode: "ingress", address: lab.node1.address },
        { published: 8001, target: 80, protocol: "tcp", mode: "host" },
      ],
      backends: [backend.asBackend()],
    });
    await lab.node1.apply([service], [backend]);
    await lab.node2.apply([service], []);
    assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 192.168.77.10");
    await assert.rejects(greet(lab.node1.netns, "127.0.0.1", 8000), { code: "ECONNREFUSED" });
    await assert.rejects(greet(lab.client, lab.node2.address, 8000), { code: "ECONNREFUSED" });
    assert.equal(await greet(lab.client, lab.node1.address, 8001), "11 192.168.77.10");
    await assert.rejects(greet(lab.client, lab.node2.address, 8001), { code: "ECONNREFUSED" });
  });

  test("replacing all backends one after the other refuses and resets no client", async () => {
    await using lab = new MeshLab();
    const backends = Array.from({ length: 6 }, () => lab.backend());
    for (const backend of backends) backend.serveTcp(80);
    const rotation = (ready: readonly number[], draining: readonly number[]) => [
      makeService({
        publish: [[8000, 80, "tcp"]],
        backends: [
          ...ready.map((index) => backends[index]?.asBackend()),
          ...draining.map((index) => backends[index]?.asBackend({ state: "draining" })),
        ].filter((backend) => backend !== undefined),
      }),
    ];
    await lab.node1.apply(rotation([0, 1, 2], []), backends);
    let replacing = true;
    const seen = new Map<string, number>();
    const clients = Array.from({ length: 8 }, async () => {
      while (replacing) {
        const answer = await greet(lab.client, lab.node1.address, 8000);
        seen.set(answer, (seen.get(answer) ?? 0) + 1);
      }
    });
    const someMore = async (): Promise<void> => {
      const before = total(seen);
      while (total(seen) < before + 40)
        await Promise.race([...clients, new Promise((turn) => setImmediate(turn))]);
    };
    await someMore();
    for (let step = 0; step < 3; step++) {
      const kept = [0, 1, 2].slice(step + 1);
      const added = [3, 4, 5].slice(0, step + 1);
      for (const draining of [[step], []]) {
        await lab.node1.apply(rotation([...kept, ...added], draining), backends);
        await someMore();
      }
    }
    replacing = false;
    await Promise.all(clients);
    assert.deepEqual(
      [...seen.keys()].sort(),
      [11, 12, 13, 14, 15, 16].map((number) => `${number} 192.168.77.10`),
    );
  });
});

function total(counts: ReadonlyMap<string, number>): number {
  return [...counts.values()].reduce((sum, count) => sum + count, 0);
}
