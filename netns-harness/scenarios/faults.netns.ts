import assert from "node:assert/strict";
import type { NetworkView } from "../../src/agent/control-protocol.ts";
import { breaksAt, complainsOf, complaints, headOf, leadsThrough, peerOf, trace } from "../diagnose.ts";
import { attach, reaches, type Attached } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { scenario, scenarioOnBoth } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** From the fault to the word: a round of ten seconds, three attempts, and a slow machine. */
const PATIENCE_MS = 45_000;

scenarioOnBoth(
  "a filtered data path is named alike by doctor, peers and trace: both ways and one way",
  async (lab) => {
    const [node1, node2] = await joined(lab);
    const broken = { node: "node1", what: /^UDP 4789 to 192\.168\.1\.105/ };

    await dropVxlan(node2, "input");
    await dropVxlan(node2, "output");
    await dataPathOf(node1, "node2", /^blocked nothing gets through in either direction$/);
    const [both] = await complainsOf(node1, ["failed data-path node2"], PATIENCE_MS);
    assert.match(both?.detail ?? "", /nothing gets through in either direction/);
    assert.match(both?.cure ?? "", /table inet fault, chain (in|out)put: udp dport 4789 drop" on node2/);
    await breaksAt(node1, "a", "b", { ...broken, detail: /in either direction/ }, PATIENCE_MS);

    await node2.run("nft", "delete", "table", "inet", "fault");
    await dropVxlan(node2, "input");
    await dataPathOf(node1, "node2", /^blocked one way: we hear them, they do not hear us$/);
    const [one] = await complainsOf(node1, ["failed data-path node2"], PATIENCE_MS);
    assert.match(one?.cure ?? "", /^take out the rule "table inet fault, chain input: .* on node2$/);
    await breaksAt(node1, "a", "b", { ...broken, detail: /we hear them/ }, PATIENCE_MS);

    await node2.run("nft", "delete", "table", "inet", "fault");
    await complainsOf(node1, [], PATIENCE_MS);
    await leadsThrough(node1, "a", "b", PATIENCE_MS);
  },
);

scenarioOnBoth(
  "a narrow underlay is named with the MTU that would work, by doctor, peers and trace",
  async (lab) => {
    const [node1, node2, { a, b }] = await joined(lab);
    lab.setMtu(node2, 1400);
    // The lab's bridge lets four bytes more pass, for a VLAN tag.
    await dataPathOf(node1, "node2", /^ok packets of 1450 bytes are lost, 135\d get through$/);
    assert.ok(await a.place.pings(b.ip), "small packets get through");
    const [mtu] = await complainsOf(node1, ["failed mtu node2"], PATIENCE_MS);
    assert.match(mtu?.cure ?? "", /--mtu 135\d/);
    await breaksAt(
      node1,
      "a",
      "b",
      { node: "node1", what: /135\d bytes fit/, detail: /large transfers hang .*MTU 1450/ },
      PATIENCE_MS,
    );

    // A network made now takes what gets through, also when it is made where nothing is narrow but the way.
    const fitting = await node1.ctlJson<NetworkView>(
      "network",
      "create",
      "fitting",
      "--subnet",
      "10.6.0.0/24",
    );
    assert.match(String(fitting.mtu), /^135\d$/);
    const c = await attach(lab, node1, "fitting", "c");
    const d = await attach(lab, node2, "fitting", "d");
    await reaches(c.place, d.ip);
    const largest = ["ping", "-c", "1", "-W", "5", "-M", "do", "-s", String(fitting.mtu - 28), d.ip] as const;
    assert.equal((await c.place.exec([...largest])).code, 0, "packets of its MTU get through");
    await leadsThrough(node1, "c", "d", PATIENCE_MS);

    lab.setMtu(node2, 1500);
    await complainsOf(node1, [], PATIENCE_MS);
    await leadsThrough(node1, "a", "b", PATIENCE_MS);
  },
);

scenarioOnBoth("a stopped agent is one fault by its name, and no command fails of it", async (lab) => {
  const [node1, node2] = await joined(lab);
  node2.agent.signal("SIGSTOP");
  const named = await waitFor("the doctor to name node2", () => node1.netctl("-o", "json", "doctor"), {
    withinMs: PATIENCE_MS,
    until: ({ stdout }) =>
      /"(gossip-udp|gossip-tcp)","subject":"node2[^"]*","status":"failed"/.test(compact(stdout)),
  });
  assert.equal(named.code, 1);
  const checks = (JSON.parse(named.stdout) as { checks: Parameters<typeof headOf>[0][] }).checks;
  for (const check of checks.filter(({ status }) => status !== "ok"))
    assert.match(headOf(check), /^(failed|warning) gossip-(udp|tcp) node2$/);
  // What its part of the way is like nobody can say; ours is well.
  const { hops } = await trace(node1, "a", "b");
  assert.ok(
    hops.some(({ node, status }) => node === "node2" && status === "unknown"),
    JSON.stringify(hops),
  );
  await waitFor("peers to hold node2 for dead", () => peerOf(node1, "node2"), {
    withinMs: PATIENCE_MS,
    until: (peer) => peer?.state === "dead",
  });
  const suspicions = await node1.ctl("events", "--since", "1h", "--no-follow");
  assert.match(suspicions, / {2}member-suspected {2}node2 {2}accused by node1/);
  node2.agent.signal("SIGCONT");
  await complainsOf(node1, [], PATIENCE_MS);
  await leadsThrough(node1, "a", "b", PATIENCE_MS);
});

scenario("a route of the underlay that leads nowhere is named, on the host that has it", async (lab) => {
  const [node1] = await joined(lab);
  await node1.run("ip", "route", "add", "blackhole", "192.168.1.105");
  const { checks } = await waitFor("the doctor to name the route", () => complaints(node1), {
    withinMs: PATIENCE_MS,
    until: (seen) => seen.checks.map(headOf).includes("failed underlay node2"),
  });
  const underlay = checks.find(({ name }) => name === "underlay");
  assert.match(underlay?.detail ?? "", /^this host has no way to 192\.168\.1\.105: /);
  assert.match(underlay?.cure ?? "", /^ip route get 192\.168\.1\.105 /);
  await node1.run("ip", "route", "del", "blackhole", "192.168.1.105");
  await complainsOf(node1, [], PATIENCE_MS);
});

scenario("one address in two hands is named with both of them", async (lab) => {
  const [node1, node2] = await joined(lab);
  // Each node may give from a range of its own of a network that somebody else defines. These two overlap.
  const theirs = ["--external", "--id", "theirs0network1of2somebod", "--vni", "4242"];
  for (const [node, name] of [
    [node1, "c"],
    [node2, "d"],
  ] as const) {
    await node.ctl("network", "create", "theirs", ...theirs, "--subnet", "10.9.0.0/24");
    const box = lab.sandbox(node, name);
    const flags = ["--netns", box.netns, "--name", name, "--ip", "10.9.0.5"];
    await node.ctl("attach", "--network", "theirs", ...flags);
  }
  // Each of the two leaves the other's row out, and says so.
  const heads = ["failed duplicate-address networks", "failed rows node1", "failed rows node2"];
  const checks = await complainsOf(node1, heads, PATIENCE_MS);
  const twice = checks.find(({ name }) => name === "duplicate-address");
  assert.match(twice?.detail ?? "", /^10\.9\.0\.5 on theirs: .* on node1 and .* on node2$/);
  const refused = await node1.netctl("trace", "c", "10.9.0.5");
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /'10\.9\.0\.5' could be c on node1 .* or d on node2/);
  await node2.ctl("detach", "d");
  await complainsOf(node1, [], PATIENCE_MS);
});

