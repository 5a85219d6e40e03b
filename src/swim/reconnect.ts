import { formatSocketAddr, ipToBytes, type SocketAddr } from "../base/ip.ts";
import { after, earlier, type Instant } from "../base/time.ts";
import type { Ping } from "../wire/memberlist/message.ts";
import type { Context } from "./context.ts";
import type { Identity, MemberRecord } from "./member.ts";
import { understandsCrc } from "./member.ts";

/** Pings per second of one node: alone among many dead it must still be cheap. */
const MAX_RATE = 8;
/** After a sign of life the others behind the same cut probably live too: faster, for a while. */
const EAGER_MS = 5_000;
const EAGER_SPEEDUP = 8;
/** Shortest time between two rounds. */
const MIN_PERIOD_MS = 100;
/** However many share the work, each node tries at least so often, as long as `FLOOR_RATE` is kept. */
const MAX_PERIOD_MS = 8_000;
/** Pings per second on one dead member from a whole large cluster. */
const FLOOR_RATE = 50;
/** Between two tries of addresses we were told to join and where nobody is. */
const SEED_INTERVAL_MS = 5_000;
/** Protects the rate; more seeds than this are not kept. */
const MAX_SEEDS = 64;
/** Pings whose ack is still waited for. */
const MAX_AWAITED = 64;

interface Departed {
  readonly identity: Identity;
  readonly incarnation: number;
  readonly diedAt: Instant;
}

/**
 * Tries dead members again, so that a partition heals however long it was (memberlist forgets; serf and NetworkDB
 * each added something of the kind). First a ping, which costs nothing where nobody is; an answer leads to a
 * push/pull, which brings both sides together. A member still listed as dead hears so with the ping and refutes.
 *
 * The rate is shared: with A members here and D dead, each node pings D / A of them per `reconnectIntervalMs`, so
 * every dead one is tried about once per interval by somebody, in small clusters and in large ones.
 */
export class Reconnector {
  readonly #context: Context;
  /** By place, as only the last to die there can come back; the first in it is the next to be tried. */
  readonly #departed = new Map<string, Departed>();
  /** Addresses to join, by place; the first is the next to be tried. */
  readonly #seeds = new Map<string, SocketAddr>();
  /** Who was found at a seed's place last. */
  readonly #seen = new Map<string, string>();
  /** Sequence number → place. */
  readonly #awaited = new Map<number, string>();
  #nextAt: Instant | undefined;
  #nextSeedAt: Instant | undefined;
  #eagerUntil: Instant | undefined;

  constructor(context: Context) {
    this.#context = context;
  }

  get size(): number {
    return this.#departed.size;
  }

  has(place: string): boolean {
    return this.#departed.has(place);
  }

