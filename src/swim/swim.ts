import { assert, unreachable } from "../base/assert.ts";
import { Deadlines } from "../base/deadlines.ts";
import { formatSocketAddr, type SocketAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import { encodeMessage, type Alive, type MemberlistMessage, type Ping } from "../wire/memberlist/message.ts";
import type { PushPullNode } from "../wire/memberlist/stream.ts";
import type { StreamFailure, SwimEffect, SwimInput, UserBroadcasts } from "./boundary.ts";
import type { Waiting } from "./broadcast-queue.ts";
import { Claims, type Via } from "./claims.ts";
import type { SwimConfig } from "./config.ts";
import { Context, userMessage } from "./context.ts";
import { Exchanges, type ExchangeEnd } from "./exchanges.ts";
import { Gossip } from "./gossip.ts";
import {
  makeIdentity,
  MemberRecord,
  understandsCrc,
  type Description,
  type Identity,
  type Member,
} from "./member.ts";
import { Moves, type MoveOutcome } from "./moves.ts";
import { OwnLink } from "./own-link.ts";
import { dropDeparted, Prober, type ProbeOutcome } from "./probe.ts";
import type { Disputed } from "./push-pull.ts";
import { snapshotOf } from "./push-pull.ts";
import { accusation, Reconnector } from "./reconnect.ts";
import { Relay, sourceOf } from "./relay.ts";
import { StreamPings } from "./stream-pings.ts";
import { confirmations, Suspicions } from "./suspicion.ts";
import { Verifier, type Verdict } from "./verify.ts";

const MAX_META_BYTES = 512;
/** A wakeup so late was not the timer's fault: the process stood still. */
const STALL_MS = 100;
/** Health points for one stall: some, not all, as it may be the only one. */
const MAX_STALL_PENALTY = 4;
const NO_PAYLOAD = new Uint8Array(0);

export interface SwimOptions {
  /** 1 – 255 characters, unique in the cluster. */
  readonly name: string;
  /** Announced to others: 4 or 16 bytes, written as they are; port 1 … 65535. */
  readonly address: { readonly addr: Uint8Array; readonly port: number };
  /** At most 512 bytes. */
  readonly meta: Uint8Array;
  /** Six bytes: protocol min, max, current; delegate min, max, current. `1 5 2 0 0 0` for Docker, `1 5 2 2 5 4` for serf. */
  readonly vsn: Uint8Array;
  readonly config: SwimConfig;
  readonly random: Random;
  readonly userBroadcasts: UserBroadcasts;
  /** Bytes that encryption and label add to each packet. Default 0. */
  readonly packetOverhead?: number;
  /** Default: `makeIdentity`. Many nodes in one process may share what they know of each other. */
  readonly identify?: (description: Description) => Identity;
  /** Default: `encodeMessage`. For many nodes in one process, which may share what they encode. */
  readonly encode?: (message: MemberlistMessage) => Uint8Array;
}

/** SWIM with Lifeguard as memberlist speaks it: who is there, who is not. Owns no socket and no timer. */
export class Swim {
  readonly #context: Context;
  readonly #claims: Claims;
  readonly #suspicions: Suspicions;
  readonly #streamPings: StreamPings;
  readonly #prober: Prober;
  readonly #verifier: Verifier;
  readonly #relay: Relay;
  readonly #gossip: Gossip;
  readonly #exchanges: Exchanges;
  readonly #reconnector: Reconnector;
  readonly #moves: Moves;
  readonly #ownLink = new OwnLink();
  /** Metadata updates under way, by request, and the goodbye. */
  readonly #announcements = new Deadlines<number>();
  #leaveBy: Instant | undefined;
  #sweepAt: Instant | undefined;
  /** When this node should have been woken next, as of the last step. */
  #expectedAt: Instant | undefined;
  #lastStallAt: Instant | undefined;

  /** @throws an invariant error on metadata above 512 bytes; DecodeError on an address of another length. */
  constructor(options: SwimOptions) {
    assert(options.meta.length <= MAX_META_BYTES, "metadata has at most 512 bytes");
    const { name, address, meta, vsn } = options;
    const self = new MemberRecord(makeIdentity({ name, ...address, meta, vsn }), 1, "alive", 0 as Instant);
    const context = new Context({
      self,
      config: options.config,
      random: options.random,
      userBroadcasts: options.userBroadcasts,
      packetOverhead: options.packetOverhead ?? 0,
      identify: options.identify ?? makeIdentity,
      encode: options.encode ?? encodeMessage,
    });
    this.#context = context;
    this.#suspicions = new Suspicions(options.config.verifyMs);
    this.#claims = new Claims(context, this.#suspicions);
    this.#streamPings = new StreamPings(context);
    this.#prober = new Prober(context, this.#streamPings);
    this.#verifier = new Verifier(context, this.#streamPings, this.#prober);
    this.#relay = new Relay(context);
    this.#gossip = new Gossip(context);
    this.#exchanges = new Exchanges(context, this.#claims);
    this.#reconnector = new Reconnector(context);
    this.#moves = new Moves(context, this.#streamPings);
  }

  handle(input: SwimInput, now: Instant): SwimEffect[] {
    this.#noticeStall(now);
    switch (input.type) {
      case "start":
        this.#start(now);
        break;
      case "wake":
        this.#wake(now);
        break;
      case "packet":
        this.#packet(input.from, input.messages, now);
        break;
      case "stream-ping":
        this.#streamPing(input.stream, input.ping);
        break;
      case "push-pull-request": {
        const { stream, from, join, nodes } = input;
        const { disputed, requester } = this.#exchanges.request(stream, from, join, nodes, now);
        this.#settleDisputes(disputed, now);
        if (requester !== undefined) this.#replacePredecessor(requester, now);
        break;
      }
      case "stream-gone":
        this.#exchanges.gone(input.stream);
        break;
      case "push-pull-reply":
        this.#exchanged(this.#exchanges.reply(input.exchange, input.nodes, now), now);
        break;
      case "push-pull-failed":
        this.#exchanged(this.#exchanges.failed(input.exchange, input.failure), now);
        break;
      case "stream-ping-result":
        this.#streamPingResult(input.ping, input.result, now);
        break;
      case "peer-refused":
        this.#suspectPlace(input.address, now);
        break;
      case "join":
        this.#exchanges.join(input.request, input.addresses);
        if (input.keepTrying === true) this.#reconnector.keepTrying(input.addresses, now);
        break;
      case "cancel-join":
        this.#exchanges.cancelJoin(input.request);
        break;
      case "leave":
        this.#leave(input.timeoutMs, now);
        break;
      case "set-meta":
        this.#setMeta(input.request, input.meta, input.timeoutMs, now);
        break;
      case "send-user":
        this.#sendUser(input.to, input.payload);
        break;
      case "loop-delay":
        if (this.#lastStallAt === undefined || now - this.#lastStallAt > input.ms)
          this.#stalled(input.ms, now);
        break;
      case "packet-overhead":
        this.#context.packetOverhead = input.bytes;
        break;
      default:
        unreachable(input);
    }
    return this.#finish(now);
  }

  /** When to call `handle({ type: "wake" })` next; undefined before `start`. Ask again when a user broadcast was queued. */
  nextWakeup(): Instant | undefined {
    return earliest(this.#expectedAt, this.#gossip.nextWakeup());
  }

  #earliestDeadline(): Instant | undefined {
    return earliest(
      this.#prober.nextWakeup(),
      this.#suspicions.nextWakeup(),
      this.#verifier.nextWakeup(),
      this.#streamPings.nextWakeup(),
      this.#relay.nextWakeup(),
      this.#gossip.nextWakeup(),
      this.#exchanges.nextWakeup(),
      this.#reconnector.nextWakeup(),
      this.#moves.nextWakeup(),
      this.#announcements.earliest(),
      this.#leaveBy,
      this.#sweepAt,
    );
  }

  /** This node. */
  get self(): Member {
    return this.#context.self;
  }

  /** Everybody known, this node included, in whatever state. */
  members(): Iterable<Member> {
    return this.#context.members;
  }

  /** How many that are. */
  get size(): number {
    return this.#context.members.size;
  }

  /** How many of them are in state alive. */
  get aliveCount(): number {
    return this.#context.members.alive;
  }

  member(name: string): Member | undefined {
    return this.#context.members.get(name);
  }

  /** The member list for a push/pull, in whatever state each is. */
  snapshot(): PushPullNode[] {
    return snapshotOf(this.#context.members);
  }

  /** Smoothed round trip to a member, once measured. */
  rttMs(name: string): number | undefined {
    return this.#context.roundTrips.smoothedMs(name);
  }

  /** 0 (well) … `awarenessMaxMultiplier` − 1. */
  get healthScore(): number {
    return this.#context.awareness.score;
  }

  /** A suspicion under way: what it was started with, and how many confirmed it. */
  suspicion(name: string):
    | {
        readonly confirmations: number;
        readonly wanted: number;
        readonly minMs: number;
        readonly maxMs: number;
      }
    | undefined {
    const suspicion = this.#suspicions.get(name);
    if (suspicion === undefined) return undefined;
    const { minMs, maxMs, confirmationsWanted: wanted } = suspicion.terms;
    return { confirmations: confirmations(suspicion), wanted, minMs, maxMs };
  }

  /** Broadcasts waiting. */
  get queueLength(): number {
    return this.#context.queue.length;
  }

  /** The broadcasts waiting, encoded. */
  queued(): Uint8Array[] {
    return this.#context.queue.payloads();
  }

  /** Dead members that are tried again. */
  get departedCount(): number {
    return this.#reconnector.size;
  }

  /** Totals since the start, by name, for metrics. */
  get counters(): Readonly<Record<string, number>> {
    return this.#context.counters;
  }

  #start(now: Instant): void {
    this.#claims.announceSelf(now);
    this.#prober.start(now);
    this.#exchanges.start(now);
    this.#sweepAt = after(now, this.#context.config.gossipToTheDeadMs);
  }

  #wake(now: Instant): void {
    this.#streamPings.wake(now);
    this.#probed(this.#prober.wake(now), now);
    for (const verdict of this.#verifier.wake(now)) this.#judged(verdict, now);
    for (const name of this.#suspicions.takeDue(now)) this.#timeIsUp(name, now);
    this.#relay.wake(now);
    this.#exchanges.wake(now);
    this.#reconnector.wake(now);
    this.#moves.wake(now);
    this.#gossip.wake(now);
    for (const request of this.#announcements.takeDue(now)) {
      this.#context.emit({ type: "meta-announced", request, complete: false });
    }
    if (this.#leaveBy !== undefined && now >= this.#leaveBy) this.#left(false);
    if (this.#sweepAt !== undefined && now >= this.#sweepAt) {
      this.#sweepAt = after(now, this.#context.config.gossipToTheDeadMs);
      dropDeparted(this.#context, now);
    }
  }

  /** Pings and answers in order, then good news before bad: what an alive outdates need not be believed first. */
  #packet(from: SocketAddr, messages: readonly MemberlistMessage[], now: Instant): void {
    const depth = this.#context.config.handoffDepth;
    const via: Via = { place: formatSocketAddr(from), source: from };
    let state = 0;
    for (const message of messages) {
      if (message.type === "alive" && ++state <= depth) this.#alive(message, from, via, now);
    }
    let other = 0;
    for (const message of messages) {
      switch (message.type) {
        case "ping":
          this.#ping(message, from, now);
          break;
        case "indirect-ping":
          this.#relay.request(message, from, now);
          break;
        case "ack":
          this.#ack(message.seqNo, from, now);
          break;
        case "nack":
          this.#prober.nack(message.seqNo);
          break;
        case "suspect":
        case "dead":
          if (++other > depth) break;
          if (message.type === "dead") this.#claims.dead(message, now, via);
          else this.#claims.suspect(message, now, via);
          if (message.node === this.#context.self.name) this.#answerAccuser(from);
          break;
        case "alive":
        case "user":
        case "error":
          break;
        default:
          unreachable(message);
      }
    }
    const dropped = Math.max(0, state - depth) + Math.max(0, other - depth);
    if (dropped > 0) this.#context.count("packet.handoff-full", dropped);
  }

  #ping(ping: Ping, from: SocketAddr, now: Instant): void {
    if (!this.#namesUs(ping)) return;
    const to = sourceOf(ping, from);
    const place = formatSocketAddr(to);
    this.#context.send(to, place, { type: "ack", seqNo: ping.seqNo, payload: NO_PAYLOAD });
    this.#heardFrom(ping.sourceNode, place, now);
    this.#introduced(ping, to, from, now);
  }

  #introduced(ping: Ping, source: SocketAddr, from: SocketAddr, now: Instant): void {
    const { config, self, members } = this.#context;
    if (config.reconnectIntervalMs === 0 || this.#claims.leaving || ping.node !== self.name) return;
    if (ping.sourceNode === "" || members.get(ping.sourceNode) !== undefined || source.ip !== from.ip) return;
    this.#exchanges.stranger(ping.sourceNode, source, now);
  }

  #streamPing(stream: number, ping: Ping): void {
    if (this.#namesUs(ping)) this.#context.emit({ type: "stream-ack", stream, seqNo: ping.seqNo });
    else this.#context.emit({ type: "close-stream", stream });
  }

  #namesUs(ping: Ping): boolean {
    if (ping.node === "" || ping.node === this.#context.self.name) return true;
    this.#context.count("ping.misdirected");
    return false;
  }

  /** Whoever pings us lives. If we think otherwise it should hear that, and refute. */
  #heardFrom(name: string, place: string, now: Instant): void {
    if (this.#context.config.reconnectIntervalMs === 0 || this.#claims.leaving) return;
    const member = this.#context.members.get(name);
    if (member !== undefined && member.identity.place !== place) return;
    if (member?.state === "suspect" || member?.state === "dead") this.#accuse(member);
    const departed = member?.present === true ? undefined : this.#reconnector.signOfLife(place, now);
    if (departed !== undefined && departed.name === name) this.#exchanges.reconnect(departed.address);
  }

  #accuse(member: MemberRecord): void {
    const message = { ...accusation(this.#context, member) };
    this.#context.sendBare(member.address, [message], understandsCrc(member));
  }

  /** Whoever brings an accusation of us hears the refutation from us, new or old, without waiting for gossip. */
  #answerAccuser(from: SocketAddr): void {
    if (this.#context.config.verifyMs === 0 || this.#claims.leaving) return;
    this.#context.count("claims.reminders");
    this.#context.sendBare(from, [this.#claims.selfClaim()], false);
  }

  #alive(claim: Alive, from: SocketAddr, via: Via, now: Instant): void {
    const before = this.#context.members.alive;
    const outcome = this.#claims.alive(claim, now, via);
    if (this.#context.members.alive > before) this.#exchanges.newcomer(now);
    const member = this.#context.members.get(claim.node);
    if (outcome === "conflict") this.#settleDisputes([{ claim, outcome }], now);
    // A dead one that restarted below its old incarnation speaks for itself.
    if (outcome === "stale" && member?.state === "dead" && member.identity.place === via.place) {
      this.#heardFrom(claim.node, formatSocketAddr(from), now);
    }
  }

  #ack(seqNo: number, from: SocketAddr, now: Instant): void {
    const probed = this.#prober.ack(seqNo, from, now);
    if (probed !== undefined) return this.#probed(probed, now);
    if (this.#relay.ack(seqNo)) return;
    const verdict = this.#verifier.ack(seqNo, from);
    if (verdict !== undefined) return this.#judged(verdict, now);
    const back = this.#reconnector.ack(seqNo, now);
    if (back !== undefined) return this.#exchanges.reconnect(back);
    this.#moveDecided(this.#moves.ack(seqNo, from), now);
  }

  #probed(outcome: ProbeOutcome | undefined, now: Instant): void {
    if (outcome === undefined) return;
    const { target, ok } = outcome;
    this.#ownLink.record(target.name, ok);
    if (ok) return;
    this.#replacePredecessorAt(target, now);
    this.#suspect(target, now);
  }

  #suspect(member: MemberRecord, now: Instant): void {
    const from = this.#context.self.name;
    this.#claims.suspect({ type: "suspect", incarnation: member.incarnation, node: member.name, from }, now);
  }

  /** A suspicion ran out: look once more before the verdict. */
  #timeIsUp(name: string, now: Instant): void {
    const member = this.#context.members.get(name);
    if (member !== undefined && this.#verifier.begin(member, now)) return;
    this.#claims.timedOut(name, now);
  }

  #judged({ name, answered }: Verdict, now: Instant): void {
    const member = this.#context.members.get(name);
    if (member?.present !== true) return;
    const suspicion = this.#suspicions.get(name);
    if (answered) {
      if (suspicion === undefined) return;
      this.#context.count("verify.answered");
      this.#suspicions.start(name, this.#context.self.name, suspicion.terms, now);
      return this.#exchanges.refresh(member);
    }
    if (suspicion === undefined) return this.#suspect(member, now);
    const { config, awareness } = this.#context;
    const ownWordOnly = confirmations(suspicion) < Math.max(1, suspicion.terms.confirmationsWanted);
    const held = now - suspicion.startedAt < suspicion.terms.maxMs + config.holdVerdictsMs;
    if (config.holdVerdictsMs > 0 && ownWordOnly && held && this.#ownLink.doubtful) {
      this.#context.count("verify.held");
      return this.#suspicions.postpone(name, after(now, awareness.scale(config.probeIntervalMs) / 2));
    }
    this.#claims.timedOut(name, now);
  }

  #streamPingResult(id: number, result: { readonly seqNo: number } | StreamFailure, now: Instant): void {
    const outcome = this.#streamPings.result(id, result, now);
    if (outcome === undefined) return;
    const { owner, name } = outcome;
    if (owner === "move") return this.#moveDecided(this.#moves.oldAddress(name, outcome.result), now);
    const member = this.#context.members.get(name);
    if (outcome.result === "gone" && member?.present === true) {
      this.#context.count("suspicion.refused");
      return this.#claims.verdict(member, { why: "refused" }, now);
    }
    if (outcome.result !== "acked") return;
    if (owner === "probe") return this.#prober.streamAcked(name);
    const verdict = this.#verifier.answered(name);
    if (verdict !== undefined) this.#judged(verdict, now);
  }

  #exchanged(end: ExchangeEnd | undefined, now: Instant): void {
    if (end === undefined) return;
    this.#settleDisputes(end.disputed, now);
    if (end.refused) this.#suspectPlace(end.address, now);
  }

  /** Nothing listens there any more, it seems: look at once at whom we believe to be there. */
  #suspectPlace(address: SocketAddr, now: Instant): void {
    const place = formatSocketAddr(address);
    for (const member of this.#context.members) {
      if (member.present && member !== this.#context.self && member.identity.place === place) {
        this.#verifier.begin(member, now);
      }
    }
  }

  #settleDisputes(disputed: readonly Disputed[], now: Instant): void {
    for (const { claim } of disputed) {
      const member = this.#context.members.get(claim.node);
      if (member !== undefined && member !== this.#context.self) this.#moves.moved(member, claim, now);
    }
  }

  /** A newcomer at the address of somebody else: most likely the same host after a restart. */
  #replacePredecessor(newcomer: MemberRecord, now: Instant): void {
    for (const member of this.#context.members) {
      if (member === newcomer || !member.present || member === this.#context.self) continue;
      if (member.identity.place === newcomer.identity.place) this.#moves.replaced(member, newcomer, now);
    }
  }

  #replacePredecessorAt(silent: MemberRecord, now: Instant): void {
    for (const member of this.#context.members) {
      if (member === silent || !member.present || member.identity.place !== silent.identity.place) continue;
      return this.#moves.replaced(silent, member, now);
    }
  }

  #moveDecided(outcome: MoveOutcome | undefined, now: Instant): void {
    if (outcome === undefined) return;
    if (outcome.type === "moved") {
      this.#claims.alive(outcome.claim, now, { proven: true });
      return;
    }
    const { old, by } = outcome;
    if (old.present) this.#claims.verdict(old, { why: "replaced", by }, now);
  }

  #leave(timeoutMs: number, now: Instant): void {
    const { self, members } = this.#context;
    if (this.#claims.leaving) {
      this.#leaveBy = this.#leaveBy === undefined ? now : after(now, timeoutMs);
      return;
    }
    const alone = members.alive <= 1;
    this.#claims.leaving = true;
    this.#leaveBy = after(now, timeoutMs);
    const { incarnation, name } = self;
    this.#claims.dead({ type: "dead", incarnation, node: name, from: name }, now);
    if (alone) this.#left(true);
  }

  #left(complete: boolean): void {
    if (this.#leaveBy === undefined) return;
    this.#leaveBy = undefined;
    this.#context.emit({ type: "leave-done", complete });
  }

  #setMeta(request: number, meta: Uint8Array, timeoutMs: number, now: Instant): void {
    assert(meta.length <= MAX_META_BYTES, "metadata has at most 512 bytes");
    if (this.#claims.leaving) {
      this.#context.emit({ type: "meta-announced", request, complete: false });
      return;
    }
    this.#claims.changeMeta(meta, now, { request, what: "meta" });
    if (this.#context.members.alive <= 1)
      this.#context.emit({ type: "meta-announced", request, complete: true });
    else this.#announcements.set(request, after(now, timeoutMs));
  }

  #sendUser(to: string, payload: Uint8Array): void {
    const member = this.#context.members.get(to);
    if (member === undefined) return this.#context.count("user.unknown-member");
    const parts = [userMessage(payload)];
    this.#context.emit({ type: "send", to: member.address, parts, crc: understandsCrc(member) });
  }

  #noticeStall(now: Instant): void {
    if (this.#expectedAt === undefined) return;
    const since = Math.max(this.#expectedAt, this.#lastStallAt ?? this.#expectedAt);
    if (now - since >= STALL_MS) this.#stalled(now - since, now);
  }

  /** We stood still: nobody had a chance to answer us, and what they sent is still in the socket. */
  #stalled(ms: number, now: Instant): void {
    const { config, awareness } = this.#context;
    if (config.holdVerdictsMs === 0 || ms < STALL_MS) return;
    this.#lastStallAt = now;
    this.#context.count("stall.count");
    this.#context.count("stall.ms", Math.round(ms));
    if (ms >= config.probeTimeoutMs) {
      awareness.add(Math.min(MAX_STALL_PENALTY, Math.ceil(ms / config.probeIntervalMs)));
    }
    this.#prober.shift(ms);
    this.#verifier.shift(ms);
    this.#suspicions.shift(ms);
  }

  /** What this step did concerns other parts too. */
  #finish(now: Instant): SwimEffect[] {
    const effects = this.#context.takeEffects();
    for (const effect of effects) {
      switch (effect.type) {
        case "member-left":
          this.#departed(effect.member.name, effect.reason.why !== "left", now);
          break;
        case "member-joined":
          this.#returned(effect.member.name);
          break;
        case "member-recovered":
          this.#verifier.abandon(effect.member.name);
          break;
        default:
          break;
      }
    }
    for (const waiting of this.#context.queue.takeDone()) this.#broadcast(waiting);
    effects.push(...this.#context.takeEffects());
    this.#gossip.notice(now);
    this.#expectedAt = this.#earliestDeadline();
    return effects;
  }

  #departed(name: string, died: boolean, now: Instant): void {
    this.#prober.abandon(name);
    this.#verifier.abandon(name);
    const member = this.#context.members.get(name);
    if (died && member?.state === "dead") this.#reconnector.died(member, now);
  }

  #returned(name: string): void {
    const member = this.#context.members.get(name);
    if (member?.present === true) this.#reconnector.returned(member.identity.place);
  }

  #broadcast({ request, what }: Waiting): void {
    if (what === "leave") this.#left(true);
    else if (this.#announcements.delete(request)) {
      this.#context.emit({ type: "meta-announced", request, complete: true });
    }
  }
}
