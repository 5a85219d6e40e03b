/**
 * Figures of the mesh's data path, printed and never asserted: `node dist/test/mesh/traffic-bench.js [ROUNDS]`, as
 * root, with g++ and iperf3. One client, one entry node, one backend in namespaces; direct (routed, no rule of
 * anybody), through the mesh with the client's address kept, and with source NAT, in turns; medians and ratios to direct.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { once } from "node:events";
import type { Netns } from "../../src/kernel/netns.ts";
import { makeService, MeshLab, runIn } from "./lab.ts";

const ROUNDS = Number(process.argv[2] ?? 5);
const SECONDS = "1";
const VARIANTS = ["direct", "mesh, client address kept", "mesh, source NAT"] as const;
type Variant = (typeof VARIANTS)[number];
type Figure = "connections/s" | "p50 of a connection, µs" | "bulk, Gbit/s";

const directory = mkdtempSync(join(tmpdir(), "netagent-bench-"));
const netbench = join(directory, "netbench");
const children: ChildProcess[] = [];
try {
  const compiled = spawnSync("g++", ["-O2", "-o", netbench, "netns-harness/bench/netbench.cc"], {
    stdio: "inherit",
  });
  if (compiled.status !== 0)
    throw new Error("netbench does not compile (run this from the project's directory)");
  await using lab = new MeshLab();
  const backend = lab.backend();
  const service = makeService({
    publish: [
      [8001, 81, "tcp"],
      [8002, 82, "tcp"],
      [8003, 5201, "tcp"],
    ],
    backends: [backend.asBackend()],
  });
  for (const netns of [lab.client, backend.netns, lab.node1.netns])
    // The default here is BBR, whose pacing hides what is measured; reno is allowed in every namespace.
    netns.writeSysctl("net.ipv4.tcp_congestion_control", "reno");
  // Direct: the client's packets are routed by the entry node, and the answers back through it.
  lab.ip(lab.client, "route add 10.255.0.0/24 via 192.168.77.1");
  lab.ip(backend.netns, "route add 192.168.77.0/24 via 10.255.0.2");
  /*
   * Each way has a port of its own: direct and kept connections have the same addresses and ports at the backend but
   * other TCP timestamps, and a SYN that meets the other kind's TIME-WAIT with an older one is dropped.
   */
  for (const port of ["80", "81", "82"]) await startIn(backend.netns, netbench, ["tcp-serve", port]);
  await startIn(backend.netns, "iperf3", ["-s", "--forceflush"]);
  const figures = new Map<string, number[]>();
  const note = (variant: Variant, figure: Figure, value: number): void => {
    const key = `${variant}: ${figure}`;
    figures.set(key, [...(figures.get(key) ?? []), value]);
  };
  for (let round = 0; round < ROUNDS; round++) {
    for (const variant of VARIANTS) {
      if (variant === "direct") {
        for (const keeper of lab.node1.keepers.values()) await keeper.reconcile(undefined);
        lab.node1.netns.writeSysctl("net.ipv4.ip_forward", 1);
      } else {
        await lab.node1.apply([service], [backend], { keep: variant !== "mesh, source NAT" });
      }
      const host = variant === "direct" ? backend.ingressIp : lab.node1.address;
      const web = { direct: "80", "mesh, client address kept": "8001", "mesh, source NAT": "8002" }[variant];
      const bulk = variant === "direct" ? "5201" : "8003";
      const crr = runIn(lab.client, netbench, ["tcp-crr", host, web, SECONDS]);
      const numbers = [...crr.matchAll(/=([\d.]+)/g)].map(([, text]) => Number(text));
      note(variant, "connections/s", numbers[0] ?? Number.NaN);
      note(variant, "p50 of a connection, µs", numbers[1] ?? Number.NaN);
      const report = JSON.parse(
        runIn(lab.client, "iperf3", ["-c", host, "-p", bulk, "-t", SECONDS, "-J"]),
      ) as {
        readonly end: { readonly sum_received: { readonly bits_per_second: number } };
      };
      note(variant, "bulk, Gbit/s", report.end.sum_received.bits_per_second / 1e9);
    }
  }
  for (const figure of ["connections/s", "p50 of a connection, µs", "bulk, Gbit/s"] as const) {
    const direct = median(figures.get(`direct: ${figure}`) ?? []);
    for (const variant of VARIANTS) {
      const value = median(figures.get(`${variant}: ${figure}`) ?? []);
      console.log(`${figure}; ${variant}: ${value.toFixed(1)}; ÷ direct ${(value / direct).toFixed(2)}`);
    }
  }
} finally {
  for (const child of children) child.kill("SIGKILL");
  rmSync(directory, { recursive: true });
}

/** Starts a server inside a namespace and waits for its first words. */
async function startIn(netns: Netns, command: string, args: readonly string[]): Promise<void> {
  const child = netns.run(() => spawnPiped(command, args));
  children.push(child);
  if (child.stdout !== null) await once(child.stdout, "data");
}

function spawnPiped(command: string, args: readonly string[]): ChildProcess {
  return spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}
