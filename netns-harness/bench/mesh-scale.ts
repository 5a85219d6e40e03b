/** What 10 to 10,000 services of ten backends cost one node: loading, changing, memory, the first packet. */

import type { ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { endpointId, networkId, nodeName, serviceId } from "../../src/base/id.ts";
import { ipv4FromNumber, parseCidr, parseIp, type IpAddr } from "../../src/base/ip.ts";
import { NftTableKeeper } from "../../src/kernel/nft.ts";
import { HOST, MeshPlanner } from "../../src/mesh/desired.ts";
import type { Backend, MeshInput, Service } from "../../src/mesh/input.ts";
import type { Ruleset } from "../../src/mesh/ruleset.ts";
import { makeService, MeshLab, runIn, type LabBackend } from "../../test/mesh/lab.ts";
import { routeDirectly, start, value } from "./mesh.ts";
import { median, type Figure } from "./report.ts";

const SIZES = [10, 100, 1_000, 10_000];
export const SCALE_COLUMNS = SIZES.map((size) => size.toLocaleString("en"));
const BACKENDS = 10;
const CHANGES = 101;
const FIRST_PORT = 1024;
const BACKEND_PORT = 81;
const SECONDS = "1";
const LARGEST = SCALE_COLUMNS.at(-1) ?? "";

const FIGURES = {
  load: { name: "load", unit: "ms", goal: { type: "value", of: LARGEST, bound: "≤", value: 500 } },
  change: {
    name: "change one backend",
    unit: "ms",
    goal: { type: "value", of: LARGEST, bound: "≤", value: 1 },
  },
  first: {
    name: "first packet p50",
    unit: "µs",
    goal: { type: "ratio", of: LARGEST, to: SCALE_COLUMNS[0] ?? "", bound: "≤", value: 1.1 },
  },
  memory: { name: "memory", unit: "MB" },
  iptablesLoad: { name: "iptables: load", unit: "ms" },
  iptablesChange: { name: "iptables: add one", unit: "ms" },
  iptablesFirst: { name: "iptables: first p50", unit: "µs" },
  iptablesMemory: { name: "iptables: memory", unit: "MB" },
} as const satisfies Readonly<Record<string, Omit<Figure, "samples">>>;
type Name = keyof typeof FIGURES;

export async function scaleFigures(netbench: string, children: ChildProcess[]): Promise<Figure[]> {
  const samples = new Map<Name, Record<string, number[]>>();
  for (const [index, size] of SIZES.entries()) {
    const column = SCALE_COLUMNS[index] ?? "";
    await using lab = new MeshLab();
    const backend = lab.backend();
    routeDirectly(lab, backend);
    await start(backend.netns, children, netbench, "tcp-serve", String(BACKEND_PORT));
    // One namespace with ten addresses is ten backends.
    const addresses = Array.from({ length: BACKENDS }, (_, of) => parseIp(`10.255.0.${101 + of}`));
    lab.ip(backend.netns, ...addresses.map((ip) => `address add ${ip}/24 dev eth1`));
    const port = String(FIRST_PORT + size - 1);
    const measured = { ...(await ours(lab, backend, addresses, size)) };
    measured.first = value(
      runIn(lab.client, netbench, ["tcp-crr", lab.node1.address, port, SECONDS]),
      "median",
    );
    for (const keeper of lab.node1.keepers.values()) await keeper.reconcile(undefined);
    Object.assign(measured, iptables(lab, addresses, size));
    measured.iptablesFirst = value(
      runIn(lab.client, netbench, ["tcp-crr", lab.node1.address, port, SECONDS]),
      "median",
    );
    for (const [name, figure] of Object.entries(measured)) {
      const of = samples.get(name as Name) ?? {};
      samples.set(name as Name, of);
      of[column] = [figure];
    }
  }
  return Object.entries(FIGURES).map(([name, figure]) => ({
    ...figure,
    samples: samples.get(name as Name) ?? {},
  }));
}

/** Loads with a keeper of its own, changes one backend at a time; the rules stay, and the backend's are made. */
async function ours(
  lab: MeshLab,
  backend: LabBackend,
  addresses: readonly IpAddr[],
  size: number,
): Promise<Partial<Record<Name, number>>> {
  const { node1 } = lab;
  // The backend's own namespace, and every namespace's ways and switches.
  const last = service(size - 1, addresses, { local: backend });
  await node1.apply([last], [backend]);
  const planner = new MeshPlanner();
  let services = Array.from({ length: size }, (_, index) => (index === size - 1 ? last : service(index)));
  const desired = (): Ruleset => {
    const ruleset = planner.desired(inputOf(lab, services)).namespaces.get(HOST)?.ruleset;
    if (ruleset === undefined) throw new Error("the host has a ruleset");
    return ruleset;
  };
  const keeper = new NftTableKeeper(node1.netns);
  lab.onClose(() => keeper.close());
  node1.keepers.set(HOST, keeper);
  await keeper.reconcile(undefined);
  const before = kernelMegabytes();
  const startedAt = performance.now();
  await keeper.reconcile(desired());
  const load = performance.now() - startedAt;
  const memory = kernelMegabytes() - before;
  const changes: number[] = [];
  for (let change = 0; change < CHANGES; change++) {
    const at = (change * 7919) % Math.max(1, size - 1);
    const old = services[at];
    if (old === undefined) continue;
    // Away with one backend, then back with it.
    const backends = old.backends.length === BACKENDS ? old.backends.slice(1) : service(at).backends;
    services = services.slice();
    services[at] = { ...old, backends };
    const changedAt = performance.now();
    await keeper.reconcile(desired());
    changes.push(performance.now() - changedAt);
  }
  return { load, memory, change: median(changes) };
}

function iptables(lab: MeshLab, addresses: readonly IpAddr[], size: number): Partial<Record<Name, number>> {
  const lines = ["*nat", ":SERVICES - [0:0]"];
  for (let index = 0; index < size; index++) lines.push(`:SVC-${index} - [0:0]`);
  lines.push("-A PREROUTING -m addrtype --dst-type LOCAL -j SERVICES");
  for (let index = 0; index < size; index++) {
    lines.push(`-A SERVICES -p tcp --dport ${FIRST_PORT + index} -j SVC-${index}`);
    for (let of = 0; of < BACKENDS; of++) {
      const chance =
        of === BACKENDS - 1 ? "" : `-m statistic --mode random --probability ${1 / (BACKENDS - of)} `;
      const ip = index === size - 1 ? addresses[of] : backendIp(index, of);
      lines.push(`-A SVC-${index} -p tcp ${chance}-j DNAT --to ${ip}:${BACKEND_PORT}`);
    }
  }
  lines.push("-A POSTROUTING -o na-ingress -j MASQUERADE", "COMMIT", "");
  const { netns } = lab.node1;
  const before = kernelMegabytes();
  const [, iptablesLoad] = timed(() => runIn(netns, "iptables-legacy-restore", [], lines.join("\n")));
  const iptablesMemory = kernelMegabytes() - before;
  const rule = ["-t", "nat", "-A", "SVC-0", "-p", "tcp", "-j", "DNAT", "--to", `10.254.0.1:${BACKEND_PORT}`];
  const [, iptablesChange] = timed(() => runIn(netns, "iptables-legacy", rule));
  return { iptablesLoad, iptablesChange, iptablesMemory };
}

function inputOf(lab: MeshLab, services: readonly Service[]): MeshInput {
  const { entry } = lab.node1;
  return {
    node: {
      ingress: { ...entry, interface: "na-ingress", subnet: parseCidr("10.255.0.0/24") },
      entryNodes: [entry],
      overlayRanges: [parseCidr("10.9.0.0/24"), parseCidr("10.255.0.0/24")],
      keepClientAddress: true,
    },
    services,
    sandboxes: [],
  };
}

/** Its backends are nobody, or `addresses` of a real one. */
function service(
  index: number,
  addresses?: readonly IpAddr[],
  options: { readonly local?: LabBackend } = {},
): Service {
  const backends = Array.from({ length: BACKENDS }, (_, of): Backend => ({
    endpoint: endpointId(`endpoint-${index}-${of}`),
    network: networkId("blue"),
    ip: backendIp(index, of),
    ingressIp: addresses?.[of] ?? backendIp(index, of),
    node: nodeName("node"),
    state: "ready",
    capable: true,
    local: false,
  }));
  // What opens the port in the real one's namespace.
  const { local } = options;
  if (local !== undefined) backends[0] = { ...local.asBackend(), local: true };
  return {
    ...makeService({ publish: [[FIRST_PORT + index, BACKEND_PORT, "tcp"]], backends }),
    id: serviceId(`service${String(index).padStart(6, "0")}`),
    name: `service-${index}`,
  };
}

function backendIp(index: number, of: number): IpAddr {
  return ipv4FromNumber(0x0a800000 + index * 16 + of);
}

function timed<T>(run: () => T): readonly [T, number] {
  const startedAt = performance.now();
  const result = run();
  return [result, performance.now() - startedAt];
}

/** Slab and vmalloc of the whole machine: coarse, but neither nftables nor iptables says what it takes. */
function kernelMegabytes(): number {
  const text = readFileSync("/proc/meminfo", "utf8");
  let kilobytes = 0;
  for (const [, size] of text.matchAll(/^(?:Slab|VmallocUsed):\s*(\d+)/gm)) kilobytes += Number(size);
  return kilobytes / 1024;
}
