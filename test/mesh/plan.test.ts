import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { endpointId, networkId, nodeName, serviceId } from "../../src/base/id.ts";
import { ipv4FromNumber, parseCidr, parseIp } from "../../src/base/ip.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import { HOST, MeshPlanner } from "../../src/mesh/desired.ts";
import { planPurges } from "../../src/mesh/flows.ts";
import type { Backend, MeshInput, Service } from "../../src/mesh/input.ts";
import {
  type ActualTable,
  describeRepair,
  isEmptyPlan,
  planRepair,
  planSize,
  planUpdate,
  type RulesetPlan,
} from "../../src/mesh/plan.ts";
import { planReturnPath, type ActualReturnPath, type ReturnPath } from "../../src/mesh/return-path.ts";
import { flatten, rowLength, type Ruleset, sortRows } from "../../src/mesh/ruleset.ts";

test("applying the plan gives what is desired, and planning again gives nothing", () => {
  fc.assert(
    fc.property(inputs, inputs, (first, second) => {
      const planner = new MeshPlanner();
      const before = planner.desired(first);
      const after = planner.desired(second);
      for (const namespace of [HOST, "/sandbox"]) {
        const old = before.namespaces.get(namespace)?.ruleset;
        const now = after.namespaces.get(namespace)?.ruleset;
        if (old === undefined || now === undefined) continue;
        const kernel = new FakeTable();
        kernel.apply(planRepair(old, undefined));
        assert.deepEqual(kernel.rows(), comparable(old));
        kernel.apply(planUpdate(now, old));
        assert.deepEqual(kernel.rows(), comparable(now));
        assert.ok(isEmptyPlan(planUpdate(now, now)));
        assert.ok(isEmptyPlan(planRepair(now, kernel.actual(now))));
      }
    }),
    { numRuns: 60 },
  );
});

test("the answer depends on the input alone, not on what was asked before", () => {
  fc.assert(
    fc.property(inputs, inputs, (first, second) => {
      const planner = new MeshPlanner();
      planner.desired(first);
      const warm = planner.desired(second);
      const cold = new MeshPlanner().desired({ ...second, services: [...second.services].reverse() });
      assert.deepEqual(warm, cold);
    }),
    { numRuns: 60 },
  );
});

test("the client's address is kept from some moment on without taking the ports away for one", () => {
  const planner = new MeshPlanner();
  const services = [service(1, { backends: backendsOf(1, 3) })];
  const [before, after] = [false, true].map(
    (keepClientAddress) =>
      planner.desired({ ...BASE, services, node: { ...BASE.node, keepClientAddress } }).namespaces.get(HOST)
        ?.ruleset ?? assert.fail(),
  ) as [Ruleset, Ruleset];
  const plan = planUpdate(after, before);
  assert.equal(plan.skeleton, undefined);
  assert.deepEqual([...new Set(plan.changes.map(({ set }) => set.name))], ["overlay_ranges"]);
});

test("a change of one backend touches only its service's elements", () => {
  const planner = new MeshPlanner();
  const services = Array.from({ length: 200 }, (_, index) =>
    service(index, { backends: backendsOf(index, 10) }),
  );
  const input = { ...BASE, services };
  const before = planner.desired(input).namespaces.get(HOST)?.ruleset ?? assert.fail();
  const changed = services.map((of, index) =>
    index === 77 ? { ...of, backends: of.backends.slice(1) } : of,
  );
  const after =
    planner.desired({ ...BASE, services: changed }).namespaces.get(HOST)?.ruleset ?? assert.fail();
  const plan = planUpdate(after, before);
  assert.equal(plan.skeleton, undefined);
  const { added, deleted } = planSize(plan);
  assert.ok(added + deleted <= 20, `${added} added, ${deleted} deleted`);
  for (const { rows } of plan.changes) assert.equal(rows[1], 1077);
});

