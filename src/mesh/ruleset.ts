/**
 * A namespace's nftables table as a value: a skeleton (chains, rules, empty sets: text for `nft -f`, changed
 * rarely and as a whole) and the elements of its sets (numbers, changed one by one over nfnetlink).
 */
import { createHash } from "node:crypto";
import { ipv4FromNumber } from "../base/ip.ts";

/** The mesh's table. */
export const TABLE = "netagent";

/** What one field of a key or value is; decides how it is put into nf_tables registers. */
export type SetField = "protocol" | "port" | "ipv4" | "ipv6" | "ether" | "number" | "zone";

/** 32-bit words per field in a row. */
export const SET_FIELD_WORDS = {
  protocol: 1,
  port: 1,
  ipv4: 1,
  ipv6: 4,
  ether: 2,
  number: 1,
  zone: 1,
} as const;

export interface SetDefinition {
  readonly name: string;
  readonly key: readonly SetField[];
  /** Empty: a set. `verdicts`: a map to these chains, the value is an index among them. */
  readonly value: readonly SetField[] | { readonly verdicts: readonly string[] };
  /** An IPv4 interval set: the key of a row is its first and last address. */
  readonly range?: boolean;
  /** A set of lone addresses that may never be empty: its elements come in the transaction that replaces the table. */
  readonly inline?: boolean;
}

export interface Skeleton {
  /** One `nft -f` transaction that replaces the table, emptying all sets. */
  readonly text: string;
  readonly sets: readonly SetDefinition[];
  /** Rules in each chain, to notice that somebody removed some. */
  readonly rules: ReadonlyMap<string, number>;
  /** The table's comment: names exactly this text, so that a restarted agent knows what it finds. */
  readonly comment: string;
}

/** Elements of one set: rows of words, the key's then the value's, ascending by key, no key twice. */
export interface Block {
  readonly set: string;
  readonly rows: Uint32Array;
}

/** What one owner (a service, the node itself) puts into the sets; at most one block per set. */
export interface BlockGroup {
  readonly id: string;
  readonly blocks: readonly Block[];
}

/** Groups ascend by id; no key of a set is in two groups. An unchanged group is the same object as before. */
export interface Ruleset {
  readonly skeleton: Skeleton;
  readonly groups: readonly BlockGroup[];
}

export function rowLength(set: SetDefinition): { readonly key: number; readonly total: number } {
  const key = set.range ? 2 : words(set.key);
  return { key, total: key + ("verdicts" in set.value ? 1 : words(set.value)) };
}

/** Chains of a skeleton in the order of the text; a chain's lines are its hook and its rules. */
export interface Chain {
  readonly name: string;
  /** `type nat hook prerouting priority dstnat`; absent for a chain that others jump to. */
  readonly hook?: string;
  readonly rules: readonly string[];
}

/** Declarations are nft's text for the sets: `map ports { typeof meta l4proto . th dport : verdict; }`. */
export function buildSkeleton(
  declarations: readonly string[],
  sets: readonly SetDefinition[],
  chains: readonly Chain[],
  { table, what }: { readonly table: string; readonly what: string } = { table: TABLE, what: "routing mesh" },
): Skeleton {
  const body: string[] = [...declarations];
  for (const chain of chains) {
    body.push(`chain ${chain.name} {`);
    if (chain.hook !== undefined) body.push(`  ${chain.hook}; policy accept;`);
    for (const rule of chain.rules) body.push(`  ${rule}`);
    body.push("}");
  }
  const digest = createHash("sha256").update(body.join("\n")).digest("hex").slice(0, 16);
  const comment = `netagent ${what} ${digest}`;
  const text = [
    // "add" first so that deleting works whether or not it is there; all of it is one transaction.
    `add table inet ${table}`,
    `delete table inet ${table}`,
    `table inet ${table} {`,
    `  comment "${comment}"`,
    ...body.map((line) => `  ${line}`),
    "}",
    "",
  ].join("\n");
  return { text, sets, comment, rules: new Map(chains.map(({ name, rules }) => [name, rules.length])) };
}

