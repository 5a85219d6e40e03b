import { randomInt } from "node:crypto";
import type { Random } from "../base/random.ts";

/** Unpredictable randomness for ids and for gossip's choices. */
export function systemRandom(): Random {
  return { next: () => randomInt(0x1_0000_0000) / 0x1_0000_0000 };
}
