import { readFileSync } from "node:fs";
import { NetError } from "../base/error.ts";
import { elapsed, type Instant } from "../base/time.ts";
import { Netns } from "../kernel/netns.ts";

const SAMPLE_MS = 60_000;
/** Growth within this is told. */
const WINDOW_MS = 600_000;
/** Sandboxes looked into; where offload is broken it is for all of them. */
const MAX_SANDBOXES = 64;

/** Packets that came with a wrong checksum and that the kernel dropped. */
export interface BadChecksums {
  /** `host`: of the outer packets. A sandbox's path: of what was inside. */
  readonly place: string;
  readonly packets: number;
}

/**
 * A network card that miscalculates checksums of VXLAN packets, or of those within, leaves no trace but a counter of
 * the receiver's kernel; ping works and TCP crawls.
 */
export class ChecksumWatch {
  readonly #now: () => Instant;
  readonly #sandboxes: () => Iterable<string>;
  readonly #timer: NodeJS.Timeout;
  #samples: { readonly at: Instant; readonly errors: ReadonlyMap<string, number> }[] = [];

  constructor(now: () => Instant, sandboxes: () => Iterable<string>) {
    this.#now = now;
    this.#sandboxes = sandboxes;
    this.#sample();
    this.#timer = setInterval(() => this.#sample(), SAMPLE_MS);
    this.#timer.unref();
  }

  /** What came in the last ten minutes, or since the start; places where nothing did are left out. */
  recent(): BadChecksums[] {
    const now = this.#sample();
    return [...now].flatMap(([place, errors]) => {
      // A sandbox that was not there at first counts from when it was first seen.
      const before = this.#samples.find((sample) => sample.errors.has(place))?.errors.get(place);
      const packets = errors - (before ?? errors);
      return packets > 0 ? [{ place, packets }] : [];
    });
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #sample(): ReadonlyMap<string, number> {
    const at = this.#now();
    const errors = new Map<string, number>();
    using host = Netns.current();
    errors.set("host", readChecksumErrors(host));
    for (const path of new Set(this.#sandboxes())) {
      if (errors.size > MAX_SANDBOXES) break;
      try {
        using sandbox = Netns.open(path);
        errors.set(path, readChecksumErrors(sandbox));
      } catch (error) {
        if (!(error instanceof NetError)) throw error; // it has just gone
      }
    }
    this.#samples = this.#samples.filter((sample) => elapsed(sample.at, at) <= WINDOW_MS);
    this.#samples.push({ at, errors });
    return errors;
  }
}

function readChecksumErrors(netns: Netns): number {
  return parseChecksumErrors(netns.run<string>(() => readFileSync("/proc/thread-self/net/snmp", "utf8")));
}

/** Sum of the counters named InCsumErrors of UDP and TCP in /proc/net/snmp: a line of names, then one of values. */
export function parseChecksumErrors(text: string): number {
  const lines = text.split("\n");
  let sum = 0;
  for (let at = 0; at + 1 < lines.length; at += 2) {
    const names = lines[at]?.split(" ") ?? [];
    const values = lines[at + 1]?.split(" ") ?? [];
    const column = names.indexOf("InCsumErrors");
    if ((names[0] === "Udp:" || names[0] === "Tcp:") && column > 0) sum += Number(values[column] ?? 0);
  }
  return sum;
}
