import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { closeSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { test } from "node:test";
import { promisify } from "node:util";
import { parseCidr, parseIp } from "../../src/base/ip.ts";
import { Netns } from "../../src/kernel/netns.ts";
import type { DesiredOverlay, LinkKind, OverlayNetwork, RemotePeer } from "../../src/overlay/desired.ts";
import { formatStep, planOverlay } from "../../src/overlay/plan.ts";
import {
  failures,
  ifindexes,
  KernelLab,
  type LabHost,
  lines,
  linkNames,
  manyPeers,
  pings,
  run,
  rowOf,
  testEndpoint,
  testNetwork,
} from "./lab.ts";

for (const kind of ["macvlan", "veth"] satisfies LinkKind[]) {
  test(`${kind}: endpoints on two hosts, on one host, gateway and host leg reach each other`, () => {
    using lab = new KernelLab();
    const [a, b] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
    const web = lab.namespace("web");
    const api = lab.namespace("api");
    const db = lab.namespace("db");
    const network = testNetwork();
    const onA = [
      testEndpoint(network.id, "10.0.9.5", web.path),
      testEndpoint(network.id, "10.0.9.6", api.path),
      testEndpoint(network.id, "10.0.9.2", "host", "na-ingress"),
    ];
    const onB = [testEndpoint(network.id, "10.0.9.7", db.path, "eth3")];
    const desiredA = a.desired(
      network,
      onA,
      onB.map((endpoint) => rowOf(endpoint, "192.0.2.7")),
      kind,
    );
    const desiredB = b.desired(
      network,
      onB,
      onA.map((endpoint) => rowOf(endpoint, "192.0.2.1")),
      kind,
    );
    for (const [host, desired] of [
      [a, desiredA],
      [b, desiredB],
    ] as const) {
      const { applied } = host.reconcile(desired);
      assert.deepEqual(failures(applied), []);
      const again = host.plan(desired);
      assert.deepEqual(
        again.steps.map((step) => formatStep(network.id, step)),
        [],
      );
    }
    assert.ok(pings(web.name, "10.0.9.7"), "web → db across hosts");
    assert.ok(pings(db.name, "10.0.9.5"), "db → web across hosts");
    assert.ok(pings(web.name, "10.0.9.6"), "web → api on one host");
    assert.ok(pings(web.name, "10.0.9.1"), "web → gateway");
    assert.ok(pings(db.name, "10.0.9.1"), "db → its gateway");
    assert.ok(pings(a.namespace, "10.0.9.5"), "host leg → local endpoint");
    assert.ok(pings(a.namespace, "10.0.9.7"), "host leg → remote endpoint");
    assert.ok(pings(db.name, "10.0.9.2"), "db → host leg of the other host");
  });
}

test("TCP runs between hosts with segments of the overlay's MTU", async () => {
  using lab = new KernelLab();
  const { a, web, db } = pair(lab);
  using netns = Netns.open(db.path);
  const server = createServer((socket) => socket.end("x".repeat(300_000)));
  try {
    server.listen({ fd: netns.bindTcp(parseIp("10.0.9.7"), { port: 80, reuseAddress: true }) });
    await once(server, "listening");
    const { stdout } = await promisify(execFile)("ip", [
      ...["netns", "exec", web.name, "timeout", "10", "bash", "-c"],
      "exec 3<>/dev/tcp/10.0.9.7/80; wc -c <&3",
    ]);
    assert.equal(Number(stdout), 300_000);
    assert.ok(!pings(web.name, "10.0.9.7", "-M", "do", "-s", "1423", "-w", "2"), "1451 bytes do not fit");
    assert.ok(pings(web.name, "10.0.9.7", "-M", "do", "-s", "1422"), "1450 bytes fit");
    assert.equal(a.dataplane.kind, "kernel");
  } finally {
    server.close();
  }
});

test("the underlay may be IPv6", () => {
  using lab = new KernelLab();
  const { a, desiredA, web } = pair(lab, ["2001:db8::1/64", "2001:db8::7/64"]);
  assert.equal(desiredA.core?.mtu, 1430);
  assert.ok(pings(web.name, "10.0.9.7", "-M", "do", "-s", "1402"));
  assert.deepEqual(a.plan(desiredA).steps, []);
});

test("another data-path port is honored", () => {
  using lab = new KernelLab();
  const { a, web } = pair(lab, undefined, { dataPathPort: 7777 });
  assert.ok(pings(web.name, "10.0.9.7"));
  assert.match(run("ip", "netns", "exec", a.namespace, "ss", "-lun"), /:7777/);
});

test("what another hand changes is found and repaired", () => {
  using lab = new KernelLab();
  const { a, desiredA, web, network, overlayA } = pair(lab);
  const mac = "02:42:0a:00:09:07";
  const hands: Readonly<Record<string, string>> = {
    "fdb entry deleted": `bridge -n OV fdb del ${mac} dev vxlan0`,
    "fdb entry redirected": `bridge -n OV fdb replace ${mac} dev vxlan0 dst 192.0.2.66 self permanent`,
    "fdb entry no longer permanent": `bridge -n OV fdb replace ${mac} dev vxlan0 dst 192.0.2.7 self dynamic`,
    "stray fdb entry": "bridge -n OV fdb add 02:42:0a:00:09:66 dev vxlan0 dst 192.0.2.66 self permanent",
    "default destination":
      "bridge -n OV fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.66 self permanent",
    "neighbor deleted": "ip -n OV neigh del 10.0.9.7 dev vxlan0",
    "neighbor changed": "ip -n OV neigh replace 10.0.9.7 lladdr 02:42:0a:00:09:66 dev vxlan0 nud permanent",
    "neighbor not permanent": `ip -n OV neigh replace 10.0.9.7 lladdr ${mac} dev vxlan0 nud stale`,
    "gateway address removed": "ip -n OV addr flush dev gw0",
    "gateway deleted": "ip -n OV link del gw0",
    "vxlan down": "ip -n OV link set vxlan0 down",
    "vxlan MTU": "ip -n OV link set vxlan0 mtu 1300",
    "vxlan source address": "ip -n OV link set vxlan0 type vxlan local 127.0.0.1",
    "vxlan deleted": "ip -n OV link del vxlan0",
    "vxlan TTL": "ip -n OV link set vxlan0 type vxlan ttl 1",
    "vxlan TOS": "ip -n OV link set vxlan0 type vxlan tos 8",
    "vxlan DF": "ip -n OV link set vxlan0 type vxlan df set",
    "vxlan alias": "ip -n OV link set vxlan0 alias mine",
    "vxlan learns": "ip -n OV link set vxlan0 type vxlan learning",
    "gateway MAC": "ip -n OV link set gw0 address 02:00:00:00:00:01",
    "gateway mode": "ip -n OV link set gw0 type macvlan mode private",
    "gateway alias": "ip -n OV link set gw0 alias mine",
    "gateway down": "ip -n OV link set gw0 down",
    "endpoint mode": "ip -n WEB link set eth0 type macvlan mode private",
    "endpoint MTU": "ip -n WEB link set eth0 mtu 1000",
    "endpoint down": "ip -n WEB link set eth0 down",
    "endpoint renamed": "ip -n WEB link set eth0 name eth9",
    "endpoint MAC": "ip -n WEB link set eth0 address 02:42:0a:00:09:66",
    "endpoint address lost": "ip -n WEB addr flush dev eth0",
    "endpoint deleted": "ip -n WEB link del eth0",
    sysctl: "ip netns exec OV sysctl -qw net.bridge.bridge-nf-call-iptables=1",
  };
  const places: Readonly<Record<string, string>> = { OV: overlayA, WEB: web.name };
  const mended = (what: string): void => {
    assert.deepEqual(failures(a.reconcile(desiredA).applied), [], what);
    assert.deepEqual(lines(a.plan(desiredA), network), [], what);
    assert.ok(pings(web.name, "10.0.9.7"), what);
  };
  for (const [what, hand] of Object.entries(hands)) {
    const [command = "", ...args] = hand.split(" ").map((word) => places[word] ?? word);
    run(command, ...args);
    assert.ok(a.plan(desiredA).steps.length > 0, `${what} is seen`);
    mended(what);
  }
  run("ip", "-n", web.name, "link", "set", "eth0", "alias", "");
  assert.ok(a.plan(desiredA).steps.length > 0, "an endpoint's alias is seen");
  mended("endpoint alias");
  // A second address beside ours is no drift.
  run("ip", "-n", web.name, "addr", "add", "10.0.9.44/24", "dev", "eth0");
  assert.deepEqual(a.plan(desiredA).steps, []);
  assert.ok(pings(web.name, "10.0.9.7"));
});

test("what can be mended on a living device does not cost the interfaces on it", () => {
  using lab = new KernelLab();
  const { a, desiredA, web, overlayA } = pair(lab);
  const before = [ifindexes(web.name), ifindexes(overlayA)];
  const vxlan = ["link", "set", "vxlan0", "type", "vxlan"];
  for (const setting of [["learning"], ["ttl", "1"], ["tos", "8"], ["df", "set"], ["local", "127.0.0.1"]])
    run("ip", "-n", overlayA, ...vxlan, ...setting);
  run("ip", "-n", web.name, "link", "set", "eth0", "type", "macvlan", "mode", "vepa");
  run("ip", "-n", overlayA, "link", "set", "gw0", "type", "macvlan", "mode", "private");
  assert.deepEqual(failures(a.reconcile(desiredA).applied), []);
  assert.deepEqual(a.plan(desiredA).steps, []);
  assert.deepEqual([ifindexes(web.name), ifindexes(overlayA)], before);
  assert.ok(pings(web.name, "10.0.9.7"));
});

test("drift is announced by the kernel's notifications, own writes are not", async () => {
  using lab = new KernelLab();
  const drift: unknown[] = [];
  let wake = (): void => undefined;
  const { a, desiredA, network, overlayA, web } = pair(lab, undefined, {}, (network) => {
    drift.push(network);
    wake();
  });
  const row = { ...rowOf(testEndpoint(network.id, "10.0.9.9", web.path), "192.0.2.7") };
  const more = {
    ...desiredA,
    fdb: new Map(desiredA.fdb).set(row.mac, row.vtep),
    neighbors: new Map(desiredA.neighbors).set(row.ip, row.mac),
  };
  // Carrier changes of new links are announced a little later than the links.
  while (operstate(overlayA, "gw0") !== "UP" || operstate(web.name, "eth0") !== "UP");
  a.dataplane.read(desiredA);
  drift.length = 0;
  assert.deepEqual(failures(a.reconcile(more).applied), []);
  assert.deepEqual(lines(planOverlay(more, a.dataplane.read(more)), network), []);
  assert.deepEqual(failures(a.reconcile(desiredA).applied), []);
  assert.deepEqual(drift, []);

  const hands: readonly (readonly string[])[] = [
    ["bridge", "-n", overlayA, "fdb", "del", "02:42:0a:00:09:07", "dev", "vxlan0"],
    ["ip", "-n", overlayA, "neigh", "del", "10.0.9.7", "dev", "vxlan0"],
    ["ip", "-n", web.name, "addr", "flush", "dev", "eth0"],
    ["ip", "-n", overlayA, "link", "del", "vxlan0"],
  ];
  const alive = setInterval(() => undefined, 1000);
  for (const [command = "", ...args] of hands) {
    drift.length = 0;
    const announced = new Promise<void>((resolve) => (wake = resolve));
    run(command, ...args);
    await announced;
    assert.ok(drift.every((id) => id === network.id));
    // Not fresh: what was announced is enough to see it.
    const plan = planOverlay(desiredA, a.dataplane.read(desiredA));
    assert.ok(plan.steps.length > 0, args.join(" "));
    assert.deepEqual(failures(a.dataplane.apply(desiredA, plan.steps)), []);
    assert.deepEqual(lines(a.plan(desiredA), network), []);
  }
  clearInterval(alive);
});

test("a new process adopts what is there: nothing is made anew, a connection goes on", () => {
  using lab = new KernelLab();
  const { a, desiredA, network, web, overlayA } = pair(lab);
  const before = [ifindexes(web.name), ifindexes(overlayA)];
  a.dataplane.close();
  a.dataplane = a.newDataplane();
  assert.deepEqual(a.dataplane.list(), [network.id]);
  assert.deepEqual(lines(a.plan(desiredA), network), []);
  assert.deepEqual([ifindexes(web.name), ifindexes(overlayA)], before);
  assert.ok(pings(web.name, "10.0.9.7"));
});

test("teardown leaves nothing, also of endpoints nobody remembers", () => {
  using lab = new KernelLab();
  const { a, desiredA, network, web } = pair(lab);
  run("ip", "-n", web.name, "link", "add", "name", "mine", "type", "bridge");
  a.dataplane.close();
  a.dataplane = a.newDataplane();
  const absent = a.desired(network, [], []);
  assert.deepEqual(failures(a.reconcile(absent).applied), []);
  assert.deepEqual(a.dataplane.list(), []);
  assert.deepEqual(lines(a.plan(absent), network), []);
  assert.deepEqual(linkNames(web.name), ["lo", "mine"]);
  assert.deepEqual(linkNames(a.namespace), ["eth0", "lo"]);
  assert.doesNotMatch(run("ip", "netns", "exec", a.namespace, "ss", "-lun"), /:4789/);
  assert.equal(desiredA.network, network.id);
});

test("an endpoint moves to another sandbox, and one that is no longer wanted goes", () => {
  using lab = new KernelLab();
  const { a, network, web, peers } = pair(lab);
  const other = lab.namespace("other");
  const moved = a.desired(network, [testEndpoint(network.id, "10.0.9.5", other.path, "eth1")], peers);
  assert.deepEqual(failures(a.reconcile(moved).applied), []);
  assert.deepEqual(lines(a.plan(moved), network), []);
  assert.deepEqual(linkNames(web.name), ["lo"]);
  assert.ok(pings(other.name, "10.0.9.7"));
});

test("an address that moves to another host is reached there at once", () => {
  using lab = new KernelLab();
  const { a, b, network, web, db } = pair(lab);
  const onA = [testEndpoint(network.id, "10.0.9.5", web.path)];
  const moving = testEndpoint(network.id, "10.0.9.7", db.path);
  // From B to A: on A it becomes local, and B forgets it.
  const here = lab.namespace("here");
  const desiredA = a.desired(
    network,
    [...onA, { ...moving, sandbox: { type: "netns", path: here.path } }],
    [],
  );
  const absent = b.desired(network, [], []);
  assert.deepEqual(failures(b.reconcile(absent).applied), []);
  assert.deepEqual(failures(a.reconcile(desiredA).applied), []);
  assert.ok(pings(web.name, "10.0.9.7"));
  // And back.
  assert.deepEqual(
    failures(b.reconcile(b.desired(network, [moving], [rowOf(onA[0] ?? moving, "192.0.2.1")])).applied),
    [],
  );
  assert.deepEqual(failures(a.reconcile(a.desired(network, onA, [rowOf(moving, "192.0.2.7")])).applied), []);
  assert.ok(pings(web.name, "10.0.9.7"));
});

test("a sandbox that is gone blocks its endpoint only", () => {
  using lab = new KernelLab();
  const { a, network, web, peers } = pair(lab);
  const gone = lab.namespace("gone");
  const endpoints = [
    testEndpoint(network.id, "10.0.9.5", web.path),
    testEndpoint(network.id, "10.0.9.8", gone.path),
  ];
  const desired = a.desired(network, endpoints, peers);
  assert.deepEqual(failures(a.reconcile(desired).applied), []);
  Netns.remove(gone.path);
  const plan = a.plan(desired);
  assert.deepEqual(lines(plan, network), []);
  assert.deepEqual(
    plan.blocked.map(({ reason, endpoint }) => [endpoint.address.ip, reason]),
    [["10.0.9.8", "sandbox-missing"]],
  );
  assert.ok(pings(web.name, "10.0.9.7"));
});

test("an interface name that is taken fails that step, and the others are done", () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const web = lab.namespace("web");
  const api = lab.namespace("api");
  const network = testNetwork();
  run("ip", "-n", web.name, "link", "add", "name", "eth0", "type", "bridge");
  const desired = a.desired(
    network,
    [testEndpoint(network.id, "10.0.9.5", web.path), testEndpoint(network.id, "10.0.9.6", api.path)],
    [rowOf(testEndpoint(network.id, "10.0.9.7", ""), "192.0.2.7")],
  );
  const { applied } = a.reconcile(desired);
  assert.deepEqual(failures(applied), [
    `create macvlan eth0 10.0.9.5/24 02:42:0a:00:09:05 mtu 1450 in ${web.path} for endpoint 100950000000: ` +
      `EEXIST (there is already an interface eth0 in ${web.path} that is not ours)`,
  ]);
  assert.deepEqual(linkNames(api.name), ["eth0", "lo"]);
  assert.equal(a.plan(desired).steps.length, 1);
});

