/** Decides when which peer is probed through the data path, and what the answers mean. Owns no socket and no timer. */
import { unreachable } from "../base/assert.ts";
import { Deadlines } from "../base/deadlines.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { after, elapsed, type Instant } from "../base/time.ts";
import { smallestProbe, type PathProbe } from "../wire/path-probe.ts";

/** Between two rounds with a peer whose path is well, ± a fifth: twelve packets a minute, answers included. */
const ROUND_MS = 10_000;
/** After a round without success: recovery is seen soon. */
const UNWELL_ROUND_MS = 4_000;
/** Peers that do not probe have no data path yet; they say hello by probing. */
const IDLE_ROUND_MS = 60_000;
/** An answer later than this counts as lost: far above any underlay's round trip and a busy agent's pause. */
const ANSWER_MS = 600;
/** Losses in a row before anything is said: at 5 % loss three in a row are one round in 8000. */
const ATTEMPTS = 3;
/** Sizes tried at once while looking for the largest that fits. */
const SEARCH_WIDTH = 8;

export interface PathHealth {
  readonly state: "ok" | "blocked" | "unknown";
  /** Largest inner packet that got through; null while unknown. */
  readonly mtu: number | null;
  /** For people; empty when all is well. */
  readonly detail: string;
  /** When a round last came to this. */
  readonly checkedAt: Instant | undefined;
}

/** What a silent peer says about us, asked over gossip. */
export interface PeerTestimony {
  /** Whether it has a data path at all. */
  readonly probing: boolean;
  /** How long ago a probe of ours reached it. */
  readonly heardMsAgo: number | undefined;
}

export type PathInput =
  /** All that shall be probed; others are forgotten. `fullSize` is our own overlay MTU. */
  | { readonly type: "peers"; readonly peers: ReadonlySet<IpAddr>; readonly fullSize: number }
  | { readonly type: "received"; readonly from: IpAddr; readonly probe: PathProbe }
  /** `testimony` is undefined when gossip did not reach the peer either. */
  | { readonly type: "told"; readonly peer: IpAddr; readonly testimony: PeerTestimony | undefined }
  /** Somebody looks: a round with everybody now. */
  | { readonly type: "probe-all" }
  | { readonly type: "wake" };

export type PathEffect =
  | { readonly type: "send"; readonly to: IpAddr; readonly probe: PathProbe }
  /** Answer with `told`. */
  | { readonly type: "ask"; readonly peer: IpAddr }
  | {
      readonly type: "changed";
      readonly peer: IpAddr;
      readonly before: PathHealth;
      readonly health: PathHealth;
    };

interface Round {
  readonly startedAt: Instant;
  readonly attempt: number;
  /** Sizes that got through. */
  readonly through: Set<number>;
  readonly search?: Search;
}

/** Looking for the MTU: `low` gets through, `high` does not. */
interface Search {
  readonly low: number;
  readonly high: number;
  /** Only `low + 1` is on the way. */
  readonly confirming: boolean;
}

interface Peer {
  health: PathHealth;
  /** Probes on the way, nonce → size: those of one attempt, so at most `SEARCH_WIDTH`. */
  readonly sent: Map<bigint, number>;
  round: Round | undefined;
  /** Waits for what the peer says. */
  asked: Instant | undefined;
  heardAt: Instant | undefined;
  /** A probe-all while a round was under way: the next one begins at once. */
  again: boolean;
  /** A first round found nothing: the peer may have got its data path in its midst, so there is a second. */
  doubted: boolean;
}

const UNKNOWN: PathHealth = { state: "unknown", mtu: null, detail: "", checkedAt: undefined };

export class PathProber {
  readonly counters = { sent: 0, answered: 0, received: 0, lost: 0, strange: 0 };
  readonly #random: Random;
  readonly #peers = new Map<IpAddr, Peer>();
  readonly #timers = new Deadlines<IpAddr>();
  #fullSize = 0;
  #effects: PathEffect[] = [];

  constructor(random: Random) {
    this.#random = random;
  }

