/**
 * npm run fuzz -- [--seconds N | --iterations N] [--target NAME]
 *
 * Throws mutated input at every decoder in `targets.ts`, 30 seconds each round robin unless told otherwise.
 * A failure prints its seed; SEED=… begins there. Exit code 1 on a failure, 2 on bad usage.
 */
import { parseArgs } from "node:util";
import { errorText } from "../../src/base/error.ts";
import { fuzzOnce } from "./fuzz.ts";
import { FUZZ_TARGETS } from "./targets.ts";

/** No single input of a datagram's size may take this long: a hang in the making. */
const SLOW_MS = 1000;
const ROUND = 200; // inputs per target before the next has its turn

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "30" },
    iterations: { type: "string" },
    target: { type: "string" },
  },
});
const iterations = values.iterations === undefined ? Infinity : Number(values.iterations);
const milliseconds = values.iterations === undefined ? Number(values.seconds) * 1000 : Infinity;
const firstSeed = Number(process.env["SEED"] ?? Math.floor(Math.random() * 2 ** 32));
const targets = FUZZ_TARGETS.filter(
  ({ name }) => values.target === undefined || name.includes(values.target),
);
if (targets.length === 0 || ![firstSeed].every(Number.isInteger) || Number.isNaN(milliseconds + iterations)) {
  console.error(`usage: [SEED=N] npm run fuzz -- [--seconds N | --iterations N] [--target NAME]
targets: ${FUZZ_TARGETS.map(({ name }) => name).join("; ")}`);
  process.exit(2);
}

const start = performance.now();
let done = 0;
try {
  while (done < iterations && performance.now() - start < milliseconds) {
    const round = Math.min(ROUND, iterations - done);
    for (const target of targets) {
      for (let i = 0; i < round; i++) {
        const seed = (firstSeed + done + i) >>> 0;
        const before = performance.now();
        fuzzOnce(target, seed);
        const took = performance.now() - before;
        if (took > SLOW_MS)
          throw new Error(`${target.name}: took ${took.toFixed(0)} ms; again: SEED=${seed}`);
      }
    }
    done += round;
  }
} catch (error) {
  console.error(errorText(error));
  process.exit(1);
}
console.log(
  `${done} inputs for each of ${targets.length} decoders from SEED=${firstSeed} on, ` +
    `${((performance.now() - start) / 1000).toFixed(1)} s: nothing found`,
);
