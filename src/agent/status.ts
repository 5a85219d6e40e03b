import { z } from "zod";
import { nodeName } from "../base/id.ts";
import type { Agent } from "./agent.ts";
import type { EndpointView, NetworkView, PeerView, ServiceView } from "./control-protocol.ts";
import type { Views } from "./views.ts";

/** How long another agent may take to say what its links are like. */
const ASK_TIMEOUT_MS = 2_000;
/** What others said is asked for again after so long, and then only while somebody looks. */
const ASK_EVERY_MS = 3_000;
/** Agents asked: beyond that the picture would be unreadable, and the asking a load. */
const MAX_ASKED = 64;
/** Of one agent. */
const MAX_LINKS = 1_024;
const MAX_ENDPOINTS = 1_024;
const MAX_FAULTS = 10;

/** One direction between two nodes, as the first one sees it. */
export interface LinkView {
  readonly from: string;
  readonly to: string;
  readonly dataPath: "ok" | "blocked" | "unknown";
  readonly detail: string;
  readonly rttMs: number | null;
  readonly mtu: number | null;
}

/** The swarm as one node sees it, and what the others say of their links. No keys, no metadata. */
export interface StatusView {
  readonly node: string;
  readonly version: string;
  readonly nodes: (Pick<PeerView, "id" | "name" | "address" | "state" | "role" | "version" | "self"> & {
    readonly availability: "active" | "drain";
    readonly endpoints: number;
  })[];
  readonly links: LinkView[];
  /** What is wrong in the nodes' kernels and not mended; of a node whose agent may not repair, that. */
  readonly faults: readonly { readonly node: string; readonly text: string }[];
  readonly networks: (Pick<NetworkView, "name" | "vni" | "subnet" | "mtu" | "ingress" | "conflict"> & {
    readonly endpoints: number;
  })[];
  readonly services: Pick<
    ServiceView,
    "name" | "networks" | "ports" | "backends" | "endpointMode" | "conflict"
  >[];
  readonly endpoints: readonly Pick<EndpointView, "name" | "network" | "ip" | "node" | "service" | "state">[];
}

/** What an agent says of itself to the others; strings are as long as they need to be. */
const reply = z.object({
  result: z.object({
    links: z
      .array(
        z.object({
          to: z.string().max(255),
          dataPath: z.enum(["ok", "blocked", "unknown"]),
          detail: z.string().max(1_000),
          rttMs: z.number().nullable(),
          mtu: z.number().nullable(),
        }),
      )
      .max(MAX_LINKS),
    endpoints: z
      .array(
        z.object({
          id: z.string().max(64),
          name: z.string().max(255),
          network: z.string().max(255),
          ip: z.string().max(64),
          service: z.string().max(255),
          state: z.enum(["ready", "draining"]),
        }),
      )
      .max(MAX_ENDPOINTS),
    faults: z.array(z.string().max(4_096)).max(MAX_FAULTS).default([]),
  }),
});
type OwnPart = z.output<typeof reply>["result"];

/** Makes the picture of the status page. */
export class Status {
  readonly #agent: Agent;
  readonly #views: Views;
  readonly #version: string;
  /** By member id: what it said last. Only living members: bounded by them and by MAX_ASKED. */
  readonly #said = new Map<string, OwnPart>();
  #askedAt = -Infinity;
  #asking = false;

  constructor(agent: Agent, views: Views, version: string) {
    this.#agent = agent;
    this.#views = views;
    this.#version = version;
  }

  /** What only this node knows: its links and its endpoints, for others that ask. */
  own(): OwnPart {
    const links = this.#views.peers().filter((peer) => !peer.self && peer.role === "netagent");
    const endpoints = this.#views.endpoints().filter((endpoint) => endpoint.local);
    const { repair, standing } = this.#agent;
    const off = repair ? [] : ["repair is off (netctl repair on)"];
    return {
      faults: [...off, ...standing.all().map(({ subject, text }) => `${subject}: ${text}`)].slice(
        0,
        MAX_FAULTS,
      ),
      links: links.slice(0, MAX_LINKS).map(({ name, dataPath, dataPathDetail, rttMs, mtu }) => ({
        ...{ to: name, dataPath, detail: dataPathDetail, rttMs, mtu },
      })),
      endpoints: endpoints.slice(0, MAX_ENDPOINTS).map(({ id, name, network, ip, service, state }) => ({
        ...{ id, name, network, ip, service, state },
      })),
    };
  }

