/**
 * Where each property of upstream's own tests (libnetwork/networkdb, 29.x and master) is checked here, and each that
 * we add. The numbers are those of the list this project was planned by.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

/** How many upstream's list has. */
const UPSTREAM = 23;
const INVARIANTS: readonly (readonly [number: string, what: string, ...tests: string[]])[] = [
  [
    "1",
    "everyone attached holds the union of live rows",
    "any interleaving of joins, leaves and writes",
    "whole nodes agree on the rows",
  ],
  [
    "2",
    "only the settled state is judged: agreement is waited for, and must then last",
    "any interleaving of joins, leaves and writes",
    "after crashes, restarts, partitions and leaves everyone agrees",
  ],
  [
    "3",
    "create, update, delete, join, leave are known within rounds",
    "create, update and delete reach",
    "a join of an empty network and a leave",
  ],
  ["4", "a populated network is there without a timer", "a populated network is there at once"],
  [
    "5",
    "a write right after the join arrives by gossip",
    "a row written right after the join arrives by gossip",
  ],
  ["6", "a tracked write passes through churn", "under churn one tracked write reaches"],
  [
    "7",
    "any permutation ends in the highest time",
    "events in any order, repeated",
    "a create that comes after its delete",
    "an update before its create",
  ],
  [
    "8",
    "leave, re-join, create with table events first",
    "leave, re-join and create, with the table events first",
  ],
  ["9", "watch filters, snapshot plus stream", "a watcher gets exactly what matches"],
  [
    "10",
    "parallel creates and deletes, tombstones",
    "of many creates of one key exactly one succeeds",
    "over a tombstone create succeeds",
  ],
  ["11", "row counter and order of reaping", "the row counter returns to 0"],
  [
    "12",
    "a failed peer is an error, two syncs at once finish",
    "a peer that cannot be reached is a failure",
    "two nodes that bulk sync each other at once",
  ],
  ["13", "peers are sampled uniformly, never self", "peers are sampled uniformly"],
  [
    "14",
    "rows of a failed owner vanish once and return",
    "rows of a failed owner vanish once",
    "a failed node is not gossiped to",
  ],
  ["15", "updates while the owner is down count", "updates relayed while the owner is down"],
  ["16", "failed, then left", "failed, then left: dropped without"],
  ["17", "suspended rows and failed nodes expire", "suspended rows expire after half an hour"],
  ["18", "a watch opened while an owner is failed", "a watch opened while an owner is failed"],
  ["19", "a failed owner's key can be taken over", "a key of a failed owner can be taken over"],
  ["20", "of a left node nothing is remembered", "of a node that left nothing is remembered"],
  [
    "21",
    "another name at the address retires the old one",
    "a restarted node's rows stay until it wrote them again",
    "an agent that restarts at its address",
  ],
  ["22", "islands find each other", "islands find each other: three bootstrap nodes"],
  ["23", "20.10 among them", "the same with peers of Docker 20.10"],
  [
    "ours",
    "no row changes but by its owner",
    "claims of any kind about own rows",
    "whole nodes agree on the rows",
    "after every step of any history",
  ],
  [
    "ours",
    "tombstones never resurrect",
    "once a tombstone is known no older version",
    "whole nodes agree on the rows",
  ],
  ["ours", "memory is bounded", "what the network feeds is bounded", "no peer makes a tombstone live longer"],
];

test("each property has its tests, by these names", () => {
  const numbers = INVARIANTS.map(([number]) => number);
  const all = Array.from({ length: UPSTREAM }, (_, index) => String(index + 1));
  assert.deepEqual(
    numbers.filter((number) => number !== "ours"),
    all,
  );
  const folder = resolve(dirname(fileURLToPath(import.meta.url)), "../../../test");
  const names = ["networkdb", "sim"].flatMap((area) =>
    readdirSync(join(folder, area))
      .filter((file) => file.endsWith(".test.ts"))
      .flatMap((file) => [
        ...readFileSync(join(folder, area, file), "utf8").matchAll(/\btest\(\s*"([^"]+)"/g),
      ]),
  );
  const missing = INVARIANTS.flatMap(([number, what, ...tests]) =>
    tests
      .filter((start) => !names.some(([, name]) => name?.startsWith(start)))
      .map((start) => `${number} (${what}): ${start}…`),
  );
  assert.deepEqual(missing, []);
});
