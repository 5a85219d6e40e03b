import { readFileSync } from "node:fs";
import { join } from "node:path";
import { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { Netns } from "../kernel/netns.ts";
import { FAST_LINK, namespaceName, VXLAN_LINK } from "../overlay/naming.ts";

const VXLAN_OVERHEAD = 50; // bytes over IPv4, which alone has a fast path

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
    const text = netns.run<string>(() => readFileSync("/proc/thread-self/net/dev", "utf8"));
    const slow = parseTraffic(text, VXLAN_LINK);
    const fast = parseTraffic(text, FAST_LINK);
    if (slow === undefined || fast === undefined) return slow;
    // What went out by the fast path had its outer headers already.
    const out = { ...fast.out, bytes: Math.max(0, fast.out.bytes - VXLAN_OVERHEAD * fast.out.packets) };
    return { in: sum(slow.in, fast.in), out: sum(slow.out, out) };
  } catch (error) {
    if (error instanceof NetError) return undefined;
    throw error;
  }
}

function sum(a: Traffic, b: Traffic): Traffic {
  return { bytes: a.bytes + b.bytes, packets: a.packets + b.packets, dropped: a.dropped + b.dropped };
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
