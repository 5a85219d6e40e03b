import { test } from "node:test";
import { fuzz } from "./fuzz.ts";
import { FUZZ_TARGETS } from "./targets.ts";

/** Few enough for every run of the tests; `npm run fuzz` goes on for as long as asked. */
const ITERATIONS = 1000;

for (const target of FUZZ_TARGETS) {
  test(`${target.name}: mutated input gives a value or a DecodeError`, () => {
    fuzz(target, 1, ITERATIONS);
  });
}
