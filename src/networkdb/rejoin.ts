/** Finding lost nodes again: failed ones one by one, whole islands by the bootstrap list (networkdb.md §5.5, §5.6). */
import type { NodeName } from "../base/id.ts";
import { formatSocketAddr, type SocketAddr } from "../base/ip.ts";
import { pick } from "../base/random.ts";
import { after, type Instant } from "../base/time.ts";
import type { Database } from "./database.ts";

/** Between two tries for the same failed node: memberlist's TCP timeout, so that dials do not pile up. */
const RETRY_NODE_MS = 10_000;
const RETRY_BOOTSTRAP_MS = 1_000;

export class Rejoin {
  readonly #db: Database;
  #bootstrap: readonly SocketAddr[] = [];
  #effortUntil: Instant | undefined;
  /** When each failed node was last tried. Only names in the node list: bounded by it. */
  readonly #tried = new Map<NodeName, Instant>();

  constructor(db: Database) {
    this.#db = db;
  }

  /** An empty list is a mistake of the caller's source, not a wish to be alone: it replaces nothing. */
  setBootstrap(addresses: readonly SocketAddr[]): void {
    if (addresses.length > 0) this.#bootstrap = addresses;
  }

  /** Arms the reconnect timer while there is somebody to reconnect to. */
  arm(now: Instant): void {
    const { timers, nodes, config } = this.#db;
    if (timers.get("reconnect") !== undefined) return;
    if (nodes.inState("failed").length > 0) timers.set("reconnect", after(now, config.reconnectIntervalMs));
  }

  /** Asks memberlist to join one random failed node. */
  reconnect(now: Instant): void {
    const failed = this.#db.nodes.inState("failed");
    for (const [name, at] of this.#tried) {
      if (after(at, RETRY_NODE_MS) <= now) this.#tried.delete(name);
    }
    const node = pick(
      this.#db.random,
      failed.filter(({ name }) => !this.#tried.has(name)),
    );
    if (node === undefined) return;
    this.#tried.set(node.name, now);
    this.#db.count("reconnect-tried");
    this.#db.emit({ type: "join-member", address: node.address, reason: "reconnect" });
  }

  /** Whether a node that returned did so while we were trying to reach it. */
  tookEffort(name: NodeName): boolean {
    return this.#tried.delete(name);
  }

  /** Starts an effort when the bootstrap nodes are all gone: all managers may have restarted under new names. */
  checkBootstrap(now: Instant): void {
    if (this.#missing().length === 0) return;
    this.#effortUntil = after(now, this.#db.config.rejoinEffortMs);
    this.tryBootstrap(now);
  }

  /** One try for every bootstrap address; arms the next. */
  tryBootstrap(now: Instant): void {
    const missing = this.#missing();
    if (missing.length === 0 || this.#effortUntil === undefined || now > this.#effortUntil) {
      this.#effortUntil = undefined;
      return;
    }
    for (const address of missing) {
      this.#db.count("bootstrap-tried");
      this.#db.emit({ type: "join-member", address, reason: "bootstrap" });
    }
    this.#db.timers.set("rejoin-try", after(now, RETRY_BOOTSTRAP_MS));
  }

  /** The bootstrap addresses other than our own, if none of them is an active node; else none. */
  #missing(): readonly SocketAddr[] {
    const own = formatSocketAddr(this.#db.address);
    const others = this.#bootstrap.filter((address) => formatSocketAddr(address) !== own);
    const wanted = new Set(others.map(formatSocketAddr));
    for (const node of this.#db.nodes) {
      if (node.state === "active" && wanted.has(formatSocketAddr(node.address))) return [];
    }
    return others;
  }
}
