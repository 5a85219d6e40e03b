/** The reconciler over a real kernel, with as many entries as a large cluster has. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Reconciler } from "../../src/agent/reconciler.ts";
import type { NetError } from "../../src/base/error.ts";
import { parseCidr, parseIp } from "../../src/base/ip.ts";
import type { Sliced } from "../../src/base/sliced.ts";
import { instant } from "../../src/base/time.ts";
import { type DesiredOverlay, deriveOverlay, type RemotePeer } from "../../src/overlay/desired.ts";
import { KernelLab, type LabHost, manyPeers, run, testEndpoint, testNetwork } from "../kernel/lab.ts";
import { waitFor } from "../../netns-harness/wait.ts";

const SETTLE_MS = 60_000;

test("72,000 entries are applied, read back and repaired while the event loop keeps turning", async () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const world = new World(lab, a);
  using reconciler = world.reconciler();
  world.peers = manyPeers(42_000, 30_000);
  using turns = countTurns();
  await reconciler.settled(world.network.id, SETTLE_MS);
  const { steps } = await reconciler.plan(world.network.id);
  assert.deepEqual(steps, []);
  // 72,000 entries are 141 chunks, of which a fast machine does two a turn; all at once would be a dozen turns.
  assert.ok(turns.count > 60, `the loop turned ${turns.count} times`);
  assert.equal(world.count("bridge fdb show dev vxlan0 | grep -c permanent"), 30_000);
  assert.equal(world.count("ip neigh show dev vxlan0 nud permanent | wc -l"), 42_000);
  assert.equal(reconciler.counters.repairs, 0);

  // One entry among them, by notification; and all of them, which overruns what a socket can queue or not.
  world.overlay("bridge", "fdb", "del", "02:42:0a:10:00:07", "dev", "vxlan0");
  await waitFor("the entry to be back", () => reconciler.counters.repairs, {
    withinMs: SETTLE_MS,
    until: (repairs) => repairs === 1,
  });
  world.overlay("ip", "neigh", "flush", "all", "nud", "permanent", "dev", "vxlan0");
  await waitFor(
    "all neighbors to be back",
    async () => (await reconciler.plan(world.network.id)).steps.length,
    {
      withinMs: SETTLE_MS,
      until: (left) => left === 0 && reconciler.counters.repairs >= 42_001,
    },
  );
  assert.deepEqual(world.failures, []);
});

test("a small network does not wait for a large one", async () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const large = new World(lab, a);
  const small = new World(lab, a, "s");
  large.peers = manyPeers(8_000, 8_000);
  using reconciler = large.reconciler(small);
  const order: string[] = [];
  const all = reconciler.settled(large.network.id, SETTLE_MS).then(() => order.push("large"));
  await reconciler.settled(small.network.id, SETTLE_MS).then(() => order.push("small"));
  await all;
  assert.deepEqual(order, ["small", "large"]);
});

test("what is not done because a device is missing is not tried, and an endpoint that fails holds up nobody", async () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const world = new World(lab, a);
  world.peers = manyPeers(2_000, 2_000);
  run("ip", "-n", world.sandbox.name, "link", "add", "name", "eth0", "type", "bridge");
  using reconciler = world.reconciler();
  await assert.rejects(reconciler.settled(world.network.id, 3_000), /eth0/);
  const { steps } = await reconciler.plan(world.network.id);
  assert.deepEqual(
    steps.map(({ type }) => type),
    ["create-endpoint"],
  );
});

test("without repair another hand's doing stands, our own changes are made, and switching back mends it", async () => {
  using lab = new KernelLab();
  const [a] = lab.hosts(["192.0.2.1/24", "192.0.2.7/24"]);
  const world = new World(lab, a);
  world.peers = manyPeers(3, 3);
  using reconciler = world.reconciler();
  await reconciler.settled(world.network.id, SETTLE_MS);
  reconciler.setRepair(false);
  await reconciler.settled(world.network.id, SETTLE_MS);
  world.overlay("bridge", "fdb", "del", "02:42:0a:10:00:01", "dev", "vxlan0");
  const standing = (until: (count: number) => boolean): Promise<number> =>
    waitFor("what stands", () => world.standing.length, { withinMs: SETTLE_MS, until });
  await standing((count) => count === 1);
  assert.match(world.standing[0] ?? "", /^the FDB entry of 02:42:0a:10:00:01 was gone: set fdb/);
  world.peers = manyPeers(5, 5);
  await reconciler.settled(world.network.id, SETTLE_MS);
  const entries = "bridge fdb show dev vxlan0 | grep -c permanent";
  assert.equal(world.count(entries), 4);
  assert.equal(world.count("ip neigh show dev vxlan0 nud permanent | wc -l"), 5);
  assert.equal(world.standing.length, 1);
  // What our own change makes of it is no drift any more: the row is gone.
  world.peers = manyPeers(5, 5).slice(2);
  await reconciler.settled(world.network.id, SETTLE_MS);
  await standing((count) => count === 0);
  world.overlay("ip", "link", "set", "vxlan0", "down");
  // A device that goes down takes its neighbors along.
  await standing((count) => count === 4);
  assert.deepEqual(world.told, []);
  reconciler.setRepair(true);
  await waitFor("the repair to be told", () => world.told.join(), {
    withinMs: SETTLE_MS,
    until: (told) => /^mended: vxlan0 was down: set vxlan/.test(told),
  });
  assert.deepEqual((await reconciler.plan(world.network.id)).steps, []);
  assert.deepEqual(world.failures, []);

  // What cannot be done while the fault stands says why.
  reconciler.setRepair(false);
  await reconciler.settled(world.network.id, SETTLE_MS);
  world.overlay("ip", "link", "del", "vxlan0");
  await standing((count) => count > 1);
  world.peers = manyPeers(6, 6);
  await assert.rejects(reconciler.settled(world.network.id, 1_000), /repair is off, and another hand/);
  reconciler.setRepair(true);
  await reconciler.settled(world.network.id, SETTLE_MS);
  assert.equal(world.count(entries), 6);
});

/** One network on one host with one local endpoint, and whatever peers the test says. */
class World {
  readonly network;
  readonly sandbox;
  peers: readonly RemotePeer[] = [];
  readonly failures: string[] = [];
  readonly told: string[] = [];
  standing: readonly string[] = [];
  readonly #lab: KernelLab;
  readonly #host: LabHost;

