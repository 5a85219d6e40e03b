/** What this node itself does: join and leave networks, write and delete its rows (networkdb.md §6.1, §6.2, §7.1). */
import { copyBytes } from "../base/bytes.ts";
import type { NetworkId } from "../base/id.ts";
import { after, type Instant } from "../base/time.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import { isRowName } from "../wire/networkdb/table-event.ts";
import { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";
import type { RefusalReason } from "./effect.ts";
import { residualSeconds, type Entry } from "./entry.ts";
import { reportChange } from "./watch.ts";

/** Attaches this node; undefined when it already is. Asking peers for the rows is the caller's next step. */
export function joinNetwork(db: Database, network: NetworkId): OwnAttachment | undefined {
  const known = db.attachments.own.get(network);
  if (known?.leaving === false) return undefined;
  const time = db.networkClock.increment();
  const attachment = known ?? new OwnAttachment(network, time, db.config);
  // A quick re-join keeps the queues and the tombstones of our old rows: they still have to be told.
  attachment.time = time;
  attachment.leaving = false;
  attachment.reapAt = undefined;
  attachment.inSync = false;
  attachment.loaded = false;
  attachment.asked.clear();
  db.attachments.own.set(network, attachment);
  db.setParticipant(network, db.self, true);
  issueNetworkEvent(db, network, "join", time);
  return attachment;
}

/** Whether this node was attached. */
export function leaveNetwork(db: Database, network: NetworkId, now: Instant): boolean {
  const attachment = db.attachments.joined(network);
  if (attachment === undefined) return false;
  attachment.time = db.networkClock.increment();
  issueNetworkEvent(db, network, "leave", attachment.time);
  db.setParticipant(network, db.self, false);
  const reapAt = after(now, db.config.rowReapMs);
  attachment.rows.forEach((table, key, entry) => {
    const before = { owner: entry.owner, value: db.visibleValue(entry) };
    if (entry.owner !== db.self) {
      attachment.rows.delete(table, key);
    } else if (!entry.deleted) {
      // Not gossiped one by one (peers drop our rows with the leave), but a quick re-join still deletes them everywhere.
      const time = db.tableClock.increment();
      attachment.rows.set(table, key, { ...entry, time, deleted: true, changedAt: now, reapAt });
    }
    reportChange(db, { network, table, key }, before, undefined);
  });
  attachment.relayQueue.clear();
  attachment.leaving = true;
  attachment.reapAt = after(now, db.config.attachmentReapMs);
  return true;
}

/** Writes an own row; the reason when it cannot be. */
export function putRow(
  db: Database,
  { network, table, key, value, only }: RowWrite,
  now: Instant,
): RefusalReason | undefined {
  const attachment = db.attachments.joined(network);
  if (attachment === undefined) return "not-attached";
  if (!isRowName(table)) return "invalid-table";
  if (!isRowName(key)) return "invalid-key";
  if (value.length > db.config.maxValueBytes) return "value-too-long";
  const stored = attachment.rows.get(table, key);
  const visible = db.visibleValue(stored) !== undefined;
  if (only === "create" && visible) return "row-exists";
  if (only === "update" && !visible) return "row-absent";
  if (stored === undefined && attachment.rows.size >= db.config.maxRowsPerNetwork) return "too-many-rows";
  write(db, attachment, table, key, copyBytes(value), false, now);
  return undefined;
}

/** Replaces a visible row by a tombstone; the reason when it cannot be. */
export function deleteRow(
  db: Database,
  { network, table, key }: Pick<RowWrite, "network" | "table" | "key">,
  now: Instant,
): RefusalReason | undefined {
  const attachment = db.attachments.joined(network);
  if (attachment === undefined) return "not-attached";
  const value = db.visibleValue(attachment.rows.get(table, key));
  if (value === undefined) return "row-absent";
  write(db, attachment, table, key, value, true, now);
  return undefined;
}

/** Stores a version of an own row and queues its event. */
export function issueRow(
  attachment: OwnAttachment,
  table: string,
  key: string,
  entry: Entry,
  now: Instant,
): void {
  const created = attachment.rows.get(table, key)?.deleted ?? true;
  attachment.rows.set(table, key, entry);
  const name = rowName(table, key);
  attachment.relayQueue.delete(name);
  attachment.ownQueue.queue(
    name,
    encodeNetworkDbMessage({
      type: "table-event",
      change: entry.deleted ? "delete" : created ? "create" : "update",
      time: entry.time,
      node: entry.owner,
      network: attachment.network,
      table,
      key,
      value: entry.value,
      residualReapSeconds: residualSeconds(entry, now),
    }),
  );
}

/** Queues a join or leave of ours. */
export function issueNetworkEvent(
  db: Database,
  network: NetworkId,
  change: "join" | "leave",
  time: number,
): void {
  db.broadcast(`network ${network} ${db.self}`, {
    type: "network-event",
    change,
    time,
    node: db.self,
    network,
  });
}

/** Queues a join or leave of this node in the cluster. */
export function issueNodeEvent(db: Database, change: "join" | "leave"): void {
  const time = db.networkClock.increment();
  db.broadcast(nodeEventName(db), { type: "node-event", change, time, node: db.self });
}

export function nodeEventName(db: Database): string {
  return `node ${db.self}`;
}

/** The name under which events of one row replace each other in a network's queues. */
export function rowName(table: string, key: string): string {
  return `${table}/${key}`;
}

export interface RowWrite {
  readonly network: NetworkId;
  readonly table: string;
  readonly key: string;
  readonly value: Uint8Array;
  readonly only?: "create" | "update";
}

function write(
  db: Database,
  attachment: OwnAttachment,
  table: string,
  key: string,
  value: Uint8Array,
  deleted: boolean,
  now: Instant,
): void {
  const stored = attachment.rows.get(table, key);
  const entry: Entry = {
    owner: db.self,
    // After a restart our clock may be behind the row our previous name left: the new version must beat it everywhere.
    time: db.tableClock.incrementPast(stored?.time ?? 0),
    value,
    deleted,
    changedAt: now,
    reapAt: deleted ? after(now, db.config.rowReapMs) : undefined,
  };
  const before = stored && { owner: stored.owner, value: db.visibleValue(stored) };
  issueRow(attachment, table, key, entry, now);
  reportChange(
    db,
    { network: attachment.network, table, key },
    before,
    deleted ? undefined : { owner: db.self, value },
  );
}
