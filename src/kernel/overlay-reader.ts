/** What the links of a network's namespace and of its sandboxes mean in the plan's terms. */
import type { EndpointId } from "../base/id.ts";
import type { Cidr } from "../base/ip.ts";
import type { DesiredOverlay } from "../overlay/desired.ts";
import { bridgePortName, endpointOfAlias, networkAlias } from "../overlay/naming.ts";
import type { ActualEndpoint, ActualGateway, ActualVxlan } from "../overlay/plan.ts";
import type { InterfaceAddress } from "../wire/netlink/address.ts";
import { type Link, MACVLAN_MODE_BRIDGE } from "../wire/netlink/link.ts";
import type { LinkSnapshot } from "./network-namespace.ts";
import { gatewayMac, VXLAN_FLAGS, VXLAN_SETTINGS } from "./overlay-links.ts";

export function actualVxlan(
  desired: Pick<DesiredOverlay, "network">,
  links: LinkSnapshot,
): ActualVxlan | undefined {
  const { vxlan } = links;
  if (vxlan === undefined) return undefined;
  const { info } = vxlan;
  if (info?.kind !== "vxlan") return foreignDevice(vxlan);
  const flags = Object.entries(VXLAN_FLAGS) as [keyof typeof VXLAN_FLAGS, boolean][];
  const settings = Object.entries(VXLAN_SETTINGS) as [keyof typeof VXLAN_SETTINGS, boolean | number][];
  return {
    vni: info.vni,
    dataPathPort: info.port,
    vtep: info.local,
    ipv6: info.local?.includes(":") ?? false,
    flagsMatch: info.group === undefined && flags.every(([flag, value]) => info[flag] === value),
    settingsMatch:
      vxlan.alias === networkAlias(desired.network) &&
      settings.every(([name, value]) => info[name] === value),
    mtu: vxlan.mtu,
    up: vxlan.up,
    onBridge: vxlan.master !== undefined,
  };
}

/** Something of another kind under the device's name, left by the other dataplane: it must be made anew. */
export function foreignDevice(link: Link): ActualVxlan {
  const { mtu, up, master } = link;
  const onBridge = master !== undefined;
  const none = { vni: 0, dataPathPort: 0, vtep: undefined, ipv6: false } as const;
  return { ...none, flagsMatch: false, settingsMatch: false, mtu, up, onBridge };
}

export function actualGateway(desired: DesiredOverlay, links: LinkSnapshot): ActualGateway | undefined {
  const found: readonly (readonly [ActualGateway["linkKind"], Link | undefined])[] = [
    ["macvlan", links.macvlanGateway],
    ["veth", links.bridge],
  ];
  for (const [linkKind, link] of found) {
    if (link === undefined) continue;
    const { core, network } = desired;
    const mac = core === undefined ? undefined : gatewayMac(core);
    return {
      linkKind,
      mtu: link.mtu,
      up: link.up,
      settingsMatch:
        link.alias === networkAlias(network) && (mac === undefined || link.mac === mac) && isInMode(link),
      addresses: addressesOf(links.addresses, link.ifindex),
    };
  }
  return undefined;
}

/** As we make it: others of the macvlan modes keep neighbors on one host apart, or the host from them. */
function isInMode(link: Link): boolean {
  const { info } = link;
  return info?.kind === "macvlan"
    ? info.mode === MACVLAN_MODE_BRIDGE
    : info?.kind !== "bridge" || !info.multicastSnooping;
}

function addressesOf(addresses: readonly InterfaceAddress[], ifindex: number): Cidr[] {
  return addresses
    .filter((entry) => entry.ifindex === ifindex && entry.scope === 0)
    .map((entry) => entry.address);
}

/**
 * Interfaces in sandboxes that carry our mark, or that we made and died before marking. One with another limit on
 * superframes than `gsoMaxSize` is not attached as it should be. `routeless` are the places without a route.
 */
export function actualEndpoints(
  desired: DesiredOverlay,
  links: LinkSnapshot,
  gsoMaxSize: number | undefined,
  routeless: ReadonlySet<string>,
): ActualEndpoint[] {
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
        attached:
          marked !== undefined &&
          isInMode(link) &&
          (link.kind !== "veth" || isPortAttached(links, id)) &&
          (gsoMaxSize === undefined || link.gsoMaxSize === gsoMaxSize),
        addresses: addressesOf(sandbox.addresses, link.ifindex),
        routed: !routeless.has(placeOf(sandbox.nsid, link.ifindex)),
      });
    }
  }
  return found;
}

/** Names an interface among those of all sandboxes. */
export function placeOf(nsid: number, ifindex: number): string {
  return `${nsid}/${ifindex}`;
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
