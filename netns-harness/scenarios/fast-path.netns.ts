/** Frames that take the fast path: which ones do, what makes them leave it, and that nobody notices. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import type { InfoView } from "../../src/agent/control-protocol.ts";
import { attach, type Attached, Connection, kernelAgrees, reaches } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive, type Lab } from "../lab.ts";
import { overlayLinks } from "../observe.ts";
import { DIST, started } from "../place.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Probes must have told it, or a sweep found it. */
const PATIENCE_MS = 30_000;

scenarioOnEach(
  "endpoints talk over the fast path, and over the slow one whenever that is needed",
  async (lab) => {
    const [node1, node2] = await lab.swarm(2);
    assert.ok(node1 && node2);
    const [a, b] = await endpoints(lab, node1, node2);
    const connection = await Connection.open(a.place, b.place, b.ip);
    for (const node of [node1, node2]) await inUse(node);
    await isTaken(node1, true, a, b);

    // Full frames, and superframes cut by nobody on the way.
    await a.place.run(...("ping -n -c 1 -W 2 -M do -s 1422".split(" ") as [string]), b.ip);
    assert.match(await node1.ctl("doctor"), /fast-path/);

    // A capture sees both directions, so it keeps the network on the slow path while it runs.
    const file = join(lab.mark.folder, "fast.pcap");
    const capture = node1.netctlBackground("capture", "blue", "-w", file, "--filter", "icmp", "--count", "2");
    await started(capture, "listening on");
    await notInUse(node1, /blue is captured/);
    assert.ok(await a.place.pings(b.ip));
    await capture.exited;
    const seen = await node1.run("tcpdump", "-n", "-r", file);
    assert.match(seen, /echo request/);
    assert.match(seen, /echo reply/);
    await inUse(node1);

    // IPsec policies and the host's firewall would be passed by.
    const policy = ["policy", "add", "dir", "out", "dst", node2.address, "action", "allow"] as const;
    await node1.run("ip", "xfrm", ...policy);
    await notInUse(node1, /IPsec/);
    assert.ok(await a.place.pings(b.ip));
    await node1.run("ip", "xfrm", "policy", "flush");
    await inUse(node1);

    // Devices and programs that another hand takes away.
    const [host] = await fastLinks(node2);
    assert.ok(host !== undefined);
    await node2.run("ip", "link", "delete", host);
    await inUse(node2);
    await isTaken(node2, true, b, a);
    await node2.run("ip", "link", "set", (await fastLinks(node2))[0] ?? "", "down");
    await waitFor("frames to find their way again", () => b.place.pings(a.ip), { withinMs: PATIENCE_MS });
    await connection.beatsOn();

    // The programs die with their agent, and the flow goes on without; by an engine it goes on when there is one again.
    await node1.crash();
    if (node1.dataplane !== "userspace") {
      await connection.beatsOn();
      await isTaken(node1, false, a, b);
    }
    await node1.restart();
    await allAlive([node1, node2], PATIENCE_MS);
    await inUse(node1);
    await connection.beatsOn(PATIENCE_MS);
    await kernelAgrees(node1);

    // Stopped in good order: nothing of it is left.
    await node1.stop();
    assert.deepEqual(await fastLinks(node1), []);
    if (node1.dataplane !== "userspace") await connection.beatsOn();
  },
);

scenario("what the host's firewall drops is dropped for the fast path, too", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  const [a, b] = await endpoints(lab, node1, node2);
  for (const node of [node1, node2]) await inUse(node);
  await node2.run("nft", "add table inet other");
  await node2.run("nft", "add chain inet other in { type filter hook input priority 0; }");
  await node2.run("nft", "add rule inet other in udp dport 4789 drop");
  await waitFor("nothing to get through", () => a.place.pings(b.ip), {
    withinMs: PATIENCE_MS,
    until: (reached) => !reached,
  });
  await notInUse(node2, /blocked|firewall rule/);
  await node2.run("nft", "delete table inet other");
  await reaches(a.place, b.ip, PATIENCE_MS);
});

scenario(
  "without BPF, or when it is not wanted, everything goes the slow path and info says so",
  async (lab) => {
    const [node1, node2] = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
    await node1.start({ env: { LD_PRELOAD: withoutBpf(lab) } });
    await node2.start({ join: [node1], flags: ["--fast-path", "off"] });
    await allAlive([node1, node2]);
    const [a, b] = await endpoints(lab, node1, node2);
    await isTaken(node1, false, a, b);
    await notInUse(node1, /BPF.*EPERM/);
    await notInUse(node2, /--fast-path off/);
    for (const node of [node1, node2]) assert.deepEqual(await fastLinks(node), []);
  },
);

async function endpoints(lab: Lab, node1: Host, node2: Host): Promise<[Attached, Attached]> {
  await node1.ctl("network", "create", "blue");
  const both: [Attached, Attached] = [
    await attach(lab, node1, "blue", "a"),
    await attach(lab, node2, "blue", "b"),
  ];
  await reaches(both[0].place, both[1].ip);
  return both;
}

async function fastPath(host: Host): Promise<InfoView["fastPath"]> {
  return (await host.ctlJson<InfoView>("info")).fastPath;
}

async function inUse(host: Host): Promise<void> {
  await waitFor(`the fast path of ${host.name} to be in use`, () => fastPath(host), {
    withinMs: PATIENCE_MS,
    until: ({ networks, vteps, reason }) => networks === 1 && vteps === 1 && reason === "",
  });
}

async function notInUse(host: Host, reason: RegExp): Promise<void> {
  await waitFor(`the fast path of ${host.name} not to be in use for ${reason}`, () => fastPath(host), {
    withinMs: PATIENCE_MS,
    until: (status) => (status.networks === 0 || status.vteps === 0) && reason.test(status.reason),
  });
}

/** Whether frames from one endpoint to the other go round the host's VXLAN device, in both directions. */
async function isTaken(host: Host, fast: boolean, from: Attached, to: Attached): Promise<void> {
  const before = await slowFrames(host);
  for (let ping = 0; ping < 5; ping++) assert.ok(await from.place.pings(to.ip));
  const { sent, received } = await slowFrames(host);
  for (const frames of [sent - before.sent, received - before.received])
    assert.ok(fast ? frames < 5 : frames >= 5, `${frames} frames by the slow path`);
}

async function slowFrames(host: Host): Promise<{ readonly sent: number; readonly received: number }> {
  const device = (await overlayLinks(host)).find(({ kind }) => kind === "vxlan" || kind === "tun");
  assert.ok(device);
  const text = await host.run("nsenter", `--net=${device.path}`, "cat", "/proc/net/dev");
  const numbers = text.split(`${device.name}:`)[1]?.trim().split(/\s+/).map(Number) ?? [];
  return { received: numbers[1] ?? NaN, sent: numbers[9] ?? NaN };
}

/** The fast path's ends in the host. */
async function fastLinks(host: Host): Promise<string[]> {
  const links = JSON.parse(await host.run("ip", "-j", "link", "show")) as { readonly ifname: string }[];
  return links.map(({ ifname }) => ifname).filter((name) => name.startsWith("nf-"));
}

function withoutBpf(lab: Lab): string {
  const output = join(lab.mark.folder, "no-bpf.so");
  const source = join(DIST, "../netns-harness/programs/no-bpf.c");
  const built = spawnSync("gcc", ["-shared", "-fPIC", "-Wall", "-Wextra", "-o", output, source], {
    encoding: "utf8",
  });
  assert.equal(built.status, 0, built.stderr);
  return output;
}