  constructor(lab: KernelLab, host: LabHost, suffix = "") {
    this.#lab = lab;
    this.#host = host;
    const base = testNetwork(suffix === "" ? {} : { id: `small${suffix}`, vni: 4098 });
    this.network = { ...base, subnet: parseCidr("10.0.0.0/8"), gateway: parseIp("10.0.0.1") };
    this.sandbox = lab.namespace(`web${suffix}`);
  }

  reconciler(...others: World[]): Reconciler & Disposable {
    const worlds = new Map([this, ...others].map((world) => [world.network.id, world]));
    const reconciler = new Reconciler({
      dataplane: this.#host.dataplane,
      desired: (network) => (worlds.get(network) ?? this).#desired(),
      mayPrune: () => true,
      beforeDevice: () => Promise.resolve(),
      now: () => instant(performance.now()),
      every(everyMs, run) {
        const timer = setInterval(run, everyMs);
        return () => clearInterval(timer);
      },
      onRepair: (_network, faults) => this.told.push(...faults.map(({ text }) => `mended: ${text}`)),
      onStanding: (_network, faults) => (this.standing = faults.map(({ text }) => text)),
      onFailure: (_network, error: NetError) => this.failures.push(error.message),
    });
    return Object.assign(reconciler, { [Symbol.dispose]: () => reconciler.close() });
  }

  /** Runs ip(8) or bridge(8) in the network's namespace. */
  overlay(command: string, ...args: string[]): string {
    return run(command, "-n", this.#overlayName(), ...args);
  }

  /** What a shell command there counts. */
  count(command: string): number {
    return Number(run("ip", "netns", "exec", this.#overlayName(), "sh", "-c", command));
  }

  #overlayName(): string {
    return this.#lab.nameFor(`${this.#host.runDirectory}/netns/ov-${this.network.id}`);
  }

  *#desired(): Sliced<DesiredOverlay> {
    const { vtep } = this.#host;
    const endpoint = { ...testEndpoint(this.network.id, "10.0.9.5", this.sandbox.path), prefixLength: 8 };
    const linkKind = "macvlan";
    const input = { network: this.network, linkKind, vtep, ownVteps: [vtep], peers: this.peers } as const;
    return yield* deriveOverlay({ ...input, endpoints: [endpoint] });
  }
}

/** Counts the event loop's turns. */
function countTurns(): Disposable & { readonly count: number } {
  let turns = 0;
  let running = true;
  const turn = (): void => {
    turns++;
    if (running) setTimeout(turn, 0);
  };
  turn();
  return {
    get count() {
      return turns;
    },
    [Symbol.dispose]: () => void (running = false),
  };
}
