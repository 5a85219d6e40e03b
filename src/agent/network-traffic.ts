import { readFileSync } from "node:fs";
import { join } from "node:path";
import { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { Netns } from "../kernel/netns.ts";
import { namespaceName, VXLAN_LINK } from "../overlay/naming.ts";

/** What has crossed a network's device on this node since the device was made. */
export interface Traffic {
  readonly bytes: number;
  readonly packets: number;
  /** Counted by the device: errors, and frames it had no place or no way for. */
  readonly dropped: number;
}

export interface NetworkTraffic {
  readonly in: Traffic;
  readonly out: Traffic;
}

/** Undefined where the network has no device here. */
export function readNetworkTraffic(runDirectory: string, network: NetworkId): NetworkTraffic | undefined {
  try {
    using netns = Netns.open(join(runDirectory, "netns", namespaceName(network)));
    return parseTraffic(
      netns.run<string>(() => readFileSync("/proc/thread-self/net/dev", "utf8")),
      VXLAN_LINK,
    );
  } catch (error) {
    if (error instanceof NetError) return undefined;
    throw error;
  }
}

/**
 * One line of /proc/net/dev: received bytes, packets, errors, drops, four more, then the same of what was sent.
 * Undefined when there is no such device.
 */
export function parseTraffic(text: string, device: string): NetworkTraffic | undefined {
  const line = text.split("\n").find((one) => one.trimStart().startsWith(`${device}:`));
  if (line === undefined) return undefined;
  const values = line
    .slice(line.indexOf(":") + 1)
    .trim()
    .split(/\s+/)
    .map(Number);
  const traffic = (at: number): Traffic => ({
    bytes: values[at] ?? 0,
    packets: values[at + 1] ?? 0,
    dropped: (values[at + 2] ?? 0) + (values[at + 3] ?? 0),
  });
  return { in: traffic(0), out: traffic(8) };
}
