import { Deadlines } from "../base/deadlines.ts";
import type { SocketAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";
import type { Context } from "./context.ts";
import type { MemberRecord } from "./member.ts";
import { sendPing, type Prober } from "./probe.ts";
import type { StreamPings } from "./stream-pings.ts";

interface Look {
  readonly target: MemberRecord;
  readonly seqNo: number;
  endsAt: Instant;
  spacingMs: number;
  pings: number;
}

export interface Verdict {
  readonly name: string;
  readonly answered: boolean;
}

/**
 * A last look at a suspect before its death is declared: memberlist declares by the clock alone, so one lost
 * refutation kills. Each look is a few pings (with the accusation, so that it is refuted) and one over TCP.
 */
export class Verifier {
  readonly #context: Context;
  readonly #streamPings: StreamPings;
  readonly #prober: Prober;
  readonly #looks = new Map<string, Look>();
  readonly #bySeqNo = new Map<number, string>();
  /** The next ping or the end of each look. */
  readonly #deadlines = new Deadlines<string>();

  constructor(context: Context, streamPings: StreamPings, prober: Prober) {
    this.#context = context;
    this.#streamPings = streamPings;
    this.#prober = prober;
  }

  /** False when it cannot be looked at: switched off, or too many looks at a time. */
  begin(target: MemberRecord, now: Instant): boolean {
    const { config } = this.#context;
    if (config.verifyMs === 0) return false;
    if (this.#looks.has(target.name)) return true;
    if (this.#looks.size >= config.maxPending) return false;
    const look: Look = {
      target,
      seqNo: this.#context.nextSeqNo(),
      endsAt: after(now, config.verifyMs),
      spacingMs: this.#prober.directTimeoutMs(target.name),
      pings: 0,
    };
    this.#looks.set(target.name, look);
    this.#bySeqNo.set(look.seqNo, target.name);
    this.#context.count("verify.looks");
    this.#ping(look, now);
    return true;
  }

  /** An outcome when the ack belongs to a look. */
  ack(seqNo: number, from: SocketAddr): Verdict | undefined {
    const name = this.#bySeqNo.get(seqNo);
    const look = name === undefined ? undefined : this.#looks.get(name);
    if (name === undefined || look === undefined) return undefined;
    const { address } = look.target;
    if (from.ip === address.ip && from.port === address.port) this.#streamPings.lives(name);
    return this.answered(name);
  }

  /** Undefined when it is not being looked at. */
  answered(name: string): Verdict | undefined {
    return this.abandon(name) ? { name, answered: true } : undefined;
  }

  /** It is dead, or alive again, for another reason. Whether it was being looked at. */
  abandon(name: string): boolean {
    const look = this.#looks.get(name);
    if (look === undefined) return false;
    this.#looks.delete(name);
    this.#bySeqNo.delete(look.seqNo);
    this.#deadlines.delete(name);
    this.#streamPings.cancel("verify", name);
    return true;
  }

  shift(milliseconds: number): void {
    for (const look of this.#looks.values()) look.endsAt = after(look.endsAt, milliseconds);
    this.#deadlines.shift(milliseconds);
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  /** Looks that ended without an answer. */
  wake(now: Instant): Verdict[] {
    const ended: Verdict[] = [];
    for (const name of this.#deadlines.takeDue(now)) {
      const look = this.#looks.get(name);
      if (look === undefined) continue;
      if (now < look.endsAt) this.#ping(look, now);
      else {
        this.abandon(name);
        ended.push({ name, answered: false });
      }
    }
    return ended;
  }

  #ping(look: Look, now: Instant): void {
    sendPing(this.#context, look.target, look.seqNo);
    if (look.pings++ === 0) {
      this.#streamPings.begin("verify", look.target, look.seqNo, look.endsAt, now);
    }
    const next = after(now, look.spacingMs);
    look.spacingMs *= 2;
    this.#deadlines.set(look.target.name, next < look.endsAt ? next : look.endsAt);
  }
}
