import assert from "node:assert/strict";
import { test } from "node:test";
import { fromUtf8, utf8 } from "../../src/base/bytes.ts";
import { networkId, type NetworkId } from "../../src/base/id.ts";
import { pick, randomInt, sample, seededRandom, type Random } from "../../src/base/random.ts";
import type { NetworkDb, NetworkDbInput } from "../../src/networkdb/networkdb.ts";
import { forEachSeed } from "./seed.ts";
import { gossipNodeOf, wholeNodes } from "./whole-node.ts";
import type { World } from "./world.ts";

const NETWORKS = [networkId("blue"), networkId("green")] as const;
const TABLE = "endpoint_table";
const ACTS = 60;
/** A failed reconnect, a bulk sync and the end of an inheritance may come one after the other. */
const SETTLE_MS = 120_000;

test("whole nodes agree on the rows of those who are there, after any loss, order, repetition, cut, crash and restart", () => {
  forEachSeed(16, (seed) => {
    const random = seededRandom(seed);
    const nodes = 3 + randomInt(random, 5);
    const world = wholeNodes({
      ...{ seed, nodes },
      loss: pick(random, [0, 0.03, 0.15]) ?? 0,
      duplication: pick(random, [0, 0.1]) ?? 0,
      jitterMs: pick(random, [0.5, 30]) ?? 0,
    });
    const cluster = new Cluster(world, random);
    for (let act = 0; act < ACTS; act++) {
      cluster.act();
      world.runFor(10 + randomInt(random, 3_000));
      cluster.check();
    }
    cluster.endFaults();
    const settledMs = world.runUntil(() => cluster.wrong() === undefined, SETTLE_MS, 250);
    assert.ok(settledMs !== undefined, `${cluster.wrong()}\n${cluster.log.join("\n")}`);
    // Nothing old comes back with the next sweeps, and nothing waits for ever.
    world.runFor(65_000);
    cluster.check();
    assert.equal(cluster.wrong(), undefined, cluster.log.join("\n"));
    for (const { index } of world.hosts.filter(({ power }) => power === "running")) {
      for (const { network, ownQueue, relayQueue } of cluster.db(index).attachments()) {
        const alone = cluster.db(index).participants(network).length < 2;
        assert.ok(alone || ownQueue + relayQueue === 0, `host ${index} still gossips ${network}`);
      }
    }
  });
});

/**
 * Real nodes beside the naive account of what they should hold: what each life of a node wrote and did not delete, on
 * the networks it is on. Keys are never used again, so that a key that was deleted must stay so.
 */
class Cluster {
  readonly world: World;
  readonly log: string[] = [];
  readonly #random: Random;
  /** Host to network to key to value, of the life that runs. */
  readonly #truth = new Map<number, Map<NetworkId, Map<string, string>>>();
  /** "network key owner value" of every row ever written. */
  readonly #written = new Set<string>();
  #keys = 0;
  /** Keys that a life of a host has had tombstones of, by host and network; forgotten when it leaves the network. */
  #buried = new Map<string, Set<string>>();

  constructor(world: World, random: Random) {
    this.world = world;
    this.#random = random;
    for (const { index } of world.hosts) {
      this.#truth.set(index, new Map());
      if (index > 0) world.join(index, 0);
      for (const network of NETWORKS) this.#joinNetwork(index, network);
    }
    world.runFor(3_000);
  }

  db(host: number): NetworkDb {
    return gossipNodeOf(this.world.host(host).node).networkDb;
  }

  /** One thing happens, to a host or between hosts. */
  act(): void {
    const random = this.#random;
    const { network } = this.world;
    const hosts = this.world.hosts.map(({ index }) => index);
    const host = randomInt(random, hosts.length);
    const id = pick(random, NETWORKS) ?? NETWORKS[0];
    const rows = this.#truth.get(host)?.get(id);
    const { power } = this.world.host(host);
    const dice = randomInt(random, 24);
    this.log.push(`${(this.world.now / 1_000).toFixed(1)} s: host ${host} (${power}) ${id}, dice ${dice}`);
    if (dice === 0) this.world.kill(host);
    else if (dice === 1) this.#restart(host);
    else if (dice === 2) this.world.pause(host);
    else if (dice === 3) this.world.resume(host);
    else if (dice === 4) network.partition([sample(random, hosts, 1 + randomInt(random, hosts.length - 1))]);
    else if (dice === 5) network.cut(host, randomInt(random, hosts.length));
    else if (dice <= 7) network.heal();
    else if (power !== "running") return;
    else if (rows === undefined) this.#joinNetwork(host, id);
    else if (dice === 8) this.#leaveNetwork(host, id);
    else if (dice <= 12) this.#delete(host, id, pick(random, [...rows.keys()]));
    else if (dice <= 16) this.#put(host, id, pick(random, [...rows.keys()]) ?? this.#newKey());
    else this.#put(host, id, this.#newKey());
  }

