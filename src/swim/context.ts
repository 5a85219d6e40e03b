import type { SocketAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import type { MemberlistMessage, Ping } from "../wire/memberlist/message.ts";
import { instant } from "../base/time.ts";
import { Awareness } from "./awareness.ts";
import type { SwimEffect, UserBroadcasts } from "./boundary.ts";
import { BroadcastQueue, LARGE_CLUSTER } from "./broadcast-queue.ts";
import type { SwimConfig } from "./config.ts";
import {
  MemberTable,
  understandsCrc,
  type Description,
  type Identity,
  type MemberRecord,
  type NameNumbers,
} from "./member.ts";
import { RoundTrips } from "./rtt.ts";

/** Length byte pairs of a compound, and its head: 07 and the count. */
const COMPOUND_HEAD_BYTES = 2;
const COMPOUND_PART_BYTES = 2;
/** A part's length, and the type byte of a user message. */
const USER_PART_BYTES = 3;
/** Members before 2020 miscompute the length table of a compound of 128 parts and more. */
const MAX_PARTS = 127;
const USER_TYPE = 8;

export interface ContextOptions {
  readonly self: MemberRecord;
  readonly config: SwimConfig;
  readonly random: Random;
  readonly userBroadcasts: UserBroadcasts;
  readonly packetOverhead: number;
  readonly identify: (description: Description) => Identity;
  readonly encode: (message: MemberlistMessage) => Uint8Array;
  readonly numbers?: NameNumbers | undefined;
}

/** What the parts of one node share: settings, tables, and the way out. */
export class Context {
  readonly config: SwimConfig;
  readonly random: Random;
  readonly self: MemberRecord;
  readonly members: MemberTable;
  readonly queue: BroadcastQueue;
  readonly userBroadcasts: UserBroadcasts;
  readonly awareness: Awareness;
  readonly roundTrips = new RoundTrips();
  readonly identify: (description: Description) => Identity;
  readonly encode: (message: MemberlistMessage) => Uint8Array;
  readonly counters: Record<string, number> = {};
  packetOverhead: number;
  /** Until then so large a part of the cluster joins that gossip, which may miss some, leaves the rest to exchanges. */
  joinStormUntil = instant(0);
  #effects: SwimEffect[] = [];
  #seqNo = 0;

  constructor(options: ContextOptions) {
    this.config = options.config;
    this.random = options.random;
    this.self = options.self;
    this.members = new MemberTable(options.self, options.random, options.numbers);
    this.queue = new BroadcastQueue(options.config, this.members);
    this.userBroadcasts = options.userBroadcasts;
    this.awareness = new Awareness(options.config.awarenessMaxMultiplier);
    this.packetOverhead = options.packetOverhead;
    this.identify = options.identify;
    this.encode = options.encode;
  }

  /** So many are gone or suspected that news of them is most of all gossip. */
  get massFailure(): boolean {
    const absent = this.members.size - this.members.alive;
    return this.config.skipInformed && this.members.size >= LARGE_CLUSTER && absent > this.members.size / 8;
  }

  emit(effect: SwimEffect): void {
    this.#effects.push(effect);
  }

  takeEffects(): SwimEffect[] {
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  /** Whether a message to the node called so must not be sent. */
  isNameless(name: string): boolean {
    if (name !== "" || !this.config.requireNodeNames) return false;
    this.count("send.nameless");
    return true;
  }

  count(name: string, by = 1): void {
    this.counters[name] = (this.counters[name] ?? 0) + by;
  }

  /** 1 … 2³² − 1, then again from 1: shared by all pings of this node, so that an ack names one. */
  nextSeqNo(): number {
    this.#seqNo = this.#seqNo >= 0xffff_ffff ? 1 : this.#seqNo + 1;
    return this.#seqNo;
  }

  ping(seqNo: number, node: string): Ping {
    return {
      type: "ping",
      seqNo,
      node,
      sourceAddr: this.self.addr,
      sourcePort: this.self.port,
      sourceNode: this.self.name,
    };
  }

  /** A message with gossip riding behind it, as far as there is room. */
  send(to: SocketAddr, place: string, message: MemberlistMessage): void {
    const carrier = this.encode(message);
    const parts = [carrier, ...this.gossipParts(carrier.length + COMPOUND_PART_BYTES, place)];
    this.emit({ type: "send", to, parts, crc: false });
  }

  /** Just these messages in one packet. */
  sendBare(to: SocketAddr, messages: readonly MemberlistMessage[], crc: boolean): void {
    this.emit({ type: "send", to, parts: messages.map((message) => this.encode(message)), crc });
  }

  /** A gossip packet, unless the member knows all there is to tell. */
  sendGossip(member: MemberRecord): void {
    this.#sendParts(member, this.gossipParts(0, member.identity.place));
  }

  /** The same packet to all of them, whatever each knows: in a storm most of the work is to fill it. */
  sendGossipToAll(members: readonly MemberRecord[]): void {
    const { queue, userBroadcasts } = this;
    const hearers = members.filter(({ identity }) => !queue.isHeld(identity.place));
    if (hearers.length === 0) return;
    const budget = this.config.udpBufferBytes - COMPOUND_HEAD_BYTES - this.packetOverhead;
    const shared = queue.takeForAll(budget, COMPOUND_PART_BYTES, hearers.length);
    for (const hearer of hearers) {
      this.#sendParts(hearer, userBroadcasts.length === 0 ? shared : this.#withUserParts(shared, budget));
    }
  }

  #sendParts(member: MemberRecord, parts: readonly Uint8Array[]): void {
    if (parts.length === 0) return;
    const crc = understandsCrc(member);
    const to = member.address;
    if (parts.length <= MAX_PARTS) this.emit({ type: "send", to, parts, crc });
    else {
      for (let at = 0; at < parts.length; at += MAX_PARTS)
        this.emit({ type: "send", to, parts: parts.slice(at, at + MAX_PARTS), crc });
    }
    this.count("gossip.packets");
  }

  /** Membership broadcasts first, then the application's, for what a packet already carrying `usedBytes` has left. */
  gossipParts(usedBytes: number, place: string): Uint8Array[] {
    const budget = this.config.udpBufferBytes - COMPOUND_HEAD_BYTES - this.packetOverhead - usedBytes;
    const parts = this.#withUserParts(this.queue.take(budget, COMPOUND_PART_BYTES, place), budget);
    return usedBytes > 0 ? parts.slice(0, MAX_PARTS - 1) : parts;
  }

  #withUserParts(parts: Uint8Array[], budget: number): Uint8Array[] {
    if (this.userBroadcasts.length === 0) return parts;
    let left = budget;
    for (const part of parts) left -= part.length + COMPOUND_PART_BYTES;
    if (left <= USER_PART_BYTES) return parts;
    const payloads = this.userBroadcasts.take(left, USER_PART_BYTES, this.members.size);
    return [...parts, ...payloads.map(userMessage)];
  }
}

export function userMessage(payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(1 + payload.length);
  bytes[0] = USER_TYPE;
  bytes.set(payload, 1);
  return bytes;
}
