import { after, instant, type Instant } from "../base/time.ts";
import { LARGE_CLUSTER } from "./broadcast-queue.ts";
import type { Context } from "./context.ts";
import type { MemberRecord } from "./member.ts";

/**
 * Gossip rounds (memberlist state.go, gossip): a few random members each get what fits into a packet.
 *
 * Beyond memberlist: rounds come faster while something waits, and none come while nothing does. How often each
 * broadcast is sent stays the same, so it spreads sooner in the same number of messages. Members take turns, in an
 * order that is random at each node, so that a broadcast does not go to one twice before it went to all.
 */
export class Gossip {
  readonly #context: Context;
  #lastAt: Instant | undefined;
  #dueAt: Instant | undefined;

  constructor(context: Context) {
    this.#context = context;
  }

  /** Something may have been queued: decides when the next round is. */
  notice(now: Instant): void {
    if (!this.#pending()) this.#dueAt = undefined;
    else if (this.#dueAt === undefined) {
      const soon = after(now, this.#context.config.gossipDelayMs);
      const paced = this.#lastAt === undefined ? soon : after(this.#lastAt, this.#paceMs());
      this.#dueAt = soon > paced ? soon : paced;
    }
  }

  /** In the past when the application has queued something since the last step. */
  nextWakeup(): Instant | undefined {
    return this.#dueAt ?? (this.#pending() ? (this.#lastAt ?? instant(0)) : undefined);
  }

  wake(now: Instant): void {
    if (this.#dueAt === undefined || now < this.#dueAt) return;
    const { config, members, self } = this.#context;
    // In a mass failure those gone are not needed as hearers: whoever of them lives is pinged, as suspect or as dead,
    // and then has its say.
    const deaf = this.#context.massFailure;
    const fits = (member: MemberRecord): boolean =>
      member !== self &&
      (member.state === "alive" ||
        (!deaf &&
          (member.state === "suspect" ||
            (member.state === "dead" && now - member.changedAt <= config.gossipToTheDeadMs))));
    const targets = config.skipInformed
      ? members.nextInTurn(config.gossipNodes, fits)
      : members.pick(config.gossipNodes, fits);
    const { queue } = this.#context;
    if (queue.large && config.skipInformed && queue.bytes > config.udpBufferBytes) {
      this.#context.sendGossipToAll(targets);
    } else {
      for (const target of targets) if (this.#pending()) this.#context.sendGossip(target);
    }
    this.#lastAt = now;
    this.#dueAt = after(now, targets.length > 0 ? this.#paceMs() : config.gossipIntervalMs);
  }

  /** In a large cluster something always waits; there it takes a packet full of it to be in a hurry. */
  #paceMs(): number {
    const { config, members, queue } = this.#context;
    const hurry = members.size < LARGE_CLUSTER || queue.bytes > config.udpBufferBytes;
    return hurry ? config.busyGossipIntervalMs : config.gossipIntervalMs;
  }

  #pending(): boolean {
    const { queue, userBroadcasts, members } = this.#context;
    return members.size > 1 && (queue.length > 0 || userBroadcasts.length > 0);
  }
}
