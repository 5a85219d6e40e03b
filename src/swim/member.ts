import { bytesEqual } from "../base/bytes.ts";
import { formatSocketAddr, ipFromBytes, type SocketAddr } from "../base/ip.ts";
import { randomInt, shuffle, type Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import type { Rumor, Subject } from "./broadcast-queue.ts";
import { Facts } from "./facts.ts";
import type { Suspect, Suspicion } from "./suspicion.ts";

/** Left: of its own will. Dead: found out. Both are gone, and a suspect is still here. */
export type MemberState = "alive" | "suspect" | "dead" | "left";

/** A member as this node knows it. */
export interface Member {
  readonly name: string;
  /** Exactly as its owner announced it, 4 or 16 bytes: members compare these byte for byte. */
  readonly addr: Uint8Array;
  readonly port: number;
  /** The two above, for sending. */
  readonly address: SocketAddr;
  readonly meta: Uint8Array;
  /** Protocol min, max, current; delegate min, max, current. Empty when it never said. */
  readonly vsn: Uint8Array;
  readonly incarnation: number;
  readonly state: MemberState;
  readonly changedAt: Instant;
}

/**
 * What a member says about itself. Immutable, so that equal ones can be one object: thousands of nodes in one
 * process (the simulator) then share them.
 */
export interface Identity {
  readonly name: string;
  readonly addr: Uint8Array;
  readonly port: number;
  readonly meta: Uint8Array;
  readonly vsn: Uint8Array;
  readonly address: SocketAddr;
  /** `address` as text: names the place in maps. */
  readonly place: string;
}

export type Description = Pick<Identity, "name" | "addr" | "port" | "meta" | "vsn">;

/** Copies what it keeps. @throws DecodeError when `addr` is neither 4 nor 16 bytes. */
export function makeIdentity(claim: Description): Identity {
  const address = { ip: ipFromBytes(claim.addr), port: claim.port };
  return {
    name: claim.name,
    addr: claim.addr.slice(),
    port: claim.port,
    meta: claim.meta.slice(),
    vsn: claim.vsn.slice(),
    address,
    place: formatSocketAddr(address),
  };
}

/**
 * The mutable record behind `Member`; only `claims.ts` and `MemberTable` write to it. What is under way about a
 * member hangs on its record, so that a message about it costs one look-up.
 */
export class MemberRecord implements Member, Subject, Suspect {
  identity: Identity;
  incarnation: number;
  state: MemberState;
  changedAt: Instant;
  suspicion: Suspicion<this> | undefined = undefined;
  rumor: Rumor | undefined = undefined;
  /** In the table; −1 outside. */
  number = -1;

  constructor(identity: Identity, incarnation: number, state: MemberState, now: Instant) {
    this.identity = identity;
    this.incarnation = incarnation;
    this.state = state;
    this.changedAt = now;
  }

  get name(): string {
    return this.identity.name;
  }
  get addr(): Uint8Array {
    return this.identity.addr;
  }
  get port(): number {
    return this.identity.port;
  }
  get address(): SocketAddr {
    return this.identity.address;
  }
  get meta(): Uint8Array {
    return this.identity.meta;
  }
  get vsn(): Uint8Array {
    return this.identity.vsn;
  }
  /** Alive or suspect: counted on. */
  get present(): boolean {
    return this.state === "alive" || this.state === "suspect";
  }
  /** The newest protocol it understands: 3 TCP pings, 4 nacks, 5 checksums. */
  get protocolMax(): number {
    return this.identity.vsn[1] ?? 0;
  }

  /** Byte for byte, as memberlist compares. */
  isAt(addr: Uint8Array, port: number): boolean {
    const own = this.identity;
    return own.port === port && (own.addr === addr || bytesEqual(own.addr, addr));
  }
}

/** Names as small numbers, for tables that are arrays. */
export interface NameNumbers {
  get(name: string): number | undefined;
  /** The name's number; a new one when it has none. */
  add(name: string): number;
  /** The number may be given to another name. */
  remove(name: string): void;
}

class OwnNumbers implements NameNumbers {
  readonly #numbers = new Map<string, number>();
  readonly #free: number[] = [];

  get(name: string): number | undefined {
    return this.#numbers.get(name);
  }

  add(name: string): number {
    const known = this.#numbers.get(name);
    if (known !== undefined) return known;
    const number = this.#free.pop() ?? this.#numbers.size;
    this.#numbers.set(name, number);
    return number;
  }

  remove(name: string): void {
    const number = this.#numbers.get(name);
    if (this.#numbers.delete(name) && number !== undefined) this.#free.push(number);
  }
}

/** All members by name, and the same in probing order. Its size is the N of every formula. */
export class MemberTable {
  readonly facts = new Facts();
  readonly #self: MemberRecord;
  readonly #numbers: NameNumbers;
  readonly #byNumber: (MemberRecord | undefined)[] = [];
  readonly #order: MemberRecord[] = [];
  readonly #random: Random;
  /** By the versions themselves, as a number. */
  readonly #voices = new Map<number, Voices>();
  #alive = 0;
  #present = 0;
  #turn = 0;

  /** Of the node `self`, who is yet to be added. Many tables in one process may share their numbers. */
  constructor(self: MemberRecord, random: Random, numbers: NameNumbers = new OwnNumbers()) {
    this.#self = self;
    this.#random = random;
    this.#numbers = numbers;
  }

  /** Members in state alive, this node included. */
  get alive(): number {
    return this.#alive;
  }

  /** Members alive or suspect, this node included. */
  get present(): number {
    return this.#present;
  }

  get size(): number {
    return this.#order.length;
  }

  get(name: string): MemberRecord | undefined {
    return this.#byNumber[this.numberOf(name)];
  }

  /** Members present at this place, but for this node. */
  presentAt({ addr, port, place }: Pick<Identity, "addr" | "port" | "place">): MemberRecord[] {
    return this.facts
      .presentAt(addr, port)
      .flatMap((number) => this.#byNumber[number] ?? [])
      .filter((member) => member.identity.place === place)
      .sort(byName);
  }

  /** Members present at a place, but for this node, where another is present, too: pairs. */
  sharingPlaces(): (readonly [MemberRecord, MemberRecord])[] {
    const shared = this.facts.sharingPlaces().flatMap((number) => this.#byNumber[number] ?? []);
    return shared.sort(byName).flatMap((member) =>
      this.presentAt(member.identity)
        .filter((other) => other !== member)
        .map((other) =>
          byName(other, member) < 0 ? ([other, member] as const) : ([member, other] as const),
        ),
    );
  }

  /** For `facts`; −1 for a name nobody has. */
  numberOf(name: string): number {
    return this.#numbers.get(name) ?? -1;
  }

  /** After a change of the record that did not go through the table. Nothing about ourselves is taken for known. */
  note(member: MemberRecord): void {
    if (member !== this.#self && member.number >= 0) this.facts.note(member.number, member);
  }

  at(index: number): MemberRecord | undefined {
    return this.#order[index];
  }

  /** One for each set of versions that is spoken, alive if any of its speakers is. */
  voices(): { readonly name: string; readonly state: MemberState; readonly vsn: Uint8Array }[] {
    return [...this.#voices.values()].map(({ vsn, alive }) => ({
      name: "",
      state: alive > 0 ? "alive" : "dead",
      vsn,
    }));
  }

  [Symbol.iterator](): Iterator<MemberRecord> {
    return this.#order.values();
  }

  /** Members in state alive, but for this node, that `listed` lacks. */
  aliveBeside(listed: readonly { readonly name: string }[]): MemberRecord[] {
    const seen = new Uint8Array(this.#byNumber.length);
    for (const { name } of listed) {
      const number = this.numberOf(name);
      if (number >= 0 && number < seen.length) seen[number] = 1;
    }
    const isMissed = (number: number): boolean => seen[number] === 0 && this.facts.isAlive(number);
    // Mostly nobody is.
    if (!seen.some((_, number) => isMissed(number))) return [];
    return this.#order.filter(({ number }) => isMissed(number));
  }

  /** Puts it at a random place, so that no joining order shows in the probing order. */
  add(member: MemberRecord): void {
    const number = this.#numbers.add(member.name);
    while (this.#byNumber.length <= number) this.#byNumber.push(undefined);
    this.#byNumber[number] = member;
    member.number = number;
    this.facts.clear(number);
    this.note(member);
    this.#tally(member, 1);
    const last = this.#order.push(member) - 1;
    this.#swap(last, randomInt(this.#random, this.#order.length));
  }

  /** What it says about itself from now on. */
  describe(member: MemberRecord, identity: Identity): void {
    this.#tally(member, -1);
    member.identity = identity;
    this.#tally(member, 1);
    this.note(member);
  }

  become(member: MemberRecord, state: MemberState, now: Instant): void {
    this.#tally(member, -1);
    member.state = state;
    this.#tally(member, 1);
    member.changedAt = now;
    this.note(member);
  }

  shuffle(): void {
    shuffle(this.#random, this.#order);
  }

  /** Removes and returns those that `gone` names. */
  drop(gone: (member: MemberRecord) => boolean): MemberRecord[] {
    const dropped: MemberRecord[] = [];
    let kept = 0;
    for (const member of this.#order) {
      if (gone(member)) {
        this.#byNumber[member.number] = undefined;
        this.facts.clear(member.number);
        member.number = -1;
        this.#numbers.remove(member.name);
        this.#tally(member, -1);
        dropped.push(member);
      } else this.#order[kept++] = member;
    }
    this.#order.length = kept;
    return dropped;
  }

  /**
   * Up to `count` different members that `fits`, at random: drawn with replacement in a long list, in which a
   * handful of misses cost less than a copy; a short list is shuffled, lest the draws miss somebody.
   */
  pick(count: number, fits: (member: MemberRecord) => boolean): MemberRecord[] {
    const size = this.#order.length;
    const picked: MemberRecord[] = [];
    if (size <= 3 * count) {
      for (const member of shuffle(this.#random, [...this.#order])) {
        if (picked.length >= count) break;
        if (fits(member)) picked.push(member);
      }
      return picked;
    }
    for (let draws = 0; draws < 3 * size && picked.length < count; draws++) {
      const member = this.#order[randomInt(this.#random, size)];
      if (member !== undefined && fits(member) && !picked.includes(member)) picked.push(member);
    }
    return picked;
  }

  /** Up to `count` members that `fits`, in turn: the same one comes again only after all others. */
  nextInTurn(count: number, fits: (member: MemberRecord) => boolean): MemberRecord[] {
    const picked: MemberRecord[] = [];
    for (let seen = 0; seen < this.#order.length && picked.length < count; seen++) {
      this.#turn = (this.#turn + 1) % this.#order.length;
      const member = this.#order[this.#turn];
      if (member !== undefined && fits(member)) picked.push(member);
    }
    return picked;
  }

  #tally(member: MemberRecord, by: 1 | -1): void {
    const { vsn } = member.identity;
    const key = versionsKey(vsn);
    let voices = this.#voices.get(key);
    if (voices === undefined) this.#voices.set(key, (voices = { vsn, count: 0, alive: 0 }));
    voices.count += by;
    if (member.state === "alive") {
      this.#alive += by;
      voices.alive += by;
    }
    if (member.present) this.#present += by;
    if (voices.count === 0) this.#voices.delete(key);
  }

  #swap(i: number, j: number): void {
    const a = this.#order[i];
    const b = this.#order[j];
    if (a === undefined || b === undefined) return;
    this.#order[i] = b;
    this.#order[j] = a;
  }
}

/** Numbers are no order: many tables in one process may share them. */
function byName(a: MemberRecord, b: MemberRecord): number {
  return a.name < b.name ? -1 : 1;
}

/** Members that speak the same versions. */
interface Voices {
  readonly vsn: Uint8Array;
  count: number;
  alive: number;
}

/** Six bytes as one number; −1 for a member that never said. */
function versionsKey(vsn: Uint8Array): number {
  if (vsn.length < 6) return -1;
  let key = 0;
  for (let i = 0; i < 6; i++) key = key * 256 + (vsn[i] ?? 0);
  return key;
}

/** Whether its packets may carry a checksum. */
export function understandsCrc(member: MemberRecord): boolean {
  return member.protocolMax >= 5;
}
