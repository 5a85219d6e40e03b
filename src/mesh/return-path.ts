/**
 * Replies of a backend go back through the entry node their request came from: as data, the rules, routes and
 * neighbors that send a marked packet there. `kernel/return-path.ts` applies it inside the sandbox.
 */
import { type IpAddr, ipv4FromNumber, ipv4ToNumber } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import type { EntryNode, NodeFacts, Sandbox } from "./input.ts";

/** One entry node: packets with `mark` are routed through `gateway`. */
export interface EntryRoute {
  /** Connection mark, packet mark and routing table at once. */
  readonly mark: number;
  readonly gateway: IpAddr;
  readonly mac: MacAddr;
}

export interface ReturnPath {
  /** The sandbox's ingress leg. */
  readonly interface: string;
  /** Ascending by mark. */
  readonly entries: readonly EntryRoute[];
  /** Entry whose route serves where no other does; see `FALLBACK_TABLE`. */
  readonly fallback?: EntryRoute;
}

/** Priority of the rules `fwmark M lookup M`: before the main table. */
export const MARK_RULE_PRIORITY = 110;
/**
 * A last rule behind the main and default tables leads here. In a namespace without a default route the kernel
 * finds no source address for a reply and drops it before any mark counts, so it gets one; the sandbox's table
 * refuses everything but replies on it.
 */
export const FALLBACK_TABLE = 0x6e61;
export const FALLBACK_RULE_PRIORITY = 33_000;

/**
 * An entry node's mark is its ingress address: the same in every sandbox with nothing to allocate or to
 * remember, and unlike any mark a person would choose.
 */
export function entryMark(entry: EntryNode): number {
  return ipv4ToNumber(entry.ip);
}

/**
 * The conntrack zone of what an entry node sends, 1 … 65535: the host part of its ingress address, which is different
 * for each of them in a subnet of at most 16 bits.
 */
export function entryZone(mark: number): number {
  return mark & 0xffff;
}

/** Undefined when the sandbox has no ingress leg. */
export function returnPath(sandbox: Sandbox, node: NodeFacts): ReturnPath | undefined {
  if (sandbox.ingress === undefined || node.ingress === undefined) return undefined;
  const byMark = new Map<number, EntryRoute>();
  for (const entry of [...node.entryNodes, node.ingress]) {
    const mark = entryMark(entry);
    byMark.set(mark, { mark, gateway: entry.ip, mac: entry.mac });
  }
  const entries = [...byMark.values()].sort((a, b) => a.mark - b.mark);
  const fallback = byMark.get(entryMark(node.ingress));
  return {
    interface: sandbox.ingress.interface,
    entries,
    ...(fallback === undefined ? {} : { fallback }),
  };
}

export type ReturnPathStep =
  | { readonly type: "add-entry"; readonly interface: string; readonly entry: EntryRoute }
  | { readonly type: "delete-entry"; readonly mark: number }
  | { readonly type: "set-fallback"; readonly interface: string; readonly entry: EntryRoute }
  | { readonly type: "delete-fallback" };

/** What of ours is in a sandbox: by mark the gateway of its table, when rule and route are both there. */
export interface ActualReturnPath {
  readonly entries: ReadonlyMap<
    number,
    { readonly interface: string; readonly gateway: IpAddr } | "incomplete"
  >;
  readonly fallback?: { readonly interface: string; readonly gateway: IpAddr } | "incomplete";
}

/** From what is there to what should be; additions first, so that a reply always has a way. */
export function planReturnPath(desired: ReturnPath | undefined, actual: ActualReturnPath): ReturnPathStep[] {
  const steps: ReturnPathStep[] = [];
  const wanted = new Set<number>();
  if (desired !== undefined) {
    const leg = desired.interface;
    for (const entry of desired.entries) {
      wanted.add(entry.mark);
      if (!leadsTo(actual.entries.get(entry.mark), leg, entry.gateway))
        steps.push({ type: "add-entry", interface: leg, entry });
    }
    if (desired.fallback !== undefined && !leadsTo(actual.fallback, leg, desired.fallback.gateway))
      steps.push({ type: "set-fallback", interface: leg, entry: desired.fallback });
  }
  for (const mark of actual.entries.keys()) if (!wanted.has(mark)) steps.push({ type: "delete-entry", mark });
  if (desired?.fallback === undefined && actual.fallback !== undefined)
    steps.push({ type: "delete-fallback" });
  return steps;
}

/** What was wrong and what is done, one line. `actual` is as it was when the step was planned. */
export function describeReturnPathStep(step: ReturnPathStep, actual: ActualReturnPath): string {
  switch (step.type) {
    case "add-entry":
      return `replies to entry node ${step.entry.gateway} ${wayFault(actual.entries.get(step.entry.mark))}: led through ${step.interface}`;
    case "set-fallback":
      return `replies to strangers ${wayFault(actual.fallback)}: led through ${step.interface}`;
    case "delete-entry":
      return `there was a way to ${ipv4FromNumber(step.mark)}, which is no entry node: deleted`;
    case "delete-fallback":
      return "there was a way for replies to strangers, and nothing is published: deleted";
  }
}

function wayFault(way: ActualReturnPath["fallback"]): string {
  if (way === undefined) return "had no rule and no route";
  return way === "incomplete" ? "lacked their rule or route" : `went to ${way.gateway} on ${way.interface}`;
}

function leadsTo(
  actual: { readonly interface: string; readonly gateway: IpAddr } | "incomplete" | undefined,
  leg: string,
  gateway: IpAddr,
): boolean {
  return typeof actual === "object" && actual.interface === leg && actual.gateway === gateway;
}
