/** Tombstones, suspended rows, left attachments and departed nodes expire (networkdb.md §5.8, §10). */
import { after, type Instant } from "../base/time.ts";
import type { Database } from "./database.ts";
import { forgetNode } from "./membership.ts";

/** What would be below a second at the next round goes now: a tombstone with 0 s left means 30 min to old peers. */
const RESIDUAL_MARGIN_MS = 1_000;

/** Rows first, then attachments: an attachment outlives the rows that are judged by it. */
export function reapRowsAndAttachments(db: Database, now: Instant): void {
  const until = after(now, db.config.reapIntervalMs + RESIDUAL_MARGIN_MS);
  for (const { rows } of db.attachments.own.values()) db.count("rows-reaped", rows.reap(until));
  for (const attachment of db.attachments.own.values()) {
    if (attachment.leaving && attachment.reapAt !== undefined && attachment.reapAt <= now) {
      db.attachments.own.delete(attachment.network);
    }
  }
  for (const [node, network, attachment] of db.attachments.remotes()) {
    if (attachment.leaving && attachment.reapAt !== undefined && attachment.reapAt <= now) {
      db.attachments.deleteRemote(node, network);
    }
  }
  db.early.turn();
  db.reassertionsLeft = db.config.reassertionsPerInterval;
}

export function reapNodes(db: Database, now: Instant): void {
  for (const node of db.nodes) {
    if (node.state !== "active" && node.reapAt !== undefined && node.reapAt <= now) forgetNode(db, node);
  }
}
