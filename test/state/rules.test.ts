import assert from "node:assert/strict";
import { test } from "node:test";
import { parseCidr } from "../../src/base/ip.ts";
import type { NetworkSpec, ServiceSpec } from "../../src/state/request.ts";
import { World, type WorldNode } from "./world.ts";

test("each wrong network is refused with one line: what, why and the cure", () => {
  const node = lonely();
  const host = [parseCidr("192.168.1.104/24"), parseCidr("0.0.0.0/0")];
  const refuse = (spec: Partial<NetworkSpec>): string =>
    node.refuse({ type: "create-network", spec: { name: "new", ...spec }, hostSubnets: host });
  create(node, { name: "blue", subnet: "10.5.0.0/16", vni: 5000 });
  const cases: [Partial<NetworkSpec>, RegExp][] = [
    [{ name: "" }, /^name-invalid: .*1 to 63/],
    [{ name: "a b" }, /^name-invalid: /],
    [{ name: "x".repeat(64) }, /^name-invalid: /],
    [{ name: "\u001b[31m" }, /^name-invalid: create network '\?\[31m'/],
    [{ name: "blue" }, /^network-exists: .*taken/],
    [{ name: "ingress" }, /^network-exists: /],
    [{ subnet: "10.1.2" }, /^subnet-invalid: .*ADDRESS\/PREFIX-LENGTH/],
    [{ subnet: "10.1.2.0/33" }, /^subnet-invalid: /],
    [{ subnet: "10.1.2.3/24" }, /^subnet-invalid: .*did you mean 10\.1\.2\.0\/24/],
    [{ subnet: "fd00::/64" }, /^subnet-invalid: .*IPv4/],
    [{ subnet: "10.1.2.0/30" }, /^subnet-too-small: .*\/29/],
    [{ subnet: "127.0.0.0/16" }, /^subnet-invalid: /],
    [{ subnet: "224.0.0.0/8" }, /^subnet-invalid: /],
    [{ subnet: "10.5.7.0/24" }, /^subnet-overlap: .*10\.5\.0\.0\/16 of network blue/],
    [{ subnet: "10.255.1.0/24" }, /^subnet-overlap: .*network ingress/],
    [{ subnet: "192.168.0.0/16" }, /^subnet-overlap: .*this host/],
    [{ subnet: "10.1.2.0/24", gateway: "10.1.3.1" }, /^gateway-outside: /],
    [{ subnet: "10.1.2.0/24", gateway: "10.1.2.255" }, /^gateway-outside: /],
    [{ subnet: "10.1.2.0/24", gateway: "x" }, /^gateway-invalid: /],
    [{ vni: 5000 }, /^vni-taken: .*network blue/],
    [{ vni: 4096 }, /^vni-invalid: .*4097 … 16777213/],
    [{ vni: 16777216 }, /^vni-invalid: /],
    [{ vni: 1.5 }, /^vni-invalid: /],
    [{ mtu: 100 }, /^mtu-invalid: /],
    [{ labels: { key: "v".repeat(2000) } }, /^label-invalid: /],
    [{ external: { id: "abc" } }, /^subnet-missing: /],
    [{ external: { id: "abc" }, subnet: "10.1.2.0/24" }, /^vni-missing: /],
    [{ external: { id: "a/b" }, subnet: "10.1.2.0/24", vni: 1 }, /^id-invalid: /],
    [
      { external: { id: "abc", ipRange: "10.2.0.0/25" }, subnet: "10.1.2.0/24", vni: 1 },
      /^range-outside: .*--ip-range 10\.2\.0\.0\/25 is not inside 10\.1\.2\.0\/24/,
    ],
  ];
  for (const [spec, expected] of cases) {
    const message = refuse(spec);
    assert.match(message, expected, JSON.stringify(spec));
    assert.doesNotMatch(message, /\n/);
  }
  assert.equal(node.state.networks().length, 2, "nothing is half done");
});

