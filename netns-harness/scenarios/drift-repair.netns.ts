import assert from "node:assert/strict";
import type { NetworkView } from "../../src/agent/control-protocol.ts";
import { attach, httpBackend, kernelAgrees, reaches, type Attached } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { askHttp, allAnsweredBy, overlayLinks } from "../observe.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Longer than the sweep that nobody asks for. */
const REPAIR_MS = 45_000;

for (const [what, destroy] of [
  ["an FDB entry", "bridge fdb del MAC dev LINK dst VTEP self"],
  ["a neighbor", "ip neighbor del IP dev LINK"],
  ["an FDB entry that points elsewhere", "bridge fdb replace MAC dev LINK dst 192.168.1.250 self permanent"],
  ["a VXLAN device that is down", "ip link set LINK down"],
  ["a VXLAN device that is gone", "ip link delete LINK"],
] as const) {
  scenario(`repairs ${what}`, async (lab) => {
    const { node1, node2, a, b, vni } = await twoEndpoints(lab);
    await destroyInOverlay(node1, vni, destroy, b, node2);
    await repaired(node1, a, b);
  });
}

scenario("removes a foreign entry that would lead traffic astray", async (lab) => {
  const { node1, a, b, vni, node2 } = await twoEndpoints(lab);
  await destroyInOverlay(
    node1,
    vni,
    "bridge fdb append 02:42:0a:07:00:63 dev LINK dst 192.168.1.250 self permanent",
    b,
    node2,
  );
  await waitFor(
    "the foreign entry to go",
    () => inOverlay(node1, vni, "bridge fdb show dev LINK", b, node2),
    {
      withinMs: REPAIR_MS,
      until: (table) => !table.includes("02:42:0a:07:00:63"),
      everyMs: 500,
    },
  );
  await reaches(a.place, b.ip);
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

async function twoEndpoints(
  lab: Lab,
): Promise<{ node1: Host; node2: Host; a: Attached; b: Attached; vni: number }> {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  const { vni } = await node1.ctlJson<NetworkView>("network", "create", "blue", "--subnet", "10.7.0.0/24");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  await kernelAgrees(node1);
  return { node1, node2, a, b, vni };
}

async function destroyInOverlay(
  host: Host,
  vni: number,
  command: string,
  peer: Attached,
  node: Host,
): Promise<void> {
  await inOverlay(host, vni, command, peer, node);
}

/** Runs a command in the network's namespace; LINK, MAC, IP and VTEP stand for the VXLAN device and the peer. */
async function inOverlay(
  host: Host,
  vni: number,
  command: string,
  peer: Attached,
  node: Host,
): Promise<string> {
  const link = (await overlayLinks(host)).find((one) => one.kind === "vxlan" && one.vni === vni);
  assert.ok(link, `no VXLAN device with VNI ${vni} on ${host.name}`);
  const line = command
    .replace("LINK", link.name)
    .replace("MAC", peer.mac)
    .replace("IP", peer.ip)
    .replace("VTEP", node.address);
  return host.run("nsenter", `--net=${link.path}`, ...line.split(" "));
}

async function repaired(host: Host, a: Attached, b: Attached): Promise<void> {
  await waitFor(`${host.name} to repair it`, () => a.place.pings(b.ip), { withinMs: REPAIR_MS });
  await kernelAgrees(host);
}
