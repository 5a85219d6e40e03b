import assert from "node:assert/strict";
import { test } from "node:test";
import { network, World } from "./world.ts";

// `bench.ts` measures the same with 23 nodes; three show all there is to see in a fraction of the time.
const NODES = 3;
const ROWS = 100_000;
const ID = network(0);

test("100,000 rows: pages below 1 MiB, a joiner is loaded in seconds, and updates pass meanwhile", () => {
  const world = new World({ seed: 1, nodes: NODES, watch: false });
  const holders = world.nodes.slice(1);
  for (const node of holders) node.join(ID);
  world.run(3_000);
  const value = "x".repeat(120);
  const perNode = Math.ceil(ROWS / holders.length);
  for (const node of holders) {
    for (let i = 0; i < perNode; i++)
      node.put(ID, `${node.name}-${i}-`.padEnd(64, "0"), `${node.name} ${value}`);
  }
  const rows = perNode * holders.length;
  world.runUntil(() => holders.every((node) => node.rowCount(ID) === rows), 30_000, { stepMs: 100 });

  const joiner = world.node(0);
  joiner.join(ID);
  let updates = 0;
  const took = world.runUntil(
    () => {
      // One change after the other, each as soon as the last is everywhere.
      if (holders.every((node) => node.value(ID, "tracked") === String(updates))) updates++;
      holders[0]?.put(ID, "tracked", String(updates));
      return joiner.inSync.has(ID) && joiner.rowCount(ID) === rows + 1;
    },
    10_000,
    { stepMs: 200 },
  );
  assert.ok(updates >= took / 1_000, `${updates} updates while ${took} ms of bulk sync went on`);
  assert.ok(world.largestStream < 512 * 1024);

  // And when everybody has everything, and the last relays are through, nobody sends it again.
  world.runUntil(() => world.nodes.every((node) => node.isQuiet), 60_000, { stepMs: 500 });
  world.bytes = 0;
  world.run(60_000);
  assert.ok(world.bytes < 1024 * 1024, `${world.bytes} bytes in a minute of calm`);
});