  /** What must hold at every moment, whatever is going on. */
  check(): void {
    for (const { index, life, node } of this.world.hosts) {
      const counts = new Map<NetworkId, number>();
      for (const { network, key, owner, value, state } of this.db(index).allRows()) {
        counts.set(network, (counts.get(network) ?? 0) + 1);
        const place = `${index} ${life} ${network}`;
        const buried = this.#buried.get(place) ?? new Set<string>();
        this.#buried.set(place, buried);
        if (state === "tombstone") {
          buried.add(key);
          continue;
        }
        const row = `${network} ${key} ${owner} ${fromUtf8(value)}`;
        assert.ok(this.#written.has(row), `${node.name} holds what nobody wrote: ${row}`);
        assert.ok(!buried.has(key), `${node.name}: ${key} was deleted and is back`);
      }
      for (const { network, rows, ownQueue, relayQueue } of this.db(index).attachments()) {
        assert.equal(rows, counts.get(network) ?? 0, "the row counter counts rows");
        assert.ok(rows <= this.#keys && ownQueue <= this.#keys && relayQueue <= this.#keys);
      }
    }
  }

  endFaults(): void {
    this.log.push(`${(this.world.now / 1_000).toFixed(1)} s: all faults end`);
    this.world.network.heal();
    this.world.network.conditions.loss = Math.min(0.03, this.world.network.conditions.loss);
    for (const { index } of this.world.hosts) {
      this.world.resume(index);
      // Somebody must be there for those who know nobody else.
      if (this.world.host(index).power === "killed" && (index < 2 || this.#random.next() < 0.5))
        this.#restart(index);
    }
  }

  /** The first difference between what a running host shows and what it should. */
  wrong(): string | undefined {
    const running = this.world.hosts.filter(({ power }) => power === "running");
    for (const network of NETWORKS) {
      const expected = new Map(
        running.flatMap(({ index }) => [...(this.#truth.get(index)?.get(network) ?? [])]),
      );
      for (const { index } of running) {
        const attached = this.#truth.get(index)?.has(network) === true;
        const shown = [...this.db(index).rows(network, TABLE)];
        const wanted = attached ? expected : new Map<string, string>();
        const different = shown.find((row) => wanted.get(row.key) !== fromUtf8(row.value));
        if (different !== undefined) return `host ${index} shows ${network} ${different.key}`;
        if (shown.length === wanted.size) continue;
        const keys = new Set(shown.map(({ key }) => key));
        return `host ${index} lacks ${network} ${[...wanted.keys()].filter((key) => !keys.has(key)).join()}`;
      }
    }
    return undefined;
  }

  #restart(host: number): void {
    this.world.restart(host);
    this.world.join(host, 0, 1);
    const networks = [...(this.#truth.get(host) ?? [])];
    this.#truth.set(host, new Map());
    // As an agent does, it writes again what it finds of its former life; but not everything is still there.
    for (const [network, rows] of networks) {
      this.#joinNetwork(host, network);
      for (const key of rows.keys()) if (this.#random.next() < 0.7) this.#put(host, network, key);
    }
  }

  #joinNetwork(host: number, network: NetworkId): void {
    this.#truth.get(host)?.set(network, new Map());
    this.#feed(host, { type: "join-network", network });
  }

  #leaveNetwork(host: number, network: NetworkId): void {
    this.#truth.get(host)?.delete(network);
    this.#feed(host, { type: "leave-network", network });
    this.#buried.delete(`${host} ${this.world.host(host).life} ${network}`);
  }

  #put(host: number, network: NetworkId, key: string): void {
    const owner = this.world.host(host).node.name;
    const value = `${owner} ${this.#written.size}`;
    this.#written.add(`${network} ${key} ${owner} ${value}`);
    this.#truth.get(host)?.get(network)?.set(key, value);
    this.#feed(host, { type: "put-row", network, table: TABLE, key, value: utf8(value) });
  }

  #delete(host: number, network: NetworkId, key: string | undefined): void {
    if (key === undefined) return;
    this.#truth.get(host)?.get(network)?.delete(key);
    this.#feed(host, { type: "delete-row", network, table: TABLE, key });
  }

  #newKey(): string {
    return `key-${this.#keys++}`;
  }

  #feed(host: number, input: NetworkDbInput): void {
    this.world.feed(host, { type: "gossip", input: { type: "networkdb", input } });
  }
}
