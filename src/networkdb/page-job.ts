import type { NetworkId, NodeName } from "../base/id.ts";
import type { Instant } from "../base/time.ts";
import { BulkSyncPayload, type NetworkDigest } from "../wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import type { TableEvent } from "../wire/networkdb/table-event.ts";
import type { Database } from "./database.ts";
import type { BucketSet } from "./digest.ts";
import { residualSeconds, type Entry } from "./entry.ts";

export interface PageJobOptions {
  /** A request is one page without rows. A push is like a reply, but nobody asked for it. */
  readonly kind: "request" | "reply" | "push";
  readonly peer: NodeName;
  readonly networks: readonly NetworkId[];
  /** Of networks named here only rows in these buckets. */
  readonly only?: ReadonlyMap<NetworkId, BucketSet>;
  /** Go with the first page. */
  readonly digests?: readonly NetworkDigest[];
  /** Payloads made already, shared by several jobs, in place of rows. */
  readonly pages?: readonly Uint8Array[];
}

/** What one peer still has to be sent, page by page, from tables that may change meanwhile. */
export class PageJob {
  readonly kind: PageJobOptions["kind"];
  readonly peer: NodeName;
  /** Time of the first page: an answer must be later. */
  openedAt: number | undefined;
  done = false;
  /** Still to be sent. */
  readonly #networks: NetworkId[];
  readonly #covered: NetworkId[];
  readonly #only: Map<NetworkId, BucketSet>;
  readonly #pages: Uint8Array[] | undefined;
  #digests: readonly NetworkDigest[];
  #rows: Iterator<TableEvent, void, undefined> | undefined;
  #ahead: TableEvent | undefined;
  /** When the page being made is sent; residual times count from here. */
  #now: Instant;

  constructor(options: PageJobOptions, now: Instant) {
    this.kind = options.kind;
    this.peer = options.peer;
    this.#networks = options.kind === "request" ? [] : [...options.networks];
    this.#covered = [...options.networks];
    this.#only = new Map(options.only);
    this.#digests = options.digests ?? [];
    this.#pages = options.pages && [...options.pages];
    this.#now = now;
  }

  /** A network asked for again is sent again, after those whose turn has yet to come. */
  addNetwork(network: NetworkId, only: BucketSet | undefined): void {
    if (only === undefined) this.#only.delete(network);
    else this.#only.set(network, only);
    if (!this.#networks.includes(network)) this.#networks.push(network);
    if (!this.#covered.includes(network)) this.#covered.push(network);
  }

  /** The next message; sets `done` with the last one. */
  nextPage(db: Database, now: Instant): Uint8Array {
    this.#now = now;
    const payload = this.#pages === undefined ? this.#nextRows(db) : this.#nextPrepared();
    const time = db.tableClock.increment();
    this.openedAt ??= time;
    const digests = this.#digests;
    this.#digests = [];
    return encodeNetworkDbMessage({
      type: "bulk-sync",
      time,
      unsolicited: this.kind === "request",
      node: db.self,
      networks: this.#covered,
      payload,
      // A push is never the end of an exchange the peer may be waiting for.
      page: this.done && this.kind !== "push" ? "last" : "more",
      digests,
    });
  }

  #nextPrepared(): Uint8Array {
    const page = this.#pages?.shift() ?? new BulkSyncPayload().finish();
    this.done = this.#pages?.length === 0;
    return page;
  }

  #nextRows(db: Database): Uint8Array {
    const payload = new BulkSyncPayload();
    this.#rows ??= this.#events(db);
    this.#ahead ??= this.#rows.next().value ?? undefined;
    while (this.#ahead !== undefined && payload.estimatedBytes < db.config.bulkSyncPageBytes) {
      payload.add(this.#ahead);
      this.#ahead = this.#rows.next().value ?? undefined;
    }
    this.done = this.#ahead === undefined;
    return payload.finish();
  }

  /** Rows of the networks still to be sent, as they are when their turn comes. */
  *#events(db: Database): Generator<TableEvent, void, undefined> {
    for (let network = this.#networks.shift(); network !== undefined; network = this.#networks.shift()) {
      const attachment = db.attachments.joined(network);
      const only = this.#only.get(network);
      if (attachment === undefined || only?.size === 0) continue;
      for (const [table, key, entry] of attachment.rows.all()) {
        if (attachment.leaving) break;
        if (only?.has(table, key) === false || !isShared(db, entry)) continue;
        yield toEvent(network, table, key, entry, this.#now);
      }
    }
  }
}

/** Whether peers can use the row: of a node replaced by another name they have no attachment to judge it by. */
export function isShared(db: Database, entry: Entry): boolean {
  return db.nodes.get(entry.owner)?.heir === undefined;
}

function toEvent(network: NetworkId, table: string, key: string, entry: Entry, now: Instant): TableEvent {
  return {
    type: "table-event",
    change: entry.deleted ? "delete" : "create",
    time: entry.time,
    node: entry.owner,
    network,
    table,
    key,
    value: entry.value,
    residualReapSeconds: residualSeconds(entry, now),
  };
}
