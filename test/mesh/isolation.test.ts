import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { parseIp } from "../../src/base/ip.ts";
import { NftTableKeeper } from "../../src/kernel/nft.ts";
import { HOST, MeshPlanner } from "../../src/mesh/desired.ts";
import { STRANGERS_COUNTER } from "../../src/mesh/host-rules.ts";
import {
  canMakeNamespaces,
  greet,
  type LabNode,
  makeService,
  MeshLab,
  runIn,
  udpSocket,
  UdpClient,
} from "./lab.ts";

describe("isolation", { skip: canMakeNamespaces ? false : "needs root" }, () => {
  test("a node that is not on the way sees no packet of a flow", async () => {
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
    // The bridge has learned the way to the backend from the first flow; after it, nothing is flooded.
    await greet(lab.client, lab.node1.address, 8000);
    countPackets(lab.node2);
    for (let i = 0; i < 5; i++)
      assert.equal(await greet(lab.client, lab.node1.address, 8000), "11 192.168.77.10");
    const flow = new UdpClient(lab.client);
    assert.equal(await flow.ask(lab.node1.address, 8000), "11 192.168.77.10");
    flow.close();
    assert.match(runIn(lab.node2.netns, "nft", ["list", "table", "netdev", "watch"]), /packets 0 bytes 0/);
  });

  test("nothing but published ports is reachable over the ingress network, on backends and on nodes", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend();
    for (const port of [80, 22]) backend.serveTcp(port);
    const services = [makeService({ publish: [[8000, 80, "tcp"]], backends: [backend.asBackend()] })];
    await lab.node1.apply(services, [backend]);
    // From the node itself, and from a client that routes to the ingress subnet through it.
    lab.ip(lab.client, "route add 10.255.0.0/24 via 192.168.77.1");
    const silent = { timeoutMs: 300 };
    await assert.rejects(greet(lab.node1.netns, backend.ingressIp, 22, silent), /no answer/);
    assert.equal(await greet(lab.node1.netns, backend.ingressIp, 80), "11 10.255.0.2");
    await assert.rejects(greet(lab.client, backend.ingressIp, 80, silent), /no answer/);
    // The other way round: what the node itself listens on is not for the ingress network.
    await assert.rejects(greet(backend.netns, lab.node1.entry.ip, 22, silent), /no answer/);
  });

  test("a sandbox without a way out hears so at once instead of losing packets on the ingress leg", async () => {
    await using lab = new MeshLab();
    const backend = lab.backend({ defaultRoute: false });
    const services = [makeService({ publish: [[8000, 80, "tcp"]], backends: [backend.asBackend()] })];
    await lab.node1.apply(services, [backend]);
    await assert.rejects(greet(backend.netns, "198.51.100.1", 80), { code: /^E(NETUNREACH|HOSTUNREACH)$/ });
  });

  test("VXLAN from strangers is dropped and counted, members' passes", async () => {
    await using lab = new MeshLab();
    const planner = new MeshPlanner();
    const ruleset = (vteps: readonly string[]) =>
      planner
        .desired({
          node: {
            entryNodes: [],
            overlayRanges: [],
            keepClientAddress: true,
            underlay: { dataPathPort: 4789, vteps: vteps.map(parseIp) },
          },
          services: [],
          sandboxes: [],
        })
        .namespaces.get(HOST)?.ruleset;
    using keeper = new NftTableKeeper(lab.node1.netns);
    await keeper.reconcile(ruleset(["192.168.77.2"]));
    const received: string[] = [];
    const receiver = udpSocket(lab.node1.netns, "0.0.0.0", 4789);
    const arrival = new Promise<void>((resolve) => {
      receiver.on("message", (_, from) => {
        received.push(from.address);
        resolve();
      });
    });
    const stranger = udpSocket(lab.client, "0.0.0.0", 0);
    const member = udpSocket(lab.node2.netns, "0.0.0.0", 0);
    await new Promise((sent) => stranger.send("x", 4789, "192.168.77.1", sent));
    await new Promise((sent) => member.send("x", 4789, "192.168.77.1", sent));
    await arrival;
    assert.deepEqual(received, ["192.168.77.2"]);
    assert.equal(keeper.counter(STRANGERS_COUNTER)?.packets, 1n);
    // A new member is one element; the counter goes on.
    const outcome = await keeper.reconcile(ruleset(["192.168.77.2", "192.168.77.10"]));
    assert.equal(outcome.plan.skeleton, undefined);
    assert.equal(keeper.counter(STRANGERS_COUNTER)?.packets, 1n);
    for (const socket of [receiver, stranger, member]) socket.close();
  });
});

/** Counts every TCP and UDP packet that reaches the node over the ingress network. */
function countPackets(node: LabNode): void {
  runIn(
    node.netns,
    "nft",
    ["-f", "-"],
    `table netdev watch {
    chain ingress { type filter hook ingress device "na-ingress" priority 0; ip protocol { tcp, udp } counter; }
  }`,
  );
}
