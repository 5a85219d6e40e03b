import { formatSocketAddr, type SocketAddr } from "../base/ip.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import type { PushPullNode } from "../wire/memberlist/push-pull.ts";
import type { StreamFailure } from "./boundary.ts";
import { LARGE_CLUSTER } from "./broadcast-queue.ts";
import type { Claims, Via } from "./claims.ts";
import type { Context } from "./context.ts";
import type { MemberRecord } from "./member.ts";
import { aliveClaim, mergeNodes, versionConflict, type Merged } from "./push-pull.ts";
import { socketAddr } from "./relay.ts";

/** Members of one list that are taken to know each other; those of larger lists gossip finds anyway. */
const MAX_PLACES = 64;
/** Answers kept back at a time, and exchanges of our own besides joins. Protects memory and sockets. */
const MAX_ANSWERS = 512;
const MAX_REFRESHES = 8;
const UNSCALED_MEMBERS = 32;
/** So many newcomers heard of by gossip since the last exchange are a storm, in which gossip misses somebody. */
const STORM = 32;
const STORM_EXCHANGE_MS = 3_000;
/** In a storm of them newcomers are heard of many times a second. */
const STORM_GAP_MS = 1_000;
/** A storm that goes on is not waited for. */
const MAX_STORM_WAIT_MS = 6_000;
/** For so long after a storm's exchange, or the own join, one more newcomer is the storm still. */
const STORM_MS = 15_000;
/** A stranger that pings us has so long to become known by gossip, which takes longer among many. */
const STRANGER_PATIENCE_MS = 500;
const STRANGER_PATIENCE_AMONG_MANY_MS = 3_000;
/** Until the first exchange: what gossip alone tells a newcomer is only news, never the whole. */
const FIRST_EXCHANGE_MS = 2_000;

const NOTHING_MERGED: Merged = { disputed: [], mourned: [] };

interface Exchange {
  readonly purpose: "periodic" | "join" | "reconnect" | "refresh";
  readonly address: SocketAddr;
  readonly join: boolean;
  /** Of the join it belongs to. */
  readonly request: number | undefined;
  /** Broadcasts queued up to here are in what we send. */
  readonly sequence: number;
  /** Of whom we heard while it was under way: what we sent did not list them. */
  readonly meanwhile: Set<string>;
  /** We knew nobody yet: what we learn need not be passed on, as there is nobody it could be news to. */
  readonly fresh: boolean;
}

interface Join {
  readonly waiting: SocketAddr[];
  readonly underWay: Set<number>;
  joined: number;
}

export interface ExchangeEnd extends Merged {
  readonly address: SocketAddr;
  readonly refused: boolean;
}

/**
 * Exchanges of the whole state: periodic ones, joins, and the answers to others (memberlist state.go, pushPull;
 * memberlist.go, Join).
 *
 * Beyond memberlist: joins run in parallel and can be cancelled; join requests that come close together are
 * answered together, each answer listing all of them, so that a storm of joins needs hardly any gossip.
 */
export class Exchanges {
  readonly #context: Context;
  readonly #claims: Claims;
  readonly #exchanges = new Map<number, Exchange>();
  readonly #joins = new Map<number, Join>();
  #nextId = 1;
  #nextPeriodicAt: Instant | undefined;
  #exchanged = false;
  /** When an exchange of ours first brought us in. */
  #joinedAt: Instant | undefined;
  #newcomers = 0;
  #deaths = 0;
  /** The last exchange came in a storm: whom it missed would wait long for the next. */
  #alertUntil: Instant | undefined;
  #storm: { readonly endsAt: Instant; readonly waitMs: number; moved?: boolean } | undefined;
  #stranger: { readonly name: string; readonly address: SocketAddr; readonly dueAt: Instant } | undefined;
  /** Streams waiting for the answer of their batch. */
  readonly #answers = new Map<number, { readonly join: boolean; readonly place: string | undefined }>();
  #batchSince: Instant | undefined;
  #batchDueAt: Instant | undefined;
  #lastJoinAt: Instant | undefined;

