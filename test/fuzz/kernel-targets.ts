import { ByteWriter, concatBytes, fromHex } from "../../src/base/bytes.ts";
import { DecodeError } from "../../src/base/error.ts";
import { parseIp } from "../../src/base/ip.ts";
import { decodeAddress } from "../../src/wire/netlink/address.ts";
import { decodeActiveFeatures, decodeFamilyId } from "../../src/wire/netlink/ethtool.ts";
import { decodeLink } from "../../src/wire/netlink/link.ts";
import { decodeAck, decodeMessages, NetlinkBatch, NLM_F, NLMSG } from "../../src/wire/netlink/message.ts";
import { decodeNamespaceId } from "../../src/wire/netlink/namespace-id.ts";
import {
  decodeFdbEntry,
  decodeNeighbor,
  encodeFdbEntry,
  encodeNeighbor,
} from "../../src/wire/netlink/neighbor.ts";
import { decodeRoute } from "../../src/wire/netlink/route.ts";
import { decodeRule, encodeRule } from "../../src/wire/netlink/rule.ts";
import { decodeConntrack } from "../../src/wire/nftables/conntrack.ts";
import { decodeCountedElements } from "../../src/wire/nftables/counted-element.ts";
import { ElementReader, type ElementLayout } from "../../src/wire/nftables/element.ts";
import {
  concernsTable,
  decodeChain,
  decodeCounter,
  decodeGeneration,
  decodeRule as decodeNftRule,
  decodeSetName,
  decodeTable,
} from "../../src/wire/nftables/message.ts";
import { decodePathProbe, encodePathProbe } from "../../src/wire/path-probe.ts";
import { loadVectors } from "../vectors/load.ts";
import { fuzzTarget, type FuzzTarget } from "./target.ts";

/** As in the recorded namespace. */
const TABLE = "netagent";

const recorded = loadVectors<{ kind: string; type: number; hex: string }>("netlink.jsonl");

/** The layouts of the recorded table's sets, by name. */
const LAYOUTS: Readonly<Record<string, ElementLayout>> = {
  services: { key: ["protocol", "port"], value: { verdicts: ["s1", "s2"] } },
  backends: { key: ["number"], value: ["ipv4"] },
  members: { key: ["ipv4"], value: [] },
  ranges: { key: ["ipv4"], value: [], range: true },
};

const VTEPS = [parseIp("192.0.2.7"), parseIp("2001:db8::7")];

