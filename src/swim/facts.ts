import type { MemberState } from "./member.ts";
import type { Suspicion } from "./suspicion.ts";

/** Words of one member, which so share a line of memory. */
const WORDS = 4;
const INCARNATION = 0;
/** An IPv4 address, in whichever of its two forms; of an IPv6 one a hash. */
const ADDRESS = 1;
/** Port in the upper half, then flags, then the state. */
const STATE = 2;
const HEARD = 3;

const UNKNOWN = 0;
const ALIVE = 1;
const SUSPECT = 2;
const GONE = 3;
const STATE_MASK = 3;
const CODES: Readonly<Record<MemberState, number>> = {
  alive: ALIVE,
  suspect: SUSPECT,
  dead: GONE,
  left: GONE,
};
/** The address has four bytes. Members compare addresses byte for byte. */
const IS_IPV4 = 4;
/** A suspect of whom no further accuser makes a difference. */
const SETTLED = 8;

/** What of a member's record is kept here. */
export interface Noted {
  readonly identity: { readonly addr: Uint8Array; readonly port: number };
  readonly incarnation: number;
  readonly state: MemberState;
  readonly suspicion: Pick<Suspicion<unknown>, "left"> | undefined;
}

/**
 * What is believed of each member, by its number in the table, in a few words that lie together. Nine of ten messages
 * of a storm say what is known; these are seen to do so without a look at the records, each of which lies somewhere
 * else in memory. Everything here is a copy: whoever changes a record notes it.
 */
export class Facts {
  #words = new Uint32Array(WORDS * 64);

  /** Copies the record's. */
  note(number: number, { identity, incarnation, state, suspicion }: Noted): void {
    const at = this.#room(number);
    const { addr, port } = identity;
    let flags = CODES[state];
    if (addr.length === 4) flags |= IS_IPV4;
    if (state === "suspect" && suspicion?.left === 0) flags |= SETTLED;
    this.#words[at + INCARNATION] = incarnation;
    this.#words[at + ADDRESS] = addressWord(addr);
    this.#words[at + STATE] = (port << 16) | flags;
  }

  /** Nothing is known under this number, or nothing that may be judged by these words. */
  clear(number: number): void {
    this.#words.fill(0, this.#room(number), this.#room(number) + WORDS);
  }

  isAlive(number: number): boolean {
    return (this.#state(number) & STATE_MASK) === ALIVE;
  }

  /** Those present whose address and port look like these; an IPv6 address may only have the same hash. */
  presentAt(addr: Uint8Array, port: number): number[] {
    const words = this.#words;
    const wanted = addressWord(addr);
    const numbers: number[] = [];
    for (let at = 0; at < words.length; at += WORDS) {
      if (words[at + ADDRESS] === wanted && isPresent(words[at + STATE] as number, port))
        numbers.push(at / WORDS);
    }
    return numbers;
  }

  /** Those present where somebody with a lower number seems to be, too. */
  sharingPlaces(): number[] {
    const words = this.#words;
    const taken = new Set<number>();
    const numbers: number[] = [];
    for (let at = 0; at < words.length; at += WORDS) {
      const state = words[at + STATE] as number;
      if (!isPresent(state, state >>> 16)) continue;
      const place = (words[at + ADDRESS] as number) * 0x1_0000 + (state >>> 16);
      if (taken.has(place)) numbers.push(at / WORDS);
      else taken.add(place);
    }
    return numbers;
  }

  /** It is alive at this address in this incarnation or a later one. False also where only the record can tell. */
  knowsAlive(number: number, incarnation: number, addr: Uint8Array, port: number): boolean {
    const words = this.#words;
    const at = number * WORDS;
    return (
      number >= 0 &&
      at < words.length &&
      addr.length === 4 &&
      (words[at + STATE] as number) === ((port << 16) | IS_IPV4 | ALIVE) >>> 0 &&
      (words[at + INCARNATION] as number) >= incarnation &&
      (words[at + ADDRESS] as number) === addressWord(addr)
    );
  }

  /** The accusation changes nothing: it is gone, or under a suspicion nobody else is needed for. */
  knowsSuspect(number: number, incarnation: number): boolean {
    const state = this.#state(number);
    if ((state & STATE_MASK) === GONE) return true;
    const settled = (state & SETTLED) !== 0;
    return settled && (this.#words[number * WORDS + INCARNATION] as number) >= incarnation;
  }

  /** It is suspected in just this incarnation. */
  isSuspect(number: number, incarnation: number): boolean {
    return (this.#state(number) & STATE_MASK) === SUSPECT && this.incarnation(number) === incarnation;
  }

  /** It is gone. */
  knowsGone(number: number): boolean {
    return (this.#state(number) & STATE_MASK) === GONE;
  }

  incarnation(number: number): number {
    return this.#words[number * WORDS + INCARNATION] ?? 0;
  }

  /** What waits to be told of it was heard once more. */
  heard(number: number): void {
    if (number < 0) return;
    const at = number * WORDS + HEARD;
    this.#words[at] = (this.#words[at] ?? 0) + 1;
  }

  /** How often since this was asked last. */
  takeHeard(number: number): number {
    if (number < 0) return 0;
    const at = number * WORDS + HEARD;
    const times = this.#words[at] ?? 0;
    if (times > 0) this.#words[at] = 0;
    return times;
  }

  #state(number: number): number {
    return number < 0 ? UNKNOWN : (this.#words[number * WORDS + STATE] ?? UNKNOWN);
  }

  #room(number: number): number {
    const at = number * WORDS;
    if (at + WORDS > this.#words.length) {
      const words = new Uint32Array(Math.max(2 * this.#words.length, at + WORDS));
      words.set(this.#words);
      this.#words = words;
    }
    return at;
  }
}

function addressWord(addr: Uint8Array): number {
  if (addr.length === 4) return bigEndian(addr, 0);
  const mapped = addr.length === 16 && bigEndian(addr, 8) === 0xffff && addr.subarray(0, 8).every(isZero);
  if (mapped) return bigEndian(addr, 12);
  // FNV-1a.
  let hash = 0x811c9dc5;
  for (const byte of addr) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

function bigEndian(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] ?? 0) << 24) |
      ((bytes[at + 1] ?? 0) << 16) |
      ((bytes[at + 2] ?? 0) << 8) |
      (bytes[at + 3] ?? 0)) >>>
    0
  );
}

function isZero(byte: number): boolean {
  return byte === 0;
}

function isPresent(state: number, port: number): boolean {
  const code = state & STATE_MASK;
  return (code === ALIVE || code === SUSPECT) && state >>> 16 === port;
}
