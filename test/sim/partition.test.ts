import assert from "node:assert/strict";
import { test } from "node:test";
import { networkId } from "../../src/base/id.ts";
import { seededRandom, randomInt, sample } from "../../src/base/random.ts";
import { Keyring } from "../../src/swim/keyring.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { chaos } from "./chaos.ts";
import { forEachSeed } from "./seed.ts";
import { cluster } from "./swims.ts";
import { gossipNodeOf, wholeNodes } from "./whole-node.ts";
import type { World } from "./world.ts";

test("a cut of any length heals within 10 s of its end", () => {
  forEachSeed(24, (seed) => {
    const random = seededRandom(seed);
    const nodes = 2 + randomInt(random, 12);
    const world = cluster({ seed, nodes, loss: seed % 3 === 0 ? 0.05 : 0 });
    const hosts = world.hosts.map((host) => host.index);
    world.runFor(5_000);
    world.network.partition([sample(random, hosts, 1 + randomInt(random, nodes - 1))]);
    const cutMs = 2_000 * 2 ** randomInt(random, 10);
    world.runFor(cutMs);
    world.network.heal();
    const healedMs = world.runUntil(() => world.agree(), 10_000, 100);
    assert.ok(healedMs !== undefined, `${nodes} nodes, cut for ${cutMs} ms: ${world.disagreement()}`);
  });
});

test("a cut of hours heals within 10 s of its end", () => {
  const world = cluster({ seed: 1, nodes: 3 });
  world.network.partition([[0]]);
  world.runFor(6 * 3_600_000);
  world.network.heal();
  assert.ok(world.runUntil(() => world.agree(), 10_000, 100) !== undefined, world.disagreement());
});

test("three islands with dead hosts among them become one", () => {
  forEachSeed(5, (seed) => {
    const world = cluster({ seed, nodes: 15 });
    world.runFor(5_000);
    world.network.partition([
      [0, 1, 2, 3, 4],
      [5, 6, 7, 8, 9],
    ]);
    for (const host of [4, 9, 13, 14]) world.powerOff(host);
    world.runFor(120_000);
    world.network.heal();
    assert.ok(world.runUntil(() => world.agree(), 10_000, 100) !== undefined, world.disagreement());
  });
});

test("one-way cuts do not split views for good", () => {
  forEachSeed(6, (seed) => {
    const world = cluster({ seed, nodes: 8 });
    world.runFor(5_000);
    for (let from = 0; from < 3; from++) for (let to = 3; to < 8; to++) world.network.cut(from, to);
    world.runFor(45_000);
    world.network.heal();
    assert.ok(world.runUntil(() => world.agree(), 15_000, 100) !== undefined, world.disagreement());
  });
});

test("whole gossip nodes, fed with sealed bytes, agree after any faults", () => {
  const sealing = { ...UNSEALED, keys: Keyring.of([new Uint8Array(16).fill(7)]).keys };
  forEachSeed(20, (seed) => {
    chaos({ seed, nodes: 5, make: (options) => wholeNodes({ ...options, sealing }) });
  });
});

test("tables agree again after a cut, and rows of those behind it are back", () => {
  forEachSeed(6, (seed) => {
    const world = wholeNodes({ seed, nodes: 6 });
    const network = networkId("blue");
    for (const { index } of world.hosts) {
      if (index > 0) world.join(index, 0);
      world.feed(index, {
        type: "gossip",
        input: { type: "networkdb", input: { type: "join-network", network } },
      });
    }
    world.runFor(3_000);
    for (const { index } of world.hosts) put(world, index, "before");
    const all = (kind: string, hosts: readonly number[]): string =>
      hosts.map((host) => `${kind}-${host}`).join();
    const everybody = [0, 1, 2, 3, 4, 5];
    assert.ok(
      world.runUntil(
        () => everybody.every((host) => keys(world, host) === all("before", everybody)),
        10_000,
        50,
      ),
    );
    world.network.partition([[0, 1, 2]]);
    world.runFor(30_000);
    for (const host of everybody) put(world, host, "during");
    world.runFor(5_000);
    assert.equal(keys(world, 0), `${all("before", [0, 1, 2])},${all("during", [0, 1, 2])}`);
    world.network.heal();
    const wanted = `${all("before", everybody)},${all("during", everybody)}`;
    const tookMs = world.runUntil(() => everybody.every((host) => keys(world, host) === wanted), 40_000, 100);
    assert.ok(tookMs !== undefined, `host 0 has ${keys(world, 0)}, host 5 has ${keys(world, 5)}`);
  });
});

function put(world: World, host: number, kind: string): void {
  const row = {
    network: networkId("blue"),
    table: "endpoint_table",
    key: `${kind}-${host}`,
    value: Uint8Array.of(1),
  };
  world.feed(host, { type: "gossip", input: { type: "networkdb", input: { type: "put-row", ...row } } });
}

function keys(world: World, host: number): string {
  const { networkDb } = gossipNodeOf(world.host(host).node);
  return [...networkDb.rows(networkId("blue"), "endpoint_table")]
    .map((row) => row.key)
    .sort()
    .join();
}
