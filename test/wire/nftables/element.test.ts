import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { fromHex, toHex } from "../../../src/base/bytes.ts";
import { DecodeError } from "../../../src/base/error.ts";
import { decodeMessages, NetlinkBatch } from "../../../src/wire/netlink/message.ts";
import {
  addElements,
  type ElementLayout,
  ElementReader,
  rowWords,
} from "../../../src/wire/nftables/element.ts";

const layouts: readonly ElementLayout[] = [
  { key: ["protocol", "port", "number"], value: ["ipv4", "port"] },
  { key: ["ipv4", "protocol", "port"], value: { verdicts: ["refuse", "pick-32", "pick-32-client"] } },
  { key: ["ether"], value: ["number"] },
  { key: ["ipv6"], value: [] },
  { key: ["port"], value: [] },
  { key: ["ipv4"], value: { verdicts: ["refuse"] } },
];

test("any rows of any layout survive encoding and decoding", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...layouts),
      fc.integer({ min: 0, max: 40 }),
      fc.infiniteStream(word),
      (layout, count, stream) => {
        const rows = rowsOf(layout, count, () => stream.next().value as number);
        assert.deepEqual(readBack(layout, encode(layout, rows)), rows);
      },
    ),
  );
});

test("ranges become starts and ends and come back as ranges", () => {
  const layout: ElementLayout = { key: ["ipv4"], value: [], range: true };
  fc.assert(
    fc.property(fc.uniqueArray(word, { minLength: 2, maxLength: 20 }), (bounds) => {
      const sorted = [...bounds].sort((a, b) => a - b);
      const rows: number[] = [];
      for (let i = 0; i + 1 < sorted.length; i += 2) {
        const [first, last] = [sorted[i] ?? 0, sorted[i + 1] ?? 0];
        // Ranges that touch are one range: the model merges them before.
        if (rows.length > 0 && (rows.at(-1) ?? 0) + 1 >= first) continue;
        rows.push(first, last);
      }
      assert.deepEqual(Array.from(readBack(layout, encode(layout, Uint32Array.from(rows)))), rows);
    }),
  );
});

test("a load of many elements is split into messages that fit their attribute", () => {
  const layout = layouts[0] ?? assert.fail();
  let next = 0;
  const rows = rowsOf(layout, 10_000, () => next++);
  const messages = [...decodeMessages(encode(layout, rows))];
  assert.ok(messages.length > 1);
  for (const { payload } of messages) assert.ok(payload.length < 65_536);
  // Only the last one asks for an answer.
  assert.deepEqual(
    messages.map(({ flags }) => (flags & 4) !== 0),
    messages.map((_, index) => index === messages.length - 1),
  );
  assert.deepEqual(readBack(layout, encode(layout, rows)), rows);
});

/*
 * What nft 1.0.6 sends for `nft --debug=mnl add element inet t SET { … }`, from the list of elements on. Sets:
 * map s { typeof meta l4proto . th dport . numgen inc mod 61 : ip daddr . th dport; }
 * map p { typeof meta l4proto . th dport : verdict; }   map e { type ether_addr : mark; }
 */
const NFT_BYTES: readonly (readonly [string, ElementLayout, readonly number[], string])[] = [
  [
    "tcp . 80 . 5 : 10.0.0.1 . 8080",
    { key: ["protocol", "port", "number"], value: ["ipv4", "port"] },
    [6, 80, 5, 0x0a000001, 8080],
    "28000180 14000180 10000100 06000000 00500000 05000000 10000280 0c000100 0a000001 1f900000",
  ],
  [
    "udp . 53 : goto pick-32",
    { key: ["protocol", "port"], value: { verdicts: ["refuse", "pick-32"] } },
    [17, 53, 1],
    "30000180 10000180 0c000100 11000000 00350000 1c000280 18000280 08000100 fffffffc 0c000200 7069636b 2d333200",
  ],
  [
    "02:42:0a:ff:00:02 : 0x0aff0002",
    { key: ["ether"], value: ["number"] },
    [0x02420aff, 2, 0x0aff0002],
    "20000180 10000180 0a000100 02420aff 00020000 0c000280 08000100 0200ff0a",
  ],
];

for (const [text, layout, row, hex] of NFT_BYTES) {
  test(`${text} is encoded as nft encodes it`, () => {
    const [message] = decodeMessages(encode(layout, Uint32Array.from(row)));
    assert.ok(toHex(message?.payload ?? fromHex("")).endsWith(hex.replaceAll(" ", "")));
  });
}

test("a range is read from what nft sends for 10.9.0.0/16, the end of nothing in front included", () => {
  const hex =
    "01000000 44000380 18000180 08000300 00000001 0c000180 08000100 00000000" +
    "10000280 0c000180 08000100 0a090000 18000380 08000300 00000001 0c000180 08000100 0a0a0000";
  const reader = new ElementReader({ key: ["ipv4"], value: [], range: true });
  reader.push(fromHex(hex.replaceAll(" ", "")));
  assert.deepEqual(Array.from(reader.rows()), [0x0a090000, 0x0a09ffff]);
});

test("arbitrary bytes give rows or a DecodeError", () => {
  fc.assert(
    fc.property(fc.constantFrom(...layouts), fc.uint8Array({ maxLength: 80 }), (layout, noise) => {
      for (const bytes of [noise, mixed(layout, noise)]) {
        try {
          new ElementReader(layout).push(bytes);
        } catch (error) {
          assert.ok(error instanceof DecodeError, String(error));
        }
      }
    }),
  );
});

const word = fc.nat({ max: 0xffffffff });

function encode(layout: ElementLayout, rows: Uint32Array): Uint8Array {
  const batch = new NetlinkBatch();
  addElements(batch, "add", "netagent", "set", layout, rows);
  return batch.finish(1, false);
}

function readBack(layout: ElementLayout, bytes: Uint8Array): Uint32Array {
  const reader = new ElementReader(layout);
  for (const { payload } of decodeMessages(bytes)) reader.push(payload);
  return reader.rows();
}

/** Rows whose words fit their fields. */
function rowsOf(layout: ElementLayout, count: number, next: () => number): Uint32Array {
  const limits: number[] = [];
  const fields = [...layout.key, ...("verdicts" in layout.value ? [] : layout.value)];
  for (const field of fields) {
    if (field === "protocol") limits.push(0x100);
    else if (field === "port") limits.push(0x10000);
    else if (field === "ether") limits.push(0x1_0000_0000, 0x10000);
    else if (field === "ipv6") limits.push(...Array.from({ length: 4 }, () => 0x1_0000_0000));
    else limits.push(0x1_0000_0000);
  }
  if ("verdicts" in layout.value) limits.push(layout.value.verdicts.length);
  const words = rowWords(layout);
  assert.equal(limits.length, words.key + words.value);
  return Uint32Array.from(
    { length: count * limits.length },
    (_, index) => next() % (limits[index % limits.length] ?? 1),
  );
}

/** A valid payload with a few bytes overwritten. */
function mixed(layout: ElementLayout, noise: Uint8Array): Uint8Array {
  let next = 1;
  const [message] = decodeMessages(
    encode(
      layout,
      rowsOf(layout, 3, () => next++),
    ),
  );
  const bytes = (message?.payload ?? fromHex("")).slice();
  for (let i = 0; i + 1 < noise.length; i += 2)
    bytes[((noise[i] ?? 0) * 7) % bytes.length] = noise[i + 1] ?? 0;
  return bytes;
}
