import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { DecodeError } from "../../../src/base/error.ts";
import { networkId, nodeName } from "../../../src/base/id.ts";
import { parseIp } from "../../../src/base/ip.ts";
import { parseMac } from "../../../src/base/mac.ts";
import {
  BulkSyncPayload,
  compoundOverhead,
  COMPOUND_ENVELOPE_BYTES,
} from "../../../src/wire/networkdb/bulk-sync.ts";
import {
  decodeNetworkDbMessage,
  encodeNetworkDbMessage,
  networkDbMessageType,
  type NetworkDbMessage,
} from "../../../src/wire/networkdb/message.ts";
import { MAX_LAMPORT_TIME } from "../../../src/wire/networkdb/protobuf.ts";
import {
  decodeEndpointRecord,
  decodePeerRecord,
  encodeEndpointRecord,
  encodePeerRecord,
  equivalentEndpoints,
  type EndpointRecord,
} from "../../../src/wire/networkdb/records.ts";
import type { TableEvent } from "../../../src/wire/networkdb/table-event.ts";

/** As decoders make them: plain objects. */
function record<T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record<T>(model, { noNullPrototype: true }) as fc.Arbitrary<T>;
}

const node = fc.stringMatching(/^[0-9a-f]{12}$/).map(nodeName);
const network = fc.stringMatching(/^[0-9a-z]{25}$/).map(networkId);
const time = fc.oneof(fc.nat(), fc.integer({ min: 0, max: MAX_LAMPORT_TIME }));
const change = fc.constantFrom("join" as const, "leave" as const);
const rowName = fc
  .string({ minLength: 1, maxLength: 80, unit: "grapheme" })
  .filter((text) => !text.includes("/"));
const tableEvent: fc.Arbitrary<TableEvent> = record({
  type: fc.constant("table-event" as const),
  change: fc.constantFrom("create" as const, "update" as const, "delete" as const),
  time,
  node,
  network,
  table: rowName,
  key: rowName,
  value: fc.uint8Array({ maxLength: 300 }),
  residualReapSeconds: fc.nat(),
});
const message: fc.Arbitrary<NetworkDbMessage> = fc.oneof(
  tableEvent,
  record({ type: fc.constant("node-event" as const), change, time, node }),
  record({ type: fc.constant("network-event" as const), change, time, node, network }),
  record({
    type: fc.constant("push-pull" as const),
    time,
    networks: fc.array(record({ network, time, node, leaving: fc.boolean() })),
    node,
  }),
  record({
    type: fc.constant("bulk-sync" as const),
    time,
    unsolicited: fc.boolean(),
    node,
    networks: fc.array(network),
    payload: fc.uint8Array(),
    page: fc.constantFrom("whole" as const, "last" as const, "more" as const),
    digests: fc.array(
      record({
        network,
        buckets: fc
          .tuple(fc.integer({ min: 0, max: 4 }), fc.nat(255))
          .map(([power, byte]) => new Uint8Array(8 * 2 ** power).fill(byte)),
      }),
      { maxLength: 3 },
    ),
  }),
  record({ type: fc.constant("compound" as const), parts: fc.array(fc.uint8Array()) }),
);

test("decoding gives back what was encoded", () => {
  fc.assert(
    fc.property(message, (value) => {
      const bytes = encodeNetworkDbMessage(value);
      assert.deepEqual(decodeNetworkDbMessage(bytes), value);
      assert.notEqual(networkDbMessageType(bytes), undefined);
    }),
  );
});

test("arbitrary and damaged bytes give a message or a DecodeError", () => {
  const damaged = fc.tuple(message, fc.nat(), fc.nat(255), fc.nat()).map(([value, at, byte, cut]) => {
    const bytes = encodeNetworkDbMessage(value).slice();
    bytes[at % bytes.length] = byte;
    return bytes.subarray(0, cut % 4 === 0 ? cut % (bytes.length + 1) : bytes.length);
  });
  fc.assert(
    fc.property(fc.oneof(damaged, fc.uint8Array({ maxLength: 60 })), (bytes) => {
      for (const decode of [decodeNetworkDbMessage, decodePeerRecord, decodeEndpointRecord]) {
        try {
          decode(bytes);
        } catch (error) {
          assert.ok(error instanceof DecodeError, String(error));
        }
      }
    }),
    { numRuns: 1000 },
  );
});

