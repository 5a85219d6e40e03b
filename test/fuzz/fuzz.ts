import { toHex } from "../../src/base/bytes.ts";
import { errorText } from "../../src/base/error.ts";
import { seededRandom } from "../../src/base/random.ts";
import { mutate } from "./mutate.ts";
import type { FuzzTarget } from "./target.ts";

/**
 * Runs one mutated input against `target`. The input depends on `seed` and the corpus alone, so a failure's
 * seed is all that is needed to see it again.
 */
export function fuzzOnce(target: FuzzTarget, seed: number): void {
  const input = mutate(seededRandom(seed), target.corpus);
  const before = input.slice();
  try {
    target.run(input);
    if (Buffer.compare(input, before) !== 0) throw new Error("the decoder changed its input");
  } catch (cause) {
    const shown = toHex(before.subarray(0, 200));
    throw new Error(
      `${target.name}: ${errorText(cause)}\n  input (${before.length} bytes): ${shown}\n` +
        `  again: SEED=${seed} npm run fuzz -- --target '${target.name}' --iterations 1`,
      { cause },
    );
  }
}

/** `iterations` inputs with the seeds from `seed` on. @throws Error of the first failure, with its seed. */
export function fuzz(target: FuzzTarget, seed: number, iterations: number): void {
  for (let i = 0; i < iterations; i++) fuzzOnce(target, (seed + i) >>> 0);
}
