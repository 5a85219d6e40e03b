import { randomFillSync } from "node:crypto";
import { NetError } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import { earlier, type Instant } from "../base/time.ts";
import type { GossipEffect, GossipInput, GossipNodeOptions } from "../cluster/boundary.ts";
import { GossipNode } from "../cluster/gossip-node.ts";
import type { StateRequest, StateResult } from "../state/request.ts";
import { Clock } from "../transport/clock.ts";
import { GossipTransport } from "../transport/gossip-transport.ts";
import type { Config } from "./config.ts";
import { Pulse } from "./pulse.ts";
import { Saver } from "./saver.ts";

/** Effects left for the agent: those that are neither the transport's nor an answer somebody waits for. */
export type AgentEffect = Exclude<
  GossipEffect,
  {
    type:
      | "send-packet"
      | "open-stream"
      | "write-stream"
      | "close-stream"
      | "join-result"
      | "join-done"
      | "answered"
      | "unanswered";
  }
>;

export interface JoinResult {
  readonly address: SocketAddr;
  /** Undefined when it worked. */
  readonly failure: string | undefined;
}

type StateRequester = {
  readonly resolve: (result: StateResult) => void;
  readonly reject: (error: NetError) => void;
};

/** Where definitions and addresses outlive the process. */
export interface StateFile {
  /**
   * Returns when all is safely on disk, with the reason why there will be no room for the next one, if so.
   * @throws NetError
   */
  save(snapshot: Uint8Array): NetError | undefined;
  /** Why nothing can be saved, as far as that can be known without trying. */
  check(): NetError | undefined;
}

/** For those who have nothing to remember. */
export const NO_STATE_FILE: StateFile = { save: () => undefined, check: () => undefined };

type Unnumbered<T> = T extends unknown ? Omit<T, "request"> : never;

/** A timer that comes this late says that this process, not its peers, was slow. */
const LOOP_DELAY_MS = 100;
/** The gossip node itself gives streams up after the TCP timeout. */
const STREAM_GRACE_MS = 5_000;
/** A write that nothing waits for takes in what comes meanwhile. */
const SAVE_DELAY_MS = 100;

/**
 * The loop that joins them: input → gossip node → effects → performers. Never re-entrant: an effect that causes
 * another input queues it.
 */
export class GossipLoop {
  readonly node: GossipNode;
  readonly transport: GossipTransport;
  /** The definitions and addresses of this node. */
  readonly saver: Saver;
  readonly #pulse: Pulse;
  /** Gossip's own timer was heard: a few times a second. */
  onWake: () => void = () => undefined;
  readonly #clock: Clock;
  readonly #onEffect: (effect: AgentEffect) => void;
  readonly #queue: GossipInput[] = [];
  #stepping = false;
  #nextRequest = 1;
  readonly #stateRequests = new Map<number, StateRequester>();
  readonly #joins = new Map<number, { results: JoinResult[]; resolve: (results: JoinResult[]) => void }>();
  readonly #calls = new Map<
    number,
    { resolve: (body: unknown) => void; reject: (error: NetError) => void }
  >();
  #expectedWake: Instant | undefined;

  private constructor(
    node: GossipNode,
    transport: GossipTransport,
    clock: Clock,
    onEffect: (effect: AgentEffect) => void,
    stateFile: StateFile,
  ) {
    this.node = node;
    this.transport = transport;
    this.#clock = clock;
    this.#onEffect = onEffect;
    this.#pulse = new Pulse(() => this.now());
    this.saver = new Saver(
      () => stateFile.save(node.state.snapshot(this.now())),
      SAVE_DELAY_MS,
      () => stateFile.check(),
    );
  }

  /**
   * Opens the sockets; nothing is sent before `start()`.
   * @throws NetError `listen`
   */
  static async open(
    config: Pick<Config, "bindAddr" | "gossipPort">,
    options: Omit<GossipNodeOptions, "nonce">,
    onEffect: (effect: AgentEffect) => void,
    stateFile: StateFile,
  ): Promise<GossipLoop> {
    // Sockets deliver before the loop exists; what comes then waits its turn.
    const early: GossipInput[] = [];
    let deliver = (input: GossipInput): void => void early.push(input);
    const transport = await GossipTransport.listen({
      bindAddr: config.bindAddr,
      port: config.gossipPort,
      streamIdleMs: options.swim.tcpTimeoutMs + STREAM_GRACE_MS,
      onInput: (input) => deliver(input),
    });
    const clock = new Clock(() => deliver({ type: "wake" }));
    const node = new GossipNode({ ...options, nonce: nonceSource() }, clock.now());
    const loop = new GossipLoop(node, transport, clock, onEffect, stateFile);
    deliver = (input) => loop.step(input);
    for (const input of early) loop.step(input);
    return loop;
  }

  now(): Instant {
    return this.#clock.now();
  }

  /** Runs about every `everyMs`, when gossip is awake. The result ends it. */
  every(everyMs: number, run: () => void): () => void {
    return this.#pulse.every(everyMs, run);
  }

