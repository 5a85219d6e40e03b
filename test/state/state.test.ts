import assert from "node:assert/strict";
import { test } from "node:test";
import { parseCidr } from "../../src/base/ip.ts";
import { World, type WorldNode } from "./world.ts";

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
