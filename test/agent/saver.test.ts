import assert from "node:assert/strict";
import { test } from "node:test";
import { Saver } from "../../src/agent/saver.ts";
import { NetError } from "../../src/base/error.ts";

test("a write that fails is tried again until it works; both are told once", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const full = new NetError("save-failed", "no space");
  let failing = true;
  let writes = 0;
  const saver = new Saver(() => {
    writes++;
    if (failing) throw full;
    return undefined;
  }, 100);
  const told: string[] = [];
  saver.onFailure = (error) => told.push(error.message);
  saver.onRecovery = () => told.push("recovered");
  saver.soon();
  saver.soon();
  t.mock.timers.tick(100);
  assert.equal(writes, 1);
  assert.throws(() => saver.now(), full);
  for (let second = 0; second < 5; second++) t.mock.timers.tick(1_000);
  assert.equal(writes, 7);
  assert.equal(saver.failure, full);
  failing = false;
  t.mock.timers.tick(60_000);
  assert.deepEqual(
    { writes, failure: saver.failure, told },
    { writes: 8, failure: undefined, told: ["no space", "recovered"] },
  );
});

test("a disk that is full after a write is known before the next one", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const full = new NetError("save-failed", "no space");
  let room: NetError | undefined = full;
  const saver = new Saver(() => room, 100);
  saver.now();
  assert.equal(saver.failure, full);
  room = undefined;
  assert.ok(saver.try());
  assert.equal(saver.failure, undefined);
});

test("what waits is written at the end", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  let writes = 0;
  const saver = new Saver(() => void writes++ as undefined, 100);
  saver.soon();
  saver.close();
  saver.close();
  t.mock.timers.tick(60_000);
  assert.equal(writes, 1);
});
