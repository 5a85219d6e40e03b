import assert from "node:assert/strict";
import { utf8, fromUtf8 } from "../../src/base/bytes.ts";
import { networkId, nodeName, randomHex, type NetworkId, type NodeName } from "../../src/base/id.ts";
import { formatSocketAddr, parseIp, type SocketAddr } from "../../src/base/ip.ts";
import { pick, randomInt, sample, seededRandom, type Random } from "../../src/base/random.ts";
import { after, instant, type Instant } from "../../src/base/time.ts";
import { networkDbConfig, type NetworkDbConfig } from "../../src/networkdb/config.ts";
import type { NetworkDbEffect, RowChange } from "../../src/networkdb/effect.ts";
import type { Departure } from "../../src/networkdb/membership.ts";
import { NetworkDb, type NetworkDbInput } from "../../src/networkdb/networkdb.ts";
import { OldPeer } from "./old-peer.ts";

export const TABLE = "endpoint_table";
const MIB = 1024 * 1024;
/** Docker reckons 4 bytes of overhead for what takes 6, and does not count the seal. */
const OLD_DATAGRAM_BYTES = 1_472;
const PUSH_PULL_MS = 30_000;
const MEMBERSHIP_GOSSIP_MS = 200;

export interface WorldOptions {
  readonly seed: number;
  readonly nodes: number;
  /** Of datagrams, 0 … 1. */
  readonly loss?: number;
  readonly duplicates?: number;
  /** Delay of a datagram: 0.2 ms up to this. Different delays reorder. */
  readonly maxDelayMs?: number;
  readonly config?: Partial<NetworkDbConfig>;
  /** How many of the nodes, the last ones, are of Docker's 20.10 kind. */
  readonly oldPeers?: number;
  /** Whether nodes keep and check the changes they report. Default true. */
  readonly watch?: boolean;
}

/**
 * N NetworkDb nodes on a virtual clock, joined by a network that loses, repeats and reorders datagrams, and by a
 * membership layer that behaves as memberlist does seen from outside: failures are noticed after seconds, news spreads
 * by gossip, push/pull every 30 s.
 */
export class World {
  readonly random: Random;
  readonly nodes: WorldNode[] = [];
  readonly config: NetworkDbConfig;
  readonly #options: WorldOptions;
  readonly #agenda = new Agenda();
  now: Instant = instant(0);
  datagramsLost = 0;
  datagrams = 0;
  streams = 0;
  /** Payload bytes by whatever road. */
  bytes = 0;
  largestStream = 0;
  largestDatagram = 0;
  /** What was said in one direction between partitions is lost. Node name to side; absent = side 0. */
  #sides = new Map<NodeName, number>();

  constructor(options: WorldOptions) {
    this.#options = options;
    this.random = seededRandom(options.seed);
    this.config = networkDbConfig(options.config);
    for (let i = 0; i < options.nodes; i++) {
      this.addNode(undefined, i >= options.nodes - (options.oldPeers ?? 0));
    }
    for (const node of this.nodes) for (const other of this.nodes) if (node !== other) node.sees(other);
  }

  /** A node nobody knows yet. */
  addNode(address = this.#freeAddress(), old = false): WorldNode {
    const node = new WorldNode(this, address, old);
    this.nodes.push(node);
    return node;
  }

  /** The node joins through `seed`: push/pull with it, then everybody hears of it. */
  join(node: WorldNode, seed: WorldNode): void {
    this.#joinMember(node, seed.address);
  }

  /** A node by its number, which the test knows to exist. */
  node(index: number): WorldNode {
    const node = this.nodes[index];
    assert.ok(node);
    return node;
  }

  /** Lets every node, or those given, join the network, and waits until they know and have asked each other. */
  attach(id: NetworkId, nodes: readonly WorldNode[] = this.alive): void {
    for (const node of nodes) node.join(id);
    this.runUntil(
      () =>
        nodes.every(
          (node) => node.db.participants(id).length === nodes.length && node.inSync.has(id) && node.isQuiet,
        ),
      120_000,
    );
  }

  get alive(): WorldNode[] {
    return this.nodes.filter((node) => node.alive);
  }

  schedule(delayMs: number, action: () => void): void {
    this.#agenda.add(after(this.now, delayMs), action);
  }

  /** Lets `milliseconds` pass. */
  run(milliseconds: number): void {
    this.#advance(after(this.now, milliseconds));
  }

  /** Lets time pass until `condition` holds, looking every `stepMs`; returns how long it took. Fails after `withinMs`. */
  runUntil(condition: () => boolean, withinMs: number, { stepMs = 20 } = {}): number {
    const start = this.now;
    for (let step = 1; !condition(); step++) {
      if (step * stepMs > withinMs) assert.fail(`not reached within ${withinMs} ms`);
      this.#advance(after(start, step * stepMs));
    }
    return this.now - start;
  }

