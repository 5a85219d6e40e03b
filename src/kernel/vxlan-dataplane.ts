/**
 * The kernel's own dataplane: a VXLAN device per network in a namespace of its own, endpoints as its macvlan
 * children or behind a bridge, remote endpoints as permanent FDB and neighbor entries.
 *
 * The VXLAN device is made from the host's namespace into the network's, so that its UDP socket stays in the
 * host's. Everything else is made in place: no temporary names, nothing to clean up after a crash half way.
 */
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { unreachable } from "../base/assert.ts";
import { errorCode, NetError } from "../base/error.ts";
import type { EndpointId, NetworkId } from "../base/id.ts";
import type { DesiredCore, DesiredOverlay, Sandbox } from "../overlay/desired.ts";
import { namespaceName, networkAlias, networkOfNamespace, VXLAN_LINK } from "../overlay/naming.ts";
import { type ActualOverlay, formatStep, gatewayLink, type OverlayStep } from "../overlay/plan.ts";
import type { Link } from "../wire/netlink/link.ts";
import { deleteAddress, setAddress } from "./addresses.ts";
import { ApplyRound, DONE } from "./apply-round.ts";
import type { AppliedStep, Dataplane, ReadOptions } from "./dataplane.ts";
import { createLink, deleteLink, listLinks, setLink } from "./links.ts";
import { applyEntries, type EntryStep, isEntryStep } from "./neighbors.ts";
import { NetlinkSocket, refusal } from "./netlink-socket.ts";
import { IPROUTE_NETNS_DIRECTORY, Netns } from "./netns.ts";
import { namespaceIdOf, NetworkNamespace } from "./network-namespace.ts";
import {
  createEndpoint,
  createGateway,
  requireLink,
  setEndpoint,
  setVxlan,
  vxlanInfo,
} from "./overlay-links.ts";
import { actualEndpoints, actualGateway, actualVxlan } from "./overlay-reader.ts";

export interface VxlanDataplaneOptions {
  /** Namespaces are pinned in its `netns/`. */
  readonly runDirectory: string;
  /** Path of the namespace that has the underlay and the host legs. Default: the one we are in. */
  readonly hostNamespace?: string;
}

/** More entry steps than this in one round: their notifications are not listened to. */
const DEAF_STEPS = 4096;
/** At least Docker's values (overlay.md §4): neighbor tables of a node are one for all namespaces. */
const NEIGHBOR_LIMITS = [
  ["net.ipv4.neigh.default.gc_thresh1", 8192],
  ["net.ipv4.neigh.default.gc_thresh2", 49152],
  ["net.ipv4.neigh.default.gc_thresh3", 65536],
] as const;
/** Where namespaces of others are pinned, to name the holder of a VNI. */
const FOREIGN_NETNS_DIRECTORIES = [IPROUTE_NETNS_DIRECTORY, "/run/docker/netns"];

export class VxlanDataplane implements Dataplane {
  readonly kind = "kernel";
  readonly #directory: string;
  readonly #host: Netns;
  readonly #hostSocket: NetlinkSocket;
  readonly #networks = new Map<NetworkId, NetworkNamespace>();
  #onDrift: ((network: NetworkId | undefined) => void) | undefined;

