import { setTimeout as pause } from "node:timers/promises";
import { z } from "zod";
import { errorText, NetError } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import { type IpAddr, tryParseIp } from "../base/ip.ts";
import { probeFeatures, type FeatureName } from "../kernel/features.ts";
import { probeUnderlay, type UnderlayReach } from "../kernel/icmp-probe.ts";
import { Netns } from "../kernel/netns.ts";
import { checksumOffloads } from "../kernel/offloads.ts";
import { NEIGHBOR_LIMITS } from "../kernel/overlay-dataplane.ts";
import type { Underlay } from "../kernel/underlay.ts";
import { VXLAN_TABLE } from "../mesh/vxlan-filter.ts";
import { overlayMtu } from "../overlay/desired.ts";
import { peerRecordOf } from "../overlay/rows.ts";
import { PEER_TABLE } from "../wire/networkdb/records.ts";
import type { Agent } from "./agent.ts";
import type { ChecksumWatch } from "./checksum-watch.ts";
import { ownVtep } from "./config.ts";
import type { DoctorView } from "./control-protocol.ts";
import { diagnose } from "./diagnosis.ts";
import type { NodeReport, PeerFinding } from "./findings.ts";
import { readFirewall } from "./firewall.ts";
import { fingerprint } from "./keys.ts";
import type { DnsRunner } from "./dns-runner.ts";
import type { MeshRunner } from "./mesh-runner.ts";
import type { PathRunner } from "./path-runner.ts";
import { rejectedText } from "./rejected-rows.ts";
import type { UnderlayFilter } from "./underlay-filter.ts";
import type { Views } from "./views.ts";

/** A plan with steps is looked at again after this: what is being done just now is no drift. */
const SECOND_LOOK_MS = 400;
const ASK_TIMEOUT_MS = 5_000;
/** Peers asked by ICMP. */
const MAX_PROBED = 256;
/** Lines of one kind in a report; a node with thousands of differences must not fill the answer. */
const MAX_LINES = 50;

const lines = z.array(z.string().max(4096)).max(MAX_LINES);
const reportSchema = z.object({
  wallMs: z.number(),
  keys: lines,
  drift: z.array(z.object({ subject: z.string(), steps: lines })).max(MAX_LINES),
  problems: z.array(z.object({ subject: z.string(), text: z.string() })).max(MAX_LINES),
  heldPorts: lines,
  duplicates: lines,
  missing: z
    .array(z.object({ name: z.string(), needed: z.boolean(), detail: z.string(), cure: z.string() }))
    .max(MAX_LINES),
  repairs: z
    .array(z.object({ subject: z.string(), text: z.string(), times: z.number(), agoMs: z.number() }))
    .max(MAX_LINES)
    .default([]),
  repairOff: z.boolean().default(false),
  badChecksums: z
    .array(z.object({ place: z.string(), packets: z.number() }))
    .max(MAX_LINES)
    .default([]),
  underlayDevice: z.string().max(64).default(""),
  checksumOffloads: lines.default([]),
  strangers: lines.default([]),
  rejectedRows: lines.default([]),
  forwardingOff: z.boolean(),
  droppingChains: z.array(z.object({ hook: z.string(), table: z.string() })).max(MAX_LINES),
  droppingRules: z
    .array(
      z.object({
        text: z.string().max(4096),
        ports: z.array(z.tuple([z.number(), z.number()])),
        protocol: z.string().optional(),
        addresses: z.array(z.string()),
      }),
    )
    .max(MAX_LINES)
    .default([]),
});
const reply = z.union([z.object({ result: reportSchema }), z.object({ error: z.string() })]);

export interface DoctorParts {
  readonly agent: Agent;
  readonly views: Views;
  readonly mesh: MeshRunner;
  readonly paths: PathRunner;
  readonly dns: Pick<DnsRunner, "problems">;
  readonly filter: UnderlayFilter;
  readonly checksums: Pick<ChecksumWatch, "recent">;
  /** The device that carries our data-path address. */
  readonly underlay: () => Underlay;
}

/** Looks at this node, asks all others to look at themselves, and probes the way to each. */
export class Doctor {
  readonly #parts: DoctorParts;

  constructor(parts: DoctorParts) {
    this.#parts = parts;
  }

