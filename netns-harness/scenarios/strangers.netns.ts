import assert from "node:assert/strict";
import type { DoctorView, EventView, NetworkView } from "../../src/agent/control-protocol.ts";
import { attach, reaches, type Attached } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { program } from "../place.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const METRICS = "127.0.0.1:9476";
const PATIENCE_MS = 15_000;
const FRAMES = 20;

scenario("VXLAN from a stranger reaches no network, is counted by source and told", async (lab) => {
  const [node1, node2] = await lab.swarm(2, { flags: ["--metrics-addr", METRICS] });
  assert.ok(node1 && node2);
  const stranger = lab.host("node3", "192.168.1.113");
  const { vni } = await node1.ctlJson<NetworkView>("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);

  // A member's VTEP shows that such frames do get in when they may. The engine asks of members, too, that the inner
  // source is theirs, and counts those where it is not.
  const arrived = (): Promise<number> =>
    node1.dataplane === "userspace" ? refusedFrames(node1) : strayFrames(a);
  await sendFrames(node2, node1, vni, a, FRAMES);
  await waitFor("a member's frames to arrive", arrived, {
    withinMs: PATIENCE_MS,
    until: (frames) => frames === FRAMES,
  });
  await sendFrames(stranger, node1, vni, a, FRAMES);
  const told = await waitFor("the stranger to be told", () => events(node1, "stranger"), {
    withinMs: PATIENCE_MS,
    until: (found) => found.length > 0,
  });
  assert.equal(told[0]?.subject, stranger.address);
  assert.equal(await arrived(), FRAMES);

  const warning = async (): Promise<string | undefined> => {
    const doctor = JSON.parse((await node1.netctl("-o", "json", "doctor")).stdout) as DoctorView;
    return doctor.checks.find(({ name, status }) => name === "strangers" && status === "warning")?.detail;
  };
  assert.match((await warning()) ?? "", new RegExp(`${FRAMES} packets from ${stranger.address}`));
  const metrics = await node1.run("curl", "-s", `http://${METRICS}/metrics`);
  assert.match(metrics, new RegExp(`vxlan_stranger_packets{source="${stranger.address}"} ${FRAMES}\n`));
  assert.match(metrics, new RegExp(`vxlan_strangers_dropped_packets_total ${FRAMES}\n`));

  // A member that was not known yet when it sent, as after its boot, is nothing to be warned of.
  await stranger.start({ join: [node1] });
  await waitFor("the stranger to be none", warning, {
    withinMs: PATIENCE_MS,
    until: (detail) => detail === undefined,
  });
});

scenario("what another hand does to the filter against strangers is undone and told", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  const before = await ruleset(node1);
  for (const [index, hand] of [
    "add element inet netagent-vxlan vteps { 192.168.1.66 }",
    `delete element inet netagent-vxlan vteps { ${node2.address} }`,
    "flush set inet netagent-vxlan vteps",
    "flush chain inet netagent-vxlan vxlan",
    "add rule inet netagent-vxlan vxlan accept",
    "insert rule inet netagent-vxlan raw_prerouting accept",
    "add chain inet netagent-vxlan raw_prerouting { policy drop; }",
    "delete table inet netagent-vxlan",
    "flush ruleset",
  ].entries()) {
    await node1.run("nft", hand);
    await waitFor(`'${hand}' to be undone`, () => ruleset(node1), {
      withinMs: PATIENCE_MS,
      until: (now) => now === before,
    });
    const told = await events(node1, "repair");
    assert.equal(told.filter(({ subject }) => subject === "netagent-vxlan").length, index + 1, hand);
  }
  await reaches(a.place, b.ip);
});

scenario("the mesh changing its rules has no part in the filter", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  const handles = (): Promise<string> =>
    node1.run("nft", "-s", "-a", "list", "table", "inet", "netagent-vxlan");
  const before = await handles();
  // The node gets its leg into ingress now, and the mesh's table is another one.
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  await attach(lab, node1, "blue", "c", "--service", "web");
  assert.match(await node1.run("nft", "list", "tables"), /inet netagent\n/);
  assert.equal(await handles(), before);
  await reaches(a.place, b.ip);
});

/** From a host's own address to the endpoint's MAC on another host. */
async function sendFrames(
  from: Host,
  to: Host,
  vni: number,
  endpoint: Attached,
  count: number,
): Promise<void> {
  await from.run(
    ...(program(
      "vxlan-frame",
      to.address,
      "4789",
      String(vni),
      endpoint.mac,
      String(count),
      from.address,
    ) as [string, ...string[]]),
  );
}

/** Packets that came in and were no IP packet of anybody: what `vxlan-frame` sends. */
async function strayFrames(endpoint: Attached): Promise<number> {
  const text = await endpoint.place.run("cat", "/proc/net/snmp");
  const [names = "", values = ""] = text.split("\n").filter((line) => line.startsWith("Ip:"));
  return Number(values.split(" ")[names.split(" ").indexOf("InHdrErrors")]);
}

/** Frames the host's engine has refused because nobody owns their inner source. */
async function refusedFrames(host: Host): Promise<number> {
  const metrics = await host.run("curl", "-s", `http://${METRICS}/metrics`);
  return Number(/engine_total\{what="rxDropUnknownSource"\} (\d+)/.exec(metrics)?.[1]);
}

async function events(host: Host, type: string): Promise<EventView[]> {
  const { stdout } = await host.netctl("-o", "json", "events", "--since", "1h", "--no-follow");
  return stdout
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line) as EventView)
    .filter((event) => event.type === type);
}

/** The filter as nft lists it, without what the kernel puts in and counts: while a member is missing, it is a stranger. */
async function ruleset(host: Host): Promise<string> {
  const { stdout } = await host.exec(["nft", "-s", "list", "table", "inet", "netagent-vxlan"]);
  return stdout
    .replaceAll(/elements = \{[^}]*\}/g, (text) => [...text.matchAll(/[\d.]+/g)].sort().join())
    .replaceAll(/set stranger_addresses6? \{[^}]*\}/g, "");
}
