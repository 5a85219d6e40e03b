/** Table gossip: own and relayed events to a few random participants (networkdb.md §7.3). */
import { after, elapsed, instant, type Instant } from "../base/time.ts";
import { transmitLimit } from "../base/transmit-queue.ts";
import { COMPOUND_ENVELOPE_BYTES } from "../wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import type { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";

/** Two tags and two lengths of up to two bytes, for parts below 16 KiB: see `compoundOverhead`. */
const PART_OVERHEAD_BYTES = 6;

export class TableGossip {
  readonly #db: Database;
  readonly #push: PushEvents;
  #lastRound = instant(-Infinity);

  constructor(db: Database, push: PushEvents) {
    this.#db = db;
    this.#push = push;
  }

  /** Arms the timer when something waits. The first change after a quiet time goes out almost at once. */
  arm(now: Instant): void {
    const { config, timers } = this.#db;
    if (timers.get("gossip") !== undefined || !this.#hasWork()) return;
    const sinceLast = elapsed(this.#lastRound, now);
    timers.set("gossip", after(now, Math.max(config.gossipDelayMs, config.gossipIntervalMs - sinceLast)));
  }

  round(now: Instant): void {
    this.#lastRound = now;
    for (const attachment of this.#db.attachments.own.values()) {
      if (waiting(attachment) > 0 && this.#db.hasPeers(attachment.network)) this.#gossip(attachment, now);
    }
  }

  #gossip(attachment: OwnAttachment, now: Instant): void {
    const { config } = this.#db;
    const { network, ownQueue, relayQueue } = attachment;
    if (ownQueue.length > config.burstEvents && !attachment.leaving) {
      // Datagrams would take minutes for a redeploy of thousands of rows; pages by stream take one pass.
      this.#push(network, ownQueue.drain(), now);
    }
    const participants = this.#db.attachments.participants(network).length;
    const limit = transmitLimit(config.retransmitMultiplier, participants);
    let left = waiting(attachment);
    for (let packet = 0; packet < config.gossipPacketsPerRound && left > 0; packet++) {
      const budget = config.gossipPayloadBytes - COMPOUND_ENVELOPE_BYTES;
      const own = ownQueue.take(budget, PART_OVERHEAD_BYTES, limit);
      const used = own.reduce((sum, part) => sum + part.length + PART_OVERHEAD_BYTES, 0);
      const relayed = relayQueue.take(budget - used, PART_OVERHEAD_BYTES, limit);
      const parts = [...own, ...relayed];
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

  #hasWork(): boolean {
    for (const attachment of this.#db.attachments.own.values()) {
      if (waiting(attachment) > 0 && this.#db.hasPeers(attachment.network)) return true;
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
