import { bytesEqual } from "../../src/base/bytes.ts";
import { Deadlines } from "../../src/base/deadlines.ts";
import { DecodeError } from "../../src/base/error.ts";
import type { SocketAddr } from "../../src/base/ip.ts";
import { after, earlier, type Instant } from "../../src/base/time.ts";
import type { StreamFailure, SwimEffect, SwimInput } from "../../src/swim/boundary.ts";
import type { Member } from "../../src/swim/member.ts";
import { Swim, type SwimOptions } from "../../src/swim/swim.ts";
import {
  decodeMessage,
  encodeMessage,
  type Alive,
  type MemberlistMessage,
} from "../../src/wire/memberlist/message.ts";
import { decodePacket, encodePacket } from "../../src/wire/memberlist/packet.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { STREAM_LIMITS, type StreamMessage } from "../../src/wire/memberlist/stream-message.ts";
import { encodeStream, StreamDecoder } from "../../src/wire/memberlist/stream.ts";
import type { Payload, SimEffect, SimInput, SimNode, StreamError } from "./sim-node.ts";

/** How a node's messages become payloads and back. */
export interface Carrier {
  readonly encode: (message: MemberlistMessage) => Uint8Array;
  packet(parts: readonly Uint8Array[], crc: boolean): Payload;
  open(payload: Payload): readonly MemberlistMessage[];
  stream(message: StreamMessage, direction: "request" | "reply"): Payload;
  /** One whole stream message per payload, as `stream` made it. */
  read(payload: Payload, direction: "request" | "reply"): StreamMessage;
}

/** Everything is encoded, compressed and decoded as on the wire. */
export const REAL_BYTES: Carrier = {
  encode: encodeMessage,
  packet: (parts, crc) => encodePacket(parts, { sealing: UNSEALED, crc, compress: true }),
  open(payload) {
    if (!(payload instanceof Uint8Array)) throw new Error("not a real packet");
    const { messages, problems } = decodePacket(payload, UNSEALED);
    const [problem] = problems;
    if (problem !== undefined) throw problem;
    return messages;
  },
  stream: (message, direction) => encodeStream(message, { sealing: UNSEALED, compress: true, direction }),
  read(payload, direction) {
    if (!(payload instanceof Uint8Array)) throw new Error("not a real stream");
    const message = new StreamDecoder(UNSEALED, STREAM_LIMITS, direction).push(payload);
    if (message === undefined) throw new Error("a stream message was cut");
    return message;
  },
};

/** Bytes that remember what they mean. */
class KnownBytes extends Uint8Array {
  message: MemberlistMessage | undefined;
}

/** And the message that remembers its bytes: passed on, it is not encoded again. */
type KnownMessage = MemberlistMessage & { bytes: KnownBytes };

interface Parts extends Payload {
  readonly parts: readonly Uint8Array[];
  /** Once somebody has opened it. */
  messages: readonly MemberlistMessage[] | undefined;
}

interface Whole extends Payload {
  readonly message: StreamMessage;
}

/** Messages are handed over as they are, encoded once per content: for thousands of nodes. Lengths are uncompressed. */
export function byReference(): Carrier {
  let last: Parts | undefined;
  /** What was said of each name: everybody who learns it from a member list passes on the same. */
  const alive = new Map<string, { readonly claim: Alive; readonly bytes: KnownBytes }[]>();
  const known = (message: MemberlistMessage): KnownBytes => {
    const bytes = new KnownBytes(encodeMessage(message));
    const remembering: KnownMessage = { ...message, bytes };
    bytes.message = remembering;
    return bytes;
  };
  const knownAlive = (claim: Alive): KnownBytes => {
    let claims = alive.get(claim.node);
    if (claims === undefined) alive.set(claim.node, (claims = []));
    for (const said of claims) if (sameClaim(said.claim, claim)) return said.bytes;
    const bytes = known(claim);
    claims.push({ claim, bytes });
    return bytes;
  };
  const encode = (message: MemberlistMessage): Uint8Array => {
    if ("bytes" in message) return (message as KnownMessage).bytes;
    if (message.type === "alive") return knownAlive(message);
    if (message.type === "suspect" || message.type === "dead") return known(message);
    // Said once, to one.
    const bytes = new KnownBytes(encodeMessage(message));
    bytes.message = message;
    return bytes;
  };
  return {
    encode,
    packet(parts): Parts {
      if (last?.parts === parts) return last;
      let length = parts.length > 1 ? 2 + 2 * parts.length : 0;
      for (const part of parts) length += part.length;
      last = { length, parts, messages: undefined };
      return last;
    },
    open(payload) {
      const packet = payload as Parts;
      packet.messages ??= packet.parts.map(
        (part) => (part instanceof KnownBytes ? part.message : undefined) ?? decodeMessage(part),
      );
      return packet.messages;
    },
    stream(message): Whole {
      const length = message.type === "push-pull" ? 30 + 100 * message.nodes.length : 60;
      return { length, message };
    },
    read: (payload) => (payload as Whole).message,
  };
}

