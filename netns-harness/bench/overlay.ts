/**
 * Two endpoints on two hosts: over the bare underlay, over a VXLAN overlay laid out by hand as Docker lays it out, and
 * over ours. Variants are measured in turn within each round, so that a ratio compares neighbours in time. Then, once:
 * `attach`, how long until other nodes forward, and `entries`, how fast a large cluster's are programmed.
 */

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Lab } from "../lab.ts";
import type { Host } from "../host.ts";
import { DIST, started, type Place } from "../place.ts";
import { attachFigures } from "./attach.ts";
import { chart } from "./chart.ts";
import type { BenchOptions } from "./main.ts";
import { compile, value } from "./netbench.ts";
import { programmingFigures } from "./programming.ts";
import { json, table, writeJson, type Figure, type Goal } from "./report.ts";

/** Where traffic runs: from `near` to `far`, which answers on `address`. */
type Pair = { readonly near: Place; readonly far: Place; readonly address: string };

/** One figure: how to measure it once on a pair. */
type Measurement = {
  readonly name: string;
  readonly unit: string;
  readonly goal?: Goal;
  measure(pair: Pair, seconds: number, netbench: string): Promise<number>;
};

const OURS = "ours";
const DOCKER = "Docker's";
const UNDERLAY = "underlay";
const PORT = 7000;
const CPU_NEAR = "0";
const CPU_FAR = "1";
const PINGS = 300;
const VNI = 4097;
const OVERLAY_MTU = 1450;

/** Goals are those of the project's list; ours ÷ Docker's layout. */
const MEASUREMENTS: readonly Measurement[] = [
  {
    name: "TCP 1 stream",
    unit: "Gbit/s",
    goal: { type: "ratio", of: OURS, to: DOCKER, bound: "≥", value: 1.1 },
    measure: (pair, seconds) => throughput(pair, seconds, 1),
  },
  {
    name: "TCP 4 streams",
    unit: "Gbit/s",
    goal: { type: "ratio", of: OURS, to: DOCKER, bound: "≥", value: 1.1 },
    measure: (pair, seconds) => throughput(pair, seconds, 4),
  },
  {
    name: "64-byte UDP",
    unit: "packets/s",
    goal: { type: "ratio", of: OURS, to: DOCKER, bound: "≥", value: 1.4 },
    measure: packetRate,
  },
  {
    name: "UDP round trip",
    unit: "µs",
    goal: { type: "ratio", of: OURS, to: DOCKER, bound: "≤", value: 0.8 },
    measure: async (pair, seconds, netbench) => {
      // Both ends on one core: what is compared is the path, not the waking of another core.
      const pinned = ["taskset", "-c", CPU_NEAR, netbench] as const;
      return withServer(pair, [...pinned, "udp-echo", String(PORT)], async () =>
        value(
          await pair.near.run(...pinned, "udp-rr", pair.address, String(PORT), String(seconds)),
          "median",
        ),
      );
    },
  },
  { name: "ICMP round trip", unit: "µs", measure: pingMedian },
  {
    name: "TCP connections",
    unit: "1/s",
    goal: { type: "ratio", of: OURS, to: DOCKER, bound: "≥", value: 1.2 },
    measure: async (pair, seconds, netbench) =>
      withServer(pair, ["taskset", "-c", CPU_FAR, netbench, "tcp-serve", String(PORT)], async () => {
        const output = await pair.near.run(
          ...([
            "taskset",
            "-c",
            CPU_NEAR,
            netbench,
            "tcp-crr",
            pair.address,
            String(PORT),
            String(seconds),
          ] as const),
        );
        if (value(output, "failed") > 0) throw new Error(`connections failed: ${output}`);
        return value(output, "rate");
      }),
  },
];

