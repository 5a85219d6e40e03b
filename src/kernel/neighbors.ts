/**
 * FDB and neighbors of one VXLAN device in bulk: written in batches with replace semantics, read back, and
 * mirrored, so that a change of one entry among 70,000 does not need a dump of all.
 */
import { type IpAddr, isIpv4 } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import { finish, SLICE_ROWS, type Sliced } from "../base/sliced.ts";
import type { FoundEntry, OverlayStep, UnlikeEntry } from "../overlay/plan.ts";
import {
  decodeFdbEntry,
  decodeNeighbor,
  encodeFdbEntry,
  encodeFdbQuery,
  encodeNeighbor,
  encodeNeighborQuery,
  type FdbEntry,
  isFdbPayload,
  type Neighbor,
  NTF,
  NUD,
} from "../wire/netlink/neighbor.ts";
import { NetlinkBatch, type NetlinkMessage, NLM_F } from "../wire/netlink/message.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import type { NetlinkFailure, NetlinkSocket } from "./netlink-socket.ts";

export type EntryStep = Extract<
  OverlayStep,
  { readonly type: "set-fdb" | "set-neighbor" | "delete-neighbor" | "delete-fdb" }
>;

/**
 * Messages per datagram. Measured with 40,000 entries: 64 → 200,000/s, 1024 → 230,000 (FDB) and 750,000
 * (neighbors) a second, no gain above. One datagram is 2–5 ms in which gossip waits.
 */
const MESSAGES_PER_BATCH = 1024;
const MESSAGE_BYTES = 48;

export function isEntryStep(step: OverlayStep): step is EntryStep {
  switch (step.type) {
    case "set-fdb":
    case "set-neighbor":
    case "delete-neighbor":
    case "delete-fdb":
      return true;
    default:
      return false;
  }
}

/**
 * Writes the steps and reports the failed ones by index. Deleting what is gone is success: another hand may
 * have been faster. @throws NetError `ENOBUFS` when the outcome is unknown
 */
export function applyEntries(
  socket: NetlinkSocket,
  ifindex: number,
  steps: readonly EntryStep[],
): NetlinkFailure[] {
  const failures: NetlinkFailure[] = [];
  for (let start = 0; start < steps.length; start += MESSAGES_PER_BATCH) {
    const part = steps.slice(start, start + MESSAGES_PER_BATCH);
    const batch = new NetlinkBatch(part.length * MESSAGE_BYTES);
    for (const step of part) addEntry(batch, ifindex, step);
    for (const failure of socket.transact(batch)) {
      const step = part[failure.index];
      const isDelete = step?.type === "delete-fdb" || step?.type === "delete-neighbor";
      if (!(isDelete && failure.code === "ENOENT"))
        failures.push({ ...failure, index: start + failure.index });
    }
  }
  return failures;
}

function addEntry(batch: NetlinkBatch, ifindex: number, step: EntryStep): void {
  const set = NLM_F.create | NLM_F.replace;
  switch (step.type) {
    case "set-fdb": {
      // Replace, never exclusive: Docker's exclusive create meets a learned entry and loses the peer (overlay.md §5).
      const { mac, vtep } = step;
      const entry: FdbEntry = { ifindex, mac, vtep, state: NUD.permanent, flags: NTF.self };
      return batch.add(RTM.newNeighbor, set, (out) => encodeFdbEntry(entry, out));
    }
    case "set-neighbor": {
      const neighbor: Neighbor = { ifindex, ip: step.ip, mac: step.mac, state: NUD.permanent, flags: 0 };
      return batch.add(RTM.newNeighbor, set, (out) => encodeNeighbor(neighbor, out));
    }
    case "delete-neighbor": {
      const neighbor: Neighbor = { ifindex, ip: step.ip, mac: undefined, state: 0, flags: 0 };
      return batch.add(RTM.deleteNeighbor, 0, (out) => encodeNeighbor(neighbor, out));
    }
    case "delete-fdb": {
      const entry: FdbEntry = { ifindex, mac: step.mac, vtep: undefined, state: 0, flags: NTF.self };
      return batch.add(RTM.deleteNeighbor, 0, (out) => encodeFdbEntry(entry, out));
    }
  }
}

/**
 * What the kernel has on one VXLAN device. Loaded by a dump and kept true by the kernel's notifications; own
 * writes are entered at once, so that their echo is no news.
 */
export class EntryMirror {
  readonly ifindex: number;
  #neighbors = new Map<IpAddr, FoundEntry<MacAddr>>();
  #fdb = new Map<MacAddr, FoundEntry<IpAddr>>();
  #changes = 0;

  constructor(ifindex: number) {
    this.ifindex = ifindex;
  }

  get neighbors(): ReadonlyMap<IpAddr, FoundEntry<MacAddr>> {
    return this.#neighbors;
  }

  get fdb(): ReadonlyMap<MacAddr, FoundEntry<IpAddr>> {
    return this.#fdb;
  }

  get size(): number {
    return this.#neighbors.size + this.#fdb.size;
  }

  /** Counts what was entered since the beginning, by whomever. */
  get changes(): number {
    return this.#changes;
  }

