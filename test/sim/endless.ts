import { Keyring } from "../../src/swim/keyring.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { chaos, type ChaosOptions } from "./chaos.ts";
import { swims } from "./swims.ts";
import { wholeNodes } from "./whole-node.ts";

const SEALING = { ...UNSEALED, keys: Keyring.of([new Uint8Array(16).fill(7)]).keys };

/** What is exposed to chaos. Each seed is played once with each. */
const WORLDS: Readonly<Record<string, ChaosOptions["make"]>> = {
  "fresh names": swims,
  "lasting names": (options) => swims({ ...options, lastingNames: true }),
  IPv6: (options) => swims({ ...options, family: 6 }),
  "whole nodes, sealed": (options) => wholeNodes({ ...options, sealing: SEALING }),
};

const REPORT_EVERY = 25;

/** Chaos under seed after seed until one fails or `goOn` says no; a failing seed is printed. Whether none failed. */
export function endless(
  firstSeed: number,
  goOn: (seedsDone: number) => boolean,
  report: (line: string) => void,
): boolean {
  let worst = 0;
  for (let done = 0; goOn(done); done++) {
    const seed = firstSeed + done;
    for (const [name, make] of Object.entries(WORLDS)) {
      try {
        worst = Math.max(worst, chaos({ seed, make }).healedMs);
      } catch (error) {
        const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
        report(`${name}, again: npm run sim -- chaos --first-seed ${seed} --seeds 1\n${text}`);
        return false;
      }
    }
    if ((done + 1) % REPORT_EVERY === 0) {
      report(
        `seeds ${firstSeed} … ${seed}: all held; agreement at the latest ${worst} ms after the last fault`,
      );
    }
  }
  return true;
}
