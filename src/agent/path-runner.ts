import { setTimeout as pause } from "node:timers/promises";
import { z } from "zod";
import { errorText, NetError } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import { isIpv4, type IpAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { after, elapsed, type Instant } from "../base/time.ts";
import { ProbeDevice } from "../kernel/probe-device.ts";
import { overlayMtu } from "../overlay/desired.ts";
import { PathProber, type PathHealth, type PathInput, type PeerTestimony } from "../overlay/path-prober.ts";
import { Clock } from "../transport/clock.ts";
import type { Agent, Dependent } from "./agent.ts";
import { ownVtep } from "./config.ts";

/** How long a device that somebody only wanted to look through stays. */
const HOLD_MS = 60_000;
/** After the kernel refused the device: that of a killed agent is gone by then. */
const REOPEN_MS = 1_000;
/** Changes that come together are looked at once. */
const BREATH_MS = 50;
const ASK_TIMEOUT_MS = 2_000;
/** A changed underlay MTU is noticed within this. */
const CHECK_MS = 5_000;
/** It is asked of the kernel no more often than this. */
const MTU_KNOWN_MS = 2_000;
/** Rounds of probing with everything going wrong end within this. */
const LOOK_MS = 8_000;
const LOOK_EVERY_MS = 50;

/** Asked by a peer whose probes we did not answer, or that is about to look (`hold`). */
export const pathQuestion = z.object({
  method: z.literal("path"),
  vtep: z.string().max(64),
  hold: z.boolean().default(false),
});
const pathReply = z.union([
  z.object({ result: z.object({ probing: z.boolean(), heardMsAgo: z.number().nullable() }) }),
  z.object({ error: z.string() }),
]);

/**
 * Probes every capable peer through the data path while this node has one: an endpoint, or somebody looking. A node
 * without endpoints keeps no kernel object, as everywhere here.
 */
export class PathRunner implements Dependent {
  readonly prober: PathProber;
  readonly #agent: Agent;
  readonly #underlayMtu: () => number;
  readonly #clock: Clock;
  readonly #endChecks: () => void;
  readonly #vtep: IpAddr;
  /** VTEP → member, of the peers that can answer. */
  #peers = new Map<IpAddr, NodeName>();
  #device: ProbeDevice | undefined;
  #holdUntil: Instant | undefined;
  #nextOpen = 0;
  #mtu: { readonly at: Instant; readonly bytes: number } | undefined;
  #problem: string | undefined;
  #scheduled: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(agent: Agent, random: Random, underlayMtu: () => number) {
    this.#agent = agent;
    this.#underlayMtu = underlayMtu;
    this.#vtep = ownVtep(agent.config);
    this.prober = new PathProber(random);
    this.#clock = new Clock(() => this.#step({ type: "wake" }));
    this.#endChecks = agent.loop.every(CHECK_MS, () => this.#sync());
  }

  /** Why nobody is probed although somebody should be; undefined when all is well. */
  get problem(): string | undefined {
    return this.#problem;
  }

  get isProbing(): boolean {
    return this.#device !== undefined;
  }

  /** Of the peer with that VTEP. */
  health(vtep: IpAddr): PathHealth {
    return this.prober.health(vtep);
  }

  /** Members, endpoints or rows changed: often, and hardly ever to us. */
  refresh(): void {
    if (this.#closed || this.#scheduled !== undefined) return;
    this.#scheduled = setTimeout(() => {
      this.#scheduled = undefined;
      this.#sync();
    }, BREATH_MS);
    this.#scheduled.unref();
  }

  /** A peer asks whether its probes reach us. */
  answer(question: z.output<typeof pathQuestion>): { probing: boolean; heardMsAgo: number | null } {
    if (question.hold) this.#hold();
    const heardAt = this.prober.heardAt(question.vtep as IpAddr);
    const probing = this.#device !== undefined;
    return {
      probing,
      heardMsAgo: heardAt === undefined ? null : elapsed(heardAt, this.#agent.loop.now()),
    };
  }

  /** Probes everybody anew, those without endpoints too, and returns when all have a fresh answer or none will come. */
  async look(): Promise<void> {
    this.#hold();
    const begun = this.#agent.loop.now();
    await Promise.all(
      [...this.#peers].map(([vtep, name]) => this.#ask(vtep, name, true).catch(() => undefined)),
    );
    this.#step({ type: "probe-all" });
    for (let waited = 0; waited < LOOK_MS && !this.#closed; waited += LOOK_EVERY_MS) {
      const open = [...this.#peers.keys()].some((vtep) => {
        const { checkedAt } = this.prober.health(vtep);
        return checkedAt === undefined || checkedAt < begun;
      });
      if (!open || this.#device === undefined) return;
      await pause(LOOK_EVERY_MS);
    }
  }

  close(): void {
    this.#closed = true;
    this.#endChecks();
    clearTimeout(this.#scheduled);
    this.#clock.close();
    this.#closeDevice();
  }

  #sync(): void {
    if (this.#closed) return;
    const wanted = this.#wanted();
    // Most of the time of most nodes: nothing to probe, and nothing to ask the kernel for.
    if (!wanted && this.#device === undefined && this.#peers.size === 0) return;
    if (!wanted) this.#closeDevice();
    else if (this.#device === undefined) this.#openDevice();
    this.#peers = wanted ? this.#findPeers() : new Map();
    const peers = new Set(this.#device === undefined ? [] : this.#peers.keys());
    try {
      this.#device?.setPeers(peers);
    } catch (error) {
      // Made by nobody but us, so somebody destroyed it: a new one.
      this.#agent.log.warn({}, `data path: ${errorText(error)}`);
      this.#closeDevice();
    }
    const now = this.#agent.loop.now();
    if (this.#mtu === undefined || now - this.#mtu.at >= MTU_KNOWN_MS)
      this.#mtu = { at: now, bytes: overlayMtu(this.#underlayMtu(), this.#vtep) };
    this.#step({ type: "peers", peers, fullSize: this.#mtu.bytes });
  }

  #wanted(): boolean {
    const held = this.#holdUntil !== undefined && this.#agent.loop.now() < this.#holdUntil;
    return held || this.#agent.endpoints.networks().size > 0;
  }

  #hold(): void {
    this.#holdUntil = after(this.#agent.loop.now(), HOLD_MS);
    this.#sync();
  }

  #openDevice(): void {
    if (this.#agent.loop.now() < this.#nextOpen) return;
    try {
      this.#device = ProbeDevice.open({
        runDirectory: this.#agent.config.runDir,
        dataplane: this.#agent.dataplane,
        vtep: this.#vtep,
        dataPathPort: this.#agent.config.dataPathPort,
        onProbe: (from, probe) => this.#step({ type: "received", from, probe }),
      });
      this.#problem = undefined;
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      this.#nextOpen = this.#agent.loop.now() + REOPEN_MS;
      setTimeout(() => this.refresh(), REOPEN_MS + 1).unref();
      if (this.#problem === error.message) return;
      this.#problem = error.message;
      this.#agent.log.info({ code: error.code }, `data path is not probed: ${error.message}`);
    }
  }

  #closeDevice(): void {
    try {
      this.#device?.close();
    } catch (error) {
      // Its namespace is closed all the same and takes it along.
      this.#agent.log.debug({}, `data path: ${errorText(error)}`);
    }
    this.#device = undefined;
  }

  #findPeers(): Map<IpAddr, NodeName> {
    const { node } = this.#agent.loop;
    const found = new Map<IpAddr, NodeName>();
    for (const member of node.swim.members()) {
      const facts = node.peer(member.name);
      const vtep = facts?.vteps[0];
      const living = member.state === "alive" || member.state === "suspect";
      if (member.name === this.#agent.self || !living || vtep === undefined || vtep === this.#vtep) continue;
      if (isIpv4(vtep) === isIpv4(this.#vtep) && facts?.capabilities.includes("path-probe") === true)
        found.set(vtep, member.name as NodeName);
    }
    return found;
  }

  #step(input: PathInput): void {
    const now = this.#agent.loop.now();
    for (const effect of this.prober.handle(input, now)) {
      switch (effect.type) {
        case "send":
          this.#device?.send(effect.to, effect.probe);
          break;
        case "ask":
          this.#inquire(effect.peer);
          break;
        case "changed":
          this.#report(effect.peer, effect.before, effect.health);
          break;
      }
    }
    this.#clock.wakeAt(this.prober.nextWakeup());
  }

  #inquire(vtep: IpAddr): void {
    const told = (testimony: PeerTestimony | undefined): void => {
      if (!this.#closed) this.#step({ type: "told", peer: vtep, testimony });
    };
    const name = this.#peers.get(vtep);
    if (name === undefined) return;
    this.#ask(vtep, name, false).then(told, () => told(undefined));
  }

  async #ask(vtep: IpAddr, name: NodeName, hold: boolean): Promise<PeerTestimony | undefined> {
    const question = { method: "path", vtep: this.#vtep, hold };
    const reply = pathReply.parse(await this.#agent.loop.ask(name, question, ASK_TIMEOUT_MS));
    if ("error" in reply) throw new NetError("peer-refused", `${vtep}: ${reply.error}`);
    return { probing: reply.result.probing, heardMsAgo: reply.result.heardMsAgo ?? undefined };
  }

  #report(vtep: IpAddr, before: PathHealth, health: PathHealth): void {
    const name = this.#agent.shownName(this.#peers.get(vtep) ?? vtep);
    const isBad = (one: PathHealth): boolean =>
      one.state === "blocked" || (one.state === "ok" && one.detail !== "");
    const worse = isBad(health);
    // The first "ok", "nothing is attached there" and another full size of ours are no news.
    if (health.state === "unknown" || !(worse || isBad(before))) return;
    const text = health.state === "blocked" ? `blocked: ${health.detail}` : health.detail || "ok again";
    this.#agent.event("data-path", name, text);
    if (worse) this.#agent.log.warn({ vtep }, `data path to ${name}: ${text}`);
    else this.#agent.log.info({ vtep }, `data path to ${name}: ${text}`);
  }
}
