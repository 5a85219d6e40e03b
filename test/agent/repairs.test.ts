import assert from "node:assert/strict";
import { test } from "node:test";
import { Repairs } from "../../src/agent/repairs.ts";
import { instant } from "../../src/base/time.ts";

test("equal repairs are one with a count, the latest comes first, and the old are forgotten", () => {
  const repairs = new Repairs();
  repairs.add("blue", "vxlan0 was down", instant(0));
  repairs.add("blue", "eth0 was gone", instant(1_000));
  repairs.add("blue", "vxlan0 was down", instant(2_000));
  assert.deepEqual(repairs.recent(instant(3_000)), [
    { subject: "blue", text: "vxlan0 was down", times: 2, agoMs: 1_000 },
    { subject: "blue", text: "eth0 was gone", times: 1, agoMs: 2_000 },
  ]);
  assert.deepEqual(
    repairs.recent(instant(601_500)).map(({ text }) => text),
    ["vxlan0 was down"],
  );
});

test("a hand that breaks ever other things does not fill the memory", () => {
  const repairs = new Repairs();
  for (let index = 0; index < 1_000; index++) repairs.add("blue", `fault ${index}`, instant(index));
  const kept = repairs.recent(instant(1_000));
  assert.ok(kept.length <= 64);
  assert.equal(kept[0]?.text, "fault 999");
});
