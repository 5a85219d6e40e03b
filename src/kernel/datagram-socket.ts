import type { DatagramPort, DatagramReply } from "../transport/dns-server.ts";
import { errorCode, NetError } from "../base/error.ts";
import { native, type NativeDatagramSocket } from "./native.ts";

/** Datagrams taken and sent by one system call; the addon has room for as many. */
const BATCH = 32;
/** Longer ones are dropped: no query is, and we tell clients to send no more. */
const SLOT_BYTES = 4096;
const MAX_DATAGRAM_BYTES = 65_507;
/** Batches taken before everybody else's events have their turn. */
const ROUNDS = 4;

/** All sockets share them: a batch is handled and its answers are sent before anybody else receives. */
const received = new Uint8Array(BATCH * SLOT_BYTES);
const senders = new Uint32Array(3 * BATCH);
const outgoing = new Uint8Array(2 * 65_536);
const ends = new Uint32Array(BATCH);
const receivers = new Uint32Array(2 * BATCH);
const lateEnd = new Uint32Array(1);
const lateReceiver = new Uint32Array(2);

/**
 * UDP over IPv4, many datagrams a system call. What answers while its batch is being handled goes out together with
 * the others; later answers go at once.
 */
export class DatagramSocket implements DatagramPort {
  /** Datagrams that were too long. */
  oversized = 0;
  readonly #native: NativeDatagramSocket;
  #queued = 0;
  #batching = false;
  #closed = false;

  /** Takes over the descriptor of a bound socket. @throws NetError */
  constructor(fd: number) {
    try {
      this.#native = new native.DatagramSocket(fd);
    } catch (error) {
      throw new NetError(errorCode(error) ?? "EIO", "take over a datagram socket", { cause: error });
    }
  }

  get port(): number {
    return this.#native.port();
  }

  listen(onDatagram: (bytes: Uint8Array, reply: DatagramReply) => void): void {
    this.#native.watch(() => {
      for (let round = 0; round < ROUNDS && !this.#closed; round++) {
        if (this.#takeBatch(onDatagram) < BATCH) return;
      }
    });
  }

  close(): void {
    this.#closed = true;
    this.#native.close();
  }

  #takeBatch(onDatagram: (bytes: Uint8Array, reply: DatagramReply) => void): number {
    const count = this.#receive();
    this.#batching = true;
    try {
      for (let i = 0; i < count; i++) {
        const length = senders[3 * i] ?? 0;
        const address = senders[3 * i + 1] ?? 0;
        const port = senders[3 * i + 2] ?? 0;
        if (length > SLOT_BYTES) this.oversized++;
        else {
          const start = i * SLOT_BYTES;
          onDatagram(received.subarray(start, start + length), (answer) => this.#send(answer, address, port));
        }
      }
    } finally {
      this.#batching = false;
      this.#flush();
    }
    return count;
  }

  /** An error belongs to a datagram we sent earlier: its client is gone, and the next one is not concerned. */
  #receive(): number {
    try {
      return this.#native.receive(received, SLOT_BYTES, senders);
    } catch {
      return 0;
    }
  }

  #send(answer: Uint8Array, address: number, port: number): void {
    if (this.#closed || answer.length > MAX_DATAGRAM_BYTES) return;
    if (!this.#batching) {
      lateEnd[0] = answer.length;
      lateReceiver[0] = address;
      lateReceiver[1] = port;
      return this.#native.send(answer, lateEnd, lateReceiver, 1);
    }
    let start = this.#queued === 0 ? 0 : (ends[this.#queued - 1] ?? 0);
    if (this.#queued === BATCH || start + answer.length > outgoing.length) {
      this.#flush();
      start = 0;
    }
    outgoing.set(answer, start);
    ends[this.#queued] = start + answer.length;
    receivers[2 * this.#queued] = address;
    receivers[2 * this.#queued + 1] = port;
    this.#queued++;
  }

  #flush(): void {
    const count = this.#queued;
    this.#queued = 0;
    if (count > 0 && !this.#closed) this.#native.send(outgoing, ends, receivers, count);
  }
}
