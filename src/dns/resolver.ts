import { unreachable } from "../base/assert.ts";
import { tryParseIp, type IpAddr } from "../base/ip.ts";
import { shuffle, type Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import {
  DNS_CLASS,
  DNS_RCODE,
  DNS_TYPE,
  encodeDnsAnswer,
  encodeDnsName,
  MAX_UDP_PAYLOAD,
  soaData,
  srvData,
  type DnsQuery,
  type DnsRcode,
  type DnsRecord,
} from "../wire/dns/message.ts";
import type { NameEntry, ServiceEntry, ServicePort, Zone } from "./zone.ts";

/** How long a client may remember that there is nothing. */
const NEGATIVE_TTL_SECONDS = 5;
/** Without EDNS a UDP answer has at most this (RFC 1035 §4.2.1). */
export const PLAIN_UDP_BYTES = 512;
const MAX_TCP_BYTES = 65_535;

export type Transport = "udp" | "tcp";

export type Outcome =
  | { readonly type: "reply"; readonly bytes: Uint8Array }
  /** Nobody here knows the name: ask upstream, with the query as it came. */
  | { readonly type: "forward" }
  /** Nobody here knows the name yet: the peers have not told their tables. */
  | { readonly type: "hold" };

export interface Asker {
  /** Networks of the asking endpoint, in the order they are searched. */
  readonly zones: readonly Zone[];
  /** Whether names nobody knows may be asked upstream: not on internal networks only (CVE-2024-29018). */
  readonly mayForward: boolean;
  /** Whether the tables may still lack rows, just after a start. */
  readonly learning: boolean;
  /** Whether the name belongs to a service of another network, which the outside is not told either. */
  readonly isElsewhere: (name: string) => boolean;
}

const EMPTY: NameEntry = { a: [], aaaa: [] };

/** Answers from the zones, or hands over (discovery.md §3, §4, §8). */
export function resolve(
  query: DnsQuery,
  asker: Asker,
  transport: Transport,
  random: Random,
  now: Instant,
): Outcome {
  const reply = (
    rcode: DnsRcode,
    answers: readonly DnsRecord[] = [],
    additionals: readonly DnsRecord[] = [],
  ): Outcome => ({
    type: "reply",
    bytes: encode(query, transport, rcode, answers, additionals),
  });
  /** Success with what there is of the type asked for; nothing is told by an SOA, never by "no such name". */
  const known = (records: readonly DnsRecord[], additionals: readonly DnsRecord[] = []): Outcome => {
    const type = query.type;
    const fitting = type === DNS_TYPE.any ? [...records] : records.filter((record) => record.type === type);
    return reply(
      DNS_RCODE.noError,
      fitting.length > 1 ? shuffle(random, fitting) : fitting,
      fitting.length > 0 ? additionals : [],
    );
  };

  if (query.opcode !== 0) return reply(DNS_RCODE.notImp);
  if (query.edns !== undefined && query.edns.version > 0) return reply(DNS_RCODE.badVers);
  if (query.class !== DNS_CLASS.internet && query.class !== DNS_CLASS.any) return reply(DNS_RCODE.refused);

  const { name } = query;
  const entry = find(name, asker.zones, (zone, host) => zone.lookup(host));
  if (entry !== undefined) return known(recordsOf(query.type, entry));

  if (name.endsWith(".arpa")) {
    const ip = reverseAddress(name);
    if (ip !== undefined) {
      const zone = asker.zones.find((one) => one.reverse(ip) !== undefined);
      if (zone !== undefined) {
        const data = encodeDnsName(zone.reverse(ip) ?? "");
        return known([{ type: DNS_TYPE.ptr, ttl: zone.ttls.endpoints, data }]);
      }
      if (asker.zones.some((zone) => zone.covers(ip)))
        return asker.learning ? { type: "hold" } : reply(DNS_RCODE.nxDomain);
    }
  } else if (name.startsWith("_")) {
    const found = serviceRecords(name, asker.zones);
    if (found === "no-such-port") return reply(DNS_RCODE.nxDomain);
    if (found !== undefined) return known(found.answers, found.additionals);
  }

  const fate = fateOf(name, asker, now);
  switch (fate) {
    case "vanished":
      return reply(DNS_RCODE.noError);
    case "learning":
      return { type: "hold" };
    case "ours":
    case "internal":
      return reply(DNS_RCODE.nxDomain);
    case "forward":
      return { type: "forward" };
    default:
      return unreachable(fate);
  }
}

/**
 * Why a name that no network knows is answered as it is: it was known a moment ago; the tables are not here yet; it can
 * only be ours; the asker is on internal networks only; else it is asked outside.
 */
export type Fate = "vanished" | "learning" | "ours" | "internal" | "forward";

export function fateOf(name: string, asker: Asker, now: Instant): Fate {
  for (const { zone, host } of candidates(name, asker.zones))
    if (zone.hasVanished(host, now)) return "vanished";
  if (asker.learning) return "learning";
  if (isOurs(name, asker.zones) || asker.isElsewhere(name)) return "ours";
  return asker.mayForward ? "forward" : "internal";
}

/** A reply without answers: SERVFAIL when upstream fails, REFUSED when too many wait. */
export function failure(query: DnsQuery, transport: Transport, rcode: "servFail" | "refused"): Uint8Array {
  return encodeDnsAnswer(query, { rcode: DNS_RCODE[rcode], answers: [] }, limitOf(query, transport), true);
}

/** What can be said to a message with a header and no readable question; undefined when not even that is there. */
export function malformed(bytes: Uint8Array): Uint8Array | undefined {
  if (bytes.length < 12) return undefined;
  const id = ((bytes[0] ?? 0) << 8) | (bytes[1] ?? 0);
  const opcode = ((bytes[2] ?? 0) >> 3) & 0x0f;
  const question = new Uint8Array(0);
  const rcode = DNS_RCODE.formErr;
  const query = { id, opcode, recursionDesired: ((bytes[2] ?? 0) & 1) !== 0, question, edns: undefined };
  return encodeDnsAnswer(query, { rcode, answers: [] }, PLAIN_UDP_BYTES, true);
}

/** The most bytes this client takes. */
export function limitOf(query: DnsQuery, transport: Transport): number {
  if (transport === "tcp") return MAX_TCP_BYTES;
  return Math.min(MAX_UDP_PAYLOAD, Math.max(PLAIN_UDP_BYTES, query.edns?.payloadBytes ?? 0));
}

function encode(
  query: DnsQuery,
  transport: Transport,
  rcode: DnsRcode,
  answers: readonly DnsRecord[],
  additionals: readonly DnsRecord[],
): Uint8Array {
  const negative = answers.length === 0 && (rcode === DNS_RCODE.noError || rcode === DNS_RCODE.nxDomain);
  const authorities = negative ? [NOTHING] : [];
  // Over TCP there is nothing to ask again: what fits is a random part of a huge set.
  return encodeDnsAnswer(
    query,
    { rcode, answers, authorities, additionals },
    limitOf(query, transport),
    transport === "udp",
  );
}

/** Bounds how long a client remembers that there is nothing (RFC 2308). */
const NOTHING: DnsRecord = {
  type: DNS_TYPE.soa,
  ttl: NEGATIVE_TTL_SECONDS,
  data: soaData(NEGATIVE_TTL_SECONDS),
};

function recordsOf(type: number, entry: NameEntry): readonly DnsRecord[] {
  if (type === DNS_TYPE.a) return entry.a;
  if (type === DNS_TYPE.aaaa) return entry.aaaa;
  return type === DNS_TYPE.any ? [...entry.a, ...entry.aaaa] : [];
}

/**
 * What a name may mean, in the order it is tried: `a.b.c` is itself on every network, then `a.b` on network `c`, then `a`
 * on network `b.c`; the first network that knows it wins and nothing is merged.
 */
export function* candidates(
  name: string,
  zones: readonly Zone[],
): Generator<{ readonly zone: Zone; readonly host: string }> {
  for (const zone of zones) yield { zone, host: name };
  for (let at = name.lastIndexOf("."); at > 0; at = name.lastIndexOf(".", at - 1)) {
    const network = name.slice(at + 1);
    for (const zone of zones) if (zone.suffix === network) yield { zone, host: name.slice(0, at) };
  }
}

function find<T>(
  name: string,
  zones: readonly Zone[],
  lookup: (zone: Zone, host: string) => T | undefined,
): T | undefined {
  for (const { zone, host } of candidates(name, zones)) {
    const found = lookup(zone, host);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Names that must never leak upstream: `tasks.…` and whatever ends in the name of a network of the asker. */
function isOurs(name: string, zones: readonly Zone[]): boolean {
  return name.startsWith("tasks.") || zones.some((zone) => name.endsWith(`.${zone.suffix}`));
}

/**
 * `_PORT._PROTO.SERVICE` leads to the service, `_PORT._PROTO.tasks.SERVICE` to each backend. PORT is a target port,
 * or a published one where no target has that number: inside the overlay only targets can be connected to.
 */
function serviceRecords(
  name: string,
  zones: readonly Zone[],
): { answers: DnsRecord[]; additionals: DnsRecord[] } | "no-such-port" | undefined {
  const match = /^_(\d{1,5})\._(tcp|udp)\.(tasks\.)?(.+)$/.exec(name);
  if (match === null) return undefined;
  const [, label = "", protocol = "", tasks, host = ""] = match;
  const found = find(host, zones, (zone, plain) => {
    const service = zone.service(plain);
    return service === undefined ? undefined : { zone, service };
  });
  if (found === undefined) return undefined;
  const { zone, service } = found;
  const port = portNamed(service.ports, Number(label), protocol);
  if (port === undefined) return "no-such-port";
  const targets = tasks === undefined ? serviceTargets(zone, service) : backendTargets(zone, service);
  const ttl = zone.ttls.endpoints;
  return {
    answers: targets.map(({ target }) => ({
      type: DNS_TYPE.srv,
      ttl,
      data: srvData(port.target, target),
    })),
    additionals: targets.flatMap(({ target, records }) =>
      records.map((record) => ({ ...record, name: target })),
    ),
  };
}

function portNamed(ports: readonly ServicePort[], number: number, protocol: string): ServicePort | undefined {
  const fitting = ports.filter((port) => port.protocol === protocol);
  return fitting.find((port) => port.target === number) ?? fitting.find((port) => port.published === number);
}

interface Target {
  readonly target: string;
  readonly records: readonly DnsRecord[];
}

function serviceTargets(zone: Zone, service: ServiceEntry): Target[] {
  const entry = zone.lookup(service.name.toLowerCase()) ?? EMPTY;
  return [{ target: `${service.name}.${zone.networkName}`, records: [...entry.a, ...entry.aaaa] }];
}

function backendTargets(zone: Zone, service: ServiceEntry): Target[] {
  return service.backends.map(({ name, record }) => ({
    target: `${name}.${zone.networkName}`,
    records: [record],
  }));
}

/** `4.3.2.1.in-addr.arpa` → 1.2.3.4; `….ip6.arpa` likewise. */
function reverseAddress(name: string): IpAddr | undefined {
  const v4 = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.in-addr\.arpa$/.exec(name);
  if (v4 !== null) return tryParseIp(v4.slice(1, 5).reverse().join("."));
  const v6 = /^((?:[0-9a-f]\.){32})ip6\.arpa$/.exec(name);
  if (v6 === null) return undefined;
  const digits = (v6[1] ?? "").split(".").filter(Boolean).reverse().join("");
  return tryParseIp(digits.replace(/(.{4})(?=.)/g, "$1:"));
}
