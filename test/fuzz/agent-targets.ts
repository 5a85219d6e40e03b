import { createHash } from "node:crypto";
import { ZodError, type ZodType } from "zod";
import { concatBytes, fromUtf8, utf8 } from "../../src/base/bytes.ts";
import { DecodeError, errorCode } from "../../src/base/error.ts";
import { networkId, nodeId, nodeName, vni } from "../../src/base/id.ts";
import { parseCidr, parseIp } from "../../src/base/ip.ts";
import { parseMac } from "../../src/base/mac.ts";
import { instant } from "../../src/base/time.ts";
import { captureQuestion } from "../../src/agent/capture-sessions.ts";
import { drainQuestion } from "../../src/agent/drainer.ts";
import { Endpoints } from "../../src/agent/endpoints.ts";
import { keyQuestion, parseKeyring } from "../../src/agent/keys.ts";
import { pathQuestion } from "../../src/agent/path-runner.ts";
import { parsePeers } from "../../src/agent/peers-file.ts";
import { portsQuestion } from "../../src/agent/port-check.ts";
import { traceQuestion } from "../../src/agent/trace-question.ts";
import { PeerCalls, type PeerCallEffect } from "../../src/cluster/peer-call.ts";
import { decodeEngineTable, encodeEngineTable } from "../../src/overlay/engine-table.ts";
import { decodeSnapshot, encodeSnapshot, type Snapshot } from "../../src/wire/state/snapshot.ts";
import { fuzzTarget, type FuzzTarget } from "./target.ts";

const DIGEST_BYTES = 32;
const NODE = nodeId("3k1xw5nlo7ycs4bq0yxcz0wlv");
const BLUE = networkId("9jsklm2gq4c5rnctbsrvxfaw9");
const MAC = parseMac("02:42:0a:00:09:06");

const SNAPSHOT: Snapshot = {
  node: NODE,
  clock: 17,
  entries: [
    { kind: "service", id: "gone", lamport: 9, writer: NODE, ageSeconds: 3600, raw: new Uint8Array(0) },
  ],
  externals: [
    {
      id: BLUE,
      name: "blue",
      driver: "overlay",
      scope: "swarm",
      vni: vni(4097),
      subnet: parseCidr("10.0.1.0/24"),
      gateway: parseIp("10.0.1.1"),
      mtu: 1400,
      internal: false,
      encrypted: false,
      ingress: false,
      labels: {},
      created: 12,
      ringSeeds: [NODE],
    },
  ],
  spaces: [
    {
      network: BLUE,
      ring: {
        network: BLUE,
        seeded: 1_700_000_000,
        seeder: NODE,
        entries: [{ start: 0x0a000101, owner: NODE, version: 3, free: 200 }],
      },
      last: 0x0a000107,
      allocations: [{ address: 0x0a000105, holder: { id: "endpoint", name: "web" } }],
    },
  ],
};

const ENDPOINTS = [
  {
    id: "0f".repeat(32),
    kind: "backend-leg",
    parent: "1e".repeat(32),
    name: "web",
    network: BLUE,
    ip: "10.0.1.5",
    prefixLength: 24,
    mac: MAC,
    ifname: "eth0",
    sandbox: { type: "netns", path: "/run/netns/web" },
    aliases: ["www"],
    service: "xq5wcn1vd2nx0kq6a5q9sd0oe",
    healthTcp: 80,
    healthCmd: "true",
  },
];