  /** Cuts the given nodes off from the others. */
  partition(nodes: readonly WorldNode[], side = 1): void {
    for (const node of nodes) this.#sides.set(node.name, side);
    for (const a of this.alive) for (const b of this.alive) if (!this.reachable(a, b)) a.losesSight(b);
  }

  heal(): void {
    this.#sides = new Map();
  }

  reachable(from: WorldNode, to: WorldNode): boolean {
    return from.alive && to.alive && this.#side(from) === this.#side(to);
  }

  nodeAt(address: SocketAddr): WorldNode | undefined {
    return this.alive.find((node) => formatSocketAddr(node.address) === formatSocketAddr(address));
  }

  named(name: NodeName): WorldNode | undefined {
    return this.nodes.find((node) => node.name === name);
  }

  /** Everyone who can be reached hears within a few gossip rounds. */
  spread(from: WorldNode, news: (node: WorldNode) => void): void {
    for (const node of this.alive) {
      if (node === from || !this.reachable(from, node)) continue;
      this.schedule(20 + randomInt(this.random, 600), () => {
        if (node.alive) news(node);
      });
    }
  }

  perform(from: WorldNode, effect: NetworkDbEffect): void {
    switch (effect.type) {
      case "send-packet":
        this.sendDatagram(from, effect.address, effect.payload);
        return;
      case "send-stream": {
        this.streams++;
        this.bytes += effect.payload.length;
        this.largestStream = Math.max(this.largestStream, effect.payload.length);
        assert.ok(effect.payload.length <= MIB, `a stream message of ${effect.payload.length} bytes`);
        const target = this.nodeAt(effect.address);
        const delay = 1 + this.random.next() * 10;
        this.schedule(delay, () => {
          if (target !== undefined && this.reachable(from, target)) {
            target.handle({ type: "user-message", bytes: effect.payload, via: "stream" });
          } else this.schedule(1_000, () => from.handle({ type: "stream-failed", to: effect.to }));
        });
        return;
      }
      case "join-member":
        this.#joinMember(from, effect.address);
        return;
      case "left":
        from.goodbyeSaid = true;
        return;
      case "row-changed":
        if (this.#options.watch !== false) from.observe(effect);
        return;
      case "network-in-sync":
        from.inSync.add(effect.network);
        return;
      case "refused":
        from.refusals.push(effect.reason);
        return;
      case "network-changed":
        return;
    }
  }

  sendDatagram(from: WorldNode, to: SocketAddr, payload: Uint8Array): void {
    this.datagrams++;
    this.bytes += payload.length;
    this.largestDatagram = Math.max(this.largestDatagram, payload.length);
    const limit = from.old ? OLD_DATAGRAM_BYTES : this.config.gossipPayloadBytes;
    assert.ok(payload.length <= limit, `a datagram of ${payload.length} bytes`);
    const target = this.nodeAt(to);
    const copies = this.random.next() < (this.#options.duplicates ?? 0) ? 2 : 1;
    for (let i = 0; i < copies; i++) {
      if (this.random.next() < (this.#options.loss ?? 0)) {
        this.datagramsLost++;
        continue;
      }
      this.schedule(0.2 + this.random.next() * (this.#options.maxDelayMs ?? 5), () => {
        if (target !== undefined && this.reachable(from, target)) {
          target.handle({ type: "user-message", bytes: payload, via: "packet" });
        }
      });
    }
  }

  /** memberlist's push/pull: both learn the other, the members each knows, and the user state. */
  pushPull(a: WorldNode, b: WorldNode, join: boolean): void {
    const stateOfA = a.db.localState(join);
    const stateOfB = b.db.localState(join);
    for (const [node, other, state] of [
      [b, a, stateOfA],
      [a, b, stateOfB],
    ] as const) {
      node.sees(other);
      for (const third of other.view) if (third !== node && !node.known.has(third)) node.sees(third);
      node.handle({ type: "push-pull-state", bytes: state, join });
    }
  }

  #joinMember(from: WorldNode, address: SocketAddr): void {
    this.schedule(2 + this.random.next() * 5, () => {
      const target = this.nodeAt(address);
      if (target === undefined || target === from || !this.reachable(from, target)) return;
      const news = [from, target].flatMap((node) => [...node.view, node]);
      this.pushPull(from, target, true);
      // A node that was believed dead refutes that, and its new incarnation is gossiped.
      for (const node of new Set(news)) {
        if (node.alive) this.spread(node, (other) => other.sees(node));
      }
    });
  }

  #freeAddress(): SocketAddr {
    return { ip: parseIp(`10.1.0.${this.nodes.length + 1}`), port: 7946 };
  }

  #advance(until: Instant): void {
    for (;;) {
      const next = this.#agenda.takeUntil(until);
      if (next === undefined) break;
      this.now = next.at;
      next.action();
    }
    this.now = until;
  }

