/** What the joining, failing and leaving of nodes does to attachments and rows (networkdb.md §5). */
import type { NetworkId, NodeName } from "../base/id.ts";
import { formatSocketAddr, type SocketAddr } from "../base/ip.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import type { Database } from "./database.ts";
import type { Entry } from "./entry.ts";
import type { Node } from "./node-list.ts";
import { reportChange } from "./watch.ts";

export type Arrival = "known" | "new" | "returned" | "refused";

/** memberlist considers the node alive. `returned`: it had failed or left, and its rows are visible again. */
export function memberJoined(db: Database, name: NodeName, address: SocketAddr, now: Instant): Arrival {
  if (name === db.self) return "known";
  if (formatSocketAddr(address) === formatSocketAddr(db.address)) return meetOwnPast(db, name, address, now);
  const node = db.nodes.get(name);
  if (node === undefined) {
    if (db.nodes.size >= db.config.maxNodes) {
      db.count("too-many-nodes");
      return "refused";
    }
    retirePredecessor(db, name, address, now);
    db.nodes.add(name, address);
    return "new";
  }
  node.address = address;
  node.aliveInMemberlist = true;
  if (node.state === "active") return "known";
  activate(db, node, now);
  return "returned";
}

/**
 * A name at our own address is this agent's before it restarted, which a peer that has not noticed yet still takes for
 * alive. It has left: what it wrote must not take our rows, which begin at time 0 again.
 */
function meetOwnPast(db: Database, name: NodeName, address: SocketAddr, now: Instant): Arrival {
  if (db.nodes.get(name) === undefined && db.nodes.size >= db.config.maxNodes) {
    db.count("too-many-nodes");
    return "refused";
  }
  const node = db.nodes.get(name) ?? db.nodes.add(name, address);
  if (node.state !== "left") markLeft(db, node, now);
  return "refused";
}

/**
 * How a member went: `failed`, without a word; `left`, for good; `resting`, it left memberlist but not NetworkDB, so
 * that its endpoints run on without it and it is expected back.
 */
export type Departure = "failed" | "left" | "resting";

/**
 * Returns the node that turns out by this to be the successor of the departed one: another name answers at its address.
 * News comes in any order, so either may have been taken for the other's past until now.
 */
export function memberLeft(db: Database, name: NodeName, how: Departure, now: Instant): Node | undefined {
  const node = db.nodes.get(name);
  if (node === undefined) return undefined;
  node.aliveInMemberlist = false;
  const successor = db.nodes
    .othersAt(node.address, name)
    .find(({ state, replaced, aliveInMemberlist }) => aliveInMemberlist && (replaced || state === "active"));
  if (node.state !== "left") {
    if (how === "left") markLeft(db, node, now);
    else if (successor === undefined && node.state === "active") markFailed(db, node, how === "resting", now);
  }
  return successor !== undefined && succeed(db, successor, now) ? successor : undefined;
}

/**
 * A node itself spoke to us. When it was taken for replaced, the order in which names became known was not the order
 * in which they started (a newcomer hears of the dead and the live one in one push/pull): it is the other that is gone.
 * Whether the node is active again by this; upstream would ignore it until it restarts.
 */
export function heardFrom(db: Database, name: NodeName, now: Instant): boolean {
  const node = db.nodes.get(name);
  if (node === undefined || !node.replaced || !node.aliveInMemberlist) return false;
  return succeed(db, node, now);
}

/** The node said goodbye, or another name answers at its address: forget its attachments and rows. */
export function markLeft(db: Database, node: Node, now: Instant): void {
  // First the rows: whether they were visible is judged by the state they are leaving.
  dropRowsOf(db, node.name);
  retire(db, node, now);
  // Nobody is left to write what this node inherited.
  for (const other of db.nodes) if (other.heir === node.name) endInheritance(db, other);
}

/** Forgets a failed or left node whose time is over, with all it still has here. */
export function forgetNode(db: Database, node: Node): void {
  db.attachments.forgetNode(node.name);
  dropRowsOf(db, node.name);
  db.nodes.delete(node.name);
}

/** Ends every grace that is due and arms the timer for the next. */
export function expireGraces(db: Database, now: Instant): void {
  let next: Instant | undefined;
  for (const node of db.nodes) {
    if (node.graceUntil === undefined) continue;
    if (node.graceUntil > now) next = earliest(next, node.graceUntil);
    else if (node.heir !== undefined) endInheritance(db, node);
    else endRest(db, node);
  }
  if (next !== undefined) db.timers.set("grace", next);
}

