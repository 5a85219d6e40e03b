import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../src/base/error.ts";
import { vni } from "../../src/base/id.ts";
import { ipFromBytes, parseIp } from "../../src/base/ip.ts";
import { macFromBytes, parseMac } from "../../src/base/mac.ts";
import {
  decodeEngineTable,
  encodeEngineTable,
  type EngineNetwork,
  engineGsoMaxSize,
} from "../../src/overlay/engine-table.ts";

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const ip = fc.oneof(bytes(4), bytes(16)).map(ipFromBytes);
const mac = bytes(6).map(macFromBytes);
const network: fc.Arbitrary<EngineNetwork> = fc.record(
  {
    vni: fc.integer({ min: 0, max: 0xffffff }).map(vni),
    fdb: fc.array(fc.tuple(mac, ip), { minLength: 1, maxLength: 20 }).map((entries) => new Map(entries)),
    neighbors: fc.array(fc.tuple(ip, mac), { maxLength: 20 }).map((entries) => new Map(entries)),
  },
  { noNullPrototype: true },
);
const networks = fc.uniqueArray(network, { maxLength: 5, selector: (value) => value.vni });

test("an engine table comes back as it went in", () => {
  fc.assert(
    fc.property(networks, (value) => {
      assert.deepEqual(decodeEngineTable(encodeEngineTable(value)), value);
    }),
  );
});

test("damaged tables give a DecodeError or another table", () => {
  fc.assert(
    fc.property(networks, fc.nat(), fc.nat(255), (value, at, byte) => {
      const encoded = encodeEngineTable(value);
      encoded[at % encoded.length] = byte;
      try {
        decodeEngineTable(encoded);
      } catch (error) {
        assert.ok(error instanceof DecodeError);
      }
    }),
  );
});

test("one endpoint is the bytes that native/src/engine/table.cc documents", () => {
  const encoded = encodeEngineTable([
    {
      vni: vni(4097),
      fdb: new Map([[parseMac("02:42:0a:00:00:05"), parseIp("192.0.2.7")]]),
      neighbors: new Map([[parseIp("10.0.0.5"), parseMac("02:42:0a:00:00:05")]]),
    },
  ]);
  assert.equal(
    Buffer.from(encoded).toString("hex"),
    [
      "6e616531" + "00000001" + "00000001" + "00000001",
      "00000000000000000000ffffc0000207",
      "00001001" + "02420a000005" + "0000" + "00000000",
      "00001001" + "02420a000005" + "0000" + "00000000000000000000ffff0a000005",
    ].join(""),
  );
});

test("a superframe of the advised size fits one run of datagrams", () => {
  for (const mtu of [1280, 1376, 1424, 1430, 1450, 8950]) {
    const size = engineGsoMaxSize(mtu);
    const segments = Math.ceil(size / (mtu - 72));
    assert.ok(segments <= 64 && segments * (mtu + 22) <= 65_000, `MTU ${mtu}`);
    assert.ok(size > 32_768, `MTU ${mtu} leaves superframes of ${size} bytes only`);
  }
});
