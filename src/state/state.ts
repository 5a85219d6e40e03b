import { unreachable } from "../base/assert.ts";
import { DecodeError } from "../base/error.ts";
import type { NetworkId, NodeId, NodeName, ServiceId } from "../base/id.ts";
import { ipv4ToNumber, type IpAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { after, earliest, elapsed, type Instant } from "../base/time.ts";
import { MAX_RING_SEEDS, type Network, type NodeDefinition, type Service } from "../wire/state/definition.ts";
import type { Entry } from "../wire/state/entry.ts";
import { decodeStateMessage, type StateMessage } from "../wire/state/message.ts";
import type { Ring } from "../wire/state/ring.ts";
import { decodeSnapshot, encodeSnapshot, type Snapshot } from "../wire/state/snapshot.ts";
import { hashRing, seedRing } from "./address-ring.ts";
import { AddressBook } from "./address-book.ts";
import type { AddressSpace } from "./address-space.ts";
import { Allocator } from "./allocator.ts";
import { DEFAULT_CONFIG, type StateConfig } from "./config.ts";
import { ConflictWatch } from "./conflict-watch.ts";
import { compareClaims, definitionConflicts, type Conflict } from "./conflicts.ts";
import { Definitions, entryKey, hashEntry, type DefinitionChange } from "./definitions.ts";
import type { StateEffect, StateInput } from "./effect.ts";
import { findNamed, printable } from "./find.ts";
import { INGRESS } from "./ingress.ts";
import { Members } from "./members.ts";
import { Outbox } from "./outbox.ts";
import { FORWARD_LIMIT, Replication, type Item } from "./replication.ts";
import { Requests } from "./requests.ts";
import { vipHolder } from "./service-jobs.ts";
import { Takeover } from "./takeover.ts";
import {
  allocationsOf,
  networkViews,
  ringUse,
  serviceViews,
  type Allocation,
  type NetworkView,
  type RingUse,
  type ServiceView,
} from "./views.ts";

export type { Allocation, NetworkView, RingUse, ServiceView } from "./views.ts";

export interface StateOptions {
  /** Outlives restarts; owns this node's address ranges. */
  readonly node: NodeId;
  readonly random: Random;
  /** This start's name among the members, so that it is not taken for another one. */
  readonly memberName: NodeName;
  /** What `snapshot()` returned before the restart. */
  readonly snapshot?: Uint8Array;
  readonly config?: Partial<StateConfig>;
}

const EXPIRE_MS = 3600_000;
const SEED_RETRY_MS = 1000;

/**
 * The definitions of the cluster and the addresses of its networks. Owns no file, socket or timer: the caller
 * feeds inputs, performs effects in order and saves `snapshot()` when told to.
 */
export class State {
  readonly #node: NodeId;
  readonly #memberName: NodeName;
  readonly #config: StateConfig;
  readonly #definitions = new Definitions();
  /** Networks that only this node knows, by id. */
  readonly #externals = new Map<NetworkId, Network>();
  readonly #book: AddressBook;
  readonly #spaces: ReadonlyMap<NetworkId, AddressSpace>;
  readonly #members: Members;
  readonly #outbox: Outbox;
  readonly #replication: Replication;
  readonly #allocator: Allocator;
  readonly #takeover: Takeover;
  readonly #counters = new Map<string, number>();
  readonly #requests: Requests;
  /** Networks whose ring or allocations were changed by this input. */
  readonly #touched = new Set<NetworkId>();
  /** Networks with ranges that became ours: whoever waits for an address may get one. */
  readonly #inherited = new Set<NetworkId>();
  #started: { readonly at: Instant; readonly unixSeconds: number } | undefined;
  #seedAt: Instant | undefined;
  #expireAt: Instant;
  readonly #watch = new ConflictWatch();
  /** Of definitions alone; undefined: to be found again. */
  #definitionConflicts: readonly Conflict[] | undefined;
  #networkViews: readonly NetworkView[] | undefined;
  #serviceViews: readonly ServiceView[] | undefined;
  #conflictsStale = true;
  /** Nodes, members or rings changed: perhaps a removed node's ranges are ours. */
  #takeoverStale = true;
  /** In claim order; undefined: to be collected again. */
  #networkList: readonly Network[] | undefined;
  #serviceList: readonly Service[] | undefined;

  /** @throws DecodeError when the snapshot is damaged or of another node */
  constructor(options: StateOptions, now: Instant) {
    const config = { ...DEFAULT_CONFIG, ...options.config };
    const { node, random } = options;
    this.#node = node;
    this.#memberName = options.memberName;
    this.#config = config;
    this.#expireAt = after(now, EXPIRE_MS);
    this.#book = new AddressBook(node);
    this.#spaces = this.#book.spaces;
    const members = (this.#members = new Members(node));
    const outbox = (this.#outbox = new Outbox(members));
    this.#replication = new Replication({
      ...config,
      node,
      random,
      members,
      outbox,
      item: (key, at) => this.#item(key, at),
    });
    this.#allocator = new Allocator(
      {
        ...config,
        node,
        random,
        members,
        outbox,
        nameOf: (id) => this.#nameOf(id),
        isRemoved: (id) => this.#definitions.node(id)?.removed ?? false,
        blocked: (at) => this.#blocked(at),
        learn: (ring, at) => void this.#learnRing(ring, at),
        changed: (network) => this.#touched.add(network),
      },
      this.#spaces,
    );
    this.#takeover = new Takeover(
      {
        node,
        members,
        outbox,
        nodes: () => this.nodes(),
        inherited: (network) => this.#inherited.add(network),
      },
      this.#spaces,
    );
    this.#requests = new Requests({
      node,
      random,
      members,
      outbox,
      allocator: this.#allocator,
      definitions: this.#definitions,
      spaces: this.#spaces,
      networks: () => this.#networks(),
      services: () => this.#services(),
      findNetwork: (reference) => this.findNetwork(reference),
      findService: (reference) => this.findService(reference),
      findNode: (reference) => this.findNode(reference),
      write: (entry, at) => this.#write(entry, at),
      addExternal: (network, at) => this.#addExternal(network, at),
      removeExternal: (id, at) => this.#removeExternal(id, at),
      release: (network, address) => this.#release(network, address),
      releaseHolder: (holderId) => this.#releaseHolder(holderId),
    });
    this.#addSpace(INGRESS);
    if (options.snapshot !== undefined) this.#restore(decodeSnapshot(options.snapshot), now);
  }

  handle(input: StateInput, now: Instant): StateEffect[] {
    this.#dispatch(input, now);
    this.#settle(now);
    return this.#outbox.take();
  }

  /** When to call `handle({ type: "wake" })` next; undefined when idle. */
  nextWakeup(): Instant | undefined {
    const twinSeen = this.conflicts().some(({ type }) => type === "node-twin" || type === "node-removed");
    return earliest(
      this.#allocator.nextWakeup(),
      this.#takeover.nextWakeup(),
      this.#replication.nextWakeup(),
      this.#seedAt,
      this.#expireAt,
      twinSeen ? undefined : this.#members.twinAt(),
      this.#watch.nextWakeup(),
    );
  }

  /** Everything, for a peer met by a join; undefined when it is too much for that. */
  greeting(now: Instant): Uint8Array | undefined {
    return this.#replication.greeting(now);
  }

  /** Everything that must survive a restart. */
  snapshot(now: Instant): Uint8Array {
    return encodeSnapshot({
      node: this.#node,
      clock: this.#definitions.clock,
      entries: [...this.#definitions.entries(now)].map(([, entry]) => entry),
      externals: [...this.#externals.values()],
      spaces: this.#book.snapshot(),
    });
  }

  /** In claim order: of two with one name the owner of the name comes first; `ingress` is the first of all. */
  networks(): readonly NetworkView[] {
    return (this.#networkViews ??= networkViews(this.#networks(), this.conflicts()));
  }

  network(id: NetworkId): NetworkView | undefined {
    return this.networks().find((network) => network.id === id);
  }

  /** By name, id or unique id prefix. @throws NetError `network-unknown`, `network-ambiguous` */
  findNetwork(reference: string): NetworkView {
    return findNamed("network", reference, this.networks());
  }

  /** In claim order. */
  services(): readonly ServiceView[] {
    return (this.#serviceViews ??= serviceViews(this.#services(), this.conflicts()));
  }

  /** By name, id or unique id prefix. @throws NetError `service-unknown`, `service-ambiguous` */
  findService(reference: string): ServiceView {
    return findNamed("service", reference, this.services());
  }

  /** Every node that ever took part, removed ones last. */
  nodes(): NodeDefinition[] {
    const nodes: NodeDefinition[] = [];
    for (const definition of this.#definitions.all())
      if (definition.kind === "node") nodes.push(definition.value);
    return nodes.sort((a, b) => Number(a.removed) - Number(b.removed) || (a.id < b.id ? -1 : 1));
  }

  /** By shown name, id or unique id prefix. @throws NetError `node-unknown`, `node-ambiguous` */
  findNode(reference: string): NodeDefinition {
    return findNamed("node", reference, this.nodes());
  }

  /** `active` for a node nobody has said anything about. */
  availability(id: NodeId): "active" | "drain" {
    return this.#definitions.node(id)?.availability ?? "active";
  }

  /** What cannot be had twice but was made twice, in a fixed order; up to date after every `handle`. */
  conflicts(): readonly Conflict[] {
    return this.#watch.conflicts;
  }

  /** Undefined while no ring of the network is known; external networks have none. */
  ringUse(id: NetworkId): RingUse | undefined {
    const space = this.#spaces.get(id);
    const isAlive = (node: NodeId): boolean =>
      node === this.#node || this.#members.nameOf(node) !== undefined;
    return space && ringUse(space, this.#node, (node) => this.#nameOf(node), isAlive);
  }

  /** What this node has given away, VIPs included; after a restart the agent releases what nobody has any more. */
  allocations(): Allocation[] {
    return [...this.#spaces.values()].flatMap(allocationsOf);
  }

  /** What was dropped, by reason. */
  counters(): ReadonlyMap<string, number> {
    return this.#counters;
  }

  #dispatch(input: StateInput, now: Instant): void {
    switch (input.type) {
      case "start":
        return this.#start(input.name, input.seed, input.unixSeconds, now);
      case "member-joined":
        return this.#memberJoined(input, now);
      case "member-left": {
        if (this.#members.twinAt() !== undefined) this.#conflictsStale = true;
        const gone = this.#members.leave(input.name);
        if (gone !== undefined) this.#allocator.unreachable(gone, now);
        return;
      }
      case "user-message":
        return this.#receive(input.bytes, now);
      case "greeting":
        return this.#greeting(input.bytes, input.passOn, now);
      case "greeted":
        return this.#replication.greeted(input.name);
      case "stream-failed": {
        const id = this.#members.idOf(input.to);
        if (id !== undefined) this.#allocator.unreachable(id, now);
        return;
      }
      case "wake":
        return this.#wake(now);
      case "create-network":
      case "remove-network":
      case "create-service":
      case "update-service":
      case "remove-service":
      case "update-node":
      case "remove-node":
      case "allocate":
      case "release":
        return this.#requests.handle(input, now);
      default:
        return unreachable(input);
    }
  }

  #start(name: string, seed: boolean, unixSeconds: number, now: Instant): void {
    this.#started = { at: now, unixSeconds };
    const known = this.#definitions.node(this.#node);
    if (known?.removed !== true && known?.name !== name) {
      const availability = known?.availability ?? "active";
      const value: NodeDefinition = { id: this.#node, name: printable(name), availability, removed: false };
      this.#write(this.#definitions.write({ kind: "node", value }, this.#node, now), now);
    }
    if (seed) this.#seedIngress([this.#node], now);
  }

  #memberJoined(
    { name, id, shown, compare = false }: StateInput & { readonly type: "member-joined" },
    now: Instant,
  ): void {
    if (name === this.#memberName) return;
    const isNew = this.#members.nameOf(id) !== name;
    this.#members.join(name, id, printable(shown), now);
    this.#takeoverStale = true;
    if (id === this.#node || !isNew) return;
    if (this.#spaces.get(INGRESS.id)?.ring === undefined) this.#seedAt ??= after(now, this.#config.seedMs);
    this.#replication.joined(id, compare);
  }

  #wake(now: Instant): void {
    this.#allocator.wake(now);
    if (this.#seedAt !== undefined && this.#seedAt <= now) this.#seedAmongMembers(now);
    if (this.#expireAt <= now) {
      this.#expireAt = after(now, EXPIRE_MS);
      const expired = this.#definitions.expire(now);
      for (const key of expired) this.#replication.set(key, undefined);
      if (expired.length > 0) this.#outbox.saveLazily();
    }
    if ((this.#members.twinAt() ?? Infinity) <= now) this.#conflictsStale = true;
  }

  /** What follows from any input: answers, takeovers, reports, gossip. */
  #settle(now: Instant): void {
    if (this.#takeoverStale || (this.#takeover.nextWakeup() ?? Infinity) <= now) {
      this.#takeoverStale = false;
      this.#takeover.step(now);
    }
    for (const network of this.#inherited) {
      this.#touched.add(network);
      this.#allocator.retry(network, now);
    }
    this.#inherited.clear();
    // A settled want may start others, which may settle at once: virtual IPs one by one, so this ends.
    for (;;) {
      const settled = this.#allocator.takeSettled();
      if (settled.length === 0) break;
      for (const outcome of settled) this.#requests.settled(outcome, now);
    }
    for (const network of this.#touched) this.#ringTouched(network, now);
    this.#touched.clear();
    if (this.#conflictsStale) this.#findConflicts(now);
    for (const conflict of this.#watch.takeDue(now)) this.#outbox.add({ type: "conflict", conflict });
    this.#replication.step(now);
  }

  // Messages

  #greeting(bytes: Uint8Array, passOn: boolean, now: Instant): void {
    try {
      const message = decodeStateMessage(bytes);
      if (message.type !== "update") return this.#count("unexpected greeting");
      this.#merge(message.entries, message.rings, passOn ? "after-join" : "no", now);
      if (!passOn) this.#replication.settle();
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.#count("damaged message");
    }
  }

  #receive(bytes: Uint8Array, now: Instant): void {
    let message: StateMessage;
    try {
      message = decodeStateMessage(bytes);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      return this.#count("damaged message");
    }
    if ("sender" in message && message.sender === this.#node) return this.#count("message of our own id");
    switch (message.type) {
      case "update":
        return this.#merge(message.entries, message.rings, "at-once", now);
      case "digest":
        return this.#replication.onDigest(message, now);
      case "page": {
        this.#merge(message.entries, message.rings, "at-once", now);
        const theirs = new Map<string, number>();
        for (const entry of message.entries) theirs.set(entryKey(entry.kind, entry.id), hashEntry(entry));
        for (const ring of message.rings) theirs.set(ringKey(ring.network), hashRing(ring));
        return this.#replication.onPage(message, theirs, now);
      }
      case "ask":
        return this.#allocator.onAsk(message, now);
      case "grant":
        return this.#allocator.onGrant(message, now);
      case "refusal":
        return this.#allocator.onRefusal(message, now);
      case "ring-query":
        return this.#takeover.onQuery(message);
      case "ring-answer":
        if (message.ring !== undefined) this.#learnRing(message.ring, now);
        return this.#takeover.onAnswer(message, now);
      default:
        return unreachable(message);
    }
  }

  #merge(
    entries: readonly Entry[],
    rings: readonly Ring[],
    passOn: "at-once" | "after-join" | "no",
    now: Instant,
  ): void {
    const { accepted, changes, refused, dropped } = this.#definitions.merge(entries, now);
    if (refused > 0) this.#count("too many definitions", refused);
    const pass = accepted.length + rings.length <= FORWARD_LIMIT ? passOn : "no";
    for (const { kind, id } of accepted) {
      const key = entryKey(kind, id);
      this.#replication.set(key, this.#definitions.hashOf(key));
      if (pass !== "no") this.#replication.spread(key, now, pass);
    }
    for (const key of dropped) this.#replication.set(key, undefined);
    if (accepted.length > 0) this.#outbox.saveLazily();
    this.#applyChanges(changes, now);
    for (const ring of rings) {
      if (this.#learnRing(ring, now) && pass !== "no")
        this.#replication.spread(ringKey(ring.network), now, pass);
    }
  }

  /** Whether it was news. Rings of networks we do not know come again with the next digest. */
  #learnRing(ring: Ring, now: Instant): boolean {
    const space = this.#spaces.get(ring.network);
    if (space === undefined) return false;
    const learned = space.learn(ring);
    switch (learned) {
      case "misfit":
        this.#count("ring does not fit its network");
        return false;
      case "same":
        return false;
      case "replaced":
      case "merged":
        this.#conflictsStale = true;
        this.#takeoverStale = true;
        this.#outbox.saveLazily();
        this.#replication.set(ringKey(ring.network), space.ring?.hash);
        this.#outbox.add({ type: "ring-changed", network: ring.network });
        if (ring.network === INGRESS.id) this.#seedAt = undefined;
        this.#allocator.retry(ring.network, now);
        return true;
      default:
        return unreachable(learned);
    }
  }

  // Consequences

  #addExternal(network: Network, now: Instant): void {
    this.#externals.set(network.id, network);
    this.#outbox.saveFirst();
    this.#applyChanges([{ kind: "network", id: network.id }], now);
  }

  #removeExternal(id: NetworkId, now: Instant): boolean {
    if (!this.#externals.delete(id)) return false;
    this.#outbox.saveFirst();
    this.#applyChanges([{ kind: "network", id }], now);
    return true;
  }

  #release(network: NetworkId, address: IpAddr): void {
    if (this.#spaces.get(network)?.release(ipv4ToNumber(address)) !== true) return;
    this.#touched.add(network);
    this.#outbox.saveFirst();
    this.#conflictsStale = true;
  }

  #releaseHolder(holderId: string): void {
    for (const network of this.#book.releaseHolder(holderId)) {
      this.#touched.add(network);
      this.#outbox.saveFirst();
    }
  }

  /** A local write: on disk before anybody hears of it. */
  #write(entry: Entry, now: Instant): void {
    const key = entryKey(entry.kind, entry.id);
    this.#outbox.saveFirst();
    this.#replication.set(key, this.#definitions.hashOf(key));
    this.#replication.spread(key, now);
    this.#applyChanges([{ kind: entry.kind, id: entry.id }], now);
  }

  #applyChanges(changes: readonly DefinitionChange[], now: Instant): void {
    if (changes.length === 0) return;
    this.#conflictsStale = true;
    this.#takeoverStale = true;
    this.#serviceList = undefined;
    this.#serviceViews = undefined;
    this.#networkViews = undefined;
    this.#definitionConflicts = undefined;
    for (const { kind, id } of changes) {
      if (kind === "network") this.#applyNetwork(id as NetworkId);
      if (kind !== "service") continue;
      const service = this.#definitions.service(id);
      this.#book.setService(id, service);
      // Only now: as long as the service lived, any write of it might still have named the address.
      if (service === undefined) this.#releaseHolder(vipHolder(id as ServiceId, "").id);
    }
    this.#outbox.add({ type: "definitions-changed", changes });
    for (const { kind, id } of changes) if (kind === "network") this.#allocator.retry(id as NetworkId, now);
  }

  #applyNetwork(id: NetworkId): void {
    const network = this.#definitions.network(id) ?? this.#externals.get(id);
    const space = this.#spaces.get(id);
    if (network !== undefined && space === undefined) this.#addSpace(network);
    if (network !== undefined || space === undefined || space.network.ingress) return;
    this.#book.remove(id);
    this.#networkList = undefined;
    this.#replication.set(ringKey(id), undefined);
    this.#allocator.abandon(id);
  }

  #addSpace(network: Network): void {
    const space = this.#book.add(network);
    this.#networkList = undefined;
    if (space.ring !== undefined) this.#replication.set(ringKey(network.id), space.ring.hash);
  }

  #ringTouched(network: NetworkId, now: Instant): void {
    const ring = this.#spaces.get(network)?.ring;
    const key = ringKey(network);
    if (ring === undefined || this.#replication.hashOf(key) === ring.hash) return;
    this.#conflictsStale = true;
    this.#replication.set(key, ring.hash);
    this.#replication.spread(key, now);
    this.#outbox.add({ type: "ring-changed", network });
  }

  // Ingress

  /**
   * Among members without a ring the smallest node id seeds one, but only when every node it ever heard of is
   * there: an absent one may know a ring. Should two clusters that never met do it, the older ring wins.
   */
  #seedAmongMembers(now: Instant): void {
    const others = this.#members.ids();
    this.#seedAt = undefined;
    if (this.#spaces.get(INGRESS.id)?.ring !== undefined || others.length === 0) return;
    const allThere = this.nodes().every(
      ({ id, removed }) => removed || id === this.#node || others.includes(id),
    );
    if (allThere && others.every((id) => this.#node < id)) this.#seedIngress([this.#node, ...others], now);
    else this.#seedAt = after(now, SEED_RETRY_MS);
  }

  #seedIngress(seeds: readonly NodeId[], now: Instant): void {
    const space = this.#spaces.get(INGRESS.id);
    const started = this.#started;
    if (space === undefined || space.ring !== undefined || started === undefined) return;
    const seeded = Math.floor(started.unixSeconds + elapsed(started.at, now) / 1000);
    space.learn(
      seedRing(INGRESS.id, space.range, seeds.slice(0, MAX_RING_SEEDS), { seeded, seeder: this.#node }),
    );
    this.#outbox.saveFirst();
    this.#touched.add(INGRESS.id);
    this.#seedAt = undefined;
    this.#allocator.retry(INGRESS.id, now);
  }

  // Conflicts

  #blocked(now: Instant): Conflict | undefined {
    if (this.#definitions.node(this.#node)?.removed === true) {
      return {
        type: "node-removed",
        node: this.#node,
        text: "this node was removed from the cluster; stop its agent, delete its data directory and start it again",
      };
    }
    if ((this.#members.twinAt() ?? Infinity) > now) return undefined;
    return {
      type: "node-twin",
      node: this.#node,
      text: `another member has this node's id ${this.#node}: a data directory was copied; stop one of the two agents and delete its data directory`,
    };
  }

  #findConflicts(now: Instant): void {
    this.#conflictsStale = false;
    this.#definitionConflicts ??= definitionConflicts(this.#networks(), this.#services(), (network) =>
      this.#definitions.isRemoved("network", network),
    );
    const conflicts = [...this.#definitionConflicts];
    const blocked = this.#blocked(now);
    if (blocked !== undefined) conflicts.push(blocked);
    conflicts.push(...this.#book.conflicts());
    this.#watch.set(conflicts, now);
    this.#networkViews = undefined;
    this.#serviceViews = undefined;
  }

  // Below: what the above is made of

  #networks(): readonly Network[] {
    return (this.#networkList ??= [...this.#spaces.values()]
      .map((space) => space.network)
      .sort(compareClaims));
  }

  #services(): readonly Service[] {
    return (this.#serviceList ??= [...this.#definitions.all()]
      .flatMap((definition) => (definition.kind === "service" ? [definition.value] : []))
      .sort(compareClaims));
  }

  #item(key: string, now: Instant): Item | undefined {
    const entry = this.#definitions.entry(key, now);
    if (entry !== undefined) return { type: "entry", entry };
    const ring = key.startsWith("ring/") ? this.#spaces.get(key.slice(5) as NetworkId)?.ring : undefined;
    return ring && { type: "ring", ring: ring.ring };
  }

  #nameOf(id: NodeId): string {
    return this.#members.shownNameOf(id) ?? this.#definitions.node(id)?.name ?? id.slice(0, 12);
  }

  #count(reason: string, by = 1): void {
    this.#counters.set(reason, (this.#counters.get(reason) ?? 0) + by);
  }

  #restore(snapshot: Snapshot, now: Instant): void {
    if (snapshot.node !== this.#node)
      throw new DecodeError("state snapshot", 0, `it belongs to node ${snapshot.node}, not ${this.#node}`);
    this.#definitions.witness(snapshot.clock);
    this.#definitions.merge(snapshot.entries, now);
    for (const network of snapshot.externals) this.#externals.set(network.id, network);
    for (const [key] of this.#definitions.entries(now))
      this.#replication.set(key, this.#definitions.hashOf(key));
    for (const network of this.#externals.values()) this.#addSpace(network);
    for (const definition of this.#definitions.all())
      if (definition.kind === "network") this.#addSpace(definition.value);
    this.#book.restore(snapshot.spaces, (service) => this.#definitions.service(service) !== undefined);
    for (const [network, { ring }] of this.#spaces)
      if (ring !== undefined) this.#replication.set(ringKey(network), ring.hash);
    for (const service of this.#services()) this.#book.setService(service.id, service);
  }
}

function ringKey(network: NetworkId): string {
  return `ring/${network}`;
}
