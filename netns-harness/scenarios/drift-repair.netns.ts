import assert from "node:assert/strict";
import type { NetworkView } from "../../src/agent/control-protocol.ts";
import { attach, httpBackend, kernelAgrees, reaches, type Attached } from "../endpoints.ts";
import type { Host, StartOptions } from "../host.ts";
import type { Lab } from "../lab.ts";
import { askHttp, allAnsweredBy, networkDevices } from "../observe.ts";
import { scenario, scenarioOnBoth } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Events tell at once, the sweep within three seconds; the rest is for a busy machine. */
const REPAIR_MS = 15_000;
const METRICS = "127.0.0.1:9476";

/** LINK, MAC, IP and VTEP stand for the VXLAN device and the peer; `here`: in the endpoint's sandbox. */
const HANDS: readonly (readonly [what: string, command: string, where?: "here"])[] = [
  ["an FDB entry", "bridge fdb del MAC dev LINK dst VTEP self"],
  ["an FDB entry that points elsewhere", "bridge fdb replace MAC dev LINK dst 192.168.1.250 self permanent"],
  ["an FDB entry too many", "bridge fdb append 02:42:0a:07:00:63 dev LINK dst 192.168.1.250 self permanent"],
  ["a default destination", "bridge fdb append 00:00:00:00:00:00 dev LINK dst 192.168.1.250 self permanent"],
  ["a neighbor", "ip neigh del IP dev LINK"],
  ["a neighbor with another MAC", "ip neigh replace IP lladdr 02:66:00:00:00:01 dev LINK nud permanent"],
  ["all neighbors", "ip neigh flush all nud permanent"],
  ["a VXLAN device that is down", "ip link set LINK down"],
  ["a VXLAN device with another MTU", "ip link set LINK mtu 1000"],
  ["a VXLAN device that sends from elsewhere", "ip link set LINK type vxlan local 127.0.0.1"],
  ["a VXLAN device whose packets die on the way", "ip link set LINK type vxlan ttl 1"],
  ["a VXLAN device that learns", "ip link set LINK type vxlan learning"],
  ["a VXLAN device that is gone", "ip link delete LINK"],
  ["a gateway without address", "ip address flush dev gw0"],
  ["a gateway that is gone", "ip link delete gw0"],
  ["a sysctl", "sysctl -qw net.bridge.bridge-nf-call-iptables=1"],
  ["an interface that is down", "ip link set eth0 down", "here"],
  ["an interface with another MAC", "ip link set eth0 address 02:66:00:00:00:01", "here"],
  ["an interface apart from its neighbors", "ip link set eth0 type macvlan mode private", "here"],
  ["an interface without address", "ip address flush dev eth0", "here"],
  ["an interface that is gone", "ip link delete eth0", "here"],
];

scenarioOnBoth("whatever another hand does to a network is undone, counted and told", async (lab) => {
  const { node1, node2, a, b, vni } = await twoEndpoints(lab, { flags: ["--metrics-addr", METRICS] });
  // The engine's table is out of reach of other hands, and its device has nothing that VXLAN devices have.
  const hands =
    node1.dataplane === "userspace"
      ? HANDS.filter(([, command]) => !/bridge fdb|ip neigh|type vxlan/.test(command))
      : HANDS;
  for (const [what, command, where] of hands) {
    const before = { told: await repairsTold(node1), counted: await repairsCounted(node1) };
    await (where === "here" ? a.place.run("sh", "-c", command) : inOverlay(node1, vni, command, b, node2));
    await waitFor(`${what} to be mended and told`, () => repairsTold(node1), {
      withinMs: REPAIR_MS,
      until: (told) => told > before.told,
    });
    await kernelAgrees(node1);
    assert.ok((await repairsCounted(node1)) > before.counted, what);
    await reaches(a.place, b.ip);
  }
});

scenario("repairs rules that another hand flushed", async (lab) => {
  const nodes = await lab.swarm(2);
  const [node1, node2] = nodes;
  assert.ok(node1 && node2);
  const client = lab.client();
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  await httpBackend(lab, node2, "blue", "web", "web.1");
  const answered = async (): Promise<string | undefined> =>
    allAnsweredBy(await askHttp(client, `http://${node1.address}:8000/`, 5))?.join();
  await waitFor("an answer", answered, { withinMs: 10_000, until: (names) => names === "web.1" });
  await node1.run("nft", "flush", "ruleset");
  await waitFor("an answer after the flush", answered, {
    withinMs: REPAIR_MS,
    until: (names) => names === "web.1",
  });
});

scenario("leaves alone what is not ours", async (lab) => {
  const { node1 } = await twoEndpoints(lab);
  await node1.run(
    "sh",
    "-c",
    "ip link add name br-mine type bridge; ip link add vx-mine type vxlan id 77 dstport 4790",
  );
  await node1.run("nft", "add table inet mine; add chain inet mine c");
  await node1.ctl("network", "create", "red");
  await attach(lab, node1, "red", "r");
  await node1.ctl("detach", "r");
  await node1.ctl("network", "rm", "red");
  await node1.crash();
  await node1.restart();
  await kernelAgrees(node1);
  assert.match(await node1.run("ip", "-brief", "link"), /br-mine[^]*vx-mine/);
  assert.match(await node1.run("nft", "list", "tables"), /table inet mine/);
});

/** Events of the network's repairs so far. */
async function repairsTold(host: Host): Promise<number> {
  const events = await host.ctl("events", "--since", "1h", "--no-follow");
  return events.split("\n").filter((line) => /  repair  blue  /.test(line)).length;
}

async function repairsCounted(host: Host): Promise<number> {
  const metrics = await host.run("curl", "-s", `http://${METRICS}/metrics`);
  return Number(/netagent_reconciler_total\{what="repairs"\} (\d+)/.exec(metrics)?.[1]);
}

async function twoEndpoints(
  lab: Lab,
  options: StartOptions = {},
): Promise<{ node1: Host; node2: Host; a: Attached; b: Attached; vni: number }> {
  const [node1, node2] = await lab.swarm(2, options);
  assert.ok(node1 && node2);
  const { vni } = await node1.ctlJson<NetworkView>("network", "create", "blue", "--subnet", "10.7.0.0/24");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  await kernelAgrees(node1);
  return { node1, node2, a, b, vni };
}

/** Runs a command in the network's namespace; LINK, MAC, IP and VTEP stand for the VXLAN device and the peer. */
async function inOverlay(
  host: Host,
  vni: number,
  command: string,
  peer: Attached,
  node: Host,
): Promise<string> {
  const link = (await networkDevices(host)).find((one) => one.vni === vni);
  assert.ok(link, `no VXLAN device with VNI ${vni} on ${host.name}`);
  const line = command
    .replace("LINK", link.name)
    .replace("MAC", peer.mac)
    .replace("IP", peer.ip)
    .replace("VTEP", node.address);
  return host.run("nsenter", `--net=${link.path}`, ...line.split(" "));
}
