/**
 * The kernel's own dataplane: a VXLAN device per network in a namespace of its own, endpoints as its macvlan
 * children or behind a bridge, remote endpoints as permanent FDB and neighbor entries.
 *
 * The VXLAN device is made from the host's namespace into the network's, so that its UDP socket stays in the
 * host's. Everything else is made in place: no temporary names, nothing to clean up after a crash half way.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { errorCode, NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import type { Sliced } from "../base/sliced.ts";
import type { DesiredCore, DesiredOverlay } from "../overlay/desired.ts";
import { networkAlias, VXLAN_LINK } from "../overlay/naming.ts";
import { type ActualOverlay, type ActualVxlan, formatStep } from "../overlay/plan.ts";
import type { Link } from "../wire/netlink/link.ts";
import { PROBE_VNI } from "../wire/path-probe.ts";
import type { ProbeLink, ProbeLinkOptions } from "./dataplane.ts";
import { createLink, deleteLink, listLinks, setLink } from "./links.ts";
import { applyEntries, type EntryStep } from "./neighbors.ts";
import { NetlinkSocket, refusal } from "./netlink-socket.ts";
import { IPROUTE_NETNS_DIRECTORY, Netns } from "./netns.ts";
import { type LinkSnapshot, namespaceIdOf, type NetworkNamespace } from "./network-namespace.ts";
import { type DataplaneOptions, OverlayDataplane } from "./overlay-dataplane.ts";
import { requireLink, setVxlan, VXLAN_FLAGS, VXLAN_SETTINGS, vxlanInfo } from "./overlay-links.ts";
import { actualVxlan } from "./overlay-reader.ts";

/** More entry steps than this in one call: their notifications are not listened to. */
const DEAF_STEPS = 256;
/** Where namespaces of others are pinned, to name the holder of a VNI. */
const FOREIGN_NETNS_DIRECTORIES = [IPROUTE_NETNS_DIRECTORY, "/run/docker/netns"];

export class VxlanDataplane extends OverlayDataplane {
  readonly kind = "kernel";
  readonly #hostSocket: NetlinkSocket;

  /** @throws NetError without the privileges */
  constructor(options: DataplaneOptions) {
    super(options);
    this.#hostSocket = new NetlinkSocket("route", this.host);
  }

  override openProbeLink(options: ProbeLinkOptions): ProbeLink {
    const { netns, name, mac, mtu, vtep, dataPathPort } = options;
    createLink(this.#hostSocket, `create ${name}`, {
      name,
      mtu,
      mac,
      up: true,
      netnsFd: netns.fd,
      info: {
        kind: "vxlan",
        vni: PROBE_VNI,
        port: dataPathPort,
        local: vtep,
        ...VXLAN_FLAGS,
        ...VXLAN_SETTINGS,
        proxy: false,
        dontFragment: true,
      },
    });
    const socket = new NetlinkSocket("route", netns);
    const ifindex = requireLink(socket, name).ifindex;
    return {
      enter: (steps) => {
        const failure = applyEntries(socket, ifindex, steps)[0];
        if (failure !== undefined) throw refusal(`enter peers into ${name}`, failure);
      },
      close: () => {
        try {
          // The namespace takes it along, but only in a while.
          deleteLink(socket, `delete ${name}`, { name });
        } finally {
          socket.close();
        }
      },
    };
  }

  override counters(): Readonly<Record<string, number>> {
    return {};
  }

  override close(): void {
    this.#hostSocket.close();
    super.close();
  }

  protected override readDevice(desired: DesiredOverlay, links: LinkSnapshot): ActualVxlan | undefined {
    return actualVxlan(desired, links);
  }

  protected override readEntries(
    _desired: DesiredOverlay,
    namespace: NetworkNamespace,
    { vxlan }: LinkSnapshot,
  ): Pick<ActualOverlay, "neighbors" | "fdb"> | undefined {
    return vxlan?.kind === "vxlan" ? namespace.entries(vxlan) : undefined;
  }

  protected override entriesVersion(
    _desired: DesiredOverlay,
    namespace: NetworkNamespace,
  ): number | undefined {
    const { vxlan } = namespace.links();
    return vxlan === undefined ? undefined : namespace.mirrorOf(vxlan.ifindex)?.changes;
  }

  protected override *refreshEntries(namespace: NetworkNamespace, sweep: boolean): Sliced<void> {
    const { vxlan } = namespace.links();
    if (vxlan?.kind === "vxlan") yield* namespace.survey(vxlan, sweep);
  }

  protected override createDevice(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
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

  protected override setDevice(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
    setVxlan(namespace, core, what);
  }

  protected override deleteDevice(namespace: NetworkNamespace, what: string): void {
    deleteLink(namespace.socket, what, { name: VXLAN_LINK });
  }

  protected override writeEntries(
    namespace: NetworkNamespace,
    steps: readonly EntryStep[],
  ): ReadonlyMap<number, NetError> {
    const { socket, network } = namespace;
    const { ifindex } = requireLink(socket, VXLAN_LINK);
    const failed = new Map<number, NetError>();
    const write = (): void => {
      for (const failure of applyEntries(socket, ifindex, steps)) {
        const step = steps[failure.index];
        if (step !== undefined) failed.set(failure.index, refusal(formatStep(network, step), failure));
      }
    };
    if (steps.length > DEAF_STEPS) namespace.deafly(write);
    else write();
    const mirror = namespace.mirrorOf(ifindex);
    steps.forEach((step, index) => {
      if (!failed.has(index)) mirror?.applied(step);
    });
    return failed;
  }

  protected override forgetNetwork(): void {
    // Everything of a network is in its namespace.
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
    const own = this.path(network);
    const paths = [this.directory, ...FOREIGN_NETNS_DIRECTORIES].flatMap((directory) =>
      listDirectory(directory).map((name) => join(directory, name)),
    );
    for (const path of paths) {
      if (path === own) continue;
      try {
        using netns = Netns.open(path);
        using socket = new NetlinkSocket("route", netns);
        const found = holder(socket, namespaceIdOf(socket, this.host));
        if (found !== undefined) return `${found.name} in the namespace ${path}`;
      } catch {
        // Vanished meanwhile, or not a namespace: not the holder.
      }
    }
    return undefined;
  }
}

function listDirectory(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
