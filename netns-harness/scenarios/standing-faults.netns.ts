import assert from "node:assert/strict";
import type { PeerView } from "../../src/agent/control-protocol.ts";
import { breaksAt, complaints, events, headOf, leadsThrough, peerOf, trace } from "../diagnose.ts";
import { attach, httpBackend, kernelAgrees, reaches } from "../endpoints.ts";
import { backendAndPeer, filled, handAt, type Hand } from "../hands.ts";
import type { Host } from "../host.ts";
import { scenario, scenarioOnBoth } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Doctors and traces look at the kernel themselves; the rest is for a busy machine. */
const PATIENCE_MS = 20_000;

interface Fault extends Hand {
  readonly what: string;
  /** What everybody says is wrong. */
  readonly fault: string;
  /** Of the doctor's drift line and of the event. */
  readonly subject: string;
  /** The hop that breaks of the way from `a` to `b`, or to the service; none when it is not on one. */
  readonly hop?: { readonly to: "b" | "web"; readonly what: string; readonly detail?: string };
  /** Whose line of `peers` tells it: the peer's it leads to, or this node's own. */
  readonly peer: "node1" | "node2";
  /** The engine's table is out of reach of other hands. */
  readonly kernelOnly?: true;
}

const FAULTS: readonly Fault[] = [
  {
    what: "an FDB entry deleted",
    where: "overlay",
    hand: "bridge fdb del MAC dev vxlan0 dst VTEP self",
    fault: "the FDB entry of MAC was gone: set fdb MAC → VTEP",
    subject: "blue",
    hop: { to: "b", what: "FDB MAC → VTEP on vxlan0" },
    peer: "node2",
    kernelOnly: true,
  },
  {
    what: "an FDB entry altered to a wrong VTEP",
    where: "overlay",
    hand: "bridge fdb replace MAC dev vxlan0 dst 192.168.1.250 self permanent",
    fault: "the FDB entry of MAC pointed to 192\\.168\\.1\\.250[^:]*: set fdb MAC → VTEP",
    subject: "blue",
    hop: { to: "b", what: "FDB MAC → VTEP on vxlan0" },
    peer: "node2",
    kernelOnly: true,
  },
  {
    what: "a neighbor deleted",
    where: "overlay",
    hand: "ip neigh del IP dev vxlan0",
    fault: "the neighbor IP was gone: set neighbor IP → MAC",
    subject: "blue",
    hop: { to: "b", what: "neighbor IP → MAC" },
    peer: "node2",
    kernelOnly: true,
  },
  {
    what: "a neighbor altered to a wrong MAC",
    where: "overlay",
    hand: "ip neigh replace IP lladdr 02:66:00:00:00:01 dev vxlan0 nud permanent",
    fault: "the neighbor IP pointed to 02:66:00:00:00:01: set neighbor IP → MAC",
    subject: "blue",
    hop: { to: "b", what: "neighbor IP → MAC" },
    peer: "node2",
    kernelOnly: true,
  },
  {
    what: "the network's device with another MTU",
    where: "overlay",
    hand: "ip link set vxlan0 mtu 1000",
    fault: "vxlan0 had MTU 1000: set vxlan vxlan0",
    subject: "blue",
    // Its child has shrunk with it.
    hop: { to: "b", what: "from a, .* on eth0", detail: "eth0 had MTU 1000: set macvlan eth0" },
    peer: "node1",
  },
  {
    what: "the network's device deleted",
    where: "overlay",
    hand: "ip link del vxlan0",
    fault: "vxlan0 was gone: create vxlan vxlan0",
    subject: "blue",
    // Its children went with it.
    hop: { to: "b", what: "from a, .* on eth0", detail: "eth0 was gone: create macvlan eth0" },
    peer: "node1",
  },
  {
    what: "an endpoint's route to its subnet deleted",
    where: "sandbox",
    hand: "ip route del 10.7.0.0/24 dev eth0",
    fault: "eth0 had no route to its subnet: set macvlan eth0",
    subject: "blue",
    hop: { to: "b", what: "from a, .* on eth0" },
    peer: "node1",
  },
  {
    what: "an endpoint's interface taken down",
    where: "sandbox",
    hand: "ip link set eth0 down",
    fault: "eth0 was down: set macvlan eth0",
    subject: "blue",
    hop: { to: "b", what: "from a, .* on eth0" },
    peer: "node1",
  },
  {
    what: "an endpoint's interface deleted",
    where: "sandbox",
    hand: "ip link del eth0",
    fault: "eth0 was gone: create macvlan eth0",
    subject: "blue",
    hop: { to: "b", what: "from a, .* on eth0" },
    peer: "node1",
  },
  {
    what: "the pin of the network's namespace unmounted",
    where: "host",
    hand: "umount -l PIN",
    fault: "the namespace had lost its pin: pin namespace",
    subject: "blue",
    hop: { to: "b", what: "vxlan0, VNI " },
    peer: "node1",
  },
  {
    what: "an element of the mesh's map deleted",
    where: "host",
    hand: "nft flush map inet netagent ports",
    fault: "nftables table netagent: ports lacked 1 element \\(tcp \\. 8000\\): to be added in host",
    subject: "mesh",
    hop: { to: "web", what: "nftables table netagent" },
    peer: "node1",
  },
  {
    what: "a rule of the mesh deleted",
    where: "host",
    hand: "nft delete rule inet netagent prerouting handle $(nft -a list chain inet netagent prerouting | sed -n 's/.*# handle //p' | tail -1)",
    fault:
      "nftables table netagent: chain prerouting had \\d+ rules instead of \\d+: to be made anew in host",
    subject: "mesh",
    hop: { to: "web", what: "nftables table netagent" },
    peer: "node1",
  },
  {
    what: "the mesh's whole table deleted",
    where: "host",
    hand: "nft delete table inet netagent",
    fault: "nftables table netagent: it was gone: to be made anew in host",
    subject: "mesh",
    hop: { to: "web", what: "nftables table netagent" },
    peer: "node1",
  },
  {
    what: "published ports shut out of a FORWARD chain that drops",
    where: "host",
    hand: "iptables-legacy -P FORWARD DROP",
    fault: "the FORWARD chain of iptables lacked our rules, or had too many: to be set in host",
    subject: "mesh",
    hop: { to: "web", what: "nftables table netagent" },
    peer: "node1",
  },
  {
    what: "the filter against strangers deleted",
    where: "host",
    hand: "nft delete table inet netagent-vxlan",
    fault: "nftables table netagent-vxlan: it was gone: to be made anew",
    subject: "netagent-vxlan",
    peer: "node1",
  },
  {
    what: "the redirection to the name server deleted",
    where: "sandbox",
    hand: "nft delete table inet netagent-dns",
    fault: "nftables table netagent-dns: it was gone or not the one we made: to be made anew in /run/netns/",
    subject: "dns",
    peer: "node1",
  },
  {
    what: "the routing rules of a backend's replies deleted",
    where: "backend",
    hand: "while ip rule del priority 110 2>/dev/null; do :; done",
    fault:
      "replies to entry node [0-9.]+ lacked their rule or route: to be led through eth\\d+ in /run/netns/",
    subject: "mesh",
    peer: "node1",
  },
];

