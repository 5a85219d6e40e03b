import assert from "node:assert/strict";
import { test } from "node:test";
import { parseTraffic } from "../../src/agent/network-traffic.ts";

test("a device's line is read, also where its numbers leave no room for a space", () => {
  const text = [
    "Inter-|   Receive                                                |  Transmit",
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed",
    "    lo:     120       2    0    0    0     0          0         0      120       2    0    0    0     0       0          0",
    "vxlan0:123456789012     100    1    2    0     0          0         0    9000      90    3    4    0     0       0          0",
    "",
  ].join("\n");
  assert.deepEqual(parseTraffic(text, "vxlan0"), {
    in: { bytes: 123_456_789_012, packets: 100, dropped: 3 },
    out: { bytes: 9000, packets: 90, dropped: 7 },
  });
  assert.equal(parseTraffic(text, "vxlan1"), undefined);
});