function sameClaim(a: Alive, b: Alive): boolean {
  return (
    a.incarnation === b.incarnation &&
    a.port === b.port &&
    bytesEqual(a.addr, b.addr) &&
    bytesEqual(a.meta, b.meta) &&
    bytesEqual(a.vsn, b.vsn)
  );
}

type Stream =
  | { readonly kind: "accepted"; readonly from: SocketAddr }
  | { readonly kind: "push-pull"; readonly exchange: number; readonly join: boolean }
  | { readonly kind: "ping"; readonly ping: number; readonly request: StreamMessage };

/** A `Swim` with just enough around it to live in the simulated network. */
export class SwimNode implements SimNode {
  readonly swim: Swim;
  readonly name: string;
  drops = 0;
  readonly #carrier: Carrier;
  readonly #streams = new Map<number, Stream>();
  readonly #deadlines = new Deadlines<number>();
  readonly #tcpTimeoutMs: number;
  #nextStream = 2;
  #out: SimEffect[] = [];

  constructor(options: Omit<SwimOptions, "encode">, carrier: Carrier) {
    this.name = options.name;
    this.#carrier = carrier;
    this.#tcpTimeoutMs = options.config.tcpTimeoutMs;
    this.swim = new Swim({ ...options, encode: carrier.encode });
  }

  nextWakeup(): Instant | undefined {
    return earlier(this.swim.nextWakeup(), this.#deadlines.earliest());
  }

  members(): Iterable<Member> {
    return this.swim.members();
  }

  member(name: string): Member | undefined {
    return this.swim.member(name);
  }

  get aliveCount(): number {
    return this.swim.aliveCount;
  }

  get counters(): Readonly<Record<string, number>> {
    return this.swim.counters;
  }

  queues(): Record<string, number> {
    return {
      broadcasts: this.swim.queueLength,
      departed: this.swim.departedCount,
      streams: this.#streams.size,
    };
  }

  handle(input: SimInput, now: Instant): SimEffect[] {
    this.#out = [];
    switch (input.type) {
      case "start":
      case "loop-delay":
        this.#swim(input, now);
        break;
      case "wake":
        for (const stream of this.#deadlines.takeDue(now)) {
          this.#out.push({ type: "close-stream", stream });
          this.#closed(stream, { code: "ETIMEDOUT", message: "no answer in time" }, now);
        }
        this.#swim(input, now);
        break;
      case "join":
        this.#swim({ type: "join", request: 1, addresses: input.addresses, keepTrying: true }, now);
        break;
      case "leave":
        this.#swim({ type: "leave", timeoutMs: 5_000 }, now);
        break;
      case "set-meta":
        this.#swim({ type: "set-meta", request: 1, meta: input.meta, timeoutMs: 5_000 }, now);
        break;
      case "packet":
        this.#decoding(() =>
          this.#swim({ type: "packet", from: input.from, messages: this.#carrier.open(input.bytes) }, now),
        );
        break;
      case "stream-accepted":
        this.#streams.set(input.stream, { kind: "accepted", from: input.from });
        this.#deadlines.set(input.stream, after(now, this.#tcpTimeoutMs));
        break;
      case "stream-opened":
        this.#opened(input.stream);
        break;
      case "stream-data":
        this.#decoding(() => this.#read(input.stream, input.bytes, now));
        break;
      case "stream-closed":
        this.#closed(input.stream, input.error, now);
        break;
      case "gossip":
        throw new Error("only a whole gossip node takes this");
    }
    return this.#out;
  }

