import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { Pulse } from "../../src/agent/pulse.ts";
import { instant } from "../../src/base/time.ts";

test("what is due is done when the process is awake, all of it in one go, and no wakeup is asked for before", async () => {
  const { pulse, at, done } = world(100);
  pulse.every(2_000, () => done.push("two"));
  pulse.every(3_000, () => done.push("three"));
  assert.equal(pulse.latest(), 3_000, "a second after the first is due");
  assert.deepEqual(await at(1_999), []);
  assert.deepEqual(await at(2_040), ["two"]);
  assert.equal(pulse.latest(), 4_000);
  assert.deepEqual(await at(6_500), ["two", "three"]);
  assert.deepEqual(await at(6_600), [], "what was slept through is done once");
  assert.deepEqual(await at(8_000), ["two"]);
});

test("what ended is not done, also when an earlier one in the same go ends it", async () => {
  const { pulse, at, done } = world(0);
  const ends: (() => void)[] = [];
  pulse.every(1_000, () => {
    done.push("first");
    for (const end of ends) end();
  });
  ends.push(pulse.every(1_000, () => done.push("second")));
  assert.deepEqual(await at(1_000), ["first"]);
  assert.deepEqual(await at(2_000), ["first"]);
});

function world(startMs: number) {
  let now = startMs;
  const done: string[] = [];
  const pulse = new Pulse(() => instant(now));
  const at = async (ms: number): Promise<string[]> => {
    now = ms;
    pulse.beat();
    pulse.beat();
    await turn();
    return done.splice(0);
  };
  return { pulse, at, done };
}
