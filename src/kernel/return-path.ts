/** Policy routing inside a sandbox that sends replies back through the entry node: see `mesh/return-path.ts`. */
import { NetError } from "../base/error.ts";
import { type IpAddr, parseIp } from "../base/ip.ts";
import {
  type ActualReturnPath,
  type EntryRoute,
  FALLBACK_RULE_PRIORITY,
  FALLBACK_TABLE,
  MARK_RULE_PRIORITY,
  planReturnPath,
  type ReturnPath,
  type ReturnPathStep,
} from "../mesh/return-path.ts";
import { NetlinkBatch, NLM_F } from "../wire/netlink/message.ts";
import {
  decodeRoute,
  encodeRoute,
  encodeRouteLookup,
  encodeRouteQuery,
  type Route,
  RT_SCOPE,
  RTN,
  RTNH_F_ONLINK,
} from "../wire/netlink/route.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import { decodeRule, encodeRule, encodeRuleQuery, type Rule } from "../wire/netlink/rule.ts";
import { findLink, listLinks } from "./links.ts";
import { type NetlinkSocket, refusal } from "./netlink-socket.ts";

/** RTPROT_* of our routes: ours to delete. No number is registered for us; 110 is free. */
const ROUTE_PROTOCOL = 110;
const ALL_BITS = 0xffffffff;
/** An address of nobody (RFC 5737): the route to it is the route to any stranger. */
const STRANGER = parseIp("198.51.100.1");

/** Reads, plans and applies in a sandbox; what was done, nothing when all agreed. @throws NetError */
export function reconcileReturnPath(
  socket: NetlinkSocket,
  desired: ReturnPath | undefined,
): readonly ReturnPathStep[] {
  const steps = planReturnPath(desired, readReturnPath(socket));
  if (steps.length > 0) applyReturnPath(socket, steps);
  return steps;
}

/** `socket` is a route socket inside the sandbox. @throws NetError */
export function readReturnPath(socket: NetlinkSocket): ActualReturnPath {
  const rules = socket.dump(
    "read the routing rules of a sandbox",
    { type: RTM.getRule, encode: (out) => encodeRuleQuery(4, out) },
    (message) => decodeRule(message.payload),
  );
  const routes = socket.dump(
    "read the routes of a sandbox",
    { type: RTM.getRoute, encode: (out) => encodeRouteQuery(4, out) },
    (message) => {
      const route = decodeRoute(message.payload);
      return route.protocol === ROUTE_PROTOCOL && route.destination.prefixLength === 0 ? route : undefined;
    },
  );
  const names = new Map(listLinks(socket).map(({ ifindex, name }) => [ifindex, name]));
  const ways = new Map<number, { readonly interface: string; readonly gateway: IpAddr }>();
  for (const { table, gateway, ifindex } of routes) {
    const name = names.get(ifindex ?? 0);
    if (gateway !== undefined && name !== undefined) ways.set(table, { interface: name, gateway });
  }
  const entries = new Map<number, { readonly interface: string; readonly gateway: IpAddr } | "incomplete">();
  for (const table of ways.keys()) if (table !== FALLBACK_TABLE) entries.set(table, "incomplete");
  let fallback: ActualReturnPath["fallback"] = ways.has(FALLBACK_TABLE) ? "incomplete" : undefined;
  for (const rule of rules) {
    if (rule.priority === MARK_RULE_PRIORITY && rule.mark === rule.table)
      entries.set(rule.table, ways.get(rule.table) ?? "incomplete");
    if (rule.priority === FALLBACK_RULE_PRIORITY && rule.table === FALLBACK_TABLE)
      fallback = ways.get(FALLBACK_TABLE) ?? "incomplete";
  }
  return { entries, ...(fallback === undefined ? {} : { fallback }) };
}

/** Applies all steps in one batch; what is already so is not an error. @throws NetError for the first refused */
export function applyReturnPath(socket: NetlinkSocket, steps: readonly ReturnPathStep[]): void {
  const batch = new NetlinkBatch();
  const tolerated: string[] = [];
  const add = (
    type: number,
    flags: number,
    encode: (out: Parameters<typeof encodeRule>[1]) => void,
    fine: string,
  ) => {
    batch.add(type, flags, encode);
    tolerated.push(fine);
  };
  const addWay = (leg: string, table: number, entry: EntryRoute, rule: Rule): void => {
    const ifindex = findLink(socket, { name: leg })?.ifindex;
    if (ifindex === undefined)
      throw new NetError("LINK_MISSING", `route replies through ${leg}: no such interface`);
    const route = wayTo(table, entry.gateway, ifindex);
    // Route before rule: a rule that leads nowhere falls through to the main table and loses the reply.
    add(RTM.newRoute, NLM_F.create | NLM_F.replace, (out) => encodeRoute(route, out), "");
    add(RTM.newRule, NLM_F.create | NLM_F.exclusive, (out) => encodeRule(rule, out), "EEXIST");
  };
  for (const step of steps) {
    switch (step.type) {
      case "add-entry":
        addWay(step.interface, step.entry.mark, step.entry, markRule(step.entry.mark));
        break;
      case "set-fallback":
        addWay(step.interface, FALLBACK_TABLE, step.entry, FALLBACK_RULE);
        break;
      case "delete-entry":
        add(RTM.deleteRule, 0, (out) => encodeRule(markRule(step.mark), out), "ENOENT");
        add(RTM.deleteRoute, 0, (out) => encodeRoute(wayTo(step.mark), out), "ESRCH");
        break;
      case "delete-fallback":
        add(RTM.deleteRule, 0, (out) => encodeRule(FALLBACK_RULE, out), "ENOENT");
        add(RTM.deleteRoute, 0, (out) => encodeRoute(wayTo(FALLBACK_TABLE), out), "ESRCH");
        break;
    }
  }
  const failure = socket.transact(batch).find(({ index, code }) => code !== tolerated[index]);
  if (failure !== undefined) throw refusal("route replies back through the entry nodes", failure);
}

/** The source address the kernel picks towards strangers; undefined without a way to them. @throws NetError */
export function readDefaultSource(socket: NetlinkSocket): IpAddr | undefined {
  try {
    return socket.get(
      "read the default route of a sandbox",
      { type: RTM.getRoute, encode: (out) => encodeRouteLookup(STRANGER, out) },
      (message) => decodeRoute(message.payload).source,
    );
  } catch (error) {
    if (error instanceof NetError && UNREACHABLE.has(error.code)) return undefined;
    throw error;
  }
}

const UNREACHABLE: ReadonlySet<string> = new Set(["ENETUNREACH", "EHOSTUNREACH", "EACCES", "EINVAL"]);
const FALLBACK_RULE: Rule = { family: 4, priority: FALLBACK_RULE_PRIORITY, table: FALLBACK_TABLE };

function markRule(mark: number): Rule {
  return { family: 4, priority: MARK_RULE_PRIORITY, table: mark, mark, markMask: ALL_BITS };
}

/** Default route of a table; without a gateway (for deletion) any. */
function wayTo(table: number, gateway?: IpAddr, ifindex?: number): Route {
  return {
    destination: { ip: parseIp("0.0.0.0"), prefixLength: 0 },
    table,
    protocol: ROUTE_PROTOCOL,
    scope: RT_SCOPE.universe,
    type: RTN.unicast,
    // The entry node is on the leg's subnet whatever routes the sandbox has.
    flags: gateway === undefined ? 0 : RTNH_F_ONLINK,
    ...(gateway === undefined ? {} : { gateway }),
    ...(ifindex === undefined ? {} : { ifindex }),
  };
}