  constructor(context: Context, claims: Claims) {
    this.#context = context;
    this.#claims = claims;
  }

  start(now: Instant): void {
    const { pushPullIntervalMs } = this.#context.config;
    const randomMs = this.#context.random.next() * pushPullIntervalMs;
    this.#nextPeriodicAt = after(now, this.#impatient() ? FIRST_EXCHANGE_MS : randomMs + this.#periodMs());
  }

  nextWakeup(): Instant | undefined {
    return earliest(this.#nextPeriodicAt, this.#batchDueAt, this.#stranger?.dueAt);
  }

  wake(now: Instant): void {
    if (this.#batchDueAt !== undefined && now >= this.#batchDueAt) this.#answerBatch();
    if (this.#stranger !== undefined && now >= this.#stranger.dueAt) {
      const { name, address } = this.#stranger;
      this.#stranger = undefined;
      if (this.#context.members.get(name) === undefined) this.#open("refresh", address, false, undefined);
    }
    if (this.#nextPeriodicAt !== undefined && now >= this.#nextPeriodicAt) {
      this.#nextPeriodicAt = after(now, this.#periodMs());
      if (this.#newcomers >= STORM || this.#deaths >= STORM) this.#alertUntil = after(now, STORM_MS);
      this.#newcomers = 0;
      this.#deaths = 0;
      this.#storm = undefined;
      const { members, self } = this.#context;
      const [partner] = members.pick(1, (member) => member.state === "alive" && member !== self);
      if (partner !== undefined) this.#open("periodic", partner.address, false, undefined);
    }
  }

  /** A join under the number of one still under way adds to it. */
  join(request: number, addresses: readonly SocketAddr[]): void {
    const join = this.#joins.get(request);
    if (join === undefined)
      this.#joins.set(request, { waiting: [...addresses], underWay: new Set(), joined: 0 });
    else join.waiting.push(...addresses);
    this.#continueJoin(request);
  }

  cancelJoin(request: number): void {
    const join = this.#joins.get(request);
    if (join === undefined) return;
    const failure: StreamFailure = { failure: "cancelled", detail: "the join was cancelled" };
    for (const exchange of join.underWay) {
      const address = this.#exchanges.get(exchange)?.address;
      this.#exchanges.delete(exchange);
      this.#context.emit({ type: "abandon-exchange", exchange });
      if (address !== undefined) this.#context.emit({ type: "join-result", request, address, failure });
    }
    for (const address of join.waiting) {
      this.#context.emit({ type: "join-result", request, address, failure });
    }
    join.underWay.clear();
    join.waiting.length = 0;
    this.#continueJoin(request);
  }

  /** A dead member answered: one exchange brings both sides together. One at a time. */
  reconnect(address: SocketAddr): void {
    for (const exchange of this.#exchanges.values()) if (exchange.purpose === "reconnect") return;
    this.#context.count("reconnect.exchanges");
    this.#open("reconnect", address, true, undefined);
  }

  /**
   * Gossip told of a newcomer. A while after the last of many one exchange comes early: it brings whom gossip forgot.
   * For who has just joined itself one is many: the storm came in waves, and those of our own wave, who know each
   * other without gossip, do not pass each other on to those of the next. So is one soon after a storm's exchange, which
   * came too early for some.
   */
  newcomer(name: string, now: Instant): void {
    const { config } = this.#context;
    this.#missed([{ name }]);
    const joined = this.#joinedAt !== undefined && now - this.#joinedAt < STORM_MS;
    const many = ++this.#newcomers >= STORM || this.#isAlert(now);
    if (!(many || joined) || config.reconnectIntervalMs === 0) return;
    const { members } = this.#context;
    const most = this.#newcomers >= Math.max(STORM, members.alive / 8);
    if (most || now < this.#context.joinStormUntil) this.#context.joinStormUntil = after(now, STORM_GAP_MS);
    this.#exchangeEarly(now);
  }

  /**
   * Somebody died. After the last of many deaths, too, gossip has missed somebody here and there, who otherwise would
   * find out when it probes that member itself: in a large cluster after minutes.
   */
  death(now: Instant): void {
    const { config, members } = this.#context;
    if (config.reconnectIntervalMs === 0 || members.size < LARGE_CLUSTER) return;
    if (++this.#deaths >= STORM || this.#isAlert(now)) this.#exchangeEarly(now);
  }

  #isAlert(now: Instant): boolean {
    return this.#alertUntil !== undefined && now < this.#alertUntil;
  }

  #exchangeEarly(now: Instant): void {
    const { random } = this.#context;
    let storm = this.#storm;
    // A first exchange may have put off the one that was to end an earlier storm.
    if (storm === undefined || now >= storm.endsAt) {
      storm = {
        endsAt: after(now, MAX_STORM_WAIT_MS),
        waitMs: STORM_EXCHANGE_MS * (0.5 + random.next()),
      };
      this.#storm = storm;
    }
    const next = this.#nextPeriodicAt;
    if (next === undefined) return;
    const at = after(now, storm.waitMs);
    if (at < storm.endsAt && (storm.moved === true || at < next)) {
      storm.moved = true;
      this.#nextPeriodicAt = at;
    }
  }

  /** An exchange that brought somebody, or a death, gossip had missed is followed by another, until nothing new comes. */
  #again(now: Instant): void {
    const { config, random, members } = this.#context;
    if (config.reconnectIntervalMs === 0 || members.size < LARGE_CLUSTER) return;
    this.#nextPeriodicAt = after(now, STORM_EXCHANGE_MS * (0.5 + random.next()));
  }

  /**
   * Somebody we do not know pings us by name, so its list has us and ours lacks it: gossip tells everybody news,
   * and nobody what is old to the teller. One at a time.
   */
  stranger(name: string, address: SocketAddr, now: Instant): void {
    if (this.#stranger !== undefined && this.#stranger.name !== name) return;
    const few = this.#context.members.size <= UNSCALED_MEMBERS;
    const patienceMs = few ? STRANGER_PATIENCE_MS : STRANGER_PATIENCE_AMONG_MANY_MS;
    this.#stranger ??= { name, address, dueAt: after(now, patienceMs) };
  }

  /** A suspect answered us, yet its refutation has not come: fetch it. */
  refresh(member: MemberRecord): void {
    let running = 0;
    for (const { purpose, address } of this.#exchanges.values()) {
      if (purpose !== "refresh") continue;
      running++;
      if (address === member.address) return;
    }
    if (running < MAX_REFRESHES) this.#open("refresh", member.address, false, undefined);
  }

  reply(id: number, nodes: readonly PushPullNode[], now: Instant): ExchangeEnd | undefined {
    const exchange = this.#exchanges.get(id);
    if (exchange === undefined) return undefined;
    this.#exchanges.delete(id);
    const { address, join } = exchange;
    const place = formatSocketAddr(address);
    const refused = this.#versionConflict(nodes);
    let merged = NOTHING_MERGED;
    if (refused === undefined) {
      this.#firstExchange(now);
      const before = this.#context.members.alive;
      const quiet =
        exchange.fresh && this.#wasBatched(nodes) && this.#context.members.aliveBeside(nodes).length === 0;
      const via: Via = { place, quiet, knownAt: this.#islanders(nodes) };
      // Who joined with us has us in its answer, and the peer tells the others.
      if (quiet) {
        this.#context.queue.drop(this.#context.self);
        this.#joinedAt = now;
      }
      merged = mergeNodes(this.#context, this.#claims, nodes, via, now);
      this.#context.queue.synced(place, exchange.sequence);
      const news = this.#context.members.alive > before || merged.mourned.length > 0;
      if (exchange.purpose === "periodic" && news) this.#again(now);
      if (exchange.request !== undefined) this.#introduce(exchange, nodes);
    }
    this.#context.emit({ type: "push-pull-merged", source: { exchange: id }, join, refused });
    this.#context.count(refused === undefined ? "push-pull.ok" : "push-pull.refused");
    const failure: StreamFailure | undefined =
      refused === undefined ? undefined : { failure: "rejected", detail: refused };
    this.#endJoin(exchange, id, failure);
    return { address, ...merged, refused: false };
  }

  failed(id: number, failure: StreamFailure): ExchangeEnd | undefined {
    const exchange = this.#exchanges.get(id);
    if (exchange === undefined) return undefined;
    this.#exchanges.delete(id);
    this.#context.count("push-pull.failed");
    this.#endJoin(exchange, id, failure);
    return { address: exchange.address, ...NOTHING_MERGED, refused: failure.failure === "refused" };
  }

  /** The server's side. The entry of the requester itself, when it can be told from the others. */
  request(
    stream: number,
    from: SocketAddr,
    join: boolean,
    nodes: readonly PushPullNode[],
    now: Instant,
  ): Merged & { readonly requester: MemberRecord | undefined } {
    const refused = this.#versionConflict(nodes);
    let merged = NOTHING_MERGED;
    let requester: MemberRecord | undefined;
    if (refused === undefined) {
      this.#firstExchange(now);
      const only = nodes.length === 1 ? nodes[0] : undefined;
      merged = mergeNodes(this.#context, this.#claims, nodes, { knownAt: this.#islanders(nodes) }, now);
      this.#missed(nodes);
      const named = only === undefined ? undefined : this.#context.members.get(only.name);
      requester = named?.address.ip === from.ip ? named : undefined;
    }
    this.#answer(stream, join, requester?.identity.place, now);
    this.#context.emit({ type: "push-pull-merged", source: { stream }, join, refused });
    this.#context.count(refused === undefined ? "push-pull.served" : "push-pull.refused");
    return { ...merged, requester };
  }

  /** The requester hung up. */
  gone(stream: number): void {
    const place = this.#answers.get(stream)?.place;
    this.#answers.delete(stream);
    if (place !== undefined) this.#context.queue.release(place);
  }

  #answer(stream: number, join: boolean, place: string | undefined, now: Instant): void {
    const { joinBatchMs, joinBatchMaxMs } = this.#context.config;
    this.#answers.set(stream, { join, place });
    if (!join || joinBatchMs === 0) return this.#answerOne(stream);
    if (place !== undefined) this.#context.queue.hold(place);
    this.#batchSince ??= now;
    const latest = after(this.#batchSince, joinBatchMaxMs);
    // A busy loop reads one request a turn: whoever is next comes no sooner than this one did.
    const gapMs = this.#lastJoinAt === undefined ? Infinity : now - this.#lastJoinAt;
    this.#lastJoinAt = now;
    const quiet = after(now, gapMs > joinBatchMaxMs ? joinBatchMs : Math.max(joinBatchMs, 2 * gapMs));
    this.#batchDueAt = quiet < latest ? quiet : latest;
    if (this.#answers.size >= MAX_ANSWERS) this.#answerBatch();
  }

  #answerBatch(): void {
    this.#batchDueAt = undefined;
    this.#batchSince = undefined;
    for (const stream of [...this.#answers.keys()]) this.#answerOne(stream);
  }

  #answerOne(stream: number): void {
    const answer = this.#answers.get(stream);
    if (answer === undefined) return;
    this.#answers.delete(stream);
    this.#context.emit({ type: "push-pull-answer", stream, join: answer.join });
    if (answer.place !== undefined) this.#context.queue.synced(answer.place, this.#context.queue.sequence);
  }

  #open(
    purpose: Exchange["purpose"],
    address: SocketAddr,
    join: boolean,
    request: number | undefined,
  ): number {
    const { members, self, queue, config } = this.#context;
    const id = this.#nextId++;
    const fresh = members.alive === (self.state === "alive" ? 1 : 0);
    const { sequence } = queue;
    this.#exchanges.set(id, { purpose, address, join, request, sequence, fresh, meanwhile: new Set() });
    this.#context.emit({
      type: "push-pull",
      exchange: id,
      to: address,
      join,
      timeoutMs: config.tcpTimeoutMs,
    });
    return id;
  }

  #continueJoin(request: number): void {
    const join = this.#joins.get(request);
    if (join === undefined) return;
    while (join.underWay.size < this.#context.config.parallelJoins) {
      const address = join.waiting.shift();
      if (address === undefined) break;
      join.underWay.add(this.#open("join", address, true, request));
    }
    if (join.underWay.size > 0) return;
    this.#joins.delete(request);
    this.#context.emit({ type: "join-done", request, joined: join.joined });
  }

  #endJoin(exchange: Exchange, id: number, failure: StreamFailure | undefined): void {
    const { request, address } = exchange;
    const join = request === undefined ? undefined : this.#joins.get(request);
    if (request === undefined || join === undefined) return;
    join.underWay.delete(id);
    if (failure === undefined) join.joined++;
    this.#context.emit({ type: "join-result", request, address, failure });
    this.#continueJoin(request);
  }

  #impatient(): boolean {
    return !this.#exchanged && this.#context.config.reconnectIntervalMs > 0;
  }

  /** From now on at the ordinary pace. */
  #firstExchange(now: Instant): void {
    if (this.#exchanged) return;
    this.#exchanged = true;
    this.start(now);
  }

  /** The answer lists us as we are: it was made after our request was merged, for everybody who asked with us. */
  #wasBatched(nodes: readonly PushPullNode[]): boolean {
    const { self, config } = this.#context;
    const listsUs = ({ name, state, incarnation }: PushPullNode): boolean =>
      name === self.name && state === "alive" && incarnation === self.incarnation;
    return config.joinBatchMs > 0 && nodes.some(listsUs);
  }

  /** A join under way has not told its seed of these. */
  #missed(those: readonly { readonly name: string }[]): void {
    for (const { purpose, meanwhile } of this.#exchanges.values()) {
      if (purpose === "join") for (const { name } of those.slice(0, MAX_PLACES)) meanwhile.add(name);
    }
  }

  /** By the versions alone, and only if those conflict by everybody who speaks them: exchanges come in thousands. */
  #versionConflict(nodes: readonly PushPullNode[]): string | undefined {
    const { members } = this.#context;
    const conflict = versionConflict(members.voices(), nodes);
    return conflict === undefined ? undefined : versionConflict(members, nodes);
  }

  /** Where those are whom we did not know: they know each other, so that none needs to be told of another. */
  #islanders(nodes: readonly PushPullNode[]): readonly string[] | undefined {
    if (nodes.length > MAX_PLACES) return undefined;
    const places: string[] = [];
    for (const { name, state, addr, port } of nodes) {
      const known = this.#context.members.get(name)?.state === "alive";
      const address = state === "alive" && !known ? socketAddr(addr, port) : undefined;
      if (address !== undefined) places.push(formatSocketAddr(address));
    }
    return places;
  }

