/** Applies one event of another node: node, network or table (networkdb.md §5.2, §6.3, §7.2). */
import { assert } from "../base/assert.ts";
import { bytesEqual, copyBytes } from "../base/bytes.ts";
import type { NodeName } from "../base/id.ts";
import { after, type Instant } from "../base/time.ts";
import { compoundOverhead, COMPOUND_ENVELOPE_BYTES } from "../wire/networkdb/bulk-sync.ts";
import {
  decodeNetworkDbMessage,
  type NetworkEntry,
  type NetworkEvent,
  type NodeEvent,
} from "../wire/networkdb/message.ts";
import type { TableEvent } from "../wire/networkdb/table-event.ts";
import type { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";
import type { Road } from "./early.ts";
import { isNewer, reapInstant, type Entry } from "./entry.ts";
import { issueNetworkEvent, issueRow, rowName } from "./local.ts";
import { dropRowsOf, markLeft } from "./membership.ts";
import { reportChange } from "./watch.ts";

/** Whether the node left by this. */
export function mergeNodeEvent(db: Database, event: NodeEvent, now: Instant): boolean {
  db.networkClock.witness(event.time);
  const node = db.nodes.get(event.node);
  if (node === undefined || event.time <= node.time) return false;
  node.time = event.time;
  // Gossip neither revives nor retires a node that memberlist does not consider alive.
  if (node.state !== "active" || event.change === "join") return false;
  markLeft(db, node, now);
  db.broadcast(`node ${event.node}`, event);
  return true;
}

export function mergeNetworkEvent(db: Database, event: NetworkEvent, now: Instant): void {
  db.networkClock.witness(event.time);
  if (event.node !== db.self && db.nodes.get(event.node) === undefined)
    return db.early.keepNetworkEvent(event);
  if (mergeAttachment(db, event, event.change === "leave", now)) {
    db.broadcast(`network ${event.network} ${event.node}`, event);
  }
}

/** Applies one line of a push/pull state, or the meaning of a network event. Whether it was news. */
export function mergeAttachment(
  db: Database,
  { node: name, network, time }: Pick<NetworkEntry, "node" | "network" | "time">,
  leaving: boolean,
  now: Instant,
): boolean {
  if (name === db.self) {
    reassertAttachment(db, network, time, leaving);
    return false;
  }
  const node = db.nodes.get(name);
  const attachment = db.attachments.remote(name, network);
  if (attachment === undefined) {
    if (leaving || node?.state !== "active") return false;
    if (db.attachments.remotesOf(name).size >= db.config.maxAttachmentsPerNode) {
      db.count("too-many-attachments");
      return false;
    }
    db.attachments.addRemote(name, network, { time, leaving, reapAt: undefined });
    db.setParticipant(network, name, true);
    for (const { encoded, road } of db.early.takeRows(name, network)) {
      mergeTableEvent(db, decodeEarly(encoded), encoded, road, now);
    }
    return true;
  }
  if (time <= attachment.time) return false;
  attachment.time = time;
  attachment.leaving = leaving;
  if (leaving) {
    attachment.reapAt = after(now, db.config.attachmentReapMs);
    db.setParticipant(network, name, false);
    // Deleted outright; 20.10 leaves tombstones with the owner's time here, which then beat the owner (moby 47728).
    dropRowsOf(db, name, network);
  } else {
    attachment.reapAt = undefined;
    db.setParticipant(network, name, node?.state === "active");
  }
  return true;
}

/** `encoded` is the whole GossipMessage: it is relayed unchanged. */
export function mergeTableEvent(
  db: Database,
  event: TableEvent,
  encoded: Uint8Array,
  road: Road,
  now: Instant,
): void {
  const attachment = db.attachments.joined(event.network);
  if (event.node === db.self) {
    // Others have no say in our rows; but what they believe wrongly we may put right.
    if (attachment !== undefined) refuteClaim(db, attachment, event, now);
    return;
  }
  db.tableClock.witness(event.time);
  if (attachment === undefined) return db.count("network-not-attached");
  const owner = db.nodes.get(event.node);
  const ownerAttachment = db.attachments.remote(event.node, event.network);
  // Or the rows of a departed node would be stored again, and bulk-synced for ever.
  if (owner === undefined || ownerAttachment?.leaving !== false) {
    if (ownerAttachment === undefined && (owner === undefined || owner.state === "active")) {
      db.early.keepRow(event.node, event.network, encoded, road);
    }
    return db.count("owner-not-attached");
  }

  const stored = attachment.rows.get(event.table, event.key);
  if (stored?.owner === db.self && !stored.deleted) {
    if (!cedes(db, stored, event)) {
      if (event.time >= stored.time) reassertRow(db, attachment, event, stored, event.time, now);
      return db.count("event-stale");
    }
  } else if (!isNewer(event.time, stored) && !inherits(db, event, stored)) {
    return db.count("event-stale");
  }
  if (event.value.length > db.config.maxValueBytes) return db.count("value-too-long");
  if (stored === undefined && !hasRoom(db, attachment, event.table)) return db.count("too-many-rows");

  const deleted = event.change === "delete";
  const mortal = deleted || owner.state === "failed";
  const entry: Entry = {
    owner: owner.name,
    time: event.time,
    // A copy: the event is a view into a packet.
    value: copyBytes(event.value),
    deleted,
    changedAt: now,
    reapAt: reapInstant(mortal, event.residualReapSeconds, db.config.rowReapMs, now),
  };
  const before = stored && { owner: stored.owner, value: db.visibleValue(stored) };
  attachment.rows.set(event.table, event.key, entry);
  db.count("event-applied");
  reportChange(db, event, before, { owner: entry.owner, value: db.visibleValue(entry) });
  if (shouldRelay(db, attachment, event, stored === undefined, road)) {
    relay(db, attachment, event, encoded, road);
  }
}

/** Applies what was said of a node's networks before memberlist reported the node. */
export function mergeEarlyEvents(db: Database, node: NodeName, now: Instant): void {
  for (const event of db.early.takeNetworkEvents(node)) mergeNetworkEvent(db, event, now);
}

/** It was decoded once, when it came. */
function decodeEarly(encoded: Uint8Array): TableEvent {
  const message = decodeNetworkDbMessage(encoded);
  assert(message.type === "table-event", "only table events are kept as early rows");
  return message;
}

/**
 * Whether an own live row goes to another owner. A newer write of an active node takes it, as upstream allows (two
 * partitions may have taken over one key). A claim of a node that is gone does not: it is the past of ours, most
 * likely of our own previous name; nor does a delete. What does not cede at a time that would win is issued again.
 */
function cedes(db: Database, stored: Entry, event: TableEvent): boolean {
  return event.time > stored.time && db.nodes.isActive(event.node) && event.change !== "delete";
}

/** A restarted node writes its predecessor's key: its clock may be behind, but the row is its own. */
function inherits(db: Database, event: TableEvent, stored: Entry | undefined): boolean {
  return stored !== undefined && db.nodes.get(stored.owner)?.heir === event.node;
}

function hasRoom(db: Database, { rows }: OwnAttachment, table: string): boolean {
  if (rows.size >= db.config.maxRowsPerNetwork) return false;
  return rows.hasTable(table) || rows.tableCount < db.config.maxTablesPerNetwork;
}

/** Old peers forge tombstones of our rows, or miss that we deleted one: issue the truth at a time that wins. */
function refuteClaim(db: Database, attachment: OwnAttachment, event: TableEvent, now: Instant): void {
  const stored = attachment.rows.get(event.table, event.key);
  const claimsLive = event.change !== "delete";
  if (stored?.owner === db.self) {
    const same = claimsLive !== stored.deleted && (stored.deleted || bytesEqual(stored.value, event.value));
    if (event.time < stored.time || (event.time === stored.time && same))
      return db.count("own-claim-ignored");
    reassertRow(db, attachment, event, stored, event.time, now);
  } else if (stored === undefined && claimsLive) {
    // We have not had such a row for longer than a tombstone lives: it came back from a peer cut off that long.
    reassertRow(db, attachment, event, undefined, event.time, now);
  } else {
    db.count("own-claim-ignored");
  }
}

function reassertRow(
  db: Database,
  attachment: OwnAttachment,
  { table, key, value }: TableEvent,
  stored: Entry | undefined,
  claimedTime: number,
  now: Instant,
): void {
  // Without room or allowance left the claim is ignored; the next bulk sync brings it again.
  const fits =
    stored !== undefined || (hasRoom(db, attachment, table) && value.length <= db.config.maxValueBytes);
  if (!fits || !db.mayReassert()) return db.count("own-claim-ignored");
  db.count("own-row-reasserted");
  const deleted = stored?.deleted ?? true;
  const time = db.tableClock.incrementPast(Math.max(claimedTime, stored?.time ?? 0));
  const entry: Entry = {
    owner: db.self,
    time,
    value: stored?.value ?? copyBytes(value),
    deleted,
    changedAt: stored?.changedAt ?? now,
    reapAt: deleted ? after(now, db.config.rowReapMs) : undefined,
  };
  issueRow(attachment, table, key, entry, now);
}

/** Somebody believes we left a network we are on: say it again at a time that wins. */
function reassertAttachment(
  db: Database,
  network: NetworkEntry["network"],
  claimedTime: number,
  leaving: boolean,
): void {
  const attachment = db.attachments.joined(network);
  if (!leaving || attachment === undefined || claimedTime < attachment.time || !db.mayReassert()) return;
  db.count("own-attachment-reasserted");
  attachment.time = db.networkClock.incrementPast(claimedTime);
  issueNetworkEvent(db, network, "join", attachment.time);
}

function shouldRelay(
  db: Database,
  attachment: OwnAttachment,
  event: TableEvent,
  unknownBefore: boolean,
  road: Road,
): boolean {
  if (!attachment.inSync) return false;
  if (event.change === "delete" && unknownBefore) {
    // A tombstone nobody here missed: worth passing on only while it has long to live.
    return road === "bulk-sync" && event.residualReapSeconds * 1000 > db.config.rowReapMs / 6;
  }
  return true;
}

function relay(
  db: Database,
  { relayQueue, ownQueue }: OwnAttachment,
  event: TableEvent,
  encoded: Uint8Array,
  road: Road,
): void {
  const name = rowName(event.table, event.key);
  ownQueue.delete(name);
  if (
    encoded.length + compoundOverhead(encoded.length) + COMPOUND_ENVELOPE_BYTES >
    db.config.gossipPayloadBytes
  ) {
    relayQueue.delete(name);
    return db.count("relay-too-long");
  }
  if (road === "bulk-sync" && relayQueue.length > db.config.maxRelayForBulkSync) {
    relayQueue.delete(name);
    return db.count("relay-queue-long");
  }
  relayQueue.queue(name, copyBytes(encoded));
}
