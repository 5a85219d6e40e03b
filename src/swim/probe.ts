import { after, earlier, type Instant } from "../base/time.ts";
import type { SocketAddr } from "../base/ip.ts";
import type { Context } from "./context.ts";
import { understandsCrc, type MemberRecord } from "./member.ts";
import type { StreamPings } from "./stream-pings.ts";

/** Protocol from which a member answers a relay's failure with a nack, and a ping over TCP. */
const PROTOCOL_NACK = 4;

export type ProbeOutcome =
  | { readonly target: MemberRecord; readonly ok: true }
  /** Neither a ping, nor a relay, nor TCP brought an answer. */
  | { readonly target: MemberRecord; readonly ok: false };

interface Probe {
  readonly target: MemberRecord;
  readonly seqNo: number;
  startedAt: Instant;
  endsAt: Instant;
  /** When the next direct ping goes out; the first of these also starts the indirect ones. */
  nextPingAt: Instant | undefined;
  /** Doubled each time. */
  spacingMs: number;
  pings: number;
  indirect: boolean;
  nacksExpected: number;
  nacks: number;
  acked: boolean;
  streamAcked: boolean;
}

/**
 * Probes one member per interval (memberlist state.go, probe and probeNode): ping; without an answer ask others to
 * ping and try TCP; without any answer until the interval (times health + 1) ends, it failed.
 *
 * Beyond memberlist: the direct time-out follows measured round trips, so that the indirect part has more of the
 * interval, and direct pings are repeated while it lasts.
 */
export class Prober {
  readonly #context: Context;
  readonly #streamPings: StreamPings;
  #probe: Probe | undefined;
  #nextTickAt: Instant | undefined;
  #index = 0;

  constructor(context: Context, streamPings: StreamPings) {
    this.#context = context;
    this.#streamPings = streamPings;
  }

  /** The first tick comes at a random time, so that nodes started together do not probe together. */
  start(now: Instant): void {
    const { config, random } = this.#context;
    this.#nextTickAt = after(now, config.probeIntervalMs * (1 + random.next()));
  }

  nextWakeup(): Instant | undefined {
    const probe = this.#probe;
    return probe === undefined ? this.#nextTickAt : earlier(probe.nextPingAt, probe.endsAt);
  }

  /** Moves the probe on; an outcome when it ended. */
  wake(now: Instant): ProbeOutcome | undefined {
    const probe = this.#probe;
    if (probe !== undefined) {
      if (now >= probe.endsAt) return this.#end(probe, now);
      if (probe.nextPingAt !== undefined && now >= probe.nextPingAt) this.#insist(probe, now);
      return undefined;
    }
    if (this.#nextTickAt !== undefined && now >= this.#nextTickAt) {
      this.#skipMissedTicks(now);
      const target = this.#nextTarget(now);
      if (target !== undefined) this.#begin(target, now);
    }
    return undefined;
  }

  /** An ack, direct or through a relay. An outcome when it ends the probe. */
  ack(seqNo: number, from: SocketAddr, now: Instant): ProbeOutcome | undefined {
    const probe = this.#probe;
    if (probe === undefined || probe.seqNo !== seqNo) return undefined;
    const { address, name } = probe.target;
    const direct = from.ip === address.ip && from.port === address.port;
    if (direct && probe.pings === 1) this.#context.roundTrips.add(name, now - probe.startedAt);
    if (direct) this.#streamPings.lives(name);
    probe.acked = true;
    return this.#end(probe, now);
  }

