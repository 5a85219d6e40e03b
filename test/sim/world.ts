import assert from "node:assert/strict";
import { unreachable } from "../../src/base/assert.ts";
import { formatSocketAddr, parseIp, type SocketAddr } from "../../src/base/ip.ts";
import { seededRandom, type Random } from "../../src/base/random.ts";
import { instant, type Instant } from "../../src/base/time.ts";
import type { MemberEvent } from "../../src/swim/boundary.ts";
import { EventHeap } from "./event-heap.ts";
import { Network, type NetworkConditions } from "./network.ts";
import type { Payload, SimEffect, SimInput, SimNode } from "./sim-node.ts";

export const GOSSIP_PORT = 7946;
/** IP and UDP headers; IP and TCP headers of a segment; connect and close. */
const DATAGRAM_HEADER_BYTES = 28;
const SEGMENT_HEADER_BYTES = 52;
const CONNECTION_BYTES = 7 * SEGMENT_HEADER_BYTES;
const SEGMENT_BYTES = 1448;
/** SYN retransmissions, as Linux does them, after the first. */
const SYN_RETRY_MS = [1_000, 3_000, 7_000, 15_000];
/** A connection whose data finds no way for so long breaks. */
const STREAM_PATIENCE_MS = 15_000;
/** Datagrams a stopped process finds in its socket when it goes on. */
const SOCKET_BUFFER_PACKETS = 4_096;

export interface WorldOptions extends Partial<NetworkConditions> {
  readonly seed: number;
  readonly nodes: number;
  /** Of the hosts' addresses; default IPv4. */
  readonly family?: 4 | 6;
  /** A fresh process on this host. Its randomness must come from `random` alone. */
  readonly make: (host: number, life: number, random: Random, now: Instant) => SimNode;
}

type Power = "running" | "paused" | "killed" | "down";

/** A machine: a place in the network, and at most one process. */
export class Host {
  readonly index: number;
  readonly address: SocketAddr;
  readonly place: string;
  node: SimNode;
  power: Power = "killed";
  life = 0;
  /** The host's clock minus the world's. */
  clockMs = 0;
  /** Last time it was stopped, cut off, or otherwise not to be expected to answer. */
  unwellUntil = 0;
  readonly pending: SimInput[] = [];
  wakeAt: number | undefined;
  readonly streams = new Map<number, Connection>();
  nextStream = 1;
  packetsOut = 0;
  bytesOut = 0;
  messagesIn = 0;

  constructor(index: number, node: SimNode, family: 4 | 6 = 4) {
    this.index = index;
    this.address = hostAddress(index, family);
    this.place = formatSocketAddr(this.address);
    this.node = node;
  }
}

interface End {
  readonly host: Host;
  readonly life: number;
  /** Undefined until accepted. */
  stream: number | undefined;
  open: boolean;
  /** Data arrives in order. */
  lastAt: number;
}

interface Connection {
  readonly dialler: End;
  readonly acceptor: End;
  readonly deadline: number;
}

type Event =
  | { readonly type: "wake"; readonly host: Host; readonly at: number }
  | { readonly type: "packet"; readonly to: Host; readonly from: SocketAddr; readonly bytes: Payload }
  | {
      readonly type: "syn";
      readonly connection: Connection;
      readonly attempt: number;
      readonly since: number;
    }
  | { readonly type: "refused"; readonly connection: Connection }
  | { readonly type: "timed-out"; readonly connection: Connection }
  | { readonly type: "opened"; readonly connection: Connection }
  | {
      readonly type: "segment";
      readonly connection: Connection;
      readonly to: End;
      readonly bytes: Payload | undefined;
      readonly waitedMs: number;
    }
  | { readonly type: "call"; readonly run: () => void };

export interface Death {
  readonly at: number;
  readonly observer: Host;
  readonly event: Extract<MemberEvent, { type: "member-left" }>;
  /** The process it is about was running, and well for a while. */
  readonly falsely: boolean;
}

/**
 * Hosts, processes and a network on a virtual clock; every choice comes from one seed. Faults are methods; what is
 * observed are the processes' own views.
 */
