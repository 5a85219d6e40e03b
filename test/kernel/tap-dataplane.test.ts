import assert from "node:assert/strict";
import { closeSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parseIp } from "../../src/base/ip.ts";
import type { Dataplane } from "../../src/kernel/dataplane.ts";
import { Netns } from "../../src/kernel/netns.ts";
import { ProbeDevice } from "../../src/kernel/probe-device.ts";
import { TapDataplane } from "../../src/kernel/tap-dataplane.ts";
import type { DesiredOverlay, LinkKind, OverlayNetwork } from "../../src/overlay/desired.ts";
import { decodeEngineTable } from "../../src/overlay/engine-table.ts";
import { planOverlay } from "../../src/overlay/plan.ts";
import { plainBytes } from "../../src/transport/plain-bytes.ts";
import type { PathProbe } from "../../src/wire/path-probe.ts";
import {
  failures,
  ifindexes,
  KernelLab,
  type LabHost,
  lines,
  linkNames,
  pings,
  rowOf,
  run,
  testEndpoint,
  testNetwork,
} from "./lab.ts";

type Kinds = readonly [Dataplane["kind"], Dataplane["kind"]];
const PAIRS: readonly Kinds[] = [
  ["userspace", "userspace"],
  ["userspace", "kernel"],
  ["kernel", "userspace"],
];
const needs = {
  skip: process.getuid?.() !== 0 || !existsSync("/dev/net/tun") ? "needs root and /dev/net/tun" : false,
};

for (const kinds of PAIRS) {
  for (const linkKind of ["macvlan", "veth"] satisfies LinkKind[]) {
    test(
      `${kinds.join(" and ")}, ${linkKind}: endpoints reach each other across hosts and on one`,
      needs,
      () => {
        using lab = new KernelLab();
        const { a, desiredA, network, web, api, db } = pair(lab, { kinds, linkKind });
        assert.deepEqual(lines(a.plan(desiredA), network), []);
        assert.ok(pings(web.name, "10.0.9.7"), "web → db across hosts");
        assert.ok(pings(db.name, "10.0.9.5"), "db → web across hosts");
        assert.ok(pings(web.name, "10.0.9.6"), "web → api on one host");
        assert.ok(pings(api.name, "10.0.9.7"), "api → db across hosts");
        assert.ok(pings(web.name, "10.0.9.1"), "web → gateway");
        assert.ok(pings(db.name, "10.0.9.1"), "db → its gateway");
        assert.ok(pings(a.namespace, "10.0.9.7"), "host leg → db across hosts");
        assert.ok(pings(db.name, "10.0.9.2"), "db → host leg");
      },
    );
  }

  test(`${kinds.join(" and ")} over IPv6, at full size`, needs, () => {
    using lab = new KernelLab();
    const addresses = ["2001:db8::1/64", "2001:db8::7/64"] as const;
    const { web } = pair(lab, { kinds, addresses });
    assert.ok(pings(web.name, "10.0.9.7", "-M", "do", "-s", "1402"));
    assert.ok(!pings(web.name, "10.0.9.7", "-M", "do", "-s", "1403", "-w", "2"));
  });

  test(
    `probes cross between ${kinds.join(" and ")}, and one too big for the way is lost whole`,
    needs,
    async () => {
      using lab = new KernelLab();
      const hosts = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"], 1400, kinds);
      const heard: string[] = [];
      const devices = hosts.map((host) =>
        ProbeDevice.open({
          runDirectory: host.runDirectory,
          dataplane: host.dataplane,
          vtep: host.vtep,
          dataPathPort: 4789,
          onProbe: (from, { size }) => heard.push(`${from} ${size}`),
        }),
      );
      const alive = setInterval(() => undefined, 1000);
      try {
        const [left, right] = devices;
        assert.ok(left !== undefined && right !== undefined);
        left.setPeers(new Set([parseIp("192.0.2.7")]));
        right.setPeers(new Set([parseIp("192.0.2.1")]));
        const probe = (size: number): PathProbe => ({ kind: "probe", nonce: 7n, size });
        for (const size of [1352, 1351, 1350, 60]) {
          left.send(parseIp("192.0.2.7"), probe(size));
          right.send(parseIp("192.0.2.1"), probe(size));
        }
        const wanted = ["192.0.2.1 1350", "192.0.2.1 60", "192.0.2.7 1350", "192.0.2.7 60"];
        for (let i = 0; i < 500 && !wanted.every((one) => heard.includes(one)); i++)
          await new Promise((done) => setTimeout(done, 10));
        assert.deepEqual(heard.sort(), wanted);
      } finally {
        clearInterval(alive);
        for (const device of devices) device.close();
      }
      for (const host of hosts) assert.doesNotMatch(listeners(host), /:4789/);
    },
  );
}

test("endpoints' superframes are limited to what the engine sends at once", needs, () => {
  using lab = new KernelLab();
  const { a, desiredA, network, web } = pair(lab);
  const gso = /gso_max_size (\d+)/.exec(run("ip", "-n", web.name, "-d", "link", "show", "eth0"))?.[1];
  assert.ok(Number(gso) > 50_000 && Number(gso) < 65_000, `gso_max_size ${gso}`);
  run("ip", "-n", web.name, "link", "set", "eth0", "gso_max_size", "65536");
  assert.equal(a.plan(desiredA).steps.length, 1);
  a.reconcile(desiredA);
  assert.deepEqual(lines(a.plan(desiredA), network), []);
});

