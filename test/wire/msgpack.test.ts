import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ByteWriter, concatBytes, fromHex, toHex, utf8 } from "../../src/base/bytes.ts";
import { DecodeError } from "../../src/base/error.ts";
import {
  fieldCount,
  fieldTable,
  MsgpackReader,
  ValueScanner,
  writeArrayHeader,
  writeBool,
  writeBytes,
  writeDouble,
  writeMapHeader,
  writeNil,
  writeText,
  writeUnsigned,
} from "../../src/wire/msgpack.ts";

test("unsigned integers survive in the shortest form", () => {
  const edges = [0, 127, 128, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER];
  const lengths = [1, 1, 2, 2, 3, 3, 5, 5, 9, 9];
  edges.forEach((value, i) => assert.equal(written((out) => writeUnsigned(out, value)).length, lengths[i]));
  fc.assert(
    fc.property(fc.oneof(fc.maxSafeNat(), fc.nat(70_000), fc.constantFrom(...edges)), (value) => {
      assert.equal(reader(written((out) => writeUnsigned(out, value))).u53(), value);
    }),
  );
});

test("an integer is read in any width and sign, and refused where the field cannot hold it", () => {
  const cases: [hex: string, read: (input: MsgpackReader) => unknown, value: unknown][] = [
    ["ff", (input) => input.int(), -1],
    ["e0", (input) => input.int(), -32],
    ["d080", (input) => input.int(), -128],
    ["d18000", (input) => input.int(), -32_768],
    ["d280000000", (input) => input.int(), -2_147_483_648],
    ["d3ffffffffffffffff", (input) => input.int(), -1],
    ["d3ffe0000000000001", (input) => input.int(), -Number.MAX_SAFE_INTEGER],
    ["d3ffe0000000000000", (input) => input.int(), DecodeError],
    ["cf001fffffffffffff", (input) => input.int(), Number.MAX_SAFE_INTEGER],
    ["cf0020000000000000", (input) => input.int(), DecodeError],
    ["d17fff", (input) => input.u16(), 32_767],
    ["cdffff", (input) => input.u16(), 65_535],
    ["ce00010000", (input) => input.u16(), DecodeError],
    ["cd0100", (input) => input.u8(), DecodeError],
    ["cf0000000100000000", (input) => input.u32(), DecodeError],
    ["ff", (input) => input.u32(), DecodeError],
    ["c0", (input) => input.u32(), 0],
    ["c3", (input) => input.u32(), DecodeError],
    ["ca3f800000", (input) => input.double(), 1],
    ["cb3ff8000000000000", (input) => input.double(), 1.5],
    ["07", (input) => input.double(), 7],
    ["c0", (input) => input.bool(), false],
    ["01", (input) => input.bool(), true],
    ["02", (input) => input.bool(), DecodeError],
  ];
  for (const [hex, read, value] of cases) {
    const input = reader(fromHex(hex));
    if (value === DecodeError) assert.throws(() => read(input), DecodeError, hex);
    else assert.equal(read(input), value, hex);
  }
});

test("text and bytes survive at every length form", () => {
  for (const length of [0, 1, 31, 32, 255, 256, 65_535, 65_536]) {
    const bytes = new Uint8Array(length).fill(0x61);
    const text = "a".repeat(length);
    assert.deepEqual(reader(written((out) => writeBytes(out, bytes, "raw"))).bytes(), bytes);
    assert.equal(reader(written((out) => writeText(out, text))).text(), text);
  }
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), fc.uint8Array(), (text, bytes) => {
      assert.equal(reader(written((out) => writeText(out, text))).text(), text);
      assert.deepEqual(reader(written((out) => writeBytes(out, bytes))).bytes(), bytes);
    }),
  );
});

test("two texts are never taken for one another, however many were read before", () => {
  const texts = Array.from({ length: 20_000 }, (_, i) => `node-${i.toString(36)}`);
  for (let round = 0; round < 2; round++)
    for (const text of texts) assert.equal(reader(written((out) => writeText(out, text))).text(), text);
});

test("bytes that are not UTF-8 become replacement characters and never throw", () => {
  assert.equal(reader(fromHex("a3ff41c3")).text(), "\ufffdA\ufffd");
});

test("byte fields are copies, views only where asked for", () => {
  const input = fromHex("a20102a20304");
  const values = reader(input);
  const copy = values.bytes();
  const view = values.bytesView();
  input.fill(0);
  assert.equal(toHex(copy), "0102");
  assert.equal(toHex(view), "0000");
});

test("skipping passes over any value exactly, deep nesting included", () => {
  fc.assert(
    fc.property(value(), value(), (first, second) => {
      const bytes = concatBytes([first, second]);
      const input = reader(bytes);
      input.skip();
      assert.equal(input.offset, first.length);
      input.skip();
      assert.equal(input.offset, bytes.length);
    }),
  );
  const deep = concatBytes([new Uint8Array(100_000).fill(0x91), fromHex("c0")]);
  const input = reader(deep);
  input.skip();
  assert.equal(input.offset, deep.length);
});

