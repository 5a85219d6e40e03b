import fc from "fast-check";
import { networkId, nodeId, serviceId, vni, type NodeId } from "../../../src/base/id.ts";
import { ipv4FromNumber, subnetOf, type IpAddr } from "../../../src/base/ip.ts";
import {
  encodeDefinition,
  type Definition,
  type Network,
  type NodeDefinition,
  type Service,
} from "../../../src/wire/state/definition.ts";
import type { Entry } from "../../../src/wire/state/entry.ts";
import { BUCKETS, type StateMessage } from "../../../src/wire/state/message.ts";
import type { Ring } from "../../../src/wire/state/ring.ts";
import type { Snapshot } from "../../../src/wire/state/snapshot.ts";

/** Values of every shape the formats of `wire/state` can carry. */

const id = fc.stringMatching(/^[a-z0-9]{1,25}$/);
export const anyNode: fc.Arbitrary<NodeId> = id.map(nodeId);
const name = fc.string({ unit: "binary", maxLength: 40 });
const ip: fc.Arbitrary<IpAddr> = fc.nat(0xffffffff).map((value) => ipv4FromNumber(value >>> 0));
const labels = fc
  .dictionary(fc.oneof(name, fc.constant("__proto__")), name, { maxKeys: 5 })
  .map((record) => Object.fromEntries(Object.entries(record)));

const network: fc.Arbitrary<Network> = fc
  .record({
    id: id.map(networkId),
    name,
    driver: fc.constant("overlay" as const),
    scope: fc.constant("swarm" as const),
    vni: fc.nat(0xffffff).map(vni),
    address: fc.nat(0xffffffff),
    prefixLength: fc.integer({ min: 8, max: 29 }),
    internal: fc.boolean(),
    encrypted: fc.boolean(),
    ingress: fc.boolean(),
    labels,
    created: fc.nat(2 ** 31),
    ringSeeds: fc.array(anyNode, { maxLength: 16 }),
    mtu: fc.option(fc.integer({ min: 576, max: 65535 }), { nil: undefined }),
    external: fc.option(fc.boolean(), { nil: undefined }),
  })
  .map(({ address, prefixLength, mtu, external, ...rest }) => {
    const subnet = subnetOf({ ip: ipv4FromNumber(address >>> 0), prefixLength });
    const gateway = subnet.ip.replace(/\d+$/, (octet) => String(Number(octet) + 1)) as IpAddr;
    return {
      ...rest,
      subnet,
      gateway,
      ...(mtu === undefined ? {} : { mtu }),
      ...(external === undefined ? {} : { external: external ? { ipRange: subnet } : {} }),
    };
  });

const service: fc.Arbitrary<Service> = fc.record(
  {
    id: id.map(serviceId),
    name,
    networks: fc.array(fc.record({ network: id.map(networkId), vip: ip }, { requiredKeys: ["network"] }), {
      maxLength: 4,
    }),
    ports: fc.array(
      fc.record(
        {
          published: fc.integer({ min: 1, max: 65535 }),
          target: fc.integer({ min: 1, max: 65535 }),
          protocol: fc.constantFrom("tcp" as const, "udp" as const),
          address: ip,
          mode: fc.constantFrom("ingress" as const, "host" as const),
        },
        { requiredKeys: ["published", "target", "protocol", "mode"] },
      ),
      { maxLength: 4 },
    ),
    endpointMode: fc.constantFrom("vip" as const, "dnsrr" as const),
    affinity: fc.constantFrom("none" as const, "client-ip" as const),
    labels,
    created: fc.nat(2 ** 31),
    health: fc.record({
      probe: fc.oneof(
        fc.record({ type: fc.constant("command" as const), command: name }),
        fc.record({ type: fc.constant("tcp" as const), port: fc.nat(65535) }),
      ),
      intervalMs: fc.nat(100_000),
      timeoutMs: fc.nat(100_000),
      retries: fc.nat(100),
    }),
    drainTimeoutMs: fc.nat(100_000),
  },
  { requiredKeys: ["id", "name", "networks", "ports", "endpointMode", "affinity", "labels", "created"] },
);

const node: fc.Arbitrary<NodeDefinition> = fc.record({
  id: anyNode,
  name,
  availability: fc.constantFrom("active" as const, "drain" as const),
  removed: fc.boolean(),
});