export class World {
  readonly hosts: Host[] = [];
  readonly network: Network;
  readonly random: Random;
  readonly deaths: Death[] = [];
  /** Told of every effect that is an event; for measurements. */
  onEvent: ((host: Host, event: SimEffect) => void) | undefined;
  /** Keeps `deaths`; off for worlds too large for that. */
  recordDeaths = true;
  packets = 0;
  bytes = 0;
  readonly #make: WorldOptions["make"];
  readonly #events = new EventHeap<Event>();
  readonly #byPlace = new Map<string, Host>();
  /** The same by the address object: large worlds share these. */
  readonly #byAddress = new WeakMap<SocketAddr, Host>();
  readonly #byName = new Map<string, Host>();
  #now = 0;

  constructor(options: WorldOptions) {
    this.random = seededRandom(options.seed);
    this.network = new Network(seededRandom(this.#draw()), options);
    this.#make = options.make;
    for (let index = 0; index < options.nodes; index++) {
      const node = this.#make(index, 0, seededRandom(this.#draw()), instant(0));
      const host = new Host(index, node, options.family);
      this.hosts.push(host);
      this.#byPlace.set(host.place, host);
    }
  }

  get now(): number {
    return this.#now;
  }

  host(index: number): Host {
    const host = this.hosts[index];
    assert(host !== undefined, `there is no host ${index}`);
    return host;
  }

  /** Whoever was called so last. */
  hostOf(name: string): Host | undefined {
    return this.#byName.get(name);
  }

  // --- faults and commands ---

  start(index: number): void {
    const host = this.host(index);
    assert(host.power === "killed", "only what does not run can be started");
    if (host.life > 0) {
      host.node = this.#make(index, host.life, seededRandom(this.#draw()), this.#clock(host));
    }
    host.life++;
    host.power = "running";
    host.unwellUntil = this.#now;
    this.#byName.set(host.node.name, host);
    this.#feed(host, { type: "start" });
  }

  startAll(): void {
    for (const { index } of this.hosts) this.start(index);
  }

  join(index: number, ...seeds: number[]): void {
    const addresses = seeds.map((seed) => this.host(seed).address);
    this.feed(index, { type: "join", addresses });
  }

  feed(index: number, input: SimInput): void {
    this.#feed(this.host(index), input);
  }

  /** The process ends without a word; its host goes on and refuses connections. */
  kill(index: number): void {
    this.#end(this.host(index), "killed");
  }

  /** The host itself goes: silence. */
  powerOff(index: number): void {
    this.#end(this.host(index), "down");
  }

  restart(index: number): void {
    const host = this.host(index);
    if (host.power !== "killed" && host.power !== "down") this.kill(index);
    host.power = "killed";
    this.start(index);
  }

  /** SIGSTOP: the kernel goes on accepting and buffering for it. */
  pause(index: number): void {
    const host = this.host(index);
    if (host.power === "running") host.power = "paused";
  }

  resume(index: number): void {
    const host = this.host(index);
    if (host.power !== "paused") return;
    host.power = "running";
    host.unwellUntil = this.#now;
    const pending = host.pending.splice(0);
    const timersFirst = this.random.next() < 0.5;
    const wanted = host.node.nextWakeup();
    const due = wanted !== undefined && wanted - host.clockMs <= this.#now;
    if (due && timersFirst) this.#feed(host, { type: "wake" });
    for (const input of pending) this.#feed(host, input);
    if (due && !timersFirst) this.#feed(host, { type: "wake" });
    host.wakeAt = undefined;
    this.#scheduleWake(host);
  }

  /** Its clock jumps ahead, as after a suspended virtual machine. */
  jumpClock(index: number, ms: number): void {
    const host = this.host(index);
    host.clockMs += ms;
    host.wakeAt = undefined;
    this.#scheduleWake(host);
  }

  after(ms: number, run: () => void): void {
    this.#events.push(this.#now + ms, { type: "call", run });
  }

  // --- time ---

  runFor(ms: number): void {
    this.runUntil(() => false, ms);
  }

  /** Milliseconds until `condition` held, looked at every `everyMs`; undefined when it did not in time. */
  runUntil(condition: () => boolean, withinMs: number, everyMs = Infinity): number | undefined {
    const start = this.#now;
    const end = start + withinMs;
    let lookAt = Math.min(end, start + everyMs);
    for (;;) {
      const next = this.#events.nextAt;
      if (next === undefined || next > lookAt) {
        this.#now = lookAt;
        if (condition()) return this.#now - start;
        if (lookAt >= end) return undefined;
        lookAt = Math.min(end, lookAt + everyMs);
        continue;
      }
      this.#now = Math.max(this.#now, next);
      const event = this.#events.pop();
      if (event !== undefined) this.#happen(event);
    }
  }

  // --- observations ---

  running(): Host[] {
    return this.hosts.filter((host) => host.power === "running");
  }

  /** Every running process sees as alive exactly the running ones it can reach. */
  agree(): boolean {
    return this.disagreement() === undefined;
  }

  disagreement(): string | undefined {
    const running = this.running();
    const here = new Set(running.map((host) => host.node.name));
    for (const host of running) {
      for (const other of running) {
        if (!this.network.reaches(host.index, other.index) || !this.network.reaches(other.index, host.index))
          continue;
        const seen = host.node.member(other.node.name)?.state ?? "unknown";
        if (seen !== "alive") return `${host.node.name} sees ${other.node.name} as ${seen}`;
      }
      for (const member of host.node.members()) {
        if (member.state !== "alive" || here.has(member.name)) continue;
        return `${host.node.name} sees ${member.name} as alive, which does not run`;
      }
    }
    return undefined;
  }

  /** How many running processes see `name` in a state that `counts`. */
  seenBy(counts: (state: string) => boolean, name: string): number {
    return this.running().filter((host) => counts(host.node.member(name)?.state ?? "unknown")).length;
  }

  // --- the machinery ---

  #draw(): number {
    return Math.floor(this.random.next() * 0x1_0000_0000);
  }

  #end(host: Host, power: "killed" | "down"): void {
    if (host.power === "down" || (host.power === "killed" && power === "killed")) return;
    host.power = power;
    host.pending.length = 0;
    host.wakeAt = undefined;
    for (const connection of new Set(host.streams.values())) {
      const mine = connection.dialler.host === host ? connection.dialler : connection.acceptor;
      const theirs = mine === connection.dialler ? connection.acceptor : connection.dialler;
      mine.open = false;
      if (power === "killed" && theirs.open) this.#sendSegment(connection, theirs, undefined);
    }
    host.streams.clear();
  }

