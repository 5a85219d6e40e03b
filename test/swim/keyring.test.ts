import assert from "node:assert/strict";
import { test } from "node:test";
import { Keyring, MAX_KEYS } from "../../src/swim/keyring.ts";

const key = (fill: number, length = 16): Uint8Array => new Uint8Array(length).fill(fill);
const order = (ring: Keyring): number[] => ring.keys.map((bytes) => bytes[0] ?? 0);

test("the first key installed seals, later ones only open", () => {
  const ring = Keyring.of([key(1), key(2), key(1)]);
  assert.deepEqual(order(ring), [1, 2]);
  assert.deepEqual(ring.primary, key(1));
});

test("a rotation is install, use, remove", () => {
  const installed = Keyring.of([key(1)]).install(key(2, 32));
  const used = installed.use(key(2, 32));
  assert.deepEqual(order(used), [2, 1]);
  assert.deepEqual(order(used.remove(key(1))), [2]);
  assert.deepEqual(order(installed), [1, 2], "the ring before is as it was");
});

test("what would lock the node out is refused by name", () => {
  const ring = Keyring.of([key(1)]);
  assert.throws(() => ring.remove(key(1)), { code: "key-primary" });
  assert.throws(() => ring.use(key(2)), { code: "key-unknown" });
  assert.throws(() => ring.remove(key(2)), { code: "key-unknown" });
  assert.throws(() => ring.install(key(2, 15)), { code: "key-length" });
  const full = Keyring.of(Array.from({ length: MAX_KEYS }, (_, i) => key(i)));
  assert.throws(() => full.install(key(99)), { code: "key-limit" });
  assert.equal(full.install(key(3)), full);
});
