import assert from "node:assert/strict";
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import type { DoctorView, InfoView, PeerView } from "../../src/agent/control-protocol.ts";
import { attach, kernelAgrees, reaches, type Attached } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive, type Lab } from "../lab.ts";
import { overlayLinks } from "../observe.ts";
import { started } from "../place.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const PATIENCE_MS = 20_000;
const BULK_BYTES = 3_000_000;

scenario("over an IPv6 underlay gossip and VXLAN work, with the MTU that its headers leave", async (lab) => {
  const nodes = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
  const [node1, node2] = nodes;
  assert.ok(node1 && node2);
  for (const [index, node] of nodes.entries()) {
    const address = `fd00:1::${index + 1}`;
    await node.run("ip", "-4", "address", "flush", "dev", "eth0");
    await node.run("ip", "address", "add", `${address}/64`, "dev", "eth0", "nodad");
    const flags = ["--bind-addr", "::", "--advertise-addr", address];
    await node.start({ flags, join: index === 0 ? [] : ["fd00:1::1"] });
  }
  await allAlive(nodes);
  const [a, b] = await twoEndpoints(lab, node1, node2);
  await carriesFull(a, b, 1430);
  await dataPathIsWell(node1, 1430);
  // The underlay itself is asked, too, with packets that may not be cut.
  const underlay = async (): Promise<string | undefined> => {
    const { stdout } = await node1.netctl("-o", "json", "doctor");
    return (JSON.parse(stdout) as DoctorView).checks.find(({ name }) => name === "underlay")?.detail;
  };
  assert.match((await underlay()) ?? "", /^answers in [0-9.]+ ms; 1500 of 1500 bytes get through uncut$/);
  lab.setMtu(node2, 1400);
  // The lab's bridge lets four bytes more pass, for a VLAN tag.
  assert.match((await underlay()) ?? "", /^answers in [0-9.]+ ms; 140\d of 1500 bytes get through uncut$/);
  const filter = await node1.run("nft", "list", "table", "inet", "netagent-vxlan");
  assert.match(filter, /fd00:1::1,\s+fd00:1::2/);
  assert.match(filter, /counter strangers \{\s+packets 0 /);
});

scenario("another data-path port is used by everything, and 4789 by nothing", async (lab) => {
  const [node1, node2] = await lab.swarm(2, { flags: ["--data-path-port", "8472"] });
  assert.ok(node1 && node2);
  const [a, b] = await twoEndpoints(lab, node1, node2);
  await carriesFull(a, b, 1450);
  await dataPathIsWell(node1, 1450);
  const sockets = await node1.run("ss", "-Hlun");
  assert.match(sockets, /:8472\b/);
  assert.doesNotMatch(sockets, /:4789\b/);
});

scenario(
  "of several data-path addresses the first carries the traffic, and the others are no strangers",
  async (lab) => {
    const nodes = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
    const [node1, node2] = nodes;
    assert.ok(node1 && node2);
    for (const [index, node] of nodes.entries()) {
      const first = `192.168.2.${index + 1}`;
      await node.run("ip", "address", "add", `${first}/24`, "dev", "eth0");
      const flags = ["--data-path-addr", first, "--data-path-addr", node.address];
      await node.start({ flags, join: index === 0 ? [] : [node1] });
    }
    await allAlive(nodes);
    assert.equal((await node1.ctlJson<InfoView>("info")).vtep, "192.168.2.1, 192.168.1.104");
    const [a, b] = await twoEndpoints(lab, node1, node2);
    if (node1.dataplane !== "userspace") {
      const device = (await overlayLinks(node1)).find(({ kind }) => kind === "vxlan");
      assert.ok(device);
      const fdb = await node1.run(
        "nsenter",
        `--net=${device.path}`,
        "bridge",
        "fdb",
        "show",
        "dev",
        device.name,
      );
      assert.match(fdb, new RegExp(`${b.mac} dst 192\\.168\\.2\\.2 `));
    }
    await carriesFull(a, b, 1450);
    await dataPathIsWell(node1, 1450);
    const filter = await node1.run("nft", "list", "set", "inet", "netagent-vxlan", "vteps");
    for (const address of ["192.168.1.104", "192.168.1.105", "192.168.2.1", "192.168.2.2"])
      assert.ok(filter.includes(address), `${address} in ${filter}`);
  },
);

async function twoEndpoints(lab: Lab, node1: Host, node2: Host): Promise<[Attached, Attached]> {
  await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  for (const node of [node1, node2]) await kernelAgrees(node);
  return [a, b];
}

/** Packets of the MTU get through whole, larger ones do not leave, and bulk TCP runs. */
async function carriesFull(a: Attached, b: Attached, mtu: number): Promise<void> {
  const [link] = JSON.parse(await a.place.run("ip", "-j", "link", "show", "eth0")) as { mtu: number }[];
  assert.equal(link?.mtu, mtu);
  const ping = (bytes: number): Promise<{ code: number }> =>
    a.place.exec(["ping", "-c", "1", "-W", "5", "-M", "do", "-s", String(bytes - 28), b.ip]);
  assert.equal((await ping(mtu)).code, 0, `${mtu} bytes`);
  assert.notEqual((await ping(mtu + 1)).code, 0, `${mtu + 1} bytes`);
  const file = join(b.place.folder, "bulk");
  const sink = b.place.spawn(["socat", "-dd", "-u", "TCP-LISTEN:9000", `CREATE:${file}`]);
  await started(sink, "listening on");
  await a.place.run("sh", "-c", `head -c ${BULK_BYTES} /dev/zero | socat -u - TCP:${b.ip}:9000`);
  await waitFor("every byte to arrive", () => (existsSync(file) ? statSync(file).size : 0), {
    withinMs: PATIENCE_MS,
    until: (bytes) => bytes === BULK_BYTES,
  });
}

/** The prober goes the same way, and finds the same MTU. */
async function dataPathIsWell(host: Host, mtu: number): Promise<void> {
  await waitFor("the data path to be found well", () => host.ctlJson<PeerView[]>("peers"), {
    withinMs: PATIENCE_MS,
    everyMs: 300,
    until: (peers) =>
      peers.filter(({ self }) => !self).every((peer) => peer.dataPath === "ok" && peer.mtu === mtu),
  });
}
