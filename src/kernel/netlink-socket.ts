/**
 * One netlink socket: sequence numbers, acknowledgements, dumps retried when the kernel interrupted them.
 *
 * Own code instead of the `netlink` package's socket: that one answers through the event loop at about 10,000
 * requests/s, aborts the process with thousands in flight, has no extended acknowledgement, and lives in the
 * namespace that is current when it is made (docs of version 0.3.0 and our measurement). Here a whole batch is
 * one synchronous call, because rtnetlink, nfnetlink and xfrm do their work inside sendmsg.
 */
import { constants } from "node:os";
import { getSystemErrorMap } from "node:util";
import { errorCode, NetError } from "../base/error.ts";
import type { ByteWriter } from "../base/bytes.ts";
import { finish, type Sliced } from "../base/sliced.ts";
import {
  decodeAck,
  decodeMessages,
  NETLINK_PROTOCOL,
  NetlinkBatch,
  NLM_F,
  NLMSG,
  type NetlinkMessage,
  type NetlinkProtocol,
} from "../wire/netlink/message.ts";
import { native, type NativeNetlinkSocket } from "./native.ts";
import { kernelError, type Netns } from "./netns.ts";

/** Why the kernel refused one message. */
export interface NetlinkFailure {
  /** Its place in the batch. */
  readonly index: number;
  /** errno's name: `EEXIST`. */
  readonly code: string;
  readonly errno: number;
  /** The kernel's extended-ack text, or else the errno's description. */
  readonly text: string;
}

/** One request: what goes behind the netlink header is written by `encode`. */
export interface NetlinkRequest {
  readonly type: number;
  /** NLM_F_* beside REQUEST, ACK and DUMP, which the socket sets. */
  readonly flags?: number;
  readonly encode: (out: ByteWriter) => void;
}

export interface NetlinkSocketOptions {
  /** Bytes the kernel may queue for us. Default 8 MiB: a notification flood of 70,000 entries fits. */
  readonly receiveBufferBytes?: number;
}

export interface Subscription {
  /** RTNLGRP_* numbers. */
  readonly groups: readonly number[];
  /** Also those of every namespace that has an id in the socket's. Default false. */
  readonly allNamespaces?: boolean;
  /** The payload is valid during the call only. */
  readonly onMessage: (message: NetlinkMessage) => void;
  /** Some were lost: whatever was learned from notifications must be read again. */
  readonly onOverrun: () => void;
}

/** Dumps the kernel interrupts again and again belong to tables that never rest: give up after this many. */
const DUMP_ATTEMPTS = 16;
/** The kernel answers inside the call; a silent second means that something is badly wrong. */
const ANSWER_TIMEOUT_MS = 5_000;
/** The receive buffer every socket shares: answers are decoded before the next receive. */
const receiveBuffer = new Uint8Array(256 * 1024);
/** Of a dump at a time: two of the kernel's datagrams, about a millisecond's worth. */
const DUMP_RECEIVE_BYTES = 64 * 1024;
const ERRNO_NAMES = new Map(Object.entries(constants.errno).map(([name, errno]) => [errno, name]));

export class NetlinkSocket implements Disposable {
  readonly protocol: NetlinkProtocol;
  readonly #socket: NativeNetlinkSocket;
  /** Namespace, for messages. */
  readonly #where: string;
  #sequence = 1;
  #portId = 0;
  #subscription: Subscription | undefined;

  /** Opens in `netns`, or where we are. The namespace may be closed afterwards. @throws NetError */
  constructor(protocol: NetlinkProtocol, netns?: Netns, options: NetlinkSocketOptions = {}) {
    this.protocol = protocol;
    this.#where = netns?.path ?? "the host";
    try {
      this.#socket = new native.NetlinkSocket(
        NETLINK_PROTOCOL[protocol],
        netns?.fd ?? -1,
        options.receiveBufferBytes ?? 8 * 1024 * 1024,
      );
    } catch (error) {
      throw kernelError(`open ${protocol} netlink socket in`, this.#where, error, "CAP_SYS_ADMIN");
    }
  }

