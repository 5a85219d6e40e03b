import type { Instant } from "../base/time.ts";
import type { NetworkDb } from "../networkdb/networkdb.ts";
import type { State } from "../state/state.ts";
import type { Swim } from "../swim/swim.ts";
import type { StreamMessage } from "../wire/memberlist/stream-message.ts";
import { encodeStreamPayload } from "../wire/memberlist/stream.ts";
import { definitionsOf, withDefinitions } from "./exchange-state.ts";
import type { AcceptedStream } from "./streams.ts";

const NO_BYTES = new Uint8Array(0);

/** What came with a peer's member list. */
export interface UserState {
  readonly bytes: Uint8Array;
  readonly greeting: Uint8Array | undefined;
  /** Whether we knew others than the peer before. */
  readonly company: boolean;
}

export interface UserStatesParts {
  readonly swim: Pick<Swim, "snapshot" | "aliveCount">;
  readonly networkDb: Pick<NetworkDb, "localState">;
  readonly state: Pick<State, "greeting">;
  /** Whether the cluster is serf's: its members must not be sent tables. */
  readonly amongSerf: boolean;
  /** Hears of bytes that do not decode. Throws again what is not a DecodeError. */
  readonly dropped: (error: unknown) => void;
}

/** What push/pulls carry beside the member list, both ways: tables, and the definitions behind them. */
export class UserStates {
  readonly #parts: UserStatesParts;
  /** User state that came with a push/pull, until swim says whether the exchange counts. */
  readonly #pending = new Map<string, UserState>();
  #meeting: { readonly greeted: boolean } | undefined;
  /** An answer that this input has made already, before encryption: a batch gets one answer. */
  #answer: { readonly key: string; readonly plain: Uint8Array } | undefined;

  constructor(parts: UserStatesParts) {
    this.#parts = parts;
  }

  /** Another input: what was answered before may no longer be true. */
  begin(): void {
    this.#answer = undefined;
  }

  /** Keeps the peer's user state while swim takes in its members, and until that has been taken. Whether it greets. */
  meet(key: string, bytes: Uint8Array, takeIn: (greeted: boolean) => void): void {
    let greeting: Uint8Array | undefined;
    try {
      if (speaksTables(bytes)) greeting = definitionsOf(bytes);
    } catch (error) {
      this.#parts.dropped(error);
    }
    this.#pending.set(key, { bytes, greeting, company: this.#parts.swim.aliveCount > 1 });
    const greeted = greeting !== undefined;
    this.#meeting = { greeted };
    takeIn(greeted);
    this.#meeting = undefined;
  }

  /** Set while swim takes in a push/pull: members met by it are greeted, or are not. */
  get meeting(): { readonly greeted: boolean } | undefined {
    return this.#meeting;
  }

  take(key: string): UserState | undefined {
    const state = this.#pending.get(key);
    this.#pending.delete(key);
    return state;
  }

  message(join: boolean, tables: boolean, greet: boolean, now: Instant): StreamMessage {
    const { swim, networkDb, state } = this.#parts;
    const greeting = greet ? state.greeting(now) : undefined;
    let userState = tables ? networkDb.localState(join) : NO_BYTES;
    if (greeting !== undefined) userState = withDefinitions(userState, greeting);
    return { type: "push-pull", join, nodes: swim.snapshot(), userState };
  }

  /** Encoded but for its envelopes. */
  answer(
    join: boolean,
    { speaksTables: asked, greets }: Pick<AcceptedStream, "speaksTables" | "greets">,
    now: Instant,
  ): Uint8Array {
    const tables = !this.#parts.amongSerf || asked;
    const key = `${join} ${tables} ${greets !== undefined}`;
    if (this.#answer?.key !== key) {
      const message = this.message(join, tables, greets !== undefined, now);
      this.#answer = { key, plain: encodeStreamPayload(message, true) };
    }
    return this.#answer.plain;
  }
}

/** NetworkDB's user state is a protobuf message, whose first field is tagged 08; serf's begins with its type, 2. */
export function speaksTables(userState: Uint8Array): boolean {
  return userState[0] === 0x08;
}
