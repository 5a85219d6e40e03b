import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import { parseIp, type IpAddr } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import { PathProber, type PathInput } from "../../src/overlay/path-prober.ts";
import { decodePathProbe, encodePathProbe, smallestProbe } from "../../src/wire/path-probe.ts";

const A = parseIp("192.0.2.1");
const B = parseIp("192.0.2.2");
const FULL = 1450;

test("a probe is what was encoded, and as long as it says", () => {
  fc.assert(
    fc.property(
      fc.constantFrom<IpAddr>(A, parseIp("2001:db8::1")),
      fc.constantFrom("probe" as const, "answer" as const),
      fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }),
      fc.integer({ min: 0, max: 9_000 }),
      (ip, kind, nonce, more) => {
        const probe = { kind, nonce, size: smallestProbe(ip) + more };
        const bytes = encodePathProbe(probe, ip);
        assert.deepEqual(decodePathProbe(bytes, ip), probe);
        const headers = smallestProbe(ip) - 15;
        assert.equal(bytes.length + headers, kind === "probe" ? probe.size : smallestProbe(ip));
      },
    ),
  );
});

test("arbitrary bytes are a probe or a DecodeError", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      try {
        decodePathProbe(bytes, A);
      } catch (error) {
        assert.ok(error instanceof DecodeError);
      }
    }),
  );
});

test("a path that is well costs each side eight probes a minute at most", () => {
  const pair = new Pair();
  pair.run(60_000);
  assert.deepEqual(pair.seen(), ["ok/1450/", "ok/1450/"]);
  assert.ok(pair.a.counters.sent <= 8, String(pair.a.counters.sent));
});

test("what is blocked one way is told apart, on both sides", () => {
  const pair = new Pair();
  pair.run(15_000);
  pair.fromAToB = 0;
  pair.run(20_000);
  assert.deepEqual(pair.seen(), [
    "blocked/null/one way: we hear them, they do not hear us",
    "blocked/null/one way: they hear us, we do not hear them",
  ]);
  pair.fromBToA = 0;
  pair.run(30_000);
  const both = "blocked/null/nothing gets through in either direction";
  assert.deepEqual(pair.seen(), [both, both]);
  pair.fromAToB = pair.fromBToA = 65_535;
  pair.run(10_000);
  assert.deepEqual(pair.seen(), ["ok/1450/", "ok/1450/"]);
});

test("the largest packet that fits is found exactly, and full size is noticed when it fits again", () => {
  fc.assert(
    fc.property(fc.integer({ min: smallestProbe(A), max: FULL - 1 }), (mtu) => {
      const pair = new Pair();
      pair.fromAToB = mtu;
      pair.run(25_000);
      assert.deepEqual(pair.seen(), [
        `ok/${mtu}/packets of 1450 bytes are lost, ${mtu} get through`,
        "ok/1450/",
      ]);
      pair.fromAToB = FULL;
      pair.run(6_000 + 10_000);
      assert.equal(pair.seen()[0], "ok/1450/");
    }),
    { numRuns: 40 },
  );
});

test("single losses do not make a path bad", () => {
  const pair = new Pair();
  pair.loss = 0.05;
  pair.run(600_000);
  assert.deepEqual(pair.changes, ["ok/1450/", "ok/1450/"]);
});

test("a peer that has no data path is unknown, and is found as soon as it probes", () => {
  const pair = new Pair();
  pair.bIsUp = false;
  pair.run(20_000);
  assert.equal(pair.seen()[0], "unknown/null/it has no data path: nothing is attached there");
  pair.bIsUp = true;
  pair.run(2_000);
  assert.equal(pair.seen()[0], "ok/1450/");
});

test("an answer from somebody else, or to a question nobody asked, counts for nothing", () => {
  const prober = new PathProber(seededRandom(1));
  const [sent] = prober.handle({ type: "peers", peers: new Set([B]), fullSize: FULL }, instant(0));
  assert.ok(sent?.type === "send");
  const answer = { ...sent.probe, kind: "answer" as const };
  prober.handle({ type: "received", from: A, probe: answer }, instant(1));
  prober.handle({ type: "received", from: B, probe: { ...answer, nonce: answer.nonce ^ 1n } }, instant(1));
  assert.equal(prober.health(B).state, "unknown");
  prober.handle({ type: "received", from: B, probe: answer }, instant(1));
  assert.equal(prober.health(B).state, "ok");
});

/** Two probers and what is between them, on a virtual clock. Larger packets than a direction's limit are lost. */
class Pair {
  readonly a = new PathProber(seededRandom(1));
  readonly b = new PathProber(seededRandom(2));
  fromAToB = 65_535;
  fromBToA = 65_535;
  loss = 0;
  bIsUp = true;
  readonly changes: string[] = [];
  readonly #random = seededRandom(3);
  #now = 0;
  #started = false;
  #bStarted = false;

  run(forMs: number): void {
    const end = this.#now + forMs;
    for (; this.#now <= end; this.#now += 50) {
      if (!this.#started) this.#feed("a", { type: "peers", peers: new Set([B]), fullSize: FULL });
      this.#started = true;
      if (this.bIsUp && !this.#bStarted) {
        this.#bStarted = true;
        this.#feed("b", { type: "peers", peers: new Set([A]), fullSize: FULL });
      }
      for (const name of ["a", "b"] as const) {
        const at = this[name].nextWakeup();
        if (at !== undefined && at <= this.#now) this.#feed(name, { type: "wake" });
      }
    }
  }

  seen(): string[] {
    return [this.a.health(B), this.b.health(A)].map(({ state, mtu, detail }) => `${state}/${mtu}/${detail}`);
  }

  #feed(name: "a" | "b", input: PathInput): void {
    const now = instant(this.#now);
    const limit = name === "a" ? "fromAToB" : "fromBToA";
    const [self, other] = name === "a" ? [A, "b" as const] : [B, "a" as const];
    for (const effect of this[name].handle(input, now)) {
      switch (effect.type) {
        case "send": {
          const size = effect.probe.kind === "probe" ? effect.probe.size : smallestProbe(A);
          const arrives =
            size <= this[limit] && this.#random.next() >= this.loss && (other === "a" || this.bIsUp);
          if (arrives) this.#feed(other, { type: "received", from: self, probe: effect.probe });
          break;
        }
        case "ask": {
          const heardAt = this[other].heardAt(self);
          const heardMsAgo = heardAt === undefined ? undefined : this.#now - heardAt;
          const testimony = { probing: other === "a" || this.bIsUp, heardMsAgo };
          this.#feed(name, { type: "told", peer: effect.peer, testimony });
          break;
        }
        case "changed":
          this.changes.push(`${effect.health.state}/${effect.health.mtu}/${effect.health.detail}`);
          break;
      }
    }
  }
}
