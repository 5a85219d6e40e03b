import { bytesEqual } from "../base/bytes.ts";
import { ipFromBytes, subnetContains, type SocketAddr } from "../base/ip.ts";
import type { Instant } from "../base/time.ts";
import type { Alive, Dead, Suspect } from "../wire/memberlist/message.ts";
import type { LeaveReason } from "./boundary.ts";
import type { Spread, Subject, Waiting } from "./broadcast-queue.ts";
import type { Context } from "./context.ts";
import { makeIdentity, MemberRecord, type Identity } from "./member.ts";
import { confirmations, suspicionTerms, type Suspicions, type SuspicionTerms } from "./suspicion.ts";

/** What became of an alive claim. */
export type AliveOutcome =
  | "accepted"
  /** What we know of a living member, or an older incarnation of it. */
  | "known"
  /** An incarnation we have had of one that does not live, or about ourselves and true. */
  | "stale"
  /** About us and wrong: a higher incarnation of ours is on its way. */
  | "refuted"
  /** The name belongs to another address. */
  | "conflict"
  /** Malformed, of a wrong version or network, or beyond a bound. */
  | "refused";

/** How a claim came. */
export interface Via {
  /** Place that told us by datagram. */
  readonly place?: string | undefined;
  /** Source of that datagram, for the allowed networks. */
  readonly source?: SocketAddr | undefined;
  /** Places whose member lists have it, too. */
  readonly knownAt?: readonly string[] | undefined;
  /** Nobody else needs to be told. */
  readonly quiet?: boolean;
  /** The old holder of the name is gone for sure: address and incarnation are not questioned. */
  readonly proven?: boolean;
}

const NOWHERE: Via = {};
/** Senders keep to 512; more only wastes memory. */
const MAX_META_BYTES = 4096;
const MAX_NAME_LENGTH = 255;
const MAX_INCARNATION = 0xffff_ffff;

/** Which claim about a member wins (memberlist state.go: aliveNode, suspectNode, deadNode, refute). */
export class Claims {
  readonly #context: Context;
  readonly #suspicions: Suspicions<MemberRecord>;
  /** Refutations go under this, not under us: the next accusation must not push them out of the queue. */
  readonly #refutation: Subject = { rumor: undefined, number: -1 };
  #lastTerms: { readonly members: number; readonly terms: SuspicionTerms } | undefined;
  /** Set by Leave: from then on our own death is not refuted. */
  leaving = false;

  constructor(context: Context, suspicions: Suspicions<MemberRecord>) {
    this.#context = context;
    this.#suspicions = suspicions;
  }

