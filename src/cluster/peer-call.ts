import { ByteReader, ByteWriter, fromUtf8, utf8 } from "../base/bytes.ts";
import { Deadlines } from "../base/deadlines.ts";
import { nodeName, type NodeName } from "../base/id.ts";
import { after, type Instant } from "../base/time.ts";

/**
 * Questions one netagent asks another: key rotation, `doctor`, `trace`. Each is a NetworkDB `GossipMessage`
 * (protobuf: field 1 type, field 2 data) of a type Docker does not use, on a memberlist user stream, sent to members
 * that announce the capability `state` only. `data`: kind u8 (0 question, 1 answer), id u32, length u8 and name of
 * the sender, then JSON text.
 */
export const PEER_CALL_MESSAGE_TYPE = 96;

/** A JSON document larger than this is refused; the stream itself allows 20 MiB. */
const MAX_BODY_BYTES = 4 * 1024 * 1024;
/** Calls waiting for an answer at one time. */
const MAX_PENDING = 4096;

export interface PeerQuestion {
  readonly from: NodeName;
  readonly id: number;
  /** Parsed JSON; not validated. */
  readonly body: unknown;
}

export type PeerCallEffect =
  | { readonly type: "send"; readonly to: NodeName; readonly payload: Uint8Array }
  /** To be answered with `answer()`; a question nobody answers times out at the asker. */
  | { readonly type: "question"; readonly question: PeerQuestion }
  | { readonly type: "answered"; readonly request: number; readonly from: NodeName; readonly body: unknown }
  | {
      readonly type: "unanswered";
      readonly request: number;
      readonly from: NodeName;
      readonly reason: string;
    };

interface Pending {
  readonly to: NodeName;
  readonly request: number;
}

/** Asks, matches answers, gives up on silence. Owns no socket and no timer. */
export class PeerCalls {
  readonly #self: NodeName;
  readonly #pending = new Map<number, Pending>();
  readonly #deadlines = new Deadlines<number>();
  #nextId = 1;

  constructor(self: NodeName) {
    this.#self = self;
  }

  ask(to: NodeName, request: number, body: unknown, timeoutMs: number, now: Instant): PeerCallEffect[] {
    if (this.#pending.size >= MAX_PENDING) {
      return [{ type: "unanswered", request, from: to, reason: "too many calls are waiting" }];
    }
    const id = this.#nextId++ >>> 0;
    this.#pending.set(id, { to, request });
    this.#deadlines.set(id, after(now, timeoutMs));
    return [{ type: "send", to, payload: encode(0, id, this.#self, body) }];
  }

  answer(question: PeerQuestion, body: unknown): PeerCallEffect[] {
    return [{ type: "send", to: question.from, payload: encode(1, question.id, this.#self, body) }];
  }

  /** @throws DecodeError on bytes that are not a peer call. */
  receive(bytes: Uint8Array): PeerCallEffect[] {
    const { kind, id, from, body } = decode(bytes);
    if (kind === 0) return [{ type: "question", question: { from, id, body } }];
    const pending = this.#pending.get(id);
    // An answer nobody waits for any more, or from somebody who was not asked.
    if (pending === undefined || pending.to !== from) return [];
    this.#forget(id);
    return [{ type: "answered", request: pending.request, from, body }];
  }

  /** The stream to `to` failed: what it was asked will not be answered. */
  streamFailed(to: NodeName): PeerCallEffect[] {
    return this.#giveUp(
      [...this.#pending].filter(([, pending]) => pending.to === to).map(([id]) => id),
      "cannot be reached over TCP",
    );
  }

  wake(now: Instant): PeerCallEffect[] {
    return this.#giveUp(this.#deadlines.takeDue(now), "no answer in time");
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  #giveUp(ids: readonly number[], reason: string): PeerCallEffect[] {
    return ids.flatMap((id): PeerCallEffect[] => {
      const pending = this.#pending.get(id);
      this.#forget(id);
      return pending === undefined
        ? []
        : [{ type: "unanswered", request: pending.request, from: pending.to, reason }];
    });
  }

  #forget(id: number): void {
    this.#pending.delete(id);
    this.#deadlines.delete(id);
  }
}

function encode(kind: 0 | 1, id: number, self: NodeName, body: unknown): Uint8Array {
  const inner = new ByteWriter();
  const name = utf8(self);
  inner.u8(kind).u32(id).u8(name.length).write(name).text(JSON.stringify(body));
  const data = inner.finish();
  const out = new ByteWriter(data.length + 16);
  out.u8(0x08).u8(PEER_CALL_MESSAGE_TYPE).u8(0x12);
  let length = data.length;
  while (length >= 0x80) {
    out.u8((length & 0x7f) | 0x80);
    length >>>= 7;
  }
  return out.u8(length).write(data).finish();
}

function decode(bytes: Uint8Array): { kind: number; id: number; from: NodeName; body: unknown } {
  const input = new ByteReader(bytes, "peer call");
  if (input.u8() !== 0x08 || input.u8() !== PEER_CALL_MESSAGE_TYPE || input.u8() !== 0x12)
    input.fail("not a peer call");
  let length = 0;
  for (let shift = 0; ; shift += 7) {
    if (shift > 21) input.fail("length too long");
    const byte = input.u8();
    length |= (byte & 0x7f) << shift;
    if ((byte & 0x80) === 0) break;
  }
  if (length > MAX_BODY_BYTES) input.fail(`${length} bytes are above ${MAX_BODY_BYTES}`);
  const data = new ByteReader(input.take(length), "peer call");
  const kind = data.u8();
  if (kind > 1) data.fail(`kind ${kind}`);
  const id = data.u32();
  const from = nodeName(data.text(data.u8()));
  let body: unknown;
  try {
    body = JSON.parse(fromUtf8(data.rest()));
  } catch {
    data.fail("not JSON");
  }
  return { kind, id, from, body };
}
