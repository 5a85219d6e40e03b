import assert from "node:assert/strict";
import type { NetworkView } from "../../src/agent/control-protocol.ts";
import { complainsOf, complaints, events, headOf, type Check } from "../diagnose.ts";
import { attach, httpBackend, kernelAgrees, reaches, type Attached } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { scenario, scenarioOnBoth } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** From the fault to the word: a round of ten seconds, three attempts, and a slow machine. */
const PATIENCE_MS = 45_000;

scenario("a rule of legacy iptables that drops our packets is named as the cause", async (lab) => {
  const [node1, node2] = await joined(lab);
  const drop = ["INPUT", "-p", "udp", "--dport", "4789", "-j", "DROP"] as const;
  await node2.run("iptables-legacy", "-A", ...drop);
  const path = await namedBy(node1, "data-path", /^failed data-path node2$/);
  assert.equal(
    path.cure,
    'take out the rule "iptables-legacy table filter, chain INPUT: -p udp -m udp --dport 4789 -j DROP" on node2',
  );
  await node2.run("iptables-legacy", "-D", ...drop);
  await complainsOf(node1, [], PATIENCE_MS);
});

scenario(
  "a FORWARD chain that drops is opened for the mesh, and opened again when somebody closes it",
  async (lab) => {
    const [node1, node2] = await joined(lab);
    await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
    await httpBackend(lab, node2, "blue", "web", "web.1");
    const client = lab.client();
    const answers = (): Promise<string | undefined> => client.httpGet(`http://${node1.address}:8000/`);
    for (const iptables of ["iptables-nft", "iptables-legacy"]) {
      await node1.run(iptables, "-P", "FORWARD", "DROP");
      await waitFor(`an answer in spite of ${iptables}`, answers, { withinMs: PATIENCE_MS });
      await waitFor("the rules of ours", () => node1.run(iptables, "-S", "FORWARD"), {
        withinMs: PATIENCE_MS,
        until: (rules) => rules.split("netagent routing mesh").length === 3,
      });
      const told = async (): Promise<number> =>
        (await events(node1, "repair")).filter(({ detail }) => /FORWARD chain of iptables/.test(detail))
          .length;
      const before = await told();
      await node1.run(iptables, "-F", "FORWARD");
      await waitFor("the repair to be told", told, { withinMs: PATIENCE_MS, until: (now) => now > before });
      await waitFor("an answer again", answers, { withinMs: PATIENCE_MS });
      // Looked after by the agent, so nobody else needs to do anything.
      const { checks } = await complaints(node1);
      assert.deepEqual([...new Set(checks.map(headOf))], ["warning repairs node1"]);
      await node1.run(iptables, "-P", "FORWARD", "ACCEPT");
    }
  },
);

scenarioOnBoth("wrong checksums are told from a filter, outside and inside, with the cure", async (lab) => {
  const [node1, node2, { a, b }] = await joined(lab);
  // A veth lets checksums be filled in by nobody, and takes them for right: as a card on a wire these do not.
  for (const node of [node1, node2]) await node.run("ethtool", "-K", "eth0", "rx", "off", "tx", "off");
  // As a card does that miscalculates: the outer packets of node2 leave with a checksum that is not theirs.
  await mangle(node2, "udp dport 4789 udp checksum set 0xdead");
  const outer = await waitFor(
    "the doctor to count them",
    async () => (
      await b.place.exec(["ping", "-nq", "-c", "20", "-i", "0.01", "-W", "1", a.ip]),
      complaints(node1)
    ),
    {
      withinMs: PATIENCE_MS,
      until: ({ checks }) => checks.some(({ name, subject }) => name === "checksums" && subject === "node1"),
    },
  );
  const seen = outer.checks.find(({ name }) => name === "checksums");
  assert.match(
    seen?.detail ?? "",
    /^\d+ packets with a wrong UDP or TCP checksum came in the last ten minutes \(host\)$/,
  );
  // The card of node2 is not at it here: what it would be left to do is switched off.
  assert.match(seen?.cure ?? "", /^no card that sends is left to calculate them: /);
  await node2.run("ethtool", "-K", "eth0", "tx", "on");
  const { checks: on } = await complaints(node1);
  assert.match(
    on.find(({ name }) => name === "checksums")?.cure ?? "",
    /: ethtool -K eth0 tx off on node2, where tx-checksum-ip-generic is on$/,
  );
  await node2.run("ethtool", "-K", "eth0", "tx", "off");
  // The probes are dropped as well, and no firewall is suspected of it.
  const path = await waitFor("the doctor to see that way blocked", () => complaints(node1), {
    withinMs: PATIENCE_MS,
    until: ({ checks }) => checks.some(({ name, subject }) => name === "data-path" && subject === "node2"),
  });
  const blocked = path.checks.find(({ name }) => name === "data-path");
  assert.match(blocked?.detail ?? "", /one way: they hear us, we do not hear them/);
  assert.match(blocked?.cure ?? "", /^packets come with wrong checksums: /);
  await node2.run("nft", "delete", "table", "inet", "fault");

  // And inside: what an endpoint sends is wrong when it has to be right by itself.
  await a.place.run("ethtool", "-K", "eth0", "tx", "off");
  await mangle(a.place, "udp dport 9 udp checksum set 0xdead");
  await b.place.serveUdp(9, "b");
  const inner = await waitFor(
    "the doctor to count those inside",
    async () => {
      await a.place.exec(["sh", "-c", `for i in $(seq 20); do echo x | socat -u - UDP:${b.ip}:9; done`]);
      return complaints(node2);
    },
    {
      withinMs: PATIENCE_MS,
      until: ({ checks }) =>
        checks.some(
          ({ name, subject, detail }) =>
            name === "checksums" && subject === "node2" && detail.includes(b.place.netnsPath),
        ),
    },
  );
  assert.equal(inner.code, 1);
});

async function joined(lab: Lab): Promise<[Host, Host, { readonly a: Attached; readonly b: Attached }]> {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctlJson<NetworkView>("network", "create", "blue", "--subnet", "10.7.0.0/24");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  for (const node of [node1, node2]) await kernelAgrees(node);
  await complainsOf(node1, [], PATIENCE_MS);
  return [node1, node2, { a, b }];
}

async function namedBy(host: Host, name: string, head: RegExp): Promise<Check> {
  const { checks } = await waitFor(`the doctor to complain of ${name}`, () => complaints(host), {
    withinMs: PATIENCE_MS,
    until: (seen) => seen.checks.length === 1 && head.test(headOf(seen.checks[0] as Check)),
  });
  return checks[0] as Check;
}

async function mangle(at: Attached["place"], rule: string): Promise<void> {
  await at.run("nft", "add table inet fault");
  await at.run("nft", "add chain inet fault output { type filter hook output priority 0; }");
  await at.run("nft", `add rule inet fault output ${rule}`);
}