test("each wrong service is refused with one line: what, why and the cure", () => {
  const node = lonely();
  create(node, { name: "blue" });
  create(node, { name: "their", external: { id: "docker1" }, subnet: "10.77.0.0/24", vni: 4099 });
  const port = { published: 8000, target: 80, protocol: "tcp" as const };
  const answer = node.get({
    type: "create-service",
    spec: { name: "web1", ports: [port], networks: ["blue"] },
  });
  assert.ok(answer.type === "service");
  const cases: [Partial<ServiceSpec>, RegExp][] = [
    [{ name: "web1" }, /^service-exists: /],
    [{ name: "-web" }, /^name-invalid: /],
    [{ networks: ["green"] }, /^network-unknown: no network 'green': known are ingress, blue/],
    [{ networks: ["ingress"] }, /^network-ingress: /],
    [{ networks: ["their"] }, /^network-external: /],
    [{ ports: [{ ...port, published: 0 }] }, /^port-invalid: .*1 … 65535/],
    [{ ports: [{ ...port, published: 65536 }] }, /^port-invalid: /],
    [{ ports: [{ ...port, target: Number.NaN }] }, /^port-invalid: /],
    [{ ports: [port] }, /^port-published: .*8000\/tcp is already published by service web1/],
    [{ ports: [{ ...port, address: "192.0.2.1" }] }, /^port-published: .*web1/],
    [{ ports: [{ ...port, published: 9000, address: "x" }] }, /^address-invalid: /],
    [
      {
        ports: [
          { ...port, published: 1 },
          { ...port, published: 1, target: 2 },
        ],
      },
      /^port-published: .*twice/,
    ],
    [{ ports: [{ ...port, published: 9 }], endpointMode: "dnsrr" }, /^publish-dnsrr: .*mode=host/],
    [{ drainTimeoutMs: -1 }, /^drain-timeout-invalid: /],
    [
      { health: { probe: { type: "tcp", port: 0 }, intervalMs: 1000, timeoutMs: 100, retries: 3 } },
      /^health-invalid: /,
    ],
  ];
  for (const [spec, expected] of cases) {
    const message = node.refuse({ type: "create-service", spec: { name: "web2", ...spec } });
    assert.match(message, expected, JSON.stringify(spec));
  }
  assert.equal(node.state.services().length, 1);
  assert.equal(node.state.allocations().length, 2, "virtual IPs of refused services are given back");
  // The same port for the other protocol, or on another address beside one on an address, is another port.
  for (const [name, other] of [
    ["udp", { ...port, protocol: "udp" as const }],
    ["a", { ...port, published: 7000, address: "192.0.2.1" }],
    ["b", { ...port, published: 7000, address: "192.0.2.2" }],
  ] as const)
    node.get({ type: "create-service", spec: { name, ports: [other] } });
});

test("wanted addresses: taken by whom, reserved, outside, not an address", () => {
  const node = lonely();
  create(node, { name: "blue", subnet: "10.5.0.0/29" });
  const attach = (id: string, address?: string) =>
    ({
      type: "allocate" as const,
      network: "blue",
      holder: { id, name: `endpoint ${id}` },
      ...(address === undefined ? {} : { address }),
    }) as const;
  node.get(attach("e1", "10.5.0.3"));
  assert.match(
    node.refuse(attach("e2", "10.5.0.3")),
    /^address-taken: .*taken by endpoint e1 \(on this node\)/,
  );
  assert.match(node.refuse(attach("e2", "10.5.0.1")), /^address-reserved: .*gateway/);
  assert.match(node.refuse(attach("e2", "10.5.0.0")), /^address-reserved: /);
  assert.match(node.refuse(attach("e2", "10.5.0.7")), /^address-reserved: .*broadcast/);
  assert.match(node.refuse(attach("e2", "10.6.0.1")), /^address-outside: .*10\.5\.0\.0\/29/);
  assert.match(node.refuse(attach("e2", "10.6.0")), /^address-invalid: /);
  assert.match(node.refuse(attach("e1", "10.5.0.4")), /^address-held: .*has 10\.5\.0\.3 already/);
  assert.deepEqual(node.get(attach("e1")), node.get(attach("e1", "10.5.0.3")), "asking again gives the same");
  for (const id of ["e2", "e3", "e4", "e5"]) node.get(attach(id));
  assert.match(
    node.refuse(attach("e6")),
    /^address-none: .*no address left in blue \(10\.5\.0\.0\/29\): this node owns 6, all in use/,
  );
});

test("an external network is this node's alone: addresses from --ip or the range given, no ring", () => {
  const world = new World({ seed: 1, nodes: 2 });
  const [a, b] = world.nodes as [WorldNode, WorldNode];
  create(a, {
    name: "swarm",
    external: { id: "0bj4oe2ikuh9xxlsu6ejn73zd", ipRange: "10.77.0.64/30" },
    subnet: "10.77.0.0/24",
    vni: 4100,
  });
  world.run(5000);
  assert.equal(b.state.networks().length, 1);
  const give = (id: string, address?: string) =>
    a.get({
      type: "allocate",
      network: "swarm",
      holder: { id, name: id },
      ...(address === undefined ? {} : { address }),
    });
  const given = ["e1", "e2", "e3", "e4"].map((id) => give(id));
  assert.deepEqual(
    given.map((result) => result.type === "address" && result.address.ip),
    ["10.77.0.64", "10.77.0.65", "10.77.0.66", "10.77.0.67"],
  );
  give("e5", "10.77.0.9");
  const full = a.refuse({ type: "allocate", network: "swarm", holder: { id: "e6", name: "e6" } });
  assert.match(full, /^address-none: .*10\.77\.0\.64\/30 .*is full; give an address with --ip/);
  a.crash();
  a.restart();
  assert.equal(a.state.findNetwork("swarm").external?.ipRange?.prefixLength, 30);
  assert.equal(a.state.allocations().length, 5);
});

function lonely(): WorldNode {
  const [node] = new World({ seed: 1, nodes: 1 }).nodes;
  assert.ok(node);
  return node;
}

function create(node: WorldNode, spec: NetworkSpec): void {
  node.get({ type: "create-network", spec, hostSubnets: [] });
}
