/** Rules of others that drop traffic of ours: what `nft` shows (iptables' nft back end included), and legacy iptables. */
import { execFile } from "node:child_process";
import { z } from "zod";
import { DecodeError } from "../base/error.ts";
import { parseCidr, subnetContains, tryParseIp } from "../base/ip.ts";
import { readLegacyFirewall } from "./legacy-firewall.ts";

const NFT_TIMEOUT_MS = 2_000;
/** A host with very many rules is not read to the end: then nothing is said. */
const MAX_OUTPUT_BYTES = 32 * 1024 * 1024;
const MAX_FOUND = 50;

/** A base chain that drops what no rule of it accepts. */
export interface DroppingChain {
  readonly hook: string;
  readonly table: string;
}

/** A rule that drops or rejects by port or address. */
export interface DroppingRule {
  /** `table inet filter, chain input: udp dport 4789 drop`. */
  readonly text: string;
  /** Ranges of destination ports it names, ends included; none named: all ports. */
  readonly ports: readonly (readonly [first: number, last: number])[];
  /** udp, tcp, or undefined for both. */
  readonly protocol?: string | undefined;
  /** Addresses it names, prefixes as ADDRESS/LENGTH; none named: all. */
  readonly addresses: readonly string[];
}

export interface Firewall {
  readonly chains: readonly DroppingChain[];
  readonly rules: readonly DroppingRule[];
}

const NOTHING: Firewall = { chains: [], rules: [] };

/** What stands in this process's namespace. Without the programs there is nothing to say. */
export async function readFirewall(): Promise<Firewall> {
  const [nft, legacy] = await Promise.all([readNft(), readLegacyFirewall()]);
  return {
    chains: [...nft.chains, ...legacy.chains].slice(0, MAX_FOUND),
    rules: [...nft.rules, ...legacy.rules].slice(0, MAX_FOUND),
  };
}

async function readNft(): Promise<Firewall> {
  const text = await new Promise<string>((resolve) =>
    // Terse: without the elements of sets, of which ours may have a hundred thousand.
    execFile(
      "nft",
      ["-j", "-t", "list", "ruleset"],
      { timeout: NFT_TIMEOUT_MS, maxBuffer: MAX_OUTPUT_BYTES },
      (error, stdout) => resolve(error === null ? stdout : ""),
    ),
  );
  try {
    return text === "" ? NOTHING : parseFirewall(JSON.parse(text));
  } catch {
    return NOTHING;
  }
}

const place = { family: z.string(), table: z.string() };
const ruleset = z.object({
  nftables: z.array(
    z.object({
      chain: z
        .object({ ...place, name: z.string(), hook: z.string().optional(), policy: z.string().optional() })
        .optional(),
      rule: z.object({ ...place, chain: z.string(), expr: z.array(z.unknown()) }).optional(),
    }),
  ),
});
const match = z.object({
  match: z.object({
    op: z.string(),
    left: z.object({ payload: z.object({ protocol: z.string(), field: z.string() }) }),
    right: z.unknown(),
  }),
});

/** The answer of `nft -j list ruleset`. @throws ZodError for anything else */
export function parseFirewall(json: unknown): Firewall {
  const found = ruleset.parse(json).nftables;
  const isOurs = (table: string): boolean => table === "netagent" || table === "netagent-vxlan";
  const chains: DroppingChain[] = [];
  const rules: DroppingRule[] = [];
  for (const { chain, rule } of found) {
    const where = chain ?? rule;
    if (where === undefined || isOurs(where.table) || where.family === "bridge") continue;
    const table = `${where.family} ${where.table}`;
    // iptables' FORWARD is what the mesh looks after itself.
    const isIptables = chain?.name === "FORWARD" && table === "ip filter";
    if (chain?.policy === "drop" && (chain.hook === "input" || (chain.hook === "forward" && !isIptables)))
      chains.push({ hook: chain.hook, table });
    const drop = rule === undefined ? undefined : dropOf(rule.expr);
    if (rule !== undefined && drop !== undefined)
      rules.push({ ...drop, text: `table ${table}, chain ${rule.chain}: ${drop.text}` });
  }
  return { chains: chains.slice(0, MAX_FOUND), rules: rules.slice(0, MAX_FOUND) };
}

