import { Deadlines } from "../base/deadlines.ts";
import { randomInt, type Random } from "../base/random.ts";
import { after, type Instant } from "../base/time.ts";
import { RESPONSE_CODES, responseCode } from "./resolver.ts";

/** Questions waiting upstream at one time; more are refused. Protects memory and sockets from a flood. */
const MAX_OUTSTANDING = 1024;
/** Silence after which the next server is asked; the first one may still answer. */
const NEXT_SERVER_MS = 1_500;
/** Silence after which the client is told SERVFAIL; resolvers themselves give up after 5 s. */
const GIVE_UP_MS = 4_500;
/** A server that was silent is asked last for this long. */
const DISTRUST_MS = 30_000;

export type ForwarderInput =
  /** A query nobody here knows; `id` names the client's place in the answers. */
  | {
      readonly type: "query";
      readonly id: number;
      readonly transport: "udp" | "tcp";
      readonly bytes: Uint8Array;
    }
  | { readonly type: "answer"; readonly exchange: number; readonly bytes: Uint8Array }
  | { readonly type: "failed"; readonly exchange: number }
  | { readonly type: "set-servers"; readonly servers: readonly string[] }
  | { readonly type: "wake" };

export type ForwarderEffect =
  /** Ask `server` with `bytes`, whose id is already a fresh random one; hand the answer back under `exchange`. */
  | {
      readonly type: "ask-upstream";
      readonly exchange: number;
      readonly server: string;
      readonly transport: "udp" | "tcp";
      readonly bytes: Uint8Array;
    }
  /** No more answers are wanted for this exchange. */
  | { readonly type: "end-exchange"; readonly exchange: number }
  | { readonly type: "reply"; readonly id: number; readonly bytes: Uint8Array }
  | { readonly type: "fail"; readonly id: number; readonly rcode: "servFail" | "refused" };

interface Pending {
  readonly id: number;
  readonly transport: "udp" | "tcp";
  readonly query: Uint8Array;
  /** Servers not asked yet, best first. */
  readonly remaining: string[];
  readonly exchanges: Map<number, { readonly server: string; readonly dnsId: number }>;
  readonly giveUpAt: Instant;
}

/** Forwards DNS queries upstream and gives up on silence. Owns no socket and no timer. */
export class Forwarder {
  readonly #random: Random;
  #servers: readonly string[] = [];
  readonly #pending = new Map<number, Pending>();
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
      case "set-servers":
        this.#servers = input.servers;
        return [];
      case "wake":
        return this.#deadlines.takeDue(now).flatMap((id) => this.#silence(id, now));
    }
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  #query(input: Extract<ForwarderInput, { type: "query" }>, now: Instant): ForwarderEffect[] {
    if (this.#pending.size >= MAX_OUTSTANDING) return [{ type: "fail", id: input.id, rcode: "refused" }];
    const trusted = (server: string): number => ((this.#distrusted.get(server) ?? now) > now ? 1 : 0);
    const pending: Pending = {
      id: input.id,
      transport: input.transport,
      query: input.bytes,
      remaining: [...this.#servers].sort((a, b) => trusted(a) - trusted(b)),
      exchanges: new Map(),
      giveUpAt: after(now, GIVE_UP_MS),
    };
    this.#pending.set(input.id, pending);
    return this.#askNext(pending, now);
  }

  #askNext(pending: Pending, now: Instant): ForwarderEffect[] {
    const server = pending.remaining.shift();
    if (server === undefined) {
      if (pending.exchanges.size > 0) {
        this.#deadlines.set(pending.id, pending.giveUpAt);
        return [];
      }
      return [...this.#end(pending), { type: "fail", id: pending.id, rcode: "servFail" }];
    }
    const exchange = this.#nextExchange++;
    const dnsId = randomInt(this.#random, 0x10000);
    pending.exchanges.set(exchange, { server, dnsId });
    this.#owners.set(exchange, pending);
    const next = after(now, NEXT_SERVER_MS);
    this.#deadlines.set(
      pending.id,
      pending.remaining.length > 0 && next < pending.giveUpAt ? next : pending.giveUpAt,
    );
    return [
      {
        type: "ask-upstream",
        exchange,
        server,
        transport: pending.transport,
        bytes: withId(pending.query, dnsId),
      },
    ];
  }

  #answer(exchange: number, bytes: Uint8Array, now: Instant): ForwarderEffect[] {
    const pending = this.#owners.get(exchange);
    const asked = pending?.exchanges.get(exchange);
    // A late or forged answer has nobody waiting or the wrong id: drop it.
    if (pending === undefined || asked === undefined || bytes.length < 12 || idOf(bytes) !== asked.dnsId)
      return [];
    this.#distrusted.delete(asked.server);
    const rcode = responseCode(bytes);
    if (
      (rcode === RESPONSE_CODES.servFail || rcode === RESPONSE_CODES.refused) &&
      pending.remaining.length > 0
    ) {
      return this.#failed(exchange, now);
    }
    return [
      ...this.#end(pending),
      { type: "reply", id: pending.id, bytes: withId(bytes, idOf(pending.query)) },
    ];
  }

  #failed(exchange: number, now: Instant): ForwarderEffect[] {
    const pending = this.#owners.get(exchange);
    if (pending === undefined) return [];
    const server = pending.exchanges.get(exchange)?.server;
    if (server !== undefined) this.#distrusted.set(server, after(now, DISTRUST_MS));
    pending.exchanges.delete(exchange);
    this.#owners.delete(exchange);
    return [{ type: "end-exchange", exchange }, ...this.#askNext(pending, now)];
  }

  #silence(id: number, now: Instant): ForwarderEffect[] {
    const pending = this.#pending.get(id);
    if (pending === undefined) return [];
    for (const { server } of pending.exchanges.values())
      this.#distrusted.set(server, after(now, DISTRUST_MS));
    if (now >= pending.giveUpAt) return [...this.#end(pending), { type: "fail", id, rcode: "servFail" }];
    return this.#askNext(pending, now);
  }

  #end(pending: Pending): ForwarderEffect[] {
    this.#pending.delete(pending.id);
    this.#deadlines.delete(pending.id);
    const effects: ForwarderEffect[] = [];
    for (const exchange of pending.exchanges.keys()) {
      this.#owners.delete(exchange);
      effects.push({ type: "end-exchange", exchange });
    }
    return effects;
  }
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
