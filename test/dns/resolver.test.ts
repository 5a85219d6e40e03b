import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, encode, type DecodedPacket, type RecordType } from "dns-packet";
import { networkId, nodeName } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import {
  decodeQuery,
  resolve,
  responseCode,
  RESPONSE_CODES,
  type Asker,
  type Outcome,
} from "../../src/dns/resolver.ts";
import { Zone, type NamedEndpoint, type NamedService } from "../../src/dns/zone.ts";

const node = nodeName("n1");
const now = instant(1000);

test("a service name answers its virtual IP, tasks.NAME its backends", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5"), backend("web.2", "10.0.1.6")]);
  assert.deepEqual(addresses(ask(zone, "web", "A")), ["10.0.1.2"]);
  assert.deepEqual(addresses(ask(zone, "tasks.web", "A")).sort(), ["10.0.1.5", "10.0.1.6"]);
  assert.deepEqual(addresses(ask(zone, "WEB.blue", "A")), ["10.0.1.2"]);
  assert.deepEqual(addresses(ask(zone, "web.1", "A")), ["10.0.1.5"]);
  assert.deepEqual(addresses(ask(zone, "web.1.blue", "A")), ["10.0.1.5"]);
});

test("a known name without an address of the kind is empty, never NXDOMAIN and never forwarded", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  for (const type of ["AAAA", "MX", "TXT"] as const) {
    const outcome = ask(zone, "web", type);
    assert.equal(codeOf(outcome), RESPONSE_CODES.noError);
    assert.deepEqual(packetOf(outcome).answers, []);
    assert.equal(packetOf(outcome).authorities?.[0]?.type, "SOA");
  }
});

test("an unknown name is forwarded, unless it can only be ours or the network is internal", () => {
  const zone = zoneOf("blue", []);
  assert.equal(ask(zone, "example.com", "A").type, "forward");
  assert.equal(codeOf(ask(zone, "tasks.nothing", "A")), RESPONSE_CODES.nxDomain);
  assert.equal(codeOf(ask(zone, "nothing.blue", "A")), RESPONSE_CODES.nxDomain);
  assert.equal(codeOf(ask(zone, "example.com", "A", { mayForward: false })), RESPONSE_CODES.nxDomain);
});

test("a disabled backend keeps the virtual IP and leaves the tasks", () => {
  const zone = zoneOf("blue", [{ ...backend("web.1", "10.0.1.5"), disabled: true }]);
  assert.deepEqual(addresses(ask(zone, "web", "A")), ["10.0.1.2"]);
  assert.deepEqual(addresses(ask(zone, "tasks.web", "A")), []);
  assert.equal(codeOf(ask(zone, "tasks.web", "A")), RESPONSE_CODES.noError);
});

test("a name that vanished stays known for a while, so that it is not asked upstream", () => {
  const zone = zoneOf("blue", [
    { name: "db", taskAliases: [], ip: parseIp("10.0.1.9"), node, disabled: false },
  ]);
  zone.update({ network: zone.network, networkName: "blue", endpoints: [], services: [] }, now);
  assert.equal(codeOf(ask(zone, "db", "A")), RESPONSE_CODES.noError);
  assert.equal(ask(zone, "db", "A", { at: 70_000 }).type, "forward");
});

test("PTR answers endpoint and virtual IP", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  assert.equal(
    String(packetOf(ask(zone, "5.1.0.10.in-addr.arpa", "PTR")).answers?.map(dataOf)),
    "web.1.blue",
  );
  assert.equal(String(packetOf(ask(zone, "2.1.0.10.in-addr.arpa", "PTR")).answers?.map(dataOf)), "web.blue");
});

test("SRV answers target port and name", () => {
  const zone = zoneOf(
    "blue",
    [backend("web.1", "10.0.1.5")],
    [{ name: "web", vip: parseIp("10.0.1.2"), ports: [{ published: 8000, target: 80, protocol: "tcp" }] }],
  );
  const answer = packetOf(ask(zone, "_8000._tcp.web", "SRV")).answers?.[0];
  assert.deepEqual(answer?.type === "SRV" ? [answer.data.port, answer.data.target] : [], [80, "web.blue"]);
});

