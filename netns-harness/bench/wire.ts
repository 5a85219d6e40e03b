/** When rows were on the wire: what tcpdump saw of gossip, decoded, with its own timestamps. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { DecodeError } from "../../src/base/error.ts";
import { decodePacket } from "../../src/wire/memberlist/packet.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { decodeNetworkDbMessage } from "../../src/wire/networkdb/message.ts";
import { PEER_TABLE } from "../../src/wire/networkdb/records.ts";
import type { Background } from "../command.ts";
import { started, type Place } from "../place.ts";

const PCAP_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
/** Ethernet, IPv4 without options, UDP. */
const FRAME_HEADER_BYTES = 14 + 20 + 8;

/** A capture of the unsealed gossip that arrives at a place. */
export class WireTap {
  readonly #tcpdump: Background;
  readonly #file: string;

  private constructor(tcpdump: Background, file: string) {
    this.#tcpdump = tcpdump;
    this.#file = file;
  }

  static async start(place: Place): Promise<WireTap> {
    const file = join(place.folder, "gossip.pcap");
    const tcpdump = place.spawn([
      ...(["tcpdump", "--immediate-mode", "-U", "-s", "0", "-i", "eth0", "-Q", "in", "-w", file] as const),
      ...["udp", "dst", "port", "7946"],
    ]);
    await started(tcpdump, "listening on");
    return new WireTap(tcpdump, file);
  }

  /** Ends the capture: when (ms since 1970, with fractions) the row of each endpoint first arrived. */
  async stop(): Promise<ReadonlyMap<string, number>> {
    await this.#tcpdump.stop("SIGINT");
    const first = new Map<string, number>();
    for (const { at, payload } of packets(readFileSync(this.#file))) {
      for (const key of peerKeysIn(payload)) if (!first.has(key)) first.set(key, at);
    }
    return first;
  }
}

/** pcap, little endian, microseconds, as tcpdump writes it here. */
function* packets(file: Buffer): Generator<{ readonly at: number; readonly payload: Uint8Array }> {
  for (let at = PCAP_HEADER_BYTES; at + RECORD_HEADER_BYTES <= file.length;) {
    const time = file.readUInt32LE(at) * 1_000 + file.readUInt32LE(at + 4) / 1_000;
    const end = at + RECORD_HEADER_BYTES + file.readUInt32LE(at + 8);
    yield {
      at: time,
      payload: Uint8Array.from(file.subarray(at + RECORD_HEADER_BYTES + FRAME_HEADER_BYTES, end)),
    };
    at = end;
  }
}

/** Endpoints whose peer record is created or updated in a datagram; what does not decode has none. */
function peerKeysIn(packet: Uint8Array): string[] {
  try {
    return decodePacket(packet, UNSEALED).messages.flatMap((message) =>
      message.type === "user" ? peerKeys(message.payload) : [],
    );
  } catch (error) {
    if (error instanceof DecodeError) return [];
    throw error;
  }
}

function peerKeys(bytes: Uint8Array): string[] {
  try {
    const message = decodeNetworkDbMessage(bytes);
    if (message.type === "compound") return message.parts.flatMap(peerKeys);
    const written = message.type === "table-event" && message.change !== "delete";
    return written && message.table === PEER_TABLE ? [message.key] : [];
  } catch (error) {
    if (error instanceof DecodeError) return [];
    throw error;
  }
}