  /** This node enters its own list; the claim is not questioned. */
  announceSelf(now: Instant, waiting?: Waiting): void {
    const { self, members, queue } = this.#context;
    if (members.get(self.name) === undefined) {
      members.add(self);
      this.#context.emit({ type: "member-joined", member: self, returned: false });
    }
    const claim = this.#aliveOf(self);
    queue.queue(self, claim, this.#context.encode(claim), undefined, "full", waiting);
    self.changedAt = now;
  }

  /** New metadata of our own, announced under a higher incarnation. */
  changeMeta(meta: Uint8Array, now: Instant, waiting: Waiting): void {
    const { self } = this.#context;
    self.identity = makeIdentity({ ...self.identity, meta });
    self.incarnation++;
    this.announceSelf(now, waiting);
    this.#context.emit({ type: "member-updated", member: self });
  }

  alive(claim: Alive, now: Instant, via: Via = NOWHERE): AliveOutcome {
    const context = this.#context;
    const port = claim.port === 0 ? context.self.port : claim.port;
    // Gossip brings everything several times: the most frequent case first, and cheaply.
    const { facts } = context.members;
    if (context.queue.large && via.place !== undefined && via.proven !== true) {
      const number = context.members.numberOf(claim.node);
      if (facts.knowsAlive(number, claim.incarnation, claim.addr, port)) {
        if (facts.incarnation(number) === claim.incarnation) facts.heard(number);
        return "known";
      }
    }
    let member = context.members.get(claim.node);
    const aboutUs = member === context.self;
    if (aboutUs && this.leaving) return "stale";
    if (
      member !== undefined &&
      !aboutUs &&
      via.proven !== true &&
      claim.incarnation <= member.incarnation &&
      member.isAt(claim.addr, port)
    ) {
      if (member.state !== "alive") return "stale";
      if (via.place !== undefined && claim.incarnation === member.incarnation)
        context.queue.heardAgain(member, claim, via.place);
      return "known";
    }
    if (!this.#acceptable(claim, via)) {
      context.count("claims.refused");
      return "refused";
    }
    const returned = member !== undefined;
    let moved = false;
    if (member === undefined) {
      // Incarnations start at 1.
      if (claim.incarnation === 0) return "stale";
      if (context.members.size >= context.config.maxMembers) {
        context.count("claims.refused");
        return "refused";
      }
      member = new MemberRecord(this.#identity(claim, port, undefined), 0, "dead", now);
      context.members.add(member);
    } else if (!member.isAt(claim.addr, port)) {
      if (aboutUs || !(via.proven === true || this.#mayMove(member, now))) {
        context.count("claims.conflict");
        context.emit({ type: "member-conflict", member, claim });
        return "conflict";
      }
      moved = true;
    }
    if (aboutUs) {
      if (claim.incarnation < member.incarnation) return "stale";
      const same = bytesEqual(claim.meta, member.meta) && bytesEqual(claim.vsn, member.vsn);
      if (claim.incarnation === member.incarnation && same) return "stale";
      this.refute(claim.incarnation, now);
      return "refuted";
    }
    if (claim.incarnation <= member.incarnation && !moved && via.proven !== true) return "stale";
    this.#suspicions.cancel(member);
    this.#accept(member, claim, port, returned, now, via);
    return "accepted";
  }

  /** Whether it changed anything. */
  suspect(claim: Suspect, now: Instant, via: Via = NOWHERE): boolean {
    const context = this.#context;
    const { members, queue } = context;
    if (queue.large) {
      const number = members.numberOf(claim.node);
      if (members.facts.knowsSuspect(number, claim.incarnation)) {
        if (via.place !== undefined && members.facts.isSuspect(number, claim.incarnation))
          members.facts.heard(number);
        return false;
      }
    }
    const member = members.get(claim.node);
    if (member === undefined || claim.incarnation < member.incarnation) return false;
    if (member.suspicion !== undefined) {
      if (!this.#suspicions.confirm(member, claim.from)) {
        if (via.place !== undefined && claim.incarnation === member.incarnation)
          queue.heardAgain(member, claim, via.place);
        return false;
      }
      members.note(member);
      queue.queue(member, claim, context.encode(claim), tellers(via), this.#accusationSpread);
      return true;
    }
    if (member.state !== "alive") return false;
    if (member === context.self) {
      this.refute(claim.incarnation, now);
      return true;
    }
    queue.queue(member, claim, context.encode(claim), tellers(via), this.#accusationSpread);
    member.incarnation = claim.incarnation;
    this.#suspicions.start(member, claim.from, this.#terms(), now);
    members.become(member, "suspect", now);
    context.emit({ type: "member-suspected", member, accuser: claim.from });
    return true;
  }

  /** Whether it changed anything. `reason` when the verdict is our own. */
  dead(claim: Dead, now: Instant, via: Via = NOWHERE, reason?: LeaveReason): boolean {
    const context = this.#context;
    const { members, queue } = context;
    if (queue.large) {
      const number = members.numberOf(claim.node);
      if (members.facts.knowsGone(number)) {
        if (via.place !== undefined && claim.incarnation === members.facts.incarnation(number))
          members.facts.heard(number);
        return false;
      }
    }
    const member = members.get(claim.node);
    if (member === undefined || claim.incarnation < member.incarnation) return false;
    const expected = member.suspicion !== undefined;
    this.#suspicions.cancel(member);
    if (!member.present) {
      if (via.place !== undefined && claim.incarnation === member.incarnation)
        queue.heardAgain(member, claim, via.place);
      return false;
    }
    const aboutUs = member === context.self;
    if (aboutUs && !this.leaving) {
      this.refute(claim.incarnation, now);
      return true;
    }
    const left = claim.from === claim.node;
    const waiting = aboutUs ? ({ request: 0, what: "leave" } as const) : undefined;
    const spread = expected && context.massFailure ? "shared" : "full";
    queue.queue(member, claim, context.encode(claim), tellers(via), spread, waiting);
    member.incarnation = claim.incarnation;
    members.become(member, left ? "left" : "dead", now);
    context.emit({
      type: "member-left",
      member,
      reason: left ? { why: "left" } : (reason ?? { why: "told", accuser: claim.from }),
    });
    return true;
  }

  /** Our verdict on a suspect whose time is up. */
  timedOut(member: MemberRecord, now: Instant): void {
    const { suspicion } = member;
    if (suspicion === undefined) return;
    const confirmed = confirmations(suspicion);
    this.#context.count("suspicion.timeout");
    if (confirmed < suspicion.terms.confirmationsWanted) this.#context.count("suspicion.degraded-timeout");
    this.verdict(member, { why: "timeout", confirmations: confirmed }, now);
  }

  verdict(member: MemberRecord, reason: LeaveReason, now: Instant): void {
    const { self } = this.#context;
    const claim: Dead = { type: "dead", incarnation: member.incarnation, node: member.name, from: self.name };
    this.dead(claim, now, NOWHERE, reason);
  }

  /** A suspect answered: the time begins anew, and so does the count of its accusers. */
  suspectAnew(member: MemberRecord, terms: SuspicionTerms, now: Instant): void {
    this.#suspicions.start(member, this.#context.self.name, terms, now);
    this.#context.members.note(member);
  }

  /** Outbids an accusation: our incarnation goes above it, and everybody is told. */
  refute(incarnation: number, now: Instant): void {
    const context = this.#context;
    const { self } = context;
    self.incarnation = Math.min(MAX_INCARNATION, Math.max(self.incarnation, incarnation) + 1);
    self.changedAt = now;
    context.awareness.add(1);
    context.count("claims.refutations");
    const claim = this.#aliveOf(self);
    context.queue.queue(this.#refutation, claim, context.encode(claim), undefined);
  }

  /** What we say about ourselves. */
  selfClaim(): Alive {
    return this.#aliveOf(this.#context.self);
  }

  #accept(member: MemberRecord, claim: Alive, port: number, returned: boolean, now: Instant, via: Via): void {
    const context = this.#context;
    const before = member.state;
    const oldMeta = member.meta;
    const sameMeta = bytesEqual(oldMeta, claim.meta);
    const moved = !member.isAt(claim.addr, port);
    if (!sameMeta || moved || !sameVersions(member, claim)) {
      context.members.describe(member, this.#identity(claim, port, member));
    }
    member.incarnation = claim.incarnation;
    if (before !== "alive") context.members.become(member, "alive", now);
    else context.members.note(member);
    if (via.quiet !== true) {
      const told = claim.port === port ? claim : { ...claim, port };
      const news = before !== "alive" || !sameMeta || moved;
      const spread = !news ? "echo" : now < context.joinStormUntil ? "shared" : "full";
      context.queue.queue(member, told, context.encode(told), tellers(via), spread);
    }
    if (before === "dead" || before === "left") context.emit({ type: "member-joined", member, returned });
    else {
      if (before === "suspect") context.emit({ type: "member-recovered", member });
      if (!sameMeta) context.emit({ type: "member-updated", member });
    }
  }

  /** In a mass failure everybody has many accusers, and none of them need be heard by all. */
  get #accusationSpread(): Spread {
    return this.#context.massFailure ? "echo" : "full";
  }

  /**
   * memberlist counts the dead, too, whom it then waits for to confirm: after restarts, which leave dead names, a small
   * cluster would take three times as long to judge. Kept, as thousands of suspicions may begin under the same terms.
   */
  #terms(): SuspicionTerms {
    const { config, members } = this.#context;
    if (this.#lastTerms?.members !== members.present) {
      this.#lastTerms = { members: members.present, terms: suspicionTerms(config, members.present) };
    }
    return this.#lastTerms.terms;
  }

  #aliveOf(member: MemberRecord): Alive {
    return {
      type: "alive",
      incarnation: member.incarnation,
      node: member.name,
      addr: member.addr,
      port: member.port,
      meta: member.meta,
      vsn: member.vsn,
    };
  }

  #identity(claim: Alive, port: number, known: Identity | MemberRecord | undefined): Identity {
    // Versions shorter than six cannot be used; what was known stays.
    const vsn = claim.vsn.length >= 6 ? claim.vsn.subarray(0, 6) : (known?.vsn ?? new Uint8Array(0));
    return this.#context.identify({ name: claim.node, addr: claim.addr, port, meta: claim.meta, vsn });
  }

  #mayMove(member: MemberRecord, now: Instant): boolean {
    const reclaimMs = this.#context.config.deadNodeReclaimMs;
    return (
      member.state === "left" ||
      (member.state === "dead" && reclaimMs > 0 && now - member.changedAt > reclaimMs)
    );
  }

  #acceptable(claim: Alive, via: Via): boolean {
    if (claim.node.length === 0 || claim.node.length > MAX_NAME_LENGTH) return false;
    if (claim.addr.length !== 4 && claim.addr.length !== 16) return false;
    if (claim.meta.length > MAX_META_BYTES) return false;
    const [min = 0, max = 0] = claim.vsn;
    if (claim.vsn.length >= 3 && (min === 0 || max === 0 || min > max)) return false;
    const networks = this.#context.config.allowedNetworks;
    if (networks.length === 0) return true;
    const ip = ipFromBytes(claim.addr);
    const inside = (from: typeof ip): boolean => networks.some((network) => subnetContains(network, from));
    return inside(ip) && (via.source === undefined || inside(via.source.ip));
  }
}

function tellers({ place, knownAt }: Via): readonly string[] | undefined {
  return knownAt ?? (place === undefined ? undefined : [place]);
}

function sameVersions(member: MemberRecord, claim: Alive): boolean {
  return claim.vsn.length < 6 || bytesEqual(member.vsn, claim.vsn);
}
