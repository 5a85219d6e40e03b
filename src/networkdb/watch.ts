import { bytesEqual } from "../base/bytes.ts";
import type { NetworkId, NodeName } from "../base/id.ts";
import type { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";
import type { RowChange } from "./effect.ts";

/** Which rows a watcher wants; absent = any. */
export interface RowFilter {
  readonly network?: NetworkId;
  readonly table?: string;
}

export function matches(
  filter: RowFilter,
  row: { readonly network: NetworkId; readonly table: string },
): boolean {
  return (
    (filter.network === undefined || filter.network === row.network) &&
    (filter.table === undefined || filter.table === row.table)
  );
}

/** Reports what readers see change; the same value of the same owner is no change. */
export function reportChange(
  db: Database,
  row: { readonly network: NetworkId; readonly table: string; readonly key: string },
  before: { readonly owner: NodeName; readonly value: Uint8Array | undefined } | undefined,
  after: { readonly owner: NodeName; readonly value: Uint8Array | undefined } | undefined,
): void {
  const previous = before?.value;
  const current = after?.value;
  if (previous === undefined && current === undefined) return;
  if (previous !== undefined && current !== undefined && before?.owner === after?.owner) {
    if (bytesEqual(previous, current)) return;
  }
  const owner = (current === undefined ? before : after)?.owner;
  if (owner === undefined) return;
  const { network, table, key } = row;
  db.emit({ type: "row-changed", network, table, key, owner, previous, current });
}

/** Creates for all visible rows: what a watcher that starts now missed. The stream of `row-changed` continues it. */
export function snapshot(db: Database, filter: RowFilter): RowChange[] {
  const changes: RowChange[] = [];
  for (const attachment of db.attachments.own.values()) {
    if (filter.network === undefined || filter.network === attachment.network) {
      collect(db, attachment, filter, changes);
    }
  }
  return changes;
}

function collect(db: Database, { network, rows }: OwnAttachment, filter: RowFilter, into: RowChange[]): void {
  rows.forEach((table, key, entry) => {
    const current = db.visibleValue(entry);
    if (current === undefined || !matches(filter, { network, table })) return;
    into.push({
      type: "row-changed",
      network,
      table,
      key,
      owner: entry.owner,
      previous: undefined,
      current,
    });
  });
}