scenarioOnBoth(
  "with repair off each fault stands, doctor, peers and trace of both nodes name exactly it, and repair on mends it",
  async (lab) => {
    const swarm = await backendAndPeer(lab);
    const { node1, node2, a, b } = swarm;
    // Rules are not the data plane's: once is enough for them.
    const faults = FAULTS.filter(
      ({ kernelOnly, subject }) =>
        node1.dataplane !== "userspace" || (kernelOnly !== true && subject === "blue"),
    );
    for (const fault of faults) {
      await node1.ctl("repair", "off");
      await kernelAgrees(node1);
      await handAt(swarm, fault);
      const text = new RegExp(filled(swarm, fault.fault));
      const told = await waitFor(`${fault.what} to be told`, () => events(node1, "drift"), {
        withinMs: PATIENCE_MS,
        until: (seen) =>
          seen.some((one) => one.subject === fault.subject && text.test(one.detail.slice(OFF.length))),
        everyMs: 100,
      });
      assert.ok(told.every(({ detail }) => detail.startsWith(OFF)));

      // The doctor of the other node: this fault on that node, that repair is off there, and nothing else.
      // What was mended before is a line of its own each.
      const { checks } = await waitFor("the doctor to name it", () => complaints(node2), {
        withinMs: PATIENCE_MS,
        until: (seen) =>
          [...new Set(seen.checks.map(headOf))].join() === "failed drift node1,warning repairs node1",
      });
      const drift = checks.find(({ name }) => name === "drift");
      assert.match(drift?.detail ?? "", new RegExp(`^${fault.subject}: ${text.source}`), fault.what);
      assert.match(drift?.cure ?? "", /repair on/);
      assert.match((await peerOf(node1, fault.peer))?.faults.join() ?? "", text);
      const other = fault.peer === "node1" ? "node2" : "node1";
      assert.deepEqual(
        (await peerOf(node1, other))?.faults.filter((one) => text.test(one)),
        [],
      );
      if (fault.hop !== undefined) {
        const { to } = fault.hop;
        const what = new RegExp(filled(swarm, `^${fault.hop.what}`));
        const hop = { node: "node1", what, detail: new RegExp(fault.hop.detail ?? text) };
        const broken = await breaksAt(node2, to === "b" ? "a" : "node1", place(to), hop, PATIENCE_MS);
        assert.match(broken.detail, /\(repair is off\)$/);
      }

      const before = await tellings(node1, fault.subject, text);
      const start = performance.now();
      await node1.ctl("repair", "on");
      await waitFor(`${fault.what} to be mended and told`, () => tellings(node1, fault.subject, text), {
        withinMs: PATIENCE_MS,
        until: (now) => now > before,
        everyMs: 50,
      });
      await kernelAgrees(node1);
      console.log(
        `${fault.what}: mended and told ${Math.round(performance.now() - start)} ms after repair on`,
      );
      await reaches(a.place, b.ip);
      assert.deepEqual((await peerOf(node1, "node1"))?.faults, []);
    }
    // A way that was mended is well, and each hop of it says so.
    await leadsThrough(node2, "a", "b", PATIENCE_MS);
    const { hops } = await trace(node2, "a", "b");
    const mended = hops.filter(({ detail }) => /^repaired \d+ s ago: /.test(detail)).map(({ what }) => what);
    for (const hop of faults.flatMap(({ hop: broken }) => (broken?.to === "b" ? [broken.what] : [])))
      assert.ok(
        mended.some((what) => new RegExp(filled(swarm, `^${hop}`)).test(what)),
        `${hop} among ${mended.join()}`,
      );
  },
);

