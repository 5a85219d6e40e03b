import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 as zlibCrc32 } from "node:zlib";
import fc from "fast-check";
import { fromHex, toHex } from "../../src/base/bytes.ts";
import { DecodeError } from "../../src/base/error.ts";
import { randomInt, seededRandom } from "../../src/base/random.ts";
import { crc32 } from "../../src/wire/crc32.ts";
import { lzwCompress, lzwDecompress } from "../../src/wire/lzw.ts";

const ANY_LENGTH = 1 << 20;

test("what LZW compresses it gives back, whatever the alphabet and around every change of width", () => {
  const alphabets = [1, 2, 3, 16, 256];
  const lengths = [
    0, 1, 2, 253, 254, 255, 256, 257, 765, 766, 1789, 3837, 3838, 3839, 3840, 7676, 7677, 40_000,
  ];
  for (const alphabet of alphabets) {
    for (const length of lengths) {
      const input = randomLetters(length, alphabet, length * 257 + alphabet);
      assert.deepEqual(lzwDecompress(lzwCompress(input), length), input, `${length} of ${alphabet}`);
    }
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 3000 }), (input) => {
      assert.deepEqual(lzwDecompress(lzwCompress(input), input.length), input);
    }),
  );
});

test("a full table that is never cleared is read on, as GIF writers may leave it", () => {
  // Literals only, at the width a reader has reached by counting: 4095 − 257 entries, then nothing is added.
  const literals = 6000;
  const bits: number[] = [];
  let high = 257;
  let width = 9;
  put(256);
  for (let i = 0; i < literals; i++) {
    put(i & 0xff);
    high++;
    if (high >= 1 << width) {
      if (width < 12) width++;
      else high--;
    }
  }
  put(4095);
  put(257);
  const output = lzwDecompress(pack(bits), ANY_LENGTH);
  assert.equal(output.length, literals + 2);
  assert.deepEqual(
    output.subarray(0, 300),
    Uint8Array.from({ length: 300 }, (_, i) => i & 0xff),
  );

  function put(code: number): void {
    for (let bit = 0; bit < width; bit++) bits.push((code >>> bit) & 1);
  }
});

test("output beyond the limit is refused, whether it comes in one step or in many", () => {
  for (const alphabet of [1, 256]) {
    const input = randomLetters(5000, alphabet, 1);
    const compressed = lzwCompress(input);
    assert.equal(lzwDecompress(compressed, 5000).length, 5000);
    assert.throws(() => lzwDecompress(compressed, 4999), DecodeError);
    assert.throws(() => lzwDecompress(compressed, 0), DecodeError);
  }
});

test("arbitrary and shortened LZW input gives bytes or a DecodeError", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.uint8Array({ maxLength: 500 }), (noise, input) => {
      const compressed = lzwCompress(input);
      for (const bytes of [
        noise,
        Uint8Array.of(0, 1, ...noise),
        compressed.map((byte, i) => byte ^ (noise[i] ?? 0)),
      ]) {
        try {
          assert.ok(lzwDecompress(bytes, 1000).length <= 1000);
        } catch (error) {
          if (!(error instanceof DecodeError)) throw error;
        }
      }
      for (let length = 0; length < compressed.length - 1; length++)
        assert.throws(() => lzwDecompress(compressed.subarray(0, length), ANY_LENGTH), DecodeError);
    }),
  );
});

test("nothing at all is clear code and end code", () => {
  assert.equal(toHex(lzwCompress(new Uint8Array(0))), "000302");
  assert.equal(lzwDecompress(fromHex("000302"), 0).length, 0);
});

test("CRC-32 is zip's", () => {
  assert.equal(crc32(Uint8Array.from("123456789", (letter) => letter.charCodeAt(0))), 0xcbf43926);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(300), (bytes, place) => {
      const start = Math.min(place, bytes.length);
      assert.equal(crc32(bytes, start), zlibCrc32(bytes.subarray(start)));
    }),
  );
});

function randomLetters(length: number, alphabet: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  return Uint8Array.from({ length }, () => randomInt(random, alphabet));
}

function pack(bits: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(Math.ceil(bits.length / 8));
  bits.forEach((bit, i) => {
    bytes[i >> 3] = (bytes[i >> 3] ?? 0) | (bit << (i & 7));
  });
  return bytes;
}