test("a scanner finds the same end from pieces as from the whole", () => {
  fc.assert(
    fc.property(fc.array(value(), { minLength: 1, maxLength: 4 }), (values) => {
      const bytes = concatBytes(values);
      const scanner = new ValueScanner("test", 0, bytes.length);
      scanner.expect(values.length);
      for (let length = 0; length < bytes.length; length++)
        assert.equal(scanner.advance(bytes, length), false);
      assert.equal(scanner.advance(bytes, bytes.length), true);
      assert.equal(scanner.offset, bytes.length);
    }),
  );
});

test("a count that the input cannot hold is refused before anything is made for it", () => {
  for (const hex of ["ddffffffff00", "dcffff00", "9f00"])
    assert.throws(() => reader(fromHex(hex)).arrayHeader(), DecodeError);
  for (const hex of ["dfffffffff00", "deffff00", "8200"])
    assert.throws(() => reader(fromHex(hex)).mapHeader(), DecodeError);
  assert.throws(() => reader(fromHex("ddffffffff00")).bytes(), DecodeError);
  assert.throws(() => reader(fromHex("dfffffffff00")).skip(), DecodeError);
});

test("a struct is read field by field, by key or by place, and strangers are skipped", () => {
  const table = fieldTable("Alpha", "Beta");
  const byKey = written((out) => {
    writeMapHeader(out, 3);
    writeText(out, "Beta");
    writeUnsigned(out, 2);
    writeText(out, "Gamma");
    writeArrayHeader(out, 2);
    writeNil(out);
    writeDouble(out, 0.5);
    writeText(out, "Alpha");
    writeUnsigned(out, 1);
  });
  assert.deepEqual(readStruct(byKey, table), [1, 2]);
  const byPlace = written((out) => {
    writeArrayHeader(out, 3);
    writeUnsigned(out, 1);
    writeUnsigned(out, 2);
    writeBool(out, true);
  });
  assert.deepEqual(readStruct(byPlace, table), [1, 2]);
  assert.deepEqual(readStruct(fromHex("c0"), table), [0, 0]);
  assert.throws(() => readStruct(fromHex("810101"), table), DecodeError, "a key that is no text");
});

function reader(bytes: Uint8Array): MsgpackReader {
  return new MsgpackReader(bytes, "test");
}

function written(write: (out: ByteWriter) => void): Uint8Array {
  const out = new ByteWriter(1);
  write(out);
  return out.finish();
}

function readStruct(bytes: Uint8Array, table: readonly Uint8Array[]): number[] {
  const input = reader(bytes);
  const values = [0, 0];
  const shape = input.struct();
  for (let i = 0; i < fieldCount(shape); i++) {
    const field = input.field(shape, i, table);
    if (field < 0) input.skip();
    else values[field] = input.u32();
  }
  assert.equal(input.offset, bytes.length);
  return values;
}

/** One msgpack value of any kind, those we never write included. */
function value(): fc.Arbitrary<Uint8Array> {
  const fixed = (head: number, length: number): fc.Arbitrary<Uint8Array> =>
    fc
      .uint8Array({ minLength: length, maxLength: length })
      .map((bytes) => concatBytes([Uint8Array.of(head), bytes]));
  const counted = (head: number, width: number, type: number): fc.Arbitrary<Uint8Array> =>
    fc.uint8Array({ maxLength: 20 }).map((bytes) => {
      const length = new Uint8Array(width);
      length[width - 1] = bytes.length;
      return concatBytes([Uint8Array.of(head), length, new Uint8Array(type), bytes]);
    });
  const leaf = fc.oneof(
    fixed(0x05, 0),
    fixed(0xff, 0),
    fixed(0xc0, 0),
    fixed(0xc3, 0),
    ...[0xcc, 0xd0].map((head) => fixed(head, 1)),
    ...[0xcd, 0xd1].map((head) => fixed(head, 2)),
    ...[0xce, 0xd2, 0xca].map((head) => fixed(head, 4)),
    ...[0xcf, 0xd3, 0xcb].map((head) => fixed(head, 8)),
    ...[1, 2, 4, 8, 16].map((size, i) => fixed(0xd4 + i, 1 + size)),
    ...[1, 2, 4].map((width, i) => counted(0xc4 + i, width, 0)),
    ...[1, 2, 4].map((width, i) => counted(0xc7 + i, width, 1)),
    ...[1, 2, 4].map((width, i) => counted(0xd9 + i, width, 0)),
    fc.string({ maxLength: 31 }).map((text) => written((out) => writeText(out, text))),
    fc.constant(utf8("\u0001")),
  );
  return fc.letrec<{ value: Uint8Array }>((tie) => ({
    value: fc.oneof(
      { maxDepth: 3 },
      leaf,
      fc
        .array(tie("value"), { maxLength: 17 })
        .map((items) => concatBytes([written((out) => writeArrayHeader(out, items.length)), ...items])),
      fc
        .array(fc.tuple(tie("value"), tie("value")), { maxLength: 17 })
        .map((pairs) => concatBytes([written((out) => writeMapHeader(out, pairs.length)), ...pairs.flat()])),
    ),
  })).value;
}
