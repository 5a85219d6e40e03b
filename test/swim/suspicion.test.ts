import assert from "node:assert/strict";
import { test } from "node:test";
import { instant } from "../../src/base/time.ts";
import { Awareness } from "../../src/swim/awareness.ts";
import { LAN, LOCAL, swimConfig, WAN } from "../../src/swim/config.ts";
import { OwnLink } from "../../src/swim/own-link.ts";
import { RoundTrips } from "../../src/swim/rtt.ts";
import { Suspicions, suspicionTerms, suspicionTimeoutMs, type Suspect } from "../../src/swim/suspicion.ts";

interface Named extends Suspect {
  readonly name: string;
}

test("suspicion times are memberlist's for every cluster size", () => {
  const expected: readonly (readonly [number, number, number, number])[] = [
    [1, 4_000, 24_000, 0],
    [3, 4_000, 24_000, 0],
    [4, 4_000, 24_000, 2],
    [10, 4_000, 24_000, 2],
    [50, 6_792, 40_752, 2],
    [100, 8_000, 48_000, 2],
    [1_000, 12_000, 72_000, 2],
  ];
  for (const [members, minMs, maxMs, confirmationsWanted] of expected) {
    assert.deepEqual(suspicionTerms(LAN, members), { minMs, maxMs, confirmationsWanted });
  }
});

test("each confirmation takes its share of the time, and the last leaves the least", () => {
  const terms = suspicionTerms(LAN, 10);
  assert.equal(suspicionTimeoutMs(terms, 0), 24_000);
  assert.equal(suspicionTimeoutMs(terms, 1), Math.floor(24_000 - 20_000 * (Math.log(2) / Math.log(3))));
  assert.equal(suspicionTimeoutMs(terms, 2), 4_000);
  assert.equal(suspicionTimeoutMs(suspicionTerms(LAN, 2), 0), 4_000);
});

test("only new accusers count, and only as many as wanted", () => {
  const suspicions = new Suspicions<Named>(0);
  const x: Named = { name: "x", suspicion: undefined };
  suspicions.start(x, "a", suspicionTerms(LAN, 10), instant(0));
  assert.equal(suspicions.confirm(x, "a"), false);
  assert.equal(suspicions.confirm(x, "b"), true);
  assert.equal(suspicions.confirm(x, "b"), false);
  assert.equal(suspicions.confirm(x, "c"), true);
  assert.equal(suspicions.confirm(x, "d"), false);
  assert.equal(suspicions.nextWakeup(), 4_000);
  assert.deepEqual(suspicions.takeDue(instant(3_999)), []);
  assert.deepEqual(suspicions.takeDue(instant(4_000)), [x]);
});

test("a confirmation that comes after the shorter time has passed makes the verdict due at once", () => {
  const suspicions = new Suspicions<Named>(0);
  const x: Named = { name: "x", suspicion: undefined };
  suspicions.start(x, "a", suspicionTerms(LAN, 10), instant(0));
  assert.deepEqual(suspicions.takeDue(instant(10_000)), []);
  suspicions.confirm(x, "b");
  suspicions.confirm(x, "c");
  assert.deepEqual(suspicions.takeDue(instant(10_000)), [x]);
});

test("time this node slept through is given back to suspects", () => {
  const suspicions = new Suspicions<Named>(0);
  const x: Named = { name: "x", suspicion: undefined };
  suspicions.start(x, "a", suspicionTerms(LAN, 2), instant(0));
  suspicions.shift(30_000);
  assert.deepEqual(suspicions.takeDue(instant(33_999)), []);
  assert.deepEqual(suspicions.takeDue(instant(34_000)), [x]);
});

test("the health score stays within its levels and scales time", () => {
  const awareness = new Awareness(8);
  awareness.add(-1);
  assert.equal(awareness.score, 0);
  awareness.add(3);
  assert.equal(awareness.scale(1_000), 4_000);
  awareness.add(100);
  assert.equal(awareness.score, 7);
});

test("the own link is doubted when most of the latest probes failed, against several members", () => {
  const link = new OwnLink();
  for (const target of ["a", "a", "a"]) link.record(target, false);
  assert.equal(link.doubtful, false, "one silent member is its own problem");
  for (const target of ["b", "c"]) link.record(target, false);
  assert.equal(link.doubtful, true);
  for (const target of ["d", "e", "f", "g", "h"]) link.record(target, true);
  assert.equal(link.doubtful, false);
});

test("round trips are smoothed, and a stranger is expected to be like the others", () => {
  const trips = new RoundTrips();
  assert.equal(trips.limitMs("a"), undefined);
  for (let i = 0; i < 50; i++) trips.add("a", 10);
  assert.equal(Math.round(trips.smoothedMs("a") ?? 0), 10);
  assert.ok((trips.limitMs("b") ?? 0) < 15);
  trips.forget("a");
  assert.equal(trips.smoothedMs("a"), undefined);
});

test("profiles are valid, and contradictions are not", () => {
  for (const profile of [LAN, WAN, LOCAL]) swimConfig(profile);
  assert.throws(() => swimConfig(LAN, { probeTimeoutMs: 1_000 }), /TCP fallback/);
  assert.throws(() => swimConfig(LAN, { gossipNodes: 0 }), /at least one/);
  assert.throws(() => swimConfig(LAN, { retransmitMult: -1 }), /negative/);
});