/** What other netagents ask, and each question's own schema. */
const QUESTIONS: Readonly<Record<string, readonly [ZodType, readonly unknown[]]>> = {
  keys: [keyQuestion, [{ method: "keys", operation: "install", key: "AAECAwQFBgcICQoLDA0ODw==" }]],
  trace: [
    traceQuestion,
    [
      { method: "trace", part: "leave", network: BLUE, endpoint: "e", ip: "10.0.1.5", mac: MAC, vtep: "::1" },
      { method: "trace", part: "arrive", network: BLUE, endpoint: "e", ip: "10.0.1.5", mac: MAC },
    ],
  ],
  path: [pathQuestion, [{ method: "path", vtep: "192.0.2.7", hold: true }]],
  capture: [
    captureQuestion,
    [
      { operation: "start", network: "blue", filter: "tcp port 80", count: 5 },
      { operation: "read", session: 1 },
    ],
  ],
  drain: [
    drainQuestion,
    [{ method: "drain", endpoints: [{ network: BLUE, key: "0f".repeat(32) }], timeoutMs: 500 }],
  ],
  ports: [portsQuestion, [{ method: "ports", ports: [{ protocol: "tcp", port: 80, address: "192.0.2.7" }] }]],
};

/** What other netagents say in calls, and the files an agent finds when it starts. */
export const AGENT_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget({
    name: "peer call",
    corpus: [
      ...peerCalls().ask(nodeName("asked"), 1, { method: "doctor" }, 1_000, instant(0)).flatMap(payload),
      ...peerCalls()
        .answer({ from: nodeName("asker"), id: 1, body: undefined }, { result: [1, "two", null] })
        .flatMap(payload),
    ],
    decode: (input) => {
      const calls = peerCalls();
      calls.ask(nodeName("self"), 7, {}, 1_000, instant(0));
      return calls.receive(input);
    },
  }),
  ...Object.entries(QUESTIONS).map(([method, [schema, bodies]]) =>
    text(
      `question: ${method}`,
      bodies.map((body) => JSON.stringify(body)),
      (json) => schema.parse(JSON.parse(json)),
    ),
  ),
  // The digest is put right, or hardly anything would get past it.
  fuzzTarget({
    name: "state file",
    corpus: [encodeSnapshot(SNAPSHOT).slice(0, -DIGEST_BYTES)],
    decode: (input) => decodeSnapshot(concatBytes([input, createHash("sha256").update(input).digest()])),
    encode: (snapshot) => encodeSnapshot(snapshot).slice(0, -DIGEST_BYTES),
  }),
  fuzzTarget({ name: "state file, torn", corpus: [encodeSnapshot(SNAPSHOT)], decode: decodeSnapshot }),
  fuzzTarget({
    name: "engine's table",
    corpus: [
      encodeEngineTable([
        {
          vni: vni(4097),
          fdb: new Map([[MAC, parseIp("192.0.2.7")]]),
          neighbors: new Map([[parseIp("10.0.1.6"), MAC]]),
        },
      ]),
    ],
    decode: decodeEngineTable,
    encode: encodeEngineTable,
  }),
  text("endpoints file", [JSON.stringify(ENDPOINTS)], (json) => new Endpoints(json, () => undefined).all()),
  text("keyring file", ['["AAECAwQFBgcICQoLDA0ODw=="]'], parseKeyring),
  text("peers file", ['[{"ip":"192.0.2.7","port":7946},{"ip":"2001:db8::7","port":7946}]'], (json) => {
    for (const { port } of parsePeers(json)) {
      if (!Number.isInteger(port) || port < 1 || port > 65_535) throw new Error(`port ${port}`);
    }
  }),
];

function peerCalls(): PeerCalls {
  return new PeerCalls(nodeName("self"));
}

function payload(effect: PeerCallEffect): Uint8Array[] {
  return effect.type === "send" ? [effect.payload] : [];
}

/** JSON text: what does not parse, or is of another shape, is refused in one of the ways its reader knows. */
function text(name: string, corpus: readonly string[], read: (text: string) => unknown): FuzzTarget {
  return fuzzTarget({
    name,
    corpus: corpus.map(utf8),
    decode: (input) => {
      try {
        return read(fromUtf8(input));
      } catch (error) {
        const refused =
          error instanceof ZodError || error instanceof SyntaxError || errorCode(error) === "bad-key";
        throw refused ? new DecodeError(name, 0, "refused") : error;
      }
    },
  });
}
