/**
 * Published ports: a client, an entry node and a backend behind VXLAN in namespaces, with the rules the agent would make. Ours with
 * the client's address kept, with source NAT, and without a conntrack zone per entry node, beside the plain way through
 * the entry node (routed, nobody's rule), a chain of iptables rules as kube-proxy's, and HAProxy in TCP mode. Then what
 * many services cost.
 *
 * Each way has backend ports of its own: several of them show the backend the same address, with other TCP timestamps,
 * and a SYN that meets the other kind's TIME-WAIT with an older one is dropped.
 */

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Netns } from "../../src/kernel/netns.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import { NftTableKeeper } from "../../src/kernel/nft.ts";
import { TABLE } from "../../src/mesh/ruleset.ts";
import { VXLAN_TABLE, vxlanFilter } from "../../src/mesh/vxlan-filter.ts";
import { makeService, MeshLab, runIn, type LabBackend } from "../../test/mesh/lab.ts";
import { runCommand, mustSucceed } from "../command.ts";
import { DIST } from "../place.ts";
import type { BenchOptions } from "./main.ts";
import { SCALE_COLUMNS, scaleFigures } from "./mesh-scale.ts";
import { json, progress, table, writeJson, type Figure, type Goal } from "./report.ts";

const DIRECT = "direct";
const OURS = "ours";
const MASKED = "+SNAT";
/** Ours without a conntrack zone per entry node in the backend's namespace. */
const ZONELESS = "-zone";
const IPTABLES = "iptables";
const HAPROXY = "HAProxy";
const VARIANTS = [DIRECT, OURS, MASKED, ZONELESS, IPTABLES, HAPROXY] as const;
type Variant = (typeof VARIANTS)[number];

/** What is asked for; each kind has a server on a port of its own per variant. */
const KINDS = { connections: 8100, requests: 8200, bulk: 8300 } as const;
type Kind = keyof typeof KINDS;

/** Where a variant's client connects to, and where that leads. */
const frontPort = (kind: Kind, variant: Variant): number => KINDS[kind] + VARIANTS.indexOf(variant);
const backPort = (kind: Kind, variant: Variant): number => frontPort(kind, variant) + 1000;

interface Measurement {
  readonly name: string;
  readonly unit: string;
  readonly goal?: Goal;
}

const goal = (bound: "≥" | "≤", value: number): Goal => ({
  type: "ratio",
  of: OURS,
  to: DIRECT,
  bound,
  value,
});
const MEASUREMENTS = {
  rate: { name: "connections", unit: "1/s", goal: goal("≥", 0.9) },
  p50: { name: "  their p50", unit: "µs", goal: goal("≤", 1.1) },
  p99: { name: "  their p99", unit: "µs" },
  requests: { name: "kept, requests", unit: "1/s", goal: goal("≥", 0.95) },
  requestP99: { name: "  their p99", unit: "ms" },
  bulk: { name: "bulk", unit: "Gbit/s", goal: goal("≥", 1) },
} as const satisfies Readonly<Record<string, Measurement>>;
type Name = keyof typeof MEASUREMENTS;

export async function run(options: BenchOptions): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "netagent-bench-"));
  const children: ChildProcess[] = [];
  try {
    const netbench = await compile(folder);
    const figures = await trafficFigures(options, folder, netbench, children);
    progress("rules of many services");
    const scale = await scaleFigures(netbench, children);
    if (options.json !== undefined) writeJson(options.json, json("mesh", [...figures, ...scale]));
    if (options.json !== "-") {
      console.log(`Through one entry node; medians of ${options.rounds} rounds`);
      const ratios = [{ title: "ours÷d", of: OURS, to: DIRECT }];
      console.log(table(figures, VARIANTS, ratios));
      console.log("\nServices of ten backends on one node");
      console.log(table(scale, SCALE_COLUMNS, []));
    }
  } finally {
    for (const child of children) child.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  }
}

