/**
 * How long after `netctl attach` on one node the other nodes forward to the new endpoint: the moment the last of them
 * has both the neighbor and the FDB entry, told by the kernel's own notifications.
 */

import { join } from "node:path";
import { Client } from "../../src/cli/client.ts";
import type { EndpointView, NetworkView } from "../../src/agent/control-protocol.ts";
import { mustSucceed, type Background } from "../command.ts";
import { attach } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { overlayLinks } from "../observe.ts";
import { DIST, type Place } from "../place.ts";
import { waitFor } from "../wait.ts";
import type { Figure } from "./report.ts";
import { WireTap } from "./wire.ts";

/** What the package installs as netctl; `Host.ctl` runs it as at a terminal, all in node. */
const NETCTL = join(DIST, "../native/build/Release/netctl");
const REPEATS = 20;
const PATIENCE_MS = 5_000;

/**
 * Figures in ms until the last node forwards: from the start of netctl by a program and as at a terminal, and from the
 * moment the agent is asked; from the row's arrival on the wire until that node's kernel has it; and for scale what an
 * empty program of node's takes.
 */
export async function attachFigures(lab: Lab, variant: string): Promise<Figure[]> {
  const nodes = ["41", "42", "43"].map((last) => lab.host(`quick${last}`, `192.168.1.${last}`));
  const [first, ...others] = nodes;
  if (first === undefined) return [];
  await first.start();
  for (const node of others) await node.start({ join: [first] });
  await first.ctlJson<NetworkView>("network", "create", "quick", "--subnet", "10.0.3.0/24");
  for (const node of others) {
    await waitFor(`${node.name} to know quick`, () => node.netctl("network", "inspect", "quick"), {
      withinMs: PATIENCE_MS,
      until: (result) => result.code === 0,
    });
    await attach(lab, node, "quick", "there");
  }
  const monitors = await Promise.all(others.map(watchEntries));
  const taps = await Promise.all(others.map((node) => WireTap.start(node)));
  const kernel: { readonly id: string; readonly node: number; readonly at: number }[] = [];
  const client = new Client(first.socketPath, () => {});
  const words = ["attach", "--network", "quick", "--netns"] as const;
  const ways: readonly ((sandbox: Place) => Promise<EndpointView>)[] = [
    async ({ netns }) => {
      const { stdout } = mustSucceed(await first.exec([NETCTL, "-o", "json", ...words, netns]));
      return JSON.parse(stdout) as EndpointView;
    },
    ({ netns }) => first.ctlJson<EndpointView>(...words, netns),
    ({ netnsPath }) => client.call("attach", { network: "quick", sandbox: { netns: netnsPath } }),
  ];
  const samples = ways.map((): number[] => []);
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    for (const [way, attachBy] of ways.entries()) {
      const sandbox = lab.sandbox(first, `q${repeat}-${way}`);
      const start = Date.now();
      const { ip, mac, id } = await attachBy(sandbox);
      const seen = await Promise.all(monitors.map((monitor) => bothEntries(monitor, ip, mac, start)));
      samples[way]?.push(Math.max(...seen) - start);
      kernel.push(...seen.map((at, node) => ({ id, node, at })));
      await client.call("detach", { endpoint: id, force: true });
      lab.removeSandbox(sandbox);
    }
  }
  for (const monitor of monitors) await monitor.stop("SIGKILL");
  const wire = await Promise.all(taps.map((tap) => tap.stop()));
  const arrived = kernel.flatMap(({ id, node, at }) => {
    const since = wire[node]?.get(id);
    return since === undefined ? [] : [at - since];
  });
  const node: number[] = [];
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const start = performance.now();
    await first.exec([process.execPath, "-e", "0"]);
    node.push(performance.now() - start);
  }
  const [byFront = [], byNode = [], asked = []] = samples;
  const goal = { type: "value", of: variant, bound: "≤", value: 50 } as const;
  return [
    { name: "netctl attach, forwards", unit: "ms", samples: { [variant]: byFront }, goal },
    { name: "  of which the agent", unit: "ms", samples: { [variant]: asked } },
    {
      name: "  of which wire to kernel",
      unit: "ms",
      samples: { [variant]: arrived },
      goal: { type: "value", of: variant, bound: "≤", value: 2 },
    },
    { name: "at a terminal, forwards", unit: "ms", samples: { [variant]: byNode } },
    { name: "  of which starting node", unit: "ms", samples: { [variant]: node } },
  ];
}

/** Prints each neighbor and FDB entry of the network's namespace with the time it was made. */
async function watchEntries(host: Host): Promise<Background> {
  const device = (await overlayLinks(host)).find(
    (link) => link.kind === "vxlan" && link.where.startsWith("ov-"),
  );
  if (device === undefined) throw new Error(`${host.name} has no VXLAN device`);
  return host.spawn(["nsenter", `--net=${device.path}`, "ip", "-tshort", "monitor", "neigh"]);
}

/** When (ms since 1970) the later of the two entries appeared, not before `since`. */
async function bothEntries(monitor: Background, ip: string, mac: string, since: number): Promise<number> {
  const times = await waitFor(`the entries of ${ip}`, () => entryTimes(monitor.lines(), ip, mac, since), {
    withinMs: PATIENCE_MS,
    until: ([neighbor, fdb]) => neighbor !== undefined && fdb !== undefined,
    everyMs: 10,
  });
  return Math.max(...times.map((time) => time ?? 0));
}

function entryTimes(
  lines: readonly string[],
  ip: string,
  mac: string,
  since: number,
): [number | undefined, number | undefined] {
  const found: [number | undefined, number | undefined] = [undefined, undefined];
  for (const line of lines) {
    const match = /^\[([\dT:.-]+)\] (\S+) dev \S+ lladdr (\S+) (.*)$/.exec(line);
    if (match === null || match[3] !== mac || line.includes("Deleted")) continue;
    const time = milliseconds(match[1] ?? "");
    if (time < since) continue;
    // The FDB's entry shows the VTEP in place of the address.
    const index = match[2] === ip ? 0 : 1;
    found[index] ??= time;
  }
  return found;
}

/** `2026-11-25T19:34:14.123456` in local time, with its microseconds, which Date has no room for. */
function milliseconds(text: string): number {
  const [second = "", fraction = "0"] = text.split(".");
  return Date.parse(second) + Number(`0.${fraction}`) * 1_000;
}