  /** Forgets everything and dumps. @throws NetError */
  load(socket: NetlinkSocket): void {
    this.become(finish(EntryMirror.read(socket, this.ifindex)));
  }

  /**
   * A mirror of what a dump says, a slice at a time, for `become`. The kernel does not mark these dumps as
   * interrupted: one during which something changed may lack entries that were there throughout.
   * @throws NetError
   */
  static *read(socket: NetlinkSocket, ifindex: number): Sliced<EntryMirror> {
    const mirror = new EntryMirror(ifindex);
    const neighbors = yield* socket.dumpSliced(
      "list neighbors",
      { type: RTM.getNeighbor, encode: (out) => encodeNeighborQuery(ifindex, out) },
      (message) => decodeNeighbor(message.payload),
    );
    const fdb = yield* socket.dumpSliced(
      "list fdb entries",
      { type: RTM.getNeighbor, encode: (out) => encodeFdbQuery(ifindex, out) },
      (message) => decodeFdbEntry(message.payload),
    );
    let rows = 0;
    for (const neighbor of neighbors) {
      if (++rows % SLICE_ROWS === 0) yield;
      mirror.#enterNeighbor(neighbor);
    }
    for (const entry of fdb) {
      if (++rows % SLICE_ROWS === 0) yield;
      mirror.#enterFdb(entry);
    }
    return mirror;
  }

  /** Takes over what `other` has. */
  become(other: EntryMirror): void {
    this.#neighbors = other.#neighbors;
    this.#fdb = other.#fdb;
    this.#changes++;
  }

  /** A step of ours that the kernel accepted. */
  applied(step: EntryStep): void {
    this.#changes++;
    switch (step.type) {
      case "set-fdb":
        this.#fdb.set(step.mac, step.vtep);
        break;
      case "set-neighbor":
        this.#neighbors.set(step.ip, step.mac);
        break;
      case "delete-neighbor":
        this.#neighbors.delete(step.ip);
        break;
      case "delete-fdb":
        this.#fdb.delete(step.mac);
        break;
    }
  }

  /** Takes in a notification and tells whether it was news. @throws DecodeError */
  notice(message: NetlinkMessage): boolean {
    const news = this.#notice(message);
    if (news) this.#changes++;
    return news;
  }

  #notice(message: NetlinkMessage): boolean {
    const deleted = message.type === RTM.deleteNeighbor;
    if (isFdbPayload(message.payload)) {
      const entry = decodeFdbEntry(message.payload);
      if (entry.ifindex !== this.ifindex || !isDevicesOwn(entry)) return false;
      return deleted ? this.#fdb.delete(entry.mac) : this.#enterFdb(entry);
    }
    const neighbor = decodeNeighbor(message.payload);
    if (neighbor.ifindex !== this.ifindex) return false;
    // A delete is announced twice, first as a failed entry.
    return deleted || neighbor.state === NUD.failed
      ? this.#neighbors.delete(neighbor.ip)
      : this.#enterNeighbor(neighbor);
  }

  #enterNeighbor(neighbor: Neighbor): boolean {
    // The kernel's own, made for its multicast traffic on any device.
    if (isMulticast(neighbor.ip) || neighbor.state === NUD.failed) return false;
    const { ip, mac, state, flags } = neighbor;
    const ours = state === NUD.permanent && flags === 0 && mac !== undefined;
    return replace(this.#neighbors, ip, ours ? mac : unlike(mac, state, flags));
  }

  #enterFdb(entry: FdbEntry): boolean {
    if (entry.ifindex !== this.ifindex || !isDevicesOwn(entry)) return false;
    const { mac, vtep, state, flags } = entry;
    const ours = state === NUD.permanent && flags === NTF.self && vtep !== undefined;
    return replace(this.#fdb, mac, ours ? vtep : unlike(vtep, state, flags & ~NTF.self));
  }
}

/** A bridge lists its entries for the port under the port's number, too; those have no NTF_SELF. */
function isDevicesOwn(entry: FdbEntry): boolean {
  return (entry.flags & NTF.self) !== 0;
}

/** Whether that changed anything. */
function replace<K, To extends string>(map: Map<K, FoundEntry<To>>, key: K, value: FoundEntry<To>): boolean {
  const before = map.get(key);
  if (before !== undefined && textOf(before) === textOf(value)) return false;
  map.set(key, value);
  return true;
}

function textOf(entry: FoundEntry<string>): string {
  return typeof entry === "string" ? entry : entry.unlike;
}

/** `192.0.2.66 (dynamic)`: where it leads, and what else is not as we write it. */
function unlike(to: string | undefined, state: number, flags: number): UnlikeEntry {
  const how = [
    (state & NUD.permanent) === 0 && "dynamic",
    (state & ~NUD.permanent) !== 0 && (state & NUD.permanent) !== 0 && "static",
    flags !== 0 && `flags 0x${flags.toString(16)}`,
  ].filter((word) => word !== false);
  return { unlike: `${to ?? "nothing"}${how.length === 0 ? "" : ` (${how.join(", ")})`}` };
}

function isMulticast(ip: IpAddr): boolean {
  if (!isIpv4(ip)) return ip.startsWith("ff");
  const first = Number(ip.slice(0, ip.indexOf(".")));
  return first >= 224;
}