test("an answer too large for UDP is cut at whole records with TC set, and whole over TCP", () => {
  const endpoints = Array.from({ length: 200 }, (_, index): NamedEndpoint => ({
    ...backend(`web.${index}`, `10.0.2.${index}`),
    service: { name: "web", aliases: [], vip: undefined },
  }));
  const zone = zoneOf("blue", endpoints);
  const udp = ask(zone, "tasks.web", "A");
  assert.ok(bytesOf(udp).length <= 512);
  assert.equal(packetOf(udp).flag_tc, true);
  assert.ok(addresses(udp).length > 10);
  const tcp = ask(zone, "tasks.web", "A", { transport: "tcp" });
  assert.equal(addresses(tcp).length, 200);
});

test("the first network that knows a name wins; a suffix chooses another", () => {
  const blue = zoneOf("blue", [
    { name: "db", taskAliases: [], ip: parseIp("10.0.1.9"), node, disabled: false },
  ]);
  const green = zoneOf("green", [
    { name: "db", taskAliases: [], ip: parseIp("10.0.2.9"), node, disabled: false },
  ]);
  assert.deepEqual(addresses(askZones([blue, green], "db", "A", {})), ["10.0.1.9"]);
  assert.deepEqual(addresses(askZones([blue, green], "db.green", "A", {})), ["10.0.2.9"]);
});

test("answers are shuffled evenly", () => {
  const zone = zoneOf(
    "blue",
    ["10.0.1.5", "10.0.1.6", "10.0.1.7"].map((ip, index) => ({
      ...backend(`web.${index}`, ip),
      service: { name: "web", aliases: [], vip: undefined },
    })),
  );
  const random = seededRandom(7);
  const first = new Map<string, number>();
  for (let i = 0; i < 3000; i++) {
    const outcome = resolve(
      queryFor("tasks.web", "A"),
      { zones: [zone], transport: "udp", mayForward: true },
      random,
      now,
    );
    const ip = addresses(outcome)[0] ?? "";
    first.set(ip, (first.get(ip) ?? 0) + 1);
  }
  for (const count of first.values())
    assert.ok(count > 900 && count < 1100, `uneven: ${[...first.values()].join(" ")}`);
});

function zoneOf(
  networkName: string,
  endpoints: readonly NamedEndpoint[],
  services: readonly NamedService[] = [],
): Zone {
  const zone = new Zone(networkId(`id-${networkName}`));
  zone.update({ network: zone.network, networkName, endpoints, services }, instant(0));
  return zone;
}

function backend(name: string, ip: string): NamedEndpoint {
  return {
    name,
    taskAliases: [],
    ip: parseIp(ip),
    node,
    disabled: false,
    service: { name: "web", aliases: [], vip: parseIp("10.0.1.2") },
  };
}

interface Options {
  readonly transport?: "udp" | "tcp";
  readonly mayForward?: boolean;
  readonly at?: number;
}

function ask(zone: Zone, name: string, type: RecordType, options: Options = {}): Outcome {
  return askZones([zone], name, type, options);
}

function askZones(zones: readonly Zone[], name: string, type: RecordType, options: Options): Outcome {
  const asker: Asker = {
    zones,
    transport: options.transport ?? "udp",
    mayForward: options.mayForward ?? true,
  };
  return resolve(queryFor(name, type), asker, seededRandom(1), instant(options.at ?? 1000));
}

function queryFor(name: string, type: RecordType): DecodedPacket {
  return decodeQuery(encode({ type: "query", id: 4711, flags: 256, questions: [{ type, name }] }));
}

function bytesOf(outcome: Outcome): Uint8Array {
  assert.equal(outcome.type, "reply");
  return outcome.type === "reply" ? outcome.bytes : new Uint8Array();
}

function packetOf(outcome: Outcome): DecodedPacket {
  return decode(Buffer.from(bytesOf(outcome)));
}

function codeOf(outcome: Outcome): number {
  return responseCode(bytesOf(outcome));
}

function dataOf(answer: object): unknown {
  return "data" in answer ? answer.data : undefined;
}

function addresses(outcome: Outcome): string[] {
  return (packetOf(outcome).answers ?? []).map((answer) => String(dataOf(answer)));
}
