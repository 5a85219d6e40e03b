import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  CHOICE_CLASSES,
  choiceClass,
  maglevTable,
  PROBES,
  slotOwners,
  spareSlots,
} from "../../src/mesh/choice.ts";
import { randomInt, seededRandom } from "../../src/base/random.ts";

const backendNames = fc.uniqueArray(fc.string({ minLength: 4, maxLength: 12 }), {
  minLength: 1,
  maxLength: 80,
});

test("every backend owns one position, every spare slot needed has an owner, and order does not matter", () => {
  fc.assert(
    fc.property(backendNames, fc.string(), (names, seed) => {
      const { positions } = CHOICE_CLASSES[choiceClass(names.length)] ?? assert.fail();
      const slots = ownedSlots(names, seed);
      const probed = slots.filter(({ slot }) => slot < positions);
      assert.deepEqual(new Set(probed.map(({ owner }) => owner)).size, names.length);
      assert.equal(probed.length, names.length);
      assert.equal(slots.length - probed.length, spareSlots(names.length));
      const reversed = [...names].reverse();
      const byName = (of: readonly string[]) =>
        ownedSlots(of, seed).map(({ slot, owner }) => `${slot} ${of[owner]}`);
      assert.deepEqual(byName(reversed), byName(names));
    }),
  );
});

test("Maglev's table gives everyone the same share, give or take one slot", () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.nat(), { minLength: 1, maxLength: 80 }),
      fc.constantFrom(7, 31, 127),
      (hashes, size) => {
        const counts = hashes.map(() => 0);
        for (const owner of maglevTable(hashes, size)) counts[owner] = (counts[owner] ?? 0) + 1;
        assert.ok(Math.max(...counts) - Math.min(...counts) <= 1);
      },
    ),
  );
});

test("adding one of ten backends moves about a tenth of the flows, and shares are equal", () => {
  let moved = 0;
  let flows = 0;
  const shares = new Map<number, number>();
  for (let service = 0; service < 20; service++) {
    const names = Array.from({ length: 11 }, (_, index) => `endpoint-${service}-${index}`);
    const ten = chooser(names.slice(0, 10), `service-${service}`);
    const eleven = chooser(names, `service-${service}`);
    for (let flow = 0; flow < 2_000; flow++) {
      const before = ten(flow);
      shares.set(before, (shares.get(before) ?? 0) + 1);
      if (eleven(flow) !== before) moved++;
      flows++;
    }
  }
  assert.ok(moved / flows > 0.07 && moved / flows < 0.13, `moved ${moved / flows}`);
  for (const share of shares.values())
    assert.ok(Math.abs(share / flows - 0.1) < 0.02, `share ${share / flows}`);
});

test("shares are equal for any number of backends", () => {
  for (const count of [2, 3, 5, 8, 9, 16, 17, 43, 44, 64]) {
    const shares = new Map<number, number>();
    const services = 40;
    for (let service = 0; service < services; service++) {
      // The share of each rank: whom a lone spare slot makes the favourite is another endpoint in each service.
      const names = Array.from({ length: count }, (_, index) => `endpoint-${service}-${index}`);
      const choose = chooser(names, "service");
      const last = slotOwners(names, "service").at(CHOICE_CLASSES[choiceClass(count)]?.positions ?? 0) ?? 0;
      for (let flow = 0; flow < 2_000; flow++) {
        const rank = (choose(flow + 10_000 * service) - last + count) % count;
        shares.set(rank, (shares.get(rank) ?? 0) + 1);
      }
    }
    const fair = (services * 2_000) / count;
    for (const [rank, share] of shares)
      assert.ok(Math.abs(share / fair - 1) < 0.15, `${count} backends: ${rank} has ${share} for ${fair}`);
  }
});

/** The slots that somebody owns, ascending. */
function ownedSlots(
  names: readonly string[],
  seed: string,
): { readonly slot: number; readonly owner: number }[] {
  return [...slotOwners(names, seed)]
    .map((owner, slot) => ({ slot, owner }))
    .filter(({ owner }) => owner !== -1);
}

/** Follows the rules of `pick-chains.ts` with another hash than the kernel's. */
function chooser(names: readonly string[], seed: string): (flow: number) => number {
  const { positions, spare } = CHOICE_CLASSES[choiceClass(names.length)] ?? assert.fail();
  const owners = new Map(ownedSlots(names, seed).map(({ slot, owner }) => [slot, owner]));
  return (flow) => {
    const random = seededRandom(flow);
    for (let attempt = 0; attempt < PROBES; attempt++) {
      const owner = owners.get(randomInt(random, positions));
      if (owner !== undefined) return owner;
    }
    return owners.get(positions + randomInt(random, spare)) ?? owners.get(positions) ?? assert.fail();
  };
}
