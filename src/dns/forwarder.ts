import { unreachable } from "../base/assert.ts";
import { Deadlines } from "../base/deadlines.ts";
import { randomInt, type Random } from "../base/random.ts";
import { after, elapsed, instant, type Instant } from "../base/time.ts";
import {
  DNS_HEADER_LENGTH,
  DNS_RCODE,
  isDnsResponse,
  responseCode,
  type DnsQuery,
} from "../wire/dns/message.ts";
import { AnswerCache } from "./answer-cache.ts";
import { limitOf, type Transport } from "./resolver.ts";

/** Questions of one sandbox waiting upstream at one time, as Docker allows; more are refused. */
const MAX_OUTSTANDING = 1024;
/** The same of all sandboxes together: each holds a socket. */
const MAX_OUTSTANDING_TOTAL = 2048;
/** Silence after which the next server is asked as well; the first answer wins. */
const NEXT_SERVER_MS = 300;
/** Silence after which the client is told SERVFAIL; resolvers themselves give up after 5 s. */
const GIVE_UP_MS = 4_500;
/** A server that failed is asked last for this long. */
const DISTRUST_MS = 30_000;

export type ForwarderInput =
  /** A query nobody here knows; `id` names the client's place in the answers, `client` its sandbox. */
  | {
      readonly type: "query";
      readonly id: number;
      readonly client: string;
      readonly transport: Transport;
      readonly query: DnsQuery;
      readonly bytes: Uint8Array;
    }
  | { readonly type: "answer"; readonly exchange: number; readonly bytes: Uint8Array }
  | { readonly type: "failed"; readonly exchange: number }
  /** Nobody waits for the answers of this sandbox any more. */
  | { readonly type: "client-gone"; readonly client: string }
  | { readonly type: "set-servers"; readonly servers: readonly string[] }
  | { readonly type: "wake" };

export type ForwarderEffect =
  /** Ask `server` with `bytes`, whose id is already a fresh random one; hand the answer back under `exchange`. */
  | {
      readonly type: "ask-upstream";
      readonly exchange: number;
      readonly server: string;
      readonly transport: Transport;
      readonly bytes: Uint8Array;
    }
  /** No more answers are wanted for this exchange. */
  | { readonly type: "end-exchange"; readonly exchange: number }
  | { readonly type: "reply"; readonly id: number; readonly bytes: Uint8Array }
  | { readonly type: "fail"; readonly id: number; readonly rcode: "servFail" | "refused" };

/** What one server was asked and did. */
export interface ServerCounts {
  asked: number;
  answered: number;
  /** Answers that were SERVFAIL or REFUSED, so that the next server was asked. */
  refused: number;
  /** Unreachable, or silent when another one had answered or the client's patience was over. */
  failed: number;
}

interface Exchange {
  readonly server: string;
  readonly dnsId: number;
  readonly askedAt: Instant;
}

interface Pending {
  readonly id: number;
  readonly client: string;
  readonly transport: Transport;
  readonly query: DnsQuery;
  readonly bytes: Uint8Array;
  /** Servers not asked yet, best first. */
  readonly remaining: string[];
  readonly exchanges: Map<number, Exchange>;
  readonly giveUpAt: Instant;
  /** SERVFAIL or REFUSED of some server: better than nothing, should no other do better. */
  fallback?: Uint8Array;
}

/** Forwards DNS queries of all sandboxes upstream and gives up on silence. Owns no socket and no timer. */
export class Forwarder {
  /** By server, for those asked lately. */
  readonly counts = new Map<string, ServerCounts>();
  cached = 0;
  readonly #random: Random;
  readonly #cache = new AnswerCache();
  #servers: readonly string[] = [];
  readonly #pending = new Map<number, Pending>();
  readonly #ofClient = new Map<string, number>();
  readonly #owners = new Map<number, Pending>();
  readonly #deadlines = new Deadlines<number>();
  readonly #distrusted = new Map<string, Instant>();
  #nextExchange = 1;

  constructor(random: Random) {
    this.#random = random;
  }

