/**
 * Bulk sync: whole tables by stream, in pages (networkdb.md §8, §16).
 *
 * A request and a reply of upstream are one message each, however large. Here both are cut into pages: the first page
 * of a request asks (`unsolicited`), every other page is a push that needs no answer, and all but the last are marked
 * `partial`, so that a peer of our kind knows when it has everything. Upstream takes the first page for the reply and
 * applies the others as they come.
 */
import type { NetworkId, NodeName } from "../base/id.ts";
import { sample } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import { BulkSyncPayload, type BulkSync as BulkSyncMessage } from "../wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import type { TableEvent } from "../wire/networkdb/table-event.ts";
import type { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";
import { residualSeconds, type Entry } from "./entry.ts";

/** Pages waiting for all peers. A job is an iterator, not the pages, so this bounds little memory; it bounds lying peers. */
const MAX_JOBS = 1_024;
/** Requests waiting for an answer. */
const MAX_PENDING = 1_024;
/** Peers a burst is pushed to; beyond them relaying and periodic bulk sync do the rest. */
const BURST_FANOUT = 32;

export class BulkSync {
  readonly #db: Database;
  readonly #pending: Pending[] = [];
  readonly #jobs: PageJob[] = [];
  /** Bytes that may still be sent before `#creditUntil`. */
  #credit = 0;
  #creditUntil: Instant | undefined;

  constructor(db: Database) {
    this.#db = db;
  }

  /**
   * Arms the timer when a network that heard from nobody yet may ask somebody new. It waits a moment, so that networks
   * joined together share their requests.
   */
  arm(now: Instant): void {
    const { timers, config, attachments, self } = this.#db;
    if (timers.get("join-sync") !== undefined) return;
    for (const { network, leaving, loaded, inSync, asked } of attachments.own.values()) {
      if (leaving || loaded) continue;
      const canAsk = attachments.participants(network).some((peer) => peer !== self && !asked.has(peer));
      if (inSync && !canAsk) continue;
      timers.set("join-sync", after(now, config.gossipDelayMs));
      return;
    }
  }

  /**
   * Asks peers of every network that has heard from nobody yet, a few at once; the first answer is enough. With nobody
   * left to ask the network counts as in sync: what there is to know is known.
   */
  joinSync(now: Instant): void {
    const requests = new Map<NodeName, NetworkId[]>();
    for (const attachment of this.#db.attachments.own.values()) {
      if (attachment.leaving || attachment.loaded) continue;
      const underway = this.#pending.filter(({ networks }) => networks.includes(attachment.network)).length;
      for (const peer of this.#choosePeers(
        attachment,
        requests,
        this.#db.config.bulkSyncParallel - underway,
      )) {
        attachment.asked.add(peer);
        requests.set(peer, [...(requests.get(peer) ?? []), attachment.network]);
      }
      const asked = [...requests.values()].some((networks) => networks.includes(attachment.network));
      if (underway === 0 && !asked) this.#markInSync(attachment);
    }
    for (const [peer, networks] of requests) this.request(peer, networks, now);
  }

  /** One random peer for every attached network; networks an exchange covers anyway are not asked for again. */
  periodic(now: Instant): void {
    const covered = new Set<NetworkId>();
    for (const { network, leaving } of this.#db.attachments.own.values()) {
      if (leaving || covered.has(network)) continue;
      const peer = this.#db.samplePeers(network, 1)[0];
      if (peer === undefined) continue;
      const networks = this.#common(peer);
      for (const common of networks) covered.add(common);
      this.request(peer, networks, now, true);
    }
  }

  /** Exchanges everything with a node that returned. */
  withPeer(peer: NodeName, now: Instant): void {
    const networks = this.#common(peer);
    if (networks.length > 0) this.request(peer, networks, now);
  }

  /** Opens an exchange about `networks`; with `retry` another peer is asked when this one fails. */
  request(peer: NodeName, networks: readonly NetworkId[], now: Instant, retry = false): void {
    if (this.#pending.length >= MAX_PENDING) return this.#db.count("bulk-sync-jobs-full");
    const job = new PageJob("request", peer, networks, now);
    if (!this.#addJob(job)) return;
    // The time is that of the first page once it is sent; no answer can come before.
    this.#pending.push({
      peer,
      job,
      networks,
      retry,
      deadline: after(now, this.#db.config.bulkSyncTimeoutMs),
    });
    this.#armTimeout();
    this.#sendPages(now);
  }

  /** Answers and releases waiters; the rows of the message are applied already. */
  receive(message: BulkSyncMessage, now: Instant): void {
    const { node: peer, time } = message;
    for (const pending of [...this.#pending]) {
      if (pending.peer !== peer || pending.job.openedAt === undefined || time <= pending.job.openedAt)
        continue;
      if (message.partial) pending.deadline = after(now, this.#db.config.bulkSyncTimeoutMs);
      else this.#succeed(pending);
    }
    if (message.unsolicited) this.#reply(peer, message.networks, now);
    this.joinSync(now);
  }

  /** Nothing more will come from this peer, and nothing reaches it. */
  peerFailed(peer: NodeName, now: Instant): void {
    for (let i = this.#jobs.length - 1; i >= 0; i--)
      if (this.#jobs[i]?.peer === peer) this.#jobs.splice(i, 1);
    this.#fail((pending) => pending.peer === peer, now);
  }

  expire(now: Instant): void {
    this.#fail((pending) => pending.deadline <= now, now);
    this.#armTimeout();
  }

  /** Sends encoded table events to the participants as pages that need no request. */
  readonly push = (network: NetworkId, events: readonly Uint8Array[], now: Instant): void => {
    this.#db.count("burst-pushed", events.length);
    const pages = pagesOf(events, this.#db.config.bulkSyncPageBytes);
    for (const peer of this.#db.samplePeers(network, BURST_FANOUT)) {
      this.#addJob(new PageJob("push", peer, [network], now, pages));
    }
    this.#sendPages(now);
  };

  /** Sends as many pages as the credit of this interval allows, to the waiting peers in turn. */
  pageTimer(now: Instant): void {
    this.#sendPages(now);
  }

  get waiting(): number {
    return this.#pending.length;
  }

  #reply(peer: NodeName, networks: readonly NetworkId[], now: Instant): void {
    if (this.#db.nodes.get(peer) === undefined) return this.#db.count("bulk-sync-unknown-sender");
    const ours = networks.filter((network) => this.#db.attachments.joined(network) !== undefined);
    const running = this.#jobs.find((job) => job.kind === "reply" && job.peer === peer);
    // However often a peer asks, it is served by one pass at a time.
    if (running !== undefined) for (const network of ours) running.addNetwork(network);
    else if (!this.#addJob(new PageJob("reply", peer, ours, now))) return;
    this.#sendPages(now);
  }

  #addJob(job: PageJob): boolean {
    if (this.#jobs.length >= MAX_JOBS) {
      this.#db.count("bulk-sync-jobs-full");
      return false;
    }
    this.#jobs.push(job);
    return true;
  }

  #sendPages(now: Instant): void {
    const { config, timers } = this.#db;
    if (this.#creditUntil === undefined || this.#creditUntil <= now) {
      this.#creditUntil = after(now, config.bulkSyncPageIntervalMs);
      this.#credit = config.bulkSyncBytesPerInterval;
    }
    while (this.#credit > 0) {
      const job = this.#jobs.shift();
      if (job === undefined) return;
      const node = this.#db.nodes.get(job.peer);
      // Gone or left meanwhile; a failed one may have been declared so wrongly and still get its reply.
      if (node === undefined || node.state === "left") continue;
      const payload = job.nextPage(this.#db, now);
      this.#credit -= payload.length;
      this.#db.count("bulk-sync-pages");
      this.#db.emit({ type: "send-stream", to: job.peer, address: node.address, payload });
      if (!job.done) this.#jobs.push(job);
    }
    if (this.#jobs.length > 0) timers.set("bulk-sync-page", this.#creditUntil);
  }

  #succeed(pending: Pending): void {
    this.#db.count("bulk-sync-succeeded");
    this.#pending.splice(this.#pending.indexOf(pending), 1);
    for (const network of pending.networks) {
      const attachment = this.#db.attachments.joined(network);
      if (attachment === undefined) continue;
      attachment.loaded = true;
      this.#markInSync(attachment);
    }
  }

  #fail(which: (pending: Pending) => boolean, now: Instant): void {
    const failed = this.#pending.filter(which);
    if (failed.length === 0) return;
    for (const pending of failed) {
      this.#db.count("bulk-sync-failed");
      this.#pending.splice(this.#pending.indexOf(pending), 1);
      const network = pending.networks[0];
      if (!pending.retry || network === undefined) continue;
      const other = this.#db.samplePeers(network, 2).find((peer) => peer !== pending.peer);
      if (other !== undefined) this.request(other, this.#common(other), now);
    }
    this.joinSync(now);
  }

  #markInSync(attachment: OwnAttachment): void {
    if (attachment.inSync) return;
    attachment.inSync = true;
    this.#db.emit({ type: "network-in-sync", network: attachment.network });
  }

  /** Networks both this node and the peer are on. */
  #common(peer: NodeName): NetworkId[] {
    const networks: NetworkId[] = [];
    for (const [network, { leaving }] of this.#db.attachments.remotesOf(peer)) {
      if (!leaving && this.#db.attachments.joined(network) !== undefined) networks.push(network);
    }
    return networks;
  }

  /** Peers not asked before, those asked anyway in this round first. */
  #choosePeers(
    { network, asked }: OwnAttachment,
    chosen: ReadonlyMap<NodeName, unknown>,
    count: number,
  ): NodeName[] {
    if (count <= 0) return [];
    const candidates = this.#db.attachments
      .participants(network)
      .filter((peer) => peer !== this.#db.self && !asked.has(peer));
    const shared = candidates.filter((peer) => chosen.has(peer));
    const others = candidates.filter((peer) => !chosen.has(peer));
    return [...shared, ...sample(this.#db.random, others, count)].slice(0, count);
  }

  #armTimeout(): void {
    const next = earliest(...this.#pending.map(({ deadline }) => deadline));
    if (next !== undefined) this.#db.timers.set("bulk-sync-timeout", next);
  }
}

interface Pending {
  readonly peer: NodeName;
  readonly job: PageJob;
  readonly networks: readonly NetworkId[];
  readonly retry: boolean;
  deadline: Instant;
}

/** What one peer still has to be sent. */
class PageJob {
  readonly kind: "request" | "reply" | "push";
  readonly peer: NodeName;
  /** Time of the first page: an answer must be later. */
  openedAt: number | undefined;
  done = false;
  /** Still to be sent. */
  readonly #networks: NetworkId[];
  readonly #covered: NetworkId[];
  /** Of a push: payloads made already, shared by all its peers. */
  readonly #pages: Uint8Array[] | undefined;
  #rows: Iterator<TableEvent, void, undefined> | undefined;
  #ahead: TableEvent | undefined;
  /** When the page being made is sent; residual times count from here. */
  #now: Instant;

  constructor(
    kind: PageJob["kind"],
    peer: NodeName,
    networks: readonly NetworkId[],
    now: Instant,
    pages?: readonly Uint8Array[],
  ) {
    this.kind = kind;
    this.peer = peer;
    this.#networks = [...networks];
    this.#covered = [...networks];
    this.#now = now;
    this.#pages = pages && [...pages];
  }

  /** A network asked for again is sent again, unless its turn has yet to come. */
  addNetwork(network: NetworkId): void {
    if (!this.#networks.includes(network)) this.#networks.push(network);
    if (!this.#covered.includes(network)) this.#covered.push(network);
  }

  /** The next message; sets `done` with the last one. */
  nextPage(db: Database, now: Instant): Uint8Array {
    this.#now = now;
    const body = this.#pages === undefined ? this.#nextRows(db) : this.#nextPrepared();
    const time = db.tableClock.increment();
    const opens = this.kind === "request" && this.openedAt === undefined;
    if (this.openedAt === undefined) this.openedAt = time;
    return encodeNetworkDbMessage({
      type: "bulk-sync",
      time,
      unsolicited: opens,
      node: db.self,
      networks: this.#covered,
      payload: body,
      // A push is never the end of an exchange the peer may be waiting for.
      partial: !this.done || this.kind === "push",
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

  /** Rows of the networks still to be sent, as they are when their turn comes; the tables may change meanwhile. */
  *#events(db: Database): Generator<TableEvent, void, undefined> {
    for (let network = this.#networks.shift(); network !== undefined; network = this.#networks.shift()) {
      const attachment = db.attachments.joined(network);
      if (attachment === undefined) continue;
      for (const [table, key, entry] of attachment.rows.all()) {
        if (attachment.leaving) break;
        // The old name of a restarted node has left: peers have no attachment to judge its rows by.
        if (db.rowState(entry) !== "inherited") yield toEvent(network, table, key, entry, this.#now);
      }
    }
  }
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

/** Compounds of at most about `pageBytes`. */
function pagesOf(events: readonly Uint8Array[], pageBytes: number): Uint8Array[] {
  const pages: Uint8Array[] = [];
  let parts: Uint8Array[] = [];
  let bytes = 0;
  for (const event of events) {
    parts.push(event);
    bytes += event.length + 8;
    if (bytes < pageBytes) continue;
    pages.push(encodeNetworkDbMessage({ type: "compound", parts }));
    parts = [];
    bytes = 0;
  }
  if (parts.length > 0) pages.push(encodeNetworkDbMessage({ type: "compound", parts }));
  return pages;
}
