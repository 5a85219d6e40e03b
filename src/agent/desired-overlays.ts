import type { NetworkId, NodeName } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Sliced } from "../base/sliced.ts";
import { after, type Instant } from "../base/time.ts";
import type { GossipNode } from "../cluster/gossip-node.ts";
import {
  deriveOverlay,
  overlayMtu,
  type DesiredOverlay,
  type LinkKind,
  type OverlayNetwork,
} from "../overlay/desired.ts";
import { remotePeers } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import type { NetworkView } from "../state/state.ts";
import { PEER_TABLE } from "../wire/networkdb/records.ts";
import { ownVtep, type Config } from "./config.ts";
import type { Endpoints } from "./endpoints.ts";
import type { RejectedRows } from "./rejected-rows.ts";

export interface DesiredOverlaysParts {
  readonly config: Config;
  readonly node: GossipNode;
  readonly endpoints: Endpoints;
  readonly rejectedRows: RejectedRows;
  readonly linkKind: LinkKind;
  readonly now: () => Instant;
  /** MTU of the device that carries our VTEP. */
  readonly underlayMtu: () => number;
}

const MTU_MS = 1_000;

/** What definitions, tables and our endpoints say the kernel should have of each network. */
export class DesiredOverlays {
  readonly #parts: DesiredOverlaysParts;
  /** Asked of the kernel now and then only: it hardly ever changes, and every desired state needs it. */
  #underlayMtu: { readonly until: Instant; readonly bytes: number } | undefined;

  constructor(parts: DesiredOverlaysParts) {
    this.#parts = parts;
  }

  /** What the other netagents and we ourselves have been told so far decides. */
  *of(network: NetworkId): Sliced<DesiredOverlay> {
    const { config, node, endpoints, linkKind, rejectedRows } = this.#parts;
    const view = node.state.network(network);
    const desired = yield* deriveOverlay({
      network: view === undefined ? goneNetwork(network, config.dataPathPort) : this.network(view),
      linkKind,
      vtep: ownVtep(config),
      ownVteps: config.dataPathAddrs,
      endpoints: view === undefined || view.disabled ? [] : endpoints.ofNetwork(network),
      peers: remotePeers(
        node.networkDb.rows(network, PEER_TABLE, { suspended: true }),
        node.name,
        (owner) => node.peer(owner)?.capabilities.includes("state") === true,
      ),
      mayBeAt: (owner, rowVtep) => this.#mayBeAt(owner, rowVtep),
    });
    yield* rejectedRows.update(network, desired.rejected);
    return desired;
  }

  /** The network as this node's kernel is to have it; its MTU is no more than the underlay here carries. */
  network(view: NetworkView): OverlayNetwork {
    const { config } = this.#parts;
    const possible = overlayMtu(this.#mtu(), ownVtep(config));
    return {
      id: view.id,
      name: view.name,
      vni: view.vni,
      subnet: view.subnet,
      gateway: view.gateway,
      mtu: Math.min(view.mtu ?? possible, possible),
      dataPathPort: config.dataPathPort,
      internal: view.internal,
      encrypted: view.encrypted,
    };
  }

  /**
   * A netagent's rows name its own data-path addresses. Of other members nobody knows theirs; only that it is not
   * one that another, living netagent says it has.
   */
  #mayBeAt(owner: NodeName, vtep: IpAddr): boolean {
    const { node } = this.#parts;
    // A former life's rows are inherited for a while, and nobody knows any more what it said.
    if (node.swim.member(owner)?.state !== "alive") return true;
    const facts = node.peer(owner);
    if (facts !== undefined) return facts.vteps.includes(vtep);
    for (const member of node.swim.members())
      if (member.state === "alive" && node.peer(member.name)?.vteps.includes(vtep) === true) return false;
    return true;
  }

  #mtu(): number {
    const now = this.#parts.now();
    if (this.#underlayMtu === undefined || now > this.#underlayMtu.until)
      this.#underlayMtu = { until: after(now, MTU_MS), bytes: this.#parts.underlayMtu() };
    return this.#underlayMtu.bytes;
  }
}

/** Stands in for a network whose definition is gone: nothing of it is desired. */
function goneNetwork(id: NetworkId, dataPathPort: number): OverlayNetwork {
  const { vni, subnet, gateway } = INGRESS;
  return {
    id,
    name: id.slice(0, 12),
    vni,
    subnet,
    gateway,
    mtu: 1450,
    dataPathPort,
    internal: false,
    encrypted: false,
  };
}
