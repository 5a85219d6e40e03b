import assert from "node:assert/strict";
import { test } from "node:test";
import { DropWatch, type Drops } from "../../src/agent/drop-watch.ts";
import { instant } from "../../src/base/time.ts";

test("each reason is told when it begins, and again after a minute with all that came meanwhile", () => {
  const told: string[] = [];
  let now = 0;
  let drops: Drops = [];
  const watch = new DropWatch(
    () => drops,
    () => instant(now),
    (where, detail) => told.push(`${where}: ${detail}`),
  );
  const at = (ms: number, next: Drops): string[] => {
    now = ms;
    drops = next;
    watch.look();
    return told.splice(0);
  };
  assert.deepEqual(at(0, [["gossip", "seal", 3]]), ["gossip: 3 dropped: seal"]);
  assert.deepEqual(at(10_000, [["gossip", "seal", 5]]), []);
  const both: Drops = [
    ["gossip", "seal", 9],
    ["engine", "rxDropChecksum", 1],
  ];
  assert.deepEqual(at(60_000, both), ["gossip: 6 dropped: seal", "engine: 1 dropped: rxDropChecksum"]);
  assert.deepEqual(at(200_000, both), []);
});