test("a VNI in use is refused with the name of its holder", () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const web = lab.namespace("web");
  const network = testNetwork();
  const desired = a.desired(network, [testEndpoint(network.id, "10.0.9.5", web.path)], []);
  a.ip("link", "add", "stranger", "type", "vxlan", "id", "4097", "dstport", "4789", "dev", "eth0");
  const [error] = failures(a.reconcile(desired).applied);
  assert.match(error ?? "", /EEXIST \(VNI 4097 on port 4789 is held by stranger in the host; delete/);
  // The same VNI on another underlay is no conflict, and is not blamed.
  const elsewhere = lab.namespace("elsewhere");
  run(
    "ip",
    "-n",
    elsewhere.name,
    "link",
    "add",
    "innocent",
    "type",
    "vxlan",
    "id",
    "4097",
    "dstport",
    "4789",
    "local",
    "127.0.0.1",
  );
  // In a namespace of ours, left by another life.
  a.ip("link", "del", "stranger");
  const other = testNetwork({ id: "0therlife0therlife0therli" });
  assert.deepEqual(
    failures(a.reconcile(a.desired(other, [testEndpoint(other.id, "10.0.9.5", web.path)], [])).applied),
    [],
  );
  const held = failures(a.reconcile(desired).applied)[0] ?? "";
  assert.match(held, /held by vxlan0 in the namespace .*\/ov-0therlife0therlife0therli; delete/);
  assert.deepEqual(failures(a.reconcile(a.desired(other, [], [])).applied), []);
  assert.deepEqual(failures(a.reconcile(desired).applied), []);
});

