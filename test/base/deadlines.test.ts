import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Deadlines, DueHeap, type Due } from "../../src/base/deadlines.ts";
import { after, earliest, elapsed, instant, type Instant } from "../../src/base/time.ts";

type Action =
  | { readonly type: "set"; readonly key: number; readonly at: number }
  | { readonly type: "delete"; readonly key: number }
  | { readonly type: "take"; readonly now: number };

const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ type: fc.constant("set" as const), key: fc.nat(12), at: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("delete" as const), key: fc.nat(12) }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant("take" as const), now: fc.nat(20) }) },
);

test("deadlines do what a plain map searched from end to end does", () => {
  fc.assert(
    fc.property(fc.array(action, { maxLength: 300 }), (actions) => {
      const deadlines = new Deadlines<number>();
      const model = new Map<number, number>();
      for (const step of actions) {
        switch (step.type) {
          case "set":
            deadlines.set(step.key, instant(step.at));
            model.set(step.key, step.at);
            break;
          case "delete":
            assert.equal(deadlines.delete(step.key), model.delete(step.key));
            break;
          case "take": {
            const due = deadlines.takeDue(instant(step.now));
            const times = due.map((key) => model.get(key) ?? NaN);
            assert.deepEqual(
              times,
              [...times].sort((a, b) => a - b),
              "earliest first",
            );
            const expected = [...model].filter(([, at]) => at <= step.now).map(([key]) => key);
            assert.deepEqual(due.toSorted(), expected.toSorted());
            for (const key of expected) model.delete(key);
          }
        }
        assert.equal(deadlines.size, model.size);
        assert.equal(deadlines.earliest(), model.size === 0 ? undefined : Math.min(...model.values()));
        for (const key of [0, 5, 12]) assert.equal(deadlines.get(key), model.get(key));
      }
    }),
  );
});

test("deadlines kept in their items are the same", () => {
  fc.assert(
    fc.property(fc.array(action, { maxLength: 300 }), (actions) => {
      const heap = new DueHeap<Due>();
      const deadlines = new Deadlines<Due>();
      const items = Array.from({ length: 13 }, (): Due => ({ dueAt: instant(0), heapIndex: -1 }));
      for (const step of actions) {
        if (step.type === "take") {
          const now = instant(step.now);
          const due = heap.takeDue(now);
          const times = due.map((item) => item.dueAt);
          assert.deepEqual(
            times,
            [...times].sort((a, b) => a - b),
          );
          assert.deepEqual(new Set(due), new Set(deadlines.takeDue(now)));
        } else {
          const item = items[step.key];
          assert.ok(item !== undefined);
          if (step.type === "delete") assert.equal(heap.delete(item), deadlines.delete(item));
          else {
            heap.set(item, instant(step.at));
            deadlines.set(item, instant(step.at));
          }
        }
        assert.equal(heap.size, deadlines.size);
        assert.equal(heap.earliest(), deadlines.earliest());
      }
      const earliest = heap.earliest();
      heap.shift(5);
      assert.equal(heap.earliest(), earliest === undefined ? undefined : after(earliest, 5));
    }),
  );
});

test("a deadline moved a million times still is one", () => {
  const deadlines = new Deadlines<string>();
  for (let i = 0; i < 1_000_000; i++) deadlines.set(i % 2 === 0 ? "a" : "b", instant(1_000_000 - i));
  assert.equal(deadlines.size, 2);
  assert.deepEqual(deadlines.takeDue(instant(2)), ["b", "a"]);
  assert.equal(deadlines.earliest(), undefined);
});

test("clearing forgets all", () => {
  const deadlines = new Deadlines<string>();
  deadlines.set("a", instant(1));
  deadlines.clear();
  assert.equal(deadlines.size, 0);
  assert.deepEqual(deadlines.takeDue(instant(9)), []);
});

test("time is a line: after and elapsed are inverse, and the earliest is first", () => {
  fc.assert(
    fc.property(fc.nat(), fc.nat(), (start, wait) => {
      const end: Instant = after(instant(start), wait);
      assert.equal(elapsed(instant(start), end), wait);
      assert.equal(elapsed(end, instant(start)) + wait, 0);
      assert.equal(earliest(end, undefined, instant(start)), start);
    }),
  );
  assert.equal(earliest(undefined), undefined);
  assert.equal(earliest(), undefined);
});
