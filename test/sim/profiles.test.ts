import assert from "node:assert/strict";
import { test } from "node:test";
import { LAN, LOCAL, WAN } from "../../src/swim/config.ts";
import { chaos } from "./chaos.ts";
import { forEachSeed } from "./seed.ts";
import { cluster, swims } from "./swims.ts";
import type { World } from "./world.ts";

test("messages handed over by reference decide the same as their bytes do", () => {
  forEachSeed(12, (seed) => {
    const [bytes, references] = [false, true].map((byReference) => {
      const events: string[] = [];
      // Compression changes lengths, and those what is lost on the way: so nothing is lost here.
      const { world, log } = chaos({
        seed,
        forMs: 30_000,
        make: (options) => {
          const made = swims({ ...options, loss: 0, mtu: 65_535, byReference });
          made.onEvent = (host, event) => {
            const member = "member" in event ? `${event.member.name} ${event.member.incarnation}` : "";
            events.push(`${made.now} ${host.index} ${event.type} ${member}`);
          };
          return made;
        },
        impairment: 0,
      });
      return JSON.stringify([events, log, world.packets, world.random.next()]);
    });
    assert.equal(references, bytes);
  });
});

test("IPv6 members are found, lost and found again like others", () => {
  forEachSeed(4, (seed) => {
    const world = cluster({ seed, nodes: 8, family: 6, loss: 0.05 });
    world.runFor(5_000);
    assert.equal(world.host(3).node.member(world.host(5).node.name)?.address.ip, "2001:db8::6");
    world.kill(2);
    const { name } = world.host(2).node;
    assert.ok(world.runUntil(() => world.seenBy(isDead, name) === 7, 12_000, 50) !== undefined);
    world.network.partition([[3, 4]]);
    world.runFor(60_000);
    world.network.heal();
    assert.ok(world.runUntil(() => world.agree(), 10_000, 50) !== undefined, world.disagreement());
  });
});

test("512 bytes of metadata from everybody spread, and so do updates of them", () => {
  const meta = (host: number): Uint8Array => new Uint8Array(512).fill(host + 1);
  forEachSeed(3, (seed) => {
    const world = cluster({ seed, nodes: 12, metaOf: meta, loss: 0.05 });
    const known = (name: string, first: number) => (): boolean =>
      world.running().every(({ node }) => {
        const seen = node.member(name)?.meta;
        return seen?.length === 512 && seen[0] === first;
      });
    for (const { index, node } of world.hosts) {
      assert.ok(world.runUntil(known(node.name, index + 1), 5_000, 50) !== undefined);
    }
    world.feed(7, { type: "set-meta", meta: meta(99) });
    assert.ok(world.runUntil(known(world.host(7).node.name, 100), 2_000, 10) !== undefined);
  });
});

test("on long and lossy links the WAN profile accuses nobody wrongly, and yet finds the dead", () => {
  forEachSeed(3, (seed) => {
    const world = cluster({ seed, nodes: 12, config: WAN, latencyMs: 150, jitterMs: 200, loss: 0.05 });
    world.runFor(180_000);
    assert.equal(falseDeaths(world), 0);
    const { name } = world.host(4).node;
    world.kill(4);
    assert.ok(world.runUntil(() => world.seenBy(isDead, name) === 11, 120_000, 100) !== undefined);
  });
});

test("on one machine the LOCAL profile finds the dead no later than the LAN profile", () => {
  forEachSeed(3, (seed) => {
    const tooks = [LOCAL, LAN].map((config) => {
      const world = cluster({ seed, nodes: 6, config, latencyMs: 0.05, jitterMs: 0.05 });
      world.runFor(10_000);
      const { name } = world.host(4).node;
      world.powerOff(4);
      const took = world.runUntil(() => world.seenBy(isDead, name) === 5, 120_000, 50);
      assert.equal(falseDeaths(world), 0);
      return took ?? Infinity;
    });
    assert.ok((tooks[0] ?? 0) <= (tooks[1] ?? 0) + 1_000, tooks.join(" and "));
  });
});

test("a queue of broadcasts stays within its bound through the join of hundreds, and all agree", () => {
  const nodes = 260;
  const world = swims({ seed: 1, nodes, byReference: true, config: { ...LAN, maxBroadcasts: 64 } });
  world.recordDeaths = false;
  for (let host = 1; host < nodes; host++) world.after(8 * host, () => world.join(host, (host - 1) % 3));
  let most = 0;
  const agreed = (): boolean => {
    for (const { node } of world.hosts) most = Math.max(most, node.queues()["broadcasts"] ?? 0);
    return world.hosts.every(({ node }) => node.aliveCount === nodes);
  };
  assert.ok(world.runUntil(agreed, 60_000, 100) !== undefined, world.disagreement());
  assert.ok(most > 32 && most <= 64, `${most} broadcasts`);
});

test("a failure of half of a large cluster is known to all of the rest, and nobody else is accused", () => {
  const nodes = 200;
  const world = cluster({ seed: 2, nodes, byReference: true });
  world.runFor(5_000);
  const half = world.hosts.map(({ index }) => index).filter((index) => index % 2 === 0);
  for (const index of half) world.powerOff(index);
  const known = (): boolean => world.running().every(({ node }) => node.aliveCount === nodes / 2);
  assert.ok(world.runUntil(known, 60_000, 250) !== undefined, world.disagreement());
  assert.equal(falseDeaths(world), 0);
  for (const index of half) {
    world.restart(index);
    world.join(index, 1, 3);
  }
  assert.ok(world.runUntil(() => world.agree(), 60_000, 250) !== undefined, world.disagreement());
});

function isDead(state: string): boolean {
  return state === "dead";
}

function falseDeaths(world: World): number {
  return world.deaths.filter((death) => death.falsely).length;
}
