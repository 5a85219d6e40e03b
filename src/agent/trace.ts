import { z } from "zod";
import { errorText, NetError } from "../base/error.ts";
import { endpointId, networkId, type EndpointId, type NetworkId, type NodeName } from "../base/id.ts";
import { parseIp } from "../base/ip.ts";
import { parseMac } from "../base/mac.ts";
import { namespaceName, VXLAN_LINK } from "../overlay/naming.ts";
import { formatStep, type OverlayStep } from "../overlay/plan.ts";
import { INGRESS } from "../state/ingress.ts";
import type { ServiceView } from "../state/state.ts";
import type { Agent } from "./agent.ts";
import type { BackendView, EndpointView, HopView, TraceView } from "./control-protocol.ts";
import type { MeshRunner } from "./mesh-runner.ts";
import type { Views } from "./views.ts";

const ASK_TIMEOUT_MS = 5_000;
const MAX_HOPS = 32;

/** Asked of the node where a part of the way lies. */
export const traceQuestion = z.discriminatedUnion("part", [
  /** Out of an endpoint there, towards another one. */
  z.object({
    method: z.literal("trace"),
    part: z.literal("leave"),
    network: z.string().transform(networkId),
    endpoint: z.string().transform(endpointId),
    ip: z.string().transform(parseIp),
    mac: z.string().transform(parseMac),
  }),
  /** Into an endpoint there. */
  z.object({
    method: z.literal("trace"),
    part: z.literal("arrive"),
    network: z.string().transform(networkId),
    endpoint: z.string().transform(endpointId),
  }),
  /** Through the rules of the host, or of an endpoint's sandbox. */
  z.object({
    method: z.literal("trace"),
    part: z.literal("rules"),
    endpoint: z.string().transform(endpointId).optional(),
  }),
]);
export type TraceQuestion = z.input<typeof traceQuestion>;

const hop = z.object({
  node: z.string(),
  place: z.string(),
  what: z.string(),
  status: z.enum(["ok", "broken", "unknown"]),
  detail: z.string(),
});
const reply = z.union([z.object({ result: z.array(hop).max(MAX_HOPS) }), z.object({ error: z.string() })]);

export interface TraceParts {
  readonly agent: Agent;
  readonly views: Views;
  readonly mesh: MeshRunner;
}

/** The way of a packet, each hop checked against table and kernel on the node where it lies. */
export class Tracer {
  readonly #parts: TraceParts;

  constructor(parts: TraceParts) {
    this.#parts = parts;
  }

  /**
   * `from` is an endpoint, or a node that a client outside enters by; `to` an endpoint, a service, a VIP, or with a
   * port a node. A node that does not answer is a hop of unknown state. @throws NetError when a name is unknown
   */
  async trace(from: string, to: string, port: number | undefined): Promise<TraceView> {
    const { views } = this.#parts;
    const source = unlessUnknown(() => views.findEndpoint(from));
    const hops =
      source === undefined ? await this.#fromOutside(from, to, port) : await this.#between(source, to, port);
    return { ok: hops.every((one) => one.status !== "broken"), hops };
  }

  /** Answers for this node, also when a peer asks. @throws NetError */
  async answer(question: z.output<typeof traceQuestion>): Promise<HopView[]> {
    switch (question.part) {
      case "leave":
        return this.#leave(question);
      case "arrive":
        return this.#arrive(question.network, question.endpoint);
      case "rules":
        return this.#rules(question.endpoint);
    }
  }

