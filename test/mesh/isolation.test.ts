import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { describe, test } from "node:test";
import { waitFor } from "../../netns-harness/wait.ts";
import { parseIp } from "../../src/base/ip.ts";
import { NftTableKeeper } from "../../src/kernel/nft.ts";
import {
  STRANGER_SETS,
  STRANGERS_COUNTER,
  VTEPS,
  VXLAN_TABLE,
  vxlanFilter,
} from "../../src/mesh/vxlan-filter.ts";
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
    const ruleset = (vteps: readonly string[]) => vxlanFilter(4789, vteps.map(parseIp));
    using keeper = new NftTableKeeper(lab.node1.netns, VXLAN_TABLE);
    await keeper.reconcile(ruleset(["192.168.77.2"]));
    const received: string[] = [];
    using sockets = new DisposableSockets();
    const receiver = sockets.add(udpSocket(lab.node1.netns, "0.0.0.0", 4789));
    const arrival = new Promise<void>((resolve) => {
      receiver.on("message", (_, from) => {
        received.push(from.address);
        resolve();
      });
    });
    const strangersAddress = "192.168.77.10";
    const stranger = sockets.add(udpSocket(lab.client, strangersAddress, 0));
    const member = sockets.add(udpSocket(lab.node2.netns, "0.0.0.0", 0));
    await new Promise((sent) => stranger.send("x", 4789, "192.168.77.1", sent));
    await new Promise((sent) => member.send("x", 4789, "192.168.77.1", sent));
    await arrival;
    // Either may have waited for its neighbor.
    await waitFor("the stranger to be counted", () => keeper.counter(STRANGERS_COUNTER)?.packets, {
      withinMs: 5_000,
      until: (packets) => packets === 1n,
    });
    assert.deepEqual(received, ["192.168.77.2"]);
    // A new member is one element; the counter goes on.
    const outcome = await keeper.reconcile(ruleset(["192.168.77.2", "192.168.77.10"]));
    assert.equal(outcome.plan.skeleton, undefined);
    assert.equal(keeper.counter(STRANGERS_COUNTER)?.packets, 1n);
    assert.deepEqual(keeper.countedAddresses(STRANGER_SETS[0]), [{ address: strangersAddress, packets: 1n }]);
    assert.deepEqual(keeper.countedAddresses(STRANGER_SETS[1]), []);
    assert.deepEqual(keeper.addresses(VTEPS).sort(), ["192.168.77.10", "192.168.77.2"]);
  });

  test("the filter against strangers has its members from its first moment on, and when it is replaced", async () => {
    await using lab = new MeshLab();
    using keeper = new NftTableKeeper(lab.node1.netns, VXLAN_TABLE);
    const monitor = lab.node1.netns.run(() =>
      spawn("nft", ["monitor"], { stdio: ["ignore", "pipe", "inherit"] }),
    );
    let seen = "";
    monitor.stdout.on("data", (chunk: Buffer) => (seen += chunk.toString()));
    const members = ["192.168.77.2", "2001:db8::7"].map(parseIp);
    try {
      // The monitor is heard once it listens.
      await waitFor(
        "the monitor to listen",
        () => (runIn(lab.node1.netns, "nft", ["add", "table", "mine"]), seen),
        {
          withinMs: 5_000,
          until: (text) => text.includes("mine"),
        },
      );
      await keeper.reconcile(vxlanFilter(4789, members));
      await keeper.reconcile(vxlanFilter(4790, members));
      await waitFor("both tables to be seen", () => seen, {
        withinMs: 5_000,
        until: (text) => /dport 4790[^]*new generation/.test(text),
      });
    } finally {
      monitor.kill("SIGKILL");
    }
    const transactions = seen
      .split(/# new generation.*\n/)
      .filter((text) => text.includes(`add table inet ${VXLAN_TABLE}`));
    assert.equal(transactions.length, 2);
    for (const text of transactions) {
      assert.match(text, /add element inet netagent-vxlan vteps \{ 192\.168\.77\.2 \}/);
      assert.match(text, /add element inet netagent-vxlan vteps6 \{ 2001:db8::7 \}/);
    }
  });

  test("what another hand does to a table of ours is noticed at once and undone, whatever it is", async () => {
    await using lab = new MeshLab();
    using keeper = new NftTableKeeper(lab.node1.netns, VXLAN_TABLE);
    const desired = vxlanFilter(4789, ["192.168.77.2", "2001:db8::7"].map(parseIp));
    assert.deepEqual(
      [keeper.addresses(VTEPS), keeper.countedAddresses(STRANGER_SETS[0])],
      [[], []],
      "no table yet",
    );
    await keeper.reconcile(desired);
    const list = (): string =>
      runIn(lab.node1.netns, "nft", ["-s", "list", "table", "inet", VXLAN_TABLE]).replaceAll(
        / # handle.*/g,
        "",
      );
    const before = list();
    let touched = 0;
    keeper.onTouched = () => touched++;
    for (const hand of [
      "add element inet netagent-vxlan vteps { 192.168.77.66 }",
      "delete element inet netagent-vxlan vteps6 { 2001:db8::7 }",
      "flush set inet netagent-vxlan vteps",
      "flush chain inet netagent-vxlan vxlan",
      "insert rule inet netagent-vxlan vxlan accept",
      "add chain inet netagent-vxlan raw_prerouting { policy drop; }",
      // As many rules as before, but another one.
      "flush chain inet netagent-vxlan raw_prerouting; add rule inet netagent-vxlan raw_prerouting accept",
      "delete table inet netagent-vxlan",
      "flush ruleset",
    ]) {
      const times = touched;
      runIn(lab.node1.netns, "nft", [hand]);
      await waitFor("the keeper to notice", () => touched, { withinMs: 5_000, until: (now) => now > times });
      assert.ok((await keeper.reconcile(desired)).repaired, hand);
      assert.equal(list(), before, hand);
      assert.equal((await keeper.reconcile(desired)).repaired, false, hand);
    }
    // Another's table is nobody's business here.
    const times = touched;
    runIn(lab.node1.netns, "nft", ["add table inet mine"]);
    assert.equal((await keeper.reconcile(desired)).repaired, false);
    assert.equal(touched, times);
    assert.match(runIn(lab.node1.netns, "nft", ["list", "tables"]), /inet mine/);
  });
});

/** A failed test must not be kept alive by its sockets. */
class DisposableSockets implements Disposable {
  readonly #sockets: ReturnType<typeof udpSocket>[] = [];

  add(socket: ReturnType<typeof udpSocket>): ReturnType<typeof udpSocket> {
    this.#sockets.push(socket);
    return socket;
  }

  [Symbol.dispose](): void {
    for (const socket of this.#sockets) socket.close();
  }
}

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
