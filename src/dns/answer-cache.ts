import { DecodeError } from "../base/error.ts";
import { after, elapsed, type Instant } from "../base/time.ts";
import {
  DNS_HEADER_LENGTH,
  DNS_RCODE,
  dnsTimes,
  isTruncated,
  responseCode,
  type DnsQuery,
} from "../wire/dns/message.ts";

/** Answers kept; with 4 KiB each at most, a few MiB. */
const MAX_ANSWERS = 1_000;
const MAX_ANSWER_BYTES = 4_096;
/** However long somebody outside says his answer holds. */
const MAX_SECONDS = 3_600;

interface Kept {
  readonly bytes: Uint8Array;
  readonly ttlOffsets: readonly number[];
  readonly since: Instant;
  readonly until: Instant;
}

/** Answers from outside, for as long as they say they hold (RFC 1035 §7.4, RFC 2308). */
export class AnswerCache {
  readonly #kept = new Map<string, Kept>();

  get size(): number {
    return this.#kept.size;
  }

  /** The answer to this query, its TTLs counted down; undefined when there is none of at most `limitBytes`. */
  get(query: DnsQuery, flags: number, limitBytes: number, now: Instant): Uint8Array | undefined {
    const key = keyOf(query, flags);
    const kept = key === undefined ? undefined : this.#kept.get(key);
    if (key === undefined || kept === undefined) return undefined;
    if (kept.until <= now) {
      this.#kept.delete(key);
      return undefined;
    }
    if (kept.bytes.length > limitBytes) return undefined;
    const bytes = kept.bytes.slice();
    const view = new DataView(bytes.buffer);
    view.setUint16(0, query.id);
    // As this client wrote it: upper and lower case may be its check against forgery.
    bytes.set(query.question, DNS_HEADER_LENGTH);
    const age = Math.floor(elapsed(kept.since, now) / 1000);
    for (const offset of kept.ttlOffsets) view.setUint32(offset, Math.max(0, view.getUint32(offset) - age));
    return bytes;
  }

  /** Keeps an answer that says how long it holds; failures and half answers are not kept. */
  put(query: DnsQuery, flags: number, bytes: Uint8Array, now: Instant): void {
    const key = keyOf(query, flags);
    const rcode = responseCode(bytes);
    if (key === undefined || bytes.length > MAX_ANSWER_BYTES || isTruncated(bytes)) return;
    if (rcode !== DNS_RCODE.noError && rcode !== DNS_RCODE.nxDomain) return;
    // The question is where the next client's is put.
    if (bytes[5] !== 1 || bytes.length < DNS_HEADER_LENGTH + query.question.length) return;
    try {
      const { ttlOffsets, seconds } = dnsTimes(bytes);
      if (seconds === undefined || seconds === 0) return;
      this.#kept.delete(key);
      const oldest = this.#kept.size >= MAX_ANSWERS ? this.#kept.keys().next().value : undefined;
      if (oldest !== undefined) this.#kept.delete(oldest);
      const until = after(now, 1000 * Math.min(MAX_SECONDS, seconds));
      this.#kept.set(key, { bytes: bytes.slice(), ttlOffsets, since: now, until });
    } catch (error) {
      // The client may make more of it than we do.
      if (!(error instanceof DecodeError)) throw error;
    }
  }

  clear(): void {
    this.#kept.clear();
  }
}

/** Flags of a query that change its answer: recursion desired, authentic data, checking disabled. */
const MEANINGFUL_FLAGS = 0x0130;

/** Undefined for a query whose answer is for nobody else. */
function keyOf(query: DnsQuery, flags: number): string | undefined {
  if (query.opcode !== 0 || query.edns?.options === true) return undefined;
  const edns = query.edns === undefined ? "" : query.edns.dnssecOk ? "do" : "edns";
  return `${query.type} ${query.class} ${flags & MEANINGFUL_FLAGS} ${edns} ${query.name}`;
}
