import { Deadlines } from "../base/deadlines.ts";
import type { SocketAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";
import type { Alive } from "../wire/memberlist/message.ts";
import type { Context } from "./context.ts";
import type { MemberRecord } from "./member.ts";
import { socketAddr } from "./relay.ts";
import type { StreamPings } from "./stream-pings.ts";

/** How long the two addresses have to prove themselves. */
const PATIENCE_MS = 2_000;
/** Contested names at a time; a cluster where more are contested has another problem. */
const MAX_CONTESTS = 16;

export type MoveOutcome =
  /** The name lives at the new address and its old process is gone: believe the claim. */
  | { readonly type: "moved"; readonly claim: Alive }
  /** `by` answers at the address of `old`, which therefore is gone. */
  | { readonly type: "replaced"; readonly old: MemberRecord; readonly by: string };

interface Move {
  readonly type: "move";
  readonly claim: Alive;
  readonly member: MemberRecord;
  newAnswers: boolean;
  oldGone: boolean;
}

interface Replacement {
  readonly type: "replacement";
  readonly old: MemberRecord;
  readonly by: MemberRecord;
}

/**
 * A name at a new address, or an address under a new name: a restart, most often. memberlist keeps to the first
 * claimant (which for minutes may be a dead process); here both places are asked.
 */
export class Moves {
  readonly #context: Context;
  readonly #streamPings: StreamPings;
  /** By the sequence number of the ping to the new holder. */
  readonly #contests = new Map<number, Move | Replacement>();
  readonly #deadlines = new Deadlines<number>();

  constructor(context: Context, streamPings: StreamPings) {
    this.#context = context;
    this.#streamPings = streamPings;
  }

  /** `claim` names another address for `member`. */
  moved(member: MemberRecord, claim: Alive, now: Instant): void {
    const { config, self } = this.#context;
    const port = claim.port === 0 ? self.port : claim.port;
    const address = socketAddr(claim.addr, port);
    if (!config.verifyMoves || address === undefined || this.#contests.size >= MAX_CONTESTS) return;
    for (const contest of this.#contests.values()) {
      if (contest.type === "move" && contest.member === member) return;
    }
    const seqNo = this.#context.nextSeqNo();
    const move: Move = { type: "move", claim, member, newAnswers: false, oldGone: !member.present };
    this.#open(seqNo, move, now);
    this.#context.sendBare(address, [this.#context.ping(seqNo, claim.node)], false);
    if (!move.oldGone) {
      this.#streamPings.begin("move", member, seqNo, after(now, PATIENCE_MS), now);
    }
  }

  /** `by` and `old` both claim one address. */
  replaced(old: MemberRecord, by: MemberRecord, now: Instant): void {
    if (!this.#context.config.verifyMoves || this.#contests.size >= MAX_CONTESTS) return;
    for (const contest of this.#contests.values()) {
      if (contest.type === "replacement" && contest.old === old) return;
    }
    const seqNo = this.#context.nextSeqNo();
    this.#open(seqNo, { type: "replacement", old, by }, now);
    this.#context.sendBare(by.address, [this.#context.ping(seqNo, by.name)], false);
  }

  ack(seqNo: number, from: SocketAddr): MoveOutcome | undefined {
    const contest = this.#contests.get(seqNo);
    if (contest === undefined) return undefined;
    if (contest.type === "replacement") {
      const { address } = contest.by;
      if (from.ip !== address.ip || from.port !== address.port) return undefined;
      this.#close(seqNo);
      return { type: "replaced", old: contest.old, by: contest.by.name };
    }
    contest.newAnswers = true;
    return this.#decide(seqNo, contest);
  }

  /** What TCP said about the old address of a name. */
  oldAddress(name: string, result: "acked" | "gone" | "failed"): MoveOutcome | undefined {
    for (const [seqNo, contest] of this.#contests) {
      if (contest.type !== "move" || contest.member.name !== name) continue;
      if (result === "gone") contest.oldGone = true;
      // Both live: a real conflict, which the first claimant wins.
      if (result === "acked") this.#close(seqNo);
      else return this.#decide(seqNo, contest);
    }
    return undefined;
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  wake(now: Instant): void {
    for (const seqNo of this.#deadlines.takeDue(now)) this.#close(seqNo);
  }

  #decide(seqNo: number, move: Move): MoveOutcome | undefined {
    if (!move.newAnswers || !(move.oldGone || !move.member.present)) return undefined;
    this.#close(seqNo);
    return { type: "moved", claim: move.claim };
  }

  #open(seqNo: number, contest: Move | Replacement, now: Instant): void {
    this.#contests.set(seqNo, contest);
    this.#deadlines.set(seqNo, after(now, PATIENCE_MS));
    this.#context.count("moves.contested");
  }

  #close(seqNo: number): void {
    const contest = this.#contests.get(seqNo);
    this.#contests.delete(seqNo);
    this.#deadlines.delete(seqNo);
    if (contest?.type === "move") this.#streamPings.cancel("move", contest.member.name);
  }
}
