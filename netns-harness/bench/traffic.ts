/**
 * Traffic between two places, measured once: what every bench of a data plane measures, with the same commands. Where
 * two processors matter, the near end has the first and the far end the second.
 */

import { started, type Place } from "../place.ts";
import { value } from "./netbench.ts";

/** Where traffic runs: from `near` to `far`, which answers on `address`. */
export type Pair = {
  readonly near: Place;
  readonly far: Place;
  readonly address: string;
  /** Processor time (ns) so far of the processes or threads that move its frames; without, the kernel does. */
  readonly moverNs?: () => number;
};

const PORT = 7000;
const CPU_NEAR = "0";
const CPU_FAR = "1";
const PINGS = 300;

/** What one or more TCP streams deliver (Gbit/s). */
export async function throughput(pair: Pair, seconds: number, streams: number): Promise<number> {
  return withServer(
    pair,
    ["iperf3", "-s", "-p", String(PORT), "--forceflush"],
    async () => {
      const output = await pair.near.run(
        ...(["iperf3", "-c", pair.address, "-p", String(PORT), "-P", String(streams)] as const),
        // Whole seconds only: of 0.7 it makes 0, which is for ever.
        ...["-t", String(Math.ceil(seconds))],
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
export async function packetRate(pair: Pair, seconds: number, netbench: string): Promise<number> {
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

/** Median round trip of a datagram (µs). Both ends on one core: the path is compared, not the waking of another core. */
export async function roundTrip(pair: Pair, seconds: number, netbench: string): Promise<number> {
  const pinned = ["taskset", "-c", CPU_NEAR, netbench] as const;
  return withServer(pair, [...pinned, "udp-echo", String(PORT)], async () =>
    value(await pair.near.run(...pinned, "udp-rr", pair.address, String(PORT), String(seconds)), "median"),
  );
}

/** Connections a second, one after the other: connect, a request, its answer, the end. */
export async function connections(pair: Pair, seconds: number, netbench: string): Promise<number> {
  return withServer(pair, ["taskset", "-c", CPU_FAR, netbench, "tcp-serve", String(PORT)], async () => {
    const client = ["taskset", "-c", CPU_NEAR, netbench] as const;
    const output = await pair.near.run(...client, "tcp-crr", pair.address, String(PORT), String(seconds));
    if (value(output, "failed") > 0) throw new Error(`connections failed: ${output}`);
    return value(output, "rate");
  });
}

/** Median round trip of pings 2 ms apart. */
export async function pingMedian(pair: Pair): Promise<number> {
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