scenario("with repair off what is new is still programmed, and a restart goes by the flag", async (lab) => {
  const swarm = await backendAndPeer(lab);
  const { node1, node2, a, b } = swarm;
  if (node1.dataplane === "userspace") return; // its table is out of reach of other hands
  await node1.ctl("repair", "off");
  await handAt(swarm, FAULTS[0] as Fault);
  const standing = (): Promise<PeerView | undefined> => peerOf(node1, "node2");
  await waitFor("the fault to be told", standing, {
    withinMs: PATIENCE_MS,
    until: (peer) => peer?.faults.length === 1,
  });
  assert.match(await node1.ctl("repair"), /^repair is off\nblue: the FDB entry of \S+ was gone: set fdb /);
  assert.match(await node1.ctl("peers"), /node2 .* drift .*\n[^]*node2: blue: the FDB entry of /);

  // Another endpoint and another backend on either side: they work, and the fault is still there.
  const c = await attach(lab, node1, "blue", "c");
  const d = await attach(lab, node2, "blue", "d");
  await reaches(c.place, d.ip);
  await reaches(a.place, d.ip);
  const second = await httpBackend(lab, node2, "blue", "web", "web.2");
  await reaches(c.place, second.ip);
  assert.equal((await standing())?.faults.length, 1);
  assert.ok(!(await a.place.pings(b.ip)));

  // A restarted agent brings about what it knows, by its flag.
  await node1.crash();
  await node1.restart();
  await reaches(a.place, b.ip);
  assert.match(await node1.ctl("repair"), /^repair is on\n$/);
});

const OFF = "not repaired, repair is off: ";

function place(to: "b" | "web"): string {
  return to === "b" ? "b" : "node1:8000";
}

async function tellings(host: Host, subject: string, fault: RegExp): Promise<number> {
  // What was to be done has been done.
  const done = new RegExp(fault.source.replaceAll("to be ", ""));
  return (await events(host, "repair")).filter((one) => one.subject === subject && done.test(one.detail))
    .length;
}