  /** Addresses to try for good, whenever nobody is seen there. */
  keepTrying(addresses: readonly SocketAddr[], now: Instant): void {
    const { config, self } = this.#context;
    if (config.reconnectIntervalMs === 0) return;
    for (const address of addresses) {
      const place = formatSocketAddr(address);
      if (place !== self.identity.place && this.#seeds.size < MAX_SEEDS) this.#seeds.set(place, address);
    }
    if (this.#seeds.size > 0) this.#nextSeedAt ??= after(now, SEED_INTERVAL_MS);
  }

  died(member: MemberRecord, now: Instant): void {
    const { config } = this.#context;
    if (config.reconnectIntervalMs === 0) return;
    const { identity, incarnation } = member;
    this.#departed.delete(identity.place);
    if (this.#departed.size >= config.maxDeparted) this.#forgetOldest();
    this.#departed.set(identity.place, { identity, incarnation, diedAt: now });
    this.#nextAt ??= after(now, Math.min(1_000, this.#periodMs(now)));
  }

  /** Somebody lives there. */
  returned(place: string): void {
    if (this.#departed.delete(place) && this.#departed.size === 0) this.#nextAt = undefined;
  }

  /** The address to exchange state with when the ack was for one of these pings. */
  ack(seqNo: number, now: Instant): SocketAddr | undefined {
    const place = this.#awaited.get(seqNo);
    if (place === undefined) return undefined;
    this.#awaited.delete(seqNo);
    return this.signOfLife(place, now)?.address ?? this.#seeds.get(place);
  }

  /** The dead member at this place spoke. */
  signOfLife(place: string, now: Instant): Identity | undefined {
    const departed = this.#departed.get(place);
    if (departed === undefined) return undefined;
    this.#eagerUntil = after(now, EAGER_MS);
    this.#nextAt = after(now, MIN_PERIOD_MS);
    return departed.identity;
  }

  nextWakeup(): Instant | undefined {
    return earlier(this.#nextAt, this.#nextSeedAt);
  }

  wake(now: Instant): void {
    if (this.#nextSeedAt !== undefined && now >= this.#nextSeedAt) {
      this.#nextSeedAt = after(now, SEED_INTERVAL_MS * (0.8 + 0.4 * this.#context.random.next()));
      this.#trySeed();
    }
    if (this.#nextAt === undefined || now < this.#nextAt) return;
    const periodMs = this.#periodMs(now);
    const tries = Math.max(1, Math.round(periodMs * this.#ratePerMs(now)));
    for (let i = 0; i < Math.min(tries, this.#departed.size); i++) this.#tryNext(now);
    const jitter = 0.8 + 0.4 * this.#context.random.next();
    this.#nextAt = this.#departed.size === 0 ? undefined : after(now, periodMs * jitter);
  }

  #tryNext(now: Instant): void {
    const { config, members, self } = this.#context;
    for (const [place, departed] of this.#departed) {
      this.#departed.delete(place);
      const listed = members.get(departed.identity.name);
      if (listed?.present === true || now - departed.diedAt > config.reconnectForgetMs) return;
      // It restarted under another name: that one would log every ping for the old name, for as long as we remember it.
      if (place === self.identity.place || this.#aliveAt(departed.identity) !== undefined) return;
      this.#departed.set(place, departed);
      this.#ping(departed, listed);
      return;
    }
  }

  #ping(departed: Departed, listed: MemberRecord | undefined): void {
    const context = this.#context;
    const { identity } = departed;
    const ping = this.#awaitedPing(identity.place, identity.name);
    if (listed === undefined) context.sendBare(identity.address, [ping], false);
    else context.sendBare(identity.address, [ping, accusation(context, listed)], understandsCrc(listed));
  }

  /** Whoever lives there may answer: a seed is an address, not a name. */
  #trySeed(): void {
    for (const [place, address] of this.#seeds) {
      if (this.#livesAt(place, address)) continue;
      this.#seeds.delete(place);
      this.#seeds.set(place, address);
      return this.#context.sendBare(address, [this.#awaitedPing(place, "")], false);
    }
  }

  /** A suspect does not count: it may have a successor there that we do not know. */
  #livesAt(place: string, { ip, port }: SocketAddr): boolean {
    const { members } = this.#context;
    const last = members.get(this.#seen.get(place) ?? "");
    if (last?.state === "alive" && last.identity.place === place) return true;
    const found = this.#aliveAt({ addr: ipToBytes(ip), port, place });
    if (found !== undefined) this.#seen.set(place, found.name);
    return found !== undefined;
  }

  #aliveAt(where: Pick<Identity, "addr" | "port" | "place">): MemberRecord | undefined {
    return this.#context.members.presentAt(where).find(({ state }) => state === "alive");
  }

  #awaitedPing(place: string, name: string): Ping {
    const context = this.#context;
    const seqNo = context.nextSeqNo();
    if (this.#awaited.size >= MAX_AWAITED) {
      for (const oldest of this.#awaited.keys()) {
        this.#awaited.delete(oldest);
        break;
      }
    }
    this.#awaited.set(seqNo, place);
    context.count("reconnect.tries");
    return context.ping(seqNo, name);
  }

  #periodMs(now: Instant): number {
    const alive = Math.max(1, this.#context.members.alive);
    const longest = Math.max(MAX_PERIOD_MS, (alive / FLOOR_RATE) * 1_000);
    return Math.min(longest, Math.max(MIN_PERIOD_MS, 1 / this.#ratePerMs(now)));
  }

  #ratePerMs(now: Instant): number {
    const alive = Math.max(1, this.#context.members.alive);
    const eager = this.#eagerUntil !== undefined && now < this.#eagerUntil ? EAGER_SPEEDUP : 1;
    const share = Math.max(1, this.#departed.size) / (alive * this.#context.config.reconnectIntervalMs);
    return Math.min(MAX_RATE / 1_000, share) * eager;
  }

  #forgetOldest(): void {
    let oldest: string | undefined;
    let diedAt = Infinity;
    for (const [place, departed] of this.#departed) {
      if (departed.diedAt >= diedAt) continue;
      diedAt = departed.diedAt;
      oldest = place;
    }
    if (oldest !== undefined) this.#departed.delete(oldest);
  }
}

/** "You are dead", as we believe: whoever reads this of itself refutes with a higher incarnation. */
export function accusation(
  context: Context,
  member: MemberRecord,
): { type: "dead" | "suspect"; incarnation: number; node: string; from: string } {
  const type = member.state === "suspect" ? "suspect" : "dead";
  return { type, incarnation: member.incarnation, node: member.name, from: context.self.name };
}
