import assert from "node:assert/strict";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

type Peer = { name: string; self: boolean; dataPath: string; dataPathDetail: string; mtu: number | null };

/** From the fault to the word: a round of ten seconds, three attempts, and a slow machine. */
const SEEN_MS = 30_000;

scenario(
  "the data path to each peer is probed: blocked, one-way and small MTU are seen and named",
  async (lab) => {
    const [node1, node2, node3] = await swarmWithEndpoints(lab);
    await pathsOf(node1, "ok/1450/ ok/1450/");
    await pathsOf(node3, "ok/1450/ ok/1450/");

    await dropVxlan(node2, "input");
    await pathsOf(node2, /^(blocked\/null\/one way: they hear us, we do not hear them ?){2}$/);
    await pathsOf(node1, /^blocked\/null\/one way: we hear them, they do not hear us ok\/1450\/$/);
    await dropVxlan(node2, "output");
    await pathsOf(node1, /^blocked\/null\/nothing gets through in either direction ok\/1450\/$/);
    await node2.run("nft", "delete", "table", "inet", "fault");
    await pathsOf(node2, "ok/1450/ ok/1450/");

    // The lab's bridge lets four bytes more pass, for a VLAN tag.
    lab.setMtu(node3, 1400);
    await pathsOf(node1, /^ok\/1450\/ ok\/135\d\/packets of 1450 bytes are lost, 135\d get through$/);
    await pathsOf(node3, "ok/1350/ ok/1350/");
    lab.setMtu(node3, 1500);
    await pathsOf(node1, "ok/1450/ ok/1450/");
  },
);

async function swarmWithEndpoints(lab: Lab): Promise<[Host, Host, Host]> {
  const hosts = (await lab.swarm(3)) as [Host, Host, Host];
  await hosts[0].ctl("network", "create", "blue");
  for (const host of hosts) {
    await waitFor(`${host.name} to know blue`, () => host.ctl("network", "ls"), {
      withinMs: 10_000,
      until: (text) => text.includes("blue"),
    });
    const box = lab.sandbox(host, "box");
    await host.ctl("attach", "--network", "blue", "--netns", box.netns, "--name", `${host.name}-box`);
  }
  return hosts;
}

/** Waits until the host sees its peers' data paths so, by name: `STATE/MTU/DETAIL` each. */
async function pathsOf(host: Host, wanted: string | RegExp): Promise<void> {
  await waitFor(
    `${host.name} to see ${String(wanted)}`,
    async () => {
      const peers = await host.ctlJson<Peer[]>("peers");
      return peers
        .filter((peer) => !peer.self)
        .map((peer) => `${peer.dataPath}/${peer.mtu}/${peer.dataPathDetail}`)
        .join(" ");
    },
    {
      withinMs: SEEN_MS,
      everyMs: 300,
      until: (seen) => (typeof wanted === "string" ? seen === wanted : wanted.test(seen)),
    },
  );
}

/** A firewall that somebody else put up. */
async function dropVxlan(host: Host, direction: "input" | "output"): Promise<void> {
  await host.run("nft", "add table inet fault");
  await host.run("nft", `add chain inet fault ${direction} { type filter hook ${direction} priority 0; }`);
  await host.run("nft", `add rule inet fault ${direction} udp dport 4789 drop`);
}

type Doctor = {
  ok: boolean;
  checks: { name: string; subject: string; status: string; detail: string; cure?: string }[];
};

scenario("the doctor finds all well, and names each fault with its cure and exit code 1", async (lab) => {
  const [node1, node2, node3] = await swarmWithEndpoints(lab);
  const well = await waitFor("a doctor without complaints", () => examine(node1), {
    withinMs: 20_000,
    until: ({ report }) => report.checks.every((check) => check.status === "ok"),
  });
  assert.equal(well.code, 0);
  assert.deepEqual(
    [...new Set(well.report.checks.map((check) => check.name))].sort().join(" "),
    "address-space clock data-path drift duplicate-address forwarding gossip-tcp gossip-udp kernel keys mtu ports reconciler",
  );

  await dropVxlan(node2, "input");
  const blocked = await examine(node1);
  assert.equal(blocked.code, 1);
  const path = blocked.report.checks.find((check) => check.name === "data-path" && check.subject === "node2");
  assert.match(path?.detail ?? "", /we hear them, they do not hear us/);
  assert.match(path?.cure ?? "", /UDP port 4789 through towards node2/);
  await node2.run("nft", "delete", "table", "inet", "fault");

  lab.setMtu(node3, 1400);
  const small = await examine(node1);
  assert.equal(small.code, 1);
  assert.match(small.report.checks.find((check) => check.status === "failed")?.cure ?? "", /--mtu 135\d/);
  lab.setMtu(node3, 1500);

  // Another hand: an entry that nobody can take away is repaired, and both are in the events.
  const { id } = await node1.ctlJson<{ id: string }>("network", "inspect", "blue");
  const pin = `${node1.runFolder}/netns/ov-${id}`;
  await node1.exec(["nsenter", `--net=${pin}`, "sh", "-c", "ip neigh flush all nud permanent dev vxlan0"]);
  await waitFor("the repair", () => node1.ctl("events", "--since", "1m", "--no-follow"), {
    withinMs: 10_000,
    until: (events) => /repair {2}blue/.test(events),
  });
  const healed = await waitFor("a doctor without complaints", () => examine(node2), {
    withinMs: 20_000,
    until: ({ report }) => report.ok,
  });
  assert.equal(healed.code, 0);
});

async function examine(host: Host): Promise<{ code: number | null; report: Doctor }> {
  const { code, stdout } = await host.netctl("-o", "json", "doctor");
  return { code, report: JSON.parse(stdout) as Doctor };
}
