/** Labels, and keys that come into a running cluster, with whole gossip nodes on a virtual clock. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { UNSEALED, type Sealing } from "../../src/wire/memberlist/seal.ts";
import { wholeNodes } from "../sim/whole-node.ts";
import type { World } from "../sim/world.ts";

const KEYS = [new Uint8Array(16).fill(7)];
/** memberlist's way to begin with encryption: one after the other, node by node. */
const STEPS: readonly Sealing[] = [
  UNSEALED,
  { ...UNSEALED, keys: KEYS, verifyIncoming: false, verifyOutgoing: false },
  { ...UNSEALED, keys: KEYS, verifyIncoming: false },
  { ...UNSEALED, keys: KEYS },
];

test("a running cluster begins with encryption node by node, and nobody is out of it for a moment", () => {
  const nodes = 5;
  const world = wholeNodes({ seed: 1, nodes, sealingOf: (_, life) => STEPS[life] ?? UNSEALED });
  for (let index = 1; index < nodes; index++) world.join(index, 0);
  agree(world);
  for (let step = 1; step < STEPS.length; step++) {
    for (let index = 0; index < nodes; index++) {
      world.restart(index);
      world.join(index, (index + 1) % nodes);
      agree(world);
    }
  }
  assert.deepEqual(
    world.deaths.filter(({ falsely }) => falsely),
    [],
  );
});

test("without those steps whoever has no key is a stranger", () => {
  const world = wholeNodes({ seed: 1, nodes: 2, sealingOf: (host) => STEPS[host === 0 ? 3 : 0] ?? UNSEALED });
  world.join(1, 0);
  world.runFor(10_000);
  assert.deepEqual(
    world.hosts.map(({ node }) => node.aliveCount),
    [1, 1],
  );
});

test("clusters of different labels do not hear each other, with keys and without", () => {
  for (const keys of [[], KEYS]) {
    const labels = ["a", "a", "b", "b", ""];
    const sealingOf = (host: number): Sealing => ({ ...UNSEALED, keys, label: labels[host] ?? "" });
    const world = wholeNodes({ seed: 3, nodes: labels.length, sealingOf });
    for (let index = 0; index < labels.length; index++) {
      world.join(index, ...world.hosts.map((host) => host.index).filter((other) => other !== index));
    }
    world.runFor(20_000);
    assert.deepEqual(
      world.hosts.map(({ node }) => node.aliveCount),
      [2, 2, 2, 2, 1],
    );
  }
});

function agree(world: World): void {
  assert.notEqual(
    world.runUntil(() => world.agree(), 60_000, 50),
    undefined,
    world.disagreement(),
  );
}
