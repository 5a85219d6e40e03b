/**
 * What every dataplane does alike: a namespace per network, pinned and watched; gateway and endpoints in it; the
 * steps of a plan in order. How frames reach other hosts, and where the FDB lives, is the subclass's.
 */
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { unreachable } from "../base/assert.ts";
import { errorCode, NetError } from "../base/error.ts";
import type { EndpointId, NetworkId } from "../base/id.ts";
import type { Sliced } from "../base/sliced.ts";
import type { DesiredCore, DesiredOverlay, Sandbox } from "../overlay/desired.ts";
import { namespaceName, networkOfNamespace } from "../overlay/naming.ts";
import {
  type ActualOverlay,
  type ActualVxlan,
  formatStep,
  gatewayLink,
  type OverlayStep,
} from "../overlay/plan.ts";
import { ApplyRound, DONE } from "./apply-round.ts";
import type { AppliedStep, Dataplane, ProbeLink, ProbeLinkOptions, ReadOptions } from "./dataplane.ts";
import { FastPath, type FastPathOptions } from "./fast-path.ts";
import { deleteLink } from "./links.ts";
import { type EntryStep, isEntryStep } from "./neighbors.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import { Netns, removeScratchNamespaces } from "./netns.ts";
import { type LinkSnapshot, namespaceIdOf, NetworkNamespace } from "./network-namespace.ts";
import { createEndpoint, createGateway, hasSubnetRoute, setEndpoint, setGateway } from "./overlay-links.ts";
import { actualEndpoints, actualGateway, placeOf } from "./overlay-reader.ts";

type Entries = Pick<ActualOverlay, "neighbors" | "fdb">;

export interface DataplaneOptions {
  /** Namespaces are pinned in its `netns/`. */
  readonly runDirectory: string;
  /** Path of the namespace that has the underlay and the host legs. Default: the one we are in. */
  readonly hostNamespace?: string;
  /** Default true: where the kernel has what it takes. */
  readonly fastPath?: boolean;
}

/**
 * At least Docker's values (overlay.md §4): one table for all namespaces of a node. Our own permanent entries are
 * exempt since Linux 5.0, but what containers learn of each other is not.
 */
export const NEIGHBOR_LIMITS = [
  ["net.ipv4.neigh.default.gc_thresh1", 8192],
  ["net.ipv4.neigh.default.gc_thresh2", 49152],
  ["net.ipv4.neigh.default.gc_thresh3", 65536],
] as const;

export abstract class OverlayDataplane implements Dataplane {
  abstract readonly kind: "kernel" | "userspace";
  /** Has the underlay and the host legs. */
  protected readonly host: Netns;
  /** Where namespaces are pinned. */
  protected readonly directory: string;
  readonly fastPath: FastPath;
  readonly #networks = new Map<NetworkId, NetworkNamespace>();
  readonly #routelessOf = new WeakMap<LinkSnapshot, ReadonlySet<string>>();
  #onDrift: ((network: NetworkId | undefined) => void) | undefined;

  /** @throws NetError without the privileges */
  constructor(options: DataplaneOptions, fastPath: FastPathOptions = {}) {
    this.directory = join(options.runDirectory, "netns");
    mkdirSync(this.directory, { recursive: true, mode: 0o755 });
    removeScratchNamespaces(this.directory);
    this.host = options.hostNamespace === undefined ? Netns.current() : Netns.open(options.hostNamespace);
    raiseNeighborLimits(this.host);
    this.fastPath = new FastPath(this.host, { wanted: options.fastPath ?? true, ...fastPath });
  }

  list(): readonly NetworkId[] {
    return readdirSync(this.directory).flatMap((name) => networkOfNamespace(name) ?? []);
  }

