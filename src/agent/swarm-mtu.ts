import { z } from "zod";
import { NetError } from "../base/error.ts";
import { nodeName } from "../base/id.ts";
import { tryParseIp } from "../base/ip.ts";
import { probeUnderlay } from "../kernel/icmp-probe.ts";
import { overlayMtu } from "../overlay/desired.ts";
import type { Agent } from "./agent.ts";
import { ownVtep } from "./config.ts";
import type { Views } from "./views.ts";

/** Creating a network waits for a silent node no longer. */
const ASK_TIMEOUT_MS = 1_000;
/** Of a large swarm some are asked: each knows its ways to all others. */
const MAX_ASKED = 64;
/** What a definition can have. */
const SMALLEST = 576;

const reply = z.object({ result: z.number().int().min(SMALLEST).max(65_535) });

/** How large the packets of a new network may be so that they get through between any two nodes, as found by probing. */
export class SwarmMtu {
  readonly #agent: Agent;
  readonly #views: Views;
  readonly #underlayMtu: () => number;

  constructor(agent: Agent, views: Views, underlayMtu: () => number) {
    this.#agent = agent;
    this.#views = views;
    this.#underlayMtu = underlayMtu;
  }

  /** The narrowest way this node knows from itself to anybody, also when a peer asks. */
  own(): number {
    const found = this.#living().flatMap(({ dataPath, mtu }) =>
      dataPath === "ok" && mtu !== null ? [mtu] : [],
    );
    return Math.min(this.#fullSize(), ...found);
  }

  /** Of all who answer; undefined when that is no less than our own underlay takes: then each node takes its own. */
  async narrowest(): Promise<number | undefined> {
    const asked = this.#living()
      .filter(({ role }) => role === "netagent")
      .slice(0, MAX_ASKED)
      .map(async ({ id }) => {
        const member = this.#agent.memberOf(id);
        if (member === undefined) return [];
        const answer: unknown = await this.#agent.loop.ask(
          nodeName(member),
          { method: "mtu" },
          ASK_TIMEOUT_MS,
        );
        // An older one does not understand the question.
        const parsed = reply.safeParse(answer);
        return parsed.success ? [parsed.data.result] : [];
      });
    const [icmp, ...answers] = await Promise.all([
      this.#byIcmp(),
      // Who does not answer has no say.
      ...asked.map((one) => one.catch(() => [])),
    ]);
    const least = Math.min(this.own(), ...icmp, ...answers.flat());
    return least < this.#fullSize() && least >= SMALLEST ? least : undefined;
  }

  /** Before the first endpoint nobody probes the data path; then ICMP tells what the underlay takes. */
  async #byIcmp(): Promise<number[]> {
    const unknown = this.#living()
      .filter(({ dataPath }) => dataPath === "unknown")
      .flatMap(({ vtep }) => tryParseIp(vtep) ?? [])
      .slice(0, MAX_ASKED);
    try {
      const reach = await probeUnderlay(unknown, this.#underlayMtu());
      return [...reach].flatMap(([vtep, one]) =>
        one.state === "answers" ? [overlayMtu(one.mtu, vtep)] : [],
      );
    } catch (error) {
      if (error instanceof NetError) return []; // without the privilege: doctor says so
      throw error;
    }
  }

  #fullSize(): number {
    const { config } = this.#agent;
    return overlayMtu(this.#underlayMtu(), ownVtep(config));
  }

  #living(): ReturnType<Views["peers"]> {
    return this.#views.peers().filter(({ self, state }) => !self && state === "alive");
  }
}
