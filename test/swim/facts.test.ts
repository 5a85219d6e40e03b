import assert from "node:assert/strict";
import { test } from "node:test";
import { pick, randomInt, seededRandom } from "../../src/base/random.ts";
import { instant, type Instant } from "../../src/base/time.ts";
import { Claims } from "../../src/swim/claims.ts";
import { LAN } from "../../src/swim/config.ts";
import { Context } from "../../src/swim/context.ts";
import { makeIdentity, MemberRecord } from "../../src/swim/member.ts";
import { Suspicions } from "../../src/swim/suspicion.ts";
import { encodeMessage } from "../../src/wire/memberlist/message.ts";
import { forEachSeed } from "../sim/seed.ts";
import { addressOf, NO_USER_BROADCASTS, VSN } from "./lone-node.ts";

/** Enough for the short ways that a large cluster takes. */
const MEMBERS = 200;

test("what is kept of each member beside its record is what the record says, whatever is claimed", () => {
  forEachSeed(20, (seed) => {
    const random = seededRandom(seed);
    const { context, claims } = lone(seed);
    for (let number = 0; number < MEMBERS; number++) claim(number, 1, 0);
    assert.ok(context.queue.large);
    for (let step = 0; step < 2_000; step++) {
      const now = instant(step);
      const number = randomInt(random, MEMBERS);
      const incarnation = randomInt(random, 4);
      const from = `n${randomInt(random, 6)}`;
      const about = { incarnation, node: `n${number}`, from } as const;
      const via = pick(random, [{}, { place: "10.9.9.9:7946" }]) ?? {};
      const what = randomInt(random, 10);
      if (what < 4) claim(number, incarnation, step, randomInt(random, 3));
      else if (what < 7) claims.suspect({ type: "suspect", ...about }, now, via);
      else if (what < 8) claims.dead({ type: "dead", ...about }, now, via);
      else if (what < 9) anew(number, now);
      else context.members.drop((member) => !member.present && randomInt(random, 2) === 0);
      if (step % 50 === 0) check();
    }
    check();

    function claim(number: number, incarnation: number, at: number, form = 0): void {
      const addr = addressBytes(number, form);
      const message = { type: "alive", node: `n${number}`, incarnation, addr, port: 7946 } as const;
      claims.alive({ ...message, meta: new Uint8Array(0), vsn: VSN }, instant(at), {
        place: "10.9.9.9:7946",
      });
    }

    function anew(number: number, now: Instant): void {
      const member = context.members.get(`n${number}`);
      if (member?.suspicion !== undefined) claims.suspectAnew(member, member.suspicion.terms, now);
    }

    function check(): void {
      const { members } = context;
      for (const member of members) {
        if (member === context.self) continue;
        const { number, incarnation, state, addr, port, suspicion } = member;
        const { facts } = members;
        assert.equal(members.numberOf(member.name), number);
        assert.equal(facts.incarnation(number), incarnation);
        assert.equal(facts.isAlive(number), state === "alive");
        const short = state === "alive" && addr.length === 4;
        assert.equal(facts.knowsAlive(number, incarnation, addr, port), short);
        assert.equal(facts.knowsAlive(number, incarnation + 1, addr, port), false);
        assert.equal(facts.knowsAlive(number, incarnation, addr, port + 1), false);
        assert.equal(facts.knowsGone(number), !member.present);
        const settled = state === "suspect" && suspicion?.left === 0;
        assert.equal(facts.knowsSuspect(number, incarnation), settled || !member.present);
        assert.equal(members.presentAt(member.identity).includes(member), member.present);
      }
    }
  });
});

test("an address in its longer form is found, and is not taken for the shorter one", () => {
  const { context, claims } = lone(1);
  const [short, long, other] = [0, 1, 2].map((form) => addressBytes(7, form));
  assert.ok(short !== undefined && long !== undefined && other !== undefined);
  const message = { type: "alive", incarnation: 1, port: 7946, meta: new Uint8Array(0), vsn: VSN } as const;
  claims.alive({ ...message, node: "mapped", addr: long }, instant(0));
  claims.alive({ ...message, node: "v6", addr: other }, instant(0));
  const { members } = context;
  const { place } = makeIdentity({ name: "any", addr: short, port: 7946, meta: short, vsn: VSN });
  const found = members.presentAt({ addr: short, port: 7946, place });
  assert.deepEqual(
    found.map(({ name }) => name),
    ["mapped"],
  );
  assert.equal(members.facts.knowsAlive(members.numberOf("mapped"), 1, short, 7946), false);
  assert.deepEqual(
    members.presentAt(members.get("v6")?.identity ?? assert.fail()).map(({ name }) => name),
    ["v6"],
  );
});

/** Four bytes, the same in sixteen, or IPv6. */
function addressBytes(number: number, form: number): Uint8Array {
  const v4 = [10, 1, number >> 8, number & 255];
  if (form === 0) return Uint8Array.from(v4);
  const head =
    form === 1 ? [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] : [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0];
  return Uint8Array.from([...head, ...v4]);
}

function lone(seed: number): { context: Context; claims: Claims } {
  const addr = Uint8Array.of(10, 0, 0, 200);
  const identity = makeIdentity({ name: "n-self", addr, port: addressOf(200).port, meta: addr, vsn: VSN });
  const context = new Context({
    self: new MemberRecord(identity, 1, "alive", instant(0)),
    config: LAN,
    random: seededRandom(seed),
    userBroadcasts: NO_USER_BROADCASTS,
    packetOverhead: 0,
    identify: makeIdentity,
    encode: encodeMessage,
  });
  const claims = new Claims(context, new Suspicions(LAN.verifyMs));
  claims.announceSelf(instant(0));
  return { context, claims };
}
