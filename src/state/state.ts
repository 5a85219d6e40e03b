import { unreachable } from "../base/assert.ts";
import { DecodeError } from "../base/error.ts";
import type { NetworkId, NodeId, NodeName, ServiceId } from "../base/id.ts";
import type { Random } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import type { Network, NodeDefinition, Service } from "../wire/state/definition.ts";
import type { Entry } from "../wire/state/entry.ts";
import { decodeStateMessage, type StateMessage } from "../wire/state/message.ts";
import type { Ring } from "../wire/state/ring.ts";
import { decodeSnapshot, encodeSnapshot, type Snapshot } from "../wire/state/snapshot.ts";
import { hashRing } from "./address-ring.ts";
import { Addressing, ringKey } from "./addressing.ts";
import { DEFAULT_CONFIG, type StateConfig } from "./config.ts";
import { ConflictWatch } from "./conflict-watch.ts";
import { compareClaims, definitionConflicts, type Conflict } from "./conflicts.ts";
import { Definitions, entryKey, hashEntry, type DefinitionChange } from "./definitions.ts";
import type { StateEffect, StateInput } from "./effect.ts";
import { findNamed, printable } from "./find.ts";
import { Members } from "./members.ts";
import { Outbox } from "./outbox.ts";
import { FORWARD_LIMIT, Replication, type Item } from "./replication.ts";
import { Requests } from "./requests.ts";
import { vipHolder } from "./service-jobs.ts";
import {
  networkViews,
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

/**
 * The definitions of the cluster and the addresses of its networks. Owns no file, socket or timer: the caller
 * feeds inputs, performs effects in order and saves `snapshot()` when told to.
 */
export class State {
  readonly #node: NodeId;
  readonly #memberName: NodeName;
  readonly #definitions = new Definitions();
  /** Networks that only this node knows, by id. */
  readonly #externals = new Map<NetworkId, Network>();
  readonly #members: Members;
  readonly #outbox: Outbox;
  readonly #replication: Replication;
  readonly #addressing: Addressing;
  readonly #counters = new Map<string, number>();
  readonly #requests: Requests;
  #expireAt: Instant;
  readonly #watch = new ConflictWatch();
  /** Of definitions alone; undefined: to be found again. */
  #definitionConflicts: readonly Conflict[] | undefined;
  #networkViews: readonly NetworkView[] | undefined;
  #serviceViews: readonly ServiceView[] | undefined;
  #conflictsStale = true;
  /** In claim order; undefined: to be collected again. */
  #networkList: readonly Network[] | undefined;
  #serviceList: readonly Service[] | undefined;

  /** @throws DecodeError when the snapshot is damaged or of another node */
  constructor(options: StateOptions, now: Instant) {
    const config = { ...DEFAULT_CONFIG, ...options.config };
    const { node, random } = options;
    this.#node = node;
    this.#memberName = options.memberName;
    this.#expireAt = after(now, EXPIRE_MS);
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
    this.#addressing = new Addressing({
      node,
      random,
      config,
      members,
      outbox,
      replication: this.#replication,
      nodes: () => this.nodes(),
      isRemoved: (id) => this.#definitions.node(id)?.removed ?? false,
      nameOf: (id) => this.#nameOf(id),
      blocked: (at) => this.#blocked(at),
      conflictsChanged: () => void (this.#conflictsStale = true),
      count: (reason) => this.#count(reason),
    });
    this.#requests = new Requests({
      node,
      random,
      members,
      outbox,
      addressing: this.#addressing,
      definitions: this.#definitions,
      networks: () => this.#networks(),
      services: () => this.#services(),
      findNetwork: (reference) => this.findNetwork(reference),
      findService: (reference) => this.findService(reference),
      findNode: (reference) => this.findNode(reference),
      write: (entry, at) => this.#write(entry, at),
      addExternal: (network, at) => this.#addExternal(network, at),
      removeExternal: (id, at) => this.#removeExternal(id, at),
    });
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
      this.#addressing.nextWakeup(),
      this.#replication.nextWakeup(),
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
      spaces: this.#addressing.snapshot(),
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
    return this.#addressing.use(id);
  }

  /** What this node has given away, VIPs included; after a restart the agent releases what nobody has any more. */
  allocations(): Allocation[] {
    return this.#addressing.allocations();
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
        if (gone !== undefined) this.#addressing.allocator.unreachable(gone, now);
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
        if (id !== undefined) this.#addressing.allocator.unreachable(id, now);
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
    const known = this.#definitions.node(this.#node);
    if (known?.removed !== true && known?.name !== name) {
      const availability = known?.availability ?? "active";
      const value: NodeDefinition = { id: this.#node, name: printable(name), availability, removed: false };
      this.#write(this.#definitions.write({ kind: "node", value }, this.#node, now), now);
    }
    this.#addressing.start(seed, unixSeconds, now);
  }

  #memberJoined(
    { name, id, shown, compare = false }: StateInput & { readonly type: "member-joined" },
    now: Instant,
  ): void {
    if (name === this.#memberName) return;
    const isNew = this.#members.nameOf(id) !== name;
    this.#members.join(name, id, printable(shown), now);
    this.#addressing.nodesChanged();
    if (id === this.#node || !isNew) return;
    this.#addressing.memberJoined(now);
    this.#replication.joined(id, compare);
  }

  #wake(now: Instant): void {
    this.#addressing.wake(now);
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
    this.#addressing.takeOver(now);
    // A settled want may start others, which may settle at once: virtual IPs one by one, so this ends.
    for (;;) {
      const settled = this.#addressing.allocator.takeSettled();
      if (settled.length === 0) break;
      for (const outcome of settled) this.#requests.settled(outcome, now);
    }
    this.#addressing.tell(now);
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
      case "grant":
      case "refusal":
      case "ring-query":
      case "ring-answer":
        return this.#addressing.receive(message, now);
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
      if (this.#addressing.learn(ring, now) && pass !== "no")
        this.#replication.spread(ringKey(ring.network), now, pass);
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
    this.#addressing.nodesChanged();
    this.#serviceList = undefined;
    this.#serviceViews = undefined;
    this.#networkViews = undefined;
    this.#definitionConflicts = undefined;
    for (const { kind, id } of changes) {
      if (kind === "network") this.#applyNetwork(id as NetworkId);
      if (kind !== "service") continue;
      const service = this.#definitions.service(id);
      this.#addressing.setService(id, service);
      // Only now: as long as the service lived, any write of it might still have named the address.
      if (service === undefined) this.#addressing.releaseHolder(vipHolder(id as ServiceId, "").id);
    }
    this.#outbox.add({ type: "definitions-changed", changes });
    for (const { kind, id } of changes)
      if (kind === "network") this.#addressing.allocator.retry(id as NetworkId, now);
  }

  #applyNetwork(id: NetworkId): void {
    const network = this.#definitions.network(id) ?? this.#externals.get(id);
    const space = this.#addressing.spaces.get(id);
    if (network !== undefined && space === undefined) this.#addSpace(network);
    if (network !== undefined || space === undefined || space.network.ingress) return;
    this.#networkList = undefined;
    this.#addressing.remove(id);
  }

  #addSpace(network: Network): void {
    this.#networkList = undefined;
    this.#addressing.add(network);
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
    conflicts.push(...this.#addressing.conflicts());
    this.#watch.set(conflicts, now);
    this.#networkViews = undefined;
    this.#serviceViews = undefined;
  }

  // Below: what the above is made of

  #networks(): readonly Network[] {
    return (this.#networkList ??= [...this.#addressing.spaces.values()]
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
    const ring = this.#addressing.ringOfKey(key);
    return ring && { type: "ring", ring };
  }

  #nameOf(id: NodeId): string {
    return this.#members.shownNameOf(id) ?? this.#definitions.node(id)?.name ?? id.slice(0, 12);
  }

  #count(reason: string, by = 1): void {
    this.#counters.set(reason, (this.#counters.get(reason) ?? 0) + by);
  }

  #restore(snapshot: Snapshot, now: Instant): void {
    if (snapshot.node !== this.#node)
      throw new DecodeError(
        "state snapshot",
        undefined,
        `belongs to node ${snapshot.node}, not ${this.#node}`,
      );
    this.#definitions.witness(snapshot.clock);
    this.#definitions.merge(snapshot.entries, now);
    for (const network of snapshot.externals) this.#externals.set(network.id, network);
    for (const [key] of this.#definitions.entries(now))
      this.#replication.set(key, this.#definitions.hashOf(key));
    for (const network of this.#externals.values()) this.#addSpace(network);
    for (const definition of this.#definitions.all())
      if (definition.kind === "network") this.#addSpace(definition.value);
    this.#addressing.restore(snapshot.spaces, (service) => this.#definitions.service(service) !== undefined);
    for (const service of this.#services()) this.#addressing.setService(service.id, service);
  }
}
