import type { NodeName } from "../base/id.ts";
import { sample, type Random } from "../base/random.ts";
import { after, type Instant } from "../base/time.ts";
import type { NetworkDb } from "../networkdb/networkdb.ts";
import type { SwimConfig } from "../swim/config.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";

/** A compound's envelope and the user message's type byte; then tag and length of each part. */
const OVERHEAD_BYTES = 16;
const COMPOUND_PART_BYTES = 6;

export interface TableRoundsOptions {
  readonly broadcasts: NetworkDb["clusterBroadcasts"];
  readonly swim: SwimConfig;
  readonly random: Random;
  /** The living netagents. */
  readonly hearers: () => readonly NodeName[];
}

/**
 * Among serf agents, who log NetworkDB's messages as errors: rounds of its cluster events at swim's own pace, to
 * netagents only. Elsewhere these events ride with swim's gossip.
 */
export class TableRounds {
  readonly #options: TableRoundsOptions;
  #dueAt: Instant | undefined;
  #lastAt: Instant | undefined;

  constructor(options: TableRoundsOptions) {
    this.#options = options;
  }

  /** Something may have been queued: decides when the next round is. */
  notice(now: Instant): void {
    const { broadcasts, swim, hearers } = this.#options;
    if (this.#dueAt !== undefined || broadcasts.length === 0 || hearers().length === 0) return;
    const soon = after(now, swim.gossipDelayMs);
    const paced = this.#lastAt === undefined ? soon : after(this.#lastAt, swim.busyGossipIntervalMs);
    this.#dueAt = soon > paced ? soon : paced;
  }

  nextWakeup(): Instant | undefined {
    return this.#dueAt;
  }

  /** One message each for a few netagents; `packetOverhead` is what encryption and label add to a packet. */
  wake(now: Instant, packetOverhead: number): { readonly to: NodeName; readonly payload: Uint8Array }[] {
    if (this.#dueAt === undefined || now < this.#dueAt) return [];
    this.#dueAt = undefined;
    this.#lastAt = now;
    const { broadcasts, swim, random, hearers } = this.#options;
    const budget = swim.udpBufferBytes - packetOverhead - OVERHEAD_BYTES;
    return sample(random, hearers(), swim.gossipNodes).flatMap((to) => {
      const parts = broadcasts.take(budget, COMPOUND_PART_BYTES);
      const [only] = parts;
      if (only === undefined) return [];
      return [
        { to, payload: parts.length === 1 ? only : encodeNetworkDbMessage({ type: "compound", parts }) },
      ];
    });
  }
}
