/**
 * Echo requests that may not be cut on the way (DF): whether a host answers at all, and what the underlay's path MTU
 * to it is. A raw socket (`raw-socket`), since what a ping socket may do depends on a sysctl.
 */
import { randomInt } from "node:crypto";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";
import { DecodeError, errorText, NetError } from "../base/error.ts";
import { type IpAddr, isIpv4 } from "../base/ip.ts";
import { sizesBetween } from "../overlay/path-prober.ts";
import {
  decodeIcmp6Message,
  decodeIcmpPacket,
  encodeEchoRequest,
  encodeEchoRequest6,
  type IcmpEcho,
  type IcmpMessage,
  ICMPV6,
  IPV6_HEADER_LENGTH,
} from "../wire/icmp.ts";
import { IPV4_HEADER_LENGTH } from "../wire/ipv4.ts";

export type UnderlayReach =
  /** `mtu`: the largest packet that got through and back, IP header included. */
  | { readonly state: "answers"; readonly rttMs: number; readonly mtu: number }
  /** Filtered, or nobody there. */
  | { readonly state: "silent" }
  /** The kernel here would not even send. */
  | { readonly state: "unreachable"; readonly reason: string };

/** Every path of the internet takes these. */
const SMALL_PACKET = 68;
const ANSWER_MS = 400;
const LOOK_EVERY_MS = 10;
/** Of all targets together; the search for one takes four. */
const MAX_ROUNDS = 6;
const BUFFER_BYTES = 65_536;

/** What differs between the families of addresses. */
interface Family {
  /** `raw-socket`'s numbers. */
  readonly addressFamily: number;
  readonly protocol: number;
  /** Level, name and value for setsockopt. */
  readonly options: readonly (readonly [level: number, name: number, value: number])[];
  readonly headerLength: number;
  readonly encode: (echo: IcmpEcho, length: number) => Uint8Array;
  readonly decode: (received: Uint8Array) => IcmpMessage;
}

const IPV4: Family = {
  addressFamily: 1,
  protocol: 1,
  // IP_MTU_DISCOVER: PROBE sets DF and heeds no path MTU that the kernel remembers.
  options: [[0, 10, 3]],
  headerLength: IPV4_HEADER_LENGTH,
  encode: encodeEchoRequest,
  decode: decodeIcmpPacket,
};

const IPV6: Family = {
  addressFamily: 2,
  protocol: ICMPV6,
  // IPV6_MTU_DISCOVER as above, and IPV6_DONTFRAG: here the sender is who cuts.
  options: [
    [41, 23, 3],
    [41, 62, 1],
  ],
  headerLength: IPV6_HEADER_LENGTH,
  encode: encodeEchoRequest6,
  decode: decodeIcmp6Message,
};

interface Target {
  readonly ip: IpAddr;
  /** Gets through and back; 0: nothing has. */
  low: number;
  /** Does not. */
  high: number;
  rttMs: number | undefined;
  refusal: string | undefined;
  /** Sizes of this round. */
  sizes: number[];
}

interface Sent {
  readonly target: Target;
  readonly size: number;
  readonly at: number;
}

/**
 * Probes all at once, `mtu` being what our own device takes. Some two seconds at most.
 * @throws NetError `EPERM` without CAP_NET_RAW
 */
export async function probeUnderlay(
  targets: readonly IpAddr[],
  mtu: number,
): Promise<ReadonlyMap<IpAddr, UnderlayReach>> {
  const found = await Promise.all([
    probeFamily(IPV4, targets.filter(isIpv4), mtu),
    probeFamily(
      IPV6,
      targets.filter((ip) => !isIpv4(ip)),
      mtu,
    ),
  ]);
  return new Map(found.flatMap((part) => [...part]));
}

async function probeFamily(
  family: Family,
  targets: readonly IpAddr[],
  mtu: number,
): Promise<ReadonlyMap<IpAddr, UnderlayReach>> {
  const all = targets.map((ip): Target => ({
    ip,
    low: 0,
    high: mtu + 1,
    rttMs: undefined,
    refusal: undefined,
    sizes: [],
  }));
  if (all.length === 0) return new Map();
  const socket = new EchoSocket(family);
  try {
    for (const target of all) target.sizes = [SMALL_PACKET, mtu];
    for (let round = 0; round < MAX_ROUNDS && all.some(({ sizes }) => sizes.length > 0); round++) {
      await socket.round(all);
      for (const target of all) target.sizes = nextSizes(target, round);
    }
  } finally {
    socket.close();
  }
  return new Map(all.map((target) => [target.ip, reachOf(target)]));
}