  #side(node: WorldNode): number {
    return this.#sides.get(node.name) ?? 0;
  }
}

/** What the world needs of a NetworkDB. */
export type Peer = Pick<
  NetworkDb,
  | "handle"
  | "nextWakeup"
  | "localState"
  | "clusterBroadcasts"
  | "rows"
  | "row"
  | "allRows"
  | "participants"
  | "attachments"
  | "nodes"
  | "counters"
>;

/** One node with the membership layer beside it. */
export class WorldNode {
  readonly world: World;
  readonly name: NodeName;
  readonly address: SocketAddr;
  readonly db: Peer;
  readonly old: boolean;
  alive = true;
  goodbyeSaid = false;
  /** Members it believes alive, and those it ever heard of. */
  readonly view = new Set<WorldNode>();
  readonly known = new Set<WorldNode>();
  readonly inSync = new Set<NetworkId>();
  readonly refusals: string[] = [];
  readonly changes: RowChange[] = [];
  /** What the row-changed effects add up to: network, table and key to value. */
  readonly watched = new Map<string, string>();
  #wakeAt: Instant | undefined;

  constructor(world: World, address: SocketAddr, old: boolean) {
    this.world = world;
    this.old = old;
    this.address = address;
    this.name = nodeName(randomHex(world.random, 12));
    const random = seededRandom(randomInt(world.random, 0x7fff_ffff));
    this.db = old
      ? new OldPeer(this.name, random, world.now)
      : new NetworkDb({ node: this.name, address, random, config: world.config }, world.now);
    world.schedule(randomInt(world.random, MEMBERSHIP_GOSSIP_MS), () => this.#gossip());
    world.schedule(randomInt(world.random, PUSH_PULL_MS), () => this.#periodicPushPull());
    this.#arm();
  }

  handle(input: NetworkDbInput): void {
    if (!this.alive) return;
    for (const effect of this.db.handle(input, this.world.now)) this.world.perform(this, effect);
    this.#arm();
  }

  join(network: NetworkId): void {
    this.inSync.delete(network);
    this.handle({ type: "join-network", network });
  }

  leaveNetwork(network: NetworkId): void {
    this.handle({ type: "leave-network", network });
  }

  put(network: NetworkId, key: string, value: string, only?: "create" | "update"): void {
    this.handle({
      type: "put-row",
      network,
      table: TABLE,
      key,
      value: utf8(value),
      ...(only === undefined ? {} : { only }),
    });
  }

  delete(network: NetworkId, key: string): void {
    this.handle({ type: "delete-row", network, table: TABLE, key });
  }

  /** An own row whose value begins with this node's name. */
  sign(network: NetworkId, key: string, version: number | string = 1): void {
    this.put(network, key, `${this.name} ${version}`);
  }

  /** Visible rows of the table as key to value. */
  rows(network: NetworkId): Map<string, string> {
    return new Map([...this.db.rows(network, TABLE)].map((row) => [row.key, fromUtf8(row.value)]));
  }

  /** Rows stored, tombstones included. */
  rowCount(network: NetworkId): number {
    return this.db.attachments().find((attachment) => attachment.network === network)?.rows ?? 0;
  }

  value(network: NetworkId, key: string): string | undefined {
    const row = this.db.row(network, TABLE, key);
    return row && fromUtf8(row.value);
  }

  time(network: NetworkId, key: string): number {
    for (const row of this.db.allRows()) if (row.network === network && row.key === key) return row.time;
    return -1;
  }

  /** Nothing waits to be gossiped. */
  get isQuiet(): boolean {
    return (
      this.db.clusterBroadcasts.length === 0 &&
      this.db.attachments().every(({ ownQueue, relayQueue }) => ownQueue + relayQueue === 0)
    );
  }

  /** Power cut: the others notice after some seconds. */
  crash(): void {
    this.alive = false;
    for (const other of this.world.alive) other.losesSight(this);
  }

  /** Says goodbye to NetworkDB, then to memberlist, then ends. */
  shutDown(): void {
    this.handle({ type: "leave" });
    const wait = (): void => {
      if (!this.goodbyeSaid) return this.world.schedule(50, wait);
      this.world.spread(this, (other) => other.forgets(this, "left"));
      this.world.schedule(1_000, () => this.crash());
    };
    wait();
  }

  /** memberlist here believes `other` alive from now on. */
  sees(other: WorldNode): void {
    // Who left is not revived by old news: its last incarnation says so.
    if (other === this || this.view.has(other) || other.goodbyeSaid) return;
    this.view.add(other);
    this.known.add(other);
    this.handle({ type: "member-joined", name: other.name, address: other.address });
    // What others did not notice yet this one has to notice for itself.
    if (!this.world.reachable(this, other)) this.losesSight(other);
  }

  forgets(other: WorldNode, how: Departure): void {
    if (!this.view.delete(other)) return;
    this.handle({ type: "member-left", name: other.name, how });
  }

  /** Probes fail from now on: suspect, then dead, unless it is reachable again in time. */
  losesSight(other: WorldNode): void {
    this.world.schedule(4_000 + randomInt(this.world.random, 3_000), () => {
      if (this.alive && !this.world.reachable(this, other)) this.forgets(other, "failed");
    });
  }

  observe(change: RowChange): void {
    this.changes.push(change);
    const id = `${change.network} ${change.table} ${change.key}`;
    const previous = change.previous && fromUtf8(change.previous);
    assert.equal(this.watched.get(id), previous, `previous of ${id} at ${this.name}`);
    const current = change.current && fromUtf8(change.current);
    if (current === undefined) this.watched.delete(id);
    else this.watched.set(id, current);
    // Whoever writes puts its name first: nobody else may have changed the row.
    const writer = /^[0-9a-f]{12} /.exec(current ?? "")?.[0];
    if (writer !== undefined) assert.equal(writer, `${change.owner} `, `${id} at ${this.name}`);
  }

  #arm(): void {
    const at = this.db.nextWakeup();
    if (at === undefined || (this.#wakeAt !== undefined && this.#wakeAt <= at)) return;
    this.#wakeAt = at;
    this.world.schedule(Math.max(0, at - this.world.now), () => {
      if (this.#wakeAt !== at) return;
      this.#wakeAt = undefined;
      this.handle({ type: "wake" });
    });
  }

  /** memberlist's gossip with what NetworkDb wants broadcast. */
  #gossip(): void {
    if (!this.alive) return;
    this.world.schedule(MEMBERSHIP_GOSSIP_MS, () => this.#gossip());
    if (this.db.clusterBroadcasts.length === 0 || this.view.size === 0) return;
    for (const target of sample(this.world.random, [...this.view], 3)) {
      for (const payload of this.db.clusterBroadcasts.take(1_300, 3)) {
        this.world.sendDatagram(this, target.address, payload);
      }
    }
  }

  #periodicPushPull(): void {
    if (!this.alive) return;
    this.world.schedule(PUSH_PULL_MS, () => this.#periodicPushPull());
    const partner = pick(this.world.random, [...this.view]);
    if (partner !== undefined && this.world.reachable(this, partner))
      this.world.pushPull(this, partner, false);
  }
}

export function network(index: number): NetworkId {
  return networkId(`network-${index}-`.padEnd(25, "0"));
}

/** Runs `body` for seeds 1 … count, or for the one in SEED; a failure says which. */
export function forEachSeed(count: number, body: (seed: number) => void): void {
  const only = process.env["SEED"];
  const seeds = only === undefined ? Array.from({ length: count }, (_, i) => i + 1) : [Number(only)];
  for (const seed of seeds) {
    try {
      body(seed);
    } catch (error) {
      throw new Error(`SEED=${seed} reproduces: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      });
    }
  }
}

/** Actions by time, first in first out at equal times. */
class Agenda {
  readonly #heap: { readonly at: Instant; readonly id: number; readonly action: () => void }[] = [];
  #nextId = 0;

  add(at: Instant, action: () => void): void {
    const heap = this.#heap;
    const entry = { at, id: this.#nextId++, action };
    let i = heap.length;
    heap.push(entry);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      const above = heap[parent];
      if (above === undefined || !isBefore(entry, above)) break;
      heap[i] = above;
      i = parent;
    }
    heap[i] = entry;
  }

  takeUntil(until: Instant): { readonly at: Instant; readonly action: () => void } | undefined {
    const heap = this.#heap;
    const top = heap[0];
    if (top === undefined || top.at > until) return undefined;
    const last = heap.pop();
    if (last !== undefined && heap.length > 0) {
      let i = 0;
      for (;;) {
        let child = 2 * i + 1;
        const left = heap[child];
        if (left === undefined) break;
        let least = left;
        const right = heap[child + 1];
        if (right !== undefined && isBefore(right, left)) {
          child++;
          least = right;
        }
        if (!isBefore(least, last)) break;
        heap[i] = least;
        i = child;
      }
      heap[i] = last;
    }
    return top;
  }
}

function isBefore(
  a: { readonly at: Instant; readonly id: number },
  b: { readonly at: Instant; readonly id: number },
): boolean {
  return a.at < b.at || (a.at === b.at && a.id < b.id);
}
