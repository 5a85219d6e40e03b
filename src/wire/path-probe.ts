/**
 * Probes between agents through the data path: the payload of a UDP datagram on the reserved VNI.
 *
 * magic u32 `NAPP`, kind u8 (1 probe, 2 answer), nonce u64, size u16, then zeros up to `size`. `size` is that of the
 * inner IP packet of the probe, which is what an interface's MTU limits; an answer repeats it and carries no zeros,
 * so that each direction is measured by itself.
 */
import { ByteReader, ByteWriter } from "../base/bytes.ts";
import { type IpAddr, isIpv4 } from "../base/ip.ts";

/** No network may have it: the highest but one of 24 bits. */
export const PROBE_VNI = 0xfffffe;
/** UDP port inside. */
export const PROBE_PORT = 7947;

const MAGIC = 0x4e415050;
const KINDS = { probe: 1, answer: 2 } as const;
const HEADER_BYTES = 4 + 1 + 8 + 2;

export interface PathProbe {
  readonly kind: "probe" | "answer";
  /** Unpredictable, so that nobody who cannot see the probe can answer it. */
  readonly nonce: bigint;
  /** Bytes of the inner IP packet, at least `smallestProbe`. */
  readonly size: number;
}

/** IP and UDP headers around the payload. */
function headersOf(ip: IpAddr): number {
  return (isIpv4(ip) ? 20 : 40) + 8;
}

/** Inner IP packet of a probe without padding. */
export function smallestProbe(ip: IpAddr): number {
  return headersOf(ip) + HEADER_BYTES;
}

/** `ip` is an address of either side: its family decides the size of the headers. */
export function encodePathProbe(probe: PathProbe, ip: IpAddr): Uint8Array {
  const out = new ByteWriter(probe.size);
  out.u32(MAGIC).u8(KINDS[probe.kind]).u64(probe.nonce).u16(probe.size);
  if (probe.kind === "probe") out.zeros(Math.max(0, probe.size - smallestProbe(ip)));
  return out.finish();
}

/** @throws DecodeError also when a probe is not as long as it says: a piece of one must not count. */
export function decodePathProbe(bytes: Uint8Array, ip: IpAddr): PathProbe {
  const input: ByteReader = new ByteReader(bytes, "path probe");
  if (input.u32() !== MAGIC) input.fail("no probe");
  const kind = input.u8();
  if (kind !== KINDS.probe && kind !== KINDS.answer) input.fail(`kind ${kind}`);
  const nonce = input.u64();
  const size = input.u16();
  const padding = kind === KINDS.probe ? size - smallestProbe(ip) : 0;
  if (input.rest().length !== padding) input.fail(`${bytes.length} bytes for size ${size}`);
  return { kind: kind === KINDS.probe ? "probe" : "answer", nonce, size };
}