test("a repair tells what was wrong with the table: gone, a chain's rules, a set, single elements by key", () => {
  const services = [service(1, { backends: backendsOf(1, 2) })];
  const ruleset =
    new MeshPlanner().desired({ ...BASE, services }).namespaces.get(HOST)?.ruleset ?? assert.fail();
  const kernel = new FakeTable();
  kernel.apply(planRepair(ruleset, undefined));
  const whole = kernel.actual(ruleset);
  const told = (actual: ActualTable | undefined, fault?: string): string =>
    describeRepair(planRepair(ruleset, actual, fault));
  assert.equal(told(undefined), "it was gone: made anew");
  assert.equal(told(whole, "a rule had been replaced"), "a rule had been replaced: made anew");
  const [[chain, count] = assert.fail()] = whole.rules;
  assert.equal(
    told({ ...whole, rules: new Map(whole.rules).set(chain, count - 1) }),
    `chain ${chain} had ${count - 1} rules instead of ${count}: made anew`,
  );
  assert.equal(
    told({ ...whole, rules: new Map(whole.rules).set("mine", 1) }),
    "it had a chain mine that is not ours: made anew",
  );
  const set = ruleset.skeleton.sets.find(({ name }) => name === "ports") ?? assert.fail();
  const rows = whole.rows.get(set.name) ?? assert.fail();
  const without = { ...whole, rows: new Map(whole.rows).set(set.name, rows.slice(rowLength(set).total)) };
  assert.match(told(without), /^ports lacked 1 element \(tcp \. 1001\): added$/);
  assert.match(
    describeRepair({ changes: [{ operation: "delete", set, rows }] }),
    /^ports had 1 element too many \(tcp \. 1001\): deleted$/,
  );
});

test("the first service by id has a port that two publish, and the loser is named", () => {
  const [a, b] = [service(1, { backends: backendsOf(1, 1) }), service(2, { backends: backendsOf(2, 1) })];
  const clash = { ...b, ports: a.ports };
  const { conflicts, served } = new MeshPlanner().desired({ ...BASE, services: [clash, a] });
  assert.deepEqual(conflicts, [{ protocol: "tcp", port: 1001, winner: a.id, loser: b.id }]);
  assert.deepEqual(
    served.flat().map(({ backends }) => backends.map(({ endpoint }) => endpoint)),
    [["e1-0"]],
  );
});

test("flows to backends that are gone are purged; drained ones are not gone, and doubted ones lose what is unanswered", () => {
  const publishing = (protocol: "tcp" | "udp", backends: readonly Backend[]) =>
    new MeshPlanner().desired({
      ...BASE,
      services: [
        service(1, { ports: [{ published: 5353, target: 5353, protocol, mode: "ingress" }], backends }),
      ],
    }).flows;
  const [one, two] = backendsOf(1, 2) as [Backend, Backend];
  for (const protocol of ["tcp", "udp"] as const) {
    const both = publishing(protocol, [one, two]);
    const after = (state: Backend["state"]) =>
      planPurges(both, publishing(protocol, [{ ...one, state }, two]), BASE.sandboxes);
    assert.equal(after("draining").size, 0);
    // What nobody has answered is no established flow: a client that waits for a silent backend finds another one.
    const unanswered = { ...{ protocol, ip: one.ingressIp, port: 5353 }, unanswered: true };
    const gone = { protocol, ip: one.ingressIp, port: 5353 };
    assert.deepEqual(after("suspended").get("host"), [protocol === "tcp" ? unanswered : gone]);
    // A VIP leads any protocol.
    assert.deepEqual(after("suspended").get("/sandbox"), [
      { protocol: "tcp", ip: one.ip, unanswered: true },
      { protocol: "udp", ip: one.ip },
    ]);
    const avoiding = publishing(protocol, [{ ...one, avoid: true }, two]);
    const doubted = planPurges(both, avoiding, BASE.sandboxes);
    assert.deepEqual(doubted.get("host"), [unanswered]);
    assert.deepEqual(doubted.get("/sandbox"), [
      { protocol: "tcp", ip: one.ip, unanswered: true },
      { protocol: "udp", ip: one.ip, unanswered: true },
    ]);
    const suspended = publishing(protocol, [{ ...one, state: "suspended" }, two]);
    assert.equal(planPurges(avoiding, suspended, BASE.sandboxes).has("host"), protocol === "udp", "once");
    const purges = planPurges(both, publishing(protocol, [two]), BASE.sandboxes);
    assert.deepEqual(purges.get("host"), [{ protocol, ip: one.ingressIp, port: 5353 }]);
    assert.deepEqual(purges.get("/sandbox"), [
      { protocol: "tcp", ip: one.ip },
      { protocol: "udp", ip: one.ip },
    ]);
    assert.equal(planPurges(both, [], []).get("host")?.length, 2);
  }
});

