import assert from "node:assert/strict";
import { test } from "node:test";
import { endpointId, randomHex } from "../../src/base/id.ts";
import { ipv4FromNumber, ipv4ToNumber, type IpAddr } from "../../src/base/ip.ts";
import { pick, randomInt, sample } from "../../src/base/random.ts";
import { INGRESS } from "../../src/state/ingress.ts";
import { forEachSeed, World, type Answer, type WorldNode } from "./world.ts";

test("no address is ever held twice: loss, partitions, crashes, restarts, joins, removals", () => {
  forEachSeed(12, (seed) => {
    const world = new World({ seed, nodes: 2 + (seed % 5), loss: 0.1 });
    const life = new Life(world, seed);
    for (let step = 0; step < 150; step++) {
      life.act();
      world.run(randomInt(world.random, 400));
      life.collect();
    }
    life.settle();
  });
});

test("a full restart of all nodes keeps definitions, addresses and rings", () => {
  forEachSeed(4, (seed) => {
    const world = new World({ seed, nodes: 3 });
    const life = new Life(world, seed);
    for (let step = 0; step < 40; step++) {
      life.attach();
      world.run(50);
      life.collect();
    }
    world.runUntil(() => world.agree(), 5000);
    // What was learned from others is on disk a moment later.
    world.run(200);
    const before = world.nodes.map((node) => [node.view(), node.state.allocations()]);
    for (const node of world.nodes) node.crash();
    world.run(60_000);
    for (const node of world.nodes) node.restart();
    assert.deepEqual(
      world.nodes.map((node) => [node.view(), node.state.allocations()]),
      before,
    );
    life.settle();
  });
});

interface Endpoint {
  readonly holder: string;
  readonly node: WorldNode;
  readonly network: string;
  readonly address: IpAddr;
}