const definition: fc.Arbitrary<Definition> = fc.oneof(
  network.map((value) => ({ kind: "network" as const, value })),
  service.map((value) => ({ kind: "service" as const, value })),
  node.map((value) => ({ kind: "node" as const, value })),
);

export const anyEntry: fc.Arbitrary<Entry> = fc
  .record({
    definition,
    lamport: fc.nat(1000),
    writer: anyNode,
    dead: fc.boolean(),
    ageSeconds: fc.nat(1000),
  })
  .map(({ definition, lamport, writer, dead, ageSeconds }): Entry => {
    const { kind, value } = definition;
    const head = { kind, id: value.id, lamport, writer };
    return dead
      ? { ...head, raw: new Uint8Array(0), ageSeconds }
      : { ...head, raw: encodeDefinition(definition), definition, ageSeconds: 0 };
  });

export const anyRing: fc.Arbitrary<Ring> = fc.record({
  network: id.map(networkId),
  seeded: fc.nat(2 ** 31),
  seeder: anyNode,
  entries: fc
    .uniqueArray(
      fc.record({
        start: fc.nat(0xffffffff),
        owner: anyNode,
        version: fc.nat(2 ** 31),
        free: fc.nat(0xffffff),
      }),
      { maxLength: 20, selector: ({ start }) => start },
    )
    .map((entries) => entries.sort((a, b) => a.start - b.start)),
});

const items = {
  entries: fc.array(anyEntry, { maxLength: 5 }),
  rings: fc.array(anyRing, { maxLength: 3 }),
};
const key = fc.stringMatching(/^[a-z/]{0,40}$/);
const ask = fc.nat(0xffffffff);

export const anyMessage: fc.Arbitrary<StateMessage> = fc.oneof(
  fc.record({ type: fc.constant("update" as const), ...items }),
  fc.record({
    type: fc.constant("digest" as const),
    sender: anyNode,
    buckets: fc.array(fc.nat(0xffffffff), { minLength: BUCKETS, maxLength: BUCKETS }),
  }),
  fc.record(
    {
      type: fc.constant("page" as const),
      sender: anyNode,
      buckets: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      after: key,
      until: key,
      ...items,
    },
    { requiredKeys: ["type", "sender", "buckets", "after", "entries", "rings"] },
  ),
  fc.record(
    { type: fc.constant("ask" as const), sender: anyNode, ask, network: id.map(networkId), address: ip },
    { requiredKeys: ["type", "sender", "ask", "network"] },
  ),
  fc.record({ type: fc.constant("grant" as const), sender: anyNode, ask, ring: anyRing }),
  fc.record(
    {
      type: fc.constant("refusal" as const),
      sender: anyNode,
      ask,
      network: id.map(networkId),
      reason: fc.constantFrom("full", "taken", "not-owner", "unknown-network", "removed"),
      detail: name,
      ring: anyRing,
    },
    { requiredKeys: ["type", "sender", "ask", "network", "reason", "detail"] },
  ),
  fc.record({
    type: fc.constant("ring-query" as const),
    sender: anyNode,
    network: id.map(networkId),
    removed: fc.array(anyNode, { maxLength: 4 }),
  }),
  fc.record(
    {
      type: fc.constant("ring-answer" as const),
      sender: anyNode,
      network: id.map(networkId),
      vips: fc.array(fc.nat(0xffffffff), { maxLength: 4 }),
      ring: anyRing,
    },
    { requiredKeys: ["type", "sender", "network", "vips"] },
  ),
);

export const anySnapshot: fc.Arbitrary<Snapshot> = fc.record({
  node: anyNode,
  clock: fc.nat(2 ** 31),
  entries: fc.array(anyEntry, { maxLength: 5 }),
  externals: fc.array(network, { maxLength: 2 }),
  spaces: fc.array(
    fc.record(
      {
        network: id.map(networkId),
        ring: anyRing,
        last: fc.nat(0xffffffff),
        allocations: fc.array(
          fc.record({ address: fc.nat(0xffffffff), holder: fc.record({ id: name, name }) }),
          { maxLength: 4 },
        ),
      },
      { requiredKeys: ["network", "last", "allocations"] },
    ),
    { maxLength: 3 },
  ),
});
