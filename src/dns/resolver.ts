import { decode, encode, RECURSION_AVAILABLE, RECURSION_DESIRED, TRUNCATED_RESPONSE } from "dns-packet";
import type { Answer, DecodedPacket, Packet, Question } from "dns-packet";
import { DecodeError, errorText } from "../base/error.ts";
import { isIpv4, tryParseIp, type IpAddr } from "../base/ip.ts";
import { shuffle, type Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import type { NameEntry, Zone } from "./zone.ts";

/** Seconds a client may keep an answer: backends come and go, virtual IPs hardly ever. Docker's 600 keeps dead addresses for 10 minutes. */
const TTL_SECONDS = { vip: 30, endpoints: 5 } as const;
const NEGATIVE_TTL_SECONDS = 5;
/** Without EDNS a UDP answer has at most this (RFC 1035 §4.2.1). */
const PLAIN_UDP_BYTES = 512;
/** More than a datagram of an overlay carries would be fragmented. */
const MAX_UDP_BYTES = 4096;
const MAX_TCP_BYTES = 65_535;
/** Of the flags word; 0 is a standard query. */
const OPCODE_BITS = 0x7800;
const RCODE = { noError: 0, formErr: 1, servFail: 2, nxDomain: 3, notImp: 4, refused: 5 } as const;

export type Outcome =
  | { readonly type: "reply"; readonly bytes: Uint8Array }
  /** Nobody here knows the name: ask upstream, with the query as it came. */
  | { readonly type: "forward" };

export interface Asker {
  /** Networks of the asking endpoint, in the order they are searched. */
  readonly zones: readonly Zone[];
  readonly transport: "udp" | "tcp";
  /** Whether names nobody knows may be asked upstream: not on internal networks only (CVE-2024-29018). */
  readonly mayForward: boolean;
}

/** Decodes a query. @throws DecodeError when it is no DNS message. */
export function decodeQuery(bytes: Uint8Array): DecodedPacket {
  try {
    return decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  } catch (error) {
    throw new DecodeError("DNS", 0, errorText(error));
  }
}

/** Answers from the zones, or hands over (discovery.md §3, §4, §8). Only the first question is looked at, as by every server. */
export function resolve(query: DecodedPacket, asker: Asker, random: Random, now: Instant): Outcome {
  const question = query.questions?.[0];
  if (query.type !== "query" || question === undefined) return reply(query, asker, RCODE.formErr, []);
  if (((query.flags ?? 0) & OPCODE_BITS) !== 0) return reply(query, asker, RCODE.notImp, []);
  const name = question.name.replace(/\.$/, "").toLowerCase();

  if (String(question.type) === "PTR") {
    const target = reverseLookup(name, asker.zones);
    if (target !== undefined) {
      return reply(query, asker, RCODE.noError, [
        { type: "PTR", name: question.name, ttl: TTL_SECONDS.endpoints, data: target },
      ]);
    }
    return unknownName(query, asker);
  }
  if (String(question.type) === "SRV") {
    const service = serviceRecords(question, name, asker.zones);
    if (service !== undefined)
      return reply(query, asker, RCODE.noError, service.answers, service.additionals);
  }
  const entry = find(name, asker.zones, now);
  if (entry === undefined) {
    if (isOurs(name, asker.zones)) return negative(query, asker, RCODE.nxDomain);
    return unknownName(query, asker);
  }
  const answers = shuffle(random, answersFor(question, entry));
  return answers.length > 0
    ? reply(query, asker, RCODE.noError, answers)
    : negative(query, asker, RCODE.noError);
}

/** A reply without answers: SERVFAIL when upstream fails, REFUSED when too many wait. */
export function failure(
  query: DecodedPacket,
  transport: "udp" | "tcp",
  rcode: "servFail" | "refused",
): Uint8Array {
  return build(query, { transport }, RCODE[rcode], [], [], []);
}

function unknownName(query: DecodedPacket, asker: Asker): Outcome {
  return asker.mayForward ? { type: "forward" } : negative(query, asker, RCODE.nxDomain);
}

/** `a.b.c` is tried as itself on every network, then as `a.b` on network `c`, then as `a` on network `b.c`. */
function find(name: string, zones: readonly Zone[], now: Instant): NameEntry | undefined {
  let at = name.length;
  while (at > 0) {
    const host = name.slice(0, at);
    const network = name.slice(at + 1);
    for (const zone of zones) {
      if (network !== "" && zone.networkName.toLowerCase() !== network) continue;
      const entry = zone.lookup(host, now);
      if (entry !== undefined) return entry;
    }
    at = name.lastIndexOf(".", at - 1);
  }
  return undefined;
}

/** Names that must never leak upstream: `tasks.…` and whatever ends in the name of a network of the asker. */
function isOurs(name: string, zones: readonly Zone[]): boolean {
  return (
    name.startsWith("tasks.") || zones.some((zone) => name.endsWith(`.${zone.networkName.toLowerCase()}`))
  );
}

function answersFor(question: Question, entry: NameEntry): Answer[] {
  const type = String(question.type);
  const answers: Answer[] = [];
  for (const ip of entry.addresses) {
    const v4 = isIpv4(ip);
    if (type !== "ANY" && type !== (v4 ? "A" : "AAAA")) continue;
    answers.push({ type: v4 ? "A" : "AAAA", name: question.name, ttl: TTL_SECONDS[entry.kind], data: ip });
  }
  return answers;
}

/** `_PORT._PROTO.[tasks.]SERVICE` for published and target ports. */
function serviceRecords(
  question: Question,
  name: string,
  zones: readonly Zone[],
): { readonly answers: Answer[]; readonly additionals: Answer[] } | undefined {
  const match = /^_([^.]+)\._(tcp|udp)\.(.+)$/.exec(name);
  if (match === null) return undefined;
  const [, label = "", protocol = "", host = ""] = match;
  for (const zone of zones) {
    const suffix = `.${zone.networkName.toLowerCase()}`;
    const plain = host.endsWith(suffix) ? host.slice(0, -suffix.length) : host;
    const service = zone.service(plain.replace(/^tasks\./, ""));
    const port = service?.ports.find(
      (one) => one.protocol === protocol && (String(one.target) === label || String(one.published) === label),
    );
    if (service === undefined || port === undefined) continue;
    const ttl = TTL_SECONDS.endpoints;
    const target = `${plain}.${zone.networkName}`;
    const answers: Answer[] = [
      { type: "SRV", name: question.name, ttl, data: { port: port.target, target, priority: 0, weight: 0 } },
    ];
    const addresses = zone.lookup(plain, 0 as Instant)?.addresses ?? [];
    const additionals = addresses
      .filter(isIpv4)
      .map((ip): Answer => ({ type: "A", name: target, ttl, data: ip }));
    return { answers, additionals };
  }
  return undefined;
}

function reverseLookup(name: string, zones: readonly Zone[]): string | undefined {
  const ip = reverseAddress(name);
  if (ip === undefined) return undefined;
  for (const zone of zones) {
    const found = zone.reverse(ip);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** `4.3.2.1.in-addr.arpa` → 1.2.3.4; `….ip6.arpa` likewise. */
function reverseAddress(name: string): IpAddr | undefined {
  const v4 = /^(\d+)\.(\d+)\.(\d+)\.(\d+)\.in-addr\.arpa$/.exec(name);
  if (v4 !== null) return tryParseIp(v4.slice(1, 5).reverse().join("."));
  const v6 = /^((?:[0-9a-f]\.){32})ip6\.arpa$/.exec(name);
  if (v6 === null) return undefined;
  const digits = (v6[1] ?? "").split(".").filter(Boolean).reverse().join("");
  return tryParseIp(digits.replace(/(.{4})(?=.)/g, "$1:"));
}

/** Empty answer with an SOA whose minimum bounds how long the client remembers it (RFC 2308). */
function negative(query: DecodedPacket, asker: Asker, rcode: number): Outcome {
  const soa: Answer = {
    type: "SOA",
    name: query.questions?.[0]?.name ?? ".",
    ttl: NEGATIVE_TTL_SECONDS,
    data: {
      mname: "ns.netagent",
      rname: "netagent",
      serial: 1,
      refresh: 60,
      retry: 60,
      expire: 60,
      minimum: NEGATIVE_TTL_SECONDS,
    },
  };
  return { type: "reply", bytes: build(query, asker, rcode, [], [soa], []) };
}

function reply(
  query: DecodedPacket,
  asker: Asker,
  rcode: number,
  answers: Answer[],
  additionals: Answer[] = [],
): Outcome {
  return { type: "reply", bytes: build(query, asker, rcode, answers, [], additionals) };
}

function build(
  query: DecodedPacket,
  asker: Pick<Asker, "transport">,
  rcode: number,
  answers: Answer[],
  authorities: Answer[],
  additionals: Answer[],
): Uint8Array {
  const edns = query.additionals?.find((record) => record.type === "OPT");
  const asked =
    edns !== undefined && "udpPayloadSize" in edns ? Number(edns.udpPayloadSize) : PLAIN_UDP_BYTES;
  const limit =
    asker.transport === "tcp" ? MAX_TCP_BYTES : Math.min(MAX_UDP_BYTES, Math.max(PLAIN_UDP_BYTES, asked));
  const opt: Answer[] =
    edns === undefined
      ? []
      : [
          {
            type: "OPT",
            name: ".",
            udpPayloadSize: MAX_UDP_BYTES,
            extendedRcode: 0,
            ednsVersion: 0,
            flags: 0,
            flag_do: false,
            options: [],
          },
        ];
  const packet: Packet = {
    id: query.id ?? 0,
    type: "response",
    // dns-packet takes the response code as the low bits of the flags.
    flags: RECURSION_AVAILABLE | ((query.flags ?? 0) & RECURSION_DESIRED) | rcode,
    questions: (query.questions ?? []).slice(0, 1),
    answers,
    authorities,
    additionals: [...additionals, ...opt],
  };
  let bytes = encode(packet);
  if (bytes.length <= limit) return bytes;
  // Whole records are dropped; the client sees the TC bit and asks again over TCP.
  let kept = Math.max(0, Math.floor((answers.length * limit) / bytes.length));
  for (;;) {
    bytes = encode({
      ...packet,
      flags: (packet.flags ?? 0) | TRUNCATED_RESPONSE,
      answers: answers.slice(0, kept),
      additionals: opt,
    });
    if (bytes.length <= limit || kept === 0) return bytes;
    kept--;
  }
}

/** The response code of an encoded message. */
export function responseCode(bytes: Uint8Array): number {
  return (bytes[3] ?? 0) & 0x0f;
}

export const RESPONSE_CODES = RCODE;
