/** Three real serf agents and three netagents as one cluster: each side sees of the other what its own kind would. */

import assert from "node:assert/strict";
import type { NetworkView, PeerView } from "../../src/agent/control-protocol.ts";
import { attach, reaches, stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { SerfAgent, type SerfMember, type SerfOptions } from "../serf.ts";
import { holds, waitFor } from "../wait.ts";

/** How long a quiet cluster is watched: several probes of every member by every other. */
const QUIET_MS = 20_000;
const SERF_KEY = "T9jncgl9mbLus+baTTa7q7nPSUrXwbDi2dhbtqir37s=";
const OTHER_KEY = "5K9OtfP7efFrNKe5WCQvXvnaXJ5cWP0SvXiwe0kkjM4=";

/** A serf agent that missed a broadcast learns it from its next push/pull, half a minute later at most. */
const SPREAD_MS = 75_000;

scenario(
  "serf agents and netagents live together, with events and queries, and nobody is suspected",
  async (lab) => {
    const { serfs, agents } = await mixed(lab);
    const [first] = serfs;
    const [agent] = agents;
    assert.ok(first && agent);
    for (let round = 0; round < 20; round++) await first.event(`deploy${round}`, "x".repeat(200));
    for (let round = 0; round < 3; round++) assert.match(await first.query("load"), /Total Acks: 3/);
    await quiet(serfs, agents);
    // Told to be gone by somebody else, a netagent says that it lives.
    const member = (await first.members()).find(({ tags }) => tags["name"] === agent.name);
    assert.ok(member);
    await first.forceLeave(member.name);
    await holdsAlive(serfs, agent);
  },
);

scenario("an encrypted mixed cluster works whoever was there first", async (lab) => {
  const { serfs, agents } = await mixed(lab, { key: SERF_KEY });
  const late = await SerfAgent.start(lab.host("serf4", "192.168.1.24"), {
    key: SERF_KEY,
    join: agents.slice(0, 1),
  });
  await allSeeAll([...serfs, late], agents);
  const stranger = lab.host("serf5", "192.168.1.25");
  await assert.rejects(SerfAgent.start(stranger, { key: OTHER_KEY, join: agents.slice(0, 1) }));
  await quiet([...serfs, late], agents, 5_000);
});

scenario("what happens to a serf agent is seen by netagents", async (lab) => {
  const { serfs, agents } = await mixed(lab);
  const [first, second, third] = serfs;
  assert.ok(first && second && third);
  await first.crash();
  await peersSay(agents, first.name, "dead");
  const again = await first.restart();
  await peersSay(agents, first.name, "alive");
  second.signal("SIGSTOP");
  await peersSay(agents, second.name, "dead");
  second.signal("SIGCONT");
  await peersSay(agents, second.name, "alive");
  await third.leave();
  await peersSay(agents, third.name, "left");
  const back = await third.restart();
  await allSeeAll([again, second, back], agents);
});

scenario("what happens to a netagent is seen by serf agents", async (lab) => {
  const { serfs, agents } = await mixed(lab);
  const [first, second, third] = agents;
  assert.ok(first && second && third);
  await first.crash();
  await serfsSay(serfs, first.name, "failed");
  await first.restart();
  await serfsSay(serfs, first.name, "alive");
  second.agent.signal("SIGSTOP");
  await serfsSay(serfs, second.name, "failed");
  second.agent.signal("SIGCONT");
  await serfsSay(serfs, second.name, "alive");
  await third.stop();
  await serfsSay(serfs, third.name, "left");
  // Left, not failed and then left: the intent came first.
  for (const serf of serfs) assert.doesNotMatch(serf.log(), new RegExp(`MemberFailed: .*${third.address}`));
  await third.restart();
  await serfsSay(serfs, third.name, "alive");
  await allSeeAll(serfs, agents);
  assert.deepEqual(causedByUs(serfs), []);
});

scenario("netagents among serf agents have each other's tables at once", async (lab) => {
  const { serfs, agents } = await mixed(lab);
  const [first, second, third] = agents;
  assert.ok(first && second && third);
  await first.ctl("network", "create", "blue", "--subnet", "10.0.5.0/24");
  const here = await attach(lab, first, "blue", "here");
  await waitFor("the network on the second netagent", () => networks(second), {
    withinMs: 5_000,
    until: (names) => names.includes("blue"),
  });
  const there = await attach(lab, second, "blue", "there");
  await reaches(here.place, there.ip, 3_000);
  // One that knows nobody but serf agents learns the tables of netagents it never dialled.
  const late = lab.host("node4", "192.168.1.16");
  await late.start({ flags: ["--compat", "serf"], join: serfs.slice(0, 1).map((serf) => serf.host) });
  await waitFor("the network on the newcomer", () => networks(late), {
    withinMs: 5_000,
    until: (names) => names.includes("blue"),
  });
  const newcomer = await attach(lab, late, "blue", "newcomer");
  await reaches(newcomer.place, here.ip, 3_000);
  await reaches(there.place, newcomer.ip, 3_000);
  assert.deepEqual(causedByUs(serfs), []);
});

/** serf1 … serf3 and node1 … node3; the first netagent joins serf, the last serf agent joins a netagent. */
async function mixed(lab: Lab, options: SerfOptions = {}): Promise<{ serfs: SerfAgent[]; agents: Host[] }> {
  const serfHosts = [1, 2, 3].map((number) => lab.host(`serf${number}`, `192.168.1.2${number}`));
  const agents = [1, 2, 3].map((number) => lab.host(`node${number}`, `192.168.1.1${number}`));
  const flags = ["--compat", "serf", ...(options.key === undefined ? [] : ["--gossip-key", options.key])];
  const [serf1, serf2, serf3] = serfHosts;
  const [node1, node2, node3] = agents;
  assert.ok(serf1 && serf2 && serf3 && node1 && node2 && node3);
  const serfs = [await SerfAgent.start(serf1, options)];
  await node1.start({ flags, join: [serf1] });
  await Promise.all([node2.start({ flags, join: [node1] }), node3.start({ flags, join: [serf1] })]);
  serfs.push(
    ...(await Promise.all([
      SerfAgent.start(serf2, { ...options, join: [serf1] }),
      SerfAgent.start(serf3, { ...options, join: [node2] }),
    ])),
  );
  await allSeeAll(serfs, agents);
  return { serfs, agents };
}

async function allSeeAll(serfs: readonly SerfAgent[], agents: readonly Host[]): Promise<void> {
  const names = [...serfs, ...agents].map(({ name }) => name).sort();
  await Promise.all([
    ...serfs.map((serf) =>
      waitFor(`${serf.name} to see all alive`, () => serf.statuses(), {
        withinMs: SPREAD_MS,
        until: (seen) => names.every((name) => seen[name] === "alive"),
      }),
    ),
    ...agents.map((agent) =>
      waitFor(`${agent.name} to see all alive`, () => alive(agent), {
        withinMs: SPREAD_MS,
        until: (seen) => seen.join() === names.join(),
      }),
    ),
  ]);
}

/** For a while nobody is anything but alive, nobody was suspected, nothing was dropped and serf has no complaint. */
async function quiet(
  serfs: readonly SerfAgent[],
  agents: readonly Host[],
  forMs: number = QUIET_MS,
): Promise<void> {
  const names = [...serfs, ...agents].map(({ name }) => name).sort();
  await holds(
    "a quiet cluster",
    async () => {
      const views = await Promise.all([
        ...serfs.map(async (serf) =>
          Object.entries(await serf.statuses())
            .filter(([, status]) => status === "alive")
            .map(([name]) => name)
            .sort(),
        ),
        ...agents.map(alive),
      ]);
      return views.filter((seen) => seen.join() !== names.join());
    },
    { forMs, until: (others) => others.length === 0, everyMs: 1_000 },
  );
  assert.deepEqual(causedByUs(serfs), []);
  for (const serf of serfs) {
    assert.doesNotMatch(serf.log(), /Suspect .* has failed|EventMemberFailed|Refuting/, serf.name);
  }
  for (const agent of agents) assert.doesNotMatch(agent.log(), /is gone|WARN|ERROR/i, agent.name);
}

/** Complaints of serf agents other than about connections to members that are down. */
function causedByUs(serfs: readonly SerfAgent[]): string[] {
  const expected =
    /Failed to send (gossip|ping|indirect)|Failed fallback ping|Suspect|Was able to reach|Failed to reconnect|Refuting|connection refused|i\/o timeout|no acks received|marking as failed/;
  return serfs.flatMap((serf) => serf.complaints()).filter((line) => !expected.test(line));
}

async function peersSay(agents: readonly Host[], name: string, state: PeerView["state"]): Promise<void> {
  await Promise.all(
    agents.map((agent) =>
      waitFor(`${agent.name} to see ${name} ${state}`, () => stateOf(agent, name), {
        withinMs: 40_000,
        until: (seen) => seen === state,
        everyMs: 200,
      }),
    ),
  );
}

async function serfsSay(
  serfs: readonly SerfAgent[],
  name: string,
  status: SerfMember["status"],
): Promise<void> {
  await Promise.all(
    serfs.map((serf) =>
      waitFor(`${serf.name} to see ${name} ${status}`, () => serf.statuses(), {
        withinMs: 60_000,
        until: (seen) => seen[name] === status,
        everyMs: 200,
      }),
    ),
  );
}

async function holdsAlive(serfs: readonly SerfAgent[], agent: Host): Promise<void> {
  for (const serf of serfs) {
    await waitFor(`${serf.name} to see ${agent.name} alive`, () => serf.statuses(), {
      withinMs: 10_000,
      until: (seen) => seen[agent.name] === "alive",
    });
    await holds(`${agent.name} alive for ${serf.name}`, () => serf.statuses(), {
      forMs: 2_000,
      until: (seen) => seen[agent.name] === "alive",
      everyMs: 200,
    });
  }
}

async function alive(agent: Host): Promise<string[]> {
  const peers = await agent.ctlJson<PeerView[]>("peers");
  return peers
    .filter((peer) => peer.state === "alive")
    .map((peer) => peer.name)
    .sort();
}

async function networks(agent: Host): Promise<string[]> {
  return (await agent.ctlJson<NetworkView[]>("network", "ls")).map((network) => network.name);
}
