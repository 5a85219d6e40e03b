import { ipFromBytes, type SocketAddr } from "../base/ip.ts";
import { formatSocketAddr } from "../base/ip.ts";
import { Deadlines } from "../base/deadlines.ts";
import { after, type Instant } from "../base/time.ts";
import type { IndirectPing } from "../wire/memberlist/message.ts";
import type { Context } from "./context.ts";

interface Relayed {
  readonly requester: SocketAddr;
  readonly seqNo: number;
  readonly nack: boolean;
}

const NO_PAYLOAD = new Uint8Array(0);

/** Pings on behalf of others (memberlist net.go, handleIndirectPing). Holds at most `maxPending`; more are dropped. */
export class Relay {
  readonly #context: Context;
  readonly #pending = new Map<number, Relayed>();
  readonly #deadlines = new Deadlines<number>();

  constructor(context: Context) {
    this.#context = context;
  }

  request(request: IndirectPing, from: SocketAddr, now: Instant): void {
    const { config, self } = this.#context;
    if (this.#context.isNameless(request.node) || this.#context.isNameless(request.sourceNode)) return;
    const target = socketAddr(request.target, request.port === 0 ? self.port : request.port);
    if (target === undefined || this.#pending.size >= config.maxPending) {
      this.#context.count("relay.refused");
      return;
    }
    const seqNo = this.#context.nextSeqNo();
    const requester = sourceOf(request, from);
    this.#pending.set(seqNo, { requester, seqNo: request.seqNo, nack: request.nack });
    this.#deadlines.set(seqNo, after(now, config.probeTimeoutMs));
    this.#context.send(target, formatSocketAddr(target), this.#context.ping(seqNo, request.node));
    this.#context.count("relay.requests");
  }

  /** Whether the ack was for a relayed ping. */
  ack(seqNo: number): boolean {
    const relayed = this.#pending.get(seqNo);
    if (relayed === undefined) return false;
    this.#pending.delete(seqNo);
    this.#deadlines.delete(seqNo);
    this.#answer(relayed, { type: "ack", seqNo: relayed.seqNo, payload: NO_PAYLOAD });
    return true;
  }

  nextWakeup(): Instant | undefined {
    return this.#deadlines.earliest();
  }

  wake(now: Instant): void {
    for (const seqNo of this.#deadlines.takeDue(now)) {
      const relayed = this.#pending.get(seqNo);
      this.#pending.delete(seqNo);
      if (relayed?.nack === true) this.#answer(relayed, { type: "nack", seqNo: relayed.seqNo });
    }
  }

  #answer(relayed: Relayed, message: Parameters<Context["send"]>[2]): void {
    this.#context.send(relayed.requester, formatSocketAddr(relayed.requester), message);
  }
}

/** Where an answer goes: what the sender gave as its address, else where the packet came from. */
export function sourceOf(
  message: { readonly sourceAddr: Uint8Array; readonly sourcePort: number },
  from: SocketAddr,
): SocketAddr {
  if (message.sourceAddr.length === 0 || message.sourcePort === 0) return from;
  return socketAddr(message.sourceAddr, message.sourcePort) ?? from;
}

/** Undefined when the bytes are no address. */
export function socketAddr(addr: Uint8Array, port: number): SocketAddr | undefined {
  if (addr.length !== 4 && addr.length !== 16) return undefined;
  return { ip: ipFromBytes(addr), port };
}
