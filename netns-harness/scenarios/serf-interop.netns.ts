/** Three real serf agents and three netagents as one cluster: each side sees of the other what its own kind would. */

import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import type { EventView, NetworkView, PeerView } from "../../src/agent/control-protocol.ts";
import { attach, reaches, stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { Lab } from "../lab.ts";
import { scenario } from "../scenario.ts";
import { SerfAgent, type SerfMember, type SerfOptions } from "../serf.ts";
import { holds, waitFor } from "../wait.ts";

/** How long quiet clusters are watched (s); everything else here happens meanwhile, elsewhere. */
const WATCH_S = Number(process.env["SERF_WATCH_S"] ?? 75);
const SERF_KEY = "T9jncgl9mbLus+baTTa7q7nPSUrXwbDi2dhbtqir37s=";
const OTHER_KEY = "5K9OtfP7efFrNKe5WCQvXvnaXJ5cWP0SvXiwe0kkjM4=";

/** A serf agent that missed a broadcast learns it from its next push/pull, half a minute later at most. */
const SPREAD_MS = 75_000;

scenario(
  "serf agents and netagents live together, plain and encrypted, and nobody is suspected",
  async (lab) => {
    await using sealedLab = Lab.create();
    await using stormyLab = Lab.create();
    const plain = await mixed(lab);
    const sealed = await mixed(sealedLab, { key: SERF_KEY });
    const watched = Promise.all([plain, sealed].map((cluster) => quiet(cluster, WATCH_S * 1_000)));
    await Promise.all([watched, chatter(plain), knocking(sealedLab, sealed), comingAndGoing(stormyLab)]);
    for (const cluster of [plain, sealed]) await allSeeAll(cluster);
    for (const peer of (await plain.agents[0]?.ctlJson<PeerView[]>("peers")) ?? [])
      assert.equal(typeof peer.rttMs, peer.self ? "object" : "number", `round trip to ${peer.name}`);
    // Told to be gone by somebody else, a netagent says that it lives.
    const [first] = plain.serfs;
    const [agent] = plain.agents;
    assert.ok(first && agent);
    const member = (await first.members()).find(({ tags }) => tags["name"] === agent.name);
    assert.ok(member);
    await first.forceLeave(member.name);
    await holdsAlive(plain.serfs, agent);
  },
);

/** Events and queries: netagents pass them on and acknowledge the latter. */
async function chatter({ serfs }: Mixed): Promise<void> {
  const [first, , third] = serfs;
  assert.ok(first && third);
  for (let round = 0; round < 20; round++) await first.event(`deploy${round}`, "x".repeat(200));
  // Gossip is not obliged to reach everybody within the second that a query lasts.
  await waitFor("a query to reach all six", () => first.query("load"), {
    withinMs: 30_000,
    until: (output) => output.includes("Total Acks: 6"),
  });
  // Between the two are members that only pass it on.
  await waitFor("the last event at the farthest serf agent", () => third.log(), {
    withinMs: 10_000,
    until: (log) => log.includes("deploy19"),
  });
}

/** Of an encrypted cluster: who has the key gets in through either kind, who has not stays outside; serf's key queries. */
async function knocking(lab: Lab, { serfs, agents }: Mixed): Promise<void> {
  const [seed] = agents;
  const [first] = serfs;
  assert.ok(seed && first);
  const stranger = lab.host("serf5", "192.168.1.25");
  await assert.rejects(SerfAgent.start(stranger, { key: OTHER_KEY, join: [seed] }));
  const { code, output } = await first.keys("-list");
  assert.equal(code, 0, output);
  assert.match(output, /T9jncgl9mbLus\S+ +\[6\/6\]/);
  // Of theirs netagents change keys themselves only, and say so.
  assert.match((await first.keys("-install", OTHER_KEY)).output, /netctl keys/);
  for (const serf of serfs) {
    const alive = (await serf.members()).filter(({ status }) => status === "alive");
    assert.equal(alive.length, 6, serf.name);
  }
}

/** What happens to a member of one kind is seen by those of the other: killed, stopped, restarted, gone by itself. */
async function comingAndGoing(lab: Lab): Promise<void> {
  const cluster = await mixed(lab);
  const { serfs, agents } = cluster;
  const [serf1, serf2, serf3] = serfs;
  const [node1, node2, node3] = agents;
  assert.ok(serf1 && serf2 && serf3 && node1 && node2 && node3);
  // One of each kind at a time: two of six are down, and each is seen by the other two of the other kind.
  await Promise.all([serf1.crash(), node1.crash()]);
  await Promise.all([peersSay([node2, node3], "serf1", "dead"), serfsSay([serf2, serf3], "node1", "failed")]);
  const [serf1Again] = await Promise.all([serf1.restart(), node1.restart()]);
  await Promise.all([peersSay(agents, "serf1", "alive"), serfsSay([serf2, serf3], "node1", "alive")]);
  serf2.signal("SIGSTOP");
  node2.agent.signal("SIGSTOP");
  await Promise.all([
    peersSay([node1, node3], "serf2", "dead"),
    serfsSay([serf1Again, serf3], "node2", "failed"),
  ]);
  serf2.signal("SIGCONT");
  node2.agent.signal("SIGCONT");
  await Promise.all([
    peersSay(agents, "serf2", "alive"),
    serfsSay([serf1Again, serf2, serf3], "node2", "alive"),
  ]);
  await Promise.all([serf3.leave(), node3.stop()]);
  await Promise.all([
    peersSay([node1, node2], "serf3", "left"),
    serfsSay([serf1Again, serf2], "node3", "left"),
  ]);
  // Left, not failed and then left: the intent came first.
  for (const serf of [serf1Again, serf2])
    assert.doesNotMatch(serf.log(), new RegExp(`MemberFailed: .*${node3.address}`));
  const [serf3Again] = await Promise.all([serf3.restart(), node3.restart()]);
  const all = { serfs: [serf1Again, serf2, serf3Again], agents };
  await allSeeAll(all);
  assert.deepEqual(causedByUs(all.serfs), []);
}

scenario("netagents among serf agents have each other's tables at once", async (lab) => {
  const { serfs, agents } = await mixed(lab);
  const [first, second] = agents;
  assert.ok(first && second);
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

interface Mixed {
  readonly serfs: readonly SerfAgent[];
  readonly agents: readonly Host[];
}

/** serf1 … serf3 and node1 … node3; the first netagent joins serf, the last serf agent joins a netagent. */
async function mixed(lab: Lab, options: SerfOptions = {}): Promise<Mixed> {
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
  await allSeeAll({ serfs, agents });
  return { serfs, agents };
}

async function allSeeAll({ serfs, agents }: Mixed): Promise<void> {
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

/**
 * For a while nobody is suspected, let alone dead, nothing is dropped and serf has no complaint. Read off logs and
 * events when the time is over: looking in between would be most of what the machine does.
 */
async function quiet({ serfs, agents }: Mixed, forMs: number): Promise<void> {
  const since = new Date().toISOString();
  const seen = serfs.map((serf) => serf.log().length);
  await pause(forMs);
  assert.deepEqual(causedByUs(serfs), []);
  for (const [index, serf] of serfs.entries()) {
    const said = serf.log().slice(seen[index]);
    assert.doesNotMatch(said, /Suspect .* has failed|EventMemberFailed|Refuting/, serf.name);
  }
  for (const agent of agents) {
    assert.doesNotMatch(agent.log(), /is gone|WARN|ERROR/i, agent.name);
    const suspicions = (await events(agent)).filter(
      ({ type, time }) => type === "member-suspected" && time > since,
    );
    assert.deepEqual(suspicions, [], agent.name);
  }
}

/** Complaints of serf agents other than about connections to members that are down. */
function causedByUs(serfs: readonly SerfAgent[]): string[] {
  const expected =
    /Failed to send (gossip|ping|indirect)|Failed fallback ping|Suspect|Was able to reach|Failed to reconnect|Refuting|connection refused|i\/o timeout|no acks received|marking as failed|Serf shutdown detected/;
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

async function events(agent: Host): Promise<EventView[]> {
  const lines = (await agent.ctl("-o", "json", "events", "--no-follow", "--since", "1h")).trim().split("\n");
  return lines.filter((line) => line !== "").map((line) => JSON.parse(line) as EventView);
}

async function networks(agent: Host): Promise<string[]> {
  return (await agent.ctlJson<NetworkView[]>("network", "ls")).map((network) => network.name);
}
