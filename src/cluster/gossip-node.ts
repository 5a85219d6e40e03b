import { unreachable } from "../base/assert.ts";
import { Deadlines } from "../base/deadlines.ts";
import { DecodeError, errorText } from "../base/error.ts";
import { nodeName, type NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import { sample, type Random } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import { networkDbConfig, type NetworkDbConfig } from "../networkdb/config.ts";
import type { NetworkDbEffect } from "../networkdb/effect.ts";
import { NetworkDb, type NetworkDbInput } from "../networkdb/networkdb.ts";
import type { StateEffect, StateInput } from "../state/effect.ts";
import { State, type StateOptions } from "../state/state.ts";
import type { SwimEffect, SwimInput, StreamFailure } from "../swim/boundary.ts";
import type { SwimConfig } from "../swim/config.ts";
import type { Member } from "../swim/member.ts";
import { userMessage } from "../swim/context.ts";
import { Swim } from "../swim/swim.ts";
import type { UserMessage } from "../wire/memberlist/message.ts";
import { decodePacket, encodePacket } from "../wire/memberlist/packet.ts";
import { KeyMismatch, packetOverhead, sealsOutgoing, type Sealing } from "../wire/memberlist/seal.ts";
import {
  encodeStream,
  encodeStreamEnvelopes,
  encodeStreamPayload,
  STREAM_LIMITS,
  StreamDecoder,
  type PushPull,
  type StreamMessage,
} from "../wire/memberlist/stream.ts";
import { encodeNetworkDbMessage, networkDbMessageType } from "../wire/networkdb/message.ts";
import { STATE_MESSAGE_TYPE } from "../wire/state/message.ts";
import { AmongSerf, type SerfReply } from "./among-serf.ts";
import { definitionsOf, withDefinitions } from "./exchange-state.ts";
import { decodeMetadata, encodeMetadata, type NodeFacts } from "./metadata.ts";
import { PEER_CALL_MESSAGE_TYPE, PeerCalls, type PeerCallEffect, type PeerQuestion } from "./peer-call.ts";

/** What arrives at a node: from the transport, the clock, or an operator. */
export type GossipInput =
  | { readonly type: "start"; readonly seed: boolean; readonly unixSeconds: number }
  | { readonly type: "wake" }
  | { readonly type: "packet"; readonly from: SocketAddr; readonly bytes: Uint8Array }
  /** Streams are named by numbers: odd when the peer dialled, even when we did. */
  | { readonly type: "stream-accepted"; readonly stream: number; readonly from: SocketAddr }
  | { readonly type: "stream-opened"; readonly stream: number }
  | { readonly type: "stream-data"; readonly stream: number; readonly bytes: Uint8Array }
  | {
      readonly type: "stream-closed";
      readonly stream: number;
      readonly error?: { readonly code: string; readonly message: string };
    }
  | {
      readonly type: "swim";
      readonly input: Extract<SwimInput, { type: "join" | "cancel-join" | "loop-delay" | "set-meta" }>;
    }
  | { readonly type: "networkdb"; readonly input: NetworkDbInput }
  | { readonly type: "state"; readonly input: StateInput }
  /**
   * Says goodbye; the effect `left` follows. A node that rests leaves memberlist but not NetworkDB: its endpoints run
   * on without it, and it is expected back.
   */
  | { readonly type: "leave"; readonly timeoutMs: number; readonly rest?: boolean }
  /** Other keys, from now on; connections under way keep the ones they began with. */
  | { readonly type: "set-keys"; readonly keys: readonly Uint8Array[] }
  | {
      readonly type: "ask-peer";
      readonly to: NodeName;
      readonly request: number;
      readonly body: unknown;
      readonly timeoutMs: number;
    }
  | { readonly type: "answer-peer"; readonly question: PeerQuestion; readonly body: unknown };

/** What a node wants done, strictly in this order: what follows a `persist` may only happen once it is on disk. */
export type GossipEffect =
  | { readonly type: "send-packet"; readonly to: SocketAddr; readonly bytes: Uint8Array }
  | {
      readonly type: "open-stream";
      readonly stream: number;
      readonly to: SocketAddr;
      readonly timeoutMs: number;
    }
  | { readonly type: "write-stream"; readonly stream: number; readonly bytes: Uint8Array }
  | { readonly type: "close-stream"; readonly stream: number }
  | Extract<SwimEffect, { type: `member-${string}` | "join-result" | "join-done" }>
  | Extract<NetworkDbEffect, { type: "row-changed" | "network-changed" | "network-in-sync" | "refused" }>
  | { readonly type: "state"; readonly effect: Exclude<StateEffect, { type: "send-packet" | "send-stream" }> }
  | Exclude<PeerCallEffect, { type: "send" }>
  | { readonly type: "left" };

export interface GossipNodeOptions {
  /** Fresh at every start. */
  readonly name: NodeName;
  readonly facts: NodeFacts;
  /** Where others reach us; `bytes` is how the address is announced. */
  readonly address: { readonly socket: SocketAddr; readonly bytes: Uint8Array };
  /**
   * Whose cluster this is: decides the delegate protocol versions we announce, which all members must share. Serf
   * agents log NetworkDB messages as errors, so among them tables are between netagents only.
   */
  readonly compat: "docker" | "serf";
  readonly sealing: Sealing;
  readonly swim: SwimConfig;
  readonly networkDb?: Partial<NetworkDbConfig>;
  readonly state: Omit<StateOptions, "node" | "memberName" | "random">;
  readonly random: Random;
  /** 12 bytes never given before: AES-GCM breaks when a nonce repeats under one key. */
  readonly nonce: () => Uint8Array;
}

interface AcceptedStream {
  readonly kind: "accepted";
  readonly from: SocketAddr;
  readonly decoder: StreamDecoder;
  readonly sealing: Sealing;
  /** Its push/pull came with tables, so the answer may have some, too. */
  speaksTables: boolean;
  /** It came with a greeting and gets one; the name, when the requester alone was in it. */
  greets?: { readonly name: NodeName | undefined };
}

type Stream =
  | AcceptedStream
  | {
      readonly kind: "push-pull";
      readonly exchange: number;
      readonly request: Uint8Array;
      readonly decoder: StreamDecoder;
    }
  | {
      readonly kind: "ping";
      readonly ping: number;
      readonly request: Uint8Array;
      readonly decoder: StreamDecoder;
    }
  | {
      readonly kind: "user";
      readonly to: NodeName;
      readonly address: SocketAddr;
      readonly request: Uint8Array;
      readonly origin: UserOrigin;
    };
type UserOrigin = "networkdb" | "state" | "peer-call";

interface UserState {
  readonly bytes: Uint8Array;
  readonly greeting: Uint8Array | undefined;
  /** Whether we knew others than the peer before. */
  readonly company: boolean;
}

/** Accepted and dialled streams at one time; more are closed at once. memberlist answers 127 push/pulls at a time. */
const MAX_STREAMS = 512;
/** Delegate protocol min, max, current. */
const DELEGATE_VERSIONS = { docker: [0, 0, 0], serf: [2, 5, 4] } as const;
/** Facts of members swim has forgotten are swept when there are so many more than members: names are fresh at each start. */
const MAX_STALE_PEERS = 256;
/** How long a leave waits for NetworkDB's own goodbye before memberlist's. */
const LEAVE_STEP_MS = 5_000;
/** A compound's envelope and the user message's type byte; then tag and length of each part. */
const TABLE_ROUND_OVERHEAD_BYTES = 16;
const COMPOUND_PART_BYTES = 6;
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
  readonly #peers = new Map<NodeName, NodeFacts>();
  readonly #streams = new Map<number, Stream>();
  readonly #deadlines = new Deadlines<number>();
  /** User state that came with a push/pull, until swim says whether the exchange counts. */
  readonly #userStates = new Map<string, UserState>();
  /** Set while swim takes in a push/pull: members met by it are greeted, or are not. */
  #meeting: { readonly greeted: boolean } | undefined;
  /** An answer to push/pulls that this input has made already, before encryption: a batch gets one answer. */
  #answer: { readonly key: string; readonly plain: Uint8Array } | undefined;
  /** Set when the cluster is serf's. */
  readonly #serf: AmongSerf | undefined;
  /** When memberlist's goodbye follows serf's. */
  #swimLeaveAt: Instant | undefined;
  /** Among serf agents: rounds of NetworkDB's cluster events, which elsewhere ride with swim's gossip. */
  #tableRoundAt: Instant | undefined;
  #lastTableRound: Instant | undefined;
  #sealing: Sealing;
  #nextStream = 2;
  #leaving: { readonly timeoutMs: number } | undefined;
  #effects: GossipEffect[] = [];

  constructor(options: GossipNodeOptions, now: Instant) {
    this.#options = options;
    this.name = options.name;
    this.facts = options.facts;
    this.#sealing = options.sealing;
    this.#calls = new PeerCalls(options.name);
    this.networkDb = new NetworkDb(
      {
        node: options.name,
        address: options.address.socket,
        random: options.random,
        config: networkDbConfig({
          gossipPayloadBytes: options.swim.udpBufferBytes - packetOverhead(options.sealing) - 6,
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
        ? new AmongSerf(options.name, options.swim.retransmitMult, () => this.#sealing.keys)
        : undefined;
    this.swim = new Swim({
      name: options.name,
      address: { addr: options.address.bytes, port: options.address.socket.port },
      meta: encodeMetadata(options.facts),
      vsn: Uint8Array.from([1, 5, 2, ...DELEGATE_VERSIONS[options.compat]]),
      config: options.swim,
      random: options.random,
      userBroadcasts: this.#serf ?? this.networkDb.clusterBroadcasts,
      packetOverhead: packetOverhead(options.sealing),
    });
  }

  handle(input: GossipInput, now: Instant): GossipEffect[] {
    this.#effects = [];
    this.#answer = undefined;
    this.#dispatch(input, now);
    if (this.#serf !== undefined) this.#armTableRound(now);
    return this.#effects;
  }

  /** When to call `handle({ type: "wake" })` next. Ask again after every call. */
  nextWakeup(): Instant | undefined {
    return earliest(
      this.swim.nextWakeup(),
      this.networkDb.nextWakeup(),
      this.state.nextWakeup(),
      this.#calls.nextWakeup(),
      this.#deadlines.earliest(),
      this.#swimLeaveAt,
      this.#tableRoundAt,
    );
  }

  /** What a netagent member says about itself; undefined for Docker's and serf's. */
  peer(name: string): NodeFacts | undefined {
    return name === this.name ? this.facts : this.#peers.get(name as NodeName);
  }

  /** Whether there are keys, and their order: the first one seals. */
  get keys(): readonly Uint8Array[] {
    return this.#sealing.keys;
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
        return this.#accept(input.stream, input.from, now);
      case "stream-opened":
        return this.#opened(input.stream);
      case "stream-data":
        return this.#read(input.stream, input.bytes, now);
      case "stream-closed":
        return this.#closed(input.stream, input.error, now);
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
        this.#sealing = { ...this.#sealing, keys: input.keys };
        return this.#swim({ type: "packet-overhead", bytes: packetOverhead(this.#sealing) }, now);
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
    for (const stream of this.#deadlines.takeDue(now)) {
      this.#effects.push({ type: "close-stream", stream });
      this.#closed(stream, { code: "ETIMEDOUT", message: "no answer in time" }, now);
    }
    if (due(this.#tableRoundAt)) this.#tableRound(now);
    if (due(this.#swimLeaveAt)) this.#leaveSwim(now);
  }

  #packet(from: SocketAddr, bytes: Uint8Array, now: Instant): void {
    let decoded: ReturnType<typeof decodePacket>;
    try {
      decoded = decodePacket(bytes, this.#sealing);
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

  #accept(stream: number, from: SocketAddr, now: Instant): void {
    if (this.#streams.size >= MAX_STREAMS) {
      this.#count("stream: too many");
      this.#effects.push({ type: "close-stream", stream });
      return;
    }
    const sealing = this.#sealing;
    this.#streams.set(stream, {
      kind: "accepted",
      from,
      sealing,
      decoder: new StreamDecoder(sealing, STREAM_LIMITS, "request"),
      speaksTables: false,
    });
    this.#deadlines.set(stream, after(now, this.#options.swim.tcpTimeoutMs));
  }

  #opened(stream: number): void {
    const opened = this.#streams.get(stream);
    if (opened === undefined || opened.kind === "accepted") return;
    this.#effects.push({ type: "write-stream", stream, bytes: opened.request });
    if (opened.kind !== "user") return;
    // A user message has no answer: written and closed is all there is to know.
    this.#forgetStream(stream);
    this.#effects.push({ type: "close-stream", stream });
  }

  #read(stream: number, bytes: Uint8Array, now: Instant): void {
    const reading = this.#streams.get(stream);
    if (reading === undefined || reading.kind === "user") return;
    let message: StreamMessage | undefined;
    try {
      message = reading.decoder.push(bytes);
    } catch (error) {
      this.#dropped(error, "stream");
      if (reading.kind === "accepted") return this.#refuse(stream, reading.sealing, errorText(error));
      this.#closeStream(stream);
      return this.#failed(reading, { failure: "rejected", detail: refusalText(error) }, now);
    }
    if (message === undefined) return;
    if (reading.kind === "accepted") {
      reading.speaksTables = message.type === "push-pull" && speaksTables(message.userState);
      return this.#request(stream, reading.from, message, now);
    }
    this.#closeStream(stream);
    if (message.type === "error")
      return this.#failed(reading, { failure: "rejected", detail: message.error }, now);
    if (reading.kind === "push-pull" && message.type === "push-pull") {
      const { exchange } = reading;
      const { nodes } = message;
      this.#meet(`exchange ${exchange}`, message.userState);
      this.#swim({ type: "push-pull-reply", exchange, nodes }, now);
      this.#meeting = undefined;
      return;
    }
    if (reading.kind === "ping" && message.type === "ack") {
      return this.#swim(
        { type: "stream-ping-result", ping: reading.ping, result: { seqNo: message.seqNo } },
        now,
      );
    }
    this.#count("stream: unexpected answer");
    this.#failed(reading, { failure: "rejected", detail: `unexpected ${message.type}` }, now);
  }

  #request(stream: number, from: SocketAddr, message: StreamMessage, now: Instant): void {
    switch (message.type) {
      case "ping":
        return this.#swim({ type: "stream-ping", stream, from, ping: message }, now);
      case "push-pull":
        this.#pushPullRequest(stream, from, message, now);
        return;
      case "user":
        this.#closeStream(stream);
        if (message.payload.length > 0) this.#userMessage(message.payload, "stream", now);
        return;
      case "ack":
      case "error":
        this.#count("stream: unexpected request");
        return this.#closeStream(stream);
      default:
        return unreachable(message);
    }
  }

  #pushPullRequest(
    stream: number,
    from: SocketAddr,
    { join, nodes, userState }: PushPull,
    now: Instant,
  ): void {
    const accepted = this.#streams.get(stream);
    if (this.#meet(`stream ${stream}`, userState) && accepted?.kind === "accepted") {
      const [only, ...others] = nodes;
      accepted.greets = { name: others.length === 0 ? (only?.name as NodeName | undefined) : undefined };
    }
    this.#swim({ type: "push-pull-request", stream, from, join, nodes }, now);
    this.#meeting = undefined;
  }

  /** Keeps the peer's user state until swim has merged its members. Whether there is a greeting in it. */
  #meet(key: string, bytes: Uint8Array): boolean {
    let greeting: Uint8Array | undefined;
    try {
      if (speaksTables(bytes)) greeting = definitionsOf(bytes);
    } catch (error) {
      this.#dropped(error, "push/pull state");
    }
    this.#userStates.set(key, { bytes, greeting, company: this.swim.aliveCount > 1 });
    this.#meeting = { greeted: greeting !== undefined };
    return greeting !== undefined;
  }

  #closed(
    stream: number,
    error: { readonly code: string; readonly message: string } | undefined,
    now: Instant,
  ): void {
    const closed = this.#streams.get(stream);
    if (closed === undefined) return;
    this.#forgetStream(stream);
    this.#failed(closed, streamFailure(error), now, stream);
  }

  /** What was asked on this stream will not be answered. */
  #failed(stream: Stream, failure: StreamFailure, now: Instant, id = 0): void {
    switch (stream.kind) {
      case "accepted":
        this.#userStates.delete(`stream ${id}`);
        return this.#swim({ type: "stream-gone", stream: id }, now);
      case "push-pull":
        return this.#swim({ type: "push-pull-failed", exchange: stream.exchange, failure }, now);
      case "ping":
        return this.#swim({ type: "stream-ping-result", ping: stream.ping, result: failure }, now);
      case "user":
        if (failure.failure === "refused") this.#swim({ type: "peer-refused", address: stream.address }, now);
        switch (stream.origin) {
          case "networkdb":
            return this.#networkDb({ type: "stream-failed", to: stream.to }, now);
          case "state":
            return this.#state({ type: "stream-failed", to: stream.to }, now);
          case "peer-call":
            return this.#peerCall(this.#calls.streamFailed(stream.to), now);
          default:
            return unreachable(stream.origin);
        }
      default:
        return unreachable(stream);
    }
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
          bytes: this.#seal(effect.parts, effect.crc),
        });
        return;
      case "push-pull": {
        const tables = this.#serf === undefined || this.#isNetagent(effect.to);
        const message = this.#pushPull(effect.join, tables, tables && effect.join, now);
        const request = this.#encodeStream(message, "request", this.#sealing);
        const decoder = new StreamDecoder(this.#sealing, STREAM_LIMITS, "reply");
        this.#dial(
          effect.to,
          { kind: "push-pull", exchange: effect.exchange, request, decoder },
          effect.timeoutMs,
          now,
        );
        return;
      }
      case "abandon-exchange":
        for (const [id, stream] of this.#streams) {
          if (stream.kind === "push-pull" && stream.exchange === effect.exchange) this.#closeStream(id);
        }
        return;
      case "push-pull-answer": {
        const stream = this.#streams.get(effect.stream);
        if (stream?.kind !== "accepted") return;
        const bytes = this.#answerOf(effect.join, stream, now);
        this.#effects.push({ type: "write-stream", stream: effect.stream, bytes });
        const name = stream.greets?.name;
        if (name !== undefined) this.#state({ type: "greeted", name }, now);
        return this.#closeStream(effect.stream);
      }
      case "push-pull-merged": {
        const key =
          "exchange" in effect.source
            ? `exchange ${effect.source.exchange}`
            : `stream ${effect.source.stream}`;
        const userState = this.#userStates.get(key);
        this.#userStates.delete(key);
        if (effect.refused === undefined) {
          if (userState !== undefined)
            this.#userState(userState, "exchange" in effect.source, effect.join, now);
          return;
        }
        this.#count("push/pull refused");
        if ("stream" in effect.source) {
          const stream = this.#streams.get(effect.source.stream);
          if (stream?.kind === "accepted") this.#refuse(effect.source.stream, stream.sealing, effect.refused);
        }
        return;
      }
      case "stream-ping": {
        const request = this.#encodeStream(effect.message, "request", this.#sealing);
        const decoder = new StreamDecoder(this.#sealing, STREAM_LIMITS, "reply");
        return this.#dial(
          effect.to,
          { kind: "ping", ping: effect.ping, request, decoder },
          effect.timeoutMs,
          now,
        );
      }
      case "stream-ack": {
        const stream = this.#streams.get(effect.stream);
        if (stream?.kind !== "accepted") return;
        const bytes = this.#encodeStream(
          { type: "ack", seqNo: effect.seqNo, payload: NO_BYTES },
          "reply",
          stream.sealing,
        );
        this.#effects.push({ type: "write-stream", stream: effect.stream, bytes });
        return this.#closeStream(effect.stream);
      }
      case "close-stream":
        return this.#closeStream(effect.stream);
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
    this.#sweepPeers();
    if (facts.capabilities.includes("state")) {
      const compare = this.#meeting === undefined ? this.#serf !== undefined : !this.#meeting.greeted;
      this.#state({ type: "member-joined", name, id: facts.id, shown: facts.name, compare }, now);
    }
    if (news && this.#serf !== undefined) this.#introduceTo(name, member.address, now);
  }

  #sweepPeers(): void {
    if (this.#peers.size <= this.swim.size + MAX_STALE_PEERS) return;
    for (const name of this.#peers.keys()) if (this.swim.member(name) === undefined) this.#peers.delete(name);
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
    const request = this.#encodeStream({ type: "user", payload }, "request", this.#sealing);
    this.#dial(address, { kind: "user", to, address, request, origin }, this.#options.swim.tcpTimeoutMs, now);
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

  #armTableRound(now: Instant): void {
    if (this.#tableRoundAt !== undefined || this.networkDb.clusterBroadcasts.length === 0) return;
    if (this.#livingNetagents().length === 0) return;
    const { gossipDelayMs, busyGossipIntervalMs } = this.#options.swim;
    const soon = after(now, gossipDelayMs);
    const paced =
      this.#lastTableRound === undefined ? soon : after(this.#lastTableRound, busyGossipIntervalMs);
    this.#tableRoundAt = soon > paced ? soon : paced;
  }

  /** Swim's own gossip round, for NetworkDB's cluster events and to netagents only. */
  #tableRound(now: Instant): void {
    this.#tableRoundAt = undefined;
    this.#lastTableRound = now;
    const { random, swim } = this.#options;
    const budget = swim.udpBufferBytes - packetOverhead(this.#sealing) - TABLE_ROUND_OVERHEAD_BYTES;
    for (const name of sample(random, this.#livingNetagents(), swim.gossipNodes)) {
      const parts = this.networkDb.clusterBroadcasts.take(budget, COMPOUND_PART_BYTES);
      const [only] = parts;
      if (only === undefined) return;
      const payload = parts.length === 1 ? only : encodeNetworkDbMessage({ type: "compound", parts });
      this.#sendUserPacket(name, payload, now);
    }
  }

  #livingNetagents(): NodeName[] {
    const names: NodeName[] = [];
    for (const name of this.#peers.keys()) if (this.swim.member(name)?.state === "alive") names.push(name);
    return names;
  }

  #dial(to: SocketAddr, stream: Stream, timeoutMs: number, now: Instant): void {
    if (this.#streams.size >= MAX_STREAMS) {
      this.#count("stream: too many");
      return this.#failed(stream, { failure: "cancelled", detail: "too many streams" }, now);
    }
    const id = this.#nextStream;
    this.#nextStream += 2;
    this.#streams.set(id, stream);
    this.#deadlines.set(id, after(now, timeoutMs));
    this.#effects.push({ type: "open-stream", stream: id, to, timeoutMs });
  }

  #closeStream(stream: number): void {
    if (!this.#streams.has(stream)) return;
    this.#forgetStream(stream);
    this.#effects.push({ type: "close-stream", stream });
  }

  #forgetStream(stream: number): void {
    this.#streams.delete(stream);
    this.#deadlines.delete(stream);
  }

  #refuse(stream: number, sealing: Sealing, reason: string): void {
    const bytes = this.#encodeStream({ type: "error", error: reason }, "reply", sealing);
    this.#effects.push({ type: "write-stream", stream, bytes });
    this.#closeStream(stream);
  }

  #pushPull(join: boolean, tables: boolean, greet: boolean, now: Instant): StreamMessage {
    const greeting = greet ? this.state.greeting(now) : undefined;
    let userState = tables ? this.networkDb.localState(join) : NO_BYTES;
    if (greeting !== undefined) userState = withDefinitions(userState, greeting);
    return { type: "push-pull", join, nodes: this.swim.snapshot(), userState };
  }

  #answerOf(join: boolean, { speaksTables, greets, sealing }: AcceptedStream, now: Instant): Uint8Array {
    const tables = this.#serf === undefined || speaksTables;
    const key = `${join} ${tables} ${greets !== undefined}`;
    if (this.#answer?.key !== key) {
      const message = this.#pushPull(join, tables, greets !== undefined, now);
      this.#answer = { key, plain: encodeStreamPayload(message, true) };
    }
    const nonce = sealsOutgoing(sealing) ? { nonce: this.#options.nonce() } : {};
    return encodeStreamEnvelopes(this.#answer.plain, { sealing, direction: "reply", ...nonce });
  }

  #isNetagent({ ip, port }: SocketAddr): boolean {
    for (const name of this.#peers.keys()) {
      const address = this.swim.member(name)?.address;
      if (address?.ip === ip && address.port === port) return true;
    }
    return false;
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
      this.#effects.push({ type: "send-packet", to, bytes: this.#seal([userMessage(payload)], false) });
  }

  #seal(parts: readonly Uint8Array[], crc: boolean): Uint8Array {
    const sealing = this.#sealing;
    return encodePacket(parts, {
      sealing,
      crc,
      compress: true,
      ...(sealsOutgoing(sealing) ? { nonce: this.#options.nonce() } : {}),
    });
  }

  #encodeStream(message: StreamMessage, direction: "request" | "reply", sealing: Sealing): Uint8Array {
    const nonce = sealsOutgoing(sealing) ? { nonce: this.#options.nonce() } : {};
    return encodeStream(message, { sealing, compress: true, direction, ...nonce });
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

/** NetworkDB's user state is a protobuf message, whose first field is tagged 08; serf's begins with its type, 2. */
function speaksTables(userState: Uint8Array): boolean {
  return userState[0] === 0x08;
}

/** What an answer that cannot be read means to the operator who wanted to join there. */
function refusalText(error: unknown): string {
  if (!(error instanceof KeyMismatch)) return errorText(error);
  switch (error.mismatch) {
    case "other-key":
      return "its gossip key is another one (every node needs the same gossip key)";
    case "no-key":
      return "its gossip is encrypted and ours is not (start with its gossip key)";
    case "not-sealed":
      return "its gossip is not encrypted and ours is (every node needs the same gossip key)";
    default:
      return unreachable(error.mismatch);
  }
}

function streamFailure(
  error: { readonly code: string; readonly message: string } | undefined,
): StreamFailure {
  if (error === undefined)
    return { failure: "broken", detail: "the peer closed the connection without an answer" };
  const failure =
    error.code === "ECONNREFUSED" ? "refused" : error.code === "ETIMEDOUT" ? "timeout" : "broken";
  return { failure, detail: error.message };
}
