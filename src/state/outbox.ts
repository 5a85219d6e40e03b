import type { NetError } from "../base/error.ts";
import type { NodeId } from "../base/id.ts";
import { encodeStateMessage, type StateMessage } from "../wire/state/message.ts";
import type { StateEffect } from "./effect.ts";
import type { Members } from "./members.ts";
import type { StateResult } from "./request.ts";

/** Collects the effects of one `handle` and puts `persist` where it must be. */
export class Outbox {
  readonly #members: Members;
  #effects: StateEffect[] = [];
  #saving: "no" | "lazily" | "first" = "no";

  constructor(members: Members) {
    this.#members = members;
  }

  /** What was decided here must be on disk before anybody hears of it. */
  saveFirst(): void {
    this.#saving = "first";
  }

  /** What was learned from others is saved too, but nothing waits for it. */
  saveLazily(): void {
    if (this.#saving === "no") this.#saving = "lazily";
  }

  add(effect: StateEffect): void {
    this.#effects.push(effect);
  }

  done(request: number, result: StateResult): void {
    this.add({ type: "done", request, result });
  }

  refuse(request: number, error: NetError): void {
    this.add({ type: "refused", request, error });
  }

  /** Nothing when `to` is no member. */
  stream(to: NodeId, message: StateMessage): void {
    const name = this.#members.nameOf(to);
    if (name !== undefined) this.add({ type: "send-stream", to: name, payload: encodeStateMessage(message) });
  }

  /** The effects in the order they must be performed; the outbox is empty afterwards. */
  take(): StateEffect[] {
    const effects = this.#effects;
    if (this.#saving === "first") effects.unshift({ type: "persist" });
    if (this.#saving === "lazily") effects.push({ type: "persist-soon" });
    this.#effects = [];
    this.#saving = "no";
    return effects;
  }
}
