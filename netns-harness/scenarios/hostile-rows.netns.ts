import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DoctorView, EventView, NetworkView } from "../../src/agent/control-protocol.ts";
import { attach, Connection, kernelAgrees, reaches, type Attached } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { started } from "../place.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const METRICS = "127.0.0.1:9476";
const PATIENCE_MS = 30_000;
const MANY = 20_000;

scenario(
  "a member that writes lies into the tables changes nothing of others' endpoints, and is told",
  async (lab) => {
    const [node1, node2] = await lab.swarm(2, { flags: ["--metrics-addr", METRICS] });
    assert.ok(node1 && node2);
    const network = await node1.ctlJson<NetworkView>("network", "create", "blue", "--subnet", "10.7.0.0/16");
    const a = await attach(lab, node1, "blue", "a");
    const a2 = await attach(lab, node1, "blue", "a2");
    const b = await attach(lab, node2, "blue", "b");
    await reaches(a.place, b.ip);
    const [far, near] = [
      await Connection.open(a.place, b.place, b.ip),
      await Connection.open(a.place, a2.place, a2.ip),
    ];
    const before = await picture(node1, a);

    const evil = lab.client("evil");
    const rows = lies({ a, own: node1.address, other: node2.address, evil: evil.address });
    // Rows that look right, but all claim the same few addresses.
    for (let index = 0; index < MANY; index++) {
      const host = 2 + (index % 250);
      rows.push(`flood${index} 10.7.66.${host}/16 02:66:00:00:00:${hex(host)} ${evil.address}`);
    }
    const file = join(evil.folder, "rows");
    writeFileSync(file, rows.join("\n"));
    const member = evil.spawnProgram("hostile-member", evil.address, node1.address, network.id, file);
    await started(member, `published ${rows.length}`);

    const problems = [
      ...["local-address", "local-mac", "own-vtep", "foreign-vtep", "bad-vtep", "wrong-vtep-family"],
      ...["multicast-mac", "outside-subnet", "wrong-prefix-length", "reserved-address", "duplicate-address"],
    ];
    await waitFor("every lie to be told", () => told(node1), {
      withinMs: PATIENCE_MS,
      until: (text) => problems.every((problem) => text.includes(`(${problem},`)),
      everyMs: 500,
    });
    const doctor = JSON.parse((await node2.netctl("-o", "json", "doctor")).stdout) as DoctorView;
    const failed = doctor.checks.filter(({ name, status }) => name === "rows" && status === "failed");
    assert.ok(failed.some(({ detail, subject }) => subject === "node1" && detail.includes("local-address")));
    const metrics = await node1.run("curl", "-s", `http://${METRICS}/metrics`);
    for (const problem of problems)
      assert.match(metrics, new RegExp(`peer_rows_rejected{network="blue",problem="${problem}"} [1-9]`));

    await far.beatsOn();
    await near.beatsOn();
    await kernelAgrees(node1);
    assert.deepEqual(await picture(node1, a), before);
    // The flood is 250 addresses in the kernel, however many rows there are.
    const { stdout } = await node1.exec([
      "sh",
      "-c",
      `nsenter --net=${overlay(node1, network)} ip neigh show dev vxlan0 nud permanent | wc -l`,
    ]);
    assert.ok(Number(stdout) <= 251, `${stdout.trim()} neighbors`);
    await member.stop("SIGKILL");
    await reaches(a.place, b.ip);
  },
);

/** One row of each kind that cannot be true. */
function lies(who: { a: Attached; own: string; other: string; evil: string }): string[] {
  const { a, own, other, evil } = who;
  const mac = "02:66:00:00:00:01";
  return [
    `lie1 ${a.ip}/16 ${mac} ${evil}`,
    `lie2 10.7.99.2/16 ${a.mac} ${evil}`,
    `lie3 10.7.99.3/16 ${mac} ${own}`,
    `lie4 10.7.99.4/16 ${mac} ${other}`,
    `lie5 10.7.99.5/16 ${mac} 127.0.0.1`,
    `lie6 10.7.99.6/16 ${mac} 2001:db8::66`,
    `lie7 10.7.99.7/16 01:00:5e:00:00:01 ${evil}`,
    `lie8 10.7.99.8/16 ff:ff:ff:ff:ff:ff ${evil}`,
    `lie9 10.7.99.9/16 00:00:00:00:00:00 ${evil}`,
    `lie10 192.168.1.1/16 ${mac} ${evil}`,
    `lie11 10.7.99.11/24 ${mac} ${evil}`,
    `lie12 10.7.0.1/16 ${mac} ${evil}`,
    `lie13 hex ff00ff00ff00`,
    `lie14 hex 0a05`,
    `lie15 hex 00`,
  ];
}

/**
 * What must not change: the endpoint's interface and its address, as ip(8) shows them. IPv4 only: the kernel's own
 * link-local address passes its duplicate detection in the meantime.
 */
async function picture(host: Host, endpoint: Attached): Promise<unknown> {
  const links = JSON.parse(
    await endpoint.place.run("ip", "-4", "-j", "address", "show", "dev", "eth0"),
  ) as unknown;
  const own = JSON.parse(await host.run("ip", "-j", "link")) as { ifname: string }[];
  return { links, own: own.map(({ ifname }) => ifname) };
}

async function told(host: Host): Promise<string> {
  const { stdout } = await host.netctl("-o", "json", "events", "--since", "1h", "--no-follow");
  return stdout
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line) as EventView)
    .filter((event) => event.type === "row-rejected")
    .map((event) => event.detail)
    .join("\n");
}

function overlay(host: Host, network: NetworkView): string {
  return join(host.runFolder, "netns", `ov-${network.id}`);
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}