test("the return path is planned once, follows the entry nodes, and ends with the ingress leg", () => {
  const leg = (last: number) => {
    const ip = ipv4FromNumber(0x0aff0000 + last);
    return { ip, mac: macFromIpv4(ip) };
  };
  const pathOf = (entryNodes: readonly ReturnType<typeof leg>[]) =>
    new MeshPlanner().desired({ ...BASE, node: { ...BASE.node, entryNodes } }).namespaces.get("/sandbox")
      ?.returnPath;
  const actualOf = (path: ReturnPath | undefined): ActualReturnPath => ({
    entries: new Map(path?.entries.map(({ mark, gateway }) => [mark, { interface: "eth1", gateway }])),
    ...(path?.fallback === undefined
      ? {}
      : { fallback: { interface: "eth1", gateway: path.fallback.gateway } }),
  });
  const two = pathOf([leg(3)]);
  assert.deepEqual(
    planReturnPath(two, { entries: new Map() }).map(({ type }) => type),
    ["add-entry", "add-entry", "set-fallback"],
  );
  assert.deepEqual(planReturnPath(two, actualOf(two)), []);
  assert.deepEqual(planReturnPath(pathOf([]), actualOf(two)), [{ type: "delete-entry", mark: 0x0aff0003 }]);
  assert.deepEqual(
    planReturnPath(undefined, actualOf(two)).map(({ type }) => type),
    ["delete-entry", "delete-entry", "delete-fallback"],
  );
});

/** What the kernel does with a plan; it refuses what the kernel refuses. */
class FakeTable {
  readonly #sets = new Map<string, Map<string, readonly number[]>>();

  apply(plan: RulesetPlan): void {
    if (plan.skeleton !== undefined) {
      this.#sets.clear();
      for (const { name } of plan.skeleton.sets) this.#sets.set(name, new Map());
    }
    for (const { operation, set, rows } of plan.changes) {
      const elements = this.#sets.get(set.name) ?? assert.fail();
      const { key, total } = rowLength(set);
      for (let at = 0; at < rows.length; at += total) {
        const row = Array.from(rows.subarray(at, at + total));
        const name = row.slice(0, key).join(" ");
        if (operation === "delete") assert.ok(elements.delete(name), "ENOENT");
        else {
          assert.ok(!elements.has(name), "EEXIST");
          elements.set(name, row);
        }
      }
    }
  }

