/** Table gossip: own and relayed events to a few random participants (networkdb.md §7.3). */
import { after, instant, type Instant } from "../base/time.ts";
import { transmitLimit, type TransmitQueue } from "../base/transmit-queue.ts";
import { COMPOUND_ENVELOPE_BYTES } from "../wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import type { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";

/** Two tags and two lengths of up to two bytes, for parts below 16 KiB: see `compoundOverhead`. */
const PART_OVERHEAD_BYTES = 6;

export class TableGossip {
  readonly #db: Database;
  readonly #push: PushEvents;
  /** When the next whole round may be, and the next packets of what was never sent. */
  #roundDue = instant(-Infinity);
  #unsentDue = instant(-Infinity);

  constructor(db: Database, push: PushEvents) {
    this.#db = db;
    this.#push = push;
  }

  /** Arms the timer when something waits. The first change after a quiet time goes out at once. */
  arm(now: Instant): void {
    const { config, timers } = this.#db;
    const armed = timers.get("gossip");
    const soon = latest(this.#unsentDue, after(now, config.gossipDelayMs));
    if (armed !== undefined && armed <= soon) return;
    if (this.#has(unsent)) timers.set("gossip", soon);
    else if (armed === undefined && this.#has(waiting)) timers.set("gossip", latest(this.#roundDue, soon));
  }

  /** Between two rounds only what was never sent goes out: repetitions come at their own pace, or one loss took all. */
  round(now: Instant): void {
    const { config, attachments } = this.#db;
    const whole = now >= this.#roundDue;
    const count = whole ? waiting : unsent;
    if (whole) this.#roundDue = after(now, config.gossipIntervalMs);
    this.#unsentDue = after(now, config.gossipUnsentIntervalMs);
    for (const attachment of attachments.own.values()) {
      if (count(attachment) > 0 && this.#db.hasPeers(attachment.network))
        this.#gossip(attachment, whole, now);
    }
  }

  #gossip(attachment: OwnAttachment, whole: boolean, now: Instant): void {
    const { config } = this.#db;
    const { network, ownQueue, relayQueue } = attachment;
    if (ownQueue.length > config.burstEvents && !attachment.leaving) {
      // Datagrams would take minutes for a redeploy of thousands of rows; pages by stream take one pass.
      this.#push(network, ownQueue.drain(), now);
    }
    const participants = this.#db.attachments.participants(network).length;
    const limit = transmitLimit(config.retransmitMultiplier, participants);
    const take = (queue: TransmitQueue, budget: number): Uint8Array[] =>
      whole
        ? queue.take(budget, PART_OVERHEAD_BYTES, limit)
        : queue.takeUnsent(budget, PART_OVERHEAD_BYTES, limit);
    let left = whole ? waiting(attachment) : unsent(attachment);
    for (let packet = 0; packet < config.gossipPacketsPerRound && left > 0; packet++) {
      const budget = config.gossipPayloadBytes - COMPOUND_ENVELOPE_BYTES;
      const own = take(ownQueue, budget);
      const used = own.reduce((sum, part) => sum + part.length + PART_OVERHEAD_BYTES, 0);
      const parts = [...own, ...take(relayQueue, budget - used)];
      if (parts.length === 0) break;
      left -= parts.length;
      this.#send(attachment, encodeNetworkDbMessage({ type: "compound", parts }));
    }
    this.#pushOversized(attachment, now);
  }

  #send({ network }: OwnAttachment, payload: Uint8Array): void {
    const { config } = this.#db;
    for (const to of this.#db.samplePeers(network, config.gossipFanout)) {
      const node = this.#db.nodes.get(to);
      if (node === undefined) continue;
      this.#db.count("gossip-packets");
      this.#db.emit({ type: "send-packet", to, address: node.address, payload });
    }
  }

  /** An event longer than a datagram would wait for ever (upstream leaves it to the next bulk sync). */
  #pushOversized({ network, ownQueue, leaving }: OwnAttachment, now: Instant): void {
    const longest = this.#db.config.gossipPayloadBytes - COMPOUND_ENVELOPE_BYTES - PART_OVERHEAD_BYTES;
    const oversized = ownQueue.takeLongerThan(longest);
    if (oversized.length > 0 && !leaving) this.#push(network, oversized, now);
  }

  #has(count: (attachment: OwnAttachment) => number): boolean {
    for (const attachment of this.#db.attachments.own.values()) {
      if (count(attachment) > 0 && this.#db.hasPeers(attachment.network)) return true;
    }
    return false;
  }
}

/** Sends encoded table events of one network to its participants by stream. */
export type PushEvents = (
  network: OwnAttachment["network"],
  events: readonly Uint8Array[],
  now: Instant,
) => void;

function waiting({ ownQueue, relayQueue }: OwnAttachment): number {
  return ownQueue.length + relayQueue.length;
}

function unsent({ ownQueue, relayQueue }: OwnAttachment): number {
  return ownQueue.unsent + relayQueue.unsent;
}

function latest(a: Instant, b: Instant): Instant {
  return a > b ? a : b;
}
