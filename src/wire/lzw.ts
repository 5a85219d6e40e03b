/**
 * Variable-width LZW as Go's compress/lzw with LSB order and literal width 8 (the GIF variety):
 * clear code 256, end code 257, first free code 258, codes of 9 to 12 bits, least significant bit first.
 * The writer reproduces Go's bytes exactly.
 */
import { ByteWriter } from "../base/bytes.ts";
import { DecodeError } from "../base/error.ts";

const CLEAR = 256;
const END = 257;
const MAX_WIDTH = 12; // bits
const MAX_CODE = 4095;
const NONE = -1;

/** Worst case (random bytes): about 1.5 times the input. */
export function lzwCompress(input: Uint8Array): Uint8Array {
  scratch.reset();
  lzwCompressInto(input, scratch);
  return scratch.finish();
}

/** Appends the compressed form of `input` to `out`. */
export function lzwCompressInto(input: Uint8Array, out: ByteWriter): void {
  let bits = CLEAR;
  let bitCount = 9;
  let width = 9;
  /** Highest code in use, as Go's `hi`: it runs one ahead of the table. */
  let high = END;
  KEYS.fill(NONE);

  let code = NONE;
  for (let i = 0; i < input.length; i++) {
    const literal = input[i] as number;
    if (code === NONE) {
      code = literal;
      continue;
    }
    const key = (code << 8) | literal;
    let slot = (Math.imul(key, 0x9e3779b1) >>> 18) & (HASH_SIZE - 1);
    while (KEYS[slot] !== key && KEYS[slot] !== NONE) slot = (slot + 1) & (HASH_SIZE - 1);
    if (KEYS[slot] === key) {
      code = CODES[slot] as number;
      continue;
    }
    bits |= code << bitCount;
    bitCount += width;
    while (bitCount >= 8) {
      out.u8(bits & 0xff);
      bits >>>= 8;
      bitCount -= 8;
    }
    code = literal;
    high++;
    if (high === 1 << width) width++;
    if (high === MAX_CODE) {
      // No entry in this step: the literal starts over with an empty table.
      bits |= CLEAR << bitCount;
      bitCount += MAX_WIDTH;
      width = 9;
      high = END;
      KEYS.fill(NONE);
      while (bitCount >= 8) {
        out.u8(bits & 0xff);
        bits >>>= 8;
        bitCount -= 8;
      }
    } else {
      KEYS[slot] = key;
      CODES[slot] = high;
    }
  }
  if (code !== NONE) {
    bits |= code << bitCount;
    bitCount += width;
    while (bitCount >= 8) {
      out.u8(bits & 0xff);
      bits >>>= 8;
      bitCount -= 8;
    }
    high++;
    if (high === 1 << width) width++;
    if (high === MAX_CODE) {
      bits |= CLEAR << bitCount;
      bitCount += MAX_WIDTH;
      width = 9;
    }
  }
  while (bitCount >= 8) {
    out.u8(bits & 0xff);
    bits >>>= 8;
    bitCount -= 8;
  }
  bits |= END << bitCount;
  bitCount += width;
  for (; bitCount > 0; bitCount -= 8) {
    out.u8(bits & 0xff);
    bits >>>= 8;
  }
}

/**
 * The original bytes, at most `maxBytes`; what follows the end code is ignored.
 * @throws DecodeError on a code beyond the table, a missing end code, or more output than `maxBytes`.
 */
export function lzwDecompress(input: Uint8Array, maxBytes: number): Uint8Array {
  let output = new Uint8Array(Math.min(maxBytes, Math.max(256, 4 * input.length)));
  let length = 0;
  let at = 0;
  let bits = 0;
  let bitCount = 0;
  let width = 9;
  let high = END;
  let last = NONE;

  for (;;) {
    while (bitCount < width) {
      const byte = input[at];
      if (byte === undefined) throw new DecodeError("LZW", at, "input ends before the end code");
      at++;
      bits |= byte << bitCount;
      bitCount += 8;
    }
    const code = bits & ((1 << width) - 1);
    bits >>>= width;
    bitCount -= width;

    if (code === CLEAR) {
      width = 9;
      high = END;
      last = NONE;
      continue;
    }
    if (code === END) return output.slice(0, length);
    // "Previous string plus its first byte" is the one code that may be used before it is complete.
    const repeats = code === high && last !== NONE;
    if (code > high || (code === high && !repeats && high < MAX_CODE))
      throw new DecodeError("LZW", at, "code beyond the table");

    const size = code < CLEAR ? 1 : repeats ? lengthOf(last) + 1 : (LENGTHS[code] as number);
    const end = length + size;
    if (end > output.length) {
      if (end > maxBytes) throw new DecodeError("LZW", at, `inflates to more than ${maxBytes} bytes`);
      const larger = new Uint8Array(Math.min(maxBytes, Math.max(end, 2 * output.length)));
      larger.set(output.subarray(0, length));
      output = larger;
    }
    let i = end - 1;
    let link = code;
    if (repeats) {
      i--;
      link = last;
    }
    while (link >= CLEAR) {
      output[i--] = SUFFIXES[link] as number;
      link = PREFIXES[link] as number;
    }
    output[i] = link;
    if (repeats) output[end - 1] = link;
    length = end;

    if (last !== NONE) {
      SUFFIXES[high] = link;
      PREFIXES[high] = last;
      LENGTHS[high] = lengthOf(last) + 1;
    }
    last = code;
    high++;
    if (high >= 1 << width) {
      if (width === MAX_WIDTH) {
        // Full: nothing is added until a clear code comes.
        last = NONE;
        high--;
      } else width++;
    }
  }
}

function lengthOf(code: number): number {
  return code < CLEAR ? 1 : (LENGTHS[code] as number);
}

// Work space, written anew by every call before it is read.
const scratch = new ByteWriter(2048);
const HASH_SIZE = 1 << 14; // four times the table, so that probing stays short
const KEYS = new Int32Array(HASH_SIZE);
const CODES = new Uint16Array(HASH_SIZE);
const PREFIXES = new Uint16Array(MAX_CODE + 1);
const SUFFIXES = new Uint8Array(MAX_CODE + 1);
const LENGTHS = new Uint16Array(MAX_CODE + 1);
