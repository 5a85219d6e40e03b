/**
 * Figures of the mesh's control side, printed and never asserted: `node dist/test/mesh/bench.js`, as root.
 * Loads services of ten backends each into a namespace of its own, changes one backend at a time, reads back.
 */
import { spawnSync } from "node:child_process";
import { endpointId, nodeName, networkId, serviceId } from "../../src/base/id.ts";
import { ipv4FromNumber, parseCidr, parseIp } from "../../src/base/ip.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import { Netns } from "../../src/kernel/netns.ts";
import { NftTableKeeper } from "../../src/kernel/nft.ts";
import { HOST, MeshPlanner } from "../../src/mesh/desired.ts";
import type { Backend, MeshInput, Service } from "../../src/mesh/input.ts";
import { planSize } from "../../src/mesh/plan.ts";
import type { Ruleset } from "../../src/mesh/ruleset.ts";

const SIZES = [10, 100, 1_000, 10_000];
const CHANGES = 101;
const BLUE = networkId("blue");
const INGRESS_IP = parseIp("10.0.0.2");

for (const size of SIZES) await measure(size);

async function measure(size: number): Promise<void> {
  const path = `/run/netns/na-${process.pid}-bench`;
  using netns = Netns.create(path);
  try {
    const planner = new MeshPlanner();
    let services = Array.from({ length: size }, (_, index) => service(index));
    const desired = (): Ruleset => {
      const ruleset = planner.desired(inputOf(services)).namespaces.get(HOST)?.ruleset;
      if (ruleset === undefined) throw new Error("the host has a ruleset");
      return ruleset;
    };
    using keeper = new NftTableKeeper(netns);
    const before = slabBytes();
    const [ruleset, decideMs] = timed(desired);
    const cpuBefore = process.cpuUsage();
    const startedAt = performance.now();
    const { plan } = await keeper.reconcile(ruleset);
    const loadMs = performance.now() - startedAt;
    const cpu = process.cpuUsage(cpuBefore);
    const memory = slabBytes() - before;
    const figures: Record<"decide" | "apply", number[]> = { decide: [], apply: [] };
    for (let change = 0; change < CHANGES; change++) {
      const at = (change * 7919) % size;
      const old = services[at] as Service;
      // Away with one backend, then back with it.
      const backends = old.backends.length === 10 ? old.backends.slice(1) : service(at).backends;
      services = services.slice();
      services[at] = { ...old, backends };
      const [next, ms] = timed(desired);
      const appliedAt = performance.now();
      await keeper.reconcile(next);
      figures.apply.push(performance.now() - appliedAt);
      figures.decide.push(ms);
    }
    const [, readMs] = timed(() => keeper.read(ruleset.skeleton.sets));
    const [, sweepMs] = timed(() => keeper.plan(desired()));
    console.log(
      [
        `${size} services × 10 backends`,
        `${planSize(plan).added} elements`,
        `decided in ${decideMs.toFixed(0)} ms`,
        `loaded in ${loadMs.toFixed(0)} ms (${((cpu.user + cpu.system) / 1000).toFixed(0)} ms of CPU)`,
        `${(memory / 2 ** 20).toFixed(1)} MB of kernel slab`,
        `one backend changed: decide ${median(figures.decide).toFixed(2)} ms, plan and apply ${median(figures.apply).toFixed(2)} ms (medians of ${CHANGES})`,
        `read back and sorted in ${readMs.toFixed(0)} ms`,
        `sweep without change ${sweepMs.toFixed(2)} ms`,
      ].join("; "),
    );
  } finally {
    Netns.remove(path);
  }
}

function inputOf(services: readonly Service[]): MeshInput {
  return {
    node: {
      ingress: {
        ip: INGRESS_IP,
        mac: macFromIpv4(INGRESS_IP),
        interface: "na-ingress",
        subnet: parseCidr("10.0.0.0/8"),
      },
      entryNodes: [],
      overlayRanges: [parseCidr("10.0.0.0/8")],
      keepClientAddress: true,
    },
    services,
    sandboxes: [],
  };
}

function service(index: number): Service {
  const backends = Array.from({ length: 10 }, (_, of): Backend => ({
    endpoint: endpointId(`endpoint-${index}-${of}`),
    network: BLUE,
    ip: ipv4FromNumber(0x0a100000 + index * 16 + of),
    ingressIp: ipv4FromNumber(0x0a800000 + index * 16 + of),
    node: nodeName("node"),
    state: "ready",
    capable: true,
    local: false,
  }));
  return {
    id: serviceId(`service${String(index).padStart(6, "0")}`),
    name: `service-${index}`,
    endpointMode: "vip",
    affinity: "none",
    ports: [{ published: 1024 + index, target: 80, protocol: "tcp", mode: "ingress" }],
    vips: [],
    backends,
  };
}

function timed<T>(run: () => T): readonly [T, number] {
  const startedAt = performance.now();
  const value = run();
  return [value, performance.now() - startedAt];
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** Kernel slab of the whole machine: coarse, but nft reports no memory of its own. */
function slabBytes(): number {
  const text = spawnSync("grep", ["^Slab:", "/proc/meminfo"], { encoding: "utf8" }).stdout;
  return Number(/\d+/.exec(text)?.[0] ?? 0) * 1024;
}