export async function run(options: BenchOptions): Promise<void> {
  await using lab = Lab.create();
  const netbench = await compile(lab);
  const makers: Readonly<Record<string, (lab: Lab) => Promise<Pair>>> = {
    [UNDERLAY]: underlay,
    [DOCKER]: dockersLayout,
    ...(existsSync(join(DIST, "src/agent/main.js")) ? { [OURS]: ours } : {}),
  };
  const isWanted = (name: string): boolean => options.only.length === 0 || options.only.includes(name);
  const variants = Object.keys(makers).filter(isWanted);
  const pairs = new Map<string, Pair>();
  for (const name of variants) {
    const pair = await makers[name]?.(lab);
    if (pair === undefined) continue;
    if (!(await pair.near.pings(pair.address))) throw new Error(`${name}: ${pair.address} does not answer`);
    pairs.set(name, pair);
  }
  const samples = MEASUREMENTS.map(() => Object.fromEntries(variants.map((name) => [name, [] as number[]])));
  for (let round = 0; round < options.rounds && variants.length > 0; round++) {
    for (const [index, measurement] of MEASUREMENTS.entries()) {
      progress(`round ${round + 1} of ${options.rounds}: ${measurement.name}`);
      // Who comes first changes, so that nobody always follows the same neighbour.
      for (let turn = 0; turn < variants.length; turn++) {
        const name = variants[(turn + round) % variants.length] ?? "";
        const pair = pairs.get(name);
        if (pair === undefined) continue;
        samples[index]?.[name]?.push(await measurement.measure(pair, options.seconds, netbench));
      }
    }
  }
  progress("");
  const measured = variants.length === 0 ? [] : MEASUREMENTS;
  const figures: Figure[] = measured.map(({ name, unit, goal }, index) => ({
    ...{ name, unit, samples: samples[index] ?? {} },
    ...(goal === undefined ? {} : { goal }),
  }));
  if (isWanted("attach")) {
    progress("attach until the other nodes forward");
    figures.push(...(await attachFigures(lab, OURS)));
    progress("");
  }
  if (isWanted("entries")) {
    progress("programming 72,000 entries");
    figures.push(...(await programmingFigures(lab, OURS)));
    progress("");
  }
  if (options.json !== undefined) writeJson(options.json, json("overlay", figures));
  if (options.svg !== undefined) writeFileSync(options.svg, drawn(figures, variants, options.rounds));
  if (options.json !== "-") {
    console.log(`Overlay between two hosts; medians of ${options.rounds} rounds`);
    const ratios = [
      { title: "D÷u", of: DOCKER, to: UNDERLAY },
      ...(variants.includes(OURS) ? [{ title: "ours÷D", of: OURS, to: DOCKER }] : []),
    ];
    console.log(
      table(figures, variants.length === 0 ? [OURS] : variants, variants.length === 0 ? [] : ratios),
    );
    if (!existsSync(join(DIST, "src/agent/main.js"))) console.log("(ours: no agent in dist/)");
  }
}

function drawn(figures: readonly Figure[], variants: readonly string[], rounds: number): string {
  return chart(figures, {
    title: "Two endpoints on two hosts",
    note: `Docker's layout = 1, longer is better; medians of ${rounds} rounds in network namespaces on 2 cores`,
    variants,
    base: DOCKER,
  });
}

async function underlay(lab: Lab): Promise<Pair> {
  const [near, far] = [lab.host("plain1", "192.168.1.11"), lab.host("plain2", "192.168.1.12")];
  return { near, far, address: far.address };
}

/**
 * What `docker network create -d overlay` leads to on two nodes: a namespace per network with br0 (gateway address,
 * no default VLAN) and a VXLAN device made on the host (proxy, learning, l2miss, l3miss), a veth pair to the
 * container, permanent neighbor and FDB entries for the other side. The namespace keeps the kernel's defaults, so
 * br_netfilter hands every bridged packet to iptables' hooks, as it does under Docker.
 */
async function dockersLayout(lab: Lab): Promise<Pair> {
  const hosts = [lab.host("docker1", "192.168.1.21"), lab.host("docker2", "192.168.1.22")] as const;
  const [near, far] = [
    await dockerNode(lab, hosts[0], hosts[1], "10.0.1.2", "10.0.1.3"),
    await dockerNode(lab, hosts[1], hosts[0], "10.0.1.3", "10.0.1.2"),
  ];
  return { near, far, address: "10.0.1.3" };
}

async function dockerNode(lab: Lab, host: Host, peer: Host, own: string, other: string): Promise<Place> {
  const overlay = lab.sandbox(host, "ov");
  const container = lab.sandbox(host, "c");
  const ip = (place: Place, line: string): Promise<string> =>
    place.run("ip", ...(line.split(" ") as [string]));
  const name = `vx-${VNI.toString(16).padStart(6, "0")}-abcde`;
  await ip(host, `link add ${name} type vxlan id ${VNI} dstport 4789 proxy learning l2miss l3miss`);
  await ip(host, `link set ${name} netns ${overlay.netns} name vxlan0`);
  await ip(overlay, `link add name br0 type bridge vlan_default_pvid 0`);
  await ip(overlay, `address add 10.0.1.1/24 dev br0`);
  await ip(overlay, `link add veth0 type veth peer name eth0 netns ${container.netns}`);
  for (const port of ["vxlan0", "veth0"])
    await ip(overlay, `link set ${port} mtu ${OVERLAY_MTU} master br0 up`);
  await ip(overlay, `link set br0 mtu ${OVERLAY_MTU} up`);
  await ip(container, `link set eth0 mtu ${OVERLAY_MTU} address ${dockerMac(own)} up`);
  await ip(container, `address add ${own}/24 dev eth0`);
  await ip(overlay, `neighbor replace ${other} lladdr ${dockerMac(other)} nud permanent dev vxlan0`);
  await overlay.run(
    ...([
      "bridge",
      "fdb",
      "replace",
      dockerMac(other),
      "dev",
      "vxlan0",
      "dst",
      peer.address,
      "self",
      "permanent",
    ] as const),
  );
  return container;
}