scenario(
  "an address space is warned about before it is full, and key rings that differ are named",
  async (lab) => {
    const nodes = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")] as const;
    const [node1, node2] = nodes;
    const [sealing, second] = [1, 2].map((number) => Buffer.alloc(32, number).toString("base64"));
    assert.ok(sealing !== undefined && second !== undefined);
    await node1.start({ flags: ["--gossip-key", sealing] });
    await node2.start({ flags: ["--gossip-key", sealing, "--gossip-key", second], join: [node1] });
    const [ring] = await complainsOf(node1, ["failed keys node2"], PATIENCE_MS);
    assert.match(ring?.detail ?? "", /^has (\S+) (\S+), node1 has \1: node1 lacks \2$/);
    assert.match(ring?.cure ?? "", /netctl keys install/);
    assert.ok(!JSON.stringify(ring).includes(second), "a key is never shown");
    await node1.ctl("keys", "install", second);
    await complainsOf(node1, [], PATIENCE_MS);

    // 13 addresses beside the gateway, of which 11 are more than 80 %.
    await node1.ctl("network", "create", "small", "--subnet", "10.8.0.0/28");
    const box = lab.sandbox(node1, "box");
    const attachNext = async (index: number): Promise<void> =>
      void (await node1.ctl("attach", "--network", "small", "--netns", box.netns, "--ifname", `e${index}`));
    for (let index = 0; index < 10; index++) await attachNext(index);
    await complainsOf(node1, [], PATIENCE_MS);
    await attachNext(10);
    const [tight] = await complainsOf(node1, ["warning address-space small"], PATIENCE_MS);
    assert.match(tight?.detail ?? "", /^11 of 13 addresses are used \(84 %\)$/);
    await attachNext(11);
    await attachNext(12);
    await complainsOf(node1, ["failed address-space small"], PATIENCE_MS);
  },
);

async function joined(lab: Lab): Promise<[Host, Host, { readonly a: Attached; readonly b: Attached }]> {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  await complainsOf(node1, [], PATIENCE_MS);
  await leadsThrough(node1, "a", "b", PATIENCE_MS);
  return [node1, node2, { a, b }];
}

async function dataPathOf(host: Host, name: string, wanted: RegExp): Promise<void> {
  await waitFor(
    `${host.name} to see the data path to ${name} as ${wanted.source}`,
    () => peerOf(host, name),
    {
      withinMs: PATIENCE_MS,
      until: (peer) => wanted.test(`${peer?.dataPath} ${peer?.dataPathDetail}`),
      everyMs: 300,
    },
  );
}

/** A firewall that somebody else put up. */
async function dropVxlan(host: Host, direction: "input" | "output"): Promise<void> {
  await host.run("nft", "add table inet fault");
  await host.run("nft", `add chain inet fault ${direction} { type filter hook ${direction} priority 0; }`);
  await host.run("nft", `add rule inet fault ${direction} udp dport 4789 drop`);
}

function compact(json: string): string {
  return JSON.stringify(JSON.parse(json));
}
