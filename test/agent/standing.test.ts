import assert from "node:assert/strict";
import { test } from "node:test";
import { StandingFaults } from "../../src/agent/standing.ts";
import { parseIp } from "../../src/base/ip.ts";

test("each look at a place replaces what was known of it, and only what is new is told", () => {
  const standing = new StandingFaults();
  const gone = { text: "eth0 was gone" };
  const entry = { text: "the FDB entry of M was gone", vtep: parseIp("192.0.2.7") };
  assert.deepEqual(standing.replace("blue", "blue", [gone]), [gone]);
  assert.deepEqual(standing.replace("blue", "blue", [gone, entry]), [entry]);
  assert.deepEqual(standing.replace("host", "mesh", [gone]), [gone]);
  assert.deepEqual(standing.all(), [
    { ...gone, subject: "blue" },
    { ...entry, subject: "blue" },
    { ...gone, subject: "mesh" },
  ]);
  standing.replace("blue", "blue", []);
  assert.deepEqual(standing.all(), [{ ...gone, subject: "mesh" }]);
  assert.equal(standing.found, 3);
});

test("a flushed table does not fill the memory", () => {
  const standing = new StandingFaults();
  const faults = Array.from({ length: 1_000 }, (_, index) => ({ text: `fault ${index}` }));
  assert.ok(standing.replace("blue", "blue", faults).length <= 50);
  assert.ok(standing.all().length <= 50);
});
