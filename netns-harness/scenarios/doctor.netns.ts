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
