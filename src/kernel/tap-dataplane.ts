/**
 * The dataplane of our own: a TAP device in place of the VXLAN device, and an engine in this process that moves frames
 * between all of them and one UDP port. Needs no VXLAN in the kernel, and is a normal peer to one that has it.
 *
 * The TAP devices are persistent, so endpoints keep their interfaces while no agent runs; frames move only while one
 * does. FDB and neighbors are the engine's table, so no other hand can change them.
 */
import { closeSync } from "node:fs";
import { NetError } from "../base/error.ts";
import { type NetworkId, vni } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Sliced } from "../base/sliced.ts";
import type { DesiredCore, DesiredOverlay } from "../overlay/desired.ts";
import { engineGsoMaxSize } from "../overlay/engine-table.ts";
import { BRIDGE_LINK, networkAlias, VXLAN_LINK } from "../overlay/naming.ts";
import type { ActualOverlay, ActualVxlan, OverlayStep } from "../overlay/plan.ts";
import { PROBE_VNI } from "../wire/path-probe.ts";
import type { AppliedStep, ProbeLink, ProbeLinkOptions } from "./dataplane.ts";
import { ENGINE_TAP } from "./engine.ts";
import { EngineRunner } from "./engine-runner.ts";
import { deleteLink, setLink } from "./links.ts";
import type { EntryStep } from "./neighbors.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { LinkSnapshot, NetworkNamespace } from "./network-namespace.ts";
import { type DataplaneOptions, OverlayDataplane } from "./overlay-dataplane.ts";
import { requireLink } from "./overlay-links.ts";
import { foreignDevice } from "./overlay-reader.ts";

export interface TapDataplaneOptions extends DataplaneOptions {
  /** Data-path addresses of this node, at least one; the first of a family is the source of what we send. */
  readonly addresses: readonly IpAddr[];
}

/** A TAP device whose frames the engine moves. */
interface Attachment {
  readonly ifindex: number;
  /** What the engine was told. */
  readonly core: DesiredCore;
}

export class TapDataplane extends OverlayDataplane {
  readonly kind = "userspace";
  readonly #runner: EngineRunner;
  readonly #attachments = new Map<NetworkId, Attachment>();

