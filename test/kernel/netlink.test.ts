import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { closeSync } from "node:fs";
import dgram from "node:dgram";
import { createServer } from "node:net";
import { once } from "node:events";
import { test } from "node:test";
import { formatCidr, type IpAddr, parseCidr, parseIp } from "../../src/base/ip.ts";
import { parseMac } from "../../src/base/mac.ts";
import { listAddresses, setAddress } from "../../src/kernel/addresses.ts";
import { probeFeatures } from "../../src/kernel/features.ts";
import { createLink, findLink, listLinks, setLink } from "../../src/kernel/links.ts";
import { NetlinkSocket } from "../../src/kernel/netlink-socket.ts";
import { Netns } from "../../src/kernel/netns.ts";
import { checksumOffloads } from "../../src/kernel/offloads.ts";
import { overlayMtuTowards, underlayOf } from "../../src/kernel/underlay.ts";
import { NetlinkBatch, NLM_F } from "../../src/wire/netlink/message.ts";
import { encodeNeighbor, encodeNeighborQuery, decodeNeighbor, NUD } from "../../src/wire/netlink/neighbor.ts";
import { decodeRoute, encodeRoute, encodeRouteQuery, RTN } from "../../src/wire/netlink/route.ts";
import { decodeRule, encodeRule, encodeRuleQuery } from "../../src/wire/netlink/rule.ts";
import { RTM, RTNLGRP } from "../../src/wire/netlink/rtnetlink.ts";
import { KernelLab, run } from "./lab.ts";

test("what a device leaves to its card reads as ethtool(8) shows it", () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1");
  const shown = (): string[] =>
    run("ip", "netns", "exec", name, "ethtool", "-k", "v0")
      .split("\n")
      .flatMap((line) => /^\s*(rx-checksum\w*|tx-checksum-ip\S*): on/.exec(line)?.[1] ?? [])
      .map((feature) => feature.replace("rx-checksumming", "rx-checksum"));
  const read = (): string[] => checksumOffloads("v0", netns);
  assert.ok(read().includes("tx-checksum-ip-generic"));
  assert.deepEqual(read().sort(), shown().sort());
  run("ip", "netns", "exec", name, "ethtool", "-K", "v0", "tx", "off");
  assert.deepEqual(read(), ["rx-checksum"]);
  assert.deepEqual(checksumOffloads("v9", netns), []);
});

test("links and addresses read as ip(8) shows them", () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  using socket = new NetlinkSocket("route", netns);
  createLink(socket, "create veth", { name: "v0", info: { kind: "veth", peer: { name: "v1" } } });
  const { ifindex } = findLink(socket, { name: "v0" }) ?? assert.fail();
  const mac = parseMac("02:42:0a:00:09:05");
  setLink(socket, "set v0", { ifindex, mac, mtu: 1400, alias: "netagent:test", up: true });
  setAddress(socket, "v0", ifindex, parseCidr("10.0.9.5/24"));
  setAddress(socket, "v0", ifindex, parseCidr("2001:db8::5/64"));

  const shown = JSON.parse(run("ip", "-n", name, "-j", "-d", "addr")) as {
    ifindex: number;
    ifname: string;
    mtu: number;
    address: string;
    ifalias?: string;
    flags: string[];
    linkinfo?: { info_kind: string };
    addr_info: { local: string; prefixlen: number }[];
  }[];
  const addresses = listAddresses(socket);
  assert.deepEqual(
    listLinks(socket).map((link) => ({
      ifindex: link.ifindex,
      name: link.name,
      mtu: link.mtu,
      alias: link.alias,
      up: link.up,
      kind: link.kind,
      addresses: addresses
        .filter((a) => a.ifindex === link.ifindex)
        .map((a) => formatCidr(a.address))
        .sort(),
    })),
    shown.map((link) => ({
      ifindex: link.ifindex,
      name: link.ifname,
      mtu: link.mtu,
      alias: link.ifalias ?? "",
      up: link.flags.includes("UP"),
      kind: link.linkinfo?.info_kind,
      addresses: link.addr_info.map((a) => `${a.local}/${a.prefixlen}`).sort(),
    })),
  );
  assert.equal(findLink(socket, { name: "v0" })?.mac, mac);
});

