/** From addresses to rows of words. */
import {
  type Cidr,
  ipToBytes,
  type IpAddr,
  ipv4ToNumber,
  isIpv4,
  lastAddress,
  subnetOf,
} from "../base/ip.ts";
import { macToBytes, type MacAddr } from "../base/mac.ts";
import { type Block, compareKeys, rowLength, type SetDefinition, sortRows } from "./ruleset.ts";

/** `words` are rows one after the other in any order; of a key given twice the last counts. */
export function block(set: SetDefinition, words: readonly number[]): Block {
  const { key, total } = rowLength(set);
  const rows = sortRows(set, new Uint32Array(words));
  let kept = 0;
  for (let at = 0; at < rows.length; at += total) {
    if (kept > 0 && compareKeys(rows, kept - total, rows, at, key) === 0) kept -= total;
    if (kept !== at) rows.copyWithin(kept, at, at + total);
    kept += total;
  }
  return { set: set.name, rows: kept === rows.length ? rows : rows.slice(0, kept) };
}

/** Ranges merged where they touch or overlap: an interval set takes none that do. */
export function rangeBlock(set: SetDefinition, ranges: readonly Cidr[]): Block {
  const bounds = ranges
    .filter(({ ip }) => isIpv4(ip))
    .map((range) => ({ first: ipv4ToNumber(subnetOf(range).ip), last: ipv4ToNumber(lastAddress(range)) }))
    .sort((a, b) => a.first - b.first);
  const merged: { first: number; last: number }[] = [];
  for (const { first, last } of bounds) {
    const before = merged.at(-1);
    if (before !== undefined && first <= before.last + 1) before.last = Math.max(before.last, last);
    else merged.push({ first, last });
  }
  return block(
    set,
    merged.flatMap(({ first, last }) => [first, last]),
  );
}

export function ipv6Words(ip: IpAddr): number[] {
  const view = new DataView(ipToBytes(ip).buffer);
  return [0, 4, 8, 12].map((at) => view.getUint32(at));
}

export function macWords(mac: MacAddr): number[] {
  const view = new DataView(macToBytes(mac).buffer);
  return [view.getUint32(0), view.getUint16(4)];
}