/** Whether the rule may hit packets of that protocol to that port from or to that address. */
export function concerns(
  rule: DroppingRule,
  traffic: { readonly protocol: "udp" | "tcp"; readonly port: number; readonly address: string },
): boolean {
  const { ports, addresses, protocol } = rule;
  return (
    (protocol === undefined || protocol === traffic.protocol) &&
    (ports.length === 0 || ports.some(([first, last]) => first <= traffic.port && traffic.port <= last)) &&
    (addresses.length === 0 || addresses.some((named) => covers(named, traffic.address)))
  );
}

/** An address covers itself, a prefix what is in it. */
function covers(named: string, address: string): boolean {
  const ip = tryParseIp(address);
  if (ip === undefined || !named.includes("/")) return named === address;
  try {
    return subnetContains(parseCidr(named), ip);
  } catch (error) {
    if (error instanceof DecodeError) return false;
    throw error;
  }
}

/** Undefined for a rule that does not drop, or that names neither port nor address: it is about something else. */
function dropOf(expressions: readonly unknown[]): DroppingRule | undefined {
  const verdict = expressions.flatMap((one) =>
    typeof one === "object" && one !== null ? Object.keys(one).filter((key) => VERDICTS.has(key)) : [],
  )[0];
  if (verdict === undefined) return undefined;
  const ports: [number, number][] = [];
  const addresses: string[] = [];
  let protocol: string | undefined;
  const words: string[] = [];
  for (const expression of expressions) {
    const parsed = match.safeParse(expression);
    if (!parsed.success) continue;
    const { op, left, right } = parsed.data.match;
    // What is not this port is about other traffic, or about all of it: not to be told from here.
    if (op !== "==" && op !== "in") continue;
    const { payload } = left;
    const [named, addressed] = [rangesOf(right), addressesOf(right)];
    if (payload.field === "dport") {
      // A named set: what is in it is not told here.
      if (named.length === 0) return undefined;
      ports.push(...named);
      if (payload.protocol !== "th") protocol = payload.protocol;
    } else if (payload.field === "saddr" || payload.field === "daddr") {
      if (addressed.length === 0) return undefined;
      addresses.push(...addressed);
    } else continue;
    words.push(`${payload.protocol} ${payload.field} ${wordOf(right)}`);
  }
  if (words.length === 0) return undefined;
  return { text: `${words.join(" ")} ${verdict}`, ports, addresses, protocol };
}

const VERDICTS: ReadonlySet<string> = new Set(["drop", "reject"]);

function members(right: unknown): readonly unknown[] {
  const set = z.object({ set: z.array(z.unknown()) }).safeParse(right);
  return set.success ? set.data.set : [right];
}

function rangesOf(right: unknown): [number, number][] {
  return members(right).flatMap((one): [number, number][] => {
    if (typeof one === "number") return [[one, one]];
    const range = z.object({ range: z.tuple([z.number(), z.number()]) }).safeParse(one);
    return range.success ? [range.data.range] : [];
  });
}

function addressesOf(right: unknown): string[] {
  return members(right).flatMap((one) => {
    if (typeof one === "string") return one.startsWith("@") ? [] : [one];
    const prefix = z.object({ prefix: z.object({ addr: z.string(), len: z.number() }) }).safeParse(one);
    return prefix.success ? [`${prefix.data.prefix.addr}/${prefix.data.prefix.len}`] : [];
  });
}

function wordOf(right: unknown): string {
  const words = [...rangesOf(right).map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)), ...addressesOf(right)];
  return words.length === 1 ? (words[0] ?? "") : `{ ${words.join(", ")} }`;
}
