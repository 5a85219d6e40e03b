import { z } from "zod";
import { errorText, NetError } from "../base/error.ts";
import { nodeName } from "../base/id.ts";
import { nearestText } from "../base/nearest.ts";
import type { ServiceView } from "../state/state.ts";
import type { HopView, TraceView } from "./control-protocol.ts";
import { TraceHere, type TraceParts } from "./trace-here.ts";
import {
  atMost,
  parseTraceAnswer,
  traceQuestion,
  type AnyTraceAnswer,
  type ParsedTraceQuestion,
  type TraceAnswer,
  type TraceBackend,
  type TraceEnd,
  type TracePart,
  type TraceQuestion,
} from "./trace-question.ts";

const ASK_TIMEOUT_MS = 5_000;
/** Backends whose way is shown to the end; the others are counted. */
const BACKENDS_SHOWN = 4;

const reply = z.union([z.object({ result: z.unknown() }), z.object({ error: z.string() })]);

/** What a node answered to its part, or why it did not. */
type Asked<P extends TracePart> = { readonly answer: TraceAnswer<P> } | { readonly silent: string };

/** The way of a packet, each hop checked against table and kernel on the node where it lies. */
export class Tracer {
  readonly #parts: TraceParts;
  readonly #here: TraceHere;

  constructor(parts: TraceParts) {
    this.#parts = parts;
    this.#here = new TraceHere(parts);
  }

  /**
   * `from` is an endpoint, or a node that a client outside enters by; `to` an endpoint, a service, a VIP, any name its
   * sandbox resolves, or with a port a node. Networks need not be this node's: whoever is on them is asked. A node that
   * does not answer is a hop of unknown state. @throws NetError when a name is unknown
   */
  async trace(from: string, to: string, port: number | undefined): Promise<TraceView> {
    const source = await this.#find(from);
    const hops =
      source === undefined ? await this.#fromOutside(from, to, port) : await this.#between(source, to, port);
    return { ok: hops.every((one) => one.status !== "broken"), hops: atMost("hops", hops) };
  }

  /** Answers for this node, also when a peer asks. @throws NetError */
  answer(question: ParsedTraceQuestion): Promise<AnyTraceAnswer> {
    return this.#here.answer(question);
  }

  async #between(source: TraceEnd, to: string, port: number | undefined): Promise<HopView[]> {
    const { agent, views } = this.#parts;
    const known = this.#here.find(to, false);
    const near = known.filter((end) => end.networkId === source.networkId);
    const target = this.#one(to, near.length > 0 ? near : known);
    if (target !== undefined) return this.#direct(source, target);
    const service = this.#serviceOf(to);
    if (service !== undefined) return this.#throughService(source, service);
    const named = await this.#byName(source, to);
    if (named !== undefined) return named;
    const elsewhere = await this.#find(to);
    if (elsewhere !== undefined) return this.#direct(source, elsewhere);
    // A published port of a node, which has a name and addresses.
    if (port !== undefined && this.#nodeOf(to) !== undefined) return this.#fromOutside(to, to, port);
    const names = [...agent.loop.node.state.services(), ...views.endpoints()].map((one) => one.name);
    throw new NetError(
      "trace-unknown",
      `trace to '${to}': no endpoint, service, VIP, name${port === undefined ? "" : " or node"} of that name${nearestText(to, names)} (netctl endpoint ls, netctl service ls)`,
    );
  }

