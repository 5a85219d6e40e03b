import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  TransmitOrder,
  TransmitQueue,
  transmitLimit,
  type Broadcast,
} from "../../src/base/transmit-queue.ts";

test("fewest transmissions first, then the longest that fits, then the newest", () => {
  const queue = new TransmitQueue({ maxEntries: 10 });
  queue.queue("long", message(1, 5));
  assert.deepEqual(ids(queue.take(100, 0, 4)), [1]);
  queue.queue("a", message(2, 2));
  queue.queue("b", message(3, 3));
  queue.queue("c", message(4, 3));
  assert.deepEqual(ids(queue.take(8, 0, 4)), [4, 3, 2], "the untransmitted ones, longest and newest first");
  assert.deepEqual(ids(queue.take(5, 0, 4)), [1], "all were sent once: the longest that fits");
});

test("a newer message replaces the older one of the same name", () => {
  const queue = new TransmitQueue({ maxEntries: 10 });
  queue.queue("x", message(1, 4));
  queue.queue("x", message(2, 4));
  assert.equal(queue.length, 1);
  assert.deepEqual(ids(queue.take(100, 0, 4)), [2]);
});

test("a message leaves after its last transmission", () => {
  const queue = new TransmitQueue({ maxEntries: 10 });
  queue.queue("x", message(1, 4));
  for (let i = 0; i < 3; i++) assert.equal(queue.take(100, 2, 3).length, 1);
  assert.equal(queue.length, 0);
  assert.equal(queue.has("x"), false);
});

test("a packet in several copies counts as often", () => {
  const queue = new TransmitOrder<Broadcast>({ maxEntries: 10 });
  queue.add({ payload: message(1, 4), order: 0, transmissions: 0 });
  assert.equal(queue.take(100, 2, 5, undefined, Infinity, 3).length, 1);
  assert.equal(queue.take(100, 2, 5, undefined, Infinity, 3).length, 1);
  assert.equal(queue.length, 0);
});

test("overhead counts against the budget", () => {
  const queue = new TransmitQueue({ maxEntries: 10 });
  for (let i = 0; i < 3; i++) queue.queue(undefined, message(i, 10));
  assert.equal(queue.take(27, 4, 4).length, 1);
  assert.equal(queue.take(28, 4, 4).length, 2);
});

test("a full queue gives up what was sent most often", () => {
  const queue = new TransmitQueue({ maxEntries: 2 });
  queue.queue("old", message(1, 4));
  queue.take(100, 0, 4);
  queue.queue("b", message(2, 4));
  queue.queue("c", message(3, 4));
  assert.equal(queue.has("old"), false);
  assert.equal(queue.overflowed, 1);
  assert.deepEqual(ids(queue.take(100, 0, 4)), [3, 2]);
});

test("the limit grows with the decimal logarithm of the group", () => {
  assert.deepEqual(
    [1, 9, 10, 99, 100].map((members) => transmitLimit(4, members)),
    [4, 4, 8, 8, 12],
  );
});

test("any sequence of operations matches a list sorted anew for every packet", () => {
  const operation = fc.oneof(
    fc.record({
      type: fc.constant("queue" as const),
      name: fc.integer({ max: 5, min: 0 }),
      size: fc.integer({ min: 1, max: 9 }),
    }),
    fc.record({ type: fc.constant("take" as const), budget: fc.integer({ min: 0, max: 30 }) }),
    fc.record({ type: fc.constant("delete" as const), name: fc.integer({ max: 5, min: 0 }) }),
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const queue = new TransmitQueue({ maxEntries: 1000 });
      let model: { name: string; payload: Uint8Array; sent: number; id: number }[] = [];
      operations.forEach((step, id) => {
        if (step.type === "queue") {
          const name = String(step.name);
          const payload = message(id, step.size);
          queue.queue(name, payload);
          model = [...model.filter((entry) => entry.name !== name), { name, payload, sent: 0, id }];
        } else if (step.type === "delete") {
          queue.delete(String(step.name));
          model = model.filter((entry) => entry.name !== String(step.name));
        } else {
          const sorted = [...model].sort(
            (a, b) => a.sent - b.sent || b.payload.length - a.payload.length || b.id - a.id,
          );
          let left = step.budget;
          const expected: Uint8Array[] = [];
          for (const entry of sorted) {
            if (entry.payload.length + 1 > left) continue;
            left -= entry.payload.length + 1;
            expected.push(entry.payload);
            entry.sent++;
          }
          model = model.filter((entry) => entry.sent < 3);
          assert.deepEqual(queue.take(step.budget, 1, 3), expected);
        }
        assert.equal(queue.length, model.length);
      });
    }),
  );
});

