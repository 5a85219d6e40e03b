/** Questions and answers of the DNS tests; encoded and decoded by `dns-packet`, which shares no code with ours. */
import assert from "node:assert/strict";
import { decode, encode, type DecodedPacket, type Packet, type Question } from "dns-packet";
import { networkId, nodeName } from "../../src/base/id.ts";
import { parseCidr, parseIp } from "../../src/base/ip.ts";
import { seededRandom, type Random } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import { resolve, type Asker, type Outcome, type Transport } from "../../src/dns/resolver.ts";
import { Zone, type NamedEndpoint, type NamedService } from "../../src/dns/zone.ts";
import { decodeDnsQuery, responseCode } from "../../src/wire/dns/message.ts";

export const NODE = nodeName("n1");
export const VIP = parseIp("10.0.1.2");

export interface AskOptions extends Partial<Omit<Asker, "zones">> {
  readonly transport?: Transport;
  /** Milliseconds. */
  readonly at?: number;
  /** EDNS payload size; absent: no EDNS. */
  readonly edns?: number;
  readonly ednsVersion?: number;
  readonly random?: Random;
  readonly class?: string;
  readonly flags?: number;
  /** More questions after the first. */
  readonly more?: readonly Question[];
}

export function zoneOf(
  networkName: string,
  endpoints: readonly NamedEndpoint[],
  services: readonly NamedService[] = [],
): Zone {
  const zone = new Zone(networkId(`id-${networkName}`));
  fill(zone, networkName, endpoints, services, 0);
  return zone;
}

export function fill(
  zone: Zone,
  networkName: string,
  endpoints: readonly NamedEndpoint[],
  services: readonly NamedService[],
  at: number,
): void {
  zone.update({ networkName, subnet: parseCidr("10.0.1.0/24"), endpoints, services }, instant(at));
}

/** A plain endpoint. */
export function endpoint(name: string, ip: string, parts: Partial<NamedEndpoint> = {}): NamedEndpoint {
  return { name, taskAliases: [], ip: parseIp(ip), node: NODE, state: "serving", ...parts };
}

/** A backend of `web`; of the service's virtual IP unless told otherwise. */
export function backend(name: string, ip: string, parts: Partial<NamedEndpoint> = {}): NamedEndpoint {
  return endpoint(name, ip, { service: { name: "web", aliases: [], vip: VIP, ports: [] }, ...parts });
}

/** A backend of `web` in mode dnsrr. */
export function roundRobin(name: string, ip: string, parts: Partial<NamedEndpoint> = {}): NamedEndpoint {
  return backend(name, ip, { service: { name: "web", aliases: [], vip: undefined, ports: [] }, ...parts });
}

export function queryBytes(name: string, type: string, options: AskOptions = {}): Uint8Array {
  const packet: Packet = {
    type: "query",
    id: 4711,
    flags: options.flags ?? 0x0100,
    questions: [{ type, name, class: options.class ?? "IN" } as Question, ...(options.more ?? [])],
    additionals:
      options.edns === undefined
        ? []
        : [
            {
              type: "OPT",
              name: ".",
              udpPayloadSize: options.edns,
              extendedRcode: 0,
              ednsVersion: options.ednsVersion ?? 0,
              flags: 0,
              flag_do: false,
              options: [],
            },
          ],
  };
  return new Uint8Array(encode(packet));
}

export function ask(
  zones: Zone | readonly Zone[],
  name: string,
  type: string,
  options: AskOptions = {},
): Outcome {
  const asker: Asker = {
    zones: zones instanceof Zone ? [zones] : zones,
    mayForward: options.mayForward ?? true,
    learning: options.learning ?? false,
    isElsewhere: options.isElsewhere ?? (() => false),
  };
  return resolve(
    decodeDnsQuery(queryBytes(name, type, options)),
    asker,
    options.transport ?? "udp",
    options.random ?? seededRandom(1),
    instant(options.at ?? 1000),
  );
}

export function bytesOf(outcome: Outcome): Uint8Array {
  assert.equal(outcome.type, "reply");
  return outcome.type === "reply" ? outcome.bytes : new Uint8Array();
}

export function packetOf(outcome: Outcome): DecodedPacket {
  return decode(Buffer.from(bytesOf(outcome)));
}

/** `NXDOMAIN`, `NODATA`, … or the answers' data, or `forward`, `hold`. */
export function gist(outcome: Outcome): string {
  if (outcome.type !== "reply") return outcome.type;
  const rcode = responseCode(outcome.bytes);
  if (rcode !== 0)
    return ["", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"][rcode] ?? `rcode ${rcode}`;
  return answers(outcome).sort().join(" ") || "NODATA";
}

/** Data of the answers, in their order. */
export function answers(outcome: Outcome): string[] {
  return (packetOf(outcome).answers ?? []).map((answer) => String(dataOf(answer)));
}

export function dataOf(record: object): unknown {
  return "data" in record ? record.data : undefined;
}
