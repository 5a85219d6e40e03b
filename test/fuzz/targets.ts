import { ByteReader, ByteWriter, concatBytes, fromHex } from "../../src/base/bytes.ts";
import { DecodeError } from "../../src/base/error.ts";
import { networkId, nodeId, serviceId, vni } from "../../src/base/id.ts";
import { parseCidr, parseIp } from "../../src/base/ip.ts";
import { decodeMetadata, encodeMetadata } from "../../src/cluster/metadata.ts";
import { decodeArp, encodeArp } from "../../src/wire/arp.ts";
import { decodeEthernetHeader, encodeEthernetHeader } from "../../src/wire/ethernet.ts";
import { decodeIpv4Header, encodeIpv4Header } from "../../src/wire/ipv4.ts";
import { lzwCompress, lzwDecompress } from "../../src/wire/lzw.ts";
import { addressesOf, decodeDnsQuery, DNS_TYPE, dnsTimes } from "../../src/wire/dns/message.ts";
import { decodeMessage, encodeMessage } from "../../src/wire/memberlist/message.ts";
import { decodePacket } from "../../src/wire/memberlist/packet.ts";
import { UNSEALED, type Sealing } from "../../src/wire/memberlist/seal.ts";
import { decodeSerfMessage, encodeSerfMessage } from "../../src/wire/memberlist/serf.ts";
import { decodeSerfCoordinate, encodeSerfCoordinate } from "../../src/wire/memberlist/serf-coordinate.ts";
import { decodeSerfTags, encodeSerfTags } from "../../src/wire/memberlist/serf-tags.ts";
import { decodeSerfUserState, encodeSerfUserState } from "../../src/wire/memberlist/serf-user-state.ts";
import {
  encodeStreamMessage,
  STREAM_LIMITS,
  type StreamDirection,
  type StreamMessage,
} from "../../src/wire/memberlist/stream-message.ts";
import { StreamDecoder } from "../../src/wire/memberlist/stream.ts";
import { decodeNetworkDbMessage, encodeNetworkDbMessage } from "../../src/wire/networkdb/message.ts";
import {
  decodeEndpointRecord,
  decodePeerRecord,
  encodeEndpointRecord,
  encodePeerRecord,
} from "../../src/wire/networkdb/records.ts";
import { encodeDefinition, type Definition } from "../../src/wire/state/definition.ts";
import type { Entry } from "../../src/wire/state/entry.ts";
import { decodeStateMessage, encodeStateMessage, type StateMessage } from "../../src/wire/state/message.ts";
import type { Ring } from "../../src/wire/state/ring.ts";
import { decodeUdp, encodeUdp } from "../../src/wire/udp.ts";
import { decodeVxlanHeader, encodeVxlanHeader } from "../../src/wire/vxlan.ts";
import { loadVectors } from "../vectors/load.ts";
import { AGENT_TARGETS } from "./agent-targets.ts";
import { KERNEL_TARGETS } from "./kernel-targets.ts";
import { fuzzTarget, type FuzzTarget } from "./target.ts";

/** Large vectors slow the fuzzer down and show nothing that small ones do not. */
const MAX_CORPUS_BYTES = 2000;

const memberlist = loadVectors<{ carrier: string; hex: string; key?: string; label?: string }>(
  "memberlist.jsonl",
);

const INGRESS_ID = networkId("ingress000000000000000000");
const STATE_NODE = nodeId("3k1xw5nlo7ycs4bq0yxcz0wlv");
const STATE_RING: Ring = {
  network: INGRESS_ID,
  seeded: 1_700_000_000,
  seeder: STATE_NODE,
  entries: [
    { start: 0x0aff0001, owner: STATE_NODE, version: 3, free: 32000 },
    { start: 0x0aff8000, owner: nodeId("other"), version: 1, free: 32767 },
  ],
};
/** NetworkDB's user messages in the packets recorded, and the rows they carry. */
const NETWORKDB_MESSAGES = ["networkdb.jsonl", "docker-swarm-encrypted.jsonl"].flatMap(userMessages);
const NETWORKDB_VALUES = NETWORKDB_MESSAGES.map(decodeNetworkDbMessage).flatMap((message) =>
  message.type === "table-event" ? [message.value] : [],
);
/** One of each kind of `wire/state`. */
const STATE_MESSAGES: readonly StateMessage[] = [
  {
    type: "page",
    sender: STATE_NODE,
    buckets: 0xff00ff00ff00ff00n,
    after: "network/a",
    until: "service/z",
    entries: stateEntries(),
    rings: [STATE_RING],
  },
  { type: "update", entries: stateEntries(), rings: [STATE_RING] },
  { type: "digest", sender: STATE_NODE, buckets: Array.from({ length: 64 }, (_, index) => index * 77_777) },
  { type: "ask", sender: STATE_NODE, ask: 7, network: INGRESS_ID, address: parseIp("10.255.0.9") },
  { type: "grant", sender: STATE_NODE, ask: 7, ring: STATE_RING },
  {
    type: "refusal",
    sender: STATE_NODE,
    ask: 7,
    network: INGRESS_ID,
    reason: "taken",
    detail: "endpoint web",
    ring: STATE_RING,
  },
  { type: "ring-query", sender: STATE_NODE, network: INGRESS_ID, removed: [nodeId("gone")] },
  { type: "ring-answer", sender: STATE_NODE, network: INGRESS_ID, vips: [0x0aff0002], ring: STATE_RING },
];

