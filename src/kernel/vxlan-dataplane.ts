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
import { errorCode, errorText, NetError } from "../base/error.ts";
import type { EndpointId, NetworkId } from "../base/id.ts";
import { type Cidr, formatCidr } from "../base/ip.ts";
import { macFromIpv4 } from "../base/mac.ts";
import { isIpv4 } from "../base/ip.ts";
import type { DesiredCore, DesiredEndpoint, DesiredOverlay, Sandbox } from "../overlay/desired.ts";
import {
  BRIDGE_LINK,
  bridgePortName,
  endpointAlias,
  endpointOfAlias,
  namespaceName,
  networkAlias,
  networkOfNamespace,
  VXLAN_LINK,
} from "../overlay/naming.ts";
import {
  type ActualEndpoint,
  type ActualGateway,
  type ActualOverlay,
  type ActualVxlan,
  formatSandbox,
  formatStep,
  gatewayLink,
  type OverlayStep,
} from "../overlay/plan.ts";
import type { InterfaceAddress } from "../wire/netlink/address.ts";
import { type Link, type LinkInfo, MACVLAN_MODE_BRIDGE, type VxlanInfo } from "../wire/netlink/link.ts";
import { encodeFdbEntry, NTF, NUD } from "../wire/netlink/neighbor.ts";
import { NLM_F } from "../wire/netlink/message.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import { deleteAddress, setAddress } from "./addresses.ts";
import type { AppliedStep, Dataplane, ReadOptions, StepResult } from "./dataplane.ts";
import { createLink, deleteLink, findLink, listLinks, setLink } from "./links.ts";
import { applyEntries, type EntryStep, isEntryStep } from "./neighbors.ts";
import { NetlinkSocket, refusal } from "./netlink-socket.ts";
import { IPROUTE_NETNS_DIRECTORY, Netns } from "./netns.ts";
import { type LinkSnapshot, namespaceIdOf, NetworkNamespace } from "./network-namespace.ts";

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
    const round = new Round(desired.network);
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

  #applyAll(desired: DesiredOverlay, steps: readonly OverlayStep[], round: Round): void {
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

  #applyEntries(network: NetworkId, steps: readonly EntryStep[], round: Round): void {
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

const DONE: StepResult = { status: "done" };

/** What became of the steps so far, and which later ones have lost their ground. */
class Round {
  readonly applied: AppliedStep[] = [];
  readonly #network: NetworkId;
  #namespaceFailed = false;
  #coreFailed = false;
  #deleteFailed = false;

  constructor(network: NetworkId) {
    this.#network = network;
  }

  isBlocked(step: OverlayStep): boolean {
    switch (step.type) {
      case "create-namespace":
        return false;
      // Unpinning a namespace with something left in it would put that out of our reach.
      case "delete-namespace":
        return this.#deleteFailed;
      case "set-sysctl":
      case "delete-endpoint":
      case "delete-gateway":
      case "delete-vxlan":
        return this.#namespaceFailed;
      default:
        return this.#namespaceFailed || this.#coreFailed;
    }
  }

  attempt(step: OverlayStep, action: () => void): void {
    if (this.isBlocked(step)) return this.skip([step]);
    try {
      action();
      this.record(step, DONE);
    } catch (error) {
      this.fail(step, error);
    }
  }

