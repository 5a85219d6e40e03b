/** Namespaces for kernel tests: hosts on one underlay segment, sandboxes in which endpoints land. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { networkId, type NetworkId, vni } from "../../src/base/id.ts";
import { endpointId } from "../../src/base/id.ts";
import { ipv4FromNumber, parseCidr, parseIp } from "../../src/base/ip.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import {
  DEFAULT_LINK_KIND,
  type DesiredOverlay,
  desiredOverlay,
  type LinkKind,
  type LocalEndpoint,
  type OverlayNetwork,
  overlayMtu,
  type RemotePeer,
} from "../../src/overlay/desired.ts";
import { formatStep, type OverlayPlan, planOverlay } from "../../src/overlay/plan.ts";
import type { AppliedStep, Dataplane } from "../../src/kernel/dataplane.ts";
import { IPROUTE_NETNS_DIRECTORY, Netns } from "../../src/kernel/netns.ts";
import { TapDataplane } from "../../src/kernel/tap-dataplane.ts";
import { VxlanDataplane } from "../../src/kernel/vxlan-dataplane.ts";
import { BLUE } from "../overlay/blue.ts";

let counter = 0;

/** Everything made through it is gone when it is disposed of. */
export class KernelLab implements Disposable {
  readonly #prefix = `na-${process.pid}-${counter++}`;
  readonly #cleanups: (() => void)[] = [];

  /** A namespace under /run/netns, for `ip netns exec`. */
  namespace(name: string): { readonly name: string; readonly path: string } {
    const full = `${this.#prefix}-${name}`;
    const path = join(IPROUTE_NETNS_DIRECTORY, full);
    Netns.create(path).close();
    this.#cleanups.push(() => Netns.remove(path));
    run("ip", "-n", full, "link", "set", "lo", "up");
    return { name: full, path };
  }

  /** Two hosts joined by a veth pair: `addresses` are theirs, with prefix length. */
  hosts(
    addresses: readonly [string, string],
    mtu = 1500,
    kinds: readonly [Dataplane["kind"], Dataplane["kind"]] = ["kernel", "kernel"],
  ): readonly [LabHost, LabHost] {
    const a = this.host("host0", addresses[0], kinds[0]);
    const b = this.host("host1", addresses[1], kinds[1]);
    run(
      "ip",
      "link",
      "add",
      "eth0",
      "mtu",
      `${mtu}`,
      "netns",
      a.namespace,
      "type",
      "veth",
      "peer",
      "name",
      "eth0",
      "mtu",
      `${mtu}`,
      "netns",
      b.namespace,
    );
    for (const host of [a, b]) {
      host.ip("addr", "add", host.address, "dev", "eth0", ...(host.address.includes(":") ? ["nodad"] : []));
      host.ip("link", "set", "eth0", "up");
    }
    return [a, b];
  }

  host(name: string, address: string, kind: Dataplane["kind"] = "kernel"): LabHost {
    const { name: namespace, path } = this.namespace(name);
    const runDirectory = mkdtempSync(join(tmpdir(), `${this.#prefix}-`));
    const host = new LabHost(namespace, path, runDirectory, address, kind);
    this.#cleanups.push(() => {
      host.close();
      for (const id of host.dataplane.list()) Netns.remove(join(runDirectory, "netns", `ov-${id}`));
      rmSync(runDirectory, { recursive: true, force: true });
    });
    return host;
  }

  /** A name for ip(8) of the namespace pinned at `path`. */
  nameFor(path: string): string {
    const name = `${this.#prefix}-alias${this.#cleanups.length}`;
    const link = join(IPROUTE_NETNS_DIRECTORY, name);
    symlinkSync(path, link);
    this.#cleanups.push(() => rmSync(link));
    return name;
  }

  [Symbol.dispose](): void {
    for (const cleanup of this.#cleanups.reverse()) {
      try {
        cleanup();
      } catch (error) {
        console.error(error);
      }
    }
  }
}

export class LabHost {
  readonly namespace: string;
  readonly path: string;
  readonly runDirectory: string;
  /** With prefix length. */
  readonly address: string;
  readonly kind: Dataplane["kind"];
  dataplane: Dataplane;

  constructor(
    namespace: string,
    path: string,
    runDirectory: string,
    address: string,
    kind: Dataplane["kind"],
  ) {
    this.kind = kind;
    this.namespace = namespace;
    this.path = path;
    this.runDirectory = runDirectory;
    this.address = address;
    this.dataplane = this.newDataplane();
  }

  get vtep(): ReturnType<typeof parseIp> {
    return parseCidr(this.address).ip;
  }