test("a UDP port in use is refused with what to look at", () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const web = lab.namespace("web");
  const network = testNetwork();
  using host = Netns.open(a.path);
  const fd = host.bindUdp(parseIp("0.0.0.0"), { port: 4789 });
  const desired = a.desired(network, [testEndpoint(network.id, "10.0.9.5", web.path)], []);
  try {
    const [error] = failures(a.reconcile(desired).applied);
    assert.match(error ?? "", /EADDRINUSE \(UDP port 4789 is taken by another program; see 'ss -lunp'\)/);
  } finally {
    closeSync(fd);
  }
  assert.deepEqual(failures(a.reconcile(desired).applied), []);
});

test("a pin that is no namespace any more, as after a reboot, is replaced", () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const web = lab.namespace("web");
  const network = testNetwork();
  writeFileSync(`${a.runDirectory}/netns/ov-${network.id}`, "");
  const desired = a.desired(network, [testEndpoint(network.id, "10.0.9.5", web.path)], []);
  assert.deepEqual(failures(a.reconcile(desired).applied), []);
  assert.deepEqual(lines(a.plan(desired), network), []);
});

test("seventy thousand entries are written, read back and found in order", () => {
  using lab = new KernelLab();
  const { a, network, web } = pair(lab, undefined, { subnet: "10.0.0.0/8", gateway: "10.0.0.1" });
  const peers = manyPeers(42_000, 30_000);
  const local = { ...testEndpoint(network.id, "10.0.9.5", web.path), prefixLength: 8 };
  const desired = a.desired(network, [local], peers);
  assert.equal(desired.neighbors.size, 42_000);
  assert.equal(desired.fdb.size, 30_000);
  assert.deepEqual(failures(a.reconcile(desired).applied), []);
  assert.deepEqual(lines(a.plan(desired), network), []);
  const half = a.desired(network, [local], peers.slice(0, 21_000));
  assert.deepEqual(failures(a.reconcile(half).applied), []);
  assert.deepEqual(lines(a.plan(half), network), []);
});

