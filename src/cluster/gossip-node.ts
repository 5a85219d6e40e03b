import { unreachable } from "../base/assert.ts";
import { DecodeError } from "../base/error.ts";
import { nodeName, type NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import { earliest, type Instant } from "../base/time.ts";
import { networkDbConfig } from "../networkdb/config.ts";
import { NetworkDb, type NetworkDbInput } from "../networkdb/networkdb.ts";
import type { StateInput } from "../state/effect.ts";
import { State } from "../state/state.ts";
import type { SwimEffect, SwimInput } from "../swim/boundary.ts";
import { userMessage } from "../swim/context.ts";
import type { Member } from "../swim/member.ts";
import { Swim } from "../swim/swim.ts";
import type { UserMessage } from "../wire/memberlist/message.ts";
import type { StreamMessage } from "../wire/memberlist/stream-message.ts";
import { networkDbMessageType } from "../wire/networkdb/message.ts";
import { STATE_MESSAGE_TYPE } from "../wire/state/message.ts";
import { AmongSerf, type SerfReply } from "./among-serf.ts";
import type { GossipEffect, GossipInput, GossipNodeOptions } from "./boundary.ts";
import { UserStates, speaksTables, type UserState } from "./user-states.ts";
import { decodeMetadata, encodeMetadata, type NodeFacts } from "./metadata.ts";
import { Netagents } from "./netagents.ts";
import { PacketSealer } from "./packet-sealer.ts";
import { PEER_CALL_MESSAGE_TYPE, PeerCalls, type PeerCallEffect } from "./peer-call.ts";
import { StreamEvents } from "./stream-events.ts";
import { Streams, type Purpose, type UserOrigin } from "./streams.ts";
import { TableRounds } from "./table-rounds.ts";

/** Delegate protocol min, max, current. */
const DELEGATE_VERSIONS = { docker: [0, 0, 0], serf: [2, 5, 4] } as const;
/** How long a leave waits for NetworkDB's own goodbye before memberlist's. */
const LEAVE_STEP_MS = 5_000;
const NO_BYTES = new Uint8Array(0);

/**
 * One member of the swarm: swim, networkdb and state behind one `handle()`. The only place where they meet, and the
 * only one that decodes what the network sends: a bad layer is one counted drop.
 */
export class GossipNode {
  readonly name: NodeName;
  readonly facts: NodeFacts;
  readonly swim: Swim;
  readonly networkDb: NetworkDb;
  readonly state: State;
  /** Dropped input by reason. */
  readonly drops = new Map<string, number>();
  readonly #options: GossipNodeOptions;
  readonly #calls: PeerCalls;
  readonly #peers: Netagents;
  readonly #streams: Streams;
  readonly #sealer: PacketSealer;
  readonly #userStates: UserStates;
  readonly #streamEvents: StreamEvents;
  /** Set when the cluster is serf's. */
  readonly #serf: AmongSerf | undefined;
  /** When memberlist's goodbye follows serf's. */
  #swimLeaveAt: Instant | undefined;
  readonly #tableRounds: TableRounds | undefined;
  #leaving: { readonly timeoutMs: number } | undefined;
  #effects: GossipEffect[] = [];

  constructor(options: GossipNodeOptions, now: Instant) {
    this.#options = options;
    this.name = options.name;
    this.facts = options.facts;
    this.#sealer = new PacketSealer(options.sealing, options.nonce);
    this.#calls = new PeerCalls(options.name);
    this.networkDb = new NetworkDb(
      {
        node: options.name,
        address: options.address.socket,
        random: options.random,
        config: networkDbConfig({
          gossipPayloadBytes: options.swim.udpBufferBytes - this.#sealer.overhead - 6,
          ...options.networkDb,
        }),
      },
      now,
    );
    this.state = new State(
      { ...options.state, node: options.facts.id, memberName: options.name, random: options.random },
      now,
    );
    this.#serf =
      options.compat === "serf"
        ? new AmongSerf(options.name, options.swim.retransmitMult, () => this.keys)
        : undefined;
    this.swim = new Swim({
      name: options.name,
      address: { addr: options.address.bytes, port: options.address.socket.port },
      meta: encodeMetadata(options.facts),
      vsn: Uint8Array.from([1, 5, 2, ...DELEGATE_VERSIONS[options.compat]]),
      config: options.swim,
      random: options.random,
      userBroadcasts: this.#serf ?? this.networkDb.clusterBroadcasts,
      packetOverhead: this.#sealer.overhead,
    });
    this.#peers = new Netagents(this.swim);
    this.#tableRounds =
      this.#serf === undefined
        ? undefined
        : new TableRounds({
            broadcasts: this.networkDb.clusterBroadcasts,
            swim: options.swim,
            random: options.random,
            hearers: () => this.#peers.living(),
          });
    this.#streams = new Streams({
      tcpTimeoutMs: options.swim.tcpTimeoutMs,
      sealing: () => this.#sealer.sealing,
      nonce: options.nonce,
      emit: (effect) => void this.#effects.push(effect),
      dropped: (error) => this.#dropped(error, "stream"),
      count: (reason) => this.#count(reason),
    });
    this.#userStates = new UserStates({
      ...{ swim: this.swim, networkDb: this.networkDb, state: this.state },
      amongSerf: this.#serf !== undefined,
      dropped: (error) => this.#dropped(error, "push/pull state"),
    });
    this.#streamEvents = new StreamEvents({
      ...{ streams: this.#streams, userStates: this.#userStates },
      swim: (input, now) => this.#swim(input, now),
      userMessage: (payload, now) => this.#userMessage(payload, "stream", now),
      undelivered: (to, origin, now) => this.#undelivered(to, origin, now),
      count: (reason) => this.#count(reason),
    });
  }

  handle(input: GossipInput, now: Instant): GossipEffect[] {
    this.#effects = [];
    this.#userStates.begin();
    this.#sealer.forget();
    this.#dispatch(input, now);
    this.#tableRounds?.notice(now);
    return this.#effects;
  }

  /** When to call `handle({ type: "wake" })` next. Ask again after every call. */
  nextWakeup(): Instant | undefined {
    return earliest(
      this.swim.nextWakeup(),
      this.networkDb.nextWakeup(),
      this.state.nextWakeup(),
      this.#calls.nextWakeup(),
      this.#streams.nextWakeup(),
      this.#swimLeaveAt,
      this.#tableRounds?.nextWakeup(),
    );
  }

  /** What a netagent member says about itself; undefined for Docker's and serf's. */
  peer(name: string): NodeFacts | undefined {
    return name === this.name ? this.facts : this.#peers.get(name as NodeName);
  }

  /** Whether there are keys, and their order: the first one seals. */
  get keys(): readonly Uint8Array[] {
    return this.#sealer.sealing.keys;
  }

  #dispatch(input: GossipInput, now: Instant): void {
    switch (input.type) {
      case "start":
        this.#swim({ type: "start" }, now);
        this.#state(
          { type: "start", name: this.facts.name, seed: input.seed, unixSeconds: input.unixSeconds },
          now,
        );
        return;
      case "wake":
        return this.#wake(now);
      case "packet":
        return this.#packet(input.from, input.bytes, now);
      case "stream-accepted":
        return this.#streams.accept(input.stream, input.from, now);
      case "stream-opened":
        return this.#streams.opened(input.stream);
      case "stream-data":
        return this.#streamEvents.take(this.#streams.read(input.stream, input.bytes), now);
      case "stream-closed":
        return this.#streamEvents.take(this.#streams.closed(input.stream, input.error), now);
      case "swim":
        return this.#swim(input.input, now);
      case "networkdb":
        return this.#networkDb(input.input, now);
      case "state":
        return this.#state(input.input, now);
      case "leave":
        this.#leaving = { timeoutMs: input.timeoutMs };
        return input.rest === true ? this.#leaveMembership(now) : this.#networkDb({ type: "leave" }, now);
      case "set-keys":
        this.#sealer.setKeys(input.keys);
        return this.#swim({ type: "packet-overhead", bytes: this.#sealer.overhead }, now);
      case "ask-peer":
        return this.#peerCall(
          this.#calls.ask(input.to, input.request, input.body, input.timeoutMs, now),
          now,
        );
      case "answer-peer":
        return this.#peerCall(this.#calls.answer(input.question, input.body), now);
      default:
        return unreachable(input);
    }
  }

  #wake(now: Instant): void {
    const due = (at: Instant | undefined): boolean => at !== undefined && at <= now;
    if (due(this.swim.nextWakeup())) this.#swim({ type: "wake" }, now);
    if (due(this.networkDb.nextWakeup())) this.#networkDb({ type: "wake" }, now);
    if (due(this.state.nextWakeup())) this.#state({ type: "wake" }, now);
    this.#peerCall(this.#calls.wake(now), now);
    for (const event of this.#streams.wake(now)) this.#streamEvents.take(event, now);
    for (const { to, payload } of this.#tableRounds?.wake(now, this.#sealer.overhead) ?? [])
      this.#sendUserPacket(to, payload, now);
    if (due(this.#swimLeaveAt)) this.#leaveSwim(now);
  }

  #packet(from: SocketAddr, bytes: Uint8Array, now: Instant): void {
    let decoded: ReturnType<PacketSealer["open"]>;
    try {
      decoded = this.#sealer.open(bytes);
    } catch (error) {
      return this.#dropped(error, "packet");
    }
    for (const problem of decoded.problems) this.#dropped(problem, "packet");
    const users: UserMessage[] = [];
    for (const message of decoded.messages) if (message.type === "user") users.push(message);
    if (users.length < decoded.messages.length)
      this.#swim({ type: "packet", from, messages: decoded.messages }, now);
    for (const { payload } of users) this.#userMessage(payload, "packet", now);
  }

  /** NetworkDB's messages are 1 to 6; the larger types are between netagents. Serf's never begin with NetworkDB's 08. */
  #userMessage(payload: Uint8Array, via: "packet" | "stream", now: Instant): void {
    const type = networkDbMessageType(payload);
    if (type === undefined && this.#serf !== undefined)
      return this.#hearSerf(() => this.#reply(this.#serf?.message(payload) ?? []));
    switch (type) {
      case STATE_MESSAGE_TYPE:
        return this.#state({ type: "user-message", bytes: payload, via }, now);
      case PEER_CALL_MESSAGE_TYPE:
        try {
          return this.#peerCall(this.#calls.receive(payload), now);
        } catch (error) {
          return this.#dropped(error, "peer call");
        }
      default:
        return this.#networkDb({ type: "user-message", bytes: payload, via }, now);
    }
  }

  #undelivered(to: NodeName, origin: UserOrigin, now: Instant): void {
    switch (origin) {
      case "networkdb":
        return this.#networkDb({ type: "stream-failed", to }, now);
      case "state":
        return this.#state({ type: "stream-failed", to }, now);
      case "peer-call":
        return this.#peerCall(this.#calls.streamFailed(to), now);
      default:
        return unreachable(origin);
    }
  }

  #dial(to: SocketAddr, purpose: Purpose, message: StreamMessage, timeoutMs: number, now: Instant): void {
    this.#streamEvents.take(this.#streams.dial(to, purpose, message, timeoutMs, now), now);
  }

  #swim(input: SwimInput, now: Instant): void {
    for (const effect of this.swim.handle(input, now)) this.#performSwim(effect, now);
  }

  #performSwim(effect: SwimEffect, now: Instant): void {
    switch (effect.type) {
      case "send":
        this.#effects.push({
          type: "send-packet",
          to: effect.to,
          bytes: this.#sealer.seal(effect.parts, effect.crc),
        });
        return;
      case "push-pull": {
        const { to, exchange, join, timeoutMs } = effect;
        const tables = this.#serf === undefined || this.#peers.anyAt(to);
        const message = this.#userStates.message(join, tables, tables && join, now);
        return this.#dial(to, { kind: "push-pull", exchange }, message, timeoutMs, now);
      }
      case "abandon-exchange":
        return this.#streams.abandon(effect.exchange);
      case "push-pull-answer": {
        const accepted = this.#streams.accepted(effect.stream);
        if (accepted === undefined) return;
        this.#streams.replyPlain(effect.stream, this.#userStates.answer(effect.join, accepted, now));
        const name = accepted.greets?.name;
        if (name !== undefined) this.#state({ type: "greeted", name }, now);
        return;
      }
      case "push-pull-merged": {
        const key =
          "exchange" in effect.source
            ? `exchange ${effect.source.exchange}`
            : `stream ${effect.source.stream}`;
        const userState = this.#userStates.take(key);
        if (effect.refused === undefined) {
          if (userState !== undefined)
            this.#userState(userState, "exchange" in effect.source, effect.join, now);
          return;
        }
        this.#count("push/pull refused");
        if ("stream" in effect.source) this.#streams.refuse(effect.source.stream, effect.refused);
        return;
      }
      case "stream-ping": {
        const { to, ping, message, timeoutMs } = effect;
        return this.#dial(to, { kind: "ping", ping }, message, timeoutMs, now);
      }
      case "stream-ack":
        return this.#streams.reply(effect.stream, { type: "ack", seqNo: effect.seqNo, payload: NO_BYTES });
      case "close-stream":
        return this.#streams.close(effect.stream);
      case "member-joined":
      case "member-updated":
        this.#learn(effect.member, effect.type === "member-joined", now);
        break;
      case "member-left": {
        const name = nodeName(effect.member.name);
        const netagent = this.#peers.has(name);
        // A netagent that leaves for good says so in NetworkDB first.
        const how = effect.member.state !== "left" ? "failed" : netagent ? "resting" : "left";
        this.#networkDb({ type: "member-left", name, how }, now);
        if (netagent) this.#state({ type: "member-left", name }, now);
        break;
      }
      case "leave-done":
        this.#leaving = undefined;
        this.#effects.push({ type: "left" });
        return;
      case "meta-announced":
        return;
      case "member-suspected":
      case "member-recovered":
      case "member-conflict":
      case "join-result":
      case "join-done":
        break;
      default:
        return unreachable(effect);
    }
    this.#effects.push(effect);
  }

  #userState({ bytes, greeting, company }: UserState, asked: boolean, join: boolean, now: Instant): void {
    if (bytes.length === 0) return;
    if (this.#serf !== undefined && !speaksTables(bytes))
      return this.#hearSerf(() => this.#serf?.userState(bytes));
    this.#networkDb({ type: "push-pull-state", bytes, join }, now);
    // Who was alone and asked knows nobody to pass it on to whom the peer would not tell.
    if (greeting !== undefined)
      this.#state({ type: "greeting", bytes: greeting, passOn: !asked || company }, now);
  }

  /** What a member announces decides what it is told. */
  #learn(member: Member, joined: boolean, now: Instant): void {
    const name = nodeName(member.name);
    if (name === this.name) return;
    const facts = decodeMetadata(member.meta);
    const news = joined || this.#peers.has(name) !== (facts !== undefined);
    if (news && (this.#serf === undefined || facts !== undefined))
      this.#networkDb(
        { type: "member-joined", name, address: member.address, kin: facts !== undefined },
        now,
      );
    if (facts === undefined) {
      if (this.#peers.delete(name)) this.#state({ type: "member-left", name }, now);
      return;
    }
    this.#peers.set(name, facts);
    if (facts.capabilities.includes("state")) {
      const { meeting } = this.#userStates;
      const compare = meeting === undefined ? this.#serf !== undefined : !meeting.greeted;
      this.#state({ type: "member-joined", name, id: facts.id, shown: facts.name, compare }, now);
    }
    if (news && this.#serf !== undefined) this.#introduceTo(name, member.address, now);
  }

  #networkDb(input: NetworkDbInput, now: Instant): void {
    for (const effect of this.networkDb.handle(input, now)) {
      switch (effect.type) {
        case "send-packet":
          this.#sendUserPacket(effect.to, effect.payload, now);
          break;
        case "send-stream":
          this.#sendUserStream(effect.to, effect.address, effect.payload, "networkdb", now);
          break;
        case "join-member":
          this.#swim({ type: "join", request: 0, addresses: [effect.address] }, now);
          break;
        case "left":
          this.#leaveMembership(now);
          break;
        case "row-changed":
        case "network-changed":
        case "network-in-sync":
        case "refused":
          this.#effects.push(effect);
          break;
        default:
          unreachable(effect);
      }
    }
  }

  #state(input: StateInput, now: Instant): void {
    for (const effect of this.state.handle(input, now)) {
      if (effect.type === "send-packet") this.#sendUserPacket(effect.to, effect.payload, now);
      else if (effect.type === "send-stream") {
        const member = this.swim.member(effect.to);
        if (member === undefined) this.#state({ type: "stream-failed", to: effect.to }, now);
        else this.#sendUserStream(effect.to, member.address, effect.payload, "state", now);
      } else this.#effects.push({ type: "state", effect });
    }
  }

  #peerCall(effects: readonly PeerCallEffect[], now: Instant): void {
    for (const effect of effects) {
      if (effect.type !== "send") {
        this.#effects.push(effect);
        continue;
      }
      const member = this.swim.member(effect.to);
      if (member === undefined) this.#peerCall(this.#calls.streamFailed(effect.to), now);
      else this.#sendUserStream(effect.to, member.address, effect.payload, "peer-call", now);
    }
  }

  #sendUserPacket(to: NodeName, payload: Uint8Array, now: Instant): void {
    this.#swim({ type: "send-user", to, payload }, now);
  }

  #sendUserStream(
    to: NodeName,
    address: SocketAddr,
    payload: Uint8Array,
    origin: UserOrigin,
    now: Instant,
  ): void {
    const { tcpTimeoutMs } = this.#options.swim;
    this.#dial(address, { kind: "user", to, address, origin }, { type: "user", payload }, tcpTimeoutMs, now);
  }

  /** Serf's goodbye, where there is serf, comes before memberlist's. */
  #leaveMembership(now: Instant): void {
    if (this.#leaving === undefined) return;
    if (this.#serf === undefined) this.#leaveSwim(now);
    else this.#swimLeaveAt = this.#serf.leave(this.#leaving.timeoutMs, now);
  }

  #leaveSwim(now: Instant): void {
    this.#swimLeaveAt = undefined;
    if (this.#leaving === undefined) return;
    this.#swim({ type: "leave", timeoutMs: Math.min(LEAVE_STEP_MS, this.#leaving.timeoutMs) }, now);
  }

  /**
   * Among serf agents a push/pull with a stranger carries no tables, since it may be serf's. So a netagent that has
   * just become known is told by stream which networks we are on; it does the same.
   */
  #introduceTo(name: NodeName, address: SocketAddr, now: Instant): void {
    const payload = this.networkDb.introduction();
    if (payload !== undefined) this.#sendUserStream(name, address, payload, "networkdb", now);
  }

  #hearSerf(hear: () => void): void {
    try {
      hear();
    } catch (error) {
      this.#dropped(error, "serf");
    }
  }

  #reply(replies: readonly SerfReply[]): void {
    for (const { to, payload } of replies)
      this.#effects.push({
        type: "send-packet",
        to,
        bytes: this.#sealer.seal([userMessage(payload)], false),
      });
  }

  #dropped(error: unknown, what: string): void {
    if (!(error instanceof DecodeError)) throw error;
    this.#count(`${what}: ${error.format}`);
  }

  /** Reasons are ours, so their number is bounded. */
  #count(reason: string): void {
    this.drops.set(reason, (this.drops.get(reason) ?? 0) + 1);
  }
}
