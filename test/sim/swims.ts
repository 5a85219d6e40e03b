import { bytesEqual } from "../../src/base/bytes.ts";
import { ipToBytes } from "../../src/base/ip.ts";
import { LAN, type SwimConfig } from "../../src/swim/config.ts";
import { makeIdentity, type Description, type Identity, type NameNumbers } from "../../src/swim/member.ts";
import type { NetworkConditions } from "./network.ts";
import { byReference, REAL_BYTES, SwimNode, type Carrier } from "./swim-node.ts";
import { GOSSIP_PORT, hostAddress, World } from "./world.ts";

export interface SwimsOptions extends Partial<NetworkConditions> {
  readonly seed: number;
  readonly nodes: number;
  readonly config?: SwimConfig;
  /** Of the hosts' addresses; default IPv4. */
  readonly family?: 4 | 6;
  /** What each host announces; default nothing. */
  readonly metaOf?: (host: number) => Uint8Array;
  /** Another setting per host, for mixed clusters. */
  readonly configOf?: (host: number) => SwimConfig;
  /** A name survives restarts, as serf's do; ours are fresh each time. */
  readonly lastingNames?: boolean;
  /** Hands messages over instead of encoding them. */
  readonly byReference?: boolean;
}

const VSN = Uint8Array.of(1, 5, 2, 0, 0, 0);

/** A world whose processes are a `Swim` each, started and not yet joined. */
export function swims(options: SwimsOptions): World {
  const carrier: Carrier = options.byReference === true ? byReference() : REAL_BYTES;
  const identify = options.byReference === true ? identityPool() : undefined;
  const numbers = options.byReference === true ? commonNumbers() : undefined;
  const world = new World({
    ...options,
    make(host, life, random) {
      const name = `node-${String(host).padStart(4, "0")}${options.lastingNames === true ? "" : `-${life}`}`;
      return new SwimNode(
        {
          name,
          address: { addr: ipToBytes(hostAddress(host, options.family).ip), port: GOSSIP_PORT },
          meta: options.metaOf?.(host) ?? new Uint8Array(0),
          vsn: VSN,
          config: options.configOf?.(host) ?? options.config ?? LAN,
          random,
          userBroadcasts: { length: 0, take: () => [] },
          ...(identify === undefined ? {} : { identify }),
          ...(numbers === undefined ? {} : { numbers }),
        },
        carrier,
      );
    },
  });
  world.startAll();
  return world;
}

/** The same, all joined through the first and agreed. */
export function cluster(options: SwimsOptions): World {
  const world = swims(options);
  world.runFor(1_500);
  for (let index = 1; index < options.nodes; index++) world.join(index, 0);
  if (world.runUntil(() => world.agree(), 120_000, 50) === undefined) {
    throw new Error(`no agreement after joining: ${world.disagreement()}`);
  }
  return world;
}

/** One number per name for all nodes; never given to another, as others may still use it. */
function commonNumbers(): NameNumbers {
  const numbers = new Map<string, number>();
  return {
    get: (name) => numbers.get(name),
    add(name) {
      const number = numbers.get(name) ?? numbers.size;
      numbers.set(name, number);
      return number;
    },
    remove: () => undefined,
  };
}

/** One object per member for all nodes that know the same of it. */
function identityPool(): (description: Description) => Identity {
  const pool = new Map<string, Identity[]>();
  return (description) => {
    const known = pool.get(description.name) ?? [];
    for (const identity of known) {
      if (
        identity.port === description.port &&
        bytesEqual(identity.addr, description.addr) &&
        bytesEqual(identity.meta, description.meta) &&
        bytesEqual(identity.vsn, description.vsn)
      )
        return identity;
    }
    const identity = makeIdentity(description);
    pool.set(identity.name, [...known, identity]);
    return identity;
  };
}