test("entries removed or sent by others leave nothing behind, however they are mixed", () => {
  const LIMIT = 4;
  const operation = fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({ type: fc.constant("add" as const), which: fc.integer({ min: 1, max: 9 }) }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        type: fc.constantFrom("sent", "remove", "skip"),
        which: fc.integer({ min: 0, max: 99 }),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ type: fc.constant("take" as const), which: fc.integer({ min: 0, max: 30 }) }),
    },
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 200 }), (operations) => {
      const gone: Broadcast[] = [];
      const heard = new Map<Broadcast, number>();
      let added = 0;
      const queue = new TransmitOrder<Broadcast>({ maxEntries: 40 }, (entry) => void gone.push(entry));
      let model: { readonly entry: Broadcast; sent: number; readonly id: number }[] = [];
      const skipped = new Set<Broadcast>();
      operations.forEach(({ type, which }, id) => {
        const chosen = model[which % Math.max(1, model.length)];
        if (type === "add") {
          const entry = { payload: message(id, which), order: 0, transmissions: 0 };
          if (model.length < 40) {
            queue.add(entry);
            added++;
            model.push({ entry, sent: 0, id });
          }
        } else if (type === "take") {
          const sorted = [...model].sort(
            (a, b) => a.sent - b.sent || b.entry.payload.length - a.entry.payload.length || b.id - a.id,
          );
          let left = which;
          const expected: Uint8Array[] = [];
          for (const each of sorted) {
            if (each.sent >= LIMIT) continue;
            if (each.entry.payload.length > left || skipped.has(each.entry)) continue;
            left -= each.entry.payload.length;
            expected.push(each.entry.payload);
            each.sent++;
          }
          const taken = queue.take(which, 0, LIMIT, {
            skip: (entry) => (skipped.has(entry) ? "uncounted" : "no"),
            heard(entry) {
              const times = heard.get(entry) ?? 0;
              heard.delete(entry);
              return times;
            },
          });
          assert.deepEqual(taken, expected);
        } else if (chosen !== undefined && type === "sent") {
          chosen.sent++;
          heard.set(chosen.entry, (heard.get(chosen.entry) ?? 0) + 1);
        } else if (chosen !== undefined && type === "remove") {
          chosen.sent = LIMIT;
          queue.remove(chosen.entry);
        } else if (chosen !== undefined) skipped.add(chosen.entry);
        model = model.filter((each) => !gone.includes(each.entry));
        assert.equal(queue.length, added - gone.length);
        assert.equal(queue.payloads().length, queue.length);
        assert.equal(
          queue.bytes,
          model.reduce((sum, each) => sum + each.entry.payload.length, 0),
        );
      });
      for (let round = 0; round < LIMIT; round++) queue.take(Infinity, 0, LIMIT);
      assert.equal(queue.length, 0);
      assert.equal(new Set(gone).size, added, "told of each that left");
      assert.equal(gone.length, added, "once");
    }),
  );
});

function message(id: number, length: number): Uint8Array {
  return new Uint8Array(length).fill(id);
}

function ids(messages: readonly Uint8Array[]): (number | undefined)[] {
  return messages.map((bytes) => bytes[0]);
}