/** Drops the rows of `owner`, in one network or in all; visible ones are reported as deleted. */
export function dropRowsOf(db: Database, owner: NodeName, network?: NetworkId): void {
  for (const attachment of db.attachments.own.values()) {
    if (network !== undefined && attachment.network !== network) continue;
    attachment.rows.forEach((table, key, entry) => {
      if (entry.owner !== owner) return;
      const value = db.visibleValue(entry);
      attachment.rows.delete(table, key);
      reportChange(db, { network: attachment.network, table, key }, { owner, value }, undefined);
    });
  }
}

/** Back from failed or left: participant again where it was attached, and what was suspended is visible again. */
function activate(db: Database, node: Node, now: Instant): void {
  const wasVisible = node.rowsVisible;
  node.state = "active";
  node.reapAt = undefined;
  node.replaced = false;
  endGrace(node);
  for (const [network, attachment] of db.attachments.remotesOf(node.name)) {
    if (!attachment.leaving) db.setParticipant(network, node.name, true);
  }
  for (const { network, rows } of db.attachments.own.values()) {
    rows.forEach((table, key, entry) => {
      if (entry.owner !== node.name || entry.deleted) return;
      if (entry.reapAt !== undefined && entry.reapAt <= now) {
        rows.delete(table, key);
        return;
      }
      rows.setReapAt(entry, undefined);
      const row = { owner: node.name, value: entry.value };
      reportChange(db, { network, table, key }, wasVisible ? row : undefined, row);
    });
  }
}

/**
 * The node is the one that answers at its address: what another name wrote there, at whatever time, gives way to it.
 * Whether that is news.
 */
function succeed(db: Database, node: Node, now: Instant): boolean {
  const back = node.state !== "active";
  if (back) activate(db, node, now);
  return retirePredecessor(db, node.name, node.address, now) || back;
}

/**
 * Crashed or cut off: not a peer any more, but its attachments are kept and its rows are only suspended, so that a
 * short outage forgets no names (moby 53141; upstream master does the same). Those of a resting node are suspended only
 * when it does not come back.
 */
function markFailed(db: Database, node: Node, resting: boolean, now: Instant): void {
  if (resting) setGrace(db, node, after(now, db.config.restMs));
  node.rowsVisible = resting;
  node.state = "failed";
  node.reapAt ??= after(now, db.config.nodeReapMs);
  for (const network of db.attachments.remotesOf(node.name).keys()) {
    db.setParticipant(network, node.name, false);
  }
  const reapAt = after(now, db.config.rowReapMs);
  for (const { network, rows } of db.attachments.own.values()) {
    rows.forEach((table, key, entry) => {
      if (entry.owner !== node.name || entry.deleted) return;
      rows.setReapAt(entry, reapAt);
      if (!resting) reportSuspended(db, network, table, key, entry);
    });
  }
}

/** A resting node did not come back: now it counts as failed to the readers, too. */
function endRest(db: Database, node: Node): void {
  endGrace(node);
  for (const { network, rows } of db.attachments.own.values()) {
    rows.forEach((table, key, entry) => {
      if (entry.owner === node.name && !entry.deleted) reportSuspended(db, network, table, key, entry);
    });
  }
}

function reportSuspended(db: Database, network: NetworkId, table: string, key: string, entry: Entry): void {
  reportChange(db, { network, table, key }, { owner: entry.owner, value: entry.value }, undefined);
}

/**
 * The same address and port under a new name is a restarted agent: the old name has left. Its rows are not dropped
 * as upstream does, but stay as they are, visible or suspended, until the new name wrote the same keys, so that a
 * restart cuts no connection.
 */
function retirePredecessor(db: Database, successor: NodeName, address: SocketAddr, now: Instant): boolean {
  const node = db.nodes.predecessorAt(address, successor);
  if (node === undefined) return false;
  db.count("member-reincarnated");
  node.replaced = true;
  node.heir = successor;
  if (node.state === "active") node.rowsVisible = true;
  setGrace(db, node, after(now, db.config.inheritMs));
  retire(db, node, now);
  // Restarted twice in a row: what the old name inherited goes on to the new one.
  for (const other of db.nodes) if (other.heir === node.name) other.heir = successor;
  return true;
}

function retire(db: Database, node: Node, now: Instant): void {
  node.state = "left";
  node.reapAt ??= after(now, db.config.nodeReapMs);
  for (const network of db.attachments.remotesOf(node.name).keys()) {
    db.setParticipant(network, node.name, false);
  }
  db.attachments.forgetNode(node.name);
}

function endInheritance(db: Database, node: Node): void {
  dropRowsOf(db, node.name);
  endGrace(node);
}

function setGrace(db: Database, node: Node, until: Instant): void {
  node.graceUntil = until;
  db.timers.set("grace", earliest(db.timers.get("grace"), until) ?? until);
}

function endGrace(node: Node): void {
  node.heir = undefined;
  node.rowsVisible = false;
  node.graceUntil = undefined;
}