async function trafficFigures(
  options: BenchOptions,
  folder: string,
  netbench: string,
  children: ChildProcess[],
): Promise<Figure[]> {
  await using lab = new MeshLab();
  const backend = lab.backend();
  await tunnel(lab, backend);
  routeDirectly(lab, backend);
  for (const variant of VARIANTS) {
    await start(backend.netns, children, netbench, "tcp-serve", String(backPort("connections", variant)));
    await start(
      backend.netns,
      children,
      "iperf3",
      "-s",
      "-p",
      String(backPort("bulk", variant)),
      "--forceflush",
    );
  }
  await startHaproxy(backend.netns, children, join(folder, "web.cfg"), webConfig());
  await startHaproxy(lab.node1.netns, children, join(folder, "proxy.cfg"), proxyConfig(backend));
  const samples = new Map<Name, Record<string, number[]>>();
  const note = (name: Name, variant: Variant, value: number): void => {
    const of = samples.get(name) ?? {};
    samples.set(name, of);
    (of[variant] ??= []).push(value);
  };
  for (let round = 0; round < options.rounds; round++) {
    for (let turn = 0; turn < VARIANTS.length; turn++) {
      const variant = VARIANTS[(turn + round) % VARIANTS.length] ?? DIRECT;
      progress(`round ${round + 1} of ${options.rounds}: ${variant}`);
      await prepare(lab, backend, variant);
      const seconds = String(options.seconds);
      const target = (kind: Kind): [string, string] =>
        variant === DIRECT
          ? [backend.ingressIp, String(backPort(kind, variant))]
          : [lab.node1.address, String(frontPort(kind, variant))];
      const crr = runIn(lab.client, netbench, ["tcp-crr", ...target("connections"), seconds]);
      if (value(crr, "failed") > 0) throw new Error(`${variant}: connections failed: ${crr}`);
      note("rate", variant, value(crr, "rate"));
      note("p50", variant, value(crr, "median"));
      note("p99", variant, value(crr, "p99"));
      const [host, port] = target("requests");
      const wrk = runIn(lab.client, "wrk", [
        "-t1",
        "-c16",
        `-d${seconds}s`,
        "--latency",
        `http://${host}:${port}/`,
      ]);
      note("requests", variant, Number(/Requests\/sec:\s*([\d.]+)/.exec(wrk)?.[1] ?? NaN));
      note("requestP99", variant, milliseconds(/99%\s+(\S+)/.exec(wrk)?.[1] ?? ""));
      const [bulkHost, bulkPort] = target("bulk");
      const iperf = runIn(lab.client, "iperf3", ["-c", bulkHost, "-p", bulkPort, "-t", seconds, "-J"]);
      note("bulk", variant, bitsPerSecond(iperf) / 1e9);
    }
  }
  progress("");
  return Object.entries(MEASUREMENTS).map(([name, measurement]) => ({
    ...measurement,
    samples: samples.get(name as Name) ?? {},
  }));
}

const INGRESS_VNI = 4096;

/** The way from the entry node to the backend becomes an overlay as ours is laid out, the backend being on node 2. */
export async function tunnel(lab: MeshLab, backend: LabBackend): Promise<void> {
  const { node1, node2 } = lab;
  const backendMac = macFromIpv4(backend.ingressIp);
  const ends = [
    [node1, node1.netns, "na-ingress", node1.entry, { ip: backend.ingressIp, mac: backendMac }, node2],
    [node2, backend.netns, "eth1", { ip: backend.ingressIp, mac: backendMac }, node1.entry, node1],
  ] as const;
  for (const [node, inside, leg, own, peer, other] of ends) {
    const outside = lab.namespace(`ov${node.address.split(".").at(-1)}`);
    const [of, into] = [inside, outside].map(({ path }) => path.slice(path.lastIndexOf("/") + 1));
    lab.ip(inside, `link delete ${leg}`);
    // Made in the host's namespace, so that its socket is the host's.
    lab.ip(
      node.netns,
      `link add name vxlan0 type vxlan id ${INGRESS_VNI} local ${node.address} dstport 4789 nolearning proxy udpcsum`,
      `link set vxlan0 netns ${into}`,
    );
    lab.ip(
      outside,
      "link set vxlan0 mtu 1450 up",
      `link add link vxlan0 name leg address ${own.mac} mtu 1450 type macvlan mode bridge`,
      `link set leg name ${leg} netns ${of}`,
    );
    runIn(outside, "bridge", [
      ...["fdb", "append", peer.mac, "dev", "vxlan0"],
      ...["dst", other.address, "self", "permanent"],
    ]);
    lab.ip(
      inside,
      `address add ${own.ip}/24 dev ${leg}`,
      `link set ${leg} up`,
      `neighbor replace ${peer.ip} lladdr ${peer.mac} nud permanent dev ${leg}`,
    );
    // The overlay's own table: its packets are not tracked.
    const keeper = new NftTableKeeper(node.netns, VXLAN_TABLE);
    lab.onClose(() => keeper.close());
    await keeper.reconcile(vxlanFilter(4789, [node1.address, node2.address]));
  }
}

/** Without anybody's rule packets are routed by the entry node, and the answers back through it. */
export function routeDirectly(lab: MeshLab, backend: LabBackend): void {
  // The default may be BBR, whose pacing hides what is measured; reno is allowed in every namespace.
  for (const netns of [lab.client, backend.netns, lab.node1.netns])
    netns.writeSysctl("net.ipv4.tcp_congestion_control", "reno");
  lab.ip(lab.client, "route add 10.255.0.0/24 via 192.168.77.1");
  lab.ip(backend.netns, "route add 192.168.77.0/24 via 10.255.0.2");
}

