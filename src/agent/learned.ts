import type { NetworkId, NodeName } from "../base/id.ts";
import { after, type Instant } from "../base/time.ts";

export interface LearnedParts {
  readonly self: NodeName;
  readonly now: () => Instant;
  /** Those with an endpoint of ours. */
  readonly usedNetworks: () => ReadonlySet<NetworkId>;
  /** More may be taken away than before. */
  readonly onLearned: () => void;
}

/** After the first peer answered: bulk sync and definitions are exchanged well within it. */
const LEARNING_MS = 2_000;
/** How long a restarted agent keeps forwarding entries it cannot account for, waiting for its peers' tables. */
const PRUNE_HOLD_MS = 30_000;

/**
 * Whether we know what our peers know. Until then a restarted agent adds to what its former life left in the kernel,
 * and takes nothing away.
 */
export class Learned {
  readonly #parts: LearnedParts;
  readonly #startedAt: Instant;
  readonly #inSync = new Set<NetworkId>();
  /** When what the first other member can tell us is here; or our start, if there is nobody to ask. */
  #heardAt: Instant | undefined;

  constructor(parts: LearnedParts) {
    this.#parts = parts;
    this.#startedAt = parts.now();
  }

  /**
   * The first other member: what it knows comes within moments. A network counts as in sync also when there is
   * nobody to ask, so that alone proves nothing.
   */
  memberJoined(member: string): void {
    if (member === this.#parts.self || this.#heardAt !== undefined) return;
    this.#heardAt = after(this.#parts.now(), LEARNING_MS);
    setTimeout(this.#parts.onLearned, LEARNING_MS + 1).unref();
  }

  networkInSync(network: NetworkId): void {
    this.#inSync.add(network);
  }

  networkLeft(network: NetworkId): void {
    this.#inSync.delete(network);
  }

  /** Nothing can be learned any more: we are the first, or nobody answered for a long time. */
  stopWaiting(): void {
    this.#heardAt = this.#startedAt;
    this.#parts.onLearned();
  }

  /** Of all networks: whether rules and entries may be taken away. */
  everything(): boolean {
    return (
      [...this.#parts.usedNetworks()].every((network) => this.network(network)) &&
      (this.#heard() || this.#heldLongEnough())
    );
  }

  /** Of one network: whether links and forwarding entries of it may be taken away. */
  network(network: NetworkId): boolean {
    return (
      this.#heldLongEnough() ||
      (this.#heard() && (this.#inSync.has(network) || !this.#parts.usedNetworks().has(network)))
    );
  }

  #heard(): boolean {
    return this.#heardAt !== undefined && this.#parts.now() >= this.#heardAt;
  }

  #heldLongEnough(): boolean {
    return this.#parts.now() - this.#startedAt > PRUNE_HOLD_MS;
  }
}