  handle(input: PathInput, now: Instant): PathEffect[] {
    this.#effects = [];
    switch (input.type) {
      case "peers":
        this.#setPeers(input.peers, input.fullSize, now);
        break;
      case "received":
        this.#received(input.from, input.probe, now);
        break;
      case "told":
        this.#told(input.peer, input.testimony, now);
        break;
      case "probe-all":
        for (const [ip, peer] of this.#peers) {
          if (peer.round === undefined && peer.asked === undefined) this.#begin(ip, peer, now);
          else peer.again = true;
        }
        break;
      case "wake":
        for (const ip of this.#timers.takeDue(now)) this.#due(ip, now);
        break;
      default:
        return unreachable(input);
    }
    return this.#effects;
  }

  nextWakeup(): Instant | undefined {
    return this.#timers.earliest();
  }

  health(peer: IpAddr): PathHealth {
    return this.#peers.get(peer)?.health ?? UNKNOWN;
  }

  /** When a probe of that peer last reached us. */
  heardAt(peer: IpAddr): Instant | undefined {
    return this.#peers.get(peer)?.heardAt;
  }

  #setPeers(wanted: ReadonlySet<IpAddr>, fullSize: number, now: Instant): void {
    this.#fullSize = fullSize;
    for (const ip of this.#peers.keys()) {
      if (wanted.has(ip)) continue;
      this.#peers.delete(ip);
      this.#timers.delete(ip);
    }
    for (const ip of wanted) {
      if (this.#peers.has(ip)) continue;
      const peer: Peer = {
        health: UNKNOWN,
        sent: new Map(),
        round: undefined,
        asked: undefined,
        heardAt: undefined,
        again: false,
        doubted: false,
      };
      this.#peers.set(ip, peer);
      this.#begin(ip, peer, now);
    }
  }

  #received(from: IpAddr, probe: PathProbe, now: Instant): void {
    const peer = this.#peers.get(from);
    if (peer === undefined) {
      this.counters.strange++;
      return;
    }
    if (probe.kind === "probe") {
      this.counters.received++;
      peer.heardAt = now;
      this.#effects.push({ type: "send", to: from, probe: { ...probe, kind: "answer" } });
      // It has a data path now: no need to wait for the long round to end.
      const idle = peer.health.state === "unknown" && peer.round === undefined && peer.asked === undefined;
      if (idle) this.#begin(from, peer, now);
      return;
    }
    const size = peer.sent.get(probe.nonce);
    if (size === undefined) {
      this.counters.strange++;
      return;
    }
    peer.sent.delete(probe.nonce);
    this.counters.answered++;
    const { round } = peer;
    if (round === undefined) return;
    round.through.add(size);
    if (size === this.#fullSize) this.#conclude(from, peer, { state: "ok", mtu: size, detail: "" }, now);
  }

  /** A round begins with one full-size packet: if that comes back, all is well and nothing more is sent. */
  #begin(ip: IpAddr, peer: Peer, now: Instant): void {
    peer.again = false;
    peer.round = { startedAt: now, attempt: 1, through: new Set() };
    const known = peer.health.mtu ?? this.#fullSize;
    this.#sendAll(ip, peer, known < this.#fullSize ? [known, this.#fullSize] : [this.#fullSize], now);
  }

  #due(ip: IpAddr, now: Instant): void {
    const peer = this.#peers.get(ip);
    if (peer === undefined) return;
    if (peer.asked !== undefined) return this.#told(ip, undefined, now);
    const { round } = peer;
    if (round === undefined) return this.#begin(ip, peer, now);
    this.#giveUp(peer);
    if (round.search !== undefined) return this.#narrow(ip, peer, round, round.search, now);
    const known = peer.health.mtu;
    // What fitted last time fits again and full size does not, as before: nothing new.
    if (peer.health.state === "ok" && known !== null && known < this.#fullSize && round.through.has(known))
      return this.#conclude(ip, peer, tooSmall(known, this.#fullSize), now);
    if (round.attempt < ATTEMPTS) {
      peer.round = { ...round, attempt: round.attempt + 1 };
      return this.#sendAll(ip, peer, [smallestProbe(ip), this.#fullSize], now);
    }
    if (round.through.size === 0) {
      peer.asked = round.startedAt;
      peer.round = undefined;
      this.#effects.push({ type: "ask", peer: ip });
      this.#timers.set(ip, after(now, 5 * ANSWER_MS));
      return;
    }
    const low = Math.max(...round.through);
    this.#search(ip, peer, round, { low, high: this.#fullSize, confirming: false }, now);
  }

