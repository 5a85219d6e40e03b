import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { networkId } from "../../src/base/id.ts";
import { seededRandom, shuffle } from "../../src/base/random.ts";
import { matches } from "../../src/networkdb/watch.ts";
import { encodeNetworkDbMessage as encode } from "../../src/wire/networkdb/message.ts";
import { changesIn, Lone, NET, TABLE, tableEvent, type EventFields } from "./lone.ts";

test("events in any order, repeated and in any packing end in the state of the highest time", () => {
  const event = fc.record(
    {
      node: fc.constantFrom("a", "b", "c"),
      key: fc.constantFrom("k1", "k2"),
      time: fc.integer({ min: 1, max: 12 }),
      change: fc.constantFrom("create" as const, "update" as const, "delete" as const),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(event, { maxLength: 20 }), fc.nat(), (raw, seed) => {
      // One version per key and time: equal times of two owners are the one case without an order.
      const events = unique(raw).map((fields) => ({ ...fields, value: `${fields.node}${fields.time}` }));
      const order = shuffle(seededRandom(seed), [...events, ...events]);
      const lone = attached();
      let watched = new Map<string, string>();
      order.forEach((fields, index) => {
        const effects = index % 2 === 0 ? lone.event(fields) : lone.bulk("a", [fields]);
        watched = apply(watched, changesIn(effects));
      });
      const newest = new Map<string, (typeof events)[number]>();
      for (const fields of events) {
        if ((newest.get(fields.key)?.time ?? 0) < fields.time) newest.set(fields.key, fields);
      }
      for (const key of ["k1", "k2"]) {
        const winner = newest.get(key);
        const visible = winner === undefined || winner.change === "delete" ? undefined : winner.value;
        assert.equal(lone.value(key), visible);
        assert.equal(watched.get(key), visible, "what a watcher made of it");
        assert.equal(lone.stored(key)?.time, winner?.time);
        assert.equal(lone.stored(key)?.owner, winner?.node);
      }
    }),
  );
});

test("a create that comes after its delete leaves nothing visible and no event", () => {
  const lone = attached();
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 5, change: "delete" })), []);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 4, value: "old" })), []);
  assert.equal(lone.value("k"), undefined);
});

test("an update before its create is reported as a create, a delete with the value last seen", () => {
  const lone = attached();
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 5, value: "v5", change: "update" })), [
    "k: - → v5",
  ]);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 3, value: "v3" })), []);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 6, value: "v6", change: "delete" })), [
    "k: v5 → -",
  ]);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 7, change: "delete" })), []);
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 8, value: "v8" })), ["k: - → v8"]);
});

test("leave, re-join and create, with the table events first, end with the row live", () => {
  const lone = attached();
  lone.event({ node: "a", key: "old", time: 1, value: "old" });
  lone.event({ node: "a", key: "new", time: 3, value: "new" });
  lone.networkEvent("a", "leave", 500);
  assert.equal(lone.value("old"), undefined);
  lone.networkEvent("a", "join", 501);
  assert.equal(lone.value("new"), undefined, "dropped with the leave");
  // Gossip repeats it, as does any bulk sync.
  lone.event({ node: "a", key: "new", time: 3, value: "new" });
  assert.equal(lone.value("new"), "new");
  lone.networkEvent("a", "leave", 500);
  assert.equal(lone.value("new"), "new", "an old leave is stale");
});

test("rows of a node that is not on the network are refused, and their times still witnessed", () => {
  const lone = new Lone();
  lone.join();
  lone.member("a", 1);
  lone.event({ node: "a", key: "k", time: 70, value: "v" });
  assert.equal(lone.stored("k"), undefined);
  assert.equal(lone.counter("owner-not-attached"), 1);
  lone.put("mine", "v");
  assert.ok((lone.stored("mine")?.time ?? 0) > 70);
});

test("nothing is stored of networks this node is not on, and rows go with the attachment", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  lone.put("mine", "m");
  const effects = lone.handle({ type: "leave-network", network: NET });
  assert.deepEqual(changesIn(effects).sort(), ["k: v → -", "mine: m → -"]);
  lone.event({ node: "a", key: "k", time: 2, value: "v" });
  assert.equal(lone.stored("k"), undefined);
  assert.equal(lone.stored("mine")?.state, "tombstone");
});

test("a bad part of a compound does not harm the others", () => {
  const lone = attached();
  const good = tableEvent({ node: "a", key: "k", time: 1, value: "v" });
  const before = lone.counter("message-invalid");
  lone.bulk("a", []);
  lone.receive({ type: "compound", parts: [Uint8Array.of(0x08, 9), Uint8Array.of(0xff), encode(good)] });
  assert.equal(lone.value("k"), "v");
  assert.equal(lone.counter("message-invalid"), before + 2);
});

test("nesting without end is cut off", () => {
  const lone = attached();
  let message = encode(tableEvent({ node: "a", key: "k", time: 1 }));
  for (let i = 0; i < 50; i++) message = encodeCompound(message);
  lone.handle({ type: "user-message", bytes: message, via: "packet" });
  assert.equal(lone.counter("message-nested-too-deep"), 1);
});

test("a watcher gets exactly what matches, and snapshot plus stream is the whole history", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k1", time: 1, value: "one" });
  lone.put("k2", "two");
  lone.event({ node: "a", key: "gone", time: 2, change: "delete" });
  let seen = apply(new Map(), changesIn(lone.db.snapshot({ network: NET, table: TABLE })));
  assert.deepEqual(Object.fromEntries(seen), { k1: "one", k2: "two" });
  seen = apply(seen, changesIn(lone.event({ node: "a", key: "k1", time: 3, change: "delete" })));
  seen = apply(seen, changesIn(lone.put("k2", "two'")));
  assert.deepEqual(Object.fromEntries(seen), { k2: "two'" });

  assert.deepEqual(lone.db.snapshot({ table: "other" }), []);
  assert.deepEqual(lone.db.snapshot({ network: networkId("red") }), []);
  const row = { network: NET, table: TABLE };
  assert.ok(matches({}, row) && matches({ table: TABLE }, row) && matches({ network: NET }, row));
  assert.ok(!matches({ table: "other" }, row) && !matches({ network: networkId("red"), table: TABLE }, row));
});

test("the same value of the same owner again is no change", () => {
  const lone = attached();
  lone.event({ node: "a", key: "k", time: 1, value: "v" });
  assert.deepEqual(changesIn(lone.event({ node: "a", key: "k", time: 2, value: "v" })), []);
  assert.equal(lone.stored("k")?.time, 2);
});

/** On the network, with three participants. */
function attached(): Lone {
  const lone = new Lone();
  lone.join();
  ["a", "b", "c"].forEach((name, index) => lone.peer(name, index + 1));
  return lone;
}

function unique<T extends EventFields>(events: readonly T[]): T[] {
  return [...new Map(events.map((fields) => [`${fields.key} ${fields.time}`, fields])).values()];
}

/** Applies changes written as `key: previous → current`, checking that `previous` is what was there. */
function apply(watched: ReadonlyMap<string, string>, changes: readonly string[]): Map<string, string> {
  const result = new Map(watched);
  for (const change of changes) {
    const [, key = "", previous, current = ""] = /^(\S+): (\S+) → (\S+)$/.exec(change) ?? [];
    assert.equal(result.get(key) ?? "-", previous);
    if (current === "-") result.delete(key);
    else result.set(key, current);
  }
  return result;
}

function encodeCompound(part: Uint8Array): Uint8Array {
  return encode({ type: "compound", parts: [part] });
}
