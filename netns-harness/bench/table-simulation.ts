/** What NetworkDb itself takes, without sockets: one node that is fed pages, and 23 nodes on a virtual clock. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { networkId, nodeName, randomHex } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import { networkDbConfig } from "../../src/networkdb/config.ts";
import { NetworkDb } from "../../src/networkdb/networkdb.ts";
import { BulkSyncPayload } from "../../src/wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../../src/wire/networkdb/message.ts";
import { encodeEndpointRecord } from "../../src/wire/networkdb/records.ts";
import { network, World, type WorldNode } from "../../test/networkdb/world.ts";

const SIMULATED = network(0);
const NETWORK = networkId("jqtwixqzkqku2e0hbtmon5g04");
const OWNER = nodeName("0123456789ab");
const PAGE_BYTES = 256 * 1024;

export type OneNodeFigures = {
  /** New rows taken in, and known ones recognized, per second of CPU. */
  readonly appliedPerSecond: number;
  readonly knownPerSecond: number;
  /** Of a bulk sync, uncompressed. */
  readonly bytesPerRow: number;
  readonly bytesInMemoryPerRow: number;
};

/** How fast one node takes in rows, and what they weigh. */
export function oneNode(rows: number): OneNodeFigures {
  const random = seededRandom(1);
  const now = instant(0);
  const db = new NetworkDb(
    { node: nodeName("self"), address: address(1), random, config: networkDbConfig() },
    now,
  );
  db.handle({ type: "member-joined", name: OWNER, address: address(2) }, now);
  db.handle({ type: "join-network", network: NETWORK }, now);
  const join = { type: "network-event", change: "join", time: 1, node: OWNER, network: NETWORK } as const;
  db.handle({ type: "user-message", bytes: encodeNetworkDbMessage(join), via: "packet" }, now);
  const pages = makePages(rows);
  const before = liveMemory();
  const first = cpuMs(() => feed(db, pages));
  const weight = liveMemory() - before;
  const again = cpuMs(() => feed(db, pages));
  return {
    appliedPerSecond: rows / (first / 1_000),
    knownPerSecond: rows / (again / 1_000),
    bytesPerRow: pages.reduce((sum, page) => sum + page.length, 0) / rows,
    bytesInMemoryPerRow: weight / rows,
  };
}

export type SimulatedFigures = {
  /** Virtual seconds. */
  readonly everywhere: number;
  readonly joined: number;
  readonly updateMeanwhile: number;
  readonly redeployed: number;
  readonly largestBytes: number;
  /** Payload bytes sent by whomever for one row to reach one node. */
  readonly bytesPerRowSpread: number;
};

/** A cluster in which rows appear, then takes in a new node while one row changes; then a tenth is redeployed. */
export function simulated(nodes: number, rowsWanted: number): SimulatedFigures {
  const world = new World({ seed: 1, nodes, watch: false });
  const holders = world.nodes.slice(0, nodes - 1);
  const perNode = Math.ceil(rowsWanted / holders.length);
  const rows = perNode * holders.length;
  for (const node of holders) node.join(SIMULATED);
  world.run(3_000);
  world.bytes = 0;
  for (const node of holders) {
    for (let index = 0; index < perNode; index++) write(node, index, "first");
  }
  const everywhere = world.runUntil(
    () => holders.every((node) => node.rowCount(SIMULATED) === rows),
    600_000,
    { stepMs: 100 },
  );
  const bytesPerRowSpread = world.bytes / rows / (holders.length - 1);
  world.run(5_000);

  const joiner = world.node(nodes - 1);
  const tracked = world.node(0);
  joiner.join(SIMULATED);
  tracked.put(SIMULATED, "tracked", "v");
  let updateMeanwhile: number | undefined;
  const start = world.now;
  const joined = world.runUntil(
    () => {
      if (world.nodes.every((node) => node.value(SIMULATED, "tracked") === "v"))
        updateMeanwhile ??= world.now - start;
      return joiner.inSync.has(SIMULATED) && joiner.rowCount(SIMULATED) === rows + 1;
    },
    600_000,
    { stepMs: 20 },
  );

  while (updateMeanwhile === undefined) {
    world.run(20);
    if (world.nodes.every((node) => node.value(SIMULATED, "tracked") === "v"))
      updateMeanwhile = world.now - start;
  }

  const share = Math.ceil(perNode / 10);
  for (const node of holders) {
    for (let index = 0; index < share; index++) {
      node.delete(SIMULATED, keyOf(node, index));
      write(node, perNode + index, "again");
    }
  }
  const redeployed = world.runUntil(
    () =>
      world.nodes.every(
        (node) =>
          holders.every(
            (owner) =>
              node.value(SIMULATED, keyOf(owner, perNode + share - 1)) !== undefined &&
              node.value(SIMULATED, keyOf(owner, share - 1)) === undefined,
          ) && node.rowCount(SIMULATED) === rows + 1 + share * holders.length,
      ),
    600_000,
    { stepMs: 100 },
  );
  return {
    everywhere: everywhere / 1_000,
    joined: joined / 1_000,
    updateMeanwhile: updateMeanwhile / 1_000,
    redeployed: redeployed / 1_000,
    largestBytes: world.largestStream,
    bytesPerRowSpread,
  };
}

function write(node: WorldNode, index: number, what: string): void {
  node.put(SIMULATED, keyOf(node, index), `${node.name} ${what} `.padEnd(120, "x"));
}

/** 64 characters, as endpoint ids have. */
function keyOf(node: WorldNode, index: number): string {
  return `${node.name}-${index}-`.padEnd(64, "0");
}

function makePages(rows: number): Uint8Array[] {
  const random = seededRandom(2);
  const pages: Uint8Array[] = [];
  for (let at = 0; at < rows;) {
    const payload = new BulkSyncPayload();
    while (at < rows && payload.estimatedBytes < PAGE_BYTES) {
      at++;
      payload.add({
        type: "table-event",
        change: "create",
        time: at,
        node: OWNER,
        network: NETWORK,
        table: "endpoint_table",
        key: randomHex(random, 64),
        value: encodeEndpointRecord({
          name: `web.${at}.u4tqsdyfs6uy654z18hspcldn`,
          serviceName: "web",
          serviceId: "hkhsyvz5pdv0mi2i16ocrp33z",
          virtualIp: undefined,
          endpointIp: parseIp(`10.${(at >> 16) & 255}.${(at >> 8) & 255}.${at & 255}`),
          ingressPorts: [],
          aliases: [],
          taskAliases: [randomHex(random, 12)],
          serviceDisabled: false,
        }),
        residualReapSeconds: 0,
      });
    }
    pages.push(
      encodeNetworkDbMessage({
        type: "bulk-sync",
        time: at,
        unsolicited: false,
        node: OWNER,
        networks: [NETWORK],
        payload: payload.finish(),
        page: at < rows ? "more" : "last",
        digests: [],
      }),
    );
  }
  return pages;
}

function feed(db: NetworkDb, pages: readonly Uint8Array[]): void {
  for (const page of pages) {
    // As the transport does: every message has a buffer of its own.
    db.handle({ type: "user-message", bytes: page.slice(), via: "stream" }, instant(1));
  }
}

/** CPU, so that what else runs on the machine does not count. */
function cpuMs(work: () => void): number {
  const start = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1_000;
}

/** What is still referred to: everything else is collected first. */
function liveMemory(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

function address(last: number): { readonly ip: ReturnType<typeof parseIp>; readonly port: number } {
  return { ip: parseIp(`192.0.2.${last}`), port: 7946 };
}
