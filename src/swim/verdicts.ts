import { formatSocketAddr, ipToBytes, type SocketAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";
import type { Claims } from "./claims.ts";
import type { Context } from "./context.ts";
import type { Exchanges } from "./exchanges.ts";
import type { MemberRecord } from "./member.ts";
import type { MoveOutcome, Moves } from "./moves.ts";
import { OwnLink } from "./own-link.ts";
import type { ProbeOutcome } from "./probe.ts";
import type { Disputed } from "./push-pull.ts";
import { confirmations, type Suspicions } from "./suspicion.ts";
import type { Verdict, Verifier } from "./verify.ts";

/** About so many members look at one suspect at once; the others wait for their word first. */
const LOOKERS = 32;
/** How long they wait, in looks. */
const WORD_TAKES = 4;

export interface VerdictParts {
  readonly claims: Claims;
  readonly suspicions: Suspicions<MemberRecord>;
  readonly verifier: Verifier;
  readonly exchanges: Exchanges;
  readonly moves: Moves;
}

/** From evidence to judgement: what a failed probe, a last look, a refusal or a second holder of an address means. */
export class Verdicts {
  readonly #context: Context;
  readonly #parts: VerdictParts;
  readonly #ownLink = new OwnLink();

  constructor(context: Context, parts: VerdictParts) {
    this.#context = context;
    this.#parts = parts;
  }

  probed(outcome: ProbeOutcome | undefined, now: Instant): void {
    if (outcome === undefined) return;
    const { target, ok } = outcome;
    this.#ownLink.record(target.name, ok);
    if (ok) return;
    const [heir] = this.#othersAt(target);
    if (heir !== undefined) this.#parts.moves.replaced(target, heir, now);
    this.#suspect(target, now);
  }

  /** A suspicion ran out: look once more before judging. */
  timeIsUp(suspect: MemberRecord, now: Instant): void {
    if (this.#leftToOthers(suspect, now) || this.#parts.verifier.begin(suspect, now)) return;
    this.#parts.claims.timedOut(suspect, now);
  }

  /** All members have the same reason to look, so in a large cluster only some do at once. */
  #leftToOthers(suspect: MemberRecord, now: Instant): boolean {
    const { config, members, random } = this.#context;
    const { suspicion } = suspect;
    if (suspicion === undefined || suspicion.waited || config.verifyMs === 0) return false;
    if (random.next() * members.size <= LOOKERS) return false;
    suspicion.waited = true;
    const waitMs = config.verifyMs * (WORD_TAKES + 2 * random.next());
    this.#parts.suspicions.postpone(suspect, after(now, waitMs));
    return true;
  }

  /** The last look at a member is over. */
  looked({ name, answered }: Verdict, now: Instant): void {
    const { claims, suspicions, exchanges } = this.#parts;
    const member = this.#context.members.get(name);
    if (member?.present !== true) return;
    const { suspicion } = member;
    if (answered) {
      if (suspicion === undefined) return;
      this.#context.count("verify.answered");
      claims.suspectAnew(member, suspicion.terms, now);
      return exchanges.refresh(member);
    }
    if (suspicion === undefined) return this.#suspect(member, now);
    const { config, awareness } = this.#context;
    const ownWordOnly = confirmations(suspicion) < Math.max(1, suspicion.terms.confirmationsWanted);
    const mayWait = now - suspicion.startedAt < suspicion.terms.maxMs + config.holdVerdictsMs;
    if (config.holdVerdictsMs > 0 && ownWordOnly && mayWait && this.#ownLink.doubtful) {
      this.#context.count("verify.held");
      return suspicions.postpone(member, after(now, awareness.scale(config.probeIntervalMs) / 2));
    }
    claims.timedOut(member, now);
  }

  /** Its own kernel said so, twice. */
  refused(name: string, now: Instant): void {
    const member = this.#context.members.get(name);
    if (member?.present !== true) return;
    this.#context.count("suspicion.refused");
    this.#parts.claims.verdict(member, { why: "refused" }, now);
  }

  /** Nothing listens there any more, it seems: look at once at whom we believe to be there. */
  doubtPlace(address: SocketAddr, now: Instant): void {
    const { ip, port } = address;
    const where = { addr: ipToBytes(ip), port, place: formatSocketAddr(address) };
    for (const member of this.#context.members.presentAt(where)) {
      this.#parts.verifier.begin(member, now);
    }
  }

  /** Names claimed at another address than we know. */
  disputed(disputed: readonly Disputed[], now: Instant): void {
    for (const { claim } of disputed) {
      const member = this.#context.members.get(claim.node);
      if (member !== undefined && member !== this.#context.self) this.#parts.moves.moved(member, claim, now);
    }
  }

  /**
   * Dead, says another's list, and we had heard nothing, or of too few accusers: others have looked, and in a large cluster
   * nobody would confirm our suspicion any more, so we look ourselves, and at once.
   */
  mourned(members: readonly MemberRecord[], now: Instant): void {
    if (!this.#context.queue.large) return;
    for (const member of members) {
      if (member.suspicion !== undefined) member.suspicion.waited = true;
      this.#parts.suspicions.postpone(member, now);
    }
  }

  /** A newcomer at the address of somebody else: most likely the same host after a restart. */
  newcomerAt(newcomer: MemberRecord, now: Instant): void {
    for (const old of this.#othersAt(newcomer)) this.#parts.moves.replaced(old, newcomer, now);
  }

  /**
   * Of two names at one address one is a former life of the other. Most hear of its death; who did not would not
   * find out before its turn to be probed, which in a large cluster is a matter of many minutes.
   */
  lookForFormerLives(now: Instant): void {
    for (const [one, other] of this.#context.members.sharingPlaces()) {
      // Whoever answers to its name has the address.
      this.#parts.moves.replaced(one, other, now);
      this.#parts.moves.replaced(other, one, now);
    }
  }

  moveDecided(outcome: MoveOutcome | undefined, now: Instant): void {
    if (outcome === undefined) return;
    if (outcome.type === "moved") {
      this.#parts.claims.alive(outcome.claim, now, { proven: true });
      return;
    }
    const { old, by } = outcome;
    if (old.present) this.#parts.claims.verdict(old, { why: "replaced", by }, now);
  }

  #suspect(member: MemberRecord, now: Instant): void {
    const from = this.#context.self.name;
    const { incarnation, name: node } = member;
    this.#parts.claims.suspect({ type: "suspect", incarnation, node, from }, now);
  }

  /** Members other than this one, and than us, believed to be at its address. */
  #othersAt(member: MemberRecord): MemberRecord[] {
    return this.#context.members.presentAt(member.identity).filter((other) => other !== member);
  }
}