  /**
   * Sends all messages in one datagram and returns the failed ones. Only the last is acknowledged when it
   * succeeds (failures always are), so success costs one answer for the whole batch.
   *
   * With `acknowledge: "as-flagged"` no flag is added: nftables transactions put NLM_F_ACK where they want it.
   * @throws NetError `ENOBUFS` when answers were lost: the outcome is then unknown, read back what is there.
   */
  transact(batch: NetlinkBatch, acknowledge: "last" | "as-flagged" = "last"): NetlinkFailure[] {
    if (batch.count === 0) return [];
    const first = this.#reserve(batch.count);
    const failures: NetlinkFailure[] = [];
    let acknowledged = acknowledge === "as-flagged";
    this.#discard();
    this.#send(batch.finish(first, acknowledge === "last"));
    // Everything that will ever come is queued by now; the time-out only guards the awaited last answer.
    while (true) {
      const bytes = this.#receive(acknowledged ? 0 : ANSWER_TIMEOUT_MS);
      if (bytes.length === 0) {
        if (acknowledged) return failures;
        throw new NetError(
          "ENOBUFS",
          `${this.protocol} netlink in ${this.#where}: the last answer is missing`,
        );
      }
      for (const message of decodeMessages(bytes)) {
        if (message.type !== NLMSG.error) continue;
        const ack = decodeAck(message);
        const index = (ack.sequence - first) >>> 0;
        if (index >= batch.count) continue; // an answer to an earlier, abandoned request
        if (index === batch.count - 1) acknowledged = true;
        if (ack.errno !== 0) failures.push({ index, ...failureOf(ack.errno, ack.text) });
      }
    }
  }

  /** One request that must succeed. `what` begins the error: `create bridge br0`. @throws NetError */
  request(what: string, request: NetlinkRequest): void {
    const batch = new NetlinkBatch(256);
    batch.add(request.type, request.flags ?? 0, request.encode);
    const [failure] = this.transact(batch);
    if (failure !== undefined) throw refusal(what, failure);
  }

  /** Notifications of changes made here carry it; 0 before the first `get`. */
  get portId(): number {
    return this.#portId;
  }

  /** One request with one answer (a GET without DUMP). @throws NetError */
  get<T>(what: string, request: NetlinkRequest, decode: (message: NetlinkMessage) => T): T {
    const batch = new NetlinkBatch(256);
    batch.add(request.type, request.flags ?? 0, request.encode);
    const sequence = this.#reserve(1);
    this.#discard();
    this.#send(batch.finish(sequence, false));
    while (true) {
      const bytes = this.#receive(ANSWER_TIMEOUT_MS);
      if (bytes.length === 0) throw new NetError("ETIMEDOUT", `${what}: the kernel does not answer`);
      for (const message of decodeMessages(bytes)) {
        if (message.sequence !== sequence) continue;
        this.#portId = message.portId;
        if (message.type === NLMSG.error) {
          const ack = decodeAck(message);
          throw refusal(what, { index: 0, ...failureOf(ack.errno, ack.text) });
        }
        return decode(message);
      }
    }
  }

  /**
   * All objects of a GET with NLM_F_DUMP. `decode` returns undefined for what is not wanted. A dump the kernel
   * marks as interrupted (the table changed under it) is thrown away and repeated. @throws NetError
   */
  dump<T>(what: string, request: NetlinkRequest, decode: (message: NetlinkMessage) => T | undefined): T[] {
    return finish(this.dumpSliced(what, request, decode));
  }

  /** The same, some hundred objects at a time. The socket must have nothing else to do until the end. @throws NetError */
  *dumpSliced<T>(
    what: string,
    request: NetlinkRequest,
    decode: (message: NetlinkMessage) => T | undefined,
  ): Sliced<T[]> {
    for (let attempt = 0; attempt < DUMP_ATTEMPTS; attempt++) {
      const objects = yield* this.#dumpOnce(what, request, decode);
      if (objects !== undefined) return objects;
    }
    throw new NetError("EINTR", `${what}: interrupted ${DUMP_ATTEMPTS} times, the table never rests`);
  }

