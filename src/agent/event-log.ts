import type { EventView } from "./control-protocol.ts";

/** Events kept for `netctl events --since`; the oldest go first. */
const KEPT_EVENTS = 10_000;

/** What happened on this node, for people: kept for a while, followed live. */
export class EventLog {
  readonly #events: { readonly atMs: number; readonly view: EventView }[] = [];
  readonly #followers = new Set<(event: EventView) => void>();

  /** `nowMs` is wall-clock time, since people compare events with other logs. */
  add(nowMs: number, type: string, subject: string, detail: string): void {
    const view: EventView = { time: new Date(nowMs).toISOString(), type, subject, detail };
    this.#events.push({ atMs: nowMs, view });
    if (this.#events.length > KEPT_EVENTS) this.#events.splice(0, KEPT_EVENTS / 10);
    for (const follower of this.#followers) follower(view);
  }

  since(atMs: number): EventView[] {
    return this.#events.filter((event) => event.atMs >= atMs).map((event) => event.view);
  }

  /** Calls back for every later event until the returned function is called. */
  follow(follower: (event: EventView) => void): () => void {
    this.#followers.add(follower);
    return () => this.#followers.delete(follower);
  }
}