/** What the kernel says, and what arrives on the device for probes. */
export const KERNEL_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget({
    name: "netlink messages",
    corpus: [framed(), acknowledgement("cannot do that"), acknowledgement(undefined)],
    decode: (input) =>
      [...decodeMessages(input)].map((message) =>
        message.type === NLMSG.error || message.type === NLMSG.done ? decodeAck(message) : message.type,
      ),
  }),
  fuzzTarget({ name: "netlink link", corpus: payloads("link"), decode: decodeLink }),
  fuzzTarget({
    name: "generic netlink",
    // The number of a family; one feature by its name in the list of those that are on.
    corpus: [
      fromHex("01020000" + "0600010015000000"),
      fromHex("0b010000" + "18000480" + "14000380" + "10000180" + "0c00020072782d676f6f6400"),
    ],
    decode: (input) => (input[0] === 1 ? decodeFamilyId(input) : decodeActiveFeatures(input)),
  }),
  fuzzTarget({ name: "netlink address", corpus: payloads("address"), decode: decodeAddress }),
  fuzzTarget({ name: "netlink route", corpus: payloads("route"), decode: decodeRoute }),
  fuzzTarget({
    name: "netlink rule",
    corpus: payloads("rule"),
    decode: (input) => decodeRule(input) ?? refuse("netlink rule"),
    encode: (rule) => written((out) => encodeRule(rule, out)),
  }),
  fuzzTarget({
    name: "netlink neighbor",
    corpus: payloads("neighbor"),
    decode: decodeNeighbor,
    encode: (neighbor) => written((out) => encodeNeighbor(neighbor, out)),
  }),
  fuzzTarget({
    name: "netlink FDB entry",
    corpus: payloads("fdb"),
    decode: decodeFdbEntry,
    encode: (entry) => written((out) => encodeFdbEntry(entry, out)),
  }),
  fuzzTarget({ name: "netlink namespace id", corpus: payloads("namespace-id"), decode: decodeNamespaceId }),
  fuzzTarget({ name: "nft table", corpus: payloads("nft-table"), decode: decodeTable }),
  fuzzTarget({
    name: "nft chain",
    corpus: payloads("nft-chain"),
    decode: (input) => decodeChain(input, TABLE),
  }),
  fuzzTarget({
    name: "nft rule",
    corpus: payloads("nft-rule"),
    decode: (input) => decodeNftRule(input, TABLE),
  }),
  fuzzTarget({
    name: "nft set",
    corpus: payloads("nft-set"),
    decode: (input) => decodeSetName(input, TABLE),
  }),
  fuzzTarget({
    name: "nft notification",
    corpus: [...payloads("nft-set"), ...payloads("nft-rule"), ...payloads("nft-generation")],
    decode: (input) => concernsTable(0, input, TABLE),
  }),
  fuzzTarget({ name: "nft counter", corpus: payloads("nft-counter"), decode: decodeCounter }),
  fuzzTarget({ name: "nft generation", corpus: payloads("nft-generation"), decode: decodeGeneration }),
  ...Object.entries(LAYOUTS).map(([set, layout]) =>
    fuzzTarget({
      name: `nft elements, ${set}`,
      corpus: payloads(`nft-elements ${set}`),
      decode: (input) => {
        const reader = new ElementReader(layout);
        reader.push(input);
        return reader.rows();
      },
    }),
  ),
  fuzzTarget({
    name: "nft elements that count",
    corpus: payloads("nft-elements others"),
    decode: decodeCountedElements,
  }),
  fuzzTarget({ name: "conntrack entry", corpus: payloads("conntrack"), decode: decodeConntrack }),
  ...VTEPS.map((vtep) =>
    fuzzTarget({
      name: `path probe over ${vtep.includes(":") ? "IPv6" : "IPv4"}`,
      corpus: [
        encodePathProbe({ kind: "probe", nonce: 0x0123_4567_89ab_cdefn, size: 128 }, vtep),
        encodePathProbe({ kind: "answer", nonce: 7n, size: 1450 }, vtep),
      ],
      decode: (input) => decodePathProbe(input, vtep),
      encode: (probe) => encodePathProbe(probe, vtep),
    }),
  ),
];

function payloads(kind: string): Uint8Array[] {
  const found = recorded.filter((vector) => vector.kind === kind).map(({ hex }) => fromHex(hex));
  if (found.length === 0) throw new Error(`netlink.jsonl has no '${kind}'`);
  return found;
}

/** All that was recorded, as one datagram of a dump. */
function framed(): Uint8Array {
  const batch = new NetlinkBatch();
  for (const { type, hex } of recorded.slice(0, 8))
    batch.add(type, NLM_F.multi, (out) => out.write(fromHex(hex)));
  return batch.finish(1, false);
}

/** `struct nlmsgerr` with the request's header, and the kernel's words. */
function acknowledgement(text: string | undefined): Uint8Array {
  const batch = new NetlinkBatch();
  const flags = text === undefined ? NLM_F.capped : NLM_F.capped | NLM_F.ackAttributes;
  batch.add(NLMSG.error, flags, (out) => {
    out.i32h(-17).u32h(16).zeros(12);
    const words = text === undefined ? undefined : concatBytes([Buffer.from(text), Uint8Array.of(0)]);
    if (words !== undefined)
      out
        .u16h(4 + words.length)
        .u16h(1)
        .write(words)
        .align(4);
  });
  return batch.finish(1, false);
}

/** What a decoder leaves to others. */
function refuse(format: string): never {
  throw new DecodeError(format, 0, "not ours");
}

function written(write: (out: ByteWriter) => void): Uint8Array {
  const out = new ByteWriter();
  write(out);
  return out.finish();
}
