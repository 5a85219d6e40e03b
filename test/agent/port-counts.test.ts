import assert from "node:assert/strict";
import { test } from "node:test";
import { PortTotal, type PortCount } from "../../src/agent/port-counts.ts";

const port = (connections: number, refused = false): PortCount => ({
  protocol: "tcp",
  port: 8000,
  connections,
  refused,
});

test("a count that begins anew goes on in the total, and refusals are told apart", () => {
  const total = new PortTotal();
  assert.deepEqual(total.add([port(3)]), [
    { protocol: "tcp", port: 8000, accepted: 3, refused: 0, seen: port(3) },
  ]);
  const after = (...counts: PortCount[]): string =>
    total
      .add(counts)
      .map(({ accepted, refused }) => `${accepted}/${refused}`)
      .join();
  assert.equal(after(port(5)), "5/0");
  assert.equal(after(port(5)), "5/0");
  // The element was made anew: another class of backends.
  assert.equal(after(port(2)), "7/0");
  assert.equal(after(port(4, true)), "7/4");
  assert.equal(after(port(1)), "8/4");
  const other = { ...port(1), address: "192.0.2.7" } as PortCount;
  assert.equal(after(port(1), other), "8/4,1/0");
  assert.equal(after(), "");
  assert.equal(after(port(1)), "1/0", "a port that was gone is a new one");
});
