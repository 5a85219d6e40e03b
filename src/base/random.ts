/** Where a core gets its randomness: an argument, so that a seed replays a run exactly. */
export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
}

/** Deterministic generator (xoshiro128**, Blackman & Vigna 2018), seeded through splitmix32. Not for keys. */
export function seededRandom(seed: number): Random {
  let mix = seed >>> 0;
  const splitmix = (): number => {
    mix = (mix + 0x9e3779b9) >>> 0;
    let z = mix;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  };
  let a = splitmix();
  let b = splitmix();
  let c = splitmix();
  let d = splitmix();
  return {
    next() {
      const product = Math.imul(b, 5);
      const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
      const shifted = b << 9;
      c ^= a;
      d ^= b;
      b ^= c;
      a ^= d;
      c ^= shifted;
      d = (d << 11) | (d >>> 21);
      return result / 0x1_0000_0000;
    },
  };
}

/** Uniform integer in [0, bound); `bound` at most 2³², the generator's resolution. */
export function randomInt(random: Random, bound: number): number {
  return Math.floor(random.next() * bound);
}

/** Bytes from `random`; only as unpredictable as it is. */
export function randomBytes(random: Random, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => randomInt(random, 256));
}

/** One element, or undefined of an empty list. */
export function pick<T>(random: Random, items: readonly T[]): T | undefined {
  return items[randomInt(random, items.length)];
}

/** Shuffles in place (Fisher–Yates) and returns the same array. */
export function shuffle<T>(random: Random, items: T[]): T[] {
  for (let i = items.length - 1; i > 0; i--) {
    const j = randomInt(random, i + 1);
    const held = items[i] as T;
    items[i] = items[j] as T;
    items[j] = held;
  }
  return items;
}

/** Up to `count` distinct elements, uniformly, in random order. The input is left as it is. */
export function sample<T>(random: Random, items: readonly T[], count: number): T[] {
  const copy = [...items];
  const size = Math.max(0, Math.min(count, copy.length));
  for (let i = 0; i < size; i++) {
    const j = i + randomInt(random, copy.length - i);
    const held = copy[i] as T;
    copy[i] = copy[j] as T;
    copy[j] = held;
  }
  copy.length = size;
  return copy;
}