interface Pair {
  readonly a: LabHost;
  readonly b: LabHost;
  readonly web: { readonly name: string; readonly path: string };
  readonly db: { readonly name: string; readonly path: string };
  readonly network: OverlayNetwork;
  readonly desiredA: DesiredOverlay;
  /** Rows of B's endpoints. */
  readonly peers: readonly RemotePeer[];
  /** A's namespace of the network, as ip(8) names it. */
  readonly overlayA: string;
}

/** 10.0.9.5 (`web`) on host A and 10.0.9.7 (`db`) on host B of one network, reconciled. */
function pair(
  lab: KernelLab,
  addresses: readonly [string, string] = ["192.0.2.1/24", "192.0.2.7/24"],
  change: { dataPathPort?: number; subnet?: string; gateway?: string } = {},
  onDrift?: (network: unknown) => void,
): Pair {
  const [a, b] = lab.hosts(addresses);
  if (onDrift !== undefined) a.dataplane.watch(onDrift);
  const web = lab.namespace("web");
  const db = lab.namespace("db");
  const base = testNetwork({ vtep: a.vtep });
  const network: OverlayNetwork = {
    ...base,
    dataPathPort: change.dataPathPort ?? base.dataPathPort,
    subnet: change.subnet === undefined ? base.subnet : parseCidr(change.subnet),
    gateway: change.gateway === undefined ? base.gateway : parseIp(change.gateway),
  };
  const { prefixLength } = network.subnet;
  const onA = [{ ...testEndpoint(network.id, "10.0.9.5", web.path), prefixLength }];
  const onB = [{ ...testEndpoint(network.id, "10.0.9.7", db.path), prefixLength }];
  const peers = onB.map((endpoint) => rowOf(endpoint, b.vtep));
  const desiredA = a.desired(network, onA, peers);
  const desiredB = b.desired(
    network,
    onB,
    onA.map((endpoint) => rowOf(endpoint, a.vtep)),
  );
  assert.deepEqual(failures(a.reconcile(desiredA).applied), []);
  assert.deepEqual(failures(b.reconcile(desiredB).applied), []);
  assert.ok(pings(web.name, "10.0.9.7"));
  const overlayA = lab.nameFor(`${a.runDirectory}/netns/ov-${network.id}`);
  return { a, b, web, db, network, desiredA, peers, overlayA };
}

function operstate(namespace: string, name: string): string | undefined {
  const links = JSON.parse(run("ip", "-n", namespace, "-j", "link", "show", name)) as { operstate: string }[];
  return links[0]?.operstate;
}