/** What to try after a round; nothing when all is known. One loss does not count: the small packet goes twice. */
function nextSizes({ low, high, refusal, sizes }: Target, round: number): number[] {
  if (refusal !== undefined || sizes.length === 0) return [];
  if (low === 0) return round === 0 ? [SMALL_PACKET] : [];
  return sizesBetween(low, high);
}

function reachOf({ low, rttMs, refusal }: Target): UnderlayReach {
  if (low > 0 && rttMs !== undefined) return { state: "answers", rttMs, mtu: low };
  return refusal === undefined ? { state: "silent" } : { state: "unreachable", reason: refusal };
}

class EchoSocket {
  readonly #family: Family;
  readonly #socket: RawSocket;
  readonly #id = randomInt(0x1_0000);
  readonly #sent = new Map<number, Sent>();
  #sequence = 0;

  /** @throws NetError */
  constructor(family: Family) {
    this.#family = family;
    const { protocol, addressFamily } = family;
    try {
      this.#socket = rawSockets().createSocket({ protocol, addressFamily, bufferSize: BUFFER_BYTES });
      for (const option of family.options) this.#socket.setOption(...option);
    } catch (cause) {
      throw new NetError("EPERM", `open an ICMP socket: ${errorText(cause)} (netagent needs CAP_NET_RAW)`, {
        cause,
      });
    }
    this.#socket.on("message", (packet) => this.#received(packet));
    // What concerns one packet is told to its callback.
    this.#socket.on("error", () => undefined);
  }

  /** Sends every target's sizes and waits until all came back or time is up. */
  async round(targets: readonly Target[]): Promise<void> {
    this.#sent.clear();
    for (const target of targets) for (const size of target.sizes) this.#send(target, size);
    for (let waited = 0; waited < ANSWER_MS && this.#sent.size > 0; waited += LOOK_EVERY_MS)
      await pause(LOOK_EVERY_MS);
    for (const { target, size } of this.#sent.values())
      // The smaller ones of a search are judged by what is known of larger ones.
      if (size > target.low) target.high = Math.min(target.high, size);
  }

  close(): void {
    this.#socket.close();
  }

  #send(target: Target, size: number): void {
    const sequence = this.#sequence++ & 0xffff;
    const { encode, headerLength } = this.#family;
    const packet = Buffer.from(encode({ id: this.#id, sequence }, size - headerLength));
    this.#sent.set(sequence, { target, size, at: performance.now() });
    this.#socket.send(packet, 0, packet.length, target.ip, null, (error) => {
      if (error === null) return;
      this.#sent.delete(sequence);
      const text = errorText(error);
      if (/too long/i.test(text)) target.high = Math.min(target.high, size);
      else target.refusal ??= text;
    });
  }

  #received(packet: Uint8Array): void {
    try {
      const message = this.#family.decode(packet);
      if (message.type === "other" || message.echo.id !== this.#id) return;
      const sent = this.#sent.get(message.echo.sequence);
      if (sent === undefined) return;
      this.#sent.delete(message.echo.sequence);
      const { target, size } = sent;
      if (message.type === "echo-reply") {
        target.low = Math.max(target.low, size);
        target.rttMs ??= performance.now() - sent.at;
      } else target.high = Math.min(target.high, size, message.mtu > 0 ? message.mtu + 1 : Infinity);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error; // everybody's ICMP comes here
    }
  }
}

/** The part of `raw-socket` that is used; it comes without types. */
interface RawSocket {
  setOption(level: number, option: number, value: number): void;
  on(event: "message", listener: (packet: Buffer, source: string) => void): void;
  on(event: "error", listener: (error: Error) => void): void;
  send(
    packet: Buffer,
    offset: number,
    length: number,
    address: string,
    before: null,
    after: (error: Error | null) => void,
  ): void;
  close(): void;
}
interface RawSockets {
  createSocket(options: {
    readonly protocol: number;
    readonly addressFamily: number;
    readonly bufferSize: number;
  }): RawSocket;
}

/** Loaded when first needed: most agents never probe. */
function rawSockets(): RawSockets {
  return createRequire(import.meta.url)("raw-socket") as RawSockets;
}
