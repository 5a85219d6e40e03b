import { z } from "zod";
import { errorText, NetError } from "../base/error.ts";
import { networkId, type NetworkId, type NodeName } from "../base/id.ts";
import { Netns } from "../kernel/netns.ts";
import { countServed } from "../kernel/tcp-sockets.ts";
import type { Agent } from "./agent.ts";
import type { EndpointRecord } from "./endpoints.ts";
import type { MeshRunner } from "./mesh-runner.ts";

/**
 * Longest wait for the peers' word that they send no more new flows. Beyond it a peer is cut off or about to be found
 * dead, and waiting longer would only keep an operator waiting.
 */
const EVIDENCE_MS = 5_000;
/** Shortest wait after the last word: packets that were on the way arrive within it. */
const FLOOR_MS = 50;
/** Peers that are no netagent (a real dockerd) give no word; this is what Docker itself waits. */
const FOREIGN_MS = 2_000;
/** Clients of a `dnsrr` service choose by themselves and may remember an address this long: the answers' TTL. */
const NAMES_MS = 5_000;
/** For established connections, where the service says nothing. */
export const DRAIN_TIMEOUT_MS = 10_000;
/** Questions under way at one time. */
const ASK_MAX = 16;
const ASK_AGAIN_MS = 200;
const COUNT_FIRST_MS = 20;
const COUNT_MAX_MS = 500;

/** What one netagent asks the others about endpoints of its own that drain. */
export const drainQuestion = z.object({
  endpoints: z
    .array(z.object({ network: z.string().max(64), key: z.string().max(64) }))
    .min(1)
    .max(8),
  timeoutMs: z.number().int().min(1).max(60_000),
});

const drainReply = z.union([z.object({ result: z.object({}) }), z.object({ error: z.string() })]);

export interface DrainOptions {
  /** For established connections to end by themselves; 0 does not wait for them. */
  readonly connectionsMs: number;
  readonly progress?: (text: string) => void;
}

/** Takes backends out of rotation so that nobody notices: no new flows first, then the old ones end. */
export class Drainer {
  readonly #agent: Agent;
  readonly #mesh: MeshRunner;

  constructor(agent: Agent, mesh: MeshRunner) {
    this.#agent = agent;
    this.#mesh = mesh;
  }

  /** Answers a peer's question once no rule here sends new flows to its endpoints. @throws NetError when that is late */
  async answer(body: unknown): Promise<Record<string, never>> {
    const { endpoints, timeoutMs } = drainQuestion.parse(body);
    const rows = endpoints.map(({ network, key }) => ({ network: networkId(network), key }));
    await this.#mesh.avoids(rows, timeoutMs);
    return {};
  }

  /**
   * Disables the endpoint, waits until this node and every peer on its networks have stopped sending it new flows,
   * then until its established connections have ended; each for so long and no longer. Never throws for a silent peer.
   */
  async drain(record: EndpointRecord, options: DrainOptions): Promise<void> {
    this.#agent.endpoints.leaving.add(record.id);
    this.#agent.publish();
    const leg = this.#agent.endpoints.backendLeg(record.id);
    const rows = [record, ...(leg === undefined ? [] : [leg])];
    const named = rows.filter(({ id }) => this.#agent.endpoints.ready.has(id));
    const endpoints = named.map(({ network, id }) => ({ network, key: id }));
    const deadline = performance.now() + EVIDENCE_MS;
    const { netagents, others } = this.#peersOn(named.map(({ network }) => network));
    options.progress?.(`draining ${record.name}: waiting for ${netagents.length + 1} nodes to turn away`);
    const waits: Promise<unknown>[] = [
      this.#mesh.avoids(endpoints, EVIDENCE_MS).catch(() => undefined),
      this.#askAll(netagents, endpoints, deadline),
    ];
    if (others) waits.push(pause(FOREIGN_MS));
    if (this.#agent.serviceOf(record)?.endpointMode === "dnsrr") waits.push(pause(NAMES_MS));
    await Promise.all(waits);
    await pause(FLOOR_MS);
    await this.#connectionsEnd(record, leg, options);
  }

  #peersOn(networks: readonly NetworkId[]): { readonly netagents: NodeName[]; readonly others: boolean } {
    const { node } = this.#agent.loop;
    const names = new Set(networks.flatMap((network) => [...node.networkDb.participants(network)]));
    const netagents: NodeName[] = [];
    let others = false;
    for (const name of names) {
      const state = node.swim.member(name)?.state;
      if (name === this.#agent.self || (state !== "alive" && state !== "suspect")) continue;
      if (node.peer(name)?.capabilities.includes("state") === true) netagents.push(name);
      else others = true;
    }
    return { netagents, others };
  }

  async #askAll(
    peers: readonly NodeName[],
    endpoints: readonly { readonly network: NetworkId; readonly key: string }[],
    deadline: number,
  ): Promise<void> {
    const waiting = [...peers];
    const askOneByOne = async (): Promise<void> => {
      for (let peer = waiting.shift(); peer !== undefined; peer = waiting.shift())
        await this.#ask(peer, endpoints, deadline);
    };
    await Promise.all(Array.from({ length: Math.min(ASK_MAX, peers.length) }, askOneByOne));
  }

  /** Until it has answered, is no longer alive, or time is over. */
  async #ask(
    peer: NodeName,
    endpoints: readonly { readonly network: NetworkId; readonly key: string }[],
    deadline: number,
  ): Promise<void> {
    for (;;) {
      const timeoutMs = Math.ceil(deadline - performance.now());
      if (timeoutMs <= 0 || this.#agent.closed) break;
      try {
        const question = { method: "drain", endpoints, timeoutMs };
        if ("result" in drainReply.parse(await this.#agent.loop.ask(peer, question, timeoutMs))) return;
      } catch (error) {
        if (!(error instanceof NetError || error instanceof z.ZodError)) throw error;
        const state = this.#agent.loop.node.swim.member(peer)?.state;
        if (state !== "alive" && state !== "suspect") return;
      }
      await pause(ASK_AGAIN_MS);
    }
    this.#agent.log.warn({}, `drain: ${this.#agent.shownName(peer)} has not said that it turned away`);
  }

  async #connectionsEnd(
    record: EndpointRecord,
    leg: EndpointRecord | undefined,
    { connectionsMs, progress }: DrainOptions,
  ): Promise<void> {
    const service = this.#agent.serviceOf(record);
    if (record.sandbox.type !== "netns" || connectionsMs <= 0) return;
    const { path } = record.sandbox;
    const addresses = [record.ip, ...(leg === undefined ? [] : [leg.ip])];
    const targets = service?.ports.filter(({ protocol }) => protocol === "tcp").map(({ target }) => target);
    const deadline = performance.now() + connectionsMs;
    for (let wait = COUNT_FIRST_MS; ; wait = Math.min(COUNT_MAX_MS, wait * 1.5)) {
      const open = this.#count(path, addresses, targets ?? []);
      if (open === 0) return;
      const left = deadline - performance.now();
      if (left <= 0) {
        this.#agent.event("drain-timeout", record.name, `${open} connections were still open`);
        return;
      }
      progress?.(`draining ${record.name}: ${open} connections, ${Math.ceil(left / 1000)} s left`);
      await pause(Math.min(wait, left));
    }
  }

  #count(path: string, addresses: Parameters<typeof countServed>[0], targets: readonly number[]): number {
    try {
      using netns = Netns.open(path);
      return netns.run(() => countServed(addresses, targets));
    } catch (error) {
      // The namespace went with its last process, and the connections with it.
      this.#agent.log.debug({}, `drain: ${errorText(error)}`);
      return 0;
    }
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
