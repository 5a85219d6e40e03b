/** What the links of a network's namespace and of its sandboxes mean in the plan's terms. */
import type { EndpointId } from "../base/id.ts";
import type { Cidr } from "../base/ip.ts";
import type { DesiredOverlay } from "../overlay/desired.ts";
import { bridgePortName, endpointOfAlias } from "../overlay/naming.ts";
import type { ActualEndpoint, ActualGateway, ActualVxlan } from "../overlay/plan.ts";
import type { InterfaceAddress } from "../wire/netlink/address.ts";
import type { Link } from "../wire/netlink/link.ts";
import type { LinkSnapshot } from "./network-namespace.ts";
import { VXLAN_FLAGS } from "./overlay-links.ts";

export function actualVxlan(links: LinkSnapshot): ActualVxlan | undefined {
  const { vxlan } = links;
  if (vxlan === undefined) return undefined;
  const { info } = vxlan;
  if (info?.kind !== "vxlan") return foreignDevice(vxlan);
  const flags = Object.entries(VXLAN_FLAGS) as [keyof typeof VXLAN_FLAGS, boolean][];
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

/** Something of another kind under the device's name, left by the other dataplane: it must be made anew. */
export function foreignDevice(link: Link): ActualVxlan {
  const { mtu, up, master } = link;
  const onBridge = master !== undefined;
  return { vni: 0, dataPathPort: 0, vtep: undefined, ipv6: false, flagsMatch: false, mtu, up, onBridge };
}

export function actualGateway(links: LinkSnapshot): ActualGateway | undefined {
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
export function actualEndpoints(desired: DesiredOverlay, links: LinkSnapshot): ActualEndpoint[] {
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