  /** @throws NetError without the privileges */
  constructor(options: TapDataplaneOptions) {
    super(options, { streams: true });
    this.#runner = new EngineRunner({
      host: this.host,
      addresses: options.addresses,
      runDirectory: options.runDirectory,
    });
    this.#disinherit();
  }

  override apply(desired: DesiredOverlay, steps: readonly OverlayStep[]): readonly AppliedStep[] {
    try {
      return super.apply(desired, steps);
    } finally {
      this.#disinherit();
      this.#runner.publishSoon();
    }
  }

  override *accelerate(desired: DesiredOverlay): Sliced<void> {
    yield* super.accelerate(desired);
    // Those that the programs take in come one by one.
    this.#runner.setGrouping(this.fastPath.status().networks === 0);
  }

  override openProbeLink(options: ProbeLinkOptions): ProbeLink {
    const { netns, name, mac, mtu, dataPathPort } = options;
    const what = `create ${name}`;
    const probeVni = vni(PROBE_VNI);
    const tap = netns.openTap(name, ENGINE_TAP);
    try {
      using socket = new NetlinkSocket("route", netns);
      setLink(socket, what, { ifindex: requireLink(socket, name).ifindex, mtu, mac });
      this.#runner.attach(
        { vni: probeVni, mtu, port: dataPathPort, dontFragment: true, passing: true, tapFds: [tap] },
        what,
      );
    } catch (error) {
      closeSync(tap);
      throw error;
    }
    return {
      enter: (steps) => {
        this.#runner.enter(probeVni, steps);
        this.#runner.publish();
      },
      // Its only queue goes, and the device with it.
      close: () => this.#runner.detach(probeVni),
    };
  }

  override counters(): Readonly<Record<string, number>> {
    return this.#runner.counters();
  }

  override close(): void {
    this.#runner.close();
    super.close();
  }

  protected override readDevice(desired: DesiredOverlay, { vxlan }: LinkSnapshot): ActualVxlan | undefined {
    if (vxlan === undefined) return undefined;
    if (vxlan.kind !== "tun") return foreignDevice(vxlan);
    const attachment = this.#attachments.get(desired.network);
    const attached = attachment !== undefined && attachment.ifindex === vxlan.ifindex;
    // Without an engine a TAP device is of no VNI and has no address. So all that is wrong with one of a former life
    // is that nobody sends for it, which `set-vxlan` mends.
    const core = attached ? attachment.core : desired.core;
    return {
      vni: core?.vni ?? 0,
      dataPathPort: core?.dataPathPort ?? 0,
      vtep: attached ? attachment.core.vtep : undefined,
      ipv6: core?.vtep.includes(":") ?? false,
      flagsMatch: true,
      settingsMatch:
        attached && attachment.core.mtu === vxlan.mtu && vxlan.alias === networkAlias(desired.network),
      mtu: vxlan.mtu,
      up: vxlan.up,
      onBridge: vxlan.master !== undefined,
    };
  }

  protected override readEntries(
    desired: DesiredOverlay,
    _namespace: NetworkNamespace,
    { vxlan }: LinkSnapshot,
  ): Pick<ActualOverlay, "neighbors" | "fdb"> | undefined {
    // Whoever looks whether all is as it should be looks at what the engine has.
    this.#runner.publish();
    const { core } = this.#attachments.get(desired.network) ?? desired;
    return vxlan?.kind === "tun" && core !== undefined ? this.#runner.entries(core.vni) : undefined;
  }

  protected override entriesVersion(): number {
    return this.#runner.changes;
  }

  /** No other hand reaches the table. */
  protected override *refreshEntries(): Sliced<void> {}

  protected override createDevice(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
    // A device that another hand deleted took its queue's use, but not the queue.
    this.forgetNetwork(namespace.network);
    this.#attach(namespace, core, "create", what);
  }

  protected override setDevice(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
    const { ifindex } = requireLink(namespace.socket, VXLAN_LINK);
    const attachment = this.#attachments.get(namespace.network);
    if (attachment?.ifindex === ifindex && attachment.core.mtu === core.mtu)
      this.#setLink(namespace, core, what);
    else this.#attach(namespace, core, "adopt", what);
  }

  protected override deleteDevice(namespace: NetworkNamespace, what: string): void {
    this.forgetNetwork(namespace.network);
    deleteLink(namespace.socket, what, { name: VXLAN_LINK });
  }

  protected override writeEntries(
    { network }: NetworkNamespace,
    steps: readonly EntryStep[],
  ): ReadonlyMap<number, NetError> {
    const attachment = this.#attachments.get(network);
    if (attachment === undefined) throw new NetError("ENODEV", "the engine does not have this network");
    this.#runner.enter(attachment.core.vni, steps);
    return new Map();
  }

  protected override forgetNetwork(network: NetworkId): void {
    const attachment = this.#attachments.get(network);
    if (attachment === undefined) return;
    this.#detach(network);
    this.#runner.forget(attachment.core.vni);
  }

  protected override endpointGsoMaxSize(core: DesiredCore): number {
    return engineGsoMaxSize(core.mtu);
  }

  /** `adopt`: the device is there, and what was forwarded over it stays so. */
  #attach(namespace: NetworkNamespace, core: DesiredCore, how: "create" | "adopt", what: string): void {
    const { network, netns, socket } = namespace;
    const { vni, mtu, dataPathPort: port } = core;
    this.#detach(network);
    const tap = netns.openTap(VXLAN_LINK, { ...ENGINE_TAP, persist: true });
    try {
      this.#runner.attach({ vni, mtu, port, adopt: how === "adopt", tapFds: [tap] }, what);
    } catch (error) {
      closeSync(tap);
      if (how === "create") deleteLink(socket, what, { name: VXLAN_LINK });
      throw error;
    }
    this.#attachments.set(network, { ifindex: requireLink(socket, VXLAN_LINK).ifindex, core });
    this.#setLink(namespace, core, what);
  }

  #detach(network: NetworkId): void {
    const attachment = this.#attachments.get(network);
    if (attachment === undefined) return;
    this.#attachments.delete(network);
    this.#runner.detach(attachment.core.vni);
  }

  /** A network that went while no agent ran never asks for what was remembered of it. */
  #disinherit(): void {
    if (this.#runner.inherits && this.list().every((network) => this.#attachments.has(network)))
      this.#runner.disinherit();
  }

  #setLink(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
    const { socket, network } = namespace;
    setLink(socket, what, {
      ifindex: requireLink(socket, VXLAN_LINK).ifindex,
      mtu: core.mtu,
      up: true,
      alias: networkAlias(network),
      master: core.linkKind === "veth" ? requireLink(socket, BRIDGE_LINK).ifindex : 0,
    });
  }
}