/** nft's text for the rows of an inline set, to follow its skeleton; empty without rows. */
export function elementsText(table: string, set: SetDefinition, rows: Uint32Array): string {
  const { total } = rowLength(set);
  const addresses: string[] = [];
  for (let at = 0; at < rows.length; at += total) {
    const words = rows.subarray(at, at + total);
    addresses.push(
      total === 1
        ? ipv4FromNumber(words[0] ?? 0)
        : Array.from(words, (word) => `${(word >>> 16).toString(16)}:${(word & 0xffff).toString(16)}`).join(
            ":",
          ),
    );
  }
  return addresses.length === 0 ? "" : `add element inet ${table} ${set.name} { ${addresses.join(", ")} }\n`;
}

/** The keys of the rows in nft's spelling: `tcp . 8000`, `10.0.0.5`. */
export function formatRows(set: SetDefinition, rows: Uint32Array): string[] {
  const { key, total } = rowLength(set);
  return Array.from({ length: rows.length / total }, (_, index) => {
    const words = rows.subarray(index * total, index * total + key);
    if (set.range === true) return Array.from(words, ipv4FromNumber).join("-");
    let at = 0;
    return set.key
      .map((field) => {
        const own = words.subarray(at, (at += SET_FIELD_WORDS[field]));
        return formatField(field, own);
      })
      .join(" . ");
  });
}

function formatField(field: SetField, words: Uint32Array): string {
  const [first = 0, second = 0] = words;
  const hex = (value: number): string => value.toString(16).padStart(2, "0");
  switch (field) {
    case "protocol":
      return first === 6 ? "tcp" : first === 17 ? "udp" : String(first);
    case "ipv4":
      return ipv4FromNumber(first);
    case "ipv6":
      return Array.from(
        words,
        (word) => `${(word >>> 16).toString(16)}:${(word & 0xffff).toString(16)}`,
      ).join(":");
    case "ether":
      return [first >>> 24, first >>> 16, first >>> 8, first, second >>> 8, second]
        .map((byte) => hex(byte & 0xff))
        .join(":");
    default:
      return String(first);
  }
}

/** All rows of every set, ascending by key; for comparing with what the kernel has. */
export function flatten(ruleset: Ruleset): ReadonlyMap<string, Uint32Array> {
  const parts = new Map<string, Uint32Array[]>(ruleset.skeleton.sets.map(({ name }) => [name, []]));
  for (const group of ruleset.groups) {
    for (const block of group.blocks) parts.get(block.set)?.push(block.rows);
  }
  const flat = new Map<string, Uint32Array>();
  for (const set of ruleset.skeleton.sets)
    flat.set(set.name, sortRows(set, joinRows(parts.get(set.name) ?? [])));
  return flat;
}

/** The same rows in ascending order of their keys. */
export function sortRows(set: SetDefinition, rows: Uint32Array): Uint32Array {
  const { key, total } = rowLength(set);
  let sorted = true;
  for (let at = total; at < rows.length && sorted; at += total)
    sorted = compareKeys(rows, at - total, rows, at, key) < 0;
  if (sorted) return rows;
  const order = Uint32Array.from({ length: rows.length / total }, (_, index) => index * total);
  order.sort((a, b) => compareKeys(rows, a, rows, b, key));
  const out = new Uint32Array(rows.length);
  order.forEach((at, index) => out.set(rows.subarray(at, at + total), index * total));
  return out;
}

/** Orders the keys at two places: negative, zero or positive. */
export function compareKeys(
  a: Uint32Array,
  aAt: number,
  b: Uint32Array,
  bAt: number,
  length: number,
): number {
  for (let i = 0; i < length; i++) {
    const difference = (a[aAt + i] ?? 0) - (b[bAt + i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

export function joinRows(parts: readonly Uint32Array[]): Uint32Array {
  const [only] = parts;
  if (parts.length === 1 && only !== undefined) return only;
  let length = 0;
  for (const part of parts) length += part.length;
  const out = new Uint32Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function words(fields: readonly SetField[]): number {
  let count = 0;
  for (const field of fields) count += SET_FIELD_WORDS[field];
  return count;
}
