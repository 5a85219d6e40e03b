import { unreachable } from "../base/assert.ts";
import type { NodeName } from "../base/id.ts";
import type { Instant } from "../base/time.ts";
import type { StreamFailure, SwimInput } from "../swim/boundary.ts";
import type { PushPull } from "../wire/memberlist/push-pull.ts";
import type { StreamMessage } from "../wire/memberlist/stream-message.ts";
import type { AcceptedStream, Purpose, StreamEvent, Streams, UserOrigin } from "./streams.ts";
import { speaksTables, type UserStates } from "./user-states.ts";

export interface StreamEventsParts {
  readonly streams: Pick<Streams, "close">;
  readonly userStates: Pick<UserStates, "meet" | "take">;
  readonly swim: (input: SwimInput, now: Instant) => void;
  readonly userMessage: (payload: Uint8Array, now: Instant) => void;
  readonly undelivered: (to: NodeName, origin: UserOrigin, now: Instant) => void;
  readonly count: (reason: string) => void;
}

/** What whole messages on streams, and the lack of them, mean to whom. */
export class StreamEvents {
  readonly #parts: StreamEventsParts;

  constructor(parts: StreamEventsParts) {
    this.#parts = parts;
  }

  take(event: StreamEvent | undefined, now: Instant): void {
    switch (event?.type) {
      case "request":
        return this.#request(event.stream, event.accepted, event.message, now);
      case "answer":
        return this.#answered(event.purpose, event.message, now);
      case "failed":
        return this.#failed(event.purpose, event.failure, now);
      case "gone":
        this.#parts.userStates.take(`stream ${event.stream}`);
        return this.#parts.swim({ type: "stream-gone", stream: event.stream }, now);
      case undefined:
        return;
      default:
        return unreachable(event);
    }
  }

  #request(stream: number, accepted: AcceptedStream, message: StreamMessage, now: Instant): void {
    switch (message.type) {
      case "ping":
        return this.#parts.swim({ type: "stream-ping", stream, from: accepted.from, ping: message }, now);
      case "push-pull":
        accepted.speaksTables = speaksTables(message.userState);
        return this.#pushPullRequest(stream, accepted, message, now);
      case "user":
        this.#parts.streams.close(stream);
        if (message.payload.length > 0) this.#parts.userMessage(message.payload, now);
        return;
      case "ack":
      case "error":
        this.#parts.count("stream: unexpected request");
        return this.#parts.streams.close(stream);
      default:
        return unreachable(message);
    }
  }

  #pushPullRequest(
    stream: number,
    accepted: AcceptedStream,
    { join, nodes, userState }: PushPull,
    now: Instant,
  ): void {
    this.#parts.userStates.meet(`stream ${stream}`, userState, (greeted) => {
      const name = nodes.length <= 1 ? (nodes[0]?.name as NodeName | undefined) : undefined;
      if (greeted) accepted.greets = { name };
      this.#parts.swim({ type: "push-pull-request", stream, from: accepted.from, join, nodes }, now);
    });
  }

  #answered(purpose: Purpose, message: StreamMessage, now: Instant): void {
    if (purpose.kind === "push-pull" && message.type === "push-pull") {
      const { exchange } = purpose;
      this.#parts.userStates.meet(`exchange ${exchange}`, message.userState, () =>
        this.#parts.swim({ type: "push-pull-reply", exchange, nodes: message.nodes }, now),
      );
    } else if (purpose.kind === "ping" && message.type === "ack") {
      const result = { seqNo: message.seqNo };
      this.#parts.swim({ type: "stream-ping-result", ping: purpose.ping, result }, now);
    }
  }

  #failed(purpose: Purpose, failure: StreamFailure, now: Instant): void {
    switch (purpose.kind) {
      case "push-pull":
        return this.#parts.swim({ type: "push-pull-failed", exchange: purpose.exchange, failure }, now);
      case "ping":
        return this.#parts.swim({ type: "stream-ping-result", ping: purpose.ping, result: failure }, now);
      case "user":
        if (failure.failure === "refused")
          this.#parts.swim({ type: "peer-refused", address: purpose.address }, now);
        return this.#parts.undelivered(purpose.to, purpose.origin, now);
      default:
        return unreachable(purpose);
    }
  }
}
