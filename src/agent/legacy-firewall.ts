/**
 * Rules of others in the tables of legacy iptables, which `nft` does not show. Read where such tables are registered
 * only: asking would make them.
 */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import type { DroppingChain, DroppingRule, Firewall } from "./firewall.ts";

const TIMEOUT_MS = 2_000;
const MAX_OUTPUT_BYTES = 8 * 1024 * 1024;

const FAMILIES = [
  {
    names: "/proc/thread-self/net/ip_tables_names",
    program: "iptables-legacy-save",
    name: "iptables-legacy",
  },
  {
    names: "/proc/thread-self/net/ip6_tables_names",
    program: "ip6tables-legacy-save",
    name: "ip6tables-legacy",
  },
] as const;

/** What stands in this process's namespace. Without the programs there is nothing to say. */
export async function readLegacyFirewall(): Promise<Firewall> {
  const found = await Promise.all(
    FAMILIES.filter(({ names }) => hasTables(names)).map(async ({ program, name }) =>
      parseLegacyFirewall(name, await save(program)),
    ),
  );
  return { chains: found.flatMap(({ chains }) => chains), rules: found.flatMap(({ rules }) => rules) };
}

/** The output of `iptables-legacy-save`; `name` is that of the program rules are changed with. */
export function parseLegacyFirewall(name: string, text: string): Firewall {
  const chains: DroppingChain[] = [];
  const rules: DroppingRule[] = [];
  let table = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("*")) table = line.slice(1);
    // FORWARD is what the mesh looks after itself.
    else if (line.startsWith(":INPUT DROP")) chains.push({ hook: "input", table: `${name} ${table}` });
    else if (line.startsWith("-A ")) {
      const [, chain = "", rest = ""] = /^-A (\S+) (.*)$/.exec(line) ?? [];
      const drop = dropOf(rest);
      if (drop !== undefined)
        rules.push({ ...drop, text: `${name} table ${table}, chain ${chain}: ${rest}` });
    }
  }
  return { chains, rules };
}

/** Undefined for a rule that does not drop, or that names neither port nor address: it is about something else. */
function dropOf(rule: string): Omit<DroppingRule, "text"> | undefined {
  if (!/(^| )-j (DROP|REJECT)( |$)/.test(rule)) return undefined;
  // What is not this port or address is about other traffic, or about all of it: not to be told from here.
  const named = (...options: readonly string[]): string[] =>
    options.flatMap((option) => {
      const found = new RegExp(`(^|! | )${option} (\\S+)`).exec(rule);
      return found?.[2] === undefined || found[1] === "! " || rule.includes(`! ${option} `) ? [] : [found[2]];
    });
  const ports = named("--dport", "--dports")
    .flatMap((list) => list.split(","))
    .map((range): [number, number] => {
      const [first = "", last = first] = range.split(":");
      return [Number(first || 0), Number(last || 65_535)];
    });
  const addresses = named("-s", "-d").map((one) => one.replace(/\/(32|128)$/, ""));
  if (ports.length === 0 && addresses.length === 0) return undefined;
  const [protocol] = named("-p");
  return { ports, addresses, ...(protocol === undefined || protocol === "all" ? {} : { protocol }) };
}

function hasTables(names: string): boolean {
  try {
    return readFileSync(names, "utf8").trim() !== "";
  } catch {
    return false; // a kernel without it
  }
}

function save(program: string): Promise<string> {
  return new Promise((resolve) =>
    execFile(program, [], { timeout: TIMEOUT_MS, maxBuffer: MAX_OUTPUT_BYTES }, (error, stdout) =>
      resolve(error === null ? stdout : ""),
    ),
  );
}
