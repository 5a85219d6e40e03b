/**
 * Routing policy rules: `struct fib_rule_hdr` (family 1, destination length 1, source length 1, TOS 1, table 1,
 * reserved 2, action 1, flags 4), then FRA_* attributes. include/uapi/linux/fib_rules.h
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import { attributeMap, decodeText, decodeU32, writeTextAttribute, writeU32Attribute } from "./message.ts";
import { AF } from "./rtnetlink.ts";

/** `ip rule add priority P [fwmark M/MASK] [iif I] [oif O] lookup TABLE`. */
export interface Rule {
  readonly family: 4 | 6;
  readonly priority: number;
  readonly table: number;
  readonly mark?: number;
  /** Default all bits, when a mark is given. */
  readonly markMask?: number;
  readonly inputInterface?: string;
  readonly outputInterface?: string;
}

const FR_ACT_TO_TABLE = 1;
const FRA = { iif: 3, priority: 6, mark: 10, table: 15, markMask: 16, oif: 17 } as const;

/** Payload of RTM_NEWRULE and RTM_DELRULE. */
export function encodeRule(rule: Rule, out: ByteWriter): void {
  out
    .u8(rule.family === 4 ? AF.inet : AF.inet6)
    .zeros(3)
    .u8(rule.table < 256 ? rule.table : 0)
    .zeros(2)
    .u8(FR_ACT_TO_TABLE)
    .u32h(0);
  writeU32Attribute(out, FRA.priority, rule.priority);
  writeU32Attribute(out, FRA.table, rule.table);
  if (rule.mark !== undefined) writeU32Attribute(out, FRA.mark, rule.mark);
  if (rule.markMask !== undefined) writeU32Attribute(out, FRA.markMask, rule.markMask);
  if (rule.inputInterface !== undefined) writeTextAttribute(out, FRA.iif, rule.inputInterface);
  if (rule.outputInterface !== undefined) writeTextAttribute(out, FRA.oif, rule.outputInterface);
}

/** Payload of a RTM_GETRULE dump of one family. */
export function encodeRuleQuery(family: 4 | 6, out: ByteWriter): void {
  out.u8(family === 4 ? AF.inet : AF.inet6).zeros(11);
}

/** Payload of RTM_NEWRULE; undefined for other actions than looking up a table. @throws DecodeError */
export function decodeRule(payload: Uint8Array): Rule | undefined {
  const input: ByteReader = new ByteReader(payload, "netlink rule");
  const family = input.u8() === AF.inet ? 4 : 6;
  input.skip(3);
  const shortTable = input.u8();
  input.skip(2);
  const action = input.u8();
  input.skip(4);
  const attributes = attributeMap(input);
  if (action !== FR_ACT_TO_TABLE) return undefined;
  const u32 = (type: number): number | undefined => {
    const value = attributes.get(type);
    return value === undefined ? undefined : decodeU32(value);
  };
  const mark = u32(FRA.mark);
  const markMask = u32(FRA.markMask);
  const iif = attributes.get(FRA.iif);
  const oif = attributes.get(FRA.oif);
  return {
    family,
    priority: u32(FRA.priority) ?? 0,
    table: u32(FRA.table) ?? shortTable,
    ...(mark === undefined ? {} : { mark }),
    ...(markMask === undefined ? {} : { markMask }),
    ...(iif === undefined ? {} : { inputInterface: decodeText(iif) }),
    ...(oif === undefined ? {} : { outputInterface: decodeText(oif) }),
  };
}
