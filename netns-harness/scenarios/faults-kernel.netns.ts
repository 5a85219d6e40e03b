import assert from "node:assert/strict";
import { breaksAt, complainsOf, complaints, events, headOf, leadsThrough } from "../diagnose.ts";
import { kernelAgrees, reaches } from "../endpoints.ts";
import { backendAndPeer, filled, handAt, pinOf, type Hand } from "../hands.ts";
import { scenario, scenarioOnBoth } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Repairs come within three seconds and doctors within as many; the rest is for a busy machine. */
const PATIENCE_MS = 20_000;

interface Fault extends Hand {
  readonly what: string;
  /** What event and doctor say: what was wrong, and what was done. */
  readonly told: RegExp;
  readonly subject?: string;
  /** The engine's table is out of reach of other hands. */
  readonly kernelOnly?: true;
}

const FAULTS: readonly Fault[] = [
  {
    what: "an FDB entry deleted",
    where: "overlay",
    hand: "bridge fdb del MAC dev vxlan0 dst VTEP self",
    told: /the FDB entry of MAC was gone: set fdb MAC → VTEP/,
    kernelOnly: true,
  },
  {
    what: "an FDB entry altered",
    where: "overlay",
    hand: "bridge fdb replace MAC dev vxlan0 dst 192.168.1.250 self permanent",
    told: /the FDB entry of MAC pointed to 192\.168\.1\.250[^:]*: set fdb MAC → VTEP/,
    kernelOnly: true,
  },
  {
    what: "a neighbor deleted",
    where: "overlay",
    hand: "ip neigh del IP dev vxlan0",
    told: /the neighbor IP was gone: set neighbor IP → MAC/,
    kernelOnly: true,
  },
  {
    what: "a neighbor altered",
    where: "overlay",
    hand: "ip neigh replace IP lladdr 02:66:00:00:00:01 dev vxlan0 nud permanent",
    told: /the neighbor IP pointed to 02:66:00:00:00:01: set neighbor IP → MAC/,
    kernelOnly: true,
  },
  {
    what: "the route to the subnet deleted",
    where: "sandbox",
    hand: "ip route del 10.7.0.0/24 dev eth0",
    told: /eth0 had no route to its subnet: set macvlan eth0/,
  },
  {
    what: "the route to the subnet altered",
    where: "sandbox",
    hand: "ip route change 10.7.0.0/24 dev lo",
    told: /eth0 had no route to its subnet: set macvlan eth0/,
  },
  {
    what: "an endpoint's interface deleted",
    where: "sandbox",
    hand: "ip link del eth0",
    told: /eth0 was gone: create macvlan eth0/,
  },
  {
    what: "an endpoint's interface taken down",
    where: "sandbox",
    hand: "ip link set eth0 down",
    told: /eth0 was down: set macvlan eth0/,
  },
  {
    what: "the network's device deleted",
    where: "overlay",
    hand: "ip link del vxlan0",
    told: /vxlan0 was gone: create vxlan vxlan0/,
  },
  {
    what: "the pin of the network's namespace removed",
    where: "host",
    // The agent may be faster than the second of the two.
    hand: "umount -l PIN; rm PIN 2>/dev/null || :",
    told: /the namespace had lost its pin: pin namespace/,
  },
  {
    what: "the pin of the network's namespace unmounted",
    where: "host",
    hand: "umount -l PIN",
    told: /the namespace had lost its pin: pin namespace/,
  },
  {
    what: "a rule of the mesh deleted",
    where: "host",
    hand: "nft delete rule inet netagent prerouting handle $(nft -a list chain inet netagent prerouting | sed -n 's/.*# handle //p' | tail -1)",
    told: /nftables table netagent: chain prerouting had \d+ rules instead of \d+: made anew in host/,
    subject: "mesh",
  },
  {
    what: "a published port taken out of the mesh's map",
    where: "host",
    hand: "nft flush map inet netagent ports",
    told: /nftables table netagent: ports lacked 1 element \(tcp \. 8000\): added in host/,
    subject: "mesh",
  },
  {
    what: "the mesh's whole table deleted",
    where: "host",
    hand: "nft delete table inet netagent",
    told: /nftables table netagent: it was gone: made anew in host/,
    subject: "mesh",
  },
  {
    what: "the table of a sandbox deleted",
    where: "backend",
    hand: "nft delete table inet netagent",
    told: /nftables table netagent: it was gone: made anew in \/run\/netns\//,
    subject: "mesh",
  },
  {
    what: "the filter against strangers deleted",
    where: "host",
    hand: "nft delete table inet netagent-vxlan",
    told: /nftables table netagent-vxlan: it was gone: made anew/,
    subject: "netagent-vxlan",
  },
  {
    what: "the routing rules of a backend's replies deleted",
    where: "backend",
    hand: "while ip rule del priority 110 2>/dev/null; do :; done",
    told: /replies to entry node [0-9.]+ lacked their rule or route: led through eth\d+ in \/run\/netns\//,
    subject: "mesh",
  },
  {
    what: "forwarding switched off",
    where: "host",
    hand: "sysctl -qw net.ipv4.ip_forward=0",
    told: /sysctl net\/ipv4\/ip_forward was 0: set to 1 in host/,
    subject: "mesh",
  },
];

