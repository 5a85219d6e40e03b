import { formatSocketAddr, type SocketAddr } from "../base/ip.ts";
import type { Instant } from "../base/time.ts";
import type { Ping } from "../wire/memberlist/message.ts";
import type { Claims } from "./claims.ts";
import type { Context } from "./context.ts";
import type { Exchanges } from "./exchanges.ts";
import { understandsCrc } from "./member.ts";
import { accusation, type Reconnector } from "./reconnect.ts";
import { sourceOf } from "./relay.ts";

const NO_PAYLOAD = new Uint8Array(0);

/**
 * Answers to those who speak to us: pings are acknowledged (memberlist net.go, handlePing).
 *
 * Beyond memberlist: a speaker we hold dead or suspect hears so and can refute; one we do not know, or thought gone,
 * is asked for its state; one that accuses us hears our refutation directly.
 */
export class Answers {
  readonly #context: Context;
  readonly #claims: Claims;
  readonly #exchanges: Exchanges;
  readonly #reconnector: Reconnector;

  constructor(context: Context, claims: Claims, exchanges: Exchanges, reconnector: Reconnector) {
    this.#context = context;
    this.#claims = claims;
    this.#exchanges = exchanges;
    this.#reconnector = reconnector;
  }

  ping(ping: Ping, from: SocketAddr, now: Instant): void {
    if (!this.#namesUs(ping) || this.#context.isNameless(ping.sourceNode)) return;
    const to = sourceOf(ping, from);
    const place = formatSocketAddr(to);
    this.#context.send(to, place, { type: "ack", seqNo: ping.seqNo, payload: NO_PAYLOAD });
    this.heardFrom(ping.sourceNode, place, now);
    this.#introduced(ping, to, from, now);
  }

  streamPing(stream: number, ping: Ping): void {
    if (this.#namesUs(ping)) this.#context.emit({ type: "stream-ack", stream, seqNo: ping.seqNo });
    else this.#context.emit({ type: "close-stream", stream });
  }

  /** Member `name` spoke from `place`, so it lives. If we think otherwise it should hear that, and refute. */
  heardFrom(name: string, place: string, now: Instant): void {
    if (!this.#seeksOthers()) return;
    const member = this.#context.members.get(name);
    if (member !== undefined && member.identity.place !== place) return;
    if (member?.state === "suspect" || member?.state === "dead") {
      this.#context.sendBare(member.address, [accusation(this.#context, member)], understandsCrc(member));
    }
    const departed = member?.present === true ? undefined : this.#reconnector.signOfLife(place, now);
    if (departed !== undefined && departed.name === name) this.#exchanges.reconnect(departed.address);
  }

  /** Whoever brings an accusation of us hears the refutation from us, new or old, without waiting for gossip. */
  accused(from: SocketAddr): void {
    if (this.#context.config.verifyMs === 0 || this.#claims.leaving) return;
    this.#context.count("claims.reminders");
    this.#context.sendBare(from, [this.#claims.selfClaim()], false);
  }

  #introduced(ping: Ping, source: SocketAddr, from: SocketAddr, now: Instant): void {
    const { self, members } = this.#context;
    if (!this.#seeksOthers() || ping.node !== self.name) return;
    if (ping.sourceNode === "" || members.get(ping.sourceNode) !== undefined || source.ip !== from.ip) return;
    this.#exchanges.stranger(ping.sourceNode, source, now);
  }

  #seeksOthers(): boolean {
    return this.#context.config.reconnectIntervalMs > 0 && !this.#claims.leaving;
  }

  #namesUs(ping: Ping): boolean {
    if (ping.node === "" || ping.node === this.#context.self.name) return true;
    this.#context.count("ping.misdirected");
    return false;
  }
}