/** Every decoder of bytes from outside. A new decoder in `src/wire` gets an entry here or in one of the two lists it includes. */
export const FUZZ_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget({
    name: "memberlist message",
    corpus: corpusOf((vector) => vector.carrier === "packet" && /^(0[0-58b]|0d)/.test(vector.hex)),
    decode: decodeMessage,
    encode: encodeMessage,
  }),
  fuzzTarget({
    name: "memberlist packet",
    corpus: corpusOf((vector) => vector.carrier === "packet"),
    decode: (input) => decodePacket(input, UNSEALED),
  }),
  fuzzTarget({
    name: "memberlist packet, sealed and labelled",
    corpus: corpusOf((vector) => vector.carrier === "packet" && vector.key !== undefined),
    decode: (input) => decodePacket(input, SEALED),
  }),
  ...(["request", "reply"] as const).map((direction) =>
    fuzzTarget({
      name: `memberlist stream, ${direction}`,
      corpus: corpusOf((vector) => vector.carrier === "stream"),
      decode: (input) => decodeStream(input, direction),
      encode: encodeStreamMessage,
    }),
  ),
  fuzzTarget({
    name: "serf tags",
    corpus: corpusOf((vector) => vector.carrier === "serf-meta"),
    decode: decodeSerfTags,
    encode: encodeSerfTags,
  }),
  fuzzTarget({
    name: "serf message",
    corpus: corpusOf((vector) => vector.carrier === "serf-user"),
    decode: decodeSerfMessage,
    encode: encodeSerfMessage,
  }),
  fuzzTarget({
    name: "serf user state",
    corpus: corpusOf((vector) => vector.carrier === "serf-userstate"),
    decode: decodeSerfUserState,
    encode: encodeSerfUserState,
  }),
  fuzzTarget({
    name: "serf coordinate",
    corpus: corpusOf((vector) => vector.carrier === "serf-ack"),
    decode: decodeSerfCoordinate,
    encode: encodeSerfCoordinate,
  }),
  fuzzTarget({
    name: "LZW",
    corpus: corpusOf((vector) => vector.carrier === "packet").map(lzwCompress),
    decode: (input) => lzwDecompress(input, 100_000),
    encode: lzwCompress,
  }),
  fuzzTarget({
    name: "NetworkDB message",
    corpus: NETWORKDB_MESSAGES,
    decode: decodeNetworkDbMessage,
    encode: encodeNetworkDbMessage,
  }),
  fuzzTarget({
    name: "peer record",
    corpus: NETWORKDB_VALUES,
    decode: decodePeerRecord,
    encode: encodePeerRecord,
  }),
  fuzzTarget({
    name: "endpoint record",
    corpus: NETWORKDB_VALUES,
    decode: decodeEndpointRecord,
    encode: encodeEndpointRecord,
  }),
  // Metadata of strangers: anything but ours is simply not ours.
  fuzzTarget({
    name: "node metadata",
    corpus: [
      encodeMetadata({
        id: STATE_NODE,
        name: "node1",
        vteps: [parseIp("192.0.2.7"), parseIp("2001:db8::7")],
        capabilities: ["state", "return-path"],
        version: "0.1.0",
      }),
    ],
    decode: decodeMetadata,
  }),
  fuzzTarget({
    name: "state message",
    corpus: STATE_MESSAGES.map(encodeStateMessage),
    decode: decodeStateMessage,
    encode: encodeStateMessage,
  }),
  frame(
    "Ethernet header",
    "02420a00090602420a0009058100012c0800",
    decodeEthernetHeader,
    encodeEthernetHeader,
  ),
  frame("ARP", "000108000604000102420a0009050a0009050000000000000a000906", decodeArp, encodeArp),
  frame("IPv4 header", "45000073000040004011b861c0a80001c0a800c7", decodeIpv4Header, encodeIpv4Header),
  frame("UDP", "c35012b5000c000001020304", decodeUdp, (datagram, out) => encodeUdp(datagram, undefined, out)),
  // A query of dig for web.blue with EDNS and a cookie, and an answer with its SOA.
  fuzzTarget({
    name: "DNS query",
    corpus: [
      fromHex(
        "1267012000010000000000010377656204626c75650000010001000029100000000000000c000a0008000102030405060708",
      ),
    ],
    decode: decodeDnsQuery,
  }),
  fuzzTarget({
    name: "DNS answer",
    corpus: [
      fromHex(
        "1267818000010001000100000377656204626c75650000010001c00c00010001000000050004" +
          "0a000105c00c00060001000000050018026e73c00c00000000010000003c0000003c0000003c00000005",
      ),
    ],
    decode: (bytes) => ({ times: dnsTimes(bytes), addresses: addressesOf(bytes, 0x1267, DNS_TYPE.a) }),
  }),
  frame("VXLAN header", "0800000000100100", decodeVxlanHeader, encodeVxlanHeader),
  ...KERNEL_TARGETS,
  ...AGENT_TARGETS,
];