/** `02:42` and the four bytes of the address. */
function dockerMac(address: string): string {
  const bytes = address.split(".").map((byte) => Number(byte).toString(16).padStart(2, "0"));
  return ["02", "42", ...bytes].join(":");
}

/** Two agents, one network, two sandboxes attached. */
async function ours(lab: Lab): Promise<Pair> {
  const [host1, host2] = [lab.host("ours1", "192.168.1.31"), lab.host("ours2", "192.168.1.32")];
  await host1.start();
  await host2.start({ join: [host1] });
  await host1.ctl("network", "create", "bench", "--subnet", "10.0.2.0/24");
  const [near, far] = [lab.sandbox(host1, "c"), lab.sandbox(host2, "c")];
  await host1.ctl("attach", "--network", "bench", "--netns", near.netns, "--name", "near");
  const { ip } = await host2.ctlJson<{ ip: string }>(
    "attach",
    "--network",
    "bench",
    "--netns",
    far.netns,
    "--name",
    "far",
  );
  return { near, far, address: ip };
}

async function throughput(pair: Pair, seconds: number, streams: number): Promise<number> {
  return withServer(
    pair,
    ["iperf3", "-s", "-p", String(PORT), "--forceflush"],
    async () => {
      const output = await pair.near.run(
        ...([
          "iperf3",
          "-c",
          pair.address,
          "-p",
          String(PORT),
          "-P",
          String(streams),
          "-t",
          String(seconds),
        ] as const),
        // The first moments are slow start; cubic, because BBR paces itself by round trips of microseconds.
        ...["-O", "0.3", "-C", "cubic", "-A", `${CPU_NEAR},${CPU_FAR}`, "-J"],
      );
      const report = JSON.parse(output) as { end: { sum_received: { bits_per_second: number } } };
      return report.end.sum_received.bits_per_second / 1e9;
    },
    "Server listening",
  );
}

/** Datagrams of 64 bytes of payload that arrive, per second. */
async function packetRate(pair: Pair, seconds: number, netbench: string): Promise<number> {
  const sink = pair.far.spawn([
    "taskset",
    "-c",
    CPU_FAR,
    netbench,
    "udp-sink",
    String(PORT),
    String(seconds),
  ]);
  try {
    await started(sink, "listening on");
    await pair.near.run(
      ...([
        "taskset",
        "-c",
        CPU_NEAR,
        netbench,
        "udp-blast",
        pair.address,
        String(PORT),
        "64",
        String(seconds + 0.5),
      ] as const),
    );
    await sink.exited;
    return value(sink.output(), "rate");
  } finally {
    await sink.stop("SIGKILL");
  }
}

/** Median round trip of pings 2 ms apart. */
async function pingMedian(pair: Pair): Promise<number> {
  const output = await pair.near.run(
    ...(["taskset", "-c", CPU_NEAR, "ping", "-n", "-c", String(PINGS), "-i", "0.002", pair.address] as const),
  );
  const times = [...output.matchAll(/time=([\d.]+) ms/g)]
    .map((match) => Number(match[1]) * 1000)
    .sort((a, b) => a - b);
  return times[Math.floor(times.length / 2)] ?? NaN;
}

async function withServer<T>(
  pair: Pair,
  argv: readonly [string, ...string[]],
  measure: () => Promise<T>,
  mark = "listening on",
): Promise<T> {
  const server = pair.far.spawn(argv);
  try {
    await started(server, mark);
    return await measure();
  } finally {
    await server.stop("SIGKILL");
  }
}

/** The number behind `name=` in what netbench printed. */
/** One line on a terminal, overwritten by the next. */
function progress(line: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${line}`);
  else if (line !== "") console.error(line);
}