  /** Feeds one input to the pure core and performs what it asks for. */
  step(input: GossipInput): void {
    this.#queue.push(input);
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
        if (next.type === "wake") this.#woken();
        this.#performAll(this.node.handle(next, this.now()));
      }
    } finally {
      this.#stepping = false;
    }
    this.#expectedWake = this.node.nextWakeup();
    this.#clock.wakeAt(earlier(this.#expectedWake, this.#pulse.latest()));
    this.#pulse.beat();
  }

  /** @throws NetError what `state/` refuses, with its reason and cure. */
  request(request: Unnumbered<StateRequest>): Promise<StateResult> {
    // Nothing is begun that could not be finished.
    const refusal = this.saver.refusal();
    if (refusal !== undefined) return Promise.reject(refusal);
    const id = this.#nextRequest++;
    return new Promise((resolve, reject) => {
      this.#stateRequests.set(id, { resolve, reject });
      this.step({ type: "state", input: { ...request, request: id } as StateRequest });
    });
  }

  /**
   * One result an address, once all have one or `timeoutMs` is over. With `keepTrying` an address is tried again, for
   * good, whenever nobody is seen there: a whole swarm may restart under new names and know nobody of us.
   */
  join(addresses: readonly SocketAddr[], timeoutMs: number, keepTrying = false): Promise<JoinResult[]> {
    const request = this.#nextRequest++;
    return new Promise((resolve) => {
      const timer = setTimeout(
        () => this.step({ type: "swim", input: { type: "cancel-join", request } }),
        timeoutMs,
      );
      this.#joins.set(request, {
        results: [],
        resolve: (results) => {
          clearTimeout(timer);
          resolve(results);
        },
      });
      this.step({ type: "swim", input: { type: "join", request, addresses, keepTrying } });
    });
  }

  /** Asks another netagent. @throws NetError `peer-silent` */
  ask(to: NodeName, body: unknown, timeoutMs: number): Promise<unknown> {
    const request = this.#nextRequest++;
    return new Promise((resolve, reject) => {
      this.#calls.set(request, { resolve, reject });
      this.step({ type: "ask-peer", to, request, body, timeoutMs });
    });
  }

  async close(): Promise<void> {
    this.#clock.close();
    this.saver.close();
    await this.transport.close();
  }

  #performAll(effects: readonly GossipEffect[]): void {
    let unsaved: NetError | undefined;
    for (const effect of effects) {
      if (effect.type === "state" && effect.effect.type === "persist")
        unsaved = this.saver.try() ? undefined : this.saver.failure;
      else if (unsaved === undefined) this.#perform(effect);
      else this.#withhold(effect, unsaved);
    }
  }

  /**
   * What had to be on disk first and is not. To the others it looks as if the network had lost it: they ask again, or
   * are told again by later gossip. Who asked here is refused.
   */
  #withhold(effect: GossipEffect, failure: NetError): void {
    switch (effect.type) {
      case "send-packet":
      case "write-stream":
        return;
      case "open-stream": {
        const { stream } = effect;
        const error = { code: failure.code, message: failure.message };
        return void this.#queue.push({ type: "stream-closed", stream, error });
      }
      case "state":
        if (effect.effect.type !== "done") break;
        return this.#takeRequest(effect.effect.request)?.reject(failure);
      default:
        break;
    }
    this.#perform(effect);
  }

  #takeRequest(id: number): StateRequester | undefined {
    const waiting = this.#stateRequests.get(id);
    this.#stateRequests.delete(id);
    return waiting;
  }

  #perform(effect: GossipEffect): void {
    switch (effect.type) {
      case "send-packet":
        return this.transport.send(effect.to, effect.bytes);
      case "open-stream":
        return this.transport.open(effect.stream, effect.to, effect.timeoutMs);
      case "write-stream":
        return this.transport.write(effect.stream, effect.bytes);
      case "close-stream":
        return this.transport.closeStream(effect.stream);
      case "join-result":
        this.#joins
          .get(effect.request)
          ?.results.push({ address: effect.address, failure: effect.failure?.detail });
        return;
      case "join-done": {
        const join = this.#joins.get(effect.request);
        this.#joins.delete(effect.request);
        return join?.resolve(join.results);
      }
      case "answered": {
        const call = this.#calls.get(effect.request);
        this.#calls.delete(effect.request);
        return call?.resolve(effect.body);
      }
      case "unanswered": {
        const call = this.#calls.get(effect.request);
        this.#calls.delete(effect.request);
        return call?.reject(new NetError("peer-silent", `${effect.from}: ${effect.reason}`));
      }
      case "state":
        switch (effect.effect.type) {
          case "persist-soon":
            return this.saver.soon();
          case "done":
            return this.#takeRequest(effect.effect.request)?.resolve(effect.effect.result);
          case "refused":
            return this.#takeRequest(effect.effect.request)?.reject(effect.effect.error);
          default:
            return this.#onEffect(effect);
        }
      default:
        return this.#onEffect(effect);
    }
  }

  /** Before the wake itself, so that our own health is known to be poor before anybody is accused. */
  #woken(): void {
    this.onWake();
    const lateMs = this.#expectedWake === undefined ? 0 : this.now() - this.#expectedWake;
    if (lateMs <= LOOP_DELAY_MS) return;
    const input: GossipInput = { type: "swim", input: { type: "loop-delay", ms: lateMs } };
    this.#performAll(this.node.handle(input, this.now()));
  }
}

/** 12 fresh random bytes a call, drawn from the system in blocks. */
function nonceSource(): () => Uint8Array {
  const block = new Uint8Array(12 * 256);
  let at = block.length;
  return () => {
    if (at === block.length) {
      randomFillSync(block);
      at = 0;
    }
    const nonce = block.slice(at, at + 12);
    at += 12;
    return nonce;
  };
}
