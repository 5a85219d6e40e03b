/**
 * Names: our server inside a sandbox beside dnsmasq inside another, asked the same by the same client. Variants are
 * measured in turn within each round. Server and client have a core each.
 */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { attach } from "../endpoints.ts";
import { Lab } from "../lab.ts";
import { addressesOf } from "../names.ts";
import { started, type Place } from "../place.ts";
import { waitFor } from "../wait.ts";
import type { BenchOptions } from "./main.ts";
import { compile, value } from "./netbench.ts";
import { json, table, writeJson, type Figure, type Goal } from "./report.ts";

const OURS = "ours";
const DNSMASQ = "dnsmasq";
const SERVER_CPU = "1";
const CLIENT_CPU = "0";
const ADDRESS = "127.0.0.11";
const BACKENDS = 10;
const OUTSTANDING = 32;
const PATIENCE_MS = 15_000;

/** Names both know, and how many answers each has. */
const NAMES = [
  ["web", "service", 1],
  ["tasks.web", `${BACKENDS} backends`, BACKENDS],
] as const;

type Sample = { readonly figure: string; readonly value: number };

export async function run(options: BenchOptions): Promise<void> {
  await using lab = Lab.create();
  const netbench = await compile(lab);
  const makers: Readonly<Record<string, (lab: Lab) => Promise<Place>>> = { [DNSMASQ]: dnsmasq, [OURS]: ours };
  const variants = Object.keys(makers).filter(
    (name) => options.only.length === 0 || options.only.includes(name),
  );
  const places = new Map<string, Place>();
  for (const name of variants) {
    const place = await makers[name]?.(lab);
    if (place !== undefined) places.set(name, place);
  }
  const figures = new Map<string, Figure>();
  for (let round = 0; round < options.rounds; round++) {
    for (let turn = 0; turn < variants.length; turn++) {
      const variant = variants[(turn + round) % variants.length] ?? "";
      const place = places.get(variant);
      if (place === undefined) continue;
      process.stderr.write(`\r\x1b[Kround ${round + 1} of ${options.rounds}: ${variant}`);
      for (const sample of await measure(place, netbench, options.seconds)) {
        let figure = figures.get(sample.figure);
        if (figure === undefined) {
          const [name = "", unit = ""] = sample.figure.split(", ");
          const samples = Object.fromEntries(variants.map((one) => [one, [] as number[]]));
          figures.set(sample.figure, (figure = { name, unit, samples, ...goalOf(unit) }));
        }
        (figure.samples[variant] as number[]).push(sample.value);
      }
    }
  }
  process.stderr.write("\r\x1b[K");
  const all = [...figures.values()];
  if (options.json !== undefined) writeJson(options.json, json("dns", all));
  if (options.json === "-") return;
  console.log(`Names over UDP inside a sandbox; medians of ${options.rounds} rounds`);
  console.log(`busy: ${OUTSTANDING} questions at a time; alone: one at a time\n`);
  console.log(table(all, variants, [{ title: "÷ dnsmasq", of: OURS, to: DNSMASQ }]));
}

function goalOf(unit: string): { goal?: Goal } {
  return unit === "1/s" ? { goal: { type: "ratio", of: OURS, to: DNSMASQ, bound: "≥", value: 0.5 } } : {};
}

async function measure(place: Place, netbench: string, seconds: number): Promise<Sample[]> {
  const samples: Sample[] = [];
  for (const [name, what, answers] of NAMES) {
    const ask = (outstanding: number): Promise<string> =>
      place.run(
        ...(["taskset", "-c", CLIENT_CPU, netbench, "dns", ADDRESS, "53", name] as const),
        ...[String(answers), String(outstanding), String(seconds)],
      );
    const busy = await ask(OUTSTANDING);
    const alone = await ask(1);
    samples.push(
      { figure: `${what} busy, 1/s`, value: value(busy, "rate") },
      { figure: `${what} busy p99, µs`, value: value(busy, "p99") },
      { figure: `${what} alone p50, µs`, value: value(alone, "median") },
      { figure: `${what} alone p99, µs`, value: value(alone, "p99") },
    );
  }
  return samples;
}

/** A sandbox of ours: a service with ten backends on the same network. */
async function ours(lab: Lab): Promise<Place> {
  const host = lab.host("ours", "192.168.1.71");
  await host.start();
  await host.ctl("network", "create", "blue");
  await host.ctl("service", "create", "web", "--network", "blue");
  for (let i = 1; i <= BACKENDS; i++) await attach(lab, host, "blue", `web.${i}`, "--service", "web");
  const { place } = await attach(lab, host, "blue", "box");
  await knows(place);
  await host.run("taskset", "-a", "-c", "-p", SERVER_CPU, String(host.agent.pid));
  return place;
}

/** The same names served by dnsmasq, at the same address without a redirection. */
async function dnsmasq(lab: Lab): Promise<Place> {
  const host = lab.host("masq", "192.168.1.72");
  const place = lab.sandbox(host, "box");
  const hosts = join(place.folder, "hosts");
  const backends = Array.from({ length: BACKENDS }, (_, index) => `10.0.9.${index + 11} tasks.web`);
  writeFileSync(hosts, ["10.0.9.2 web", ...backends, ""].join("\n"));
  const flags = ["--no-daemon", "--no-resolv", "--no-hosts", `--addn-hosts=${hosts}`, "--port=53"];
  const server = place.spawn([
    ...(["taskset", "-c", SERVER_CPU, "dnsmasq"] as const),
    ...flags,
    ...[`--listen-address=${ADDRESS}`, "--bind-interfaces", "--user=root", "--pid-file="],
  ]);
  await started(server, "read");
  await knows(place);
  return place;
}

async function knows(place: Place): Promise<void> {
  for (const [name, , answers] of NAMES) {
    await waitFor(`${name} to be known in ${place.name}`, () => addressesOf(place, name), {
      withinMs: PATIENCE_MS,
      until: (seen) => seen.startsWith("10.") && seen.split(" ").length === answers,
    });
  }
}