/** Agents that attach, detach, crash and come back, and the naive list of who has which address. */
class Life {
  readonly #world: World;
  readonly #held = new Map<string, Endpoint>();
  readonly #waiting: {
    node: WorldNode;
    holder: string;
    network: string;
    wanted?: IpAddr;
    answer: Answer;
    life: string;
  }[] = [];
  readonly #services: { name: string; answer: Answer; node: WorldNode; life: string }[] = [];
  #down: WorldNode[] = [];
  readonly #removed = new Set<WorldNode>();
  #made = 0;
  given = 0;

  constructor(world: World, seed: number) {
    this.#world = world;
    world.run(500);
    const [first] = world.nodes;
    assert.ok(first);
    const prefix = 24 + (seed % 5);
    first.get({
      type: "create-network",
      spec: { name: "blue", subnet: `10.9.0.0/${prefix}` },
      hostSubnets: [],
    });
    world.runUntil(() => world.agree(), 10_000);
  }

  act(): void {
    const { random } = this.#world;
    const choice = randomInt(random, 100);
    if (choice < 45) this.attach();
    else if (choice < 62) this.detach();
    else if (choice < 70) this.makeService();
    else if (choice < 74) this.removeService();
    else if (choice < 80) this.crash();
    else if (choice < 87) this.restart();
    else if (choice < 91)
      this.#world.partition(sample(random, this.#world.up, randomInt(random, 3) + 1), choice);
    else if (choice < 95) this.#world.heal();
    else if (choice < 97 && this.#world.nodes.length < 9) this.#join();
    else this.remove();
  }

  /** A node joins through one that knows how ingress is divided, or it would be a cluster of its own. */
  #join(): void {
    const { random, up } = this.#world;
    const seed = pick(
      random,
      up.filter((node) => node.state.ringUse(INGRESS.id) !== undefined),
    );
    if (seed === undefined) return;
    this.#world.addBeside(seed);
    this.#world.run(500);
  }

  attach(): void {
    const { random } = this.#world;
    const node = pick(random, this.#world.up);
    if (node === undefined) return;
    const holder = endpointId(randomHex(random, 64));
    const network = randomInt(random, 5) === 0 ? "ingress" : "blue";
    const base = ipv4ToNumber((network === "blue" ? "10.9.0.0" : "10.255.0.0") as IpAddr);
    const wanted = randomInt(random, 4) === 0 ? ipv4FromNumber(base + randomInt(random, 32)) : undefined;
    const answer = node.ask({
      type: "allocate",
      network,
      holder: { id: holder, name: `endpoint ${++this.#made}` },
      ...(wanted === undefined ? {} : { address: wanted }),
    });
    this.#waiting.push({ node, holder, network, answer, life: node.name, ...(wanted && { wanted }) });
  }

  detach(): void {
    const endpoint = pick(
      this.#world.random,
      [...this.#held.values()].filter(({ node }) => node.isUp),
    );
    if (endpoint === undefined) return;
    this.#held.delete(key(endpoint));
    this.#release(endpoint);
  }

  makeService(): void {
    const node = pick(this.#world.random, this.#world.up);
    if (node === undefined) return;
    const name = `service-${++this.#made}`;
    const answer = node.ask({ type: "create-service", spec: { name, networks: ["blue"] } });
    this.#services.push({ name, answer, node, life: node.name });
  }

  removeService(): void {
    const node = pick(this.#world.random, this.#world.up);
    const service = node && pick(this.#world.random, node.state.services());
    if (service !== undefined) node?.ask({ type: "remove-service", service: service.id });
  }

  crash(): void {
    const node = pick(this.#world.random, this.#world.up);
    if (node === undefined || this.#world.up.length < 2) return;
    node.crash();
    this.#down.push(node);
  }

  restart(): void {
    const node = pick(this.#world.random, this.#down);
    if (node !== undefined) this.#start(node);
  }

  /** Of a node that is down for good, as seen by one that may be cut off from others. */
  remove(): void {
    const { random } = this.#world;
    const gone = pick(random, this.#down);
    const by = pick(random, this.#world.up);
    if (gone === undefined || by === undefined || this.#world.nodes.length - this.#removed.size < 3) return;
    if (!by.state.nodes().some(({ id }) => id === gone.id)) return;
    by.ask({ type: "remove-node", node: gone.id });
    this.#removed.add(gone);
    this.#down = this.#down.filter((node) => node !== gone);
    for (const [address, { node }] of this.#held) if (node === gone) this.#held.delete(address);
  }

  /** Takes in the answers; this is where an address given twice is seen. */
  collect(): void {
    for (const waiting of this.#waiting.splice(0)) {
      const { answer, node, holder, network, life } = waiting;
      if (answer.result?.type === "address") {
        const endpoint = { holder, node, network, address: answer.result.address.ip };
        const other = this.#held.get(key(endpoint));
        assert.equal(
          other,
          undefined,
          `${key(endpoint)} is ${other?.node.shown}'s and given by ${node.shown}`,
        );
        if (waiting.wanted !== undefined) assert.equal(endpoint.address, waiting.wanted);
        if (this.#removed.has(node)) continue;
        this.#held.set(key(endpoint), endpoint);
        this.given++;
      } else if (answer.error === undefined && node.name === life && node.isUp) this.#waiting.push(waiting);
    }
  }

  /** Everybody together again: all agree, and the answer to "who has what" is ours. */
  settle(): void {
    const world = this.#world;
    for (const node of this.#down.splice(0)) this.#start(node);
    world.heal();
    // Where the node that was told crashed before it was on disk, the operator says it again.
    for (const { id } of this.#removed) world.up[0]?.ask({ type: "remove-node", node: id });
    world.run(25_000);
    this.collect();
    assert.equal(this.#waiting.length, 0, "every request is answered");
    world.runUntil(() => world.agree(), 10_000);
    const vips = new Set<string>();
    for (const service of world.up[0]?.state.services() ?? []) {
      for (const { network, vip } of service.networks) {
        const name = world.up[0]?.state.network(network)?.name;
        assert.ok(!vips.has(`${name} ${vip}`), `two services have ${vip}`);
        assert.ok(!this.#held.has(`${name} ${vip}`), `a service and an endpoint have ${vip}`);
        vips.add(`${name} ${vip}`);
      }
    }
    for (const node of world.up) {
      assert.deepEqual(node.conflicts, []);
      const mine = [...this.#held.values()].filter((endpoint) => endpoint.node === node);
      const allocated = node.state.allocations().filter(({ holder }) => !holder.id.startsWith("service/"));
      assert.deepEqual(
        allocated.map(({ holder }) => holder.id).sort(),
        mine.map(({ holder }) => holder).sort(),
      );
    }
    this.#useEverything();
  }

  /** No address is lost either: together they can give every one. */
  #useEverything(): void {
    const world = this.#world;
    const blue = world.up[0]?.state.findNetwork("blue");
    const use = blue && world.up[0]?.state.ringUse(blue.id);
    assert.ok(blue && use);
    const vips = new Set(
      world.up[0]?.state.services().flatMap(({ networks }) => networks.map(({ vip }) => vip)),
    );
    const held = [...this.#held.values()].filter(({ network }) => network === "blue").length;
    for (let left = use.size - held - vips.size; left > 0; left--) {
      const node = pick(world.random, world.up);
      const name = `last ${left}`;
      node?.get({ type: "allocate", network: "blue", holder: { id: `last-${left}`, name } });
    }
    const error = world.up[0]?.refuse({
      type: "allocate",
      network: "blue",
      holder: { id: "more", name: "more" },
    });
    assert.match(error ?? "", /^address-none: .*no address left in blue/);
  }

  #start(node: WorldNode): void {
    this.#down = this.#down.filter((other) => other !== node);
    node.restart();
    // As the agent does: what nobody has is given back, and what somebody has must be there.
    const mine = new Map([...this.#held.values()].filter((e) => e.node === node).map((e) => [e.holder, e]));
    for (const { holder, address, network } of node.state.allocations()) {
      if (holder.id.startsWith("service/")) continue;
      const endpoint = mine.get(holder.id);
      if (endpoint === undefined) node.ask({ type: "release", network, address });
      else assert.equal(address, endpoint.address);
      mine.delete(holder.id);
    }
    assert.equal(mine.size, 0, "no allocation is forgotten over a restart");
  }

  #release({ node, network, address }: Endpoint): void {
    node.ask({ type: "release", network: node.state.findNetwork(network).id, address });
  }
}

function key({ network, address }: { readonly network: string; readonly address: IpAddr }): string {
  return `${network} ${address}`;
}