  #clock(host: Host): Instant {
    return instant(this.#now + host.clockMs);
  }

  #feed(host: Host, input: SimInput): void {
    if (host.power === "paused") {
      if (input.type !== "packet" || host.pending.length < SOCKET_BUFFER_PACKETS) host.pending.push(input);
      return;
    }
    if (host.power !== "running") return;
    host.messagesIn++;
    for (const effect of host.node.handle(input, this.#clock(host))) this.#perform(host, effect);
    this.#scheduleWake(host);
  }

  #scheduleWake(host: Host): void {
    const wanted = host.node.nextWakeup();
    if (wanted === undefined || host.power !== "running") return;
    const at = Math.max(this.#now, wanted - host.clockMs);
    if (host.wakeAt !== undefined && host.wakeAt <= at && host.wakeAt >= this.#now) return;
    host.wakeAt = at;
    this.#events.push(at, { type: "wake", host, at });
  }

  #perform(host: Host, effect: SimEffect): void {
    switch (effect.type) {
      case "send-packet":
        return this.#sendPacket(host, effect.to, effect.bytes);
      case "open-stream":
        return this.#dial(host, effect.stream, effect.to, effect.timeoutMs);
      case "write-stream": {
        const connection = host.streams.get(effect.stream);
        if (connection === undefined) return;
        const to =
          connection.dialler.host === host && connection.dialler.stream === effect.stream
            ? connection.acceptor
            : connection.dialler;
        this.#account(host, effect.bytes.length + SEGMENT_HEADER_BYTES * segments(effect.bytes));
        return this.#sendSegment(connection, to, effect.bytes);
      }
      case "close-stream": {
        const connection = host.streams.get(effect.stream);
        if (connection === undefined) return;
        host.streams.delete(effect.stream);
        const mine =
          connection.dialler.host === host && connection.dialler.stream === effect.stream
            ? connection.dialler
            : connection.acceptor;
        const theirs = mine === connection.dialler ? connection.acceptor : connection.dialler;
        mine.open = false;
        if (theirs.open && theirs.stream !== undefined) this.#sendSegment(connection, theirs, undefined);
        return;
      }
      case "member-left":
        this.#recordDeath(host, effect);
        break;
      case "member-joined":
      case "member-updated":
      case "member-suspected":
      case "member-recovered":
      case "member-conflict":
      case "join-done":
      case "left":
        break;
      default:
        unreachable(effect);
    }
    this.onEvent?.(host, effect);
  }

  #at(address: SocketAddr): Host | undefined {
    const known = this.#byAddress.get(address);
    if (known !== undefined) return known;
    const host = this.#byPlace.get(formatSocketAddr(address));
    if (host !== undefined) this.#byAddress.set(address, host);
    return host;
  }

