import type { Instant } from "../base/time.ts";
import type { Alive } from "../wire/memberlist/message.ts";
import type { PushPullNode } from "../wire/memberlist/push-pull.ts";
import type { AliveOutcome, Claims, Via } from "./claims.ts";
import type { Context } from "./context.ts";
import type { MemberRecord, MemberTable } from "./member.ts";

/** The member list as it goes into an exchange: everybody, in whatever state. */
export function snapshotOf(members: MemberTable): PushPullNode[] {
  const nodes: PushPullNode[] = [];
  for (const { name, addr, port, meta, vsn, incarnation, state } of members) {
    nodes.push({ name, addr, port, meta, incarnation, state, vsn });
  }
  return nodes;
}

/**
 * Why two member lists must not be merged, or undefined when they may (memberlist.go, verifyProtocol): every
 * member has to speak a version that all living ones understand.
 */
export function versionConflict(local: Iterable<Voice>, remote: readonly Voice[]): string | undefined {
  const range = { protocol: { low: 0, high: 255 }, delegate: { low: 0, high: 255 } };
  for (const voices of [local, remote]) {
    for (const { state, vsn } of voices) {
      if (state !== "alive" || vsn.length < 6) continue;
      narrow(range.protocol, vsn[0], vsn[1]);
      narrow(range.delegate, vsn[3], vsn[4]);
    }
  }
  for (const voices of [local, remote]) {
    for (const { name, vsn } of voices) {
      const protocol = outside(range.protocol, vsn[2]);
      if (protocol !== undefined) return `'${name}' speaks protocol ${protocol}`;
      const delegate = outside(range.delegate, vsn[5]);
      if (delegate !== undefined) return `'${name}' speaks application protocol ${delegate}`;
    }
  }
  return undefined;
}

export interface Voice {
  readonly name: string;
  readonly state: string;
  readonly vsn: Uint8Array;
}

/** An alive claim that was not simply taken or known: the caller may look into it. */
export interface Disputed {
  readonly claim: Alive;
  readonly outcome: AliveOutcome;
}

export interface Merged {
  readonly disputed: readonly Disputed[];
  /** Dead, says the list, whom we had for alive or for suspect. */
  readonly mourned: readonly MemberRecord[];
}

/**
 * Takes in another member's list (state.go, mergeState). Its "dead" and "suspect" only start or confirm our own
 * suspicion, so that no exchange kills; its "left" is believed, as only the member itself can have said so.
 */
export function mergeNodes(
  context: Context,
  claims: Claims,
  nodes: readonly PushPullNode[],
  via: Via,
  now: Instant,
): Merged {
  const disputed: Disputed[] = [];
  const mourned: MemberRecord[] = [];
  const { large } = context.queue;
  const cutOff = large && wasCutOff(context, nodes);
  for (const node of nodes) {
    const { members } = context;
    const number = members.numberOf(node.name);
    if (node.state === "alive" && members.facts.knowsAlive(number, node.incarnation, node.addr, node.port))
      continue;
    if (large && node.state !== "alive" && members.facts.knowsGone(number)) continue;
    const known = members.get(node.name);
    if (known !== undefined && isOldNews(context, known, node)) continue;
    switch (node.state) {
      case "alive": {
        const claim = aliveClaim(node);
        const outcome = claims.alive(claim, now, via);
        if (outcome === "conflict") disputed.push({ claim, outcome });
        break;
      }
      case "left": {
        const { name, incarnation } = node;
        claims.dead({ type: "dead", incarnation, node: name, from: name }, now, via);
        break;
      }
      case "dead":
      case "suspect": {
        const { name, incarnation } = node;
        const from = context.self.name;
        if (cutOff && known !== context.self) break;
        claims.suspect({ type: "suspect", incarnation, node: name, from }, now, via);
        if (node.state === "dead" && known?.suspicion !== undefined) mourned.push(known);
      }
    }
  }
  return { disputed, mourned };
}

/**
 * Who holds so many for dead whom we have alive was cut off from them. That is no news of them, and to suspect them all
 * one by one is a storm of its own: whoever needs to refute is told by those who ping it as a dead one.
 */
function wasCutOff({ members }: Context, nodes: readonly PushPullNode[]): boolean {
  let disputed = 0;
  for (const { name, state } of nodes)
    if (state === "dead" && members.facts.isAlive(members.numberOf(name))) disputed++;
  return disputed > members.alive / 8;
}

export function aliveClaim(node: Omit<PushPullNode, "state">): Alive {
  const { name, addr, port, meta, vsn, incarnation } = node;
  return { type: "alive", incarnation, node: name, addr, port, meta, vsn };
}

/** Most entries of most exchanges: seen with one look, without making a claim of them. */
function isOldNews(context: Context, known: MemberRecord, node: PushPullNode): boolean {
  return (
    node.state === "alive" &&
    known !== context.self &&
    node.incarnation <= known.incarnation &&
    known.isAt(node.addr, node.port)
  );
}

interface Range {
  low: number;
  high: number;
}

function narrow(range: Range, min = 0, max = 0): void {
  range.low = Math.max(range.low, min);
  range.high = Math.min(range.high, max);
}

function outside({ low, high }: Range, current = 0): string | undefined {
  return current < low || current > high ? `${current}, others need ${low} to ${high}` : undefined;
}
