/**
 * The userspace engine beside what else moves an overlay's frames: VXLAN in the kernel, laid out by hand as Docker does
 * (the reference) and by our own kernel data plane; and of Debian's packages nebula, tinc and Open vSwitch's userspace
 * datapath. All in the same run.
 */

import { writeFileSync } from "node:fs";
import { Lab } from "../lab.ts";
import { chart } from "./chart.ts";
import { dockersLayout, ours } from "./layouts.ts";
import type { BenchOptions } from "./main.ts";
import { nebula, openVswitch, tinc } from "./peers.ts";
import { json, table, writeJson, type Goal } from "./report.ts";
import { measureRounds, type Measurement, type Variants } from "./rounds.ts";
import { connections, packetRate, roundTrip, throughput, type Pair } from "./traffic.ts";

const KERNEL = "Docker's";
const ENGINE = "engine";
const VARIANTS: Variants = {
  [KERNEL]: dockersLayout,
  kernel: (lab) => ours(lab, "kernel"),
  [ENGINE]: (lab) => ours(lab, "userspace"),
  nebula,
  tinc,
  OVS: openVswitch,
};

/** Goals are those of the project's list; the engine ÷ VXLAN in the kernel. */
const MEASUREMENTS: readonly Measurement[] = [
  {
    name: "TCP 1 stream",
    unit: "Gbit/s",
    goal: engineToKernel("≥", 0.8),
    measure: (pair, seconds) => throughput(pair, seconds, 1),
  },
  { name: "TCP 4 streams", unit: "Gbit/s", measure: (pair, seconds) => throughput(pair, seconds, 4) },
  { name: "64-byte UDP", unit: "packets/s", goal: engineToKernel("≥", 3), measure: packetRate },
  { name: "TCP connections", unit: "1/s", goal: engineToKernel("≥", 0.6), measure: connections },
  { name: "UDP round trip", unit: "µs", goal: engineToKernel("≤", 1.2), measure: roundTrip },
  // Not quite nothing: the agents probe each other's data path all the time.
  {
    name: "idle",
    unit: "CPU ms/s",
    goal: { type: "value", of: ENGINE, bound: "≤", value: 1 },
    measure: idle,
  },
];

function engineToKernel(bound: Goal["bound"], value: number): Goal {
  return { type: "ratio", of: ENGINE, to: KERNEL, bound, value };
}

/** What moves the frames uses while there are none (ms of processor time a second and host). */
async function idle({ moverNs }: Pair, seconds: number): Promise<number> {
  if (moverNs === undefined) return 0;
  const before = moverNs();
  const begun = performance.now();
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  return (moverNs() - before) / 1e3 / (performance.now() - begun) / 2;
}

export async function run(options: BenchOptions): Promise<void> {
  await using lab = Lab.create();
  const wanted = Object.entries(VARIANTS).filter(
    ([name]) => options.only.length === 0 || options.only.includes(name),
  );
  const variants = wanted.map(([name]) => name);
  const figures = await measureRounds(lab, Object.fromEntries(wanted), MEASUREMENTS, options);
  if (options.json !== undefined) writeJson(options.json, json("userspace", figures));
  if (options.svg !== undefined) {
    const note = `VXLAN in the kernel, Docker's layout = 1, longer is better; medians of ${options.rounds} rounds on 2 cores`;
    const title = "Two endpoints on two hosts, frames moved in userspace";
    writeFileSync(options.svg, chart(figures, { title, note, variants, base: KERNEL }));
  }
  if (options.json !== "-") {
    console.log(
      `VXLAN in the kernel (Docker's layout, ours), and in userspace; medians of ${options.rounds} rounds`,
    );
    console.log(table(figures, variants, [{ title: "e÷D", of: ENGINE, to: KERNEL }]));
  }
}