  fail(step: OverlayStep, error: unknown): void {
    if (step.type === "create-namespace") this.#namespaceFailed = true;
    if (step.type === "create-vxlan" || step.type === "create-gateway") this.#coreFailed = true;
    if (step.type.startsWith("delete-")) this.#deleteFailed = true;
    const what = formatStep(this.#network, step);
    const text = errorText(error);
    const wrapped =
      error instanceof NetError && text.startsWith(what)
        ? error
        : new NetError(errorCode(error) ?? "EIO", `${what}: ${text}`, { cause: error });
    this.record(step, { status: "failed", error: wrapped });
  }

  skip(steps: readonly OverlayStep[]): void {
    for (const step of steps) this.record(step, { status: "skipped" });
  }

  record(step: OverlayStep, result: StepResult): void {
    this.applied.push({ step, result });
  }
}

function vxlanInfo(core: DesiredCore): VxlanInfo {
  return {
    kind: "vxlan",
    vni: core.vni,
    port: core.dataPathPort,
    // Its family makes the device IPv4 or IPv6, as Docker does with the group `::`; and with several addresses
    // on the host our packets come from the one that is our VTEP.
    local: core.vtep,
    ...FIXED_FLAGS,
  };
}

/** No group and no learning: no entry exists that the plan did not put there, and unknown MACs go nowhere. */
const FIXED_FLAGS = {
  learning: false,
  proxy: true,
  l2miss: false,
  l3miss: false,
  udpChecksum: true,
  udpZeroChecksum6Tx: false,
  udpZeroChecksum6Rx: false,
  collectMetadata: false,
} as const;

function actualVxlan(links: LinkSnapshot): ActualVxlan | undefined {
  const { vxlan } = links;
  if (vxlan?.info?.kind !== "vxlan") return undefined;
  const { info } = vxlan;
  const flags = Object.entries(FIXED_FLAGS) as [keyof typeof FIXED_FLAGS, boolean][];
  return {
    vni: info.vni,
    dataPathPort: info.port,
    vtep: info.local,
    ipv6: info.local?.includes(":") ?? false,
    flagsMatch: info.group === undefined && flags.every(([flag, value]) => info[flag] === value),
    mtu: vxlan.mtu,
    up: vxlan.up,
    onBridge: vxlan.master !== undefined,
  };
}

function actualGateway(links: LinkSnapshot): ActualGateway | undefined {
  const found: readonly (readonly [ActualGateway["linkKind"], Link | undefined])[] = [
    ["macvlan", links.macvlanGateway],
    ["veth", links.bridge],
  ];
  for (const [linkKind, link] of found) {
    if (link === undefined) continue;
    return { linkKind, mtu: link.mtu, up: link.up, addresses: addressesOf(links.addresses, link.ifindex) };
  }
  return undefined;
}

function addressesOf(addresses: readonly InterfaceAddress[], ifindex: number): Cidr[] {
  return addresses
    .filter((entry) => entry.ifindex === ifindex && entry.scope === 0)
    .map((entry) => entry.address);
}

/** Interfaces in sandboxes that carry our mark, or that we made and died before marking. */
function actualEndpoints(desired: DesiredOverlay, links: LinkSnapshot): ActualEndpoint[] {
  const found: ActualEndpoint[] = [];
  for (const sandbox of links.sandboxes) {
    for (const link of sandbox.links) {
      const marked = endpointOfAlias(desired.network, link.alias);
      const id = marked ?? findUnmarked(desired, links, link);
      if (id === undefined || link.mac === undefined) continue;
      found.push({
        id,
        sandbox: sandbox.nsid,
        ifname: link.name,
        linkKind: link.kind === "veth" ? "veth" : "macvlan",
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        attached: marked !== undefined && (link.kind !== "veth" || isPortAttached(links, id)),
        addresses: addressesOf(sandbox.addresses, link.ifindex),
      });
    }
  }
  return found;
}

function findUnmarked(desired: DesiredOverlay, links: LinkSnapshot, link: Link): EndpointId | undefined {
  if (link.alias !== "" || link.link === undefined) return undefined;
  const lower = link.link;
  const onOurs =
    link.kind === "veth"
      ? links.ports.some((port) => port.ifindex === lower)
      : links.vxlan?.ifindex === lower && link.linkNetnsId !== undefined;
  if (!onOurs) return undefined;
  for (const endpoint of desired.endpoints.values())
    if (endpoint.ifname === link.name && endpoint.mac === link.mac) return endpoint.id;
  return undefined;
}

function isPortAttached(links: LinkSnapshot, id: EndpointId): boolean {
  const port = links.ports.find((candidate) => candidate.name === bridgePortName(id));
  return port !== undefined && port.up && port.master !== undefined && port.master === links.bridge?.ifindex;
}

function setVxlan(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
  const { socket } = namespace;
  const { ifindex, master } = requireLink(socket, VXLAN_LINK);
  const wanted = core.linkKind === "veth" ? requireLink(socket, BRIDGE_LINK).ifindex : 0;
  setLink(socket, what, {
    ifindex,
    mtu: core.mtu,
    up: true,
    alias: networkAlias(namespace.network),
    ...((master ?? 0) === wanted ? {} : { master: wanted }),
  });
  // By itself: a request with VXLAN data and an MTU is refused ("Cannot change mtu"), whatever the MTU.
  setLink(socket, what, { ifindex, info: { kind: "vxlan-change", local: core.vtep } });
}

function createGateway(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
  const { socket } = namespace;
  const name = gatewayLink(core.linkKind);
  // The gateway's MAC is the same on every node, as its address is: an endpoint that moves keeps its cache.
  const mac = isIpv4(core.gateway.ip) ? { mac: macFromIpv4(core.gateway.ip) } : {};
  const macvlan = core.linkKind === "macvlan";
  createLink(socket, what, {
    name,
    mtu: core.mtu,
    ...mac,
    ...(macvlan ? { link: requireLink(socket, VXLAN_LINK).ifindex } : {}),
    info: macvlan ? MACVLAN : { kind: "bridge", multicastSnooping: false },
  });
  const { ifindex } = requireLink(socket, name);
  setLink(socket, what, { ifindex, up: true, alias: networkAlias(namespace.network) });
  setAddress(socket, what, ifindex, core.gateway);
}

const MACVLAN: LinkInfo = { kind: "macvlan", mode: MACVLAN_MODE_BRIDGE };

function createEndpoint(
  namespace: NetworkNamespace,
  sandbox: Netns,
  endpoint: DesiredEndpoint,
  core: DesiredCore,
  what: string,
): void {
  const { socket } = namespace;
  namespace.register(sandbox);
  const inSandbox = { name: endpoint.ifname, mac: endpoint.mac, mtu: core.mtu, netnsFd: sandbox.fd };
  try {
    if (core.linkKind === "macvlan") {
      const link = requireLink(socket, VXLAN_LINK).ifindex;
      createLink(socket, what, { ...inSandbox, link, info: MACVLAN });
    } else {
      const name = bridgePortName(endpoint.id);
      // A pair whose sandbox died half way: its end here keeps the name.
      deleteLink(socket, what, { name });
      createLink(socket, what, { name, mtu: core.mtu, info: { kind: "veth", peer: inSandbox } });
    }
  } catch (error) {
    if (errorCode(error) !== "EEXIST") throw error;
    const where = formatSandbox(endpoint.sandbox);
    const text = `${what}: EEXIST (there is already an interface ${endpoint.ifname} in ${where} that is not ours)`;
    throw new NetError("EEXIST", text, { cause: error });
  }
  configureEndpoint(namespace, sandbox, endpoint, core, endpoint.ifname, what);
}

function setEndpoint(
  namespace: NetworkNamespace,
  sandbox: Netns,
  step: Extract<OverlayStep, { readonly type: "set-endpoint" }>,
  what: string,
): void {
  const ifindex = configureEndpoint(namespace, sandbox, step.endpoint, step.core, step.ifname, what);
  if (step.remove.length === 0) return;
  using socket = new NetlinkSocket("route", sandbox);
  for (const address of step.remove) deleteAddress(socket, what, ifindex, address);
}

/** Everything of an interface that can be set on a living one. Returns its ifindex. */
function configureEndpoint(
  namespace: NetworkNamespace,
  sandbox: Netns,
  endpoint: DesiredEndpoint,
  core: DesiredCore,
  currentName: string,
  what: string,
): number {
  const alias = endpointAlias(namespace.network, endpoint.id);
  if (core.linkKind === "veth") attachPort(namespace, endpoint, core, alias, what);
  using socket = new NetlinkSocket("route", sandbox);
  const link = requireLink(socket, currentName);
  const { ifindex } = link;
  setLink(socket, what, {
    ifindex,
    alias,
    mtu: core.mtu,
    ...(link.mac === endpoint.mac ? {} : { mac: endpoint.mac }),
    ...(link.name === endpoint.ifname ? {} : { name: endpoint.ifname }),
  });
  setAddress(socket, what, ifindex, endpoint.address);
  setLink(socket, what, { ifindex, up: true });
  return ifindex;
}

/** The bridge's end of a pair: a port with a static entry, so that a MAC that came back from elsewhere is found at once. */
function attachPort(
  namespace: NetworkNamespace,
  endpoint: DesiredEndpoint,
  core: DesiredCore,
  alias: string,
  what: string,
): void {
  const { socket } = namespace;
  const { ifindex } = requireLink(socket, bridgePortName(endpoint.id));
  const master = requireLink(socket, BRIDGE_LINK).ifindex;
  setLink(socket, what, { ifindex, alias, mtu: core.mtu, master, up: true });
  socket.request(what, {
    type: RTM.newNeighbor,
    flags: NLM_F.create | NLM_F.replace,
    // NOARP is bridge(8)'s "static"; "permanent" would mean the bridge's own address.
    encode: (out) =>
      encodeFdbEntry(
        { ifindex, mac: endpoint.mac, vtep: undefined, state: NUD.noArp, flags: NTF.master },
        out,
      ),
  });
}

function setSysctl(netns: Netns, name: string, value: string): void {
  try {
    netns.writeSysctl(name, value);
  } catch (error) {
    // A kernel without br_netfilter has nothing to switch off.
    if (errorCode(error) !== "ENOENT") throw error;
  }
}

function requireLink(socket: NetlinkSocket, name: string): Link {
  const link = findLink(socket, { name });
  if (link === undefined) throw new NetError("ENODEV", `find link ${name}: ENODEV (it is not there)`);
  return link;
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