  /** @throws NetError without the privileges */
  constructor(options: VxlanDataplaneOptions) {
    this.#directory = join(options.runDirectory, "netns");
    mkdirSync(this.#directory, { recursive: true, mode: 0o755 });
    this.#host = options.hostNamespace === undefined ? Netns.current() : Netns.open(options.hostNamespace);
    this.#hostSocket = new NetlinkSocket("route", this.#host);
    raiseNeighborLimits(this.#host);
  }

  list(): readonly NetworkId[] {
    return readdirSync(this.#directory).flatMap((name) => networkOfNamespace(name) ?? []);
  }

  watch(onDrift: (network: NetworkId | undefined) => void): void {
    this.#onDrift = onDrift;
    for (const namespace of this.#networks.values()) this.#watch(namespace);
  }

  /** The maps of entries are live views: use them before the next call. */
  read(desired: DesiredOverlay, options: ReadOptions = {}): ActualOverlay {
    const namespace = this.#find(desired.network);
    if (namespace === undefined) return this.#nothing(desired);
    if (options.fresh === true) namespace.forget();
    const links = namespace.links();
    const entries = links.vxlan === undefined ? undefined : namespace.entries(links.vxlan);
    return {
      network: desired.network,
      namespace: true,
      wrongSysctls: links.wrongSysctls,
      vxlan: actualVxlan(links),
      gateway: actualGateway(links),
      endpoints: actualEndpoints(desired, links),
      sandboxes: this.#sandboxes(desired, namespace),
      neighbors: entries?.neighbors ?? new Map(),
      fdb: entries?.fdb ?? new Map(),
    };
  }

  apply(desired: DesiredOverlay, steps: readonly OverlayStep[]): readonly AppliedStep[] {
    const round = new ApplyRound(desired.network);
    const namespace = this.#find(desired.network);
    const run = (): void => this.#applyAll(desired, steps, round);
    if (namespace === undefined) {
      run();
      this.#networks.get(desired.network)?.swallow();
    } else namespace.settle(run);
    return round.applied;
  }

  close(): void {
    for (const namespace of this.#networks.values()) namespace.close();
    this.#networks.clear();
    this.#hostSocket.close();
    this.#host.close();
  }

  #applyAll(desired: DesiredOverlay, steps: readonly OverlayStep[], round: ApplyRound): void {
    for (let at = 0; at < steps.length;) {
      const step = steps[at];
      if (step === undefined) break;
      if (!isEntryStep(step)) {
        round.attempt(step, () => this.#applyStep(desired, step));
        at++;
        continue;
      }
      const entries: EntryStep[] = [];
      for (let next = steps[at]; next !== undefined && isEntryStep(next); next = steps[++at])
        entries.push(next);
      this.#applyEntries(desired.network, entries, round);
    }
  }

  #applyEntries(network: NetworkId, steps: readonly EntryStep[], round: ApplyRound): void {
    const [first] = steps;
    if (first === undefined) return;
    if (round.isBlocked(first)) return round.skip(steps);
    try {
      const namespace = this.#require(network);
      const vxlan = requireLink(namespace.socket, VXLAN_LINK);
      const mirror = namespace.mirrorOf(vxlan.ifindex);
      const failed = new Map<number, NetError>();
      const write = (): void => {
        for (const failure of applyEntries(namespace.socket, vxlan.ifindex, steps)) {
          const step = steps[failure.index];
          if (step !== undefined) failed.set(failure.index, refusal(formatStep(network, step), failure));
        }
      };
      if (steps.length > DEAF_STEPS) namespace.deafly(write);
      else write();
      steps.forEach((step, index) => {
        const error = failed.get(index);
        if (error === undefined) mirror?.applied(step);
        round.record(step, error === undefined ? DONE : { status: "failed", error });
      });
    } catch (error) {
      // Lost answers or a vanished device: nothing is known any more, the next round reads afresh.
      this.#networks.get(network)?.forget();
      for (const step of steps) round.fail(step, error);
    }
  }

  #applyStep(desired: DesiredOverlay, step: Exclude<OverlayStep, EntryStep>): void {
    const what = formatStep(desired.network, step);
    if (step.type === "create-namespace") {
      this.#networks.set(
        desired.network,
        this.#watched(new NetworkNamespace(desired.network, Netns.create(this.#path(desired.network)))),
      );
      return;
    }
    const namespace = this.#require(desired.network);
    const { socket } = namespace;
    switch (step.type) {
      case "set-sysctl":
        return setSysctl(namespace.netns, step.name, step.value);
      case "create-vxlan":
        return this.#createVxlan(namespace, step.core, what);
      case "set-vxlan":
        return setVxlan(namespace, step.core, what);
      case "create-gateway":
        return createGateway(namespace, step.core, what);
      case "set-gateway": {
        const { ifindex } = requireLink(socket, gatewayLink(step.core.linkKind));
        setLink(socket, what, { ifindex, mtu: step.core.mtu, up: true });
        setAddress(socket, what, ifindex, step.core.gateway);
        for (const address of step.remove) deleteAddress(socket, what, ifindex, address);
        return;
      }
      case "create-endpoint":
        return this.#withSandbox(step.endpoint.sandbox, (sandbox) =>
          createEndpoint(namespace, sandbox, step.endpoint, step.core, what),
        );
      case "set-endpoint":
        return this.#withSandbox(step.endpoint.sandbox, (sandbox) =>
          setEndpoint(namespace, sandbox, step, what),
        );
      case "delete-endpoint":
        return deleteLink(socket, what, { name: step.ifname, targetNetnsId: step.sandbox });
      case "delete-gateway":
        return deleteLink(socket, what, { name: gatewayLink(step.linkKind) });
      case "delete-vxlan":
        return deleteLink(socket, what, { name: VXLAN_LINK });
      case "delete-namespace":
        namespace.close();
        this.#networks.delete(desired.network);
        return Netns.remove(this.#path(desired.network));
      default:
        return unreachable(step);
    }
  }

  #createVxlan(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
    // Made up at once: opening takes the UDP port, and a device that cannot have it is not left behind.
    try {
      createLink(this.#hostSocket, what, {
        name: VXLAN_LINK,
        mtu: core.mtu,
        up: true,
        netnsFd: namespace.netns.fd,
        info: vxlanInfo(core),
      });
    } catch (error) {
      const code = errorCode(error);
      if (code === "EADDRINUSE") {
        const cure = `UDP port ${core.dataPathPort} is taken by another program; see 'ss -lunp'`;
        throw new NetError(code, `${what}: ${code} (${cure})`, { cause: error });
      }
      if (code !== "EEXIST") throw error;
      const holder =
        this.#findVniHolder(namespace.network, core) ??
        "a VXLAN device in a namespace that cannot be seen from here";
      const cure = `VNI ${core.vni} on port ${core.dataPathPort} is held by ${holder}; delete that device or give the network another VNI`;
      throw new NetError("VNI_IN_USE", `${what}: ${code} (${cure})`, { cause: error });
    }
    const { ifindex } = requireLink(namespace.socket, VXLAN_LINK);
    setLink(namespace.socket, what, { ifindex, alias: networkAlias(namespace.network) });
    if (core.linkKind === "veth") setVxlan(namespace, core, what);
  }

  /** `vxlan0 in the namespace /run/…`: whose device has the VNI on our underlay, wherever we can look. */
  #findVniHolder(network: NetworkId, core: DesiredCore): string | undefined {
    // A device's link namespace is the one with its UDP socket; undefined means its own.
    const holder = (socket: NetlinkSocket, underlay: number | undefined): Link | undefined =>
      listLinks(socket).find(
        ({ info, linkNetnsId }) =>
          info?.kind === "vxlan" &&
          info.port === core.dataPathPort &&
          info.vni === core.vni &&
          linkNetnsId === underlay,
      );
    const inHost = holder(this.#hostSocket, undefined);
    if (inHost !== undefined) return `${inHost.name} in the host`;
    const own = this.#path(network);
    const paths = [this.#directory, ...FOREIGN_NETNS_DIRECTORIES].flatMap((directory) =>
      listDirectory(directory).map((name) => join(directory, name)),
    );
    for (const path of paths) {
      if (path === own) continue;
      try {
        using netns = Netns.open(path);
        using socket = new NetlinkSocket("route", netns);
        const found = holder(socket, namespaceIdOf(socket, this.#host));
        if (found !== undefined) return `${found.name} in the namespace ${path}`;
      } catch {
        // Vanished meanwhile, or not a namespace: not the holder.
      }
    }
    return undefined;
  }

  /** The network's namespace if its pin is there, even one made by an earlier life or remade by another hand. */
  #find(network: NetworkId): NetworkNamespace | undefined {
    const path = this.#path(network);
    const id = Netns.idOf(path);
    const known = this.#networks.get(network);
    if (known !== undefined && known.netns.id === id) return known;
    known?.close();
    this.#networks.delete(network);
    if (id === undefined) return undefined;
    try {
      const namespace = new NetworkNamespace(network, Netns.open(path));
      this.#networks.set(network, namespace);
      return this.#watched(namespace);
    } catch (error) {
      // A file without a namespace, left by a crash or a reboot on a persistent RUNDIR: make room.
      if (errorCode(error) !== "NETNS_MISSING") throw error;
      Netns.remove(path);
      return undefined;
    }
  }

  #require(network: NetworkId): NetworkNamespace {
    const namespace = this.#networks.get(network);
    if (namespace === undefined)
      throw new NetError("NETNS_MISSING", `network namespace ${this.#path(network)} is not there`);
    return namespace;
  }

  #watched(namespace: NetworkNamespace): NetworkNamespace {
    if (this.#onDrift !== undefined) this.#watch(namespace);
    return namespace;
  }

  #watch(namespace: NetworkNamespace): void {
    namespace.watch(() => this.#onDrift?.(namespace.network));
  }

  #path(network: NetworkId): string {
    return join(this.#directory, namespaceName(network));
  }

  /** @throws NetError `NETNS_MISSING` */
  #withSandbox(sandbox: Sandbox, action: (netns: Netns) => void): void {
    if (sandbox.type === "host") return action(this.#host);
    using netns = Netns.open(sandbox.path);
    action(netns);
  }

  #sandboxes(
    desired: DesiredOverlay,
    namespace: NetworkNamespace | undefined,
  ): ReadonlyMap<EndpointId, number | "unknown" | "missing"> {
    const sandboxes = new Map<EndpointId, number | "unknown" | "missing">();
    for (const endpoint of desired.endpoints.values()) {
      try {
        this.#withSandbox(endpoint.sandbox, (netns) => {
          const nsid = namespace === undefined ? -1 : namespaceIdOf(namespace.socket, netns);
          sandboxes.set(endpoint.id, nsid < 0 ? "unknown" : nsid);
        });
      } catch (error) {
        if (errorCode(error) !== "NETNS_MISSING") throw error;
        sandboxes.set(endpoint.id, "missing");
      }
    }
    return sandboxes;
  }

  #nothing(desired: DesiredOverlay): ActualOverlay {
    return {
      network: desired.network,
      namespace: false,
      wrongSysctls: [],
      vxlan: undefined,
      gateway: undefined,
      endpoints: [],
      sandboxes: this.#sandboxes(desired, undefined),
      neighbors: new Map(),
      fdb: new Map(),
    };
  }
}

function setSysctl(netns: Netns, name: string, value: string): void {
  try {
    netns.writeSysctl(name, value);
  } catch (error) {
    // A kernel without br_netfilter has nothing to switch off.
    if (errorCode(error) !== "ENOENT") throw error;
  }
}

/** Only the initial namespace has these; elsewhere the host's administrator must have set them. */
function raiseNeighborLimits(host: Netns): void {
  for (const [name, least] of NEIGHBOR_LIMITS) {
    try {
      const actual = host.readSysctl(name);
      if (actual !== undefined && Number(actual) < least) host.writeSysctl(name, least);
    } catch {
      // Read-only /proc/sys in a container. Permanent entries do not count against the limits since Linux 5.0.
    }
  }
}

function listDirectory(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
