import { unreachable } from "../base/assert.ts";
import { Deadlines } from "../base/deadlines.ts";
import { errorText } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import { after, type Instant } from "../base/time.ts";
import type { StreamFailure } from "../swim/boundary.ts";
import { KeyMismatch, sealsOutgoing, type Sealing } from "../wire/memberlist/seal.ts";
import {
  STREAM_LIMITS,
  type StreamDirection,
  type StreamMessage,
} from "../wire/memberlist/stream-message.ts";
import { encodeStream, encodeStreamEnvelopes, StreamDecoder } from "../wire/memberlist/stream.ts";
import type { GossipEffect } from "./boundary.ts";

/** Accepted and dialled streams at one time; more are closed at once. memberlist answers 127 push/pulls at a time. */
const MAX_STREAMS = 512;

/** What a stream we dial is for. A user message has no answer. */
export type Purpose =
  | { readonly kind: "push-pull"; readonly exchange: number }
  | { readonly kind: "ping"; readonly ping: number }
  | {
      readonly kind: "user";
      readonly to: NodeName;
      readonly address: SocketAddr;
      readonly origin: UserOrigin;
    };
export type UserOrigin = "networkdb" | "state" | "peer-call";

/** A stream a peer dialled. */
export interface AcceptedStream {
  readonly kind: "accepted";
  readonly from: SocketAddr;
  readonly decoder: StreamDecoder;
  /** The keys of when it began. */
  readonly sealing: Sealing;
  /** Its push/pull came with tables, so the answer may have some, too. */
  speaksTables: boolean;
  /** It came with a greeting and gets one; the name, when the requester alone was in it. */
  greets?: { readonly name: NodeName | undefined };
}

interface DialledStream {
  readonly kind: "dialled";
  readonly purpose: Purpose;
  readonly request: Uint8Array;
  readonly decoder: StreamDecoder;
}

export type StreamEvent =
  /** A peer asks; `accepted` is its stream, open until it is answered or closed. */
  | {
      readonly type: "request";
      readonly stream: number;
      readonly accepted: AcceptedStream;
      readonly message: StreamMessage;
    }
  /** A peer answers; its stream is closed. */
  | { readonly type: "answer"; readonly purpose: Purpose; readonly message: StreamMessage }
  /** What we asked on this stream will not be answered. */
  | { readonly type: "failed"; readonly purpose: Purpose; readonly failure: StreamFailure }
  /** A stream that a peer dialled has closed. */
  | { readonly type: "gone"; readonly stream: number };

export interface StreamsOptions {
  /** Deadline of an accepted stream. */
  readonly tcpTimeoutMs: number;
  /** Keys for streams that begin now. */
  readonly sealing: () => Sealing;
  /** 12 bytes never given before. */
  readonly nonce: () => Uint8Array;
  readonly emit: (effect: GossipEffect) => void;
  /** Hears of bytes that do not decode. Throws again what is not a DecodeError. */
  readonly dropped: (error: unknown) => void;
  readonly count: (reason: string) => void;
}

/** A node's streams: bytes come in, whole messages come out. Each has one request, at most one answer and a deadline. */
export class Streams {
  readonly #options: StreamsOptions;
  readonly #streams = new Map<number, AcceptedStream | DialledStream>();
  readonly #deadlines = new Deadlines<number>();
  #nextStream = 2;

  constructor(options: StreamsOptions) {
    this.#options = options;
  }

  /** An accepted stream that is still open. */
  accepted(stream: number): AcceptedStream | undefined {
    const found = this.#streams.get(stream);
    return found?.kind === "accepted" ? found : undefined;
  }

  accept(stream: number, from: SocketAddr, now: Instant): void {
    const { emit, count, sealing: current, tcpTimeoutMs } = this.#options;
    if (this.#streams.size >= MAX_STREAMS) {
      count("stream: too many");
      return emit({ type: "close-stream", stream });
    }
    const sealing = current();
    const decoder = new StreamDecoder(sealing, STREAM_LIMITS, "request");
    this.#streams.set(stream, { kind: "accepted", from, sealing, decoder, speaksTables: false });
    this.#deadlines.set(stream, after(now, tcpTimeoutMs));
  }

