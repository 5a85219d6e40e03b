/**
 * Two endpoints on two hosts: over the bare underlay, over a VXLAN overlay laid out by hand as Docker lays it out, and
 * over ours. Then, once: `attach`, how long until other nodes forward, and `entries`, how fast a large cluster's are
 * programmed.
 */

import { writeFileSync } from "node:fs";
import { Lab } from "../lab.ts";
import { attachFigures } from "./attach.ts";
import { chart } from "./chart.ts";
import { dockersLayout, ours, underlay } from "./layouts.ts";
import type { BenchOptions } from "./main.ts";
import { programmingFigures } from "./programming.ts";
import { json, progress, table, writeJson, type Goal } from "./report.ts";
import { measureRounds, type Measurement, type Variants } from "./rounds.ts";
import { connections, packetRate, pingMedian, roundTrip, throughput } from "./traffic.ts";

const OURS = "ours";
const DOCKER = "Docker's";
const UNDERLAY = "underlay";
const VARIANTS: Variants = {
  [UNDERLAY]: underlay,
  [DOCKER]: dockersLayout,
  [OURS]: (lab) => ours(lab, "kernel"),
};

/** Goals are those of the project's list; ours ÷ Docker's layout. */
const MEASUREMENTS: readonly Measurement[] = [
  {
    name: "TCP 1 stream",
    unit: "Gbit/s",
    goal: oursToDockers("≥", 1.1),
    measure: (pair, seconds) => throughput(pair, seconds, 1),
  },
  {
    name: "TCP 4 streams",
    unit: "Gbit/s",
    goal: oursToDockers("≥", 1.1),
    measure: (pair, seconds) => throughput(pair, seconds, 4),
  },
  { name: "64-byte UDP", unit: "packets/s", goal: oursToDockers("≥", 1.4), measure: packetRate },
  { name: "UDP round trip", unit: "µs", goal: oursToDockers("≤", 0.8), measure: roundTrip },
  { name: "ICMP round trip", unit: "µs", measure: pingMedian },
  { name: "TCP connections", unit: "1/s", goal: oursToDockers("≥", 1.2), measure: connections },
];

function oursToDockers(bound: Goal["bound"], value: number): Goal {
  return { type: "ratio", of: OURS, to: DOCKER, bound, value };
}

export async function run(options: BenchOptions): Promise<void> {
  await using lab = Lab.create();
  const isWanted = (name: string): boolean => options.only.length === 0 || options.only.includes(name);
  const wanted = Object.fromEntries(Object.entries(VARIANTS).filter(([name]) => isWanted(name)));
  const variants = Object.keys(wanted);
  const figures = variants.length === 0 ? [] : await measureRounds(lab, wanted, MEASUREMENTS, options);
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
  if (options.svg !== undefined) {
    const note = `Docker's layout = 1, longer is better; medians of ${options.rounds} rounds in network namespaces on 2 cores`;
    const title = "Two endpoints on two hosts";
    writeFileSync(options.svg, chart(figures, { title, note, variants, base: DOCKER }));
  }
  if (options.json !== "-") {
    console.log(`Overlay between two hosts; medians of ${options.rounds} rounds`);
    const ratios = [
      { title: "D÷u", of: DOCKER, to: UNDERLAY },
      { title: "ours÷D", of: OURS, to: DOCKER },
    ];
    const only = variants.length === 0;
    console.log(table(figures, only ? [OURS] : variants, only ? [] : ratios));
  }
}
