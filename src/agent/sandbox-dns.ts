import { errorCode, DecodeError } from "../base/error.ts";
import { parseIp } from "../base/ip.ts";
import type { Instant } from "../base/time.ts";
import type { Random } from "../base/random.ts";
import { failure, malformed, resolve, type Asker, type Transport } from "../dns/resolver.ts";
import { DatagramSocket } from "../kernel/datagram-socket.ts";
import { dnsRedirectStands, redirectDns, redirectedPorts, type DnsPorts } from "../kernel/dns-redirect.ts";
import { Netns } from "../kernel/netns.ts";
import { DnsListener } from "../transport/dns-server.ts";
import { decodeDnsQuery, isDnsResponse, type DnsQuery } from "../wire/dns/message.ts";

/** Where every sandbox finds its DNS server: Docker's address, in nobody's subnet. */
const DNS_ADDRESS = parseIp("127.0.0.11");
/** How long a question waits for the peers' tables after a start; clients give up after 5 s. */
const HOLD_MS = 3_000;
/** Questions of one sandbox that wait so; more are told to come again. */
const MAX_HELD = 256;

export type UpstreamAnswer = { readonly bytes: Uint8Array } | { readonly rcode: "servFail" | "refused" };

/** What a sandbox's server asks of the agent. */
export interface NameSource {
  readonly random: Random;
  readonly now: Instant;
  readonly counters: { queries: number; answered: number; held: number; malformed: number };
  asker(sandbox: string): Asker;
  ask(
    client: string,
    transport: Transport,
    query: DnsQuery,
    bytes: Uint8Array,
    done: (answer: UpstreamAnswer) => void,
  ): void;
}

/** A question and where its answer goes. */
interface Question {
  readonly query: DnsQuery;
  readonly bytes: Uint8Array;
  readonly transport: Transport;
  readonly reply: (bytes: Uint8Array) => void;
}

/** It stands, or another hand had taken it away, which was mended or left. */
export type RedirectOutcome = "stands" | "mended" | "left";

/** The name server in one sandbox. */
export class SandboxDns {
  /** Of the namespace, to know it again. */
  readonly namespace: string;
  readonly #source: NameSource;
  readonly #path: string;
  readonly #listener: DnsListener;
  readonly #held = new Map<Question, NodeJS.Timeout>();
  #redirecting: Promise<RedirectOutcome> | undefined;
  #redirected = false;

  /** @throws NetError when the namespace is gone or its sockets cannot be bound. */
  constructor(source: NameSource, path: string) {
    this.#source = source;
    this.#path = path;
    using netns = Netns.open(path);
    this.namespace = netns.id;
    const before = redirectedPorts(netns);
    const udp = bindAgain((port) => netns.bindUdp(DNS_ADDRESS, { port, freeBind: true }), before?.udp);
    const tcp = bindAgain(
      (port) => netns.bindTcp(DNS_ADDRESS, { port, freeBind: true, reuseAddress: true }),
      before?.tcp,
    );
    this.#listener = new DnsListener(new DatagramSocket(udp), tcp, (bytes, transport, reply) =>
      this.#receive(bytes, transport, reply),
    );
  }

  /** Port 53 leads to us; made again when somebody flushed it and that may be repaired. @throws NetError */
  redirect(repair: boolean): Promise<RedirectOutcome> {
    this.#redirecting ??= this.#makeRedirect(repair).finally(() => (this.#redirecting = undefined));
    return this.#redirecting;
  }

  /** Rows came: questions that waited for them may have an answer now. */
  askAgain(): void {
    for (const question of [...this.#held.keys()]) this.#answer(question, this.#source.asker(this.#path));
  }

  close(): void {
    this.#listener.close();
    for (const timer of this.#held.values()) clearTimeout(timer);
    this.#held.clear();
  }

  async #makeRedirect(repair: boolean): Promise<RedirectOutcome> {
    const ports: DnsPorts | undefined = await this.#listener.ports();
    if (ports === undefined) return "stands";
    using netns = Netns.open(this.#path);
    const stands = dnsRedirectStands(netns, ports);
    const before = this.#redirected;
    if (!stands && before && !repair) return "left";
    if (!stands) await redirectDns(netns, ports);
    this.#redirected = true;
    return stands || !before ? "stands" : "mended";
  }

  #receive(bytes: Uint8Array, transport: Transport, reply: (bytes: Uint8Array) => void): void {
    this.#source.counters.queries++;
    if (isDnsResponse(bytes)) {
      this.#source.counters.malformed++;
      return;
    }
    let query: DnsQuery;
    try {
      query = decodeDnsQuery(bytes);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.#source.counters.malformed++;
      const answer = malformed(bytes);
      if (answer !== undefined) reply(answer);
      return;
    }
    this.#answer({ query, bytes, transport, reply }, this.#source.asker(this.#path));
  }

  #answer(question: Question, asker: Asker): void {
    const { query, transport, reply } = question;
    const outcome = resolve(query, asker, transport, this.#source.random, this.#source.now);
    if (outcome.type === "hold") {
      if (!this.#held.has(question)) this.#hold(keep(question));
      return;
    }
    this.#release(question);
    if (outcome.type === "reply") {
      this.#source.counters.answered++;
      return reply(outcome.bytes);
    }
    const kept = keep(question);
    this.#source.ask(this.#path, transport, kept.query, kept.bytes, (answer) =>
      reply("bytes" in answer ? answer.bytes : failure(kept.query, transport, answer.rcode)),
    );
  }

  /** Until the tables are here; then whoever is still unknown is taken for a stranger. */
  #hold(question: Question): void {
    const { query, transport, reply } = question;
    if (this.#held.size >= MAX_HELD) return reply(failure(query, transport, "servFail"));
    this.#source.counters.held++;
    const timer = setTimeout(() => {
      this.#release(question);
      // A name without a dot is more likely one of ours than one of the outside.
      if (!query.name.includes(".")) return reply(failure(query, transport, "servFail"));
      this.#answer(question, { ...this.#source.asker(this.#path), learning: false });
    }, HOLD_MS);
    this.#held.set(question, timer);
  }

  #release(question: Question): void {
    clearTimeout(this.#held.get(question));
    this.#held.delete(question);
  }
}

/** With bytes of its own: those of a datagram are overwritten by the next. */
function keep(question: Question): Question {
  const query = { ...question.query, question: question.query.question.slice() };
  return { ...question, query, bytes: question.bytes.slice() };
}

/** On the port of last time if it is free, on any other if not. */
function bindAgain(bind: (port: number) => number, port: number | undefined): number {
  try {
    return bind(port ?? 0);
  } catch (error) {
    if (port === undefined || errorCode(error) !== "EADDRINUSE") throw error;
    return bind(0);
  }
}
