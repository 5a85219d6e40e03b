import { Deadlines } from "../base/deadlines.ts";
import { after, type Instant } from "../base/time.ts";
import type { StreamFailure } from "./boundary.ts";
import type { Context } from "./context.ts";
import type { MemberRecord } from "./member.ts";

/** Between a refusal and the second look: a process that is only restarting its listener gets that long. */
const SECOND_LOOK_MS = 100;
/** Protocol from which a member answers a ping over TCP. */
const PROTOCOL_STREAM_PING = 3;

/** On whose behalf TCP is tried. */
export type StreamPingOwner = "probe" | "verify" | "move";

export interface StreamPingOutcome {
  readonly owner: StreamPingOwner;
  readonly name: string;
  /** "gone": the kernel at its exact address refused us twice. */
  readonly result: "acked" | "gone" | "failed";
}

interface StreamPing {
  readonly owner: StreamPingOwner;
  readonly target: MemberRecord;
  /** As it was when asked: the proof is about this place. */
  readonly place: string;
  readonly seqNo: number;
  readonly endsAt: Instant;
  refused: boolean;
}

/**
 * Pings over TCP, memberlist's fallback for networks that lose UDP, and what a refusal proves: a host that runs
 * answers a connection to a port nobody listens on with a reset, so the process is gone. Stopped processes, full
 * backlogs and silent hosts never refuse. Whoever was seen refusing and yet alive (a firewall that rejects TCP) is
 * not believed again until TCP works.
 */
export class StreamPings {
  readonly #context: Context;
  readonly #running = new Map<number, StreamPing>();
  /** The same by whom it is for: one each. */
  readonly #byTarget = {
    probe: new Map<string, number>(),
    verify: new Map<string, number>(),
    move: new Map<string, number>(),
  };
  readonly #secondLooks = new Deadlines<number>();
  /** Names that refused; true = and were alive. Bounded by maxPending: the oldest give way. */
  readonly #refusers = new Map<string, boolean>();
  #nextId = 1;

  constructor(context: Context) {
    this.#context = context;
  }

  begin(owner: StreamPingOwner, target: MemberRecord, seqNo: number, endsAt: Instant, now: Instant): void {
    const { config } = this.#context;
    if (!config.tcpPing || target.protocolMax < PROTOCOL_STREAM_PING) return;
    if (this.#running.size >= config.maxPending) return;
    this.cancel(owner, target.name);
    const id = this.#nextId++;
    const { place } = target.identity;
    this.#running.set(id, { owner, target, place, seqNo, endsAt, refused: false });
    this.#byTarget[owner].set(target.name, id);
    this.#dial(id, now);
  }

  cancel(owner: StreamPingOwner, name: string): void {
    const id = this.#byTarget[owner].get(name);
    if (id !== undefined) this.#end(id);
  }

  /** Undefined: unknown, cancelled, or a second look is to come. */
  result(
    id: number,
    result: { readonly seqNo: number } | StreamFailure,
    now: Instant,
  ): StreamPingOutcome | undefined {
    const ping = this.#running.get(id);
    if (ping === undefined) return undefined;
    const { owner, target } = ping;
    const outcome = (result: StreamPingOutcome["result"]): StreamPingOutcome => {
      this.#end(id);
      return { owner, name: target.name, result };
    };
    if ("seqNo" in result) {
      this.#refusers.delete(target.name);
      return outcome(result.seqNo === ping.seqNo ? "acked" : "failed");
    }
    const { trustRefusals } = this.#context.config;
    const proof = result.failure === "refused" && trustRefusals && ping.place === target.identity.place;
    if (!proof || this.#refusers.get(target.name) === true) return outcome("failed");
    this.#noteRefusal(target.name);
    if (ping.refused) return outcome("gone");
    ping.refused = true;
    this.#secondLooks.set(id, after(now, SECOND_LOOK_MS));
    return undefined;
  }

  /** It answered a ping of ours from its own address. */
  lives(name: string): void {
    if (this.#refusers.has(name)) this.#refusers.set(name, true);
  }

  nextWakeup(): Instant | undefined {
    return this.#secondLooks.earliest();
  }

  wake(now: Instant): void {
    for (const id of this.#secondLooks.takeDue(now)) this.#dial(id, now);
  }

  #dial(id: number, now: Instant): void {
    const ping = this.#running.get(id);
    if (ping === undefined) return;
    const timeoutMs = Math.max(SECOND_LOOK_MS, ping.endsAt - now);
    this.#context.count("probe.tcp");
    this.#context.emit({
      type: "stream-ping",
      ping: id,
      to: ping.target.address,
      message: this.#context.ping(ping.seqNo, ping.target.name),
      timeoutMs,
    });
  }

  #end(id: number): void {
    const ping = this.#running.get(id);
    if (ping !== undefined) this.#byTarget[ping.owner].delete(ping.target.name);
    this.#running.delete(id);
    this.#secondLooks.delete(id);
  }

  #noteRefusal(name: string): void {
    if (this.#refusers.size >= this.#context.config.maxPending) {
      for (const oldest of this.#refusers.keys()) {
        this.#refusers.delete(oldest);
        break;
      }
    }
    this.#refusers.set(name, false);
  }
}
