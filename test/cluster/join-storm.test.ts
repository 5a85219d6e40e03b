/** Whole gossip nodes that join one at once, on a virtual clock. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { DecodeError } from "../../src/base/error.ts";
import { definitionsOf, withDefinitions } from "../../src/cluster/exchange-state.ts";
import { decodeNetworkDbMessage, encodeNetworkDbMessage } from "../../src/wire/networkdb/message.ts";
import { nodeName } from "../../src/base/id.ts";
import { forEachSeed } from "../sim/seed.ts";
import { gossipNodeOf, wholeNodes } from "../sim/whole-node.ts";

const NODES = 30;

test("nodes that join one at once know all members and all definitions from its answer alone", () => {
  forEachSeed(5, (seed) => {
    const world = wholeNodes({ seed, nodes: NODES });
    world.runFor(1_500);
    for (let index = 1; index < NODES; index++) world.join(index, 0);
    const known = (index: number): number => {
      const host = world.host(index);
      return gossipNodeOf(host.node).state.nodes().length;
    };
    const all = world.hosts.map(({ index }) => index);
    world.runUntil(() => world.agree() && all.every((index) => known(index) === NODES), 300, 10);
    assert.deepEqual([...new Set(all.map(known))], [NODES]);
    assert.ok(world.agree(), world.disagreement());
    // Nobody but the one that was asked has gossip to spread, and those it would tell know it already.
    for (const { index, node } of world.hosts)
      if (index > 0) assert.equal(node.queues()["broadcasts"], 0, `host ${index}`);
    const before = world.bytes;
    world.runFor(2_000);
    // Probes and a few digests.
    assert.ok((world.bytes - before) / NODES < 2 * 700, `${(world.bytes - before) / NODES} bytes a node`);
  });
});

test("one that joins a running cluster knows its definitions at once, and all the others soon know it", () => {
  forEachSeed(5, (seed) => {
    const world = wholeNodes({ seed, nodes: 12 });
    world.runFor(1_500);
    for (let index = 1; index < 11; index++) world.join(index, 0);
    world.runFor(10_000);
    world.join(11, 3);
    const nodes = (index: number): number => gossipNodeOf(world.host(index).node).state.nodes().length;
    assert.notEqual(
      world.runUntil(() => nodes(11) === 12, 300, 10),
      undefined,
      `${nodes(11)} of 12`,
    );
    assert.notEqual(
      world.runUntil(() => world.hosts.every(({ index }) => nodes(index) === 12), 5_000, 10),
      undefined,
    );
  });
});

test("definitions behind NetworkDB's state are found, and skipped by who does not know them", () => {
  const message = { type: "push-pull", time: 7, networks: [], node: nodeName("n1") } as const;
  const state = encodeNetworkDbMessage(message);
  for (const length of [0, 1, 127, 128, 70_000]) {
    const definitions = new Uint8Array(length).fill(length & 255);
    const both = withDefinitions(state, definitions);
    assert.deepEqual(definitionsOf(both), definitions);
    assert.deepEqual(decodeNetworkDbMessage(both), message);
    assert.throws(() => definitionsOf(both.subarray(0, both.length - 1)), DecodeError);
  }
  assert.equal(definitionsOf(state), undefined);
});