  /** Opens a stream for one request. An event when there are too many. */
  dial(
    to: SocketAddr,
    purpose: Purpose,
    message: StreamMessage,
    timeoutMs: number,
    now: Instant,
  ): StreamEvent | undefined {
    const { emit, count, sealing } = this.#options;
    if (this.#streams.size >= MAX_STREAMS) {
      count("stream: too many");
      return { type: "failed", purpose, failure: { failure: "cancelled", detail: "too many streams" } };
    }
    const stream = this.#nextStream;
    this.#nextStream += 2;
    this.#streams.set(stream, {
      kind: "dialled",
      purpose,
      request: this.#encode(message, "request", sealing()),
      decoder: new StreamDecoder(sealing(), STREAM_LIMITS, "reply"),
    });
    this.#deadlines.set(stream, after(now, timeoutMs));
    emit({ type: "open-stream", stream, to, timeoutMs });
    return undefined;
  }

  opened(stream: number): void {
    const opened = this.#streams.get(stream);
    if (opened?.kind !== "dialled") return;
    this.#options.emit({ type: "write-stream", stream, bytes: opened.request });
    // Written and closed is all there is to know of it.
    if (opened.purpose.kind === "user") this.close(stream);
  }

  read(stream: number, bytes: Uint8Array): StreamEvent | undefined {
    const reading = this.#streams.get(stream);
    if (reading === undefined) return undefined;
    let message: StreamMessage | undefined;
    try {
      message = reading.decoder.push(bytes);
    } catch (error) {
      this.#options.dropped(error);
      if (reading.kind === "accepted") {
        this.refuse(stream, errorText(error));
        return undefined;
      }
      this.close(stream);
      return rejected(reading.purpose, refusalText(error));
    }
    if (message === undefined) return undefined;
    if (reading.kind === "accepted") return { type: "request", stream, accepted: reading, message };
    this.close(stream);
    const { purpose } = reading;
    if (message.type === "error") return rejected(purpose, message.error);
    const expected =
      (purpose.kind === "push-pull" && message.type === "push-pull") ||
      (purpose.kind === "ping" && message.type === "ack");
    if (expected) return { type: "answer", purpose, message };
    this.#options.count("stream: unexpected answer");
    return rejected(purpose, `unexpected ${message.type}`);
  }

  closed(
    stream: number,
    error: { readonly code: string; readonly message: string } | undefined,
  ): StreamEvent | undefined {
    const closed = this.#streams.get(stream);
    if (closed === undefined) return undefined;
    this.#forget(stream);
    if (closed.kind === "accepted") return { type: "gone", stream };
    return { type: "failed", purpose: closed.purpose, failure: streamFailure(error) };
  }

  /** Answers a peer and closes. */
  reply(stream: number, message: StreamMessage): void {
    const accepted = this.accepted(stream);
    if (accepted === undefined) return;
    this.#options.emit({
      type: "write-stream",
      stream,
      bytes: this.#encode(message, "reply", accepted.sealing),
    });
    this.close(stream);
  }

  /** The same with a message that is encoded but for its envelopes. */
  replyPlain(stream: number, plain: Uint8Array): void {
    const accepted = this.accepted(stream);
    if (accepted === undefined) return;
    const { sealing } = accepted;
    const bytes = encodeStreamEnvelopes(plain, { sealing, direction: "reply", ...this.#nonceFor(sealing) });
    this.#options.emit({ type: "write-stream", stream, bytes });
    this.close(stream);
  }

  refuse(stream: number, reason: string): void {
    this.reply(stream, { type: "error", error: reason });
  }

  close(stream: number): void {
    if (!this.#streams.has(stream)) return;
    this.#forget(stream);
    this.#options.emit({ type: "close-stream", stream });
  }

  /** Nobody waits for this exchange any more. */
  abandon(exchange: number): void {
    for (const [id, stream] of this.#streams) {
      if (stream.kind !== "dialled" || stream.purpose.kind !== "push-pull") continue;
      if (stream.purpose.exchange === exchange) this.close(id);
    }
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  /** Closes what took too long. */
  wake(now: Instant): StreamEvent[] {
    return this.#deadlines.takeDue(now).flatMap((stream) => {
      this.#options.emit({ type: "close-stream", stream });
      return this.closed(stream, { code: "ETIMEDOUT", message: "no answer in time" }) ?? [];
    });
  }

  #forget(stream: number): void {
    this.#streams.delete(stream);
    this.#deadlines.delete(stream);
  }

  #encode(message: StreamMessage, direction: StreamDirection, sealing: Sealing): Uint8Array {
    return encodeStream(message, { sealing, compress: true, direction, ...this.#nonceFor(sealing) });
  }

  #nonceFor(sealing: Sealing): { readonly nonce?: Uint8Array } {
    return sealsOutgoing(sealing) ? { nonce: this.#options.nonce() } : {};
  }
}

function rejected(purpose: Purpose, detail: string): StreamEvent {
  return { type: "failed", purpose, failure: { failure: "rejected", detail } };
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
