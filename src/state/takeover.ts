import type { NetworkId, NodeId } from "../base/id.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import type { StateMessage } from "../wire/state/message.ts";
import type { AddressSpace } from "./address-space.ts";
import type { Members } from "./members.ts";
import type { Outbox } from "./outbox.ts";

export interface TakeoverOptions {
  readonly node: NodeId;
  readonly members: Members;
  readonly outbox: Outbox;
  /** Every node that ever took part, with whether it was removed since. */
  readonly nodes: () => Iterable<{ readonly id: NodeId; readonly removed: boolean }>;
  readonly inherited: (network: NetworkId) => void;
}

interface Round {
  readonly removed: ReadonlySet<NodeId>;
  readonly confirmed: Set<NodeId>;
  /** Nodes that told us they would inherit too, though we had not heard of them. */
  readonly rivals: Set<NodeId>;
  askAt: Instant;
}

const ASK_MS = 1000;

/**
 * Passes the ranges of removed nodes to their heirs (`AddressRing.inheritance`).
 *
 * A removed node may have given parts away, or made a service with a virtual IP, just before it died, and only
 * one other node knows. So the heir first asks every node that is not removed what it knows: addresses stay
 * unused while one of them is away, and are never given twice.
 */
export class Takeover {
  readonly #options: TakeoverOptions;
  readonly #spaces: ReadonlyMap<NetworkId, AddressSpace>;
  readonly #rounds = new Map<NetworkId, Round>();

  constructor(options: TakeoverOptions, spaces: ReadonlyMap<NetworkId, AddressSpace>) {
    this.#options = options;
    this.#spaces = spaces;
  }

  nextWakeup(): Instant | undefined {
    let next: Instant | undefined;
    for (const { askAt } of this.#rounds.values()) next = earliest(next, askAt);
    return next;
  }

  /** Starts, continues or ends rounds; call after changes of nodes, members or rings, and on wake. */
  step(now: Instant): void {
    const removed = new Set<NodeId>();
    const present: NodeId[] = [];
    for (const node of this.#options.nodes()) {
      if (node.removed) removed.add(node.id);
      else present.push(node.id);
    }
    if (removed.size === 0 || removed.has(this.#options.node)) return this.#rounds.clear();
    for (const id of this.#rounds.keys()) if (!this.#spaces.has(id)) this.#rounds.delete(id);
    for (const space of this.#spaces.values()) this.#stepNetwork(space, removed, present, now);
  }

  onQuery(message: StateMessage & { readonly type: "ring-query" }): void {
    const { outbox, node } = this.#options;
    const known = new Set<NodeId>();
    for (const { id, removed } of this.#options.nodes()) if (removed) known.add(id);
    // Who does not know of the removal yet might still take a range from the removed node: no answer, ask again.
    if (!message.removed.every((id) => known.has(id))) return;
    // Should we never have heard of the asker, it may count itself the heir as we do: ask it too.
    this.#rounds.get(message.network)?.rivals.add(message.sender);
    const space = this.#spaces.get(message.network);
    const ring = space?.ring?.ring;
    outbox.stream(message.sender, {
      type: "ring-answer",
      sender: node,
      network: message.network,
      vips: [...(space?.vips() ?? [])],
      ...(ring === undefined ? {} : { ring }),
    });
  }

  /** After the ring of the answer was learned. */
  onAnswer(message: StateMessage & { readonly type: "ring-answer" }, now: Instant): void {
    const space = this.#spaces.get(message.network);
    // A service we have not heard of is on its way with the next digests: ask again then.
    if (space === undefined || !message.vips.every((vip) => space.vipOwner(vip) !== undefined)) return;
    this.#rounds.get(message.network)?.confirmed.add(message.sender);
    this.step(now);
  }

  #stepNetwork(
    space: AddressSpace,
    removed: ReadonlySet<NodeId>,
    present: readonly NodeId[],
    now: Instant,
  ): void {
    const id = space.network.id;
    const starts = this.#inheritance(space, removed, present);
    if (starts.length === 0) {
      this.#rounds.delete(id);
      return;
    }
    let round = this.#rounds.get(id);
    if (round === undefined || ![...removed].every((node) => round?.removed.has(node))) {
      round = { removed, confirmed: new Set(), rivals: new Set(), askAt: now };
      this.#rounds.set(id, round);
    }
    const required = this.#required(space, removed, present, round.rivals);
    const missing = required.filter((node) => !round.confirmed.has(node));
    if (missing.length === 0) {
      this.#rounds.delete(id);
      space.inherit(starts);
      this.#options.outbox.saveFirst();
      this.#options.inherited(id);
    } else if (round.askAt <= now) {
      round.askAt = after(now, ASK_MS);
      for (const node of missing)
        this.#options.outbox.stream(node, {
          type: "ring-query",
          sender: this.#options.node,
          network: id,
          removed: [...removed],
        });
    }
  }

  #inheritance(space: AddressSpace, removed: ReadonlySet<NodeId>, present: readonly NodeId[]): number[] {
    const starts = space.inheritance(removed);
    const entries = space.ring?.ring.entries ?? [];
    if (starts.length > 0 || entries.some((entry) => !removed.has(entry.owner))) return starts;
    // No owner is left: everything goes to the smallest id of those who remain.
    const smallest = [this.#options.node, ...present].sort()[0];
    return smallest === this.#options.node ? entries.map((entry) => entry.start) : [];
  }

  #required(
    space: AddressSpace,
    removed: ReadonlySet<NodeId>,
    present: readonly NodeId[],
    rivals: ReadonlySet<NodeId>,
  ): NodeId[] {
    const owners = (space.ring?.ring.entries ?? []).map((entry) => entry.owner);
    const all = new Set([...present, ...owners, ...this.#options.members.ids(), ...rivals]);
    return [...all].filter((node) => node !== this.#options.node && !removed.has(node));
  }
}