/** The key of most encrypted vectors. */
const SEALED: Sealing = { ...UNSEALED, keys: [fromHex("000102030405060708090a0b0c0d0e0f")] };

function stateEntries(): Entry[] {
  const definitions: Definition[] = [
    {
      kind: "network",
      value: {
        id: networkId("9jsklm2gq4c5rnctbsrvxfaw9"),
        name: "blue",
        driver: "overlay",
        scope: "swarm",
        vni: vni(4097),
        subnet: parseCidr("10.0.1.0/24"),
        gateway: parseIp("10.0.1.1"),
        mtu: 1400,
        internal: true,
        encrypted: false,
        ingress: false,
        labels: { tier: "back" },
        created: 12,
        ringSeeds: [STATE_NODE],
      },
    },
    {
      kind: "service",
      value: {
        id: serviceId("xq5wcn1vd2nx0kq6a5q9sd0oe"),
        name: "web1",
        networks: [{ network: INGRESS_ID, vip: parseIp("10.255.0.5") }],
        ports: [{ published: 8000, target: 80, protocol: "tcp", address: parseIp("::1"), mode: "ingress" }],
        endpointMode: "vip",
        affinity: "client-ip",
        labels: {},
        created: 13,
        health: { probe: { type: "tcp", port: 80 }, intervalMs: 5000, timeoutMs: 1000, retries: 3 },
        drainTimeoutMs: 30_000,
      },
    },
    { kind: "node", value: { id: STATE_NODE, name: "node1", availability: "drain", removed: false } },
  ];
  const live = definitions.map((definition): Entry => {
    const { kind, value } = definition;
    const raw = encodeDefinition(definition);
    return { kind, id: value.id, lamport: 300, writer: STATE_NODE, raw, definition, ageSeconds: 0 };
  });
  const dead = { kind: "service" as const, id: "gone", lamport: 9, writer: STATE_NODE, ageSeconds: 3600 };
  return [...live, { ...dead, raw: new Uint8Array(0) }];
}

function corpusOf(wanted: (vector: (typeof memberlist)[number]) => boolean): Uint8Array[] {
  return memberlist
    .filter((vector) => vector.hex.length <= 2 * MAX_CORPUS_BYTES && wanted(vector))
    .map((vector) => fromHex(vector.hex));
}

function userMessages(file: string): Uint8Array[] {
  return loadVectors<{ transport: string; hex: string; keys?: string[] }>(file)
    .filter(({ transport, hex }) => transport === "udp" && hex.length <= 2 * MAX_CORPUS_BYTES)
    .flatMap(({ hex, keys = [] }) => {
      return decodePacket(fromHex(hex), { ...UNSEALED, keys: keys.map(fromHex) }).messages;
    })
    .flatMap((message) => (message.type === "user" ? [message.payload] : []));
}

/** In one piece and in two; the outcomes must not differ. */
function decodeStream(input: Uint8Array, direction: StreamDirection): StreamMessage {
  const whole = streamOutcome([input], direction);
  const middle = input.length >> 1;
  const halves = streamOutcome([input.slice(0, middle), input.slice(middle)], direction);
  if (JSON.stringify(whole) !== JSON.stringify(halves))
    throw new Error("two pieces give another outcome than one");
  if (typeof whole === "string") throw new DecodeError("stream", 0, whole);
  return whole;
}

function streamOutcome(pieces: readonly Uint8Array[], direction: StreamDirection): StreamMessage | string {
  const decoder = new StreamDecoder(UNSEALED, STREAM_LIMITS, direction);
  try {
    for (const piece of pieces) {
      const message = decoder.push(piece);
      if (message !== undefined) return message;
    }
    return "incomplete";
  } catch (error) {
    if (error instanceof DecodeError) return error.message;
    throw error;
  }
}

function frame<T>(
  name: string,
  hex: string,
  decode: (input: ByteReader) => T,
  encode: (value: T, out: ByteWriter) => void,
): FuzzTarget {
  const good = fromHex(hex);
  return fuzzTarget({
    name,
    corpus: [good, concatBytes([good, good])],
    decode: (input) => decode(new ByteReader(input, name)),
    encode: (value) => {
      const out = new ByteWriter();
      encode(value, out);
      return out.finish();
    },
  });
}