  #narrow(ip: IpAddr, peer: Peer, round: Round, search: Search, now: Instant): void {
    const low = Math.max(search.low, ...round.through);
    if (search.confirming) {
      if (low === search.low) return this.#conclude(ip, peer, tooSmall(low, this.#fullSize), now);
      // A chance loss misled us: on from here.
      return this.#search(ip, peer, round, { low, high: this.#fullSize, confirming: false }, now);
    }
    const failed = sizesBetween(search.low, search.high).filter((size) => size > low);
    this.#search(ip, peer, round, { low, high: Math.min(search.high, ...failed), confirming: false }, now);
  }

  /** Tries sizes between; when none is left, the next one above once more, so that one loss does not count. */
  #search(ip: IpAddr, peer: Peer, round: Round, search: Search, now: Instant): void {
    const confirming = search.high - search.low <= 1;
    peer.round = { ...round, through: new Set(), search: { ...search, confirming } };
    this.#sendAll(ip, peer, confirming ? [search.low + 1] : sizesBetween(search.low, search.high), now);
  }

  #told(ip: IpAddr, testimony: PeerTestimony | undefined, now: Instant): void {
    const peer = this.#peers.get(ip);
    if (peer?.asked === undefined) return;
    const startedAt = peer.asked;
    peer.asked = undefined;
    if (testimony !== undefined && !testimony.probing) {
      const detail = "it has no data path: nothing is attached there";
      return this.#conclude(ip, peer, { state: "unknown", mtu: null, detail }, now);
    }
    if (peer.health.state === "unknown" && testimony !== undefined && !peer.doubted) {
      peer.doubted = true;
      return this.#begin(ip, peer, now);
    }
    const roundMs = elapsed(startedAt, now) + ANSWER_MS;
    const theyHear = testimony?.heardMsAgo !== undefined && testimony.heardMsAgo <= roundMs;
    const weHear = peer.heardAt !== undefined && elapsed(peer.heardAt, now) <= ROUND_MS + roundMs;
    const detail = theyHear
      ? "one way: they hear us, we do not hear them"
      : weHear
        ? "one way: we hear them, they do not hear us"
        : testimony === undefined
          ? "nothing comes back, and it does not answer over gossip either"
          : "nothing gets through in either direction";
    this.#conclude(ip, peer, { state: "blocked", mtu: null, detail }, now);
  }

  #conclude(ip: IpAddr, peer: Peer, health: Omit<PathHealth, "checkedAt">, now: Instant): void {
    const before = peer.health;
    peer.health = { ...health, checkedAt: now };
    peer.round = undefined;
    peer.asked = undefined;
    peer.doubted = false;
    // An answer that comes now is no loss, and says nothing more.
    peer.sent.clear();
    if (before.state !== health.state || before.mtu !== health.mtu || before.detail !== health.detail)
      this.#effects.push({ type: "changed", peer: ip, before, health: peer.health });
    if (peer.again) return this.#begin(ip, peer, now);
    const pauseMs =
      health.state === "unknown" ? IDLE_ROUND_MS : health.state === "ok" ? ROUND_MS : UNWELL_ROUND_MS;
    // Spread, so that peers that met at the same moment do not stay in step.
    this.#timers.set(ip, after(now, pauseMs * (0.8 + 0.4 * this.#random.next())));
  }

  #sendAll(ip: IpAddr, peer: Peer, sizes: readonly number[], now: Instant): void {
    this.#timers.set(ip, after(now, ANSWER_MS));
    for (const size of sizes) {
      const nonce = randomU64(this.#random);
      peer.sent.set(nonce, size);
      this.counters.sent++;
      this.#effects.push({ type: "send", to: ip, probe: { kind: "probe", nonce, size } });
    }
  }

  #giveUp(peer: Peer): void {
    this.counters.lost += peer.sent.size;
    peer.sent.clear();
  }
}

function randomU64(random: Random): bigint {
  const half = (): bigint => BigInt(Math.floor(random.next() * 0x1_0000_0000));
  return (half() << 32n) | half();
}

function tooSmall(mtu: number, wanted: number): Omit<PathHealth, "checkedAt"> {
  return { state: "ok", mtu, detail: `packets of ${wanted} bytes are lost, ${mtu} get through` };
}

/** Up to `SEARCH_WIDTH` sizes strictly between, evenly spread, ascending. */
export function sizesBetween(low: number, high: number): number[] {
  const count = Math.min(SEARCH_WIDTH, high - low - 1);
  return Array.from(
    { length: count },
    (_, index) => low + Math.ceil(((high - low) * (index + 1)) / (count + 1)),
  ).filter((size, index, all) => size > low && size < high && all.indexOf(size) === index);
}