  watch(onDrift: (network: NetworkId | undefined) => void): void {
    this.#onDrift = onDrift;
    for (const namespace of this.#networks.values()) this.#watch(namespace);
  }

  *refresh(desired: DesiredOverlay, options: ReadOptions = {}): Sliced<void> {
    const namespace = this.#find(desired.network);
    if (namespace === undefined) return;
    if (options.fresh === true) namespace.forgetLinks();
    yield* this.refreshEntries(namespace, options.fresh === true);
  }

  /** The maps of entries are live views: use them before the next call. */
  read(desired: DesiredOverlay, options: ReadOptions = {}): ActualOverlay {
    const namespace = this.#find(desired.network);
    if (namespace === undefined) return this.#nothing(desired);
    if (options.fresh === true) namespace.forget();
    const links = namespace.links();
    const entries = this.readEntries(desired, namespace, links);
    const sandboxes = this.#sandboxes(desired, namespace);
    const gsoMaxSize = desired.core && this.endpointGsoMaxSize(desired.core);
    return {
      network: desired.network,
      namespace: true,
      unpinned: Netns.idOf(this.path(desired.network)) !== namespace.netns.id,
      wrongSysctls: links.wrongSysctls,
      vxlan: this.readDevice(desired, links),
      gateway: actualGateway(desired, links),
      endpoints: actualEndpoints(desired, links, gsoMaxSize, this.#routeless(desired, links, sandboxes)),
      sandboxes,
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

  *accelerate(desired: DesiredOverlay): Sliced<void> {
    if (!this.fastPath.possible) return;
    try {
      const namespace = this.#find(desired.network);
      if (namespace === undefined) return this.fastPath.forget(desired.network);
      const entries = this.readEntries(desired, namespace, namespace.links());
      const version = this.entriesVersion(desired, namespace);
      yield* this.fastPath.follow(desired, namespace, entries?.fdb ?? new Map(), version);
    } catch (error) {
      // What cannot be known must not be assumed: the slow path needs no help.
      if (!(error instanceof NetError)) throw error;
      this.fastPath.forget(desired.network);
    }
  }

  close(): void {
    this.fastPath.close();
    for (const namespace of this.#networks.values()) namespace.close();
    this.#networks.clear();
    this.host.close();
  }

  /** The network's device as found; undefined when there is none by its name. */
  protected abstract readDevice(desired: DesiredOverlay, links: LinkSnapshot): ActualVxlan | undefined;
  /** What forwards frames to remote endpoints just now; undefined without a device. */
  protected abstract readEntries(
    desired: DesiredOverlay,
    namespace: NetworkNamespace,
    links: LinkSnapshot,
  ): Entries | undefined;
  /** Changes with what `readEntries` returns; undefined when that is not known. */
  protected abstract entriesVersion(desired: DesiredOverlay, namespace: NetworkNamespace): number | undefined;
  /** Makes what is remembered of the entries true, a slice at a time; a sweep compares. @throws NetError */
  protected abstract refreshEntries(namespace: NetworkNamespace, sweep: boolean): Sliced<void>;
  /** Made up at once, with our mark. @throws NetError */
  protected abstract createDevice(namespace: NetworkNamespace, core: DesiredCore, what: string): void;
  /** @throws NetError */
  protected abstract setDevice(namespace: NetworkNamespace, core: DesiredCore, what: string): void;
  /** Gone already is not an error. @throws NetError */
  protected abstract deleteDevice(namespace: NetworkNamespace, what: string): void;
  /** Returns what was refused, by index. @throws NetError when the outcome is unknown */
  protected abstract writeEntries(
    namespace: NetworkNamespace,
    steps: readonly EntryStep[],
  ): ReadonlyMap<number, NetError>;
  /** The network's namespace is gone, or another one stands in its place. */
  protected abstract forgetNetwork(network: NetworkId): void;

  abstract openProbeLink(options: ProbeLinkOptions): ProbeLink;
  abstract counters(): Readonly<Record<string, number>>;

  /** The largest superframe that endpoints may send, bytes; undefined leaves the kernel's limit. */
  protected endpointGsoMaxSize(_core: DesiredCore): number | undefined {
    return undefined;
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
      const failed = this.writeEntries(namespace, steps);
      steps.forEach((step, index) => {
        const error = failed.get(index);
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
        this.#watched(new NetworkNamespace(desired.network, Netns.create(this.path(desired.network)))),
      );
      return;
    }
    const namespace = this.#require(desired.network);
    const { socket } = namespace;
    switch (step.type) {
      case "pin-namespace":
        return namespace.netns.pin(this.path(desired.network));
      case "set-sysctl":
        setSysctl(namespace.netns, step.name, step.value);
        return namespace.forgetLinks(); // what was read of sysctls is among them
      case "create-vxlan":
        return this.createDevice(namespace, step.core, what);
      case "set-vxlan":
        return this.setDevice(namespace, step.core, what);
      case "create-gateway":
        return createGateway(namespace, step.core, what);
      case "set-gateway":
        return setGateway(namespace, step, what);
      case "create-endpoint":
        return this.#withSandbox(step.endpoint.sandbox, (sandbox) =>
          createEndpoint(
            namespace,
            sandbox,
            step.endpoint,
            step.core,
            this.endpointGsoMaxSize(step.core),
            what,
          ),
        );
      case "set-endpoint":
        this.#withSandbox(step.endpoint.sandbox, (sandbox) =>
          setEndpoint(namespace, sandbox, step, this.endpointGsoMaxSize(step.core), what),
        );
        // A route that is back is no news of links.
        return namespace.forgetLinks();
      case "delete-endpoint":
        return deleteLink(socket, what, { name: step.ifname, targetNetnsId: step.sandbox });
      case "delete-gateway":
        return deleteLink(socket, what, { name: gatewayLink(step.linkKind) });
      case "delete-vxlan":
        return this.deleteDevice(namespace, what);
      case "delete-namespace":
        this.#drop(namespace);
        return Netns.remove(this.path(desired.network));
      default:
        return unreachable(step);
    }
  }

  /** The network's namespace if its pin is there, even one made by an earlier life or remade by another hand. */
  #find(network: NetworkId): NetworkNamespace | undefined {
    const path = this.path(network);
    const id = Netns.idOf(path);
    const known = this.#networks.get(network);
    if (known !== undefined && known.netns.id === id) return known;
    // Only the pin is gone: the namespace and all in it live on as long as we hold it.
    if (id === undefined) return known;
    try {
      const namespace = new NetworkNamespace(network, Netns.open(path));
      if (known !== undefined) this.#drop(known);
      this.#networks.set(network, namespace);
      return this.#watched(namespace);
    } catch (error) {
      // A file without a namespace, left by a crash or a reboot on a persistent RUNDIR: make room.
      if (errorCode(error) !== "NETNS_MISSING") throw error;
      if (known === undefined) Netns.remove(path);
      return known;
    }
  }

  #drop(namespace: NetworkNamespace): void {
    this.fastPath.forget(namespace.network);
    namespace.close();
    this.#networks.delete(namespace.network);
    this.forgetNetwork(namespace.network);
  }

  #require(network: NetworkId): NetworkNamespace {
    const namespace = this.#networks.get(network);
    if (namespace === undefined)
      throw new NetError("NETNS_MISSING", `network namespace ${this.path(network)} is not there`);
    return namespace;
  }