  /**
   * Seeds of one join may be strangers to each other, and we may have heard of somebody while it was under way: those
   * that the seed lacks are gossiped after all.
   */
  #introduce({ request, meanwhile }: Exchange, nodes: readonly PushPullNode[]): void {
    const join = this.#joins.get(request ?? 0);
    if (join === undefined || (join.joined === 0 && meanwhile.size === 0)) return;
    const { members, self, queue } = this.#context;
    for (const member of members.aliveBeside(nodes)) {
      if (member === self || (join.joined === 0 && !meanwhile.has(member.name))) continue;
      const claim = aliveClaim(member);
      queue.queue(member, claim, this.#context.encode(claim), undefined);
    }
  }

  /** Larger clusters exchange less often: their state is larger, and more pairs exchange (util.go, pushPullScale). */
  #periodMs(): number {
    if (this.#impatient()) return FIRST_EXCHANGE_MS * (0.8 + 0.4 * this.#context.random.next());
    const size = this.#context.members.size;
    const { pushPullIntervalMs } = this.#context.config;
    if (size <= UNSCALED_MEMBERS) return pushPullIntervalMs;
    return pushPullIntervalMs * (Math.ceil(Math.log2(size) - Math.log2(UNSCALED_MEMBERS)) + 1);
  }
}
