/**
 * Rates, memory and rounds at the size where Docker's bulk sync collapses: 23 nodes, 100,000 rows.
 * By hand: node --expose-gc dist/test/networkdb/bench.js
 */
import { networkId, nodeName, randomHex } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import { networkDbConfig } from "../../src/networkdb/config.ts";
import { NetworkDb } from "../../src/networkdb/networkdb.ts";
import { BulkSyncPayload } from "../../src/wire/networkdb/bulk-sync.ts";
import { encodeNetworkDbMessage } from "../../src/wire/networkdb/message.ts";
import { encodeEndpointRecord } from "../../src/wire/networkdb/records.ts";
import { network, World, type WorldNode } from "./world.ts";

const NODES = 23;
const ROWS = 100_000;
const ID = network(0);

applyRate();
if (process.argv[2] !== "apply") joinAndRedeploy();

/** How fast one node takes in new rows, and how fast it recognizes old ones; what they weigh. */
function applyRate(): void {
  const random = seededRandom(1);
  const owner = nodeName("0123456789ab");
  const id = networkId("jqtwixqzkqku2e0hbtmon5g04");
  const now = instant(0);
  const options = { node: nodeName("self"), address: address(1), random, config: networkDbConfig() };
  const pages = makePages(owner, id, random);
  const bytes = pages.reduce((sum, page) => sum + page.length, 0);
  const db = new NetworkDb(options, now);
  db.handle({ type: "member-joined", name: owner, address: address(2) }, now);
  db.handle({ type: "join-network", network: id }, now);
  const join = { type: "network-event", change: "join", time: 1, node: owner, network: id } as const;
  db.handle({ type: "user-message", bytes: encodeNetworkDbMessage(join), via: "packet" }, now);
  const before = heap();
  const first = feed(db, pages);
  const weight = (heap() - before) / ROWS;
  const again = feed(db, pages);
  console.log(`bulk sync       ${(bytes / ROWS).toFixed(0)} bytes per row, ${pages.length} pages`);
  console.log(`rows applied    ${rate(first.ms)} rows/s, slowest page ${first.slowestMs.toFixed(1)} ms`);
  console.log(`rows known      ${rate(again.ms)} rows/s`);
  console.log(`memory          ${((weight * 10_000) / 1e6).toFixed(1)} MB per 10,000 rows`);
  console.log(`rows held       ${db.attachments()[0]?.rows}`);
}

/** A cluster with all rows takes in a new node, while one row changes; then one node redeploys everything it has. */
function joinAndRedeploy(): void {
  const world = new World({ seed: 1, nodes: NODES, watch: false });
  const perNode = Math.ceil(ROWS / NODES);
  const holders = world.nodes.slice(0, NODES - 1);
  const rows = perNode * holders.length;
  const value = "x".repeat(120);
  for (const node of holders) node.join(ID);
  world.run(3_000);
  let took = elapsed(() => {
    for (const node of holders) {
      for (let i = 0; i < perNode; i++) node.put(ID, keyOf(node, i), `${node.name} ${value}`);
    }
  });
  console.log(`\n${NODES} nodes, ${rows} rows\nwritten         in ${took.toFixed(0)} ms of CPU`);
  let virtual = 0;
  took = elapsed(() => {
    virtual = world.runUntil(() => holders.every((node) => node.rowCount(ID) === rows), 600_000, {
      stepMs: 500,
    });
  });
  report(world, "everywhere", virtual, took);

  const joiner = world.node(NODES - 1);
  const tracked = world.node(0);
  let update = -1;
  took = elapsed(() => {
    joiner.join(ID);
    tracked.put(ID, "tracked", "v");
    const start = world.now;
    virtual = world.runUntil(
      () => {
        if (update < 0 && world.nodes.every((node) => node.value(ID, "tracked") === "v"))
          update = world.now - start;
        return joiner.inSync.has(ID) && joiner.rowCount(ID) === rows + 1;
      },
      600_000,
      { stepMs: 50 },
    );
  });
  report(world, "joined", virtual, took);
  console.log(`meanwhile       one new row was everywhere after ${update} ms`);

  took = elapsed(() => {
    for (let i = 0; i < perNode; i++) {
      tracked.put(ID, keyOf(tracked, i), `${tracked.name} again ${i}`);
    }
    const last = keyOf(tracked, perNode - 1);
    virtual = world.runUntil(
      () => world.nodes.every((node) => node.value(ID, last)?.includes("again") === true),
      600_000,
      { stepMs: 50 },
    );
  });
  report(world, `${perNode} redeployed`, virtual, took);
  const streams = world.streams;
  took = elapsed(() => world.run(30_000));
  console.log(
    `30 s of calm    ${(took / 300 / NODES).toFixed(2)} % CPU per node, ${world.streams - streams} stream messages`,
  );
}

/** 64 characters, as endpoint ids have. */
function keyOf(node: WorldNode, index: number): string {
  return `${node.name}-${index}-`.padEnd(64, "0");
}

function report(world: World, what: string, virtualMs: number, cpuMs: number): void {
  console.log(
    `${what.padEnd(15)} after ${virtualMs.toFixed(0)} ms, ${cpuMs.toFixed(0)} ms of CPU for all nodes; ` +
      `largest stream message ${(world.largestStream / 1024).toFixed(0)} KiB`,
  );
}

function makePages(
  owner: ReturnType<typeof nodeName>,
  id: ReturnType<typeof networkId>,
  random: ReturnType<typeof seededRandom>,
): Uint8Array[] {
  const pages: Uint8Array[] = [];
  for (let at = 0; at < ROWS;) {
    const payload = new BulkSyncPayload();
    while (at < ROWS && payload.estimatedBytes < 256 * 1024) {
      at++;
      payload.add({
        type: "table-event",
        change: "create",
        time: at,
        node: owner,
        network: id,
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
        node: owner,
        networks: [id],
        payload: payload.finish(),
        page: at < ROWS ? "more" : "last",
        digests: [],
      }),
    );
  }
  return pages;
}

function feed(
  db: NetworkDb,
  pages: readonly Uint8Array[],
): { readonly ms: number; readonly slowestMs: number } {
  let slowestMs = 0;
  const ms = elapsed(() => {
    for (const bytes of pages) {
      // As the transport does: every message has a buffer of its own.
      const copy = bytes.slice();
      const page = elapsed(() => db.handle({ type: "user-message", bytes: copy, via: "stream" }, instant(1)));
      slowestMs = Math.max(slowestMs, page);
    }
  });
  return { ms, slowestMs };
}

/** Milliseconds of CPU, so that what else runs on the machine does not count. */
function elapsed(work: () => void): number {
  const start = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1000;
}

function rate(ms: number): string {
  return Math.round(ROWS / (ms / 1000)).toLocaleString("en");
}

function heap(): number {
  const { gc } = globalThis as { gc?: () => void };
  gc?.();
  const { heapUsed, external, arrayBuffers } = process.memoryUsage();
  return heapUsed + Math.max(external, arrayBuffers);
}

function address(last: number): { readonly ip: ReturnType<typeof parseIp>; readonly port: number } {
  return { ip: parseIp(`192.0.2.${last}`), port: 7946 };
}