  #decoding(run: () => void): void {
    try {
      run();
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.drops++;
    }
  }

  #swim(input: SwimInput, now: Instant): void {
    for (const effect of this.swim.handle(input, now)) this.#perform(effect, now);
  }

  #perform(effect: SwimEffect, now: Instant): void {
    switch (effect.type) {
      case "send":
        this.#out.push({
          type: "send-packet",
          to: effect.to,
          bytes: this.#carrier.packet(effect.parts, effect.crc),
        });
        return;
      case "push-pull":
        return this.#dial(effect.to, { kind: "push-pull", ...effect }, effect.timeoutMs, now);
      case "stream-ping":
        return this.#dial(
          effect.to,
          { kind: "ping", ping: effect.ping, request: effect.message },
          effect.timeoutMs,
          now,
        );
      case "abandon-exchange":
        for (const [id, stream] of this.#streams) {
          if (stream.kind === "push-pull" && stream.exchange === effect.exchange) this.#close(id);
        }
        return;
      case "push-pull-answer":
        return this.#reply(effect.stream, this.#pushPull(effect.join));
      case "stream-ack":
        return this.#reply(effect.stream, { type: "ack", seqNo: effect.seqNo, payload: new Uint8Array(0) });
      case "close-stream":
        return this.#close(effect.stream);
      case "join-done":
        this.#out.push({ type: "join-done", joined: effect.joined });
        return;
      case "leave-done":
        this.#out.push({ type: "left" });
        return;
      case "push-pull-merged":
      case "join-result":
      case "meta-announced":
        return;
      default:
        this.#out.push(effect);
    }
  }

  #dial(to: SocketAddr, stream: Stream, timeoutMs: number, now: Instant): void {
    const id = this.#nextStream;
    this.#nextStream += 2;
    this.#streams.set(id, stream);
    this.#deadlines.set(id, after(now, timeoutMs));
    this.#out.push({ type: "open-stream", stream: id, to, timeoutMs });
  }

  #opened(id: number): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.kind === "accepted") return;
    const request = stream.kind === "ping" ? stream.request : this.#pushPull(stream.join);
    this.#out.push({ type: "write-stream", stream: id, bytes: this.#carrier.stream(request, "request") });
  }

  #reply(id: number, message: StreamMessage): void {
    if (!this.#streams.has(id)) return;
    this.#out.push({ type: "write-stream", stream: id, bytes: this.#carrier.stream(message, "reply") });
    this.#close(id);
  }

  #read(id: number, bytes: Payload, now: Instant): void {
    const stream = this.#streams.get(id);
    if (stream === undefined) return;
    const message = this.#carrier.read(bytes, stream.kind === "accepted" ? "request" : "reply");
    if (stream.kind === "accepted") {
      const { from } = stream;
      if (message.type === "ping") this.#swim({ type: "stream-ping", stream: id, from, ping: message }, now);
      if (message.type === "push-pull") {
        const { join, nodes } = message;
        this.#swim({ type: "push-pull-request", stream: id, from, join, nodes }, now);
      }
      return;
    }
    this.#close(id);
    if (stream.kind === "ping" && message.type === "ack") {
      this.#swim({ type: "stream-ping-result", ping: stream.ping, result: { seqNo: message.seqNo } }, now);
    }
    if (stream.kind === "push-pull" && message.type === "push-pull") {
      this.#swim({ type: "push-pull-reply", exchange: stream.exchange, nodes: message.nodes }, now);
    }
  }

  #closed(id: number, error: StreamError | undefined, now: Instant): void {
    const stream = this.#streams.get(id);
    if (stream === undefined) return;
    this.#forget(id);
    if (stream.kind === "accepted") return this.#swim({ type: "stream-gone", stream: id }, now);
    const failure = failureOf(error);
    if (stream.kind === "ping")
      this.#swim({ type: "stream-ping-result", ping: stream.ping, result: failure }, now);
    else this.#swim({ type: "push-pull-failed", exchange: stream.exchange, failure }, now);
  }

  #pushPull(join: boolean): StreamMessage {
    return { type: "push-pull", join, nodes: this.swim.snapshot(), userState: new Uint8Array(0) };
  }

  #close(id: number): void {
    if (!this.#streams.has(id)) return;
    this.#forget(id);
    this.#out.push({ type: "close-stream", stream: id });
  }

  #forget(id: number): void {
    this.#streams.delete(id);
    this.#deadlines.delete(id);
  }
}

function failureOf(error: StreamError | undefined): StreamFailure {
  if (error === undefined) return { failure: "broken", detail: "closed" };
  const failure =
    error.code === "ECONNREFUSED" ? "refused" : error.code === "ETIMEDOUT" ? "timeout" : "broken";
  return { failure, detail: error.message };
}