  async #between(source: EndpointView, to: string, port: number | undefined): Promise<HopView[]> {
    const { agent, views } = this.#parts;
    const target = unlessUnknown(() => views.findEndpoint(to));
    if (target !== undefined) return this.#direct(source, target);
    const service = this.#serviceOf(to);
    if (service === undefined) {
      // A published port of a node, which has a name and addresses.
      if (port !== undefined && this.#nodeOf(to) !== undefined) return this.#fromOutside(to, to, port);
      throw new NetError(
        "trace-unknown",
        `trace to '${to}': no endpoint, service, VIP${port === undefined ? "" : " or node"} of that name (netctl endpoint ls, netctl service ls)`,
      );
    }
    const vip = service.networks.find(({ network }) => agent.networkName(network) === source.network)?.vip;
    const start: HopView = {
      node: source.node,
      place: `sandbox of ${label(source)}`,
      what: `service ${service.name}: ${vip === undefined ? "no VIP here, names lead to backends" : `VIP ${vip}`}`,
      status: service.networks.some(({ network }) => agent.networkName(network) === source.network)
        ? "ok"
        : "broken",
      detail: service.networks.some(({ network }) => agent.networkName(network) === source.network)
        ? ""
        : `${service.name} is not on ${source.network}`,
    };
    if (start.status === "broken") return [start];
    const rules = await this.#ask(source.node, { method: "trace", part: "rules", endpoint: source.id });
    return [start, ...rules, ...(await this.#toBackends(service, source.node, source))];
  }

  async #direct(source: EndpointView, target: EndpointView): Promise<HopView[]> {
    if (source.network !== target.network) {
      return [
        {
          node: source.node,
          place: `network ${source.network}`,
          what: `${label(target)} is on ${target.network}`,
          status: "broken",
          detail: `no common network: attach both to one (netctl attach --network ${target.network})`,
        },
      ];
    }
    const network = this.#parts.agent.loop.node.state.findNetwork(source.network).id;
    const leave = await this.#ask(source.node, {
      method: "trace",
      part: "leave",
      network,
      endpoint: source.id,
      ip: target.ip,
      mac: target.mac,
    });
    const arrive = await this.#ask(target.node, {
      method: "trace",
      part: "arrive",
      network,
      endpoint: target.id,
    });
    return [...leave, ...arrive];
  }

  async #fromOutside(from: string, to: string, port: number | undefined): Promise<HopView[]> {
    const node = this.#nodeOf(from);
    if (node === undefined)
      throw new NetError(
        "trace-unknown",
        `trace from '${from}': no endpoint or node of that name (netctl endpoint ls, netctl peers)`,
      );
    const service =
      port === undefined
        ? this.#serviceOf(to)
        : this.#parts.agent.loop.node.state
            .services()
            .find((one) => one.ports.some((published) => published.published === port));
    if (service === undefined)
      throw new NetError(
        "trace-unknown",
        `trace to '${to}${port === undefined ? "" : `:${port}`}': ${port === undefined ? "no such service" : "no service publishes that port"} (netctl service ls)`,
      );
    const start: HopView = {
      node,
      place: "host",
      what: `port ${service.ports.map((one) => `${one.published}→${one.target}/${one.protocol}`).join(", ")} of ${service.name}`,
      status: service.ports.length > 0 ? "ok" : "broken",
      detail:
        service.ports.length > 0
          ? ""
          : `${service.name} publishes nothing (netctl service update --publish-add)`,
    };
    if (start.status === "broken") return [start];
    const rules = await this.#ask(node, { method: "trace", part: "rules" });
    return [start, ...rules, ...(await this.#toBackends(service, node, undefined))];
  }

  /** Every backend a packet may be sent to; which one the kernel takes is the flow's hash. */
  async #toBackends(
    service: ServiceView,
    entry: string,
    source: EndpointView | undefined,
  ): Promise<HopView[]> {
    const { agent, views } = this.#parts;
    const backends: BackendView[] = views.backends(service);
    const ready = backends.filter((backend) => backend.state === "ready");
    const chosen = ready.length > 0 ? ready : backends;
    const hops: HopView[] = [
      {
        node: entry,
        place: `service ${service.name}`,
        what: `one of ${chosen.length} backends: ${chosen.map((one) => `${one.name || one.endpoint.slice(0, 12)} on ${one.node}`).join(", ")}`,
        status: chosen.length > 0 ? "ok" : "broken",
        detail:
          chosen.length > 0
            ? ready.length > 0
              ? ""
              : "all are draining"
            : `nothing is attached with --service ${service.name}`,
      },
    ];
    for (const backend of chosen.slice(0, 4)) {
      const target = unlessUnknown(() => views.findEndpoint(backend.endpoint));
      if (source !== undefined && target !== undefined) {
        if (source.network === target.network) hops.push(...(await this.#direct(source, target)));
        continue;
      }
      // From outside the way leads through the ingress network, where the backend has a second leg.
      const leg = views
        .endpointsOf(agent.loop.node.state.findNetwork(INGRESS.id))
        .find(
          (one) => one.node === backend.node && (one.name === backend.name || one.id === backend.endpoint),
        );
      const entryLeg = views
        .endpointsOf(agent.loop.node.state.findNetwork(INGRESS.id))
        .find((one) => one.node === entry && one.sandbox === "host");
      if (leg === undefined) continue;
      if (entryLeg !== undefined) hops.push(...(await this.#direct(entryLeg, leg)));
      else
        hops.push(
          ...(await this.#ask(backend.node, {
            method: "trace",
            part: "arrive",
            network: INGRESS.id,
            endpoint: leg.id,
          })),
        );
    }
    return hops.slice(0, MAX_HOPS);
  }

  async #leave(question: Extract<z.output<typeof traceQuestion>, { part: "leave" }>): Promise<HopView[]> {
    const { agent, views } = this.#parts;
    const { network, endpoint, ip, mac } = question;
    const { desired, steps } = await agent.reconciler.plan(network);
    const where = namespaceName(network);
    const hops = [this.#endpointHop(network, endpoint, steps, "from")];
    const local = [...desired.endpoints.values()].some((one) => one.address.ip === ip);
    if (local) {
      hops.push(this.#hop(where, `${ip} is on this node, nothing leaves it`, undefined));
      return hops;
    }
    const vtep = desired.fdb.get(mac);
    const broken = (wanted: (step: OverlayStep) => boolean): string | undefined => {
      const step = steps.find(wanted);
      return step === undefined ? undefined : `the kernel lacks it: ${formatStep(network, step)}`;
    };
    hops.push(
      this.#hop(
        where,
        `neighbor ${ip} → ${mac}`,
        desired.neighbors.get(ip) === mac
          ? broken((step) => step.type === "set-neighbor" && step.ip === ip)
          : "no row says so (netctl tables shows what is known)",
      ),
      this.#hop(
        where,
        `FDB ${mac} → ${vtep ?? "nowhere"} on ${VXLAN_LINK}`,
        vtep === undefined
          ? "no row says where that MAC is"
          : broken((step) => step.type === "set-fdb" && step.mac === mac),
      ),
      this.#deviceHop(network, steps),
    );
    if (vtep === undefined) return hops;
    const path = views.dataPath(vtep);
    hops.push({
      node: agent.config.name,
      place: "underlay",
      what: `UDP ${agent.config.dataPathPort} to ${vtep}${path.mtu === null ? "" : `, ${path.mtu} bytes fit`}`,
      status: path.state === "ok" ? "ok" : path.state === "blocked" ? "broken" : "unknown",
      detail: path.detail,
    });
    return hops;
  }

  async #arrive(network: NetworkId, endpoint: EndpointId): Promise<HopView[]> {
    const { steps } = await this.#parts.agent.reconciler.plan(network);
    return [this.#deviceHop(network, steps), this.#endpointHop(network, endpoint, steps, "to")];
  }

  #rules(endpoint: EndpointId | undefined): HopView[] {
    const { agent, mesh } = this.#parts;
    const record = endpoint === undefined ? undefined : agent.endpoints.get(endpoint);
    const place = record?.sandbox.type === "netns" ? record.sandbox.path : "host";
    const wrong = mesh
      .plan()
      .flatMap(({ steps }) => steps)
      .find((step) => step.includes(` in ${place}`));
    const problem = wrong ?? mesh.problem?.message;
    return [this.#hop(place, "nftables table netagent", problem)];
  }

  #endpointHop(
    network: NetworkId,
    endpoint: EndpointId,
    steps: readonly OverlayStep[],
    direction: "from" | "to",
  ): HopView {
    const { agent } = this.#parts;
    const record = agent.endpoints.get(endpoint);
    if (record === undefined) {
      const text = `endpoint ${endpoint.slice(0, 12)}`;
      return this.#hop(
        namespaceName(network),
        text,
        "this node has no such endpoint any more: the row is stale",
      );
    }
    const step = steps.find(
      (one) =>
        (one.type === "create-endpoint" || one.type === "set-endpoint") && one.endpoint.id === endpoint,
    );
    const place = record.sandbox.type === "netns" ? record.sandbox.path : "host";
    const what = `${direction} ${record.name || record.id.slice(0, 12)}, ${record.ip} on ${record.ifname}`;
    return this.#hop(place, what, step === undefined ? undefined : formatStep(network, step));
  }

  #deviceHop(network: NetworkId, steps: readonly OverlayStep[]): HopView {
    const { agent } = this.#parts;
    const vni = agent.loop.node.state.network(network)?.vni;
    const step = steps.find(
      (one) => one.type === "create-namespace" || one.type === "create-vxlan" || one.type === "set-vxlan",
    );
    const problem =
      step === undefined ? agent.reconciler.problem(network)?.message : formatStep(network, step);
    return this.#hop(namespaceName(network), `${VXLAN_LINK}, VNI ${vni ?? "unknown"}`, problem);
  }

  #hop(place: string, what: string, problem: string | undefined): HopView {
    const node = this.#parts.agent.config.name;
    return { node, place, what, status: problem === undefined ? "ok" : "broken", detail: problem ?? "" };
  }

  async #ask(node: string, question: TraceQuestion): Promise<HopView[]> {
    const { agent, views } = this.#parts;
    const { loop } = agent;
    if (node === agent.config.name) return this.answer(traceQuestion.parse(question));
    const silent = (detail: string): HopView[] => [
      { node, place: "agent", what: "asked what it knows", status: "unknown", detail },
    ];
    const peer = views
      .peers()
      .find((one) => one.name === node && one.state !== "left" && one.state !== "dead");
    const member = [...loop.node.swim.members()].find(
      (one) =>
        (one.state === "alive" || one.state === "suspect") && loop.node.peer(one.name)?.id === peer?.id,
    );
    if (peer === undefined || member === undefined) return silent("it is not among the living netagents");
    try {
      const answer = reply.parse(await loop.ask(member.name as NodeName, question, ASK_TIMEOUT_MS));
      return "error" in answer ? silent(answer.error) : answer.result;
    } catch (error) {
      return silent(error instanceof z.ZodError ? "answered something unintelligible" : errorText(error));
    }
  }

  #serviceOf(reference: string): ServiceView | undefined {
    const { state } = this.#parts.agent.loop.node;
    return (
      unlessUnknown(() => state.findService(reference)) ??
      state.services().find((service) => service.networks.some(({ vip }) => vip === reference))
    );
  }

  /** Shown name of the node with that name or address. */
  #nodeOf(reference: string): string | undefined {
    return this.#parts.views
      .peers()
      .find((peer) => peer.name === reference || peer.address === reference || peer.vtep === reference)?.name;
  }
}

function label(endpoint: EndpointView): string {
  return endpoint.name || endpoint.id.slice(0, 12);
}

/** Undefined when there is no such thing; an ambiguous name stays an error. */
function unlessUnknown<T>(find: () => T): T | undefined {
  try {
    return find();
  } catch (error) {
    if (error instanceof NetError && error.code.endsWith("-unknown")) return undefined;
    throw error;
  }
}