test("fields of a newer peer are skipped", () => {
  const known = encodeNetworkDbMessage({ type: "node-event", change: "join", time: 3, node: nodeName("a1") });
  // field 31 varint, field 32 bytes, field 33 fixed 32 appended to the envelope
  const newer = Uint8Array.of(...known, 0xf8, 0x01, 0x07, 0x82, 0x02, 0x01, 0xff, 0x8d, 0x02, 1, 2, 3, 4);
  assert.deepEqual(decodeNetworkDbMessage(newer), decodeNetworkDbMessage(known));
});

test("events without owner, network, table or key, with a slash in a key or an impossible time are refused", () => {
  const event: TableEvent = {
    type: "table-event",
    change: "create",
    time: 1,
    node: nodeName("a1"),
    network: networkId("n1"),
    table: "t",
    key: "k",
    value: new Uint8Array(),
    residualReapSeconds: 0,
  };
  const bad: object[] = [
    { node: "" },
    { network: "" },
    { network: "a/b" },
    { table: "" },
    { key: "" },
    { key: "a/b" },
    { key: "x".repeat(256) },
    { time: MAX_LAMPORT_TIME * 2 },
  ];
  decodeNetworkDbMessage(encodeNetworkDbMessage(event));
  for (const fields of bad) {
    const bytes = encodeNetworkDbMessage({ ...event, ...fields });
    assert.throws(() => decodeNetworkDbMessage(bytes), DecodeError, JSON.stringify(fields));
  }
});

test("a compound's overhead is known before it is encoded", () => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 700 }), { minLength: 1, maxLength: 6 }),
      (parts) => {
        const length = encodeNetworkDbMessage({ type: "compound", parts }).length;
        const sum = parts.reduce((total, part) => total + part.length + compoundOverhead(part.length), 0);
        assert.ok(length <= sum + COMPOUND_ENVELOPE_BYTES && length > sum);
      },
    ),
  );
});

test("a bulk sync payload is the compound of its events, and its size is never underestimated", () => {
  fc.assert(
    fc.property(fc.array(tableEvent), (events) => {
      const payload = new BulkSyncPayload();
      for (const event of events) payload.add(event);
      const estimate = payload.estimatedBytes;
      const bytes = payload.finish();
      const parts = events.map((event) => encodeNetworkDbMessage(event));
      assert.deepEqual(bytes, encodeNetworkDbMessage({ type: "compound", parts }));
      const ascii = events.every((event) => /^[ -~]*$/.test(event.key + event.table));
      if (ascii) assert.ok(bytes.length <= estimate + 8, `${bytes.length} > ${estimate}`);
    }),
  );
});

const ip = fc
  .tuple(fc.nat(255), fc.nat(255), fc.nat(255), fc.nat(255))
  .map((octets) => parseIp(octets.join(".")));
const text = fc.string({ maxLength: 40, unit: "grapheme" });
const endpoint: fc.Arbitrary<EndpointRecord> = record({
  name: fc.string({ minLength: 1, maxLength: 40 }),
  serviceName: text,
  serviceId: text,
  virtualIp: fc.option(ip, { nil: undefined }),
  endpointIp: ip,
  ingressPorts: fc.array(
    record({
      name: text,
      protocol: fc.constantFrom("tcp" as const, "udp" as const, "sctp" as const),
      targetPort: fc.nat(65535),
      publishedPort: fc.nat(65535),
    }),
    { maxLength: 3 },
  ),
  aliases: fc.array(text, { maxLength: 3 }),
  taskAliases: fc.array(text, { maxLength: 3 }),
  serviceDisabled: fc.boolean(),
});

test("records come back as they were", () => {
  fc.assert(
    fc.property(endpoint, ip, ip, fc.nat(32), (value, address, vtep, prefixLength) => {
      assert.deepEqual(decodeEndpointRecord(encodeEndpointRecord(value)), value);
      const peer = {
        endpointIp: { ip: address, prefixLength },
        endpointMac: parseMac("02:42:0a:00:01:05"),
        vtep,
      };
      assert.deepEqual(decodePeerRecord(encodePeerRecord(peer)), peer);
    }),
  );
});

test("draining and the order of lists do not make a different endpoint", () => {
  fc.assert(
    fc.property(endpoint, (value) => {
      const other = {
        ...value,
        aliases: [...value.aliases].reverse(),
        serviceDisabled: !value.serviceDisabled,
      };
      assert.ok(equivalentEndpoints(value, other));
      assert.ok(!equivalentEndpoints(value, { ...value, name: `${value.name}x` }));
    }),
  );
});
