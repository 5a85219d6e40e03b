import { assert } from "../base/assert.ts";
import { Deadlines } from "../base/deadlines.ts";
import { after, earlier, type Instant } from "../base/time.ts";
import type { Waiting } from "./broadcast-queue.ts";
import type { Claims } from "./claims.ts";
import type { Context } from "./context.ts";

const MAX_META_BYTES = 512;

/** What we tell everybody about ourselves and wait for: new metadata, and goodbye (memberlist.go, UpdateNode, Leave). */
export class Announcements {
  readonly #context: Context;
  readonly #claims: Claims;
  /** Metadata updates under way, by request. */
  readonly #updates = new Deadlines<number>();
  /** While the goodbye is under way. */
  #leaveBy: Instant | undefined;

  constructor(context: Context, claims: Claims) {
    this.#context = context;
    this.#claims = claims;
  }

  leave(timeoutMs: number, now: Instant): void {
    if (this.#claims.leaving) {
      this.#leaveBy = this.#leaveBy === undefined ? now : after(now, timeoutMs);
      return;
    }
    const { self, members } = this.#context;
    const alone = members.alive <= 1;
    this.#claims.leaving = true;
    this.#leaveBy = after(now, timeoutMs);
    const { incarnation, name } = self;
    this.#claims.dead({ type: "dead", incarnation, node: name, from: name }, now);
    if (alone) this.#left(true);
  }

  setMeta(request: number, meta: Uint8Array, timeoutMs: number, now: Instant): void {
    assert(meta.length <= MAX_META_BYTES, "metadata has at most 512 bytes");
    if (this.#claims.leaving) return this.#announced(request, false);
    this.#claims.changeMeta(meta, now, { request, what: "meta" });
    if (this.#context.members.alive <= 1) this.#announced(request, true);
    else this.#updates.set(request, after(now, timeoutMs));
  }

  /** A broadcast somebody waited for is out. */
  broadcast({ request, what }: Waiting): void {
    if (what === "leave") this.#left(true);
    else if (this.#updates.delete(request)) this.#announced(request, true);
  }

  nextWakeup(): Instant | undefined {
    return earlier(this.#updates.earliest(), this.#leaveBy);
  }

  wake(now: Instant): void {
    for (const request of this.#updates.takeDue(now)) this.#announced(request, false);
    if (this.#leaveBy !== undefined && now >= this.#leaveBy) this.#left(false);
  }

  #left(complete: boolean): void {
    if (this.#leaveBy === undefined) return;
    this.#leaveBy = undefined;
    this.#context.emit({ type: "leave-done", complete });
  }

  #announced(request: number, complete: boolean): void {
    this.#context.emit({ type: "meta-announced", request, complete });
  }
}
