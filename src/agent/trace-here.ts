import type { EndpointId, NetworkId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import { namespaceName, VXLAN_LINK } from "../overlay/naming.ts";
import type { OverlayStep } from "../overlay/plan.ts";
import { INGRESS } from "../state/ingress.ts";
import type { Agent } from "./agent.ts";
import type { EndpointView, HopView } from "./control-protocol.ts";
import type { DnsRunner } from "./dns-runner.ts";
import type { MeshRunner } from "./mesh-runner.ts";
import {
  atMost,
  type AnyTraceAnswer,
  type ParsedTraceQuestion,
  type TraceAnswer,
  type TraceBackend,
  type TraceEnd,
} from "./trace-question.ts";
import type { Views } from "./views.ts";

export interface TraceParts {
  readonly agent: Agent;
  readonly views: Views;
  readonly mesh: MeshRunner;
  readonly dns: DnsRunner;
}

type Plan = Awaited<ReturnType<Agent["reconciler"]["plan"]>>;

/** This node's part of a packet's way: each hop compared with tables and kernel. */
export class TraceHere {
  readonly #parts: TraceParts;

  constructor(parts: TraceParts) {
    this.#parts = parts;
  }

  /** @throws NetError */
  async answer(question: ParsedTraceQuestion): Promise<AnyTraceAnswer> {
    switch (question.part) {
      case "leave":
        return this.#leave(question);
      case "arrive":
        return this.#arrive(question.network, question.endpoint);
      case "rules":
        return this.#rules(question.endpoint);
      case "find":
        return this.find(question.reference, true);
      case "name":
        return this.#name(question.endpoint, question.name);
      case "backends":
        return this.#backends(question.service, question.published);
    }
  }

  /** Those of failed members, too: their kernels may go on. By id, name or address, then by alias or unique beginning of an id; `local`: only endpoints of this node. */
  find(reference: string, local: boolean): TraceEnd[] {
    const { state } = this.#parts.agent.loop.node;
    const all = state.networks().flatMap((network) =>
      this.#parts.views
        .endpointsOf(network, { suspended: true })
        .filter((view) => view.local || !local)
        .map((view) => ({ view, end: traceEnd(view, network.id) })),
    );
    const isLeg = (view: EndpointView): boolean => view.network === INGRESS.name;
    const exact = all.filter(
      ({ view }) =>
        view.id === reference || (!isLeg(view) && (view.name === reference || view.ip === reference)),
    );
    const found =
      exact.length > 0
        ? exact
        : all.filter(({ view }) => view.ip === reference || view.id.startsWith(reference));
    return atMost(
      "hops",
      found.map(({ end }) => end),
    );
  }

  async #leave(question: Extract<ParsedTraceQuestion, { part: "leave" }>): Promise<HopView[]> {
    const { agent } = this.#parts;
    const { network, endpoint, ip, mac } = question;
    const plan = await agent.reconciler.plan(network);
    const { desired } = plan;
    const where = namespaceName(network);
    const hops = [this.#endpointHop(network, endpoint, plan, "from")];
    const local = [...desired.endpoints.values()].some((one) => one.address.ip === ip);
    if (local) {
      hops.push(this.#hop(where, `${ip} is on this node, nothing leaves it`, undefined));
      return hops;
    }
    const vtep = desired.fdb.get(mac);
    hops.push(
      this.#hop(
        where,
        `neighbor ${ip} → ${mac}`,
        desired.neighbors.get(ip) === mac
          ? this.#fault(plan, (step) => step.type === "set-neighbor" && step.ip === ip)
          : "no row says so (netctl tables shows what is known)",
        this.#mended(network, `neighbor ${ip}`),
      ),
      this.#hop(
        where,
        `FDB ${mac} → ${vtep ?? "nowhere"} on ${VXLAN_LINK}`,
        vtep === undefined
          ? "no row says where that MAC is"
          : this.#fault(plan, (step) => step.type === "set-fdb" && step.mac === mac),
        this.#mended(network, `fdb ${mac}`),
      ),
      this.#deviceHop(network, plan),
    );
    if (vtep !== undefined) hops.push(this.#underlayHop(vtep, desired.core?.mtu ?? 0));
    return hops;
  }

  async #arrive(network: NetworkId, endpoint: EndpointId): Promise<HopView[]> {
    const plan = await this.#parts.agent.reconciler.plan(network);
    return [this.#deviceHop(network, plan), this.#endpointHop(network, endpoint, plan, "to")];
  }

  #rules(endpoint: EndpointId | undefined): HopView[] {
    const { agent, mesh } = this.#parts;
    const record = endpoint === undefined ? undefined : agent.endpoints.get(endpoint);
    const place = record?.sandbox.type === "netns" ? record.sandbox.path : "host";
    const isHere = (text: string): boolean => text.endsWith(` in ${place}`);
    const wrong = mesh
      .plan()
      .flatMap(({ steps }) => steps)
      .find(isHere);
    const last = agent.repairs
      .recent(agent.loop.now())
      .find(({ subject, text }) => subject === "mesh" && isHere(text));
    const mended = last && `repaired ${Math.round(last.agoMs / 1000)} s ago: ${last.text}`;
    return [
      this.#hop(
        place,
        "nftables table netagent",
        wrong === undefined ? mesh.problem?.message : this.#unrepaired(wrong),
        mended,
      ),
    ];
  }

  #name(endpoint: EndpointId, name: string): TraceAnswer<"name"> {
    const { agent, dns } = this.#parts;
    const record = agent.endpoints.get(endpoint);
    const path = record?.sandbox.type === "netns" ? record.sandbox.path : "host";
    const addresses = path === "host" ? [] : dns.addressesOf(path, name);
    const shown = atMost("hops", addresses).join(", ");
    const problem = path === "host" ? undefined : dns.problem(path);
    return {
      addresses: atMost("backends", addresses),
      hop: this.#hop(path, `name ${name}${shown === "" ? "" : `: ${shown}`}, asked of 127.0.0.11`, problem),
    };
  }

  #backends(reference: string, published: boolean): TraceAnswer<"backends"> {
    const { agent, views } = this.#parts;
    const { state } = agent.loop.node;
    const service = state.findService(reference);
    const ingress = state.findNetwork(INGRESS.id);
    const legs = published ? views.endpointsOf(ingress) : [];
    const entry = legs.find((leg) => leg.local && leg.sandbox === "host");
    const backends = views.backends(service).map((one): TraceBackend => {
      const end = published
        ? // The second leg of the backend, which has its name.
          legs.find((leg) => leg.node === one.node && (leg.name === one.name || leg.id === one.endpoint))
        : views.endpoints().find(({ id }) => id === one.endpoint);
      const network = end === undefined ? undefined : state.findNetwork(end.network).id;
      return {
        label: one.name || one.endpoint.slice(0, 12),
        node: one.node,
        state: one.state,
        ...(end === undefined || network === undefined ? {} : { end: traceEnd(end, network) }),
      };
    });
    return {
      ...(entry === undefined ? {} : { entry: traceEnd(entry, ingress.id) }),
      backends: atMost("backends", backends),
    };
  }

  #endpointHop(network: NetworkId, endpoint: EndpointId, plan: Plan, direction: "from" | "to"): HopView {
    const { agent } = this.#parts;
    const record = agent.endpoints.get(endpoint);
    if (record === undefined) {
      const text = `endpoint ${endpoint.slice(0, 12)}`;
      const stale = "this node has no such endpoint any more: the row is stale";
      return this.#hop(namespaceName(network), text, stale);
    }
    const fault = this.#fault(
      plan,
      (step) =>
        (step.type === "create-endpoint" || step.type === "set-endpoint") && step.endpoint.id === endpoint,
    );
    const blocked = plan.blocked.some((one) => one.endpoint.id === endpoint)
      ? "its network namespace is gone (netctl detach takes the endpoint away)"
      : undefined;
    const place = record.sandbox.type === "netns" ? record.sandbox.path : "host";
    const what = `${direction} ${record.name || record.id.slice(0, 12)}, ${record.ip} on ${record.ifname}`;
    return this.#hop(place, what, blocked ?? fault, this.#mended(network, endpoint));
  }

  #deviceHop(network: NetworkId, plan: Plan): HopView {
    const { agent } = this.#parts;
    const vni = agent.loop.node.state.network(network)?.vni;
    const fault = this.#fault(
      plan,
      ({ type }) =>
        type === "create-namespace" ||
        type === "pin-namespace" ||
        type === "create-vxlan" ||
        type === "set-vxlan",
    );
    const what = `${VXLAN_LINK}, VNI ${vni ?? "unknown"}`;
    return this.#hop(namespaceName(network), what, fault, this.#mended(network, VXLAN_LINK, "namespace"));
  }

  #underlayHop(vtep: IpAddr, networkMtu: number): HopView {
    const { agent, views } = this.#parts;
    const path = views.dataPath(vtep);
    const narrow = path.state === "ok" && path.mtu !== null && path.mtu < networkMtu;
    return {
      node: agent.config.name,
      place: "underlay",
      what: `UDP ${agent.config.dataPathPort} to ${vtep}${path.mtu === null ? "" : `, ${path.mtu} bytes fit`}`,
      status: path.state === "blocked" || narrow ? "broken" : path.state === "ok" ? "ok" : "unknown",
      detail: narrow
        ? `${path.detail}: ping works, large transfers hang (the network has MTU ${networkMtu})`
        : path.detail,
    };
  }

  #hop(place: string, what: string, problem: string | undefined, mended?: string): HopView {
    const node = this.#parts.agent.config.name;
    const status = problem === undefined ? "ok" : "broken";
    return { node, place, what, status, detail: problem ?? mended ?? "" };
  }

  /** What is wrong where the first such step is needed; undefined when none is. */
  #fault({ steps, faults }: Plan, wanted: (step: OverlayStep) => boolean): string | undefined {
    const index = steps.findIndex(wanted);
    return index < 0 ? undefined : this.#unrepaired(faults[index] ?? "the kernel differs (netctl plan)");
  }

  /** Nobody is to wait for it to pass. */
  #unrepaired(fault: string): string {
    return this.#parts.agent.repair ? fault : `${fault} (repair is off)`;
  }

  /** That it was mended in the last minutes, as far as it is about one of the objects. */
  #mended(network: NetworkId, ...objects: readonly string[]): string | undefined {
    const { agent } = this.#parts;
    const name = agent.networkName(network);
    const found = objects.flatMap((one) => agent.repairs.lastOf(name, one, agent.loop.now()) ?? []);
    const [last] = found.sort((a, b) => a.agoMs - b.agoMs);
    return last && `repaired ${Math.round(last.agoMs / 1000)} s ago: ${last.text}`;
  }
}

function traceEnd({ id, name, network, ip, mac, node }: EndpointView, networkId: NetworkId): TraceEnd {
  return { id, name, network, networkId, ip, mac, node };
}