/** Exactly one variant's rules are in place. */
async function prepare(lab: MeshLab, backend: LabBackend, variant: Variant): Promise<void> {
  for (const keeper of lab.node1.keepers.values()) await keeper.reconcile(undefined);
  runIn(lab.node1.netns, "iptables-legacy", ["-t", "nat", "-F"]);
  lab.node1.netns.writeSysctl("net.ipv4.ip_forward", 1);
  const kinds = Object.keys(KINDS) as Kind[];
  switch (variant) {
    case DIRECT:
    case HAPROXY:
      return;
    case OURS:
    case MASKED:
    case ZONELESS: {
      const publish = kinds.map(
        (kind) => [frontPort(kind, variant), backPort(kind, variant), "tcp"] as const,
      );
      await lab.node1.apply(
        [
          makeService({
            publish: publish.map(([from, to, protocol]) => [from, to, protocol]),
            backends: [backend.asBackend()],
          }),
        ],
        [backend],
        { keep: variant !== MASKED },
      );
      if (variant === ZONELESS) runIn(backend.netns, "nft", ["flush", "chain", "inet", TABLE, "entry_zone"]);
      return;
    }
    case IPTABLES: {
      const rules = kinds.map(
        (kind) =>
          `-A SERVICES -p tcp --dport ${frontPort(kind, variant)} -j DNAT --to ${backend.ingressIp}:${backPort(kind, variant)}`,
      );
      const lines = [
        "*nat",
        ":SERVICES - [0:0]",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j SERVICES",
        ...rules,
        "-A POSTROUTING -o na-ingress -j MASQUERADE",
        "COMMIT",
        "",
      ];
      runIn(lab.node1.netns, "iptables-legacy-restore", [], lines.join("\n"));
      return;
    }
  }
}

const HAPROXY_HEAD = [
  "global",
  "  maxconn 4000",
  "defaults",
  "  timeout connect 5s",
  "  timeout client 60s",
  "  timeout server 60s",
];

/** A small page, as fast as it goes. */
function webConfig(): string {
  const binds = VARIANTS.map((variant) => `  bind 0.0.0.0:${backPort("requests", variant)}`);
  const answer = "  http-request return status 200 content-type text/plain string ok";
  return [...HAPROXY_HEAD, "frontend web", "  mode http", ...binds, answer, ""].join("\n");
}

function proxyConfig(backend: LabBackend): string {
  const parts = (Object.keys(KINDS) as Kind[]).flatMap((kind) => [
    `listen ${kind}`,
    "  mode tcp",
    `  bind 0.0.0.0:${frontPort(kind, HAPROXY)}`,
    `  server backend ${backend.ingressIp}:${backPort(kind, HAPROXY)}`,
  ]);
  return [...HAPROXY_HEAD, ...parts, ""].join("\n");
}

async function startHaproxy(
  netns: Netns,
  children: ChildProcess[],
  file: string,
  config: string,
): Promise<void> {
  writeFileSync(file, config);
  const child = netns.run(() => spawnPiped("haproxy", ["-db", "-f", file]));
  children.push(child);
  // It says nothing when it is ready; its sockets do.
  const port = Number(/bind 0\.0\.0\.0:(\d+)/.exec(config)?.[1]);
  const mark = `:${port.toString(16).toUpperCase().padStart(4, "0")} `;
  for (let tries = 0; !runIn(netns, "cat", ["/proc/net/tcp"]).includes(mark); tries++) {
    if (tries > 200 || child.exitCode !== null) throw new Error(`haproxy does not listen on ${port}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Starts a server inside a namespace and waits for its first words. */
export async function start(
  netns: Netns,
  children: ChildProcess[],
  command: string,
  ...args: readonly string[]
): Promise<void> {
  const child = netns.run(() => spawnPiped(command, args));
  children.push(child);
  if (child.stdout !== null) await once(child.stdout, "data");
}

function spawnPiped(command: string, args: readonly string[]): ChildProcess {
  return spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
}

async function compile(folder: string): Promise<string> {
  const program = join(folder, "netbench");
  const source = join(DIST, "../netns-harness/bench/netbench.cc");
  mustSucceed(await runCommand(["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-o", program, source]));
  for (const needed of ["wrk", "haproxy", "iperf3", "iptables-legacy"]) {
    if (spawnSync("which", [needed]).status !== 0) throw new Error(`${needed} is missing: npm run bootstrap`);
  }
  return program;
}

/** The number behind `name=` in what netbench printed. */
export function value(output: string, name: string): number {
  const match = new RegExp(`\\b${name}=([\\d.]+)`).exec(output);
  if (match?.[1] === undefined) throw new Error(`netbench did not print ${name}: ${output}`);
  return Number(match[1]);
}

/** wrk's `1.23ms`, `456.00us`, `1.01s`. */
function milliseconds(text: string): number {
  const match = /^([\d.]+)(us|ms|s)$/.exec(text);
  const scale = { us: 0.001, ms: 1, s: 1000 }[match?.[2] ?? ""] ?? NaN;
  return Number(match?.[1] ?? NaN) * scale;
}

function bitsPerSecond(report: string): number {
  const { end } = JSON.parse(report) as {
    readonly end: { readonly sum_received: { readonly bits_per_second: number } };
  };
  return end.sum_received.bits_per_second;
}
