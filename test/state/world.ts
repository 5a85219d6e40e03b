import assert from "node:assert/strict";
import { errorText } from "../../src/base/error.ts";
import { nodeId, nodeName, randomBase36, randomHex, type NodeId, type NodeName } from "../../src/base/id.ts";
import { seededRandom, type Random } from "../../src/base/random.ts";
import { after, instant, type Instant } from "../../src/base/time.ts";
import type { StateEffect, StateInput } from "../../src/state/effect.ts";
import type { StateRequest, StateResult } from "../../src/state/request.ts";
import type { StateConfig } from "../../src/state/config.ts";
import { State } from "../../src/state/state.ts";

export interface WorldOptions {
  readonly seed: number;
  readonly nodes: number;
  /** Of packets, 0 … 1. Streams arrive or fail. */
  readonly loss?: number;
  readonly config?: Partial<StateConfig>;
  /** All know each other from the start. Default true. */
  readonly joined?: boolean;
}

type Unnumbered<T> = T extends unknown ? Omit<T, "request"> : never;
export type WorldRequest = Unnumbered<StateRequest>;

/**
 * N `State` machines on a virtual clock with a disk each: effects after a `persist` happen only when the save is
 * done, a while later; a crash in between loses it, and everything else in memory.
 */
export class World {
  readonly random: Random;
  readonly nodes: WorldNode[] = [];
  readonly options: WorldOptions;
  now: Instant = instant(0);
  packets = 0;
  streams = 0;
  streamBytes = 0;
  #agenda: { readonly at: Instant; readonly order: number; readonly action: () => void }[] = [];
  #order = 0;
  #sides = new Map<NodeId, number>();

  constructor(options: WorldOptions) {
    this.options = options;
    this.random = seededRandom(options.seed);
    for (let i = 0; i < options.nodes; i++) this.add(i === 0);
    if (options.joined !== false) this.see();
  }

  add(seed = false): WorldNode {
    const node = new WorldNode(this, nodeId(randomBase36(this.random)), `node${this.nodes.length + 1}`, seed);
    this.nodes.push(node);
    node.start(seed);
    return node;
  }

  /** A new node on the same side of any partition. */
  addBeside(other: WorldNode): WorldNode {
    const node = this.add();
    this.#sides.set(node.id, this.#sides.get(other.id) ?? 0);
    this.see();
    return node;
  }

  get up(): WorldNode[] {
    return this.nodes.filter((node) => node.isUp);
  }

  /** Membership catches up with who can reach whom. */
  see(): void {
    for (const node of this.up) for (const other of this.nodes) if (node !== other) node.sees(other);
  }

  partition(nodes: readonly WorldNode[], side = 1): void {
    for (const node of nodes) this.#sides.set(node.id, side);
    this.see();
  }

  heal(): void {
    this.#sides.clear();
    this.see();
  }

  reachable(a: WorldNode, b: WorldNode): boolean {
    return a.isUp && b.isUp && (this.#sides.get(a.id) ?? 0) === (this.#sides.get(b.id) ?? 0);
  }

  schedule(delayMs: number, action: () => void): void {
    this.#agenda.push({ at: after(this.now, delayMs), order: this.#order++, action });
    this.#agenda.sort((a, b) => a.at - b.at || a.order - b.order);
  }

  run(milliseconds: number): void {
    const end = after(this.now, milliseconds);
    for (;;) {
      const next = this.#agenda[0];
      if (next === undefined || next.at > end) break;
      this.#agenda.shift();
      this.now = next.at;
      next.action();
    }
    this.now = end;
  }

  /** How long it took, in milliseconds, looking every 50. */
  runUntil(condition: () => boolean, withinMs: number): number {
    const start = this.now;
    while (this.now - start < withinMs) {
      if (condition()) return this.now - start;
      this.run(50);
    }
    assert.ok(condition(), `not reached within ${withinMs} ms`);
    return withinMs;
  }

  /** All running nodes know the same definitions and rings. */
  agree(): boolean {
    const views = this.up.map((node) => node.view());
    return views.every((view) => view === views[0]);
  }
}

/** An outcome, once it is there. */
export interface Answer {
  result?: StateResult;
  error?: { readonly code: string; readonly message: string };
}

export class WorldNode {
  readonly id: NodeId;
  readonly shown: string;
  readonly conflicts: string[] = [];
  readonly changes: string[] = [];
  isUp = false;
  name: NodeName = nodeName("none");
  state!: State;
  disk: Uint8Array | undefined;
  readonly #world: World;
  readonly #seen = new Map<NodeId, NodeName>();
  #answers = new Map<number, Answer>();
  #nextRequest = 0;
  #queue: StateEffect[] = [];
  #saving = false;
  #wakeAt: Instant | undefined;
  /** Counts starts: what an earlier life scheduled is void. */
  #life = 0;

  constructor(world: World, id: NodeId, shown: string, _seed: boolean) {
    this.#world = world;
    this.id = id;
    this.shown = shown;
  }

  start(seed = false): void {
    const { random, options, now } = this.#world;
    this.#life++;
    this.isUp = true;
    this.name = nodeName(randomHex(random, 12));
    this.#seen.clear();
    this.#queue = [];
    this.#saving = false;
    this.#wakeAt = undefined;
    this.#answers = new Map();
    this.state = new State(
      {
        node: this.id,
        memberName: this.name,
        random,
        ...(this.disk === undefined ? {} : { snapshot: this.disk }),
        ...(options.config === undefined ? {} : { config: options.config }),
      },
      now,
    );
    this.handle({ type: "start", name: this.shown, seed, unixSeconds: 1_700_000_000 + now / 1000 });
  }

