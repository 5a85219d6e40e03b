import assert from "node:assert/strict";
import { statSync } from "node:fs";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { hostObjects, overlayLinks } from "../observe.ts";
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
    "address-space checksums clock data-path drift duplicate-address fast-path forwarding gossip-tcp gossip-udp kernel keys mtu ports reconciler repairs rows strangers underlay",
  );

  await dropVxlan(node2, "input");
  const pathOf = (report: Doctor): Doctor["checks"][number] | undefined =>
    report.checks.find((check) => check.name === "data-path" && check.subject === "node2");
  // Each side has its own last probe; until both have met the new rule the direction is not certain.
  const blocked = await waitFor("the doctor to know the direction", () => examine(node1), {
    withinMs: 30_000,
    until: ({ report }) => /we hear them, they do not hear us/.test(pathOf(report)?.detail ?? ""),
  });
  assert.equal(blocked.code, 1);
  const path = pathOf(blocked.report);
  assert.match(path?.cure ?? "", /table inet fault, chain input: udp dport 4789 drop" on node2/);
  await node2.run("nft", "delete", "table", "inet", "fault");

  lab.setMtu(node3, 1400);
  const small = await examine(node1);
  assert.equal(small.code, 1);
  assert.match(small.report.checks.find((check) => check.status === "failed")?.cure ?? "", /--mtu 135\d/);
  lab.setMtu(node3, 1500);

  // Another hand: what nobody can take away is repaired, and both are in the events.
  const { id } = await node1.ctlJson<{ id: string }>("network", "inspect", "blue");
  const pin = `${node1.runFolder}/netns/ov-${id}`;
  const take =
    node1.dataplane === "userspace" ? "ip link del gw0" : "ip neigh flush all nud permanent dev vxlan0";
  await node1.exec(["nsenter", `--net=${pin}`, "sh", "-c", take]);
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

scenario("probing and metrics leave nothing behind, after a crash neither", async (lab) => {
  const [node1] = await lab.swarm(1, { flags: ["--metrics-addr", "127.0.0.1:9476"] });
  assert.ok(node1 !== undefined);
  // Nothing is attached, so nothing of ours is in the kernel, until somebody looks.
  assert.deepEqual(await overlayLinks(node1), []);
  assert.equal((await examine(node1)).code, 0);
  const metrics = await node1.run("curl", "-sS", "http://127.0.0.1:9476/metrics");
  assert.match(metrics, /^netagent_members\{state="alive"\} 1$/m);
  assert.match(metrics, /^netagent_info\{node="node1",version="[^"]+"\} 1$/m);
  assert.equal(await node1.httpGet("http://127.0.0.1:9476/healthz"), "ok");
  await node1.crash();
  // The reserved VNI is free again, or a second device with it would be refused.
  await node1.restart();
  await waitFor("a doctor without complaints", () => examine(node1), {
    withinMs: 15_000,
    until: ({ report }) => report.ok,
  });
  assert.equal(await node1.stop(), 0);
  assert.deepEqual(
    (await hostObjects(node1)).filter((one) => !one.startsWith("socket")),
    [],
  );
  const probe = "link add x type vxlan id 16777214 dstport 4789 local 192.168.1.104";
  await waitFor(
    "the reserved VNI to be free",
    async () => (await node1.exec(["ip", ...(probe.split(" ") as [string])])).code,
    {
      withinMs: 5_000,
      until: (code) => code === 0,
    },
  );
});

scenario("a capture into a file ends at its limit, here and from another node", async (lab) => {
  const [node1, node2, node3] = await swarmWithEndpoints(lab);
  const { ip } = await node2.ctlJson<{ ip: string }>("endpoint", "inspect", "node2-box");
  const box = `--net=/run/netns/${node1.netns}-box`;
  const flood = node1.spawn(["nsenter", box, "ping", "-nq", "-i", "0.002", "-s", "1400", ip]);
  const limits = ["--limit-mb", "1"];
  for (const [host, more] of [
    [node1, []],
    [node3, ["--node", "node1"]],
  ] as const) {
    const file = `${host.folder}/bounded.pcap`;
    const capture = host.netctlBackground("capture", "blue", "-w", file, ...limits, ...more);
    await waitFor("the capture to end by itself", () => capture.running, {
      withinMs: 60_000,
      until: (running) => !running,
    });
    const { size } = statSync(file);
    assert.ok(size > 500_000 && size <= 1024 * 1024, `${size} bytes`);
    assert.match(await host.run("tcpdump", "-n", "-c", "5", "-r", file), /ICMP echo re/);
  }
  await flood.stop("SIGKILL");
});

type Trace = { ok: boolean; hops: { node: string; what: string; status: string; detail: string }[] };

scenario(
  "trace names each hop and the first broken one; capture shows and writes inner frames",
  async (lab) => {
    const [node1, node2, node3] = await swarmWithEndpoints(lab);
    const whole = await waitFor("a trace without faults", () => trace(node1, "node1-box", "node2-box"), {
      withinMs: 20_000,
      until: ({ hops }) => hops.every((hop) => hop.status === "ok"),
    });
    assert.equal(
      whole.hops.map((hop) => `${hop.node}: ${hop.what.split(" ")[0] ?? ""}`).join(", "),
      "node1: from, node1: neighbor, node1: FDB, node1: vxlan0,, node1: UDP, node2: vxlan0,, node2: to",
    );
    // The way of two others, asked of them.
    assert.ok((await trace(node3, "node1-box", "node2-box")).ok);

    await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
    const box = lab.sandbox(node2, "web");
    await waitFor("node2 to know the service", () => node2.ctl("service", "ls"), {
      withinMs: 10_000,
      until: (text) => text.includes("web"),
    });
    await node2.ctl(
      "attach",
      "--network",
      "blue",
      "--netns",
      box.netns,
      "--name",
      "web1",
      "--service",
      "web",
    );
    const published = await waitFor(
      "a trace through the published port",
      () => trace(node1, "node1", "node1:8000"),
      { withinMs: 15_000, until: ({ ok, hops }) => ok && hops.some((hop) => hop.what.startsWith("to web1")) },
    );
    assert.ok(published.hops.some((hop) => hop.what.startsWith("nftables")));
    const service = await trace(node1, "node1-box", "web");
    assert.ok(
      service.ok && service.hops.some((hop) => hop.what.startsWith("to web1")),
      JSON.stringify(service),
    );
    assert.equal((await node1.netctl("trace", "node1-box", "nobody")).code, 1);

    const named = await trace(node1, "node1-box", "tasks.web");
    assert.ok(
      named.ok && named.hops.some((hop) => /^name tasks\.web: 10\./.test(hop.what)),
      JSON.stringify(named),
    );

    // A network that node3 is not on: those that are know.
    await node1.ctl("network", "create", "green");
    for (const [host, name] of [
      [node1, "g1"],
      [node2, "g2"],
    ] as const) {
      await waitFor(`${host.name} to know green`, () => host.ctl("network", "ls"), {
        withinMs: 10_000,
        until: (seen) => seen.includes("green"),
      });
      const place = lab.sandbox(host, name);
      const end = ["--netns", place.netns, "--name", name, ...(name === "g2" ? ["--service", "far"] : [])];
      if (name === "g2") await host.ctl("service", "create", "far", "--network", "green");
      await host.ctl("attach", "--network", "green", ...end);
    }
    for (const [to, last] of [
      ["g2", /^to g2,/],
      ["far", /^to g2,/],
    ] as const) {
      await waitFor(`node3 to trace from g1 to ${to}`, () => trace(node3, "g1", to), {
        withinMs: 20_000,
        until: ({ ok, hops }) => ok && last.test(hops.at(-1)?.what ?? ""),
      });
    }

    // What others did is in this node's events, too.
    const told = await node3.ctl("events", "--since", "1h", "--no-follow");
    assert.match(told, / {2}network-created {2}green {2}10\.[0-9./]+, VNI \d+\n/);
    assert.match(told, / {2}service-created {2}web {2}vip, 8000→80\/tcp\n/);
    assert.match(told, / {2}endpoint-attached {2}web1 {2}10\.[0-9.]+ on blue, node2\n/);

    const { ip } = await node2.ctlJson<{ ip: string }>("endpoint", "inspect", "node2-box");
    const file = `${node1.folder}/blue.pcap`;
    const capture = node1.netctlBackground("capture", "blue", "-w", file, "--count", "2", "--filter", "icmp");
    await waitFor(
      "the capture to end",
      async () => (
        await node1.exec(["nsenter", `--net=/run/netns/${node1.netns}-box`, "ping", "-nqc1", "-W1", ip]),
        capture.running
      ),
      {
        withinMs: 15_000,
        until: (running) => !running,
      },
    );
    assert.match(await node1.run("tcpdump", "-n", "-r", file), /ICMP echo request[^]*ICMP echo reply/);

    // The same frames as node1 sees them, asked for on node3.
    const far = `${node3.folder}/far.pcap`;
    const flags = ["--node", "node1", "--count", "2", "--filter", "icmp"];
    const remote = node3.netctlBackground("capture", "blue", "-w", far, ...flags);
    await waitFor(
      "the capture on node1 to end",
      async () => (
        await node1.exec(["nsenter", `--net=/run/netns/${node1.netns}-box`, "ping", "-nqc1", "-W1", ip]),
        remote.running
      ),
      { withinMs: 20_000, until: (running) => !running },
    );
    assert.match(await node3.run("tcpdump", "-n", "-r", far), /ICMP echo request[^]*ICMP echo reply/);
    const nonsense = await node3.netctl("capture", "blue", "--node", "node1", "--filter", "no such filter");
    assert.equal(nonsense.code, 1);
    assert.match(nonsense.stderr, /^netctl: capture on node1: tcpdump: .*\n$/);

    await dropVxlan(node2, "input");
    const cut = await waitFor(
      "the trace to name the underlay",
      () => trace(node1, "node1-box", "node2-box"),
      {
        withinMs: SEEN_MS,
        until: ({ ok }) => !ok,
      },
    );
    assert.match(
      cut.hops.find((hop) => hop.status === "broken")?.what ?? "",
      /^UDP 4789 to 192\.168\.1\.105/,
    );
  },
);

async function trace(host: Host, from: string, to: string): Promise<Trace> {
  const { stdout, stderr } = await host.netctl("-o", "json", "trace", from, to);
  if (stdout === "") throw new Error(stderr);
  return JSON.parse(stdout) as Trace;
}