test("what another hand changes is found and repaired", needs, () => {
  using lab = new KernelLab();
  const { a, desiredA, web, network, overlayA } = pair(lab);
  const ip = (...args: string[]): string => run("ip", "-n", overlayA, ...args);
  const hands: readonly (readonly [string, () => unknown])[] = [
    ["gateway deleted", () => ip("link", "del", "gw0")],
    ["device down", () => ip("link", "set", "vxlan0", "down")],
    ["device MTU", () => ip("link", "set", "vxlan0", "mtu", "1300")],
    ["device deleted", () => ip("link", "del", "vxlan0")],
    [
      "device replaced by another of its kind",
      () => (
        ip("link", "del", "vxlan0"),
        run(
          "ip",
          "netns",
          "exec",
          overlayA,
          "ip",
          "tuntap",
          "add",
          "vxlan0",
          "mode",
          "tap",
          "multi_queue",
          "vnet_hdr",
        )
      ),
    ],
    [
      "device replaced by one of another kind",
      () => (ip("link", "del", "vxlan0"), ip("link", "add", "name", "vxlan0", "type", "bridge")),
    ],
    ["endpoint deleted", () => run("ip", "-n", web.name, "link", "del", "eth0")],
  ];
  for (const [what, act] of hands) {
    act();
    assert.ok(a.plan(desiredA).steps.length > 0, `${what} is seen`);
    assert.deepEqual(failures(a.reconcile(desiredA).applied), [], what);
    assert.deepEqual(lines(a.plan(desiredA), network), [], what);
    assert.ok(pings(web.name, "10.0.9.7"), what);
  }
});

test("a new process adopts the device, and forwards before it knows a row again", needs, () => {
  using lab = new KernelLab();
  const { a, desiredA, onA, network, web, overlayA } = pair(lab);
  const before = [ifindexes(web.name), ifindexes(overlayA)];
  a.dataplane.close();
  assert.ok(!pings(web.name, "10.0.9.7", "-w", "2"), "no frame moves without a process");
  assert.deepEqual([ifindexes(web.name), ifindexes(overlayA)], before);
  a.dataplane = a.newDataplane();
  assert.deepEqual(a.dataplane.list(), [network.id]);
  const rowless = a.desired(network, onA, []);
  const { steps } = planOverlay(rowless, a.dataplane.read(rowless));
  // The reconciler leaves out what takes a path away until the tables are here.
  a.dataplane.apply(
    rowless,
    steps.filter(({ type }) => type === "set-vxlan"),
  );
  assert.ok(pings(web.name, "10.0.9.7"));
  assert.deepEqual([ifindexes(web.name), ifindexes(overlayA)], before);
  assert.deepEqual(lines(a.plan(desiredA), network), []);
  // What is no longer true goes.
  a.reconcile(rowless);
  assert.ok(!pings(web.name, "10.0.9.7", "-w", "2"));
});

test("a table of a former life that is damaged is as good as none", needs, () => {
  using lab = new KernelLab();
  const { a, desiredA, network, web } = pair(lab);
  a.dataplane.close();
  writeFileSync(join(a.runDirectory, "engine-table"), "nae1 and nothing more");
  a.dataplane = a.newDataplane();
  assert.deepEqual(failures(a.reconcile(desiredA).applied), []);
  assert.deepEqual(lines(a.plan(desiredA), network), []);
  assert.ok(pings(web.name, "10.0.9.7"));
});

test(
  "what a killed process left goes with the next: entries of a network that is not wanted, half a probe",
  needs,
  () => {
    using lab = new KernelLab();
    const { a, network } = pair(lab);
    const scratch = join(a.runDirectory, "netns", ".path-probe-1");
    const remembered = (): number =>
      decodeEngineTable(plainBytes(readFileSync(join(a.runDirectory, "engine-table")))).length;
    a.dataplane.close();
    assert.equal(remembered(), 1);
    Netns.create(scratch).close();
    a.dataplane = a.newDataplane();
    assert.ok(!existsSync(scratch));
    assert.deepEqual(failures(a.reconcile(a.desired(network, [], [])).applied), []);
    assert.deepEqual(a.dataplane.list(), []);
    a.dataplane.close();
    assert.equal(remembered(), 0);
  },
);

test("a node may change its dataplane, there and back", needs, () => {
  using lab = new KernelLab();
  const { a, desiredA, network, web } = pair(lab, { kinds: ["kernel", "kernel"] });
  for (const kind of ["userspace", "kernel"] as const) {
    a.dataplane.close();
    a.dataplane = a.newDataplane(kind);
    assert.deepEqual(failures(a.reconcile(desiredA).applied), [], kind);
    assert.deepEqual(lines(a.plan(desiredA), network), [], kind);
    assert.ok(pings(web.name, "10.0.9.7"), kind);
  }
});

