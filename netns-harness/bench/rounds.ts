/**
 * Measures variants in turn: within each round every figure of every variant, one right after the other, so that a
 * ratio compares neighbours in time.
 */

import type { Lab } from "../lab.ts";
import type { BenchOptions } from "./main.ts";
import { compile } from "./netbench.ts";
import { progress, type Figure, type Goal } from "./report.ts";
import type { Pair } from "./traffic.ts";

/** One figure: how to measure it once on a pair. */
export type Measurement = {
  readonly name: string;
  readonly unit: string;
  readonly goal?: Goal;
  measure(pair: Pair, seconds: number, netbench: string): Promise<number>;
};

/** By name, in the order of the table's columns. */
export type Variants = Readonly<Record<string, (lab: Lab) => Promise<Pair>>>;

/** The figures of all variants; all of them stand throughout. @throws Error when a pair does not reach each other. */
export async function measureRounds(
  lab: Lab,
  variants: Variants,
  measurements: readonly Measurement[],
  { rounds, seconds }: Pick<BenchOptions, "rounds" | "seconds">,
): Promise<Figure[]> {
  const pairs: [string, Pair][] = [];
  for (const [name, make] of Object.entries(variants)) {
    progress(`laying out ${name}`);
    const pair = await make(lab);
    if (!(await pair.near.pings(pair.address))) throw new Error(`${name}: ${pair.address} does not answer`);
    pairs.push([name, pair]);
  }
  if (pairs.length === 0) return [];
  const netbench = await compile(lab);
  const samples = measurements.map(() => Object.fromEntries(pairs.map(([name]) => [name, [] as number[]])));
  for (let round = 0; round < rounds; round++) {
    for (const [index, measurement] of measurements.entries()) {
      progress(`round ${round + 1} of ${rounds}: ${measurement.name}`);
      // Who comes first changes, so that nobody always follows the same neighbour.
      for (const [name, pair] of [
        ...pairs.slice(round % pairs.length),
        ...pairs.slice(0, round % pairs.length),
      ])
        samples[index]?.[name]?.push(await measurement.measure(pair, seconds, netbench));
    }
  }
  progress("");
  return measurements.map(({ name, unit, goal }, index) => ({
    ...{ name, unit, samples: samples[index] ?? {} },
    ...(goal === undefined ? {} : { goal }),
  }));
}
