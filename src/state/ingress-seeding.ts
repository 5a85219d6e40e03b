import type { NodeId } from "../base/id.ts";
import { after, elapsed, type Instant } from "../base/time.ts";
import { MAX_RING_SEEDS } from "../wire/state/definition.ts";
import { seedRing } from "./address-ring.ts";
import type { AddressSpace } from "./address-space.ts";
import { INGRESS } from "./ingress.ts";
import type { Members } from "./members.ts";

export interface IngressSeedingOptions {
  readonly node: NodeId;
  readonly members: Members;
  /** How long a node that joined waits for somebody's ring. */
  readonly seedMs: number;
  /** Every node that ever took part, with whether it was removed since. */
  readonly nodes: () => Iterable<{ readonly id: NodeId; readonly removed: boolean }>;
  readonly seeded: (now: Instant) => void;
}

const RETRY_MS = 1000;

/** Who makes the address ring of `ingress`, the network that nobody creates. */
export class IngressSeeding {
  readonly #options: IngressSeedingOptions;
  readonly #space: AddressSpace;
  #started: { readonly at: Instant; readonly unixSeconds: number } | undefined;
  #seedAt: Instant | undefined;

  constructor(options: IngressSeedingOptions, space: AddressSpace) {
    this.#options = options;
    this.#space = space;
  }

  /** `seed`: this node is the first of its cluster. */
  start(seed: boolean, unixSeconds: number, now: Instant): void {
    this.#started = { at: now, unixSeconds };
    if (seed) this.#seed([this.#options.node], now);
  }

  memberJoined(now: Instant): void {
    if (this.#space.ring === undefined) this.#seedAt ??= after(now, this.#options.seedMs);
  }

  /** There is one. */
  ringLearned(): void {
    this.#seedAt = undefined;
  }

  nextWakeup(): Instant | undefined {
    return this.#seedAt;
  }

  /**
   * Among members without a ring the smallest node id seeds one, but only when every node it ever heard of is
   * there: an absent one may know a ring. Should two clusters that never met do it, the older ring wins.
   */
  wake(now: Instant): void {
    if (this.#seedAt === undefined || this.#seedAt > now) return;
    const { node, members, nodes } = this.#options;
    const others = members.ids();
    this.#seedAt = undefined;
    if (this.#space.ring !== undefined || others.length === 0) return;
    const allThere = [...nodes()].every(({ id, removed }) => removed || id === node || others.includes(id));
    if (allThere && others.every((id) => node < id)) this.#seed([node, ...others], now);
    else this.#seedAt = after(now, RETRY_MS);
  }

  #seed(seeds: readonly NodeId[], now: Instant): void {
    const started = this.#started;
    if (this.#space.ring !== undefined || started === undefined) return;
    const seeded = Math.floor(started.unixSeconds + elapsed(started.at, now) / 1000);
    const origin = { seeded, seeder: this.#options.node };
    this.#space.learn(seedRing(INGRESS.id, this.#space.range, seeds.slice(0, MAX_RING_SEEDS), origin));
    this.#seedAt = undefined;
    this.#options.seeded(now);
  }
}