  /** The picture now. What others say of their links is as old as the last asking; this starts the next. */
  view(): StatusView {
    const peers = this.#views.peers();
    const endpoints = this.#endpoints(peers);
    const availability = new Map(this.#views.nodes().map((node) => [node.id, node.availability]));
    this.#askOthers(peers);
    return {
      node: this.#agent.config.name,
      version: this.#version,
      nodes: peers.map(({ id, name, address, state, role, version, self }) => ({
        ...{ id, name, address, state, role, version, self },
        availability: availability.get(id) ?? "active",
        endpoints: endpoints.filter((endpoint) => endpoint.node === name).length,
      })),
      links: this.#links(peers),
      faults: this.#faults(peers),
      networks: this.#views.networks().map(({ name, vni, subnet, mtu, ingress, conflict }) => ({
        ...{ name, vni, subnet, mtu, ingress },
        endpoints: endpoints.filter((endpoint) => endpoint.network === name).length,
        ...(conflict === undefined ? {} : { conflict }),
      })),
      services: this.#views.services().map(({ name, networks, ports, backends, endpointMode, conflict }) => ({
        ...{ name, networks, ports, backends, endpointMode },
        ...(conflict === undefined ? {} : { conflict }),
      })),
      endpoints,
    };
  }

  #links(peers: readonly PeerView[]): LinkView[] {
    const own = this.own().links.map((link) => ({ from: this.#agent.config.name, ...link }));
    const theirs = peers.flatMap((peer) =>
      (this.#said.get(peer.id)?.links ?? []).map((link) => ({ from: peer.name, ...link })),
    );
    const known = new Set(peers.map((peer) => peer.name));
    return [...own, ...theirs].filter(({ to }) => known.has(to));
  }

  #faults(peers: readonly PeerView[]): StatusView["faults"] {
    const told = (node: string, part: OwnPart | undefined): StatusView["faults"] =>
      (part?.faults ?? []).map((text) => ({ node, text }));
    return [
      ...told(this.#agent.config.name, this.own()),
      ...peers.flatMap((peer) => told(peer.name, this.#said.get(peer.id))),
    ];
  }

  /** Those of networks this node is on, and what the others say of theirs. */
  #endpoints(peers: readonly PeerView[]): StatusView["endpoints"] {
    const found = new Map<string, StatusView["endpoints"][number]>();
    for (const peer of peers)
      for (const { id, ...endpoint } of this.#said.get(peer.id)?.endpoints ?? [])
        found.set(id, { ...endpoint, node: peer.name });
    for (const { id, name, network, ip, node, service, state } of this.#views.endpoints())
      found.set(id, { name, network, ip, node, service, state });
    return [...found.values()].sort((a, b) => (`${a.network} ${a.name}` < `${b.network} ${b.name}` ? -1 : 1));
  }

  #askOthers(peers: readonly PeerView[]): void {
    const now = this.#agent.loop.now();
    if (this.#asking || now - this.#askedAt < ASK_EVERY_MS) return;
    this.#askedAt = now;
    this.#asking = true;
    const living = peers.filter((peer) => !peer.self && peer.state === "alive" && peer.role === "netagent");
    for (const id of this.#said.keys()) if (!living.some((peer) => peer.id === id)) this.#said.delete(id);
    const asked = living.slice(0, MAX_ASKED).map(async ({ id }) => {
      const member = this.#agent.memberOf(id);
      if (member === undefined) return;
      const answer: unknown = await this.#agent.loop.ask(
        nodeName(member),
        { method: "status" },
        ASK_TIMEOUT_MS,
      );
      const parsed = reply.safeParse(answer);
      if (parsed.success) this.#said.set(id, parsed.data.result);
    });
    // Who does not answer keeps the colour it had until it is no member any more.
    void Promise.allSettled(asked).then(() => (this.#asking = false));
  }
}
