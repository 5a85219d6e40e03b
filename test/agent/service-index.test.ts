import assert from "node:assert/strict";
import { test } from "node:test";
import { ServiceIndex } from "../../src/agent/service-index.ts";
import { endpointId, nodeId, nodeName, type ServiceId } from "../../src/base/id.ts";
import { ipToBytes, ipv4FromNumber, parseIp } from "../../src/base/ip.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import { randomInt, seededRandom, type Random } from "../../src/base/random.ts";
import { instant } from "../../src/base/time.ts";
import type { GossipEffect, GossipInput } from "../../src/cluster/boundary.ts";
import { GossipNode } from "../../src/cluster/gossip-node.ts";
import type { Service } from "../../src/mesh/input.ts";
import { ownRows, type OwnRow } from "../../src/overlay/rows.ts";
import { INGRESS } from "../../src/state/ingress.ts";
import { LAN } from "../../src/swim/config.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { ENDPOINT_TABLE } from "../../src/wire/networkdb/records.ts";
import { forEachSeed } from "../sim/seed.ts";

test("kept up row by row, the index is what a new one reads; what did not change stays the same object", () => {
  forEachSeed(20, (seed) => {
    const random = seededRandom(seed);
    const { node, handle, index } = nodeWithIndex(random);
    const services = ["a", "b", "c"].map((name, place) => createService(handle, name, 8000 + place));
    const present = new Set<number>();
    for (let step = 0; step < 60; step++) {
      const number = randomInt(random, 8);
      const before = new Map(index.services().map((service) => [service.id, service]));
      const service = services[randomInt(random, services.length)] as ServiceId;
      if (present.has(number) && randomInt(random, 3) === 0) {
        handle({ type: "networkdb", input: { type: "delete-row", ...rowOf(number, service, false) } });
        present.delete(number);
      } else {
        const row = rowOf(number, service, randomInt(random, 2) === 0);
        handle({ type: "networkdb", input: { type: "put-row", ...row } });
        present.add(number);
      }
      const now = index.services();
      const fresh = new ServiceIndex({ node });
      assert.deepEqual(sorted(now), sorted(fresh.services()), `step ${step}`);
      for (const one of now) {
        const old = before.get(one.id);
        if (old !== undefined && old !== one)
          assert.notDeepEqual(old, one, "another object only for another state");
      }
      assert.equal(index.services(), now, "nothing changed: the same list");
    }
  });
});

test("a backend that fails is avoided while it does, and so is what it has on other networks", () => {
  const { handle, index } = nodeWithIndex(seededRandom(1));
  const service = createService(handle, "web", 8000);
  for (const number of [1, 2])
    handle({ type: "networkdb", input: { type: "put-row", ...rowOf(number, service, false) } });
  const avoided = (): readonly string[] =>
    index
      .services()
      .flatMap(({ backends }) => backends.filter((one) => one.avoid === true).map(({ ip }) => ip));
  assert.deepEqual(avoided(), []);
  const failing = { ip: parseIp("10.255.0.2"), protocol: "tcp", port: 80 } as const;
  assert.equal(index.setFailing([failing]), true);
  assert.deepEqual(avoided(), ["10.255.0.2"]);
  assert.equal(index.setFailing([failing]), false);
  index.setFailing([{ ...failing, port: 81 }]);
  assert.deepEqual(avoided(), [], "another port says nothing");
});

type Handle = (input: GossipInput) => readonly GossipEffect[];

/** One node, alone, on the ingress network, with an index that hears of every row. */
function nodeWithIndex(random: Random): {
  readonly node: GossipNode;
  readonly handle: Handle;
  readonly index: ServiceIndex;
} {
  const ip = parseIp("192.0.2.1");
  const node = new GossipNode(
    {
      name: nodeName("0123456789ab"),
      facts: { id: nodeId("node"), name: "node", vteps: [ip], capabilities: ["return-path"], version: "0" },
      address: { socket: { ip, port: 7946 }, bytes: ipToBytes(ip) },
      compat: "docker",
      sealing: UNSEALED,
      swim: LAN,
      state: {},
      random,
      nonce: () => new Uint8Array(12),
    },
    instant(0),
  );
  const index = new ServiceIndex({ node });
  const handle = (input: GossipInput): readonly GossipEffect[] => {
    const effects = node.handle(input, instant(1_000));
    for (const effect of effects)
      if (effect.type === "row-changed") index.rowChanged(effect.network, effect.table, effect.key);
    return effects;
  };
  handle({ type: "start", seed: true, unixSeconds: 1 });
  handle({ type: "networkdb", input: { type: "join-network", network: INGRESS.id } });
  return { node, handle, index };
}

function createService(handle: Handle, name: string, published: number): ServiceId {
  let id: ServiceId | undefined;
  const spec = { name, ports: [{ published, target: 80, protocol: "tcp" as const }] };
  for (const effect of handle({ type: "state", input: { type: "create-service", request: published, spec } }))
    if (effect.type === "state" && effect.effect.type === "done" && effect.effect.result.type === "service")
      id = effect.effect.result.service.id;
  assert.ok(id !== undefined, "the service was made");
  return id;
}

/** The name of a backend's leg, number 1 … 200, in the ingress network. */
function rowOf(number: number, service: ServiceId, disabled: boolean): OwnRow {
  const ip = ipv4FromNumber(0x0aff0000 + number);
  const rows = ownRows(
    {
      id: endpointId(String(number).padStart(64, "0")),
      network: INGRESS.id,
      name: `backend.${number}`,
      aliases: [],
      ip,
      prefixLength: 16,
      mac: macFromIpv4(ip),
      service: { id: service, name: "of its own" },
      ports: [],
      named: true,
      disabled,
    },
    parseIp("192.0.2.1"),
  );
  const row = rows.find(({ table }) => table === ENDPOINT_TABLE);
  assert.ok(row !== undefined);
  return row;
}

/** Backends are in the order their rows came, which says nothing. */
function sorted(services: readonly Service[]): Service[] {
  return services.map((service) => ({
    ...service,
    backends: [...service.backends].sort((a, b) => (a.endpoint < b.endpoint ? -1 : 1)),
  }));
}