  /** A peer that does not answer is a line in the result, never a failure of the whole. */
  async examine(): Promise<DoctorView> {
    const { agent, views, paths } = this.#parts;
    const { config } = agent;
    const living = views.peers().filter((peer) => !peer.self && peer.state !== "left");
    const underlayMtu = this.#parts.underlay().mtu;
    const [self, reach, , ...answers] = await Promise.all([
      this.report(),
      reachable(
        living.flatMap(({ address }) => tryParseIp(address) ?? []),
        underlayMtu,
      ),
      paths.look(),
      ...living.map((peer) => this.#ask(peer.id, peer.state)),
    ]);
    // Read again: the look has refreshed what is known of each path.
    const after = new Map(views.peers().map((peer) => [peer.id, peer]));
    const peers = living.map((before, index): PeerFinding => {
      const peer = after.get(before.id) ?? before;
      const { name, address, state, rttMs, dataPath, dataPathDetail, mtu } = peer;
      const underlay = "problem" in reach ? undefined : reach.found.get(address as IpAddr);
      return { name, address, state, rttMs, underlay, dataPath, dataPathDetail, mtu, answer: answers[index] };
    });
    const { state } = agent.loop.node;
    return diagnose({
      node: config.name,
      address: config.advertise.ip,
      self,
      peers,
      gossipPort: config.gossipPort,
      dataPathPort: config.dataPathPort,
      underlayMtu,
      underlayProblem: "problem" in reach ? reach.problem : undefined,
      fullSize: this.#fullSize(),
      neededSize: this.#neededSize(),
      pathProblem: paths.problem,
      fastPath: agent.dataplane.fastPath?.status(),
      networks: state.networks().map((network) => ({
        name: network.name,
        ...views.addressUse(network),
        conflict: network.conflicts[0]?.text,
      })),
    });
  }

  /** What this node says about itself, also when a peer asks. */
  async report(): Promise<NodeReport> {
    const { agent, mesh, filter } = this.#parts;
    const { node } = agent.loop;
    const problems = [...agent.reconciler.networks].flatMap((network) => {
      const problem = agent.reconciler.problem(network);
      return problem === undefined ? [] : [{ subject: agent.networkName(network), text: problem.message }];
    });
    if (filter.problem !== undefined)
      problems.push({ subject: "VXLAN filter", text: filter.problem.message });
    if (mesh.problem !== undefined) problems.push({ subject: "mesh", text: mesh.problem.message });
    if (agent.unsaved !== undefined)
      problems.push({ subject: "data directory", text: agent.unsaved.message });
    for (const text of this.#parts.dns.problems) problems.push({ subject: "names", text });
    const firewall = await readFirewall();
    return {
      wallMs: Date.now(),
      keys: node.keys.map(fingerprint),
      drift: (await this.#drift()).slice(0, MAX_LINES),
      repairs: agent.repairs.recent(agent.loop.now()).slice(0, MAX_LINES),
      repairOff: !agent.repair,
      badChecksums: this.#parts.checksums.recent().slice(0, MAX_LINES),
      underlayDevice: this.#parts.underlay().ifname,
      checksumOffloads: checksumOffloads(this.#parts.underlay().ifname),
      problems: problems.slice(0, MAX_LINES),
      heldPorts: mesh.heldPorts.slice(0, MAX_LINES),
      duplicates: this.#duplicates().slice(0, MAX_LINES),
      strangers: filter
        .strangers()
        .slice(0, MAX_LINES)
        .map(({ address, packets }) => `${packets} packets from ${address}`),
      rejectedRows: this.#rejectedRows().slice(0, MAX_LINES),
      missing: this.#missing(),
      forwardingOff: this.#forwardingOff(),
      droppingChains:
        agent.endpoints.ingressLeg() === undefined
          ? firewall.chains.filter(({ hook }) => hook !== "forward")
          : firewall.chains,
      droppingRules: firewall.rules,
    };
  }

  async #ask(id: string, state: string): Promise<PeerFinding["answer"]> {
    const { loop } = this.#parts.agent;
    const name = [...loop.node.swim.members()].find(
      (member) => member.state === state && loop.node.peer(member.name)?.id === id,
    )?.name as NodeName | undefined;
    if (name === undefined || state === "dead") return undefined;
    const sentMs = Date.now();
    try {
      const answer = reply.parse(await loop.ask(name, { method: "doctor" }, ASK_TIMEOUT_MS));
      if ("error" in answer) return { error: answer.error };
      return { report: answer.result, sentMs, receivedMs: Date.now() };
    } catch (error) {
      return { error: error instanceof z.ZodError ? "answered something unintelligible" : errorText(error) };
    }
  }

  async #drift(): Promise<{ subject: string; steps: string[] }[]> {
    if ((await this.#differences()).length === 0) return [];
    await pause(SECOND_LOOK_MS);
    return this.#differences();
  }

  async #differences(): Promise<{ subject: string; steps: string[] }[]> {
    const { agent, mesh } = this.#parts;
    const found: { subject: string; steps: string[] }[] = [];
    for (const network of agent.reconciler.networks) {
      const subject = agent.networkName(network);
      try {
        const { faults } = await agent.reconciler.plan(network);
        if (faults.length > 0) found.push({ subject, steps: faults.slice(0, MAX_LINES) });
      } catch (error) {
        if (!(error instanceof NetError)) throw error;
        found.push({ subject, steps: [error.message] });
      }
    }
    try {
      for (const { network, steps } of mesh.plan())
        if (steps.length > 0) found.push({ subject: network, steps: steps.slice(0, MAX_LINES) });
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      found.push({ subject: "mesh", steps: [error.message] });
    }
    // Of these nothing is planned; who keeps them says what stands.
    for (const { subject, text } of agent.standing.all())
      if (subject === VXLAN_TABLE || subject === "dns") found.push({ subject, steps: [text] });
    return found;
  }

  /** Contradicting rows have a check of their own. */
  #rejectedRows(): string[] {
    const { agent } = this.#parts;
    return agent.rejectedRows.groups
      .filter(({ problem }) => problem !== "duplicate-address" && problem !== "duplicate-mac")
      .map(
        (group) =>
          `${agent.networkName(group.network)}: ${rejectedText(group, agent.shownName(group.owner))}`,
      );
  }

  /** Two living rows with one address; only networks this node is on are known here. */
  #duplicates(): string[] {
    const { agent } = this.#parts;
    const { networkDb } = agent.loop.node;
    const found: string[] = [];
    for (const { network } of networkDb.attachments()) {
      const owners = new Map<string, { readonly node: string; readonly key: string }[]>();
      for (const row of networkDb.rows(network, PEER_TABLE)) {
        const ip = peerRecordOf(row)?.endpointIp.ip;
        if (ip === undefined) continue;
        const who = { node: agent.shownName(row.owner), key: row.key.slice(0, 12) };
        owners.set(ip, [...(owners.get(ip) ?? []), who]);
      }
      for (const [ip, who] of owners) {
        if (who.length < 2) continue;
        // By node, so that all nodes say the same of the same.
        const names = who
          .sort((a, b) => (`${a.node} ${a.key}` < `${b.node} ${b.key}` ? -1 : 1))
          .map(({ node, key }) => `${key} on ${node}`);
        found.push(`${ip} on ${agent.networkName(network)}: ${names.join(" and ")}`);
      }
    }
    return found;
  }

  /** Of the underlay: what a network without an MTU of its own takes. */
  #fullSize(): number {
    const { config } = this.#parts.agent;
    return overlayMtu(this.#parts.underlay().mtu, ownVtep(config));
  }

  #neededSize(): number {
    const { agent } = this.#parts;
    const used = [...agent.endpoints.networks()].flatMap((id) => agent.loop.node.state.network(id) ?? []);
    const sizes = used.map((network) => agent.overlays.network(network).mtu);
    return sizes.length === 0 ? this.#fullSize() : Math.max(...sizes);
  }

