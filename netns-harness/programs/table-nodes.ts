/**
 * A few gossip nodes with real sockets on loopback ports and what their tables hold, told what to do over node's IPC
 * channel: one of the processes of `npm run bench -- tables`.
 */

import { readFileSync } from "node:fs";
import { GossipLoop, NO_STATE_FILE, type AgentEffect } from "../../src/agent/gossip-loop.ts";
import { unreachable } from "../../src/base/assert.ts";
import { utf8 } from "../../src/base/bytes.ts";
import { networkId, nodeId, nodeName, randomBase36, randomHex } from "../../src/base/id.ts";
import { ipToBytes, parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { LAN } from "../../src/swim/config.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { encodeEndpointRecord, ENDPOINT_TABLE } from "../../src/wire/networkdb/records.ts";

export type Command =
  /** Nodes on these ports, strangers to each other. */
  | { readonly do: "open"; readonly ports: readonly number[] }
  | { readonly do: "join"; readonly ports: readonly number[]; readonly seed: number }
  | { readonly do: "attach"; readonly ports: readonly number[] }
  /** Rows `from` to `to` of each node, in version `generation`. */
  | {
      readonly do: "write" | "delete";
      readonly ports: readonly number[];
      readonly from: number;
      readonly to: number;
      readonly generation: number;
    }
  /** A row that everybody times. */
  | { readonly do: "track"; readonly port: number; readonly version: number }
  | { readonly do: "report" }
  | { readonly do: "weigh" };

export type NodeReport = {
  readonly port: number;
  readonly members: number;
  readonly participants: number;
  readonly inSync: boolean;
  readonly live: number;
  /** Rows in each generation. */
  readonly generations: readonly number[];
  /** When (ms since 1970) each version of the tracked row got here. */
  readonly tracked: readonly number[];
};

export type Report = {
  readonly nodes: readonly NodeReport[];
  readonly cpuMs: number;
  /** Live memory after a collection; only after `weigh`. */
  readonly memoryBytes: number;
  /** The largest message of any kind that a node handed to a socket. */
  readonly largestBytes: number;
  /** What has crossed `lo`, by whomever. */
  readonly trafficBytes: number;
};

const LOOPBACK = parseIp("127.0.0.1");
const NETWORK = networkId("jqtwixqzkqku2e0hbtmon5g04");
const TRACKED = "tracked";
const JOIN_PATIENCE_MS = 60_000;

class TableNode {
  readonly port: number;
  readonly loop: GossipLoop;
  inSync = false;
  live = 0;
  readonly generations: number[] = [];
  readonly tracked: number[] = [];

  private constructor(port: number, loop: GossipLoop) {
    this.port = port;
    this.loop = loop;
  }

  static async open(port: number): Promise<TableNode> {
    const random = seededRandom(port);
    let node: TableNode | undefined;
    const loop = await GossipLoop.open(
      { bindAddr: LOOPBACK, gossipPort: port },
      {
        name: nodeName(randomHex(random, 12)),
        facts: {
          id: nodeId(randomBase36(random)),
          name: `node-${port}`,
          vteps: [LOOPBACK],
          capabilities: ["state"],
          version: "0",
        },
        address: { socket: { ip: LOOPBACK, port }, bytes: ipToBytes(LOOPBACK) },
        compat: "docker",
        sealing: UNSEALED,
        swim: LAN,
        state: {},
        random,
      },
      (effect) => node?.observe(effect),
      NO_STATE_FILE,
    );
    node = new TableNode(port, loop);
    loop.step({ type: "start", seed: false, unixSeconds: Math.floor(Date.now() / 1_000) });
    return node;
  }

  observe(effect: AgentEffect): void {
    if (effect.type === "network-in-sync") this.inSync = true;
    if (effect.type !== "row-changed") return;
    const { key, previous, current } = effect;
    if (key === TRACKED) {
      if (current !== undefined) this.tracked[current[0] ?? 0] = performance.timeOrigin + performance.now();
      return;
    }
    this.#count(previous, -1);
    this.#count(current, 1);
  }

  write(index: number, generation: number): void {
    const value = encodeEndpointRecord({
      // The generation is where `#count` finds it, behind tag and length.
      name: `${String.fromCharCode(65 + generation)}.${index}.u4tqsdyfs6uy654z18hspcldn`,
      serviceName: "web",
      serviceId: "hkhsyvz5pdv0mi2i16ocrp33z",
      virtualIp: undefined,
      endpointIp: parseIp(`10.${(index >> 16) & 255}.${(index >> 8) & 255}.${index & 255}`),
      ingressPorts: [],
      aliases: [],
      taskAliases: [this.#key(index).slice(0, 12)],
      serviceDisabled: false,
    });
    this.#networkDb({ type: "put-row", key: this.#key(index), value });
  }

  delete(index: number): void {
    this.#networkDb({ type: "delete-row", key: this.#key(index) });
  }

  track(version: number): void {
    this.#networkDb({ type: "put-row", key: TRACKED, value: Uint8Array.of(version, ...utf8("tracked")) });
  }

  attach(): void {
    this.loop.step({ type: "networkdb", input: { type: "join-network", network: NETWORK } });
  }

  report(): NodeReport {
    const { node } = this.loop;
    return {
      port: this.port,
      members: node.swim.aliveCount,
      participants: node.networkDb.participants(NETWORK).length,
      inSync: this.inSync,
      live: this.live,
      generations: [...this.generations],
      tracked: [...this.tracked],
    };
  }

  #count(value: Uint8Array | undefined, by: number): void {
    if (value === undefined) return;
    this.live += by;
    const generation = (value[2] ?? 0) - 65;
    this.generations[generation] = (this.generations[generation] ?? 0) + by;
  }

  /** 64 digits, as endpoint ids have. */
  #key(index: number): string {
    return `${this.port.toString(16)}${index.toString(16).padStart(8, "0")}`.padEnd(64, "5");
  }

  #networkDb(
    input: { readonly key: string } & (
      { readonly type: "put-row"; readonly value: Uint8Array } | { readonly type: "delete-row" }
    ),
  ): void {
    const row = { network: NETWORK, table: ENDPOINT_TABLE };
    this.loop.step({ type: "networkdb", input: { ...row, ...input } });
  }
}