  handle(input: ForwarderInput, now: Instant): ForwarderEffect[] {
    switch (input.type) {
      case "query":
        return this.#query(input, now);
      case "answer":
        return this.#answer(input.exchange, input.bytes, now);
      case "failed":
        return this.#failed(input.exchange, now);
      case "client-gone":
        return [...this.#pending.values()]
          .filter((pending) => pending.client === input.client)
          .flatMap((pending) => this.#end(pending));
      case "set-servers":
        this.#setServers(input.servers);
        return [];
      case "wake":
        return this.#deadlines.takeDue(now).flatMap((id) => this.#silence(id, now));
      default:
        return unreachable(input);
    }
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  /** Other servers may know other names. */
  #setServers(servers: readonly string[]): void {
    if (servers.join() === this.#servers.join()) return;
    this.#servers = servers;
    this.#cache.clear();
    for (const known of this.counts.keys()) {
      if (!servers.includes(known)) this.counts.delete(known);
    }
  }

  #query(input: Extract<ForwarderInput, { type: "query" }>, now: Instant): ForwarderEffect[] {
    const { id, client, transport, query, bytes } = input;
    const kept = this.#cache.get(query, flagsOf(bytes), limitOf(query, transport), now);
    if (kept !== undefined) {
      this.cached++;
      return [{ type: "reply", id, bytes: kept }];
    }
    const outstanding = this.#ofClient.get(client) ?? 0;
    if (outstanding >= MAX_OUTSTANDING || this.#pending.size >= MAX_OUTSTANDING_TOTAL)
      return [{ type: "fail", id, rcode: "refused" }];
    const distrusted = (server: string): number => ((this.#distrusted.get(server) ?? now) > now ? 1 : 0);
    const pending: Pending = {
      id,
      client,
      transport,
      query,
      bytes,
      remaining: [...this.#servers].sort((a, b) => distrusted(a) - distrusted(b)),
      exchanges: new Map(),
      giveUpAt: after(now, GIVE_UP_MS),
    };
    this.#pending.set(id, pending);
    this.#ofClient.set(client, outstanding + 1);
    return this.#askNext(pending, now);
  }

  #askNext(pending: Pending, now: Instant): ForwarderEffect[] {
    const server = pending.remaining.shift();
    if (server === undefined) return this.#waitOn(pending, now);
    const exchange = this.#nextExchange++;
    const dnsId = randomInt(this.#random, 0x10000);
    pending.exchanges.set(exchange, { server, dnsId, askedAt: now });
    this.#owners.set(exchange, pending);
    this.#count(server).asked++;
    const next = after(now, NEXT_SERVER_MS);
    const hurried = pending.remaining.length > 0 || pending.fallback !== undefined;
    this.#deadlines.set(pending.id, hurried && next < pending.giveUpAt ? next : pending.giveUpAt);
    const { transport, bytes } = pending;
    return [{ type: "ask-upstream", exchange, server, transport, bytes: withId(bytes, dnsId) }];
  }

  #answer(exchange: number, bytes: Uint8Array, now: Instant): ForwarderEffect[] {
    const pending = this.#owners.get(exchange);
    const asked = pending?.exchanges.get(exchange);
    // A late or forged answer has nobody waiting, the wrong id or another question: drop it.
    if (pending === undefined || asked === undefined) return [];
    if (!isDnsResponse(bytes) || idOf(bytes) !== asked.dnsId || !isAbout(bytes, pending.query)) return [];
    const counts = this.#count(asked.server);
    counts.answered++;
    this.#distrusted.delete(asked.server);
    const rcode = responseCode(bytes);
    if (rcode === DNS_RCODE.servFail || rcode === DNS_RCODE.refused) {
      counts.refused++;
      // It is there; whether others do better is worth a question, but no reason to avoid it.
      pending.fallback = bytes;
      this.#owners.delete(exchange);
      pending.exchanges.delete(exchange);
      return [{ type: "end-exchange", exchange }, ...this.#askNext(pending, now)];
    }
    // Those that had their time and said nothing have lost the race.
    for (const other of pending.exchanges.values())
      if (other !== asked && elapsed(other.askedAt, now) >= NEXT_SERVER_MS) this.#distrust(other.server, now);
    this.#cache.put(pending.query, flagsOf(pending.bytes), bytes, now);
    return this.#reply(pending, bytes);
  }

  #failed(exchange: number, now: Instant): ForwarderEffect[] {
    const pending = this.#owners.get(exchange);
    if (pending === undefined) return [];
    const server = pending.exchanges.get(exchange)?.server;
    if (server !== undefined) this.#distrust(server, now);
    pending.exchanges.delete(exchange);
    this.#owners.delete(exchange);
    return [{ type: "end-exchange", exchange }, ...this.#askNext(pending, now)];
  }

  #silence(id: number, now: Instant): ForwarderEffect[] {
    const pending = this.#pending.get(id);
    if (pending === undefined) return [];
    if (now < pending.giveUpAt) return this.#askNext(pending, now);
    for (const { server } of pending.exchanges.values()) this.#distrust(server, now);
    return this.#giveUp(pending);
  }

  /** Every server was asked. With a failure in hand the others get no more time than it takes to ask the next one. */
  #waitOn(pending: Pending, now: Instant): ForwarderEffect[] {
    const patience = [...pending.exchanges.values()].map(({ askedAt }) => after(askedAt, NEXT_SERVER_MS));
    const until = pending.fallback === undefined ? pending.giveUpAt : instant(Math.max(...patience));
    if (pending.exchanges.size === 0 || until <= now) return this.#giveUp(pending);
    this.#deadlines.set(pending.id, until);
    return [];
  }

  #giveUp(pending: Pending): ForwarderEffect[] {
    if (pending.fallback !== undefined) return this.#reply(pending, pending.fallback);
    return [...this.#end(pending), { type: "fail", id: pending.id, rcode: "servFail" }];
  }

  #reply(pending: Pending, bytes: Uint8Array): ForwarderEffect[] {
    return [...this.#end(pending), { type: "reply", id: pending.id, bytes: withId(bytes, pending.query.id) }];
  }

  #end(pending: Pending): ForwarderEffect[] {
    this.#pending.delete(pending.id);
    this.#deadlines.delete(pending.id);
    const left = (this.#ofClient.get(pending.client) ?? 1) - 1;
    if (left > 0) this.#ofClient.set(pending.client, left);
    else this.#ofClient.delete(pending.client);
    const effects: ForwarderEffect[] = [];
    for (const exchange of pending.exchanges.keys()) {
      this.#owners.delete(exchange);
      effects.push({ type: "end-exchange", exchange });
    }
    return effects;
  }

  #distrust(server: string, now: Instant): void {
    this.#count(server).failed++;
    this.#distrusted.set(server, after(now, DISTRUST_MS));
  }

  #count(server: string): ServerCounts {
    let counts = this.counts.get(server);
    if (counts === undefined)
      this.counts.set(server, (counts = { asked: 0, answered: 0, refused: 0, failed: 0 }));
    return counts;
  }
}

/** Whether the answer repeats our question, upper and lower case aside; an error may leave the question out. */
function isAbout(answer: Uint8Array, { question }: DnsQuery): boolean {
  if (answer.length < DNS_HEADER_LENGTH) return false;
  const count = ((answer[4] ?? 0) << 8) | (answer[5] ?? 0);
  if (count === 0) return responseCode(answer) !== DNS_RCODE.noError;
  if (answer.length < DNS_HEADER_LENGTH + question.length) return false;
  // Type and class, the last four bytes, have no case.
  for (let i = 0; i < question.length; i++) {
    const ours = question[i] ?? 0;
    const theirs = answer[DNS_HEADER_LENGTH + i] ?? 0;
    if (ours === theirs) continue;
    if (i >= question.length - 4 || lower(ours) !== lower(theirs)) return false;
  }
  return true;
}

function lower(byte: number): number {
  return byte >= 0x41 && byte <= 0x5a ? byte + 0x20 : byte;
}

function flagsOf(bytes: Uint8Array): number {
  return ((bytes[2] ?? 0) << 8) | (bytes[3] ?? 0);
}

function idOf(bytes: Uint8Array): number {
  return ((bytes[0] ?? 0) << 8) | (bytes[1] ?? 0);
}

function withId(bytes: Uint8Array, id: number): Uint8Array {
  const copy = bytes.slice();
  copy[0] = id >> 8;
  copy[1] = id & 0xff;
  return copy;
}
