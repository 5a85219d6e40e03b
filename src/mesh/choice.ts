/**
 * Which backend a flow goes to: the same on every node, nearly the same after a change of backends.
 *
 * The kernel's map holds, per service, a sparse table of `positions`, twice to eight times as many as there
 * are backends, in which every backend owns exactly one. A flow probes: it hashes to a position, and when that
 * one is empty hashes again with the next seed, up to `PROBES` times; then the spare slots decide, dealt as
 * Maglev deals (Eisenbud et al., NSDI 2016, §3.4). Every probe is uniform over the owned positions, so shares
 * are equal, and a new backend takes over only the flows that find its position: one in n + 1.
 *
 * Why not Maglev's table alone, one lookup per flow: it must be large to be steady. With 61 slots the eleventh
 * backend moved 21 % of all flows, with 251 slots 15 %; this moves 10 % with 11 elements. Elements are what
 * loading, memory and changing cost (2 µs each): 10,000 services of 10 backends are 110,000 of them, not 610,000.
 * The probes, three on average for ten backends, cost a new flow less than a microsecond.
 */

/** Size of the tables of one class of services. */
export interface ChoiceClass {
  /** Most backends it serves. */
  readonly backends: number;
  /** Slots 0 … positions − 1 are probed. A power of two. */
  readonly positions: number;
  /**
   * Slots positions … positions + spare − 1 are the last resort, those of them that are dealt (`spareSlots`). A prime,
   * or 0 when no probe can miss.
   */
  readonly spare: number;
}

/**
 * Crossing from one class to the next deals most new flows anew (established ones stay, conntrack holds
 * them); so the classes are few and far between.
 */
export const CHOICE_CLASSES: readonly ChoiceClass[] = [
  { backends: 1, positions: 1, spare: 0 },
  { backends: 16, positions: 32, spare: 7 },
  { backends: 64, positions: 128, spare: 31 },
  { backends: 256, positions: 512, spare: 127 },
  { backends: 1024, positions: 2048, spare: 509 },
];

export const PROBES = 16;
/** More backends than this of one service get no flows; a thousand is far beyond one service's use of a port. */
export const BACKENDS_MAX = 1024;

/** Index into `CHOICE_CLASSES` for a number of backends, 1 or more. */
export function choiceClass(count: number): number {
  const index = CHOICE_CLASSES.findIndex((candidate) => count <= candidate.backends);
  return index < 0 ? CHOICE_CLASSES.length - 1 : index;
}

/** How much more than its share the owner of a lone spare slot may get. */
const OVERLOAD_MAX = 0.05;

/**
 * How many spare slots a service with `count` backends needs: one, when so few flows come to it that its owner does not
 * notice (2.2 % more than its share where there are ten); else all.
 */
export function spareSlots(count: number): number {
  const { positions, spare } = CHOICE_CLASSES[choiceClass(count)] as ChoiceClass;
  if (spare === 0) return 0;
  const missed = (1 - count / positions) ** PROBES;
  return missed * (count - 1) <= OVERLOAD_MAX ? 1 : spare;
}

/**
 * Who owns each slot, as an index into `names` (distinct; their order does not matter beyond that); -1 where nobody
 * does. `seed` makes services differ from each other.
 */
export function slotOwners(names: readonly string[], seed: string): Int16Array {
  const { positions } = CHOICE_CLASSES[choiceClass(names.length)] as ChoiceClass;
  const spare = spareSlots(Math.min(names.length, BACKENDS_MAX));
  // One hash of each name, from which all its numbers are drawn: hashing is most of the work.
  const prefix = continueHash(HASH_START, `${seed}/`);
  const hashes = names.map((name) => mix(continueHash(prefix, name)));
  // A ranking by hash decides who comes first to a contended position, whatever order the caller has.
  const ranked = names.map((_, index) => index);
  ranked.sort(
    (a, b) => (hashes[a] ?? 0) - (hashes[b] ?? 0) || ((names[a] ?? "") < (names[b] ?? "") ? -1 : 1),
  );
  if (ranked.length > BACKENDS_MAX) ranked.length = BACKENDS_MAX;
  const owners = new Int16Array(positions + spare).fill(-1);
  for (const owner of ranked) {
    const hash = hashes[owner] ?? 0;
    let slot = draw(hash, 1) % positions;
    // Odd, so that it visits every position of a power of two.
    const skip = (draw(hash, 2) | 1) >>> 0;
    while (owners[slot] !== -1) slot = (slot + skip) % positions;
    owners[slot] = owner;
  }
  // Of a table with one slot nothing is dealt: the first has it.
  if (spare === 1) owners[positions] = ranked[0] ?? 0;
  if (spare <= 1) return owners;
  const table = maglevTable(
    ranked.map((owner) => hashes[owner] ?? 0),
    spare,
  );
  table.forEach((index, slot) => (owners[positions + slot] = ranked[index] ?? 0));
  return owners;
}

/**
 * Maglev's table: which of `hashes` (ascending, one per backend) owns each of `size` slots (a prime).
 * Each gets ⌊size/n⌋ or ⌈size/n⌉ of them.
 */
export function maglevTable(hashes: readonly number[], size: number): Uint16Array {
  const owners = new Uint16Array(size);
  if (hashes.length <= 1) return owners;
  const next = hashes.map((hash) => draw(hash, 3) % size);
  const skip = hashes.map((hash) => (draw(hash, 4) % (size - 1)) + 1);
  const taken = new Uint8Array(size);
  for (let filled = 0; ;) {
    for (let index = 0; index < hashes.length; index++) {
      let slot = next[index] ?? 0;
      // size is prime, so the steps of `skip` visit every slot: a free one is found while there is one.
      while (taken[slot] === 1) slot = (slot + (skip[index] ?? 1)) % size;
      taken[slot] = 1;
      owners[slot] = index;
      next[index] = slot;
      if (++filled === size) return owners;
    }
  }
}

/** The `count`-th number drawn from a hash: another step of its Weyl sequence, mixed. */
function draw(hash: number, count: number): number {
  return mix(hash + Math.imul(count, 0x9e3779b9));
}

/** 32 bits of which `%` may be taken. */
export function hashText(text: string): number {
  return mix(continueHash(HASH_START, text));
}

const HASH_START = 0x811c9dc5;

/** FNV-1a, 32 bits, to be finished by `mix`: FNV's low bits alone are too regular for `%`. */
function continueHash(start: number, text: string): number {
  let hash = start;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash;
}

/** MurmurHash3's finalizer: every bit of the result depends on every bit of `value`. */
function mix(value: number): number {
  let hash = value;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