const nodes = new Map<number, TableNode>();
let largestBytes = 0;

async function perform(command: Command): Promise<void> {
  switch (command.do) {
    case "open":
      for (const port of command.ports) nodes.set(port, measured(await TableNode.open(port)));
      return;
    case "join":
      await Promise.all(
        chosen(command.ports).map(({ loop }) =>
          loop.join([{ ip: LOOPBACK, port: command.seed }], JOIN_PATIENCE_MS),
        ),
      );
      return;
    case "attach":
      return chosen(command.ports).forEach((node) => node.attach());
    case "write":
    case "delete":
      for (const node of chosen(command.ports)) {
        for (let index = command.from; index < command.to; index++) {
          if (command.do === "delete") node.delete(index);
          else node.write(index, command.generation);
        }
      }
      return;
    case "track":
      return chosen([command.port]).forEach((node) => node.track(command.version));
    case "report":
    case "weigh":
      return;
    default:
      return unreachable(command);
  }
}

function chosen(ports: readonly number[]): TableNode[] {
  return ports.flatMap((port) => nodes.get(port) ?? []);
}

/** Looks at the size of everything the node sends. */
function measured(node: TableNode): TableNode {
  const { transport } = node.loop;
  const write = transport.write.bind(transport);
  transport.write = (stream, bytes) => {
    largestBytes = Math.max(largestBytes, bytes.length);
    write(stream, bytes);
  };
  return node;
}

function report(weigh: boolean): Report {
  const { user, system } = process.cpuUsage();
  let memoryBytes = 0;
  if (weigh) {
    (globalThis as { gc?: () => void }).gc?.();
    const { heapUsed, external } = process.memoryUsage();
    memoryBytes = heapUsed + external;
  }
  const traffic = /\blo:\s*(\d+)/.exec(readFileSync("/proc/net/dev", "utf8"))?.[1];
  return {
    nodes: [...nodes.values()].map((node) => node.report()),
    cpuMs: (user + system) / 1_000,
    memoryBytes,
    largestBytes,
    trafficBytes: Number(traffic),
  };
}

process.on("message", (command: Command) => {
  perform(command).then(
    () => process.send?.(report(command.do === "weigh")),
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.on("disconnect", () => process.exit(0));