test("routes and rules read as they were written", () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  using socket = new NetlinkSocket("route", netns);
  const route = {
    destination: parseCidr("10.1.0.0/16"),
    table: 1000,
    protocol: 17,
    scope: 0,
    type: RTN.blackhole,
    priority: 7,
    flags: 0,
  };
  socket.request("add route", {
    type: RTM.newRoute,
    flags: NLM_F.create,
    encode: (out) => encodeRoute(route, out),
  });
  const routes = socket.dump(
    "list routes",
    { type: RTM.getRoute, encode: (out) => encodeRouteQuery(4, out) },
    (message) => decodeRoute(message.payload),
  );
  assert.deepEqual(
    routes.filter(({ table }) => table === 1000),
    [route],
  );
  const rule = { family: 4, priority: 99, table: 1000, mark: 0x10, markMask: 0xf0 } as const;
  socket.request("add rule", {
    type: RTM.newRule,
    flags: NLM_F.create,
    encode: (out) => encodeRule(rule, out),
  });
  const rules = socket.dump(
    "list rules",
    { type: RTM.getRule, encode: (out) => encodeRuleQuery(4, out) },
    (message) => decodeRule(message.payload),
  );
  assert.deepEqual(
    rules.filter(({ priority }) => priority === 99),
    [rule],
  );
  assert.match(run("ip", "-n", name, "rule"), /99:\s+from all fwmark 0x10\/0xf0 lookup 1000/);
});

test("a refused request names what was tried, the errno and the kernel's words", () => {
  using lab = new KernelLab();
  using netns = Netns.open(lab.namespace("a").path);
  using socket = new NetlinkSocket("route", netns);
  assert.throws(
    () => createLink(socket, "create macvlan m0", { name: "m0", info: { kind: "macvlan", mode: 4 } }),
    { code: "EINVAL", message: /^create macvlan m0: EINVAL/ },
  );
  assert.throws(() => setLink(socket, "set link 77", { ifindex: 77, mtu: 1 }), {
    code: "ENODEV",
    message: "set link 77: ENODEV (no such device)",
  });
});

test("in a batch each failure has its place, and the others are done", () => {
  using lab = new KernelLab();
  using netns = Netns.open(lab.namespace("a").path);
  using socket = new NetlinkSocket("route", netns);
  createLink(socket, "create veth", { name: "v0", info: { kind: "veth", peer: { name: "v1" } } });
  const { ifindex } = findLink(socket, { name: "v0" }) ?? assert.fail();
  const batch = new NetlinkBatch();
  for (let host = 0; host < 100; host++) {
    const neighbor = {
      ifindex: host % 10 === 3 ? 999 : ifindex,
      ip: parseIp(`10.0.9.${host}`),
      mac: parseMac("02:42:0a:00:09:05"),
      state: NUD.permanent,
      flags: 0,
    };
    batch.add(RTM.newNeighbor, NLM_F.create, (out) => encodeNeighbor(neighbor, out));
  }
  const failures = socket.transact(batch);
  assert.deepEqual(
    failures.map(({ index }) => index),
    [3, 13, 23, 33, 43, 53, 63, 73, 83, 93],
  );
  assert.ok(failures.every(({ code }) => code === "ENODEV"));
  const neighbors = socket.dump(
    "list",
    { type: RTM.getNeighbor, encode: (out) => encodeNeighborQuery(ifindex, out) },
    (message) => decodeNeighbor(message.payload),
  );
  assert.equal(neighbors.filter(({ state }) => state === NUD.permanent).length, 90);
});

test("a dump under which the table changes is repeated until it is whole", async () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  using socket = new NetlinkSocket("route", netns);
  for (let i = 0; i < 60; i++)
    createLink(socket, "create", { name: `v${i}`, info: { kind: "veth", peer: { name: `w${i}` } } });
  // Another process deletes from the front of the list: a dump continued by position would skip links.
  const deletes = Array.from({ length: 55 }, (_, i) => `link del v${i}`).join("\n");
  const script = `ip -n ${name} -batch - <<< '${deletes}'`;
  let running = true;
  const done = output("bash", "-c", script).finally(() => (running = false));
  while (running) {
    for (let i = 0; i < 20; i++) {
      const names = new Set(listLinks(socket).map((link) => link.name));
      for (let kept = 55; kept < 60; kept++) assert.ok(names.has(`v${kept}`) && names.has(`w${kept}`));
    }
    await new Promise(setImmediate);
  }
  await done;
  assert.equal(listLinks(socket).length, 11);
});

test("notifications of another hand's change arrive, and an overrun is told", async () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  using socket = new NetlinkSocket("route", netns, { receiveBufferBytes: 4096 });
  const heard: number[] = [];
  let overruns = 0;
  let resolve = (): void => undefined;
  const first = new Promise<void>((done) => (resolve = done));
  socket.subscribe({
    groups: [RTNLGRP.link],
    onMessage: (message) => {
      heard.push(message.type);
      resolve();
    },
    onOverrun: () => overruns++,
  });
  run("ip", "-n", name, "link", "add", "name", "br7", "type", "bridge");
  const alive = setInterval(() => undefined, 1000); // the subscription alone does not keep the process running
  await first;
  clearInterval(alive);
  assert.ok(heard.includes(RTM.newLink));
  for (let i = 0; i < 40; i++) run("ip", "-n", name, "link", "set", "br7", "mtu", `${1400 + i}`);
  socket.pump();
  assert.ok(overruns > 0);
});