  nack(seqNo: number): boolean {
    const probe = this.#probe;
    if (probe?.seqNo !== seqNo) return false;
    if (probe.nacks < this.#context.config.indirectChecks) probe.nacks++;
    return true;
  }

  /** TCP worked. UDP has until the end of the interval to do so too: its failure is worth counting. */
  streamAcked(name: string): void {
    if (this.#probe?.target.name === name) this.#probe.streamAcked = true;
  }

  /** Its target is dead for another reason. */
  abandon(name: string): void {
    if (this.#probe?.target.name !== name) return;
    this.#streamPings.cancel("probe", name);
    this.#probe = undefined;
  }

  /** This node stood still: what should have come meanwhile is still in the socket. */
  shift(milliseconds: number): void {
    const probe = this.#probe;
    if (probe === undefined) return;
    probe.endsAt = after(probe.endsAt, milliseconds);
    if (probe.nextPingAt !== undefined) probe.nextPingAt = after(probe.nextPingAt, milliseconds);
    // No round trip can be read off this one any more.
    probe.pings++;
  }

  /** How long an answer to a ping may take before another way is tried. */
  directTimeoutMs(name: string): number {
    const { config, roundTrips, awareness } = this.#context;
    const limitMs = roundTrips.limitMs(name);
    if (limitMs === undefined) return config.probeTimeoutMs;
    const timeoutMs = awareness.scale(Math.max(config.minProbeTimeoutMs, 2 * limitMs));
    return Math.min(config.probeTimeoutMs, timeoutMs);
  }

  #begin(target: MemberRecord, now: Instant): void {
    const { config, awareness } = this.#context;
    const timeoutMs = this.directTimeoutMs(target.name);
    const probe: Probe = {
      target,
      seqNo: this.#context.nextSeqNo(),
      startedAt: now,
      endsAt: after(now, awareness.scale(config.probeIntervalMs)),
      nextPingAt: after(now, timeoutMs),
      spacingMs: timeoutMs,
      pings: 0,
      indirect: false,
      nacksExpected: 0,
      nacks: 0,
      acked: false,
      streamAcked: false,
    };
    this.#probe = probe;
    this.#ping(probe);
  }

  #ping(probe: Probe): void {
    const { target, seqNo } = probe;
    probe.pings++;
    sendPing(this.#context, target, seqNo);
  }

  /** No answer in time: every other way, and the direct one again. */
  #insist(probe: Probe, now: Instant): void {
    const { config } = this.#context;
    if (!probe.indirect) {
      probe.indirect = true;
      this.#askRelays(probe);
      this.#streamPings.begin("probe", probe.target, probe.seqNo, probe.endsAt, now);
    }
    const repeat = probe.pings <= config.repeatedPings;
    if (repeat) this.#ping(probe);
    probe.spacingMs *= 2;
    const next = after(now, probe.spacingMs);
    probe.nextPingAt = probe.pings <= config.repeatedPings && next < probe.endsAt ? next : undefined;
  }

  #askRelays(probe: Probe): void {
    const { members, config, self } = this.#context;
    const { target } = probe;
    const relays = members.pick(
      config.indirectChecks,
      (member) => member.state === "alive" && member !== self && member !== target,
    );
    for (const relay of relays) {
      const nack = relay.protocolMax >= PROTOCOL_NACK;
      if (nack) probe.nacksExpected++;
      this.#context.send(relay.address, relay.identity.place, {
        type: "indirect-ping",
        seqNo: probe.seqNo,
        target: target.addr,
        port: target.port,
        node: target.name,
        nack,
        sourceAddr: self.addr,
        sourcePort: self.port,
        sourceNode: self.name,
      });
    }
  }

  #end(probe: Probe, now: Instant): ProbeOutcome {
    const { awareness } = this.#context;
    this.#probe = undefined;
    this.#streamPings.cancel("probe", probe.target.name);
    this.#skipMissedTicks(now);
    this.#context.count("probe.rounds");
    if (probe.acked || probe.streamAcked) {
      if (!probe.acked) this.#context.count("probe.tcp-only");
      awareness.add(-1);
      return { target: probe.target, ok: true };
    }
    if (awareness.score > 0) this.#context.count("probe.degraded");
    this.#context.count("probe.failed");
    // A relay that says "neither could I" shows that the way to the relay works: we are well.
    awareness.add(probe.nacksExpected > 0 ? probe.nacksExpected - probe.nacks : 1);
    return { target: probe.target, ok: false };
  }

  #skipMissedTicks(now: Instant): void {
    const { probeIntervalMs } = this.#context.config;
    const tick = this.#nextTickAt;
    if (tick === undefined || tick > now) return;
    const missed = Math.floor((now - tick) / probeIntervalMs) + 1;
    this.#nextTickAt = after(tick, missed * probeIntervalMs);
  }

  /** The next in the list that is here and not us; at its end the list is swept and shuffled. */
  #nextTarget(now: Instant): MemberRecord | undefined {
    const { members, self } = this.#context;
    for (let seen = 0; seen <= members.size; seen++) {
      if (this.#index >= members.size) {
        this.#index = 0;
        dropDeparted(this.#context, now);
        members.shuffle();
      }
      const member = members.at(this.#index++);
      if (member !== undefined && member !== self && member.present) return member;
    }
    return undefined;
  }
}

/** A ping; a suspect hears in the same packet that it is one, so that it can refute at once (Lifeguard's buddy). */
export function sendPing(context: Context, target: MemberRecord, seqNo: number): void {
  const ping = context.ping(seqNo, target.name);
  if (target.state !== "suspect") return context.send(target.address, target.identity.place, ping);
  const accusation = {
    type: "suspect",
    incarnation: target.incarnation,
    node: target.name,
    from: context.self.name,
  } as const;
  context.sendBare(target.address, [ping, accusation], understandsCrc(target));
}

/** Those gone longer than they are gossiped to leave the list, and N. */
export function dropDeparted(context: Context, now: Instant): void {
  const { members, config, roundTrips } = context;
  const dropped = members.drop(
    (member) =>
      !member.present && now - member.changedAt > config.gossipToTheDeadMs && member !== context.self,
  );
  for (const member of dropped) roundTrips.forget(member.name);
}
