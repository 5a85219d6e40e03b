import { assert, unreachable } from "../base/assert.ts";
import { formatSocketAddr, type SocketAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { after, earlier, type Instant } from "../base/time.ts";
import { encodeMessage, type Alive, type MemberlistMessage } from "../wire/memberlist/message.ts";
import type { PushPullNode } from "../wire/memberlist/push-pull.ts";
import { Announcements } from "./announcements.ts";
import { Answers } from "./answers.ts";
import type { StreamFailure, SwimEffect, SwimInput, UserBroadcasts } from "./boundary.ts";
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
  type NameNumbers,
} from "./member.ts";
import { Moves } from "./moves.ts";
import { dropDeparted, Prober } from "./probe.ts";
import { snapshotOf } from "./push-pull.ts";
import { Reconnector } from "./reconnect.ts";
import { Relay } from "./relay.ts";
import { StreamPings } from "./stream-pings.ts";
import { confirmations, Suspicions } from "./suspicion.ts";
import { Verdicts } from "./verdicts.ts";
import { Verifier } from "./verify.ts";

const MAX_META_BYTES = 512;
/** A wakeup so late was not the timer's fault: the process stood still. */
const STALL_MS = 100;
/** Health points for one stall: some, not all, as it may be the only one. */
const MAX_STALL_PENALTY = 4;

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
  /** For many nodes in one process, which may number names alike. */
  readonly numbers?: NameNumbers;
  /** Default: `encodeMessage`. For many nodes in one process, which may share what they encode. */
  readonly encode?: (message: MemberlistMessage) => Uint8Array;
}