  #missing(): NodeReport["missing"][number][] {
    const { config, dataplane } = this.#parts.agent;
    const features = probeFeatures(config.runDir);
    const hasMacvlan = features.some(({ name, present }) => name === "macvlan" && present);
    const kernel = dataplane.kind === "kernel";
    const irrelevant = new Set<FeatureName>([
      ...(hasMacvlan ? (["bridge", "veth"] as const) : []),
      kernel ? "tun" : "vxlan",
    ]);
    const found = features
      .filter(({ name, present }) => !present && !irrelevant.has(name))
      .map(({ name, detail, cure }) => ({ name: name as string, needed: name !== "macvlan", detail, cure }));
    return [...found, ...neighborLimitProblems()];
  }

  #forwardingOff(): boolean {
    if (this.#parts.agent.endpoints.ingressLeg() === undefined) return false;
    using host = Netns.current();
    return host.readSysctl("net.ipv4.ip_forward") === "0";
  }
}

/** Without the privilege for ICMP all else is still examined. */
async function reachable(
  targets: readonly IpAddr[],
  mtu: number,
): Promise<{ readonly found: ReadonlyMap<IpAddr, UnderlayReach> } | { readonly problem: string }> {
  try {
    return { found: await probeUnderlay(targets.slice(0, MAX_PROBED), mtu) };
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    return { problem: error.message };
  }
}

/** Limits the agent would have raised and could not. Only the initial namespace shows them. */
function neighborLimitProblems(): NodeReport["missing"][number][] {
  using host = Netns.current();
  return NEIGHBOR_LIMITS.flatMap(([name, least]) => {
    const actual = host.readSysctl(name);
    if (actual === undefined || Number(actual) >= least) return [];
    const detail = `it is ${actual}: containers that know many others lose neighbors`;
    return [{ name: `${name} of ${least}`, needed: false, detail, cure: `sysctl -w ${name}=${least}` }];
  });
}