  #watched(namespace: NetworkNamespace): NetworkNamespace {
    if (this.#onDrift !== undefined) this.#watch(namespace);
    return namespace;
  }

  #watch(namespace: NetworkNamespace): void {
    namespace.watch(() => this.#onDrift?.(namespace.network));
  }

  protected path(network: NetworkId): string {
    return join(this.directory, namespaceName(network));
  }

  /** @throws NetError `NETNS_MISSING` */
  #withSandbox(sandbox: Sandbox, action: (netns: Netns) => void): void {
    if (sandbox.type === "host") return action(this.host);
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

  /** Places of interfaces whose route to the subnet is gone. What the same links were found to have stays true. */
  #routeless(
    desired: DesiredOverlay,
    links: LinkSnapshot,
    sandboxes: ReadonlyMap<EndpointId, number | "unknown" | "missing">,
  ): ReadonlySet<string> {
    const known = this.#routelessOf.get(links);
    if (known !== undefined) return known;
    const routeless = new Set<string>();
    const gateway = desired.core?.gateway;
    for (const endpoint of desired.endpoints.values()) {
      const nsid = sandboxes.get(endpoint.id);
      const inside = links.sandboxes.find((sandbox) => sandbox.nsid === nsid);
      const link = inside?.links.find(({ mac, name }) => mac === endpoint.mac && name === endpoint.ifname);
      if (inside === undefined || link === undefined || gateway === undefined) continue;
      this.#withSandbox(endpoint.sandbox, (netns) => {
        using socket = new NetlinkSocket("route", netns);
        if (!hasSubnetRoute(socket, link.ifindex, gateway)) routeless.add(placeOf(inside.nsid, link.ifindex));
      });
    }
    this.#routelessOf.set(links, routeless);
    return routeless;
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
      // Read-only /proc/sys in a container: doctor says so.
    }
  }
}