  newDataplane(kind = this.kind): Dataplane {
    const options = { runDirectory: this.runDirectory, hostNamespace: this.path };
    return kind === "kernel"
      ? new VxlanDataplane(options)
      : new TapDataplane({ ...options, addresses: [this.vtep] });
  }

  ip(...args: string[]): string {
    return run("ip", "-n", this.namespace, ...args);
  }

  /** Reads, plans and applies once. */
  reconcile(desired: DesiredOverlay): {
    readonly plan: OverlayPlan;
    readonly applied: readonly AppliedStep[];
  } {
    const plan = planOverlay(desired, this.dataplane.read(desired));
    return { plan, applied: this.dataplane.apply(desired, plan.steps) };
  }

  /** What a new round would do. */
  plan(desired: DesiredOverlay, fresh = true): OverlayPlan {
    return planOverlay(desired, this.dataplane.read(desired, { fresh }));
  }

  /** What the tables and endpoints of one network mean on this host. */
  desired(
    network: OverlayNetwork,
    endpoints: readonly LocalEndpoint[],
    peers: Iterable<RemotePeer>,
    linkKind: LinkKind = DEFAULT_LINK_KIND,
  ): DesiredOverlay {
    return desiredOverlay({ network, linkKind, vtep: this.vtep, ownVteps: [this.vtep], endpoints, peers });
  }

  close(): void {
    this.dataplane.close();
  }
}

export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

/**
 * Whether one of many pings in five seconds is answered: carrier and queues of fresh devices may cost the first ones, and
 * the ARP request that is lost with them is repeated a second later. `-w 2` among the options is for those that must not.
 */
export function pings(namespace: string, address: string, ...options: readonly string[]): boolean {
  try {
    run("ip", "netns", "exec", namespace, "ping", "-c", "1", "-i", "0.2", "-w", "5", ...options, address);
    return true;
  } catch {
    return false;
  }
}

export function testNetwork(options: { id?: string; vni?: number; vtep?: string } = {}): OverlayNetwork {
  return {
    ...BLUE,
    id: options.id === undefined ? BLUE.id : networkId(options.id),
    vni: vni(options.vni ?? BLUE.vni),
    mtu: overlayMtu(1500, parseIp(options.vtep ?? "192.0.2.1")),
  };
}

export function testEndpoint(
  network: NetworkId,
  ip: string,
  sandbox: string | "host",
  ifname = "eth0",
): LocalEndpoint {
  const address = parseIp(ip);
  return {
    id: endpointId(ip.replaceAll(".", "").padEnd(64, "0")),
    network,
    ip: address,
    prefixLength: 24,
    mac: macFromIpv4(address),
    ifname,
    sandbox: sandbox === "host" ? { type: "host" } : { type: "netns", path: sandbox },
  };
}

/** The row other nodes see of a local endpoint. */
export function rowOf(endpoint: LocalEndpoint, vtep: string): RemotePeer {
  const { id, ip, prefixLength, mac } = endpoint;
  return { endpoint: id, ip, prefixLength, mac, vtep: parseIp(vtep) };
}

/** Rows of `addresses` endpoints in 10.16.0.0 and above with `macs` different MACs on 200 hosts. */
export function manyPeers(addresses: number, macs: number): RemotePeer[] {
  return Array.from({ length: addresses }, (_, index) => {
    const ip = ipv4FromNumber(0x0a100000 + index);
    const mac = macFromIpv4(ipv4FromNumber(0x0a100000 + (index % macs)));
    const vtep = ipv4FromNumber(0xc0000202 + ((index % macs) % 200));
    return { endpoint: endpointId(`p${index}`), ip, prefixLength: 8, mac, vtep };
  });
}

/** What went wrong; empty when all steps were done. */
export function failures(applied: readonly AppliedStep[]): string[] {
  return applied.flatMap(({ result }) => {
    if (result.status === "done") return [];
    return result.status === "failed" ? result.error.message : result.status;
  });
}

/** The plan for people. */
export function lines(plan: OverlayPlan, network: OverlayNetwork): string[] {
  return plan.steps.map((step) => formatStep(network.id, step));
}

/** Which links are there, and whether they are the same as before. */
export function ifindexes(namespace: string): unknown {
  const links = JSON.parse(run("ip", "-n", namespace, "-j", "link")) as { ifindex: number; ifname: string }[];
  return links.map(({ ifindex, ifname }) => [ifindex, ifname]);
}

export function linkNames(namespace: string): string[] {
  const links = JSON.parse(run("ip", "-n", namespace, "-j", "link")) as { ifname: string }[];
  return links.map(({ ifname }) => ifname).sort();
}
