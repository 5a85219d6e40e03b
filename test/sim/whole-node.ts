import { nodeId, nodeName, randomHex } from "../../src/base/id.ts";
import { ipToBytes } from "../../src/base/ip.ts";
import type { Random } from "../../src/base/random.ts";
import type { Instant } from "../../src/base/time.ts";
import type { GossipEffect, GossipInput } from "../../src/cluster/boundary.ts";
import { GossipNode } from "../../src/cluster/gossip-node.ts";
import { LAN, type SwimConfig } from "../../src/swim/config.ts";
import type { Member } from "../../src/swim/member.ts";
import { UNSEALED, type Sealing } from "../../src/wire/memberlist/seal.ts";
import type { NetworkConditions } from "./network.ts";
import type { SimEffect, SimInput, SimNode } from "./sim-node.ts";
import { hostAddress, World } from "./world.ts";

export interface WholeNodesOptions extends Partial<NetworkConditions> {
  readonly seed: number;
  readonly nodes: number;
  readonly sealing?: Sealing;
  /** Another per host and life. */
  readonly sealingOf?: (host: number, life: number) => Sealing;
  readonly config?: SwimConfig;
}

/** A world of what the agent runs: swim, networkdb and state, fed with bytes. Started and not yet joined. */
export function wholeNodes(options: WholeNodesOptions): World {
  const world = new World({
    ...options,
    make: (host, life, random, now) => new WholeNode(host, life, random, now, options),
  });
  world.startAll();
  return world;
}

/** The node behind a host of `wholeNodes`. */
export function gossipNodeOf(node: SimNode): GossipNode {
  if (!(node instanceof WholeNode)) throw new Error("not a whole gossip node");
  return node.gossip;
}

class WholeNode implements SimNode {
  readonly gossip: GossipNode;
  readonly #host: number;

  constructor(host: number, life: number, random: Random, now: Instant, options: WholeNodesOptions) {
    this.#host = host;
    const socket = hostAddress(host);
    let nonces = 0;
    this.gossip = new GossipNode(
      {
        // Fresh at every start, as the agent does it.
        name: nodeName(randomHex(random, 12)),
        facts: {
          id: nodeId(`id-of-host-${host}`),
          name: `host-${host}`,
          vteps: [socket.ip],
          capabilities: ["state"],
          version: "0",
        },
        address: { socket, bytes: ipToBytes(socket.ip) },
        compat: "docker",
        sealing: options.sealingOf?.(host, life) ?? options.sealing ?? UNSEALED,
        swim: options.config ?? LAN,
        state: {},
        random,
        nonce: () => {
          const nonce = new Uint8Array(12);
          new DataView(nonce.buffer).setUint32(0, ++nonces);
          new DataView(nonce.buffer).setUint32(4, host * 1_000 + life);
          return nonce;
        },
      },
      now,
    );
  }

  get name(): string {
    return this.gossip.name;
  }

  nextWakeup(): Instant | undefined {
    return this.gossip.nextWakeup();
  }

  members(): Iterable<Member> {
    return this.gossip.swim.members();
  }

  member(name: string): Member | undefined {
    return this.gossip.swim.member(name);
  }

  get aliveCount(): number {
    return this.gossip.swim.aliveCount;
  }

  queues(): Record<string, number> {
    return { broadcasts: this.gossip.swim.queueLength, departed: this.gossip.swim.departedCount };
  }

  get drops(): number {
    let drops = 0;
    for (const [reason, count] of this.gossip.drops) if (!/refused|unexpected/.test(reason)) drops += count;
    return drops;
  }

  get counters(): Readonly<Record<string, number>> {
    return this.gossip.swim.counters;
  }

  handle(input: SimInput, now: Instant): SimEffect[] {
    const gossip = this.#translate(input);
    return gossip === undefined ? [] : this.gossip.handle(gossip, now).flatMap(effectOf);
  }

  #translate(input: SimInput): GossipInput | undefined {
    switch (input.type) {
      case "start":
        return { type: "start", seed: this.#host === 0, unixSeconds: 1_700_000_000 };
      case "packet":
      case "stream-data":
        if (!(input.bytes instanceof Uint8Array)) throw new Error("a whole node takes real bytes only");
        return { ...input, bytes: input.bytes };
      case "join":
        return {
          type: "swim",
          input: { type: "join", request: 1, addresses: input.addresses, keepTrying: true },
        };
      case "leave":
        return { type: "leave", timeoutMs: 5_000 };
      case "loop-delay":
        return { type: "swim", input };
      case "gossip":
        return input.input;
      case "set-meta":
        // Facts are fixed for a life.
        return undefined;
      default:
        return input;
    }
  }
}

function effectOf(effect: GossipEffect): SimEffect[] {
  switch (effect.type) {
    case "send-packet":
    case "open-stream":
    case "write-stream":
    case "close-stream":
    case "member-joined":
    case "member-left":
    case "member-updated":
    case "member-suspected":
    case "member-recovered":
    case "member-conflict":
    case "left":
      return [effect];
    case "join-done":
      return [{ type: "join-done", joined: effect.joined }];
    default:
      return [];
  }
}
