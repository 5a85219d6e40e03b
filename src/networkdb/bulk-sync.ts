/**
 * Bulk sync: whole tables by stream (networkdb.md §8, §16), and less than whole ones among peers of our kind.
 *
 * A request of ours brings digests in place of rows. A peer of our kind replies with the rows of the buckets that
 * differ and with its own digests; when the reply is complete, our rows of what still differs are pushed. Two nodes that
 * agree exchange a few kilobytes, whatever they hold. A peer of Docker's skips the digests, replies with all it has, and
 * gets all we have pushed. Upstream puts its rows into the request instead; either way needs no answer to be merged.
 *
 * Replies and pushes are cut into pages, each of which says whether more follow. Upstream takes the first page for the
 * whole reply and applies the others as they come.
 */
import type { NetworkId, NodeName } from "../base/id.ts";
import { sample } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import {
  DIGEST_BUCKET_BYTES,
  type BulkSync as BulkSyncMessage,
  type NetworkDigest,
} from "../wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../wire/networkdb/message.ts";
import type { OwnAttachment } from "./attachment.ts";
import type { Database } from "./database.ts";
import { BucketSet, bucketCountFor, digestRows } from "./digest.ts";
import { isShared, PageJob, type PageJobOptions } from "./page-job.ts";

/** Peers waiting for pages. A job is a place in the tables, not the pages: the bound is for peers that lie. */
const MAX_JOBS = 1_024;
/** Requests waiting for an answer. */
const MAX_PENDING = 1_024;
/** Peers a burst is pushed to; beyond them relaying and periodic bulk sync do the rest. */
const BURST_FANOUT = 32;
/** Of all digests in one message. */
const MAX_DIGEST_BYTES = 128 * 1_024;

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
    const { timers, attachments, self } = this.#db;
    for (const { network, leaving, loaded, inSync, asked } of attachments.own.values()) {
      if (leaving || loaded) continue;
      const canAsk = attachments.participants(network).some((peer) => peer !== self && !asked.has(peer));
      if (inSync && !canAsk) continue;
      const at = earliest(timers.get("join-sync"), this.#mayAskAt(network, now));
      if (at !== undefined) timers.set("join-sync", at);
    }
  }

  /** When somebody may be asked about a network that heard from nobody yet; undefined while one answers. */
  #mayAskAt(network: NetworkId, now: Instant): Instant | undefined {
    const { joinSyncDelayMs, bulkSyncParallel, bulkSyncPatienceMs } = this.#db.config;
    const underway = this.#pending.filter(({ networks }) => networks.includes(network));
    if (underway.length >= bulkSyncParallel || underway.some(({ answering }) => answering)) return undefined;
    const soon = after(now, joinSyncDelayMs);
    const patient = underway.map(({ askedAt }) => after(askedAt, bulkSyncPatienceMs));
    return patient.reduce((latest, at) => (at > latest ? at : latest), soon);
  }

  /**
   * Asks a peer of every network that has heard from nobody yet, and another when it is slow to answer; the first answer
   * is enough. With nobody left to ask the network counts as in sync: what there is to know is known.
   */
  joinSync(now: Instant): void {
    const { config, attachments } = this.#db;
    const requests = new Map<NodeName, NetworkId[]>();
    for (const attachment of attachments.own.values()) {
      if (attachment.leaving || attachment.loaded) continue;
      const underway = this.#pending.filter(({ networks }) => networks.includes(attachment.network));
      const isEnough =
        underway.length >= config.bulkSyncParallel ||
        underway.some(({ answering, askedAt }) => answering || now - askedAt < config.bulkSyncPatienceMs);
      const peers = isEnough ? [] : this.#choosePeers(attachment, requests, 1);
      for (const peer of peers) {
        attachment.asked.add(peer);
        requests.set(peer, [...(requests.get(peer) ?? []), attachment.network]);
      }
      if (underway.length + peers.length === 0) this.#markInSync(attachment);
    }
    for (const [peer, networks] of requests) this.#request(peer, networks, now);
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
      this.#request(peer, networks, now, true);
    }
  }

  /** Exchanges everything with a node that returned. */
  withPeer(peer: NodeName, now: Instant): void {
    const networks = this.#common(peer);
    if (networks.length > 0) this.#request(peer, networks, now);
  }

  /** Answers and releases waiters; the rows of the message are applied already. */
  receive(message: BulkSyncMessage, now: Instant): void {
    const { node: peer, time, unsolicited, page } = message;
    // A request of Docker's holds all its rows, which is all one can wait for; one of ours holds none.
    const answers = !unsolicited || page === "whole";
    for (const pending of [...this.#pending]) {
      const { openedAt } = pending.job;
      if (!answers || pending.peer !== peer || openedAt === undefined || time <= openedAt) continue;
      if (message.digests.length > 0) pending.digests = message.digests;
      if (page === "more") {
        pending.answering = true;
        pending.deadline = after(now, this.#db.config.bulkSyncTimeoutMs);
      } else this.#succeed(pending, message, now);
    }
    if (unsolicited) this.#reply(message, now);
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
      this.#addJob({ kind: "push", peer, networks: [network], pages }, now);
    }
    this.sendPages(now);
  };

  /** Sends as many pages as the credit of this interval allows, to the waiting peers in turn. */
  sendPages(now: Instant): void {
    const { config, timers } = this.#db;
    if (this.#creditUntil === undefined || this.#creditUntil <= now) {
      this.#creditUntil = after(now, config.bulkSyncPageIntervalMs);
      this.#credit = config.bulkSyncBytesPerInterval;
    }
    while (this.#credit > 0) {
      const job = this.#jobs.shift();
      if (job === undefined) return;
      const node = this.#db.nodes.get(job.peer);
      // Left meanwhile. A failed one may have been declared so wrongly, and still gets its reply.
      if (node === undefined || node.state === "left") continue;
      const payload = job.nextPage(this.#db, now);
      this.#credit -= payload.length;
      this.#db.count("bulk-sync-pages");
      this.#db.emit({ type: "send-stream", to: job.peer, address: node.address, payload });
      if (!job.done) this.#jobs.push(job);
    }
    if (this.#jobs.length > 0) timers.set("bulk-sync-page", this.#creditUntil);
  }

  /** Opens an exchange about `networks`; with `retry` another peer is asked when this one fails. */
  #request(peer: NodeName, networks: readonly NetworkId[], now: Instant, retry = false): void {
    if (this.#pending.length >= MAX_PENDING) return this.#db.count("bulk-sync-jobs-full");
    const digests = this.#digestsOf(networks);
    const job = this.#addJob({ kind: "request", peer, networks, digests }, now);
    if (job === undefined) return;
    const deadline = after(now, this.#db.config.bulkSyncTimeoutMs);
    this.#pending.push({ peer, job, networks, retry, askedAt: now, answering: false, deadline, digests: [] });
    this.#armTimeout();
    this.sendPages(now);
  }

  /**
   * Replies to a request that came before memberlist reported its sender: a dockerd that restarts asks those it finds
   * within milliseconds. Unanswered it waits for half a minute, and the container it starts with it.
   */
  replyEarly(peer: NodeName, now: Instant): void {
    const networks = this.#db.early.takeRequest(peer);
    if (networks !== undefined) this.#reply({ node: peer, networks, digests: [] }, now);
  }

  #reply(request: Pick<BulkSyncMessage, "node" | "networks" | "digests">, now: Instant): void {
    const { node: peer } = request;
    if (this.#db.nodes.get(peer) === undefined) {
      this.#db.early.keepRequest(peer, request.networks);
      return this.#db.count("bulk-sync-unknown-sender");
    }
    const networks = request.networks.filter((network) => this.#db.attachments.joined(network) !== undefined);
    const { ours, differing } = this.#compare(request.digests);
    // However often a peer asks, it is served by one pass at a time.
    const running = this.#jobs.find((job) => job.kind === "reply" && job.peer === peer);
    if (running !== undefined) {
      for (const network of networks) running.addNetwork(network, differing.get(network));
    } else {
      this.#addJob({ kind: "reply", peer, networks, only: differing, digests: ours }, now);
    }
    this.sendPages(now);
  }

  #addJob(options: PageJobOptions, now: Instant): PageJob | undefined {
    if (this.#jobs.length >= MAX_JOBS) {
      this.#db.count("bulk-sync-jobs-full");
      return undefined;
    }
    const job = new PageJob(options, now);
    this.#jobs.push(job);
    return job;
  }

  #succeed(pending: Pending, answer: BulkSyncMessage, now: Instant): void {
    this.#db.count("bulk-sync-succeeded");
    this.#pending.splice(this.#pending.indexOf(pending), 1);
    for (const network of pending.networks) {
      const attachment = this.#db.attachments.joined(network);
      if (attachment === undefined) continue;
      attachment.loaded = true;
      this.#markInSync(attachment);
    }
    // Its own request, which happened to come first, is about to be replied to in full.
    if (answer.unsolicited) return;
    // The peer's rows are merged; what still differs is ours to tell.
    const { differing } = this.#compare(pending.digests);
    const networks = pending.networks.filter((network) =>
      answer.page === "whole" ? this.#hasRows(network) : (differing.get(network)?.size ?? 0) > 0,
    );
    if (networks.length === 0) return;
    this.#addJob({ kind: "push", peer: pending.peer, networks, only: differing }, now);
    this.sendPages(now);
  }

  #hasRows(network: NetworkId): boolean {
    return (this.#db.attachments.joined(network)?.rows.size ?? 0) > 0;
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
      if (other !== undefined) this.#request(other, this.#common(other), now);
    }
    this.joinSync(now);
  }

  #markInSync(attachment: OwnAttachment): void {
    if (attachment.inSync) return;
    attachment.inSync = true;
    this.#db.emit({ type: "network-in-sync", network: attachment.network });
  }

  #digestsOf(networks: readonly NetworkId[]): NetworkDigest[] {
    const limit = MAX_DIGEST_BYTES / DIGEST_BUCKET_BYTES / networks.length;
    return networks.flatMap((network) => {
      const attachment = this.#db.attachments.joined(network);
      if (attachment === undefined) return [];
      return [{ network, buckets: this.#digest(attachment, bucketCountFor(attachment.rows.size, limit)) }];
    });
  }

  /** Our digests in the peer's sizes, and the buckets of each network that are not the same. */
  #compare(digests: readonly NetworkDigest[]): {
    readonly ours: readonly NetworkDigest[];
    readonly differing: ReadonlyMap<NetworkId, BucketSet>;
  } {
    const ours: NetworkDigest[] = [];
    const differing = new Map<NetworkId, BucketSet>();
    for (const { network, buckets } of digests) {
      const attachment = this.#db.attachments.joined(network);
      if (attachment === undefined || differing.has(network)) continue;
      const own = this.#digest(attachment, buckets.length / DIGEST_BUCKET_BYTES);
      ours.push({ network, buckets: own });
      differing.set(network, new BucketSet(own, buckets));
    }
    return { ours, differing };
  }

  #digest({ rows }: OwnAttachment, bucketCount: number): Uint8Array {
    return digestRows(rows, bucketCount, (entry) => isShared(this.#db, entry));
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
  readonly askedAt: Instant;
  /** The first page is here. */
  answering: boolean;
  deadline: Instant;
  /** What the peer said it held when it replied. */
  digests: readonly NetworkDigest[];
}

/** Compounds of about `pageBytes`. */
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