  rows(): Record<string, readonly number[]> {
    const entries = [...this.#sets].map(([name, elements]) => [name, [...elements.values()]] as const);
    return Object.fromEntries(entries.map(([name, rows]) => [name, [...rows].sort(compareRows).flat()]));
  }

  actual(desired: Ruleset): ActualTable {
    const rows = new Map<string, Uint32Array>();
    for (const set of desired.skeleton.sets)
      rows.set(
        set.name,
        sortRows(set, Uint32Array.from([...(this.#sets.get(set.name)?.values() ?? [])].flat())),
      );
    return { comment: desired.skeleton.comment, rules: desired.skeleton.rules, rows };
  }
}

function comparable(ruleset: Ruleset): Record<string, readonly number[]> {
  return Object.fromEntries([...flatten(ruleset)].map(([name, rows]) => [name, Array.from(rows)]));
}

function compareRows(a: readonly number[], b: readonly number[]): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return (a[i] ?? 0) - (b[i] ?? 0);
  return 0;
}

const BLUE = networkId("blue");
const INGRESS_IP = parseIp("10.255.0.2");
const BASE: MeshInput = {
  node: {
    ingress: {
      ip: INGRESS_IP,
      mac: macFromIpv4(INGRESS_IP),
      interface: "na-ingress",
      subnet: parseCidr("10.255.0.0/16"),
    },
    entryNodes: [],
    overlayRanges: [parseCidr("10.9.0.0/16")],
    keepClientAddress: true,
  },
  services: [],
  sandboxes: [
    {
      namespace: "/sandbox",
      legs: [{ network: BLUE, ip: parseIp("10.9.0.5") }],
      ingress: { interface: "eth1", ip: parseIp("10.255.1.0") },
    },
  ],
};

function service(index: number, options: Partial<Service> = {}): Service {
  return {
    id: serviceId(`service${String(index).padStart(4, "0")}`),
    name: `service${index}`,
    endpointMode: "vip",
    affinity: "none",
    ports: [{ published: 1000 + index, target: 80, protocol: "tcp", mode: "ingress" }],
    vips: [],
    backends: [],
    ...options,
  };
}

function backendsOf(index: number, count: number): Backend[] {
  return Array.from({ length: count }, (_, backend) => ({
    endpoint: endpointId(`e${index}-${backend}`),
    network: BLUE,
    ip: ipv4FromNumber(0x0a090100 + index * 16 + backend),
    ingressIp: ipv4FromNumber(0x0aff0100 + index * 16 + backend),
    node: nodeName("node"),
    state: "ready",
    capable: true,
    local: backend === 0,
  }));
}

const services = fc.uniqueArray(
  fc.record({
    index: fc.nat(12),
    affinity: fc.constantFrom("none" as const, "client-ip" as const),
    endpointMode: fc.constantFrom("vip" as const, "dnsrr" as const),
    count: fc.nat(20),
    draining: fc.nat(20),
    incapable: fc.nat(20),
    vip: fc.boolean(),
    shift: fc.nat(2),
    mode: fc.constantFrom("ingress" as const, "host" as const),
    address: fc.option(fc.constantFrom(parseIp("192.0.2.1"), parseIp("2001:db8::1")), { nil: undefined }),
    protocol: fc.constantFrom("tcp" as const, "udp" as const),
  }),
  { selector: ({ index }) => index, maxLength: 8 },
);

const inputs: fc.Arbitrary<MeshInput> = fc
  .record({
    services,
    ingress: fc.boolean(),
    keep: fc.boolean(),
  })
  .map(({ services: specs, ingress, keep }) => {
    const { ingress: leg, ...facts } = BASE.node;
    return {
      ...BASE,
      node: {
        ...facts,
        ...(ingress && leg !== undefined ? { ingress: leg } : {}),
        keepClientAddress: keep,
      },
      services: specs.map((spec) =>
        service(spec.index, {
          affinity: spec.affinity,
          endpointMode: spec.endpointMode,
          // Neighbors may publish the same port: conflicts must not break the plan.
          ports: [
            {
              published: 1000 + spec.index + spec.shift,
              target: 80,
              protocol: spec.protocol,
              mode: spec.mode,
              ...(spec.address === undefined ? {} : { address: spec.address }),
            },
          ],
          vips: spec.vip ? [{ network: BLUE, ip: ipv4FromNumber(0x0a09ff00 + spec.index + spec.shift) }] : [],
          backends: backendsOf(spec.index, spec.count).map((of, i) => ({
            ...of,
            state: i < spec.draining ? "draining" : "ready",
            capable: i >= spec.incapable,
          })),
        }),
      ),
    };
  });
