import { unreachable } from "../base/assert.ts";
import type { NetworkId, NodeId } from "../base/id.ts";
import { ipv4ToNumber, type IpAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { earliest, type Instant } from "../base/time.ts";
import type { Network, NodeDefinition, Service } from "../wire/state/definition.ts";
import type { StateMessage } from "../wire/state/message.ts";
import type { Ring } from "../wire/state/ring.ts";
import type { SpaceSnapshot } from "../wire/state/snapshot.ts";
import { AddressBook } from "./address-book.ts";
import type { AddressSpace } from "./address-space.ts";
import { Allocator } from "./allocator.ts";
import type { StateConfig } from "./config.ts";
import type { Conflict } from "./conflicts.ts";
import { INGRESS } from "./ingress.ts";
import { IngressSeeding } from "./ingress-seeding.ts";
import type { Members } from "./members.ts";
import type { Outbox } from "./outbox.ts";
import type { Replication } from "./replication.ts";
import { Takeover } from "./takeover.ts";
import { allocationsOf, ringUse, type Allocation, type RingUse } from "./views.ts";

export interface AddressingOptions {
  readonly node: NodeId;
  readonly random: Random;
  readonly config: StateConfig;
  readonly members: Members;
  readonly outbox: Outbox;
  readonly replication: Replication;
  /** Every node that ever took part. */
  readonly nodes: () => readonly NodeDefinition[];
  readonly isRemoved: (node: NodeId) => boolean;
  readonly nameOf: (node: NodeId) => string;
  /** Why this node must not give addresses, if so. */
  readonly blocked: (now: Instant) => Conflict | undefined;
  /** Two may have one address now, or no longer. */
  readonly conflictsChanged: () => void;
  readonly count: (reason: string) => void;
}

type AddressMessage = Extract<
  StateMessage,
  { readonly type: "ask" | "grant" | "refusal" | "ring-query" | "ring-answer" }
>;

/** The addresses of all networks: who may give which, what this node gave, and how the others hear of it. */
export class Addressing {
  readonly spaces: ReadonlyMap<NetworkId, AddressSpace>;
  readonly allocator: Allocator;
  readonly #options: AddressingOptions;
  readonly #book: AddressBook;
  readonly #takeover: Takeover;
  readonly #seeding: IngressSeeding;
  /** Networks whose ring or allocations were changed by this input. */
  readonly #touched = new Set<NetworkId>();
  /** Networks with ranges that became ours: whoever waits for an address may get one. */
  readonly #inherited = new Set<NetworkId>();
  /** Nodes, members or rings changed: perhaps a removed node's ranges are ours. */
  #takeoverStale = true;

  constructor(options: AddressingOptions) {
    this.#options = options;
    const { node, random, config, members, outbox, nodes } = options;
    this.#book = new AddressBook(node);
    this.spaces = this.#book.spaces;
    this.allocator = new Allocator(
      {
        ...config,
        node,
        random,
        members,
        outbox,
        nameOf: options.nameOf,
        isRemoved: options.isRemoved,
        blocked: options.blocked,
        learn: (ring, at) => void this.learn(ring, at),
        changed: (network) => this.#touched.add(network),
      },
      this.spaces,
    );
    this.#takeover = new Takeover(
      { node, members, outbox, nodes, inherited: (network) => this.#inherited.add(network) },
      this.spaces,
    );
    this.#seeding = new IngressSeeding(
      { node, members, nodes, seedMs: config.seedMs, seeded: (at) => this.#ingressSeeded(at) },
      this.add(INGRESS),
    );
  }

  start(seed: boolean, unixSeconds: number, now: Instant): void {
    this.#seeding.start(seed, unixSeconds, now);
  }

  memberJoined(now: Instant): void {
    this.#seeding.memberJoined(now);
  }

  /** Nodes or members changed. */
  nodesChanged(): void {
    this.#takeoverStale = true;
  }

  wake(now: Instant): void {
    this.allocator.wake(now);
    this.#seeding.wake(now);
  }

  nextWakeup(): Instant | undefined {
    return earliest(this.allocator.nextWakeup(), this.#takeover.nextWakeup(), this.#seeding.nextWakeup());
  }

  receive(message: AddressMessage, now: Instant): void {
    switch (message.type) {
      case "ask":
        return this.allocator.onAsk(message, now);
      case "grant":
        return this.allocator.onGrant(message, now);
      case "refusal":
        return this.allocator.onRefusal(message, now);
      case "ring-query":
        return this.#takeover.onQuery(message);
      case "ring-answer":
        if (message.ring !== undefined) this.learn(message.ring, now);
        return this.#takeover.onAnswer(message, now);
      default:
        return unreachable(message);
    }
  }

  /** Whether it was news. Rings of networks we do not know come again with the next digest. */
  learn(ring: Ring, now: Instant): boolean {
    const { outbox, replication } = this.#options;
    const space = this.spaces.get(ring.network);
    if (space === undefined) return false;
    const learned = space.learn(ring);
    switch (learned) {
      case "misfit":
        this.#options.count("ring does not fit its network");
        return false;
      case "same":
        return false;
      case "replaced":
      case "merged":
        this.#options.conflictsChanged();
        this.#takeoverStale = true;
        outbox.saveLazily();
        replication.set(ringKey(ring.network), space.ring?.hash);
        outbox.add({ type: "ring-changed", network: ring.network });
        if (ring.network === INGRESS.id) this.#seeding.ringLearned();
        this.allocator.retry(ring.network, now);
        return true;
      default:
        return unreachable(learned);
    }
  }

  add(network: Network): AddressSpace {
    const space = this.#book.add(network);
    this.#replicate(space);
    return space;
  }

  remove(id: NetworkId): void {
    this.#book.remove(id);
    this.#options.replication.set(ringKey(id), undefined);
    this.allocator.abandon(id);
  }

  /** The service has these virtual IPs now; undefined: it is gone. */
  setService(id: string, service: Service | undefined): void {
    this.#book.setService(id, service);
  }

  release(network: NetworkId, address: IpAddr): void {
    if (this.spaces.get(network)?.release(ipv4ToNumber(address)) !== true) return;
    this.#touched.add(network);
    this.#options.outbox.saveFirst();
    this.#options.conflictsChanged();
  }

  releaseHolder(holderId: string): void {
    for (const network of this.#book.releaseHolder(holderId)) {
      this.#touched.add(network);
      this.#options.outbox.saveFirst();
    }
  }

  /** Takes over what removed nodes left, and serves those who waited for it. */
  takeOver(now: Instant): void {
    if (this.#takeoverStale || (this.#takeover.nextWakeup() ?? Infinity) <= now) {
      this.#takeoverStale = false;
      this.#takeover.step(now);
    }
    for (const network of this.#inherited) {
      this.#touched.add(network);
      this.allocator.retry(network, now);
    }
    this.#inherited.clear();
  }

  /** Lets the others know which rings changed here. */
  tell(now: Instant): void {
    const { outbox, replication } = this.#options;
    for (const network of this.#touched) {
      const ring = this.spaces.get(network)?.ring;
      const key = ringKey(network);
      if (ring === undefined || replication.hashOf(key) === ring.hash) continue;
      this.#options.conflictsChanged();
      replication.set(key, ring.hash);
      replication.spread(key, now);
      outbox.add({ type: "ring-changed", network });
    }
    this.#touched.clear();
  }

  /** The ring that replication knows by this key. */
  ringOfKey(key: string): Ring | undefined {
    return key.startsWith(RING_PREFIX)
      ? this.spaces.get(key.slice(RING_PREFIX.length) as NetworkId)?.ring?.ring
      : undefined;
  }

  conflicts(): Iterable<Conflict> {
    return this.#book.conflicts();
  }

  /** Undefined while no ring of the network is known; external networks have none. */
  use(id: NetworkId): RingUse | undefined {
    const { node, members, nameOf } = this.#options;
    const space = this.spaces.get(id);
    const isAlive = (other: NodeId): boolean => other === node || members.nameOf(other) !== undefined;
    return space && ringUse(space, node, nameOf, isAlive);
  }

  allocations(): Allocation[] {
    return [...this.spaces.values()].flatMap(allocationsOf);
  }

  snapshot(): SpaceSnapshot[] {
    return this.#book.snapshot();
  }

  /** After `add` of all networks. Virtual IPs of services that were never written are free again. */
  restore(snapshots: readonly SpaceSnapshot[], isService: (id: string) => boolean): void {
    this.#book.restore(snapshots, isService);
    for (const space of this.spaces.values()) this.#replicate(space);
  }

  #replicate({ network, ring }: AddressSpace): void {
    if (ring !== undefined) this.#options.replication.set(ringKey(network.id), ring.hash);
  }

  #ingressSeeded(now: Instant): void {
    this.#options.outbox.saveFirst();
    this.#touched.add(INGRESS.id);
    this.allocator.retry(INGRESS.id, now);
  }
}

const RING_PREFIX = "ring/";

/** What replication calls the ring of a network. */
export function ringKey(network: NetworkId): string {
  return `${RING_PREFIX}${network}`;
}
