import { pick, randomBytes, randomInt, type Random } from "../../src/base/random.ts";

/** Longest input made: a datagram. */
const MAX_LENGTH = 65_535; // bytes

/** Bytes that mean something in length fields, signs and type tags. */
const TELLING = [0x00, 0x01, 0x7f, 0x80, 0xff, 0xc0, 0xc1, 0xdb, 0xdd, 0xdf, 0x9f, 0x8f, 0xbf];

/** A corpus entry, changed in one to eight places; now and then pure noise. */
export function mutate(random: Random, corpus: readonly Uint8Array[]): Uint8Array {
  const seed = pick(random, corpus);
  if (seed === undefined || randomInt(random, 50) === 0) return randomBytes(random, randomInt(random, 200));
  let bytes = seed;
  // Mostly one or two changes: with eight, hardly anything gets past the first header.
  for (let left = 1 + randomInt(random, 1 + randomInt(random, 8)); left > 0; left--)
    bytes = change(random, bytes, corpus);
  return bytes.length > MAX_LENGTH ? bytes.slice(0, MAX_LENGTH) : bytes;
}

function change(random: Random, bytes: Uint8Array, corpus: readonly Uint8Array[]): Uint8Array {
  const at = randomInt(random, bytes.length + 1);
  const out = bytes.slice();
  switch (randomInt(random, 8)) {
    case 0: // one bit
      if (at < out.length) out[at] = (out[at] ?? 0) ^ (1 << randomInt(random, 8));
      return out;
    case 1: // one byte, any
      if (at < out.length) out[at] = randomInt(random, 256);
      return out;
    case 2: // one byte, telling
      if (at < out.length) out[at] = pick(random, TELLING) ?? 0;
      return out;
    case 3: // one byte a little more or less: lengths and counts
      if (at < out.length) out[at] = (out[at] ?? 0) + randomInt(random, 9) - 4;
      return out;
    case 4: // cut
      return out.slice(0, at);
    case 5: // remove a few
      return joined(out.subarray(0, at), out.subarray(Math.min(out.length, at + 1 + randomInt(random, 8))));
    case 6: // insert noise
      return joined(out.subarray(0, at), randomBytes(random, 1 + randomInt(random, 8)), out.subarray(at));
    default: {
      // splice with another entry
      const other = pick(random, corpus) ?? bytes;
      return joined(out.subarray(0, at), other.subarray(randomInt(random, other.length + 1)));
    }
  }
}

function joined(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}
