import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  ByteReader,
  ByteWriter,
  bytesEqual,
  compareBytes,
  concatBytes,
  fromHex,
  fromUtf8,
  toHex,
  utf8,
} from "../../src/base/bytes.ts";
import { DecodeError } from "../../src/base/error.ts";

/** One call on the writer and the call on the reader that gives the value back. */
type Step = readonly [write: (out: ByteWriter) => void, read: (input: ByteReader) => unknown, value: unknown];

const step: fc.Arbitrary<Step> = fc.oneof(
  unsigned(8).map((v): Step => [(out) => out.u8(v), (input) => input.u8(), v]),
  unsigned(16).map((v): Step => [(out) => out.u16(v), (input) => input.u16(), v]),
  unsigned(24).map((v): Step => [(out) => out.u24(v), (input) => input.u24(), v]),
  unsigned(32).map((v): Step => [(out) => out.u32(v), (input) => input.u32(), v]),
  fc
    .bigInt({ min: 0n, max: 2n ** 64n - 1n })
    .map((v): Step => [(out) => out.u64(v), (input) => input.u64(), v]),
  fc.integer().map((v): Step => [(out) => out.i32(v), (input) => input.i32(), v]),
  fc.double().map((v): Step => [(out) => out.f64(v), (input) => input.f64(), v]),
  unsigned(16).map((v): Step => [(out) => out.u16h(v), (input) => input.u16h(), v]),
  unsigned(32).map((v): Step => [(out) => out.u32h(v), (input) => input.u32h(), v]),
  fc.integer().map((v): Step => [(out) => out.i32h(v), (input) => input.i32h(), v]),
  fc
    .bigInt({ min: 0n, max: 2n ** 64n - 1n })
    .map((v): Step => [(out) => out.u64h(v), (input) => input.u64h(), v]),
  fc
    .uint8Array({ maxLength: 60 })
    .map((v): Step => [(out) => out.write(v), (input) => input.take(v.length), v]),
  fc
    .string({ unit: "grapheme" })
    .map((v): Step => [(out) => out.text(v), (input) => input.text(utf8(v).length), v]),
  fc
    .string({ unit: "binary-ascii" })
    .map((v): Step => [(out) => out.ascii(v), (input) => input.text(v.length), v]),
);

test("what a writer appends, however small it began, a reader gives back in order", () => {
  fc.assert(
    fc.property(fc.array(step), fc.nat(20), (steps, capacity) => {
      const out = new ByteWriter(capacity);
      for (const [write] of steps) write(out);
      const input = new ByteReader(out.finish(), "test");
      for (const [, read, value] of steps) assert.deepEqual(read(input), value);
      assert.equal(input.remaining, 0);
    }),
  );
});

test("a reused writer keeps nothing of what it held before", () => {
  fc.assert(
    fc.property(fc.uint8Array(), fc.array(step), (before, steps) => {
      const reused = new ByteWriter(4).write(before);
      reused.reset();
      const fresh = new ByteWriter();
      for (const [write] of steps) {
        write(reused);
        write(fresh);
      }
      reused.zeros(3);
      fresh.zeros(3);
      assert.deepEqual(reused.finish(), fresh.finish());
      assert.deepEqual(reused.view(), fresh.finish());
    }),
  );
});

test("truncating forgets the end and no more", () => {
  const out = new ByteWriter(1).u32(0x01020304);
  out.truncate(9);
  out.truncate(2);
  assert.equal(toHex(out.u8(5).finish()), "010205");
});

test("a patched length lands where it was left free", () => {
  const out = new ByteWriter(0).zeros(13).align(4);
  out.patchU8(0, 1);
  out.patchU16(1, 0x0203);
  out.patchU32(3, 0x04050607);
  out.patchU16h(7, 0x0908);
  out.patchU32h(9, 0x0d0c0b0a);
  assert.equal(toHex(out.finish()), "01020304050607" + "0809" + "0a0b0c0d" + "000000");
});

test("reading past the end is a DecodeError that names format and place, and moves nothing", () => {
  const reads: ((input: ByteReader) => unknown)[] = [
    (input) => input.u16(),
    (input) => input.u24(),
    (input) => input.u32(),
    (input) => input.u64(),
    (input) => input.i16(),
    (input) => input.i32(),
    (input) => input.i64(),
    (input) => input.f32(),
    (input) => input.f64(),
    (input) => input.u16h(),
    (input) => input.u32h(),
    (input) => input.i32h(),
    (input) => input.u64h(),
    (input) => input.take(2),
    (input) => input.take(-1),
    (input) => input.take(Number.NaN),
    (input) => input.take(0.5),
    (input) => input.skip(2),
    (input) => input.text(2),
  ];
  for (const read of reads) {
    const input = new ByteReader(Uint8Array.of(1, 2), "thing");
    assert.equal(input.u8(), 1);
    assert.throws(
      () => read(input),
      (error) => error instanceof DecodeError && error.format === "thing" && error.offset === 1,
      String(read),
    );
    assert.equal(input.offset, 1);
    assert.equal(input.peek(), 2);
    assert.equal(input.i8(), 2);
    assert.throws(() => input.peek(), DecodeError);
    assert.throws(() => input.u8(), DecodeError);
  }
});

test("a reader of a view stays inside it", () => {
  const whole = Uint8Array.of(9, 1, 2, 9);
  const input = new ByteReader(whole.subarray(1, 3), "view");
  assert.equal(input.u16(), 0x0102);
  assert.throws(() => input.u8(), DecodeError);
});

test("hex and text are inverse to their bytes, a byte order mark included", () => {
  fc.assert(fc.property(fc.uint8Array(), (bytes) => assert.deepEqual(fromHex(toHex(bytes)), bytes)));
  fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => assert.equal(fromUtf8(utf8(text)), text)));
  assert.equal(fromUtf8(utf8("\ufeffname")), "\ufeffname");
  for (const text of ["0", "0g", "0x", " 00", "00 "]) assert.throws(() => fromHex(text), DecodeError, text);
});

test("byte order is a total order, equal only for equal bytes", () => {
  fc.assert(
    fc.property(bytes(), bytes(), bytes(), (a, b, c) => {
      assert.equal(Math.sign(compareBytes(a, b)) + Math.sign(compareBytes(b, a)), 0);
      assert.equal(compareBytes(a, b) === 0, bytesEqual(a, b));
      if (compareBytes(a, b) <= 0 && compareBytes(b, c) <= 0) assert.ok(compareBytes(a, c) <= 0);
      assert.equal(Math.sign(compareBytes(a, b)), Math.sign(Buffer.compare(a, b)));
    }),
  );
});

test("concatenation keeps every part", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array()), (parts) => {
      assert.deepEqual(concatBytes(parts), new Uint8Array(Buffer.concat(parts)));
    }),
  );
});

function unsigned(bits: number): fc.Arbitrary<number> {
  return fc.integer({ min: 0, max: 2 ** bits - 1 });
}

/** Few letters, so that prefixes and equals occur. */
function bytes(): fc.Arbitrary<Uint8Array> {
  return fc.array(fc.constantFrom(0, 1, 255), { maxLength: 4 }).map((items) => Uint8Array.from(items));
}