/** SWIM with Lifeguard as memberlist speaks it: who is there, who is not. Owns no socket and no timer. */
export class Swim {
  readonly #context: Context;
  readonly #claims: Claims;
  readonly #suspicions: Suspicions<MemberRecord>;
  readonly #streamPings: StreamPings;
  readonly #prober: Prober;
  readonly #verifier: Verifier;
  readonly #relay: Relay;
  readonly #gossip: Gossip;
  readonly #exchanges: Exchanges;
  readonly #reconnector: Reconnector;
  readonly #moves: Moves;
  readonly #verdicts: Verdicts;
  readonly #answers: Answers;
  readonly #announcements: Announcements;
  #sweepAt: Instant | undefined;
  /** When this node should have been woken next, as of the last step. */
  #expectedAt: Instant | undefined;
  #lastStallAt: Instant | undefined;
  /** Made once per step: a batch of joins gets one answer. */
  #snapshot: readonly PushPullNode[] | undefined;

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
      numbers: options.numbers,
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
    this.#verdicts = new Verdicts(context, {
      claims: this.#claims,
      suspicions: this.#suspicions,
      verifier: this.#verifier,
      exchanges: this.#exchanges,
      moves: this.#moves,
    });
    this.#answers = new Answers(context, this.#claims, this.#exchanges, this.#reconnector);
    this.#announcements = new Announcements(context, this.#claims);
  }

  handle(input: SwimInput, now: Instant): SwimEffect[] {
    this.#snapshot = undefined;
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
        this.#answers.streamPing(input.stream, input.ping);
        break;
      case "push-pull-request": {
        const { stream, from, join, nodes } = input;
        const { disputed, mourned, requester } = this.#exchanges.request(stream, from, join, nodes, now);
        this.#verdicts.disputed(disputed, now);
        this.#verdicts.mourned(mourned, now);
        if (requester !== undefined) this.#verdicts.newcomerAt(requester, now);
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
        this.#verdicts.doubtPlace(input.address, now);
        break;
      case "join":
        this.#exchanges.join(input.request, input.addresses);
        if (input.keepTrying === true) this.#reconnector.keepTrying(input.addresses, now);
        break;
      case "cancel-join":
        this.#exchanges.cancelJoin(input.request);
        break;
      case "leave":
        this.#announcements.leave(input.timeoutMs, now);
        break;
      case "set-meta":
        this.#announcements.setMeta(input.request, input.meta, input.timeoutMs, now);
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
    return earlier(this.#expectedAt, this.#gossip.nextWakeup());
  }

  #earliestDeadline(): Instant | undefined {
    let at = earlier(this.#sweepAt, this.#prober.nextWakeup());
    at = earlier(at, this.#suspicions.nextWakeup());
    at = earlier(at, this.#verifier.nextWakeup());
    at = earlier(at, this.#streamPings.nextWakeup());
    at = earlier(at, this.#relay.nextWakeup());
    at = earlier(at, this.#gossip.nextWakeup());
    at = earlier(at, this.#exchanges.nextWakeup());
    at = earlier(at, this.#reconnector.nextWakeup());
    at = earlier(at, this.#moves.nextWakeup());
    return earlier(at, this.#announcements.nextWakeup());
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
  snapshot(): readonly PushPullNode[] {
    this.#snapshot ??= snapshotOf(this.#context.members);
    return this.#snapshot;
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
    const suspicion = this.#context.members.get(name)?.suspicion;
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
    return { ...this.#context.counters, "gossip.overflowed": this.#context.queue.overflowed };
  }

  #start(now: Instant): void {
    this.#claims.announceSelf(now);
    this.#prober.start(now);
    this.#exchanges.start(now);
    this.#sweepAt = after(now, this.#context.config.gossipToTheDeadMs);
  }

  #wake(now: Instant): void {
    this.#streamPings.wake(now);
    this.#verdicts.probed(this.#prober.wake(now), now);
    for (const verdict of this.#verifier.wake(now)) this.#verdicts.looked(verdict, now);
    for (const suspect of this.#suspicions.takeDue(now)) this.#verdicts.timeIsUp(suspect, now);
    this.#relay.wake(now);
    this.#exchanges.wake(now);
    this.#reconnector.wake(now);
    this.#moves.wake(now);
    this.#gossip.wake(now);
    this.#announcements.wake(now);
    if (this.#sweepAt !== undefined && now >= this.#sweepAt) {
      this.#sweepAt = after(now, this.#context.config.gossipToTheDeadMs);
      dropDeparted(this.#context, now);
      this.#verdicts.lookForFormerLives(now);
    }
  }

  /** Pings and answers in order, then good news before bad: what an alive outdates need not be believed first. */
  #packet(from: SocketAddr, messages: readonly MemberlistMessage[], now: Instant): void {
    const depth = this.#context.config.handoffDepth;
    const via: Via = { place: formatSocketAddr(from), source: from };
    let state = 0;
    for (const message of messages) {
      if (message.type === "alive" && ++state <= depth) this.#alive(message, via, now);
    }
    let other = 0;
    for (const message of messages) {
      switch (message.type) {
        case "ping":
          this.#answers.ping(message, from, now);
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
          if (message.node === this.#context.self.name) this.#answers.accused(from);
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

  #alive(claim: Alive, via: Via, now: Instant): void {
    const { members } = this.#context;
    const before = members.alive;
    const outcome = this.#claims.alive(claim, now, via);
    if (members.alive > before) this.#exchanges.newcomer(claim.node, now);
    if (outcome === "conflict") this.#verdicts.disputed([{ claim, outcome }], now);
    if (outcome !== "stale") return;
    const member = members.get(claim.node);
    // A dead one that restarted below its old incarnation speaks for itself.
    if (member?.state === "dead" && member.identity.place === via.place) {
      this.#answers.heardFrom(claim.node, member.identity.place, now);
    }
  }

  #ack(seqNo: number, from: SocketAddr, now: Instant): void {
    const probed = this.#prober.ack(seqNo, from, now);
    if (probed !== undefined) return this.#verdicts.probed(probed, now);
    if (this.#relay.ack(seqNo)) return;
    const verdict = this.#verifier.ack(seqNo, from);
    if (verdict !== undefined) return this.#verdicts.looked(verdict, now);
    const back = this.#reconnector.ack(seqNo, now);
    if (back !== undefined) return this.#exchanges.reconnect(back);
    this.#verdicts.moveDecided(this.#moves.ack(seqNo, from), now);
  }

  #streamPingResult(id: number, result: { readonly seqNo: number } | StreamFailure, now: Instant): void {
    const outcome = this.#streamPings.result(id, result, now);
    if (outcome === undefined) return;
    const { owner, name } = outcome;
    if (owner === "move") {
      return this.#verdicts.moveDecided(this.#moves.oldAddress(name, outcome.result), now);
    }
    if (outcome.result === "gone") return this.#verdicts.refused(name, now);
    if (outcome.result !== "acked") return;
    if (owner === "probe") return this.#prober.streamAcked(name);
    const verdict = this.#verifier.answered(name);
    if (verdict !== undefined) this.#verdicts.looked(verdict, now);
  }

  #exchanged(end: ExchangeEnd | undefined, now: Instant): void {
    if (end === undefined) return;
    this.#verdicts.disputed(end.disputed, now);
    this.#verdicts.mourned(end.mourned, now);
    if (end.refused) this.#verdicts.doubtPlace(end.address, now);
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
    for (const waiting of this.#context.queue.takeDone()) this.#announcements.broadcast(waiting);
    effects.push(...this.#context.takeEffects());
    this.#gossip.notice(now);
    // A confirmed suspicion may be overdue by now: that is not lateness of ours.
    const deadline = this.#earliestDeadline();
    this.#expectedAt = deadline === undefined || deadline >= now ? deadline : now;
    return effects;
  }

  #departed(name: string, died: boolean, now: Instant): void {
    this.#prober.abandon(name);
    this.#verifier.abandon(name);
    const member = this.#context.members.get(name);
    if (!died || member?.state !== "dead") return;
    this.#reconnector.died(member, now);
    this.#exchanges.death(now);
  }

  #returned(name: string): void {
    const member = this.#context.members.get(name);
    if (member?.present === true) this.#reconnector.returned(member.identity.place);
  }
}