  #account(host: Host, bytes: number): void {
    this.packets++;
    this.bytes += bytes;
    host.packetsOut++;
    host.bytesOut += bytes;
  }

  #sendPacket(host: Host, to: SocketAddr, bytes: Payload): void {
    this.#account(host, bytes.length + DATAGRAM_HEADER_BYTES);
    const target = this.#at(to);
    if (target === undefined || bytes.length > this.network.conditions.mtu) return;
    const copies = this.network.duplicates() ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      if (!this.network.reaches(host.index, target.index) || this.network.loses(host.index, target.index))
        continue;
      this.#events.push(this.#now + this.network.delayMs(), {
        type: "packet",
        to: target,
        from: host.address,
        bytes,
      });
    }
  }

  #dial(host: Host, stream: number, to: SocketAddr, timeoutMs: number): void {
    const target = this.#at(to) ?? host;
    const connection: Connection = {
      dialler: { host, life: host.life, stream, open: true, lastAt: 0 },
      acceptor: { host: target, life: target.life, stream: undefined, open: true, lastAt: 0 },
      deadline: this.#now + timeoutMs,
    };
    host.streams.set(stream, connection);
    this.#account(host, CONNECTION_BYTES);
    this.#events.push(this.#now, { type: "syn", connection, attempt: 0, since: this.#now });
  }

  #syn(connection: Connection, attempt: number, since: number): void {
    const { dialler, acceptor, deadline } = connection;
    if (!dialler.open || dialler.host.power === "killed" || dialler.host.power === "down") return;
    const there = dialler.host.index;
    const here = acceptor.host.index;
    const roundTripMs = this.network.delayMs() + this.network.delayMs();
    const passes =
      acceptor.host.power !== "down" &&
      this.network.reaches(there, here) &&
      this.network.reaches(here, there) &&
      !this.network.loses(there, here) &&
      !this.network.loses(here, there);
    if (passes) {
      const type = acceptor.host.power === "killed" ? "refused" : "opened";
      this.#events.push(this.#now + roundTripMs, { type, connection });
      return;
    }
    const retryAt = since + (SYN_RETRY_MS[attempt] ?? Infinity);
    if (retryAt < deadline)
      this.#events.push(retryAt, { type: "syn", connection, attempt: attempt + 1, since });
    else this.#events.push(deadline, { type: "timed-out", connection });
  }

  #sendSegment(connection: Connection, to: End, bytes: Payload | undefined): void {
    const from = to === connection.acceptor ? connection.dialler : connection.acceptor;
    const count = bytes === undefined ? 1 : segments(bytes);
    const extraMs = this.network.retransmissionMs(from.host.index, to.host.index, count);
    const at = Math.max(to.lastAt, this.#now + this.network.delayMs() + extraMs);
    to.lastAt = at;
    this.#events.push(at, { type: "segment", connection, to, bytes, waitedMs: 0 });
  }

  #happen(event: Event): void {
    switch (event.type) {
      case "wake": {
        const { host, at } = event;
        if (host.wakeAt !== at || host.power !== "running") return;
        host.wakeAt = undefined;
        const wanted = host.node.nextWakeup();
        if (wanted !== undefined && wanted - host.clockMs <= this.#now) this.#feed(host, { type: "wake" });
        else this.#scheduleWake(host);
        return;
      }
      case "packet":
        return this.#feed(event.to, { type: "packet", from: event.from, bytes: event.bytes });
      case "syn":
        return this.#syn(event.connection, event.attempt, event.since);
      case "refused":
        return this.#break(event.connection.dialler, "ECONNREFUSED");
      case "timed-out":
        return this.#break(event.connection.dialler, "ETIMEDOUT");
      case "opened":
        return this.#opened(event.connection);
      case "segment":
        return this.#segment(event);
      case "call":
        return event.run();
      default:
        unreachable(event);
    }
  }

  #opened(connection: Connection): void {
    const { dialler, acceptor } = connection;
    const { host } = acceptor;
    if (!alive(dialler) || !dialler.open) return;
    if (host.power === "killed" || host.power === "down" || host.life !== acceptor.life) {
      return this.#break(dialler, "ECONNREFUSED");
    }
    acceptor.stream = host.nextStream;
    host.nextStream += 2;
    host.streams.set(acceptor.stream, connection);
    const { ip } = dialler.host.address;
    this.#feed(host, { type: "stream-accepted", stream: acceptor.stream, from: { ip, port: 40_000 } });
    if (dialler.open) this.#feed(dialler.host, { type: "stream-opened", stream: dialler.stream ?? 0 });
  }

  #segment(event: Extract<Event, { type: "segment" }>): void {
    const { connection, to, bytes, waitedMs } = event;
    const from = to === connection.acceptor ? connection.dialler : connection.acceptor;
    if (!to.open || to.stream === undefined) return;
    if (to.host.power === "down" || !this.network.reaches(from.host.index, to.host.index)) {
      if (waitedMs > STREAM_PATIENCE_MS) return this.#break(to, "ETIMEDOUT");
      const moreMs = Math.max(200, waitedMs);
      this.#events.push(this.#now + moreMs, { ...event, waitedMs: waitedMs + moreMs });
      return;
    }
    if (!alive(to)) return;
    if (bytes !== undefined) return this.#feed(to.host, { type: "stream-data", stream: to.stream, bytes });
    to.open = false;
    to.host.streams.delete(to.stream);
    this.#feed(to.host, { type: "stream-closed", stream: to.stream });
  }

  #break(end: End, code: string): void {
    if (!end.open || end.stream === undefined) return;
    end.open = false;
    if (!alive(end)) return;
    end.host.streams.delete(end.stream);
    this.#feed(end.host, { type: "stream-closed", stream: end.stream, error: { code, message: code } });
  }

  #recordDeath(observer: Host, event: Extract<MemberEvent, { type: "member-left" }>): void {
    if (!this.recordDeaths || event.reason.why === "left") return;
    const subject = this.#byName.get(event.member.name);
    const falsely =
      subject !== undefined &&
      subject.node.name === event.member.name &&
      subject.power === "running" &&
      this.#now - subject.unwellUntil > WELL_AFTER_MS &&
      this.network.reaches(observer.index, subject.index) &&
      this.network.reaches(subject.index, observer.index);
    this.deaths.push({ at: this.#now, observer, event, falsely });
  }
}

/** A process that was stopped may be taken for dead a little longer: the news is under way. */
const WELL_AFTER_MS = 10_000;

function alive(end: End): boolean {
  const { power, life } = end.host;
  return life === end.life && power !== "killed" && power !== "down";
}

function segments(bytes: Payload): number {
  return Math.max(1, Math.ceil(bytes.length / SEGMENT_BYTES));
}

export function hostAddress(index: number, family: 4 | 6 = 4): SocketAddr {
  if (family === 6) return { ip: parseIp(`2001:db8::${(index + 1).toString(16)}`), port: GOSSIP_PORT };
  return { ip: parseIp(`10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`), port: GOSSIP_PORT };
}