  *#dumpOnce<T>(
    what: string,
    request: NetlinkRequest,
    decode: (message: NetlinkMessage) => T | undefined,
  ): Sliced<T[] | undefined> {
    const batch = new NetlinkBatch(256);
    batch.add(request.type, (request.flags ?? 0) | NLM_F.dump, request.encode);
    const sequence = this.#reserve(1);
    this.#discard();
    this.#send(batch.finish(sequence, false));
    const objects: T[] = [];
    let interrupted = false;
    while (true) {
      const bytes = this.#receive(ANSWER_TIMEOUT_MS, DUMP_RECEIVE_BYTES);
      if (bytes.length === 0) throw new NetError("ETIMEDOUT", `${what}: the kernel's dump does not end`);
      for (const message of decodeMessages(bytes)) {
        if (message.sequence !== sequence) continue;
        // Read the interruption to its end all the same, or the next dump finds this one still running.
        if ((message.flags & NLM_F.dumpInterrupted) !== 0) interrupted = true;
        if (message.type === NLMSG.done || message.type === NLMSG.error) {
          const ack = decodeAck(message);
          if (ack.errno === constants.errno.EINTR) return undefined;
          if (ack.errno !== 0) throw refusal(what, { index: 0, ...failureOf(ack.errno, ack.text) });
          return interrupted ? undefined : objects;
        }
        if (interrupted) continue;
        const object = decode(message);
        if (object !== undefined) objects.push(object);
      }
      yield;
    }
  }

  /** Notifications of multicast groups, from the event loop or from `pump`. Once per socket. @throws NetError */
  subscribe(subscription: Subscription): void {
    try {
      if (subscription.allNamespaces === true) this.#socket.listenAllNamespaces();
      for (const group of subscription.groups) this.#socket.setMembership(group, true);
      this.#socket.watch(() => this.pump());
    } catch (error) {
      throw kernelError(`subscribe to ${this.protocol} netlink in`, this.#where, error);
    }
    this.#subscription = subscription;
  }

  /** Delivers the notifications that are queued now; after a request of ours its echo is among them. */
  pump(): void {
    const subscription = this.#subscription;
    if (subscription === undefined) return;
    while (true) {
      let bytes: Uint8Array;
      try {
        bytes = this.#receive(0);
      } catch (error) {
        if (errorCode(error) !== "ENOBUFS") throw error;
        subscription.onOverrun();
        continue;
      }
      if (bytes.length === 0) return;
      for (const message of decodeMessages(bytes)) subscription.onMessage(message);
    }
  }

  /**
   * Runs `action` deaf to the subscribed groups: the echo of a bulk write would overrun the queue, and hearing
   * it is as dear as writing. What others do meanwhile is not heard either; the sweep finds it.
   */
  withoutNotifications(action: () => void): void {
    this.listen(false);
    try {
      action();
    } finally {
      this.listen(true);
    }
  }

  /** Whether the subscribed groups are heard; they are from the subscription on. */
  listen(on: boolean): void {
    for (const group of this.#subscription?.groups ?? []) this.#socket.setMembership(group, on);
  }

  close(): void {
    this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #reserve(count: number): number {
    const first = this.#sequence;
    // 0 is the sequence number of notifications.
    this.#sequence = first + count > 0x7fffffff ? 1 : first + count;
    return first;
  }

  /** An answer to a request that was given up earlier must not fill the queue of this one. */
  #discard(): void {
    try {
      while (this.#receive(0).length > 0);
    } catch (error) {
      if (errorCode(error) !== "ENOBUFS") throw error;
    }
  }

  #send(bytes: Uint8Array): void {
    try {
      this.#socket.send(bytes);
    } catch (error) {
      throw kernelError(`send to ${this.protocol} netlink in`, this.#where, error);
    }
  }

  /** A view into the shared buffer, valid until the next receive of any socket. */
  #receive(timeoutMs: number, maxBytes = receiveBuffer.length): Uint8Array {
    try {
      const buffer = receiveBuffer.subarray(0, maxBytes);
      return buffer.subarray(0, this.#socket.receive(buffer, timeoutMs));
    } catch (error) {
      throw kernelError(`receive from ${this.protocol} netlink in`, this.#where, error);
    }
  }
}

/** `WHAT: CODE (kernel's text; netagent needs CAP_NET_ADMIN)`. */
export function refusal(what: string, failure: NetlinkFailure): NetError {
  const denied = failure.code === "EPERM" || failure.code === "EACCES";
  const detail = denied ? "netagent needs CAP_NET_ADMIN" : failure.text;
  return new NetError(failure.code, `${what}: ${failure.code}${detail === "" ? "" : ` (${detail})`}`);
}

function failureOf(errno: number, text: string | undefined): Omit<NetlinkFailure, "index"> {
  return { errno, code: ERRNO_NAMES.get(errno) ?? `E${errno}`, text: text ?? describe(errno) };
}

function describe(errno: number): string {
  return getSystemErrorMap().get(-errno)?.[1] ?? "";
}