test("a namespace is pinned, opened, entered and removed", () => {
  using lab = new KernelLab();
  const { path } = lab.namespace("a");
  assert.throws(() => Netns.create(path), { code: "EEXIST" });
  {
    using netns = Netns.open(path);
    using host = Netns.current();
    assert.notEqual(netns.id, host.id);
    assert.equal(netns.id, Netns.idOf(path));
    const name = "net.bridge.bridge-nf-call-iptables";
    const before = host.readSysctl(name);
    netns.writeSysctl(name, "0");
    assert.equal(netns.readSysctl(name), "0");
    assert.equal(host.readSysctl(name), before);
    assert.equal(netns.readSysctl("net.no.such.thing"), undefined);
    assert.throws(() => netns.writeSysctl("net.no.such.thing", 1), { code: "ENOENT" });
    assert.throws(
      () =>
        netns.run(() => {
          throw new Error("inside");
        }),
      { message: "inside" },
    );
    assert.equal(Netns.idOf("/proc/self/ns/net"), host.id);
  }
  Netns.remove(path);
  Netns.remove(path);
  assert.throws(() => Netns.open(path), { code: "NETNS_MISSING" });
  assert.throws(() => Netns.open("/etc/hostname"), { code: "NETNS_MISSING" });
});

test("node's own sockets serve inside a namespace", async () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  const dns = parseIp("127.0.0.11");
  const udp = dgram.createSocket("udp4");
  udp.on("message", (message, from) => udp.send(`udp ${message.toString()}`, from.port, from.address));
  const tcp = createServer((socket) => socket.end("tcp hello"));
  try {
    // With a descriptor, dgram emits "listening" before bind returns.
    udp.bind({ fd: netns.bindUdp(dns, { port: 53 }) });
    assert.throws(() => netns.bindUdp(dns, { port: 53 }), {
      code: "EADDRINUSE",
      message: `bind udp 127.0.0.11 port 53 in ${path}: EADDRINUSE`,
    });
    tcp.listen({ fd: netns.bindTcp(dns, { port: 53, reuseAddress: true }) });
    await once(tcp, "listening");
    const script =
      "exec 3<>/dev/tcp/127.0.0.11/53; cat <&3; exec 4<>/dev/udp/127.0.0.11/53; echo -n hi >&4; head -c 6 <&4";
    assert.equal(await output("ip", "netns", "exec", name, "bash", "-c", script), "tcp helloudp hi");
  } finally {
    udp.close();
    tcp.close();
  }
});

test("a TAP queue opens inside a namespace", () => {
  using lab = new KernelLab();
  const { name, path } = lab.namespace("a");
  using netns = Netns.open(path);
  const first = netns.openTap("tap0", { vnetHeaderBytes: 12, multiQueue: true });
  const second = netns.openTap("tap0", { vnetHeaderBytes: 12, multiQueue: true });
  assert.match(run("ip", "-n", name, "link", "show", "tap0"), /tap0/);
  assert.throws(() => netns.openTap("tap0", {}), { code: "EINVAL" });
  closeSync(first);
  closeSync(second);
  assert.doesNotMatch(run("ip", "-n", name, "link"), /tap0/);
});

test("the underlay's MTU comes from the device that has the address, or from the route to a peer", () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"], 1420);
  using netns = Netns.open(a.path);
  using socket = new NetlinkSocket("route", netns);
  assert.equal(underlayOf(socket, a.vtep).overlayMtu, 1370);
  assert.throws(() => underlayOf(socket, parseIp("203.0.113.1")), { code: "EADDRNOTAVAIL" });
  assert.equal(overlayMtuTowards(socket, parseIp("192.0.2.7")), 1370);
  a.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.7", "mtu", "1300");
  assert.equal(overlayMtuTowards(socket, parseIp("198.51.100.9")), 1250);
  assert.throws(() => overlayMtuTowards(socket, "203.0.113.1" as IpAddr), { code: "ENETUNREACH" });
});

test("this kernel has what the tests need, and a probe leaves nothing behind", () => {
  using lab = new KernelLab();
  const host = lab.host("h", "192.0.2.1/24");
  const missing = probeFeatures(host.runDirectory).filter(({ present }) => !present);
  assert.deepEqual(missing, []);
  assert.equal(Netns.idOf(`${host.runDirectory}/netns/.probe-${process.pid}`), undefined);
});

/** Without blocking the event loop, which has to answer meanwhile. */
async function output(command: string, ...args: string[]): Promise<string> {
  return (await promisify(execFile)(command, args)).stdout;
}
