import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { nodeId, serviceId, type NodeId } from "../../src/base/id.ts";
import { instant } from "../../src/base/time.ts";
import { compareEntries, Definitions, TOMBSTONE_MS } from "../../src/state/definitions.ts";
import type { Service } from "../../src/wire/state/definition.ts";
import type { Entry } from "../../src/wire/state/entry.ts";

const A = nodeId("a");
const B = nodeId("b");
const T0 = instant(0);

test("whatever the order, the batches and the repetitions, the map is the same", () => {
  const entries = fc.array(anyWrite(), { minLength: 1, maxLength: 25 });
  fc.assert(
    fc.property(entries, fc.array(fc.nat(), { maxLength: 60 }), (writes, order) => {
      const inOrder = new Definitions();
      inOrder.merge(writes, T0);
      const shuffled = new Definitions();
      const left = [...writes, ...order.map((index) => writes[index % writes.length] as Entry)];
      left.sort((x, y) => (order[writes.indexOf(x) % order.length] ?? 0) - (order[writes.indexOf(y)] ?? 0));
      for (let at = 0; at < left.length; at += 3) shuffled.merge(left.slice(at, at + 3), T0);
      shuffled.merge([...writes].reverse(), T0);
      assert.deepEqual(contents(shuffled), contents(inOrder));
      assert.deepEqual(shuffled.merge(writes, T0).accepted, [], "nothing is news twice");
    }),
  );
});

test("the order of writes is total: no two different entries are equal, and it has no circles", () => {
  fc.assert(
    fc.property(anyWrite(), anyWrite(), anyWrite(), (a, b, c) => {
      assert.equal(Math.sign(compareEntries(a, b)) + Math.sign(compareEntries(b, a)), 0);
      if (compareEntries(a, b) >= 0 && compareEntries(b, c) >= 0) assert.ok(compareEntries(a, c) >= 0);
    }),
  );
});

test("the later write wins, and the writer's id when both were made at one time", () => {
  const [here, there] = [new Definitions(), new Definitions()];
  const first = here.write({ kind: "service", value: service("one") }, A, T0);
  const second = there.write({ kind: "service", value: service("two") }, B, T0);
  here.merge([second], T0);
  there.merge([first], T0);
  assert.equal(here.service("s")?.name, "two");
  assert.equal(there.service("s")?.name, "two");
  const third = here.write({ kind: "service", value: service("three") }, A, T0);
  there.merge([third], T0);
  assert.equal(there.service("s")?.name, "three");
});

test("a removal is final, however late a write from the other side comes", () => {
  const [here, there] = [new Definitions(), new Definitions()];
  there.merge([here.write({ kind: "service", value: service("web") }, A, T0)], T0);
  const removal = here.remove("service", "s", A, T0);
  for (let i = 0; i < 5; i++) there.write({ kind: "service", value: service(`web${i}`) }, B, T0);
  const late = there.entry("service/s", T0);
  assert.ok(late && late.lamport > removal.lamport);
  here.merge([late], T0);
  there.merge([removal], T0);
  assert.equal(here.service("s"), undefined);
  assert.equal(there.service("s"), undefined);
});

test("a tombstone is kept for a week of this replica's time, and replicas agree on its age", () => {
  const day = TOMBSTONE_MS / 7;
  const [here, there] = [new Definitions(), new Definitions()];
  here.remove("service", "s", A, T0);
  const aged = here.entry("service/s", instant(3 * day));
  assert.equal(aged?.ageSeconds, (3 * day) / 1000);
  there.merge([aged], T0);
  assert.deepEqual(there.expire(instant(4 * day - 1)), []);
  assert.deepEqual(there.expire(instant(4 * day)), ["service/s"]);
  // One that still has it gives it back with its age: it goes again at once, not in another week.
  there.merge([here.entry("service/s", instant(7 * day - 1000)) as Entry], instant(4 * day));
  assert.deepEqual(there.expire(instant(4 * day + 1000)), ["service/s"]);
});

test("clocks move past everything seen, so that a write is later than what it replaces", () => {
  const map = new Definitions();
  map.merge([{ ...map.write({ kind: "service", value: service("x") }, A, T0), lamport: 1000 }], T0);
  assert.equal(map.write({ kind: "service", value: service("y") }, A, T0).lamport, 1001);
});

function service(name: string, id = "s"): Service {
  return {
    id: serviceId(id),
    name,
    networks: [],
    ports: [],
    endpointMode: "vip",
    affinity: "none",
    labels: {},
    created: 1,
  };
}

/** Few ids, times and writers, so that they meet. */
function anyWrite(): fc.Arbitrary<Entry> {
  return fc
    .record({
      id: fc.constantFrom("s1", "s2"),
      lamport: fc.nat(4),
      writer: fc.constantFrom<NodeId>(A, B),
      name: fc.constantFrom("x", "y"),
      dead: fc.boolean(),
    })
    .map(({ id, lamport, writer, name, dead }): Entry => {
      const map = new Definitions();
      const entry = map.write({ kind: "service", value: service(name, id) }, writer, T0);
      if (!dead) return { ...entry, lamport };
      return { kind: "service", id, lamport, writer, raw: new Uint8Array(0), ageSeconds: 0 };
    });
}

function contents(map: Definitions): unknown {
  return [...map.entries(T0)].sort(([a], [b]) => (a < b ? -1 : 1));
}
