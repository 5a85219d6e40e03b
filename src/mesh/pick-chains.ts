/** Chains that choose a backend by hashing, one per class of `choice.ts` and affinity. */
import { CHOICE_CLASSES, choiceClass, PROBES, type ChoiceClass } from "./choice.ts";
import type { Service } from "./input.ts";
import type { Chain, SetDefinition, SetField } from "./ruleset.ts";

/** First word of the seeds: all nodes hash alike. Changing it deals every new flow anew. */
const SEED = 0x6e61_0000;

/** The chains of one kind of key. A verdict map's value is the index into `names`; 0 is `refuse`. */
export interface PickChains {
  readonly names: readonly string[];
  readonly chains: readonly Chain[];
}

export const REFUSE_CHAIN = "refuse";
/** Index of the chain that refuses at once: a reset for TCP, port unreachable for the rest. */
export const REFUSE = 0;

/**
 * One map of slots per class. The kernel checks each new element of a map against every rule that looks it up: one map
 * for all classes, with the probes of all of them, made adding an element four times as dear.
 */
export function slotMaps(
  prefix: string,
  key: readonly SetField[],
  value: readonly SetField[],
): SetDefinition[] {
  return CHOICE_CLASSES.map((of) => ({ name: slotMap(prefix, of), key: [...key, "number"], value }));
}

/** nft's declarations of the same; `key` and `value` as in a rule. */
export function slotMapTexts(prefix: string, key: string, value: string): string[] {
  /*
   * typeof numgen stands for "a number below": nft 1.0.6 has no name for the type of a hash in a set, and crashes
   * when it lists one declared by typeof jhash.
   */
  return CHOICE_CLASSES.map(
    (of) => `map ${slotMap(prefix, of)} { typeof ${key} . numgen inc mod 65536 : ${value}; }`,
  );
}

function slotMap(prefix: string, { positions }: ChoiceClass): string {
  return `${prefix}_${positions}`;
}

/** `key` is the nft expression in front of the slot in the keys of the maps that begin with `maps`. */
export function pickChains(prefix: string, key: string, maps: string): PickChains {
  const chains: Chain[] = [];
  for (const of of CHOICE_CLASSES) {
    const { positions, spare } = of;
    for (const affinity of ["none", "client-ip"] as const) {
      // A source port tells the connections of one client apart; affinity wants them together.
      const hash = affinity === "none" ? "jhash ip saddr . th sport . meta l4proto" : "jhash ip saddr";
      const probe = (modulus: number, seed: number, offset: number): string =>
        `dnat ip to ${key} . ${hash} mod ${modulus} seed 0x${(SEED + seed).toString(16)}${
          offset === 0 ? "" : ` offset ${offset}`
        } map @${slotMap(maps, of)}`;
      const rules: string[] = [];
      // With one position the first probe cannot miss.
      for (let attempt = 0; attempt < (positions === 1 ? 1 : PROBES); attempt++)
        rules.push(probe(positions, attempt, 0));
      // The first spare slot may be the only one. (nft 1.0.6 takes no constant there.)
      if (spare > 0) rules.push(probe(spare, PROBES, positions), probe(1, PROBES, positions));
      chains.push({ name: `${prefix}-${positions}${affinity === "none" ? "" : "-client"}`, rules });
    }
  }
  return { names: [REFUSE_CHAIN, ...chains.map(({ name }) => name)], chains };
}

/** Value in a verdict map for a service with `count` usable backends. */
export function pickIndex(count: number, affinity: Service["affinity"]): number {
  return count === 0 ? REFUSE : 1 + 2 * choiceClass(count) + (affinity === "none" ? 0 : 1);
}

/** A refusal instead of silence: no client waits for a time-out because a service has no backend. */
export const REFUSE_RULES: Chain = {
  name: REFUSE_CHAIN,
  rules: ["meta l4proto tcp reject with tcp reset", "reject with icmpx type port-unreachable"],
};