  /** As `kill -9`: what is not on disk is lost. */
  crash(): void {
    this.isUp = false;
    this.#life++;
    for (const other of this.#world.up) other.sees(this);
  }

  restart(): void {
    this.start();
    for (const other of this.#world.nodes) {
      if (other === this) continue;
      this.sees(other);
      if (other.isUp) other.sees(this);
    }
  }

  sees(other: WorldNode): void {
    const known = this.#seen.get(other.id);
    const isThere = this.#world.reachable(this, other);
    if (known !== undefined && (!isThere || known !== other.name)) {
      this.#seen.delete(other.id);
      this.handle({ type: "member-left", name: known });
    }
    if (!isThere || this.#seen.has(other.id)) return;
    this.#seen.set(other.id, other.name);
    this.handle({ type: "member-joined", compare: true, name: other.name, id: other.id, shown: other.shown });
  }

  ask(request: WorldRequest): Answer {
    const id = ++this.#nextRequest;
    const answer: Answer = {};
    this.#answers.set(id, answer);
    this.handle({ ...request, request: id } as StateRequest);
    return answer;
  }

  /** The result, letting time pass. */
  get(request: WorldRequest): StateResult {
    const answer = this.ask(request);
    this.#world.runUntil(() => answer.result !== undefined || answer.error !== undefined, 20_000);
    assert.ok(answer.result, answer.error?.message);
    return answer.result;
  }

  /** The error code and message. */
  refuse(request: WorldRequest): string {
    const answer = this.ask(request);
    this.#world.runUntil(() => answer.result !== undefined || answer.error !== undefined, 20_000);
    assert.ok(answer.error, `done: ${JSON.stringify(answer.result)}`);
    return `${answer.error.code}: ${answer.error.message}`;
  }

  handle(input: StateInput): void {
    if (!this.isUp) return;
    this.#queue.push(...this.state.handle(input, this.#world.now));
    this.#perform();
    this.#arm();
  }

  /** Definitions and rings as one text. */
  view(): string {
    const networks = this.state.networks().map(({ id, name, vni }) => {
      const owners = this.state.ringUse(id)?.owners.map(({ node, size }) => `${node}:${size}`);
      return `${id} ${name} ${vni} ${owners?.sort().join(",")}`;
    });
    return JSON.stringify([networks, this.state.services(), this.state.nodes()]);
  }

  #perform(): void {
    while (!this.#saving) {
      const effect = this.#queue.shift();
      if (effect === undefined) return;
      this.#performOne(effect);
    }
  }

  #performOne(effect: StateEffect): void {
    const world = this.#world;
    switch (effect.type) {
      case "persist": {
        const snapshot = this.state.snapshot(world.now);
        this.#saving = true;
        this.#later(world.random.next() * 20, () => {
          this.disk = snapshot;
          this.#saving = false;
          this.#perform();
        });
        return;
      }
      case "persist-soon":
        this.#later(world.random.next() * 100, () => (this.disk = this.state.snapshot(world.now)));
        return;
      case "send-packet":
        assert.ok(effect.payload.length <= 1100, `a packet of ${effect.payload.length} bytes`);
        world.packets++;
        if (world.random.next() < (world.options.loss ?? 0)) return;
        this.#deliver(effect.to, effect.payload, "packet");
        return;
      case "send-stream":
        assert.ok(effect.payload.length < 1024 * 1024, `a stream of ${effect.payload.length} bytes`);
        world.streams++;
        world.streamBytes += effect.payload.length;
        this.#deliver(effect.to, effect.payload, "stream");
        return;
      case "definitions-changed":
        for (const { kind, id } of effect.changes) this.changes.push(`${kind}/${id}`);
        return;
      case "ring-changed":
        return;
      case "conflict":
        this.conflicts.push(effect.conflict.type);
        return;
      case "done":
      case "refused": {
        const answer = this.#answers.get(effect.request);
        assert.ok(answer, `request ${effect.request} is answered twice`);
        this.#answers.delete(effect.request);
        if (effect.type === "done") answer.result = effect.result;
        else answer.error = { code: effect.error.code, message: errorText(effect.error) };
        return;
      }
    }
  }

  #deliver(to: NodeName, bytes: Uint8Array, via: "packet" | "stream"): void {
    const world = this.#world;
    world.schedule(0.2 + world.random.next() * 20, () => {
      const target = world.up.find((node) => node.name === to);
      if (target !== undefined && world.reachable(this, target))
        target.handle({ type: "user-message", bytes, via });
      else if (via === "stream") this.handle({ type: "stream-failed", to });
    });
  }

  #arm(): void {
    const next = this.state.nextWakeup();
    if (
      next === undefined ||
      (this.#wakeAt !== undefined && this.#wakeAt <= next && this.#wakeAt > this.#world.now)
    )
      return;
    this.#wakeAt = next;
    this.#later(Math.max(0.1, next - this.#world.now), () => {
      if (this.#wakeAt !== next) return;
      this.#wakeAt = undefined;
      this.handle({ type: "wake" });
    });
  }

  #later(delayMs: number, action: () => void): void {
    const life = this.#life;
    this.#world.schedule(delayMs, () => {
      if (this.#life === life) action();
    });
  }
}

/** Runs `body` with `count` seeds, or with `SEED` alone; a failure names its seed. */
export function forEachSeed(count: number, body: (seed: number) => void): void {
  const only = process.env["SEED"];
  const seeds = only === undefined ? Array.from({ length: count }, (_, seed) => seed + 1) : [Number(only)];
  for (const seed of seeds) {
    try {
      body(seed);
    } catch (error) {
      throw new Error(`SEED=${seed} npm test: ${errorText(error)}`, { cause: error });
    }
  }
}
