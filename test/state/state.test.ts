import assert from "node:assert/strict";
import { test } from "node:test";
import { parseCidr } from "../../src/base/ip.ts";
import { INGRESS } from "../../src/state/ingress.ts";
import { forEachSeed, World, type WorldNode } from "./world.ts";

test("a network made on one node is known on all at once, its addresses divided among them", () => {
  const world = new World({ seed: 1, nodes: 3 });
  world.run(1000);
  const [a, b, c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  const result = a.get({ type: "create-network", spec: { name: "blue" }, hostSubnets: [] });
  assert.ok(result.type === "network");
  assert.equal(result.network.subnet.ip, "10.0.1.0");
  const took = world.runUntil(() => world.agree(), 1000);
  assert.ok(took <= 100, `took ${took} ms`);
  assert.deepEqual(
    b.state.networks().map(({ name }) => name),
    ["ingress", "blue"],
  );
  assert.deepEqual(
    c.state
      .ringUse(result.network.id)
      ?.owners.map(({ name, size }) => `${name} ${size}`)
      .sort(),
    ["node1 84", "node2 85", "node3 85"],
  );
  const address = c.get({ type: "allocate", network: "blue", holder: { id: "e1", name: "web" } });
  assert.ok(address.type === "address");
});

test("a service gets a virtual IP per network and one on ingress", () => {
  const world = new World({ seed: 1, nodes: 3 });
  world.run(1000);
  const [a, b] = world.nodes as [WorldNode, WorldNode, WorldNode];
  a.get({ type: "create-network", spec: { name: "blue" }, hostSubnets: [parseCidr("10.0.1.0/24")] });
  world.run(500);
  const ports = [{ published: 8000, target: 80, protocol: "tcp" as const }];
  const result = b.get({ type: "create-service", spec: { name: "web", networks: ["blue"], ports } });
  assert.ok(result.type === "service");
  assert.equal(result.service.networks.length, 2);
  assert.ok(result.service.networks.every(({ vip }) => vip !== undefined));
  world.runUntil(() => world.agree(), 2000);
  assert.match(
    a.refuse({ type: "create-service", spec: { name: "web2", ports } }),
    /^port-published: .*port 8000\/tcp is already published by service web/,
  );
  assert.match(a.refuse({ type: "remove-network", network: "blue", endpoints: [] }), /^network-in-use.*web/);
});

test("what two sides of a partition did meets within two seconds of contact, at 30 % loss too", () => {
  forEachSeed(5, (seed) => {
    const world = new World({ seed, nodes: 6, loss: 0.3 });
    world.runUntil(() => world.agree(), 10_000);
    world.partition(world.nodes.slice(0, 3));
    for (const [index, node] of world.nodes.entries()) {
      node.get({ type: "create-network", spec: { name: `net${index}` }, hostSubnets: [] });
      node.get({ type: "create-service", spec: { name: `service${index}`, networks: [`net${index}`] } });
    }
    world.run(60_000);
    world.heal();
    const took = world.runUntil(() => world.agree(), 5000);
    assert.ok(took <= 2000, `took ${took} ms`);
  });
});

test("two networks of one name made apart both stay; the older owns the name, the other is reported", () => {
  const world = new World({ seed: 3, nodes: 4 });
  world.run(2000);
  const [a, , c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  world.partition(world.nodes.slice(0, 2));
  // Two writes on one side first, so that its Lamport clock is ahead there.
  a.get({ type: "create-network", spec: { name: "first" }, hostSubnets: [] });
  a.get({ type: "create-network", spec: { name: "blue", vni: 7000 }, hostSubnets: [] });
  c.get({ type: "create-network", spec: { name: "blue", vni: 7000 }, hostSubnets: [] });
  world.heal();
  world.run(5000);
  assert.ok(world.agree());
  for (const node of world.nodes) {
    const [ingress, winner, , loser] = node.state.networks();
    assert.deepEqual([ingress?.name, winner?.name, loser?.name], ["ingress", "blue", "blue"]);
    assert.ok(winner && loser && winner.created < loser.created);
    assert.equal(node.state.findNetwork("blue").id, winner.id);
    assert.equal(node.state.findNetwork(loser.id.slice(0, 8)).id, loser.id);
    assert.deepEqual(
      loser.conflicts.map(({ type }) => type),
      ["network-name", "vni"],
    );
    assert.equal(loser.disabled, true);
    assert.deepEqual(winner.conflicts, []);
    assert.deepEqual(new Set(node.conflicts), new Set(["network-name", "vni", "subnet"]));
    const why = node.refuse({ type: "allocate", network: loser.id, holder: { id: "e", name: "e" } });
    assert.match(why, /^network-disabled: .*VNI 7000 belongs to the older network blue/);
  }
  const [, , , loser] = c.state.networks();
  c.get({ type: "remove-network", network: loser?.id ?? "", endpoints: [] });
  world.run(2000);
  for (const node of world.nodes)
    assert.ok(!node.state.conflicts().some(({ type }) => type === "network-name"), "the cure works");
});

test("a joining node knows everything at once, from one or two members only", () => {
  const world = new World({ seed: 1, nodes: 5, joined: false });
  const [first] = world.nodes;
  assert.ok(first);
  first.get({ type: "create-network", spec: { name: "blue", subnet: "10.64.0.0/12" }, hostSubnets: [] });
  const labels = { text: "x".repeat(500) };
  for (let i = 0; i < 400; i++)
    first.get({ type: "create-service", spec: { name: `service${i}`, networks: ["blue"], labels } });
  world.see();
  world.runUntil(() => world.agree(), 5000);
  world.run(5000);
  const before = world.streamBytes;
  world.add();
  world.see();
  const took = world.runUntil(() => world.agree(), 5000);
  assert.ok(took <= 1000, `took ${took} ms`);
  world.run(3000);
  const copies = (world.streamBytes - before) / (400 * 650);
  assert.ok(copies < 3.5, `${copies.toFixed(1)} copies of everything were sent`);
});

test("two clusters that meet keep one ring of ingress, the older; what the others gave is reported", () => {
  const world = new World({ seed: 5, nodes: 2, joined: false });
  const [old, young] = world.nodes as [WorldNode, WorldNode];
  young.crash();
  young.disk = undefined;
  world.run(10_000);
  young.start(true);
  const give = (node: WorldNode, id: string): string => {
    const result = node.get({ type: "allocate", network: "ingress", holder: { id, name: id } });
    assert.ok(result.type === "address");
    return result.address.ip;
  };
  assert.equal(give(old, "e1"), give(young, "e2"));
  world.see();
  world.run(5000);
  assert.ok(world.agree());
  assert.deepEqual(old.conflicts, []);
  assert.deepEqual(young.conflicts, ["address"]);
  const [conflict] = young.state.conflicts();
  assert.ok(conflict?.type === "address" && conflict.holder === "e2");
  young.get({ type: "release", network: conflict.network, address: conflict.address });
  const again = give(young, "e2");
  assert.notEqual(again, conflict.address);
  assert.deepEqual(young.state.conflicts(), []);
});

test("members that joined without a ring of ingress get one from the smallest id after five seconds", () => {
  const world = new World({ seed: 2, nodes: 1 });
  const [seed] = world.nodes;
  assert.ok(seed);
  seed.crash();
  const joined = [world.add(), world.add(), world.add()];
  for (const node of joined) for (const other of joined) if (node !== other) node.sees(other);
  world.run(4000);
  assert.equal(joined[0]?.state.ringUse(INGRESS.id), undefined);
  const answer = joined[0]?.ask({ type: "allocate", network: "ingress", holder: { id: "e", name: "e" } });
  world.run(3000);
  assert.ok(answer?.result);
  assert.equal(joined[0]?.state.ringUse(INGRESS.id)?.owners.length, 3);
});

test("a removed node's addresses pass on only when every remaining node has been heard", () => {
  const world = new World({ seed: 4, nodes: 4 });
  world.run(2000);
  const [a, b, c, d] = world.nodes as [WorldNode, WorldNode, WorldNode, WorldNode];
  a.get({ type: "create-network", spec: { name: "blue", subnet: "10.9.0.0/27" }, hostSubnets: [] });
  world.run(1000);
  const blue = a.state.findNetwork("blue").id;
  assert.match(a.refuse({ type: "remove-node", node: "node4" }), /^node-alive: .*netctl leave/);
  assert.match(a.refuse({ type: "remove-node", node: "node1" }), /^node-self: /);
  d.crash();
  c.crash();
  a.get({ type: "remove-node", node: "node4" });
  world.run(20_000);
  const owners = (): string[] =>
    a.state
      .ringUse(blue)
      ?.owners.map(({ name }) => name)
      .sort() ?? [];
  assert.deepEqual(owners(), ["node1", "node2", "node3", "node4"]);
  for (let i = 0; ; i++) {
    const answer = b.ask({ type: "allocate", network: "blue", holder: { id: `e${i}`, name: `e${i}` } });
    world.runUntil(() => answer.result !== undefined || answer.error !== undefined, 20_000);
    if (answer.error === undefined) continue;
    assert.match(
      answer.error.message,
      /node3 owns \d+ and is away and had \d+ free: start it or netctl node rm it/,
    );
    break;
  }
  c.restart();
  world.run(5000);
  assert.deepEqual(owners(), ["node1", "node2", "node3"]);
  assert.ok(world.agree());
  b.get({ type: "allocate", network: "blue", holder: { id: "more", name: "more" } });
});

test("a removed node that comes back gives no address and says what to do", () => {
  const world = new World({ seed: 4, nodes: 3 });
  world.run(2000);
  const [a, , c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  a.get({ type: "create-network", spec: { name: "blue" }, hostSubnets: [] });
  world.run(1000);
  c.get({ type: "allocate", network: "blue", holder: { id: "e", name: "web" } });
  world.partition([c]);
  a.get({ type: "remove-node", node: "node3" });
  world.run(5000);
  world.heal();
  world.run(5000);
  const why = c.refuse({ type: "allocate", network: "blue", holder: { id: "e2", name: "e2" } });
  assert.match(why, /^node-removed: .*delete its data directory and start it again/);
  assert.deepEqual(new Set(c.conflicts), new Set(["node-removed", "address"]));
  assert.ok(world.agree());
});

test("an address of another owner is asked for; who holds it, or that its owner is away, is said", () => {
  const world = new World({ seed: 6, nodes: 3 });
  world.run(2000);
  const [a, b, c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  a.get({ type: "create-network", spec: { name: "blue", subnet: "10.9.0.0/24" }, hostSubnets: [] });
  world.run(1000);
  const wants = (id: string, address: string) =>
    ({ type: "allocate", network: "blue", holder: { id, name: id }, address }) as const;
  for (const host of [10, 100, 200]) a.get(wants(`e${host}`, `10.9.0.${host}`));
  for (const host of [10, 100, 200]) {
    const why = b.refuse(wants("other", `10.9.0.${host}`));
    assert.match(why, /^address-taken: .*taken by e\d+ \(on node1\); choose another/);
  }
  c.crash();
  // Its part is the second or the third, by node id.
  const answers = ["10.9.0.120", "10.9.0.250"].map((address) => a.ask(wants(address, address)));
  world.run(5000);
  const errors = answers.flatMap(({ error }) => (error === undefined ? [] : [error.message]));
  assert.equal(errors.length, 1);
  assert.match(errors[0] ?? "", /its owner node3 cannot be reached; start that node, or remove it for good/);
});

test("drain is known to all and stays over a restart", () => {
  const world = new World({ seed: 7, nodes: 3 });
  world.run(1000);
  const [a, b, c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  a.get({ type: "update-node", node: "node3", availability: "drain" });
  world.run(500);
  assert.equal(b.state.availability(c.id), "drain");
  c.crash();
  c.restart();
  world.run(1000);
  assert.equal(c.state.availability(c.id), "drain");
  assert.equal(a.state.availability(b.id), "active");
  assert.match(a.refuse({ type: "update-node", node: "nobody", availability: "drain" }), /^node-unknown: /);
});

test("a quiet cluster says little: one small packet per node and second", () => {
  const world = new World({ seed: 1, nodes: 10 });
  world.run(10_000);
  const [packets, streams] = [world.packets, world.streams];
  world.run(60_000);
  assert.ok(world.packets - packets <= 610, `${world.packets - packets} packets`);
  assert.equal(world.streams - streams, 0);
});

test("hostile and damaged messages are counted and change nothing", () => {
  const world = new World({ seed: 1, nodes: 2 });
  world.run(1000);
  const [a] = world.nodes as [WorldNode, WorldNode];
  const before = a.view();
  const frames = [[], [8], [8, 64], [8, 64, 18, 2, 1, 0], [8, 64, 18, 3, 9, 0, 0], [8, 64, 18, 200, 1, 1, 2]];
  for (const frame of frames)
    a.handle({ type: "user-message", bytes: Uint8Array.from(frame), via: "packet" });
  assert.equal(a.state.counters().get("damaged message"), frames.length);
  assert.equal(a.view(), before);
});

test("an update keeps the virtual IPs there are, and all go back when the service is removed anywhere", () => {
  const world = new World({ seed: 8, nodes: 3 });
  world.run(1000);
  const [a, b, c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  for (const name of ["blue", "green"]) a.get({ type: "create-network", spec: { name }, hostSubnets: [] });
  world.run(500);
  const port = { published: 8000, target: 80, protocol: "tcp" as const };
  const made = a.get({ type: "create-service", spec: { name: "web", networks: ["blue"], ports: [port] } });
  world.run(500);
  const spec = { networks: ["blue", "green"], affinity: "client-ip" as const };
  const changed = b.get({ type: "update-service", service: "web", spec });
  assert.ok(made.type === "service" && changed.type === "service");
  assert.deepEqual(changed.service.ports, made.service.ports);
  assert.equal(changed.service.affinity, "client-ip");
  assert.equal(changed.service.networks.length, 3);
  for (const attachment of made.service.networks)
    assert.ok(changed.service.networks.some(({ vip }) => vip === attachment.vip));
  world.run(500);
  assert.match(
    c.refuse({ type: "update-service", service: "web", spec: { endpointMode: "dnsrr" } }),
    /^publish-dnsrr: /,
  );
  c.get({ type: "remove-service", service: "web" });
  world.run(1000);
  assert.ok(world.agree());
  for (const node of world.nodes) assert.deepEqual(node.state.allocations(), []);
});

test("two updates of one service on two sides of a partition end as one, and leak no address after removal", () => {
  const world = new World({ seed: 9, nodes: 4 });
  world.run(1000);
  const [a, , c] = world.nodes as [WorldNode, WorldNode, WorldNode];
  for (const name of ["blue", "green", "red"])
    a.get({ type: "create-network", spec: { name }, hostSubnets: [] });
  a.get({ type: "create-service", spec: { name: "web", networks: ["blue"] } });
  world.run(2000);
  world.partition(world.nodes.slice(0, 2));
  a.get({ type: "update-service", service: "web", spec: { networks: ["blue", "green"] } });
  c.get({ type: "update-service", service: "web", spec: { networks: ["blue", "red"] } });
  world.heal();
  world.run(3000);
  assert.ok(world.agree());
  assert.equal(a.state.services()[0]?.networks.length, 2);
  c.get({ type: "remove-service", service: "web" });
  world.run(2000);
  for (const node of world.nodes) assert.deepEqual(node.state.allocations(), []);
});
