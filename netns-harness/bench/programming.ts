/**
 * How fast the reconciler brings a large cluster's forwarding entries into the kernel, and how long the event loop, and
 * so gossip, waits meanwhile. The reconciler itself over the kernel's dataplane, in a host of the lab.
 */

import { instant } from "../../src/base/time.ts";
import { endpointId, networkId, vni } from "../../src/base/id.ts";
import { ipv4FromNumber, parseCidr, parseIp } from "../../src/base/ip.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import { Reconciler } from "../../src/agent/reconciler.ts";
import { VxlanDataplane } from "../../src/kernel/vxlan-dataplane.ts";
import { deriveOverlay, type DesiredInput, type RemotePeer } from "../../src/overlay/desired.ts";
import type { Lab } from "../lab.ts";
import type { Figure } from "./report.ts";

/** A size that was reported from the field (moby 52661). */
const NEIGHBORS = 42_000;
const FDB_ENTRIES = 30_000;
const REPEATS = 5;
const PATIENCE_MS = 60_000;

export async function programmingFigures(lab: Lab, variant: string): Promise<Figure[]> {
  const host = lab.host("large", "192.168.1.51");
  const sandbox = lab.sandbox(host, "c");
  const dataplane = new VxlanDataplane({ runDirectory: host.runFolder, hostNamespace: host.netnsPath });
  let peers: readonly RemotePeer[] = [];
  const id = networkId("large");
  // Writing alone, as the dataplane sees it: the rest of a round is deriving, planning and reading.
  let writingMs = 0;
  const apply = dataplane.apply.bind(dataplane);
  dataplane.apply = (desired, steps) => {
    const start = performance.now();
    const applied = apply(desired, steps);
    writingMs += performance.now() - start;
    return applied;
  };
  const reconciler = new Reconciler({
    dataplane,
    desired: () => deriveOverlay(input(id, sandbox.netnsPath, peers)),
    mayPrune: () => true,
    beforeDevice: () => Promise.resolve(),
    every: () => () => undefined,
    now: () => instant(performance.now()),
    onRepair: () => undefined,
    onStanding: () => undefined,
    onFailure: (_network, error) => console.error(error.message),
  });
  const samples = { rate: [] as number[], round: [] as number[], wait: [] as number[] };
  try {
    await reconciler.settled(id, PATIENCE_MS);
    for (let repeat = 0; repeat < REPEATS; repeat++) {
      peers = manyPeers();
      writingMs = 0;
      const waits = watchLoop();
      const start = performance.now();
      await reconciler.settled(id, PATIENCE_MS);
      samples.round.push(performance.now() - start);
      samples.wait.push(waits.stop());
      samples.rate.push((NEIGHBORS + FDB_ENTRIES) / (writingMs / 1_000));
      peers = [];
      await reconciler.settled(id, PATIENCE_MS);
    }
  } finally {
    reconciler.close();
    dataplane.close();
  }
  const goal = { type: "value", of: variant, bound: "≥", value: 200_000 } as const;
  return [
    { name: "entries programmed", unit: "1/s", samples: { [variant]: samples.rate }, goal },
    { name: "  72,000 in all", unit: "ms", samples: { [variant]: samples.round } },
    { name: "  longest wait", unit: "ms", samples: { [variant]: samples.wait } },
  ];
}

function input(
  id: DesiredInput["network"]["id"],
  sandbox: string,
  peers: readonly RemotePeer[],
): DesiredInput {
  const vtep = parseIp("192.168.1.51");
  const ip = parseIp("10.0.0.2");
  const network = {
    id,
    name: "large",
    vni: vni(4097),
    subnet: parseCidr("10.0.0.0/8"),
    gateway: parseIp("10.0.0.1"),
    mtu: 1450,
    dataPathPort: 4789,
    internal: false,
    encrypted: false,
  };
  const local = {
    id: endpointId("c"),
    network: id,
    ip,
    prefixLength: 8,
    mac: macFromIpv4(ip),
    ifname: "eth0",
    sandbox: { type: "netns", path: sandbox },
  } as const;
  return { network, linkKind: "macvlan", vtep, ownVteps: [vtep], endpoints: [local], peers };
}

function manyPeers(): RemotePeer[] {
  return Array.from({ length: NEIGHBORS }, (_, index) => ({
    endpoint: endpointId(`p${index}`),
    ip: ipv4FromNumber(0x0a100000 + index),
    prefixLength: 8,
    mac: macFromIpv4(ipv4FromNumber(0x0a100000 + (index % FDB_ENTRIES))),
    vtep: ipv4FromNumber(0xc0a80202 + ((index % FDB_ENTRIES) % 200)),
  }));
}

/** Measures how long something that only wants its turn has to wait for it. */
function watchLoop(): { stop(): number } {
  let longest = 0;
  let last = performance.now();
  let timer = setTimeout(tick, 1);
  function tick(): void {
    const now = performance.now();
    longest = Math.max(longest, now - last - 1);
    last = now;
    timer = setTimeout(tick, 1);
  }
  return {
    stop: () => {
      clearTimeout(timer);
      return longest;
    },
  };
}