test("teardown leaves no device, socket, thread or descriptor", needs, () => {
  using lab = new KernelLab();
  const [host] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"], 1500, ["userspace", "kernel"]);
  const web = lab.namespace("web");
  const network = testNetwork();
  const present = host.desired(network, [testEndpoint(network.id, "10.0.9.5", web.path)], []);
  const absent = host.desired(network, [], []);
  const cycle = (): void => {
    assert.deepEqual(failures(host.reconcile(present).applied), []);
    assert.match(listeners(host), /192\.0\.2\.1:4789/);
    assert.deepEqual(failures(host.reconcile(absent).applied), []);
  };
  const held = (): number[] => ["fd", "task"].map((kind) => readdirSync(`/proc/self/${kind}`).length);
  cycle();
  const before = held();
  for (let i = 0; i < 5; i++) cycle();
  assert.deepEqual(held(), before);
  assert.deepEqual(host.dataplane.list(), []);
  assert.deepEqual(linkNames(web.name), ["lo"]);
  assert.doesNotMatch(listeners(host), /:4789/);
});

test("a UDP port in use is refused with what to look at, and nothing is half done", needs, () => {
  using lab = new KernelLab();
  const [host] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"], 1500, ["userspace", "kernel"]);
  using netns = Netns.open(host.path);
  const taken = netns.bindUdp(parseIp("192.0.2.1"), { port: 4789 });
  const web = lab.namespace("web");
  const network = testNetwork();
  const desired = host.desired(network, [testEndpoint(network.id, "10.0.9.5", web.path)], []);
  const [first] = failures(host.reconcile(desired).applied).filter((one) => one !== "skipped");
  assert.match(first ?? "", /^create vxlan .*EADDRINUSE .*192\.0\.2\.1 port 4789.*ss -lunp/);
  closeSync(taken);
  assert.deepEqual(failures(host.reconcile(desired).applied), []);
  assert.deepEqual(lines(host.plan(desired), network), []);
});

test("frames of a stranger and of the wrong node do not reach an endpoint, and are counted", needs, () => {
  using lab = new KernelLab();
  const { a, b, onA, peers, network, web, db } = pair(lab);
  assert.ok(a.dataplane instanceof TapDataplane);
  const elsewhere = peers.map((peer) => ({ ...peer, vtep: parseIp("192.0.2.99") }));
  a.reconcile(a.desired(network, onA, elsewhere));
  assert.ok(!pings(db.name, "10.0.9.5", "-w", "2"));
  assert.ok((a.dataplane.counters()["rxDropWrongVtep"] ?? 0) > 0);
  a.reconcile(a.desired(network, onA, peers));
  assert.ok(pings(db.name, "10.0.9.5"));
  assert.ok(pings(web.name, "10.0.9.7"));
  assert.equal(b.dataplane.kind, "userspace");
});

interface Pair {
  readonly a: LabHost;
  readonly b: LabHost;
  readonly network: OverlayNetwork;
  readonly desiredA: DesiredOverlay;
  readonly onA: readonly ReturnType<typeof testEndpoint>[];
  readonly peers: readonly ReturnType<typeof rowOf>[];
  readonly web: { readonly name: string };
  readonly api: { readonly name: string };
  readonly db: { readonly name: string };
  /** Name of A's network namespace for ip(8). */
  readonly overlayA: string;
}

/** Host A with `web`, `api` and its own leg, host B with `db`, programmed. */
function pair(
  lab: KernelLab,
  options: {
    readonly kinds?: Kinds;
    readonly linkKind?: LinkKind;
    readonly addresses?: readonly [string, string];
  } = {},
): Pair {
  const {
    kinds = ["userspace", "userspace"],
    linkKind,
    addresses = ["192.0.2.1/24", "192.0.2.7/24"],
  } = options;
  const [a, b] = lab.hosts(addresses, 1500, kinds);
  const [web, api, db] = ["web", "api", "db"].map((name) => lab.namespace(name));
  assert.ok(web !== undefined && api !== undefined && db !== undefined);
  const network = testNetwork({ vtep: a.vtep });
  const onA = [
    testEndpoint(network.id, "10.0.9.5", web.path),
    testEndpoint(network.id, "10.0.9.6", api.path),
    testEndpoint(network.id, "10.0.9.2", "host", "na-ingress"),
  ];
  const onB = [testEndpoint(network.id, "10.0.9.7", db.path, "eth3")];
  const peers = onB.map((endpoint) => rowOf(endpoint, b.vtep));
  const desiredA = a.desired(network, onA, peers, linkKind);
  const desiredB = b.desired(
    network,
    onB,
    onA.map((endpoint) => rowOf(endpoint, a.vtep)),
    linkKind,
  );
  assert.deepEqual(failures(a.reconcile(desiredA).applied), []);
  assert.deepEqual(failures(b.reconcile(desiredB).applied), []);
  const overlayA = lab.nameFor(`${a.runDirectory}/netns/ov-${network.id}`);
  return { a, b, network, desiredA, onA, peers, web, api, db, overlayA };
}

function listeners(host: LabHost): string {
  return run("ip", "netns", "exec", host.namespace, "ss", "-lun");
}