scenarioOnBoth(
  "what is broken in the kernel is repaired, and event and doctor of another node tell exactly that",
  async (lab) => {
    const swarm = await backendAndPeer(lab);
    const { node1, node2, a, b } = swarm;
    await complainsOf(node2, [], PATIENCE_MS);
    const faults = FAULTS.filter(({ kernelOnly }) => kernelOnly !== true || node1.dataplane !== "userspace");
    for (const fault of faults) {
      await kernelAgrees(node1);
      const told = new RegExp(filled(swarm, fault.told.source));
      const tellings = async (): Promise<number> =>
        (await events(node1, "repair")).filter(
          ({ subject, detail }) => subject === (fault.subject ?? "blue") && told.test(detail),
        ).length;
      const before = await tellings();
      const start = performance.now();
      await handAt(swarm, fault);
      await waitFor(`${fault.what} to be repaired and told`, tellings, {
        withinMs: PATIENCE_MS,
        until: (now) => now > before,
        everyMs: 100,
      });
      console.log(`${fault.what}: repaired and told within ${Math.round(performance.now() - start)} ms`);
      await kernelAgrees(node1);
      await reaches(a.place, b.ip);
      // Asked from the other node: nothing but repairs of node1, the latest of them this one.
      const { code, checks } = await complaints(node2);
      assert.equal(code, 0, JSON.stringify(checks));
      assert.deepEqual([...new Set(checks.map(headOf))], ["warning repairs node1"], fault.what);
      assert.ok(
        checks.some(({ detail }) => told.test(detail)),
        `${fault.what}: ${JSON.stringify(checks.map(({ detail }) => detail))}`,
      );
    }
  },
);

scenario("while something stays broken doctor and trace name it, and nothing else", async (lab) => {
  const { node1, node2, a, b, blue } = await backendAndPeer(lab);
  await leadsThrough(node2, "a", "b", PATIENCE_MS);
  await complainsOf(node2, [], PATIENCE_MS);

  // Somebody renames the interface and puts another one in its place: that is not ours to delete.
  const rename = "link set eth0 down\nlink set eth0 name stolen\nlink add eth0 type bridge\n";
  await a.place.run("sh", "-c", `printf '${rename}' | ip -batch -`);
  await breaksAt(
    node2,
    "a",
    "b",
    { node: "node1", what: /^from a, .* on eth0$/, detail: /^stolen was called so instead of eth0/ },
    PATIENCE_MS,
  );
  // Before it was renamed the agent may have found it down, and mended that.
  const { checks: stolen } = await waitFor("the doctor to name both sides of it", () => complaints(node2), {
    withinMs: PATIENCE_MS,
    until: ({ checks }) => {
      const heads = new Set(checks.map(headOf));
      heads.delete("warning repairs node1");
      return [...heads].sort().join() === "failed drift node1,failed reconciler node1";
    },
  });
  assert.match(stolen.find(({ name }) => name === "drift")?.detail ?? "", /^blue: stolen was called so/);
  assert.match(stolen.find(({ name }) => name === "reconciler")?.detail ?? "", /EEXIST/);
  await a.place.run("ip", "link", "del", "eth0");
  await leadsThrough(node2, "a", "b", PATIENCE_MS);
  await reaches(a.place, b.ip);

  // Somebody takes an entry away again and again: each time it is back before anybody can look, and it is counted.
  if (node1.dataplane === "userspace") return;
  const loop = `while :; do bridge fdb del ${b.mac} dev vxlan0 dst ${node2.address} self 2>/dev/null; done`;
  const hand = node1.spawn(["nsenter", `--net=${pinOf(node1, blue)}`, "sh", "-c", loop]);
  await waitFor("the doctor to count the repairs", () => complaints(node2), {
    withinMs: PATIENCE_MS,
    until: ({ checks }) =>
      checks.some(({ name, detail }) => name === "repairs" && /was gone: .*; \d+ times, /.test(detail)),
  });
  await hand.stop("SIGKILL");
  await leadsThrough(node2, "a", "b", PATIENCE_MS);
});