  async #direct(source: TraceEnd, target: TraceEnd): Promise<HopView[]> {
    if (source.networkId !== target.networkId) {
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
    const network = source.networkId;
    const leave = await this.#hops(source.node, {
      method: "trace",
      part: "leave",
      network,
      endpoint: source.id,
      ip: target.ip,
      mac: target.mac,
    });
    const arrive = { method: "trace", part: "arrive", network, endpoint: target.id } as const;
    return [...leave, ...(await this.#hops(target.node, arrive))];
  }

  async #throughService(source: TraceEnd, service: ServiceView): Promise<HopView[]> {
    const { agent } = this.#parts;
    const membership = service.networks.find(({ network }) => network === source.networkId);
    const start: HopView = {
      node: source.node,
      place: `sandbox of ${label(source)}`,
      what: `service ${service.name}: ${membership?.vip === undefined ? "no VIP here, names lead to backends" : `VIP ${membership.vip}`}`,
      status: membership === undefined ? "broken" : "ok",
      detail:
        membership === undefined
          ? `${service.name} is not on ${source.network}, but on ${service.networks.map(({ network }) => agent.networkName(network)).join(", ")}`
          : "",
    };
    if (membership === undefined) return [start];
    const rules = await this.#hops(source.node, { method: "trace", part: "rules", endpoint: source.id });
    return [start, ...rules, ...(await this.#toBackends(service, source.node, source))];
  }

  /** What the source's own resolver says the name is; undefined when it knows no such name. */
  async #byName(source: TraceEnd, name: string): Promise<HopView[] | undefined> {
    const question = { method: "trace", part: "name", endpoint: source.id, name } as const;
    const asked = await this.#ask("name", source.node, question);
    if ("silent" in asked || asked.answer.addresses.length === 0) return undefined;
    const { addresses, hop } = asked.answer;
    const hops = [hop];
    for (const address of addresses.slice(0, BACKENDS_SHOWN)) {
      const service = this.#serviceOf(address);
      const target = await this.#find(address, source.networkId);
      if (service !== undefined) hops.push(...(await this.#throughService(source, service)));
      else if (target !== undefined) hops.push(...(await this.#direct(source, target)));
      else {
        const detail = "nobody says that it has this address";
        hops.push({ ...hop, what: `${name} is ${address}`, status: "broken", detail });
      }
    }
    return hops;
  }

  async #fromOutside(from: string, to: string, port: number | undefined): Promise<HopView[]> {
    const { state } = this.#parts.agent.loop.node;
    const node = this.#nodeOf(from);
    if (node === undefined) {
      const known = [...this.#parts.views.peers(), ...this.#parts.views.endpoints()].map(({ name }) => name);
      throw new NetError(
        "trace-unknown",
        `trace from '${from}': no endpoint or node of that name${nearestText(from, known)} (netctl endpoint ls, netctl peers)`,
      );
    }
    const service =
      port === undefined
        ? this.#serviceOf(to)
        : state.services().find((one) => one.ports.some((published) => published.published === port));
    if (service === undefined) {
      const names = state.services().map(({ name }) => name);
      throw new NetError(
        "trace-unknown",
        port === undefined
          ? `trace to '${to}': no such service${nearestText(to, names)} (netctl service ls)`
          : `trace to '${to}:${port}': no service publishes that port (netctl service ls)`,
      );
    }
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
    const rules = await this.#hops(node, { method: "trace", part: "rules" });
    return [start, ...rules, ...(await this.#toBackends(service, node, undefined))];
  }

  /** Every backend a packet may be sent to, as `entry` sees them; which one its kernel takes is the flow's hash. */
  async #toBackends(service: ServiceView, entry: string, source: TraceEnd | undefined): Promise<HopView[]> {
    const published = source === undefined;
    const question = { method: "trace", part: "backends", service: service.id, published } as const;
    const asked = await this.#ask("backends", entry, question);
    if ("silent" in asked) return [silentHop(entry, asked.silent)];
    const { backends, entry: leg } = asked.answer;
    const ready = backends.filter((backend) => backend.state === "ready");
    const chosen = ready.length > 0 ? ready : backends;
    const hops: HopView[] = [backendsHop(service.name, entry, chosen, ready.length > 0)];
    for (const backend of chosen.slice(0, BACKENDS_SHOWN)) {
      const from = source ?? leg;
      const { end } = backend;
      if (end === undefined) {
        hops.push({
          node: entry,
          place: `service ${service.name}`,
          what: `${backend.label} on ${backend.node}`,
          status: "broken",
          detail: "no row says where its packets arrive (netctl tables)",
        });
      } else if (from !== undefined && from.networkId === end.networkId) {
        hops.push(...(await this.#direct(from, end)));
      } else if (source === undefined) {
        const arrive = { method: "trace", part: "arrive", network: end.networkId, endpoint: end.id } as const;
        hops.push(...(await this.#hops(backend.node, arrive)));
      }
    }
    return hops;
  }

  /** One endpoint, on whichever network: known here, or asked of everybody. @throws NetError when it is several */
  async #find(reference: string, network?: string): Promise<TraceEnd | undefined> {
    const wanted = (ends: readonly TraceEnd[]): TraceEnd[] =>
      ends.filter((end) => network === undefined || end.networkId === network);
    const here = this.#one(reference, wanted(this.#here.find(reference, false)));
    if (here !== undefined) return here;
    const others = this.#parts.views.peers().filter((peer) => !peer.self && peer.state === "alive");
    const asked = await Promise.all(
      others.map(({ name }) => this.#ask("find", name, { method: "trace", part: "find", reference })),
    );
    const found = asked.flatMap((one) => ("answer" in one ? one.answer : []));
    return this.#one(reference, wanted(found));
  }

  #one(reference: string, found: readonly TraceEnd[]): TraceEnd | undefined {
    const [first] = found;
    if (new Set(found.map(({ id }) => id)).size <= 1) return first;
    const which = found.map((end) => `${label(end)} on ${end.node} (${end.network}, ${end.id.slice(0, 12)})`);
    throw new NetError(
      "endpoint-ambiguous",
      `trace: '${reference}' could be ${which.slice(0, 5).join(" or ")}: write its id`,
    );
  }

  async #hops(
    node: string,
    question: TraceQuestion & { readonly part: "leave" | "arrive" | "rules" },
  ): Promise<HopView[]> {
    const asked = await this.#ask(question.part, node, question);
    return "silent" in asked ? [silentHop(node, asked.silent)] : asked.answer;
  }

  async #ask<P extends TracePart>(
    part: P,
    node: string,
    question: TraceQuestion & { readonly part: P },
  ): Promise<Asked<P>> {
    const { agent, views } = this.#parts;
    try {
      if (node === agent.config.name)
        return {
          answer: parseTraceAnswer(part, await this.answer(traceQuestion.parse(question))),
        };
      const peer = views
        .peers()
        .find((one) => one.name === node && (one.state === "alive" || one.state === "suspect"));
      const member = peer && agent.memberOf(peer.id);
      if (member === undefined) return { silent: "it is not among the living netagents" };
      const answer = reply.parse(await agent.loop.ask(nodeName(member), question, ASK_TIMEOUT_MS));
      if ("error" in answer) return { silent: answer.error };
      return { answer: parseTraceAnswer(part, answer.result) };
    } catch (error) {
      return {
        silent: error instanceof z.ZodError ? "answered something unintelligible" : errorText(error),
      };
    }
  }

  /** By name, id or VIP. An ambiguous name stays an error. */
  #serviceOf(reference: string): ServiceView | undefined {
    const { state } = this.#parts.agent.loop.node;
    try {
      return state.findService(reference);
    } catch (error) {
      if (!(error instanceof NetError && error.code === "service-unknown")) throw error;
      return state.services().find((service) => service.networks.some(({ vip }) => vip === reference));
    }
  }

  /** Shown name of the node with that name or address. */
  #nodeOf(reference: string): string | undefined {
    return this.#parts.views
      .peers()
      .find((peer) => peer.name === reference || peer.address === reference || peer.vtep === reference)?.name;
  }
}

function backendsHop(
  service: string,
  node: string,
  chosen: readonly TraceBackend[],
  ready: boolean,
): HopView {
  const names = chosen.map((one) => `${one.label} on ${one.node}`);
  return {
    node,
    place: `service ${service}`,
    what: `one of ${chosen.length} backends: ${names.join(", ")}`,
    status: chosen.length > 0 ? "ok" : "broken",
    detail:
      chosen.length === 0 ? `nothing is attached with --service ${service}` : ready ? "" : "all are draining",
  };
}

function silentHop(node: string, detail: string): HopView {
  return { node, place: "agent", what: "asked what it knows", status: "unknown", detail };
}

function label(end: TraceEnd): string {
  return end.name || end.id.slice(0, 12);
}
