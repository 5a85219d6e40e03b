/**
 * Makes and sets the links of an overlay network: VXLAN device, gateway, endpoints. `what` begins every error.
 */
import { errorCode, NetError } from "../base/error.ts";
import { type Cidr, formatCidr, type IpAddr, isIpv4, subnetOf } from "../base/ip.ts";
import { type MacAddr, macFromIpv4 } from "../base/mac.ts";
import type { DesiredCore, DesiredEndpoint } from "../overlay/desired.ts";
import { BRIDGE_LINK, bridgePortName, endpointAlias, networkAlias, VXLAN_LINK } from "../overlay/naming.ts";
import { formatSandbox, gatewayLink, type OverlayStep } from "../overlay/plan.ts";
import { type Link, type LinkInfo, MACVLAN_MODE_BRIDGE, type VxlanInfo } from "../wire/netlink/link.ts";
import { NLM_F } from "../wire/netlink/message.ts";
import { encodeFdbEntry, NTF, NUD } from "../wire/netlink/neighbor.ts";
import {
  decodeRoute,
  encodeRoute,
  encodeRouteMatch,
  type Route,
  RT_SCOPE,
  RT_TABLE,
  RTN,
  RTPROT_KERNEL,
} from "../wire/netlink/route.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import { deleteAddress, setAddress } from "./addresses.ts";
import { createLink, deleteLink, findLink, setLink } from "./links.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";
import type { NetworkNamespace } from "./network-namespace.ts";

export function vxlanInfo(core: DesiredCore): VxlanInfo {
  return {
    kind: "vxlan",
    vni: core.vni,
    port: core.dataPathPort,
    // Its family makes the device IPv4 or IPv6, as Docker does with the group `::`; and with several addresses
    // on the host our packets come from the one that is our VTEP.
    local: core.vtep,
    ...VXLAN_FLAGS,
    ...VXLAN_SETTINGS,
  };
}

/**
 * No group: unknown MACs go nowhere.
 * The outer UDP checksum is Docker's choice, and it lets a receiving NIC vouch for the inner one; switching it
 * off made no difference beyond noise in connections, round trips or throughput (nine interleaved rounds).
 */
export const VXLAN_FLAGS = {
  proxy: true,
  l2miss: false,
  l3miss: false,
  udpChecksum: true,
  udpZeroChecksum6Tx: false,
  udpZeroChecksum6Rx: false,
  collectMetadata: false,
} as const;

/** What can be set on a living device. No learning: no entry exists that the plan did not put there. */
export const VXLAN_SETTINGS = { learning: false, dontFragment: false, ttl: 0, tos: 0 } as const;

export function setVxlan(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
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
  setLink(socket, what, { ifindex, info: { kind: "vxlan-change", local: core.vtep, ...VXLAN_SETTINGS } });
}

export function createGateway(namespace: NetworkNamespace, core: DesiredCore, what: string): void {
  const { socket } = namespace;
  const name = gatewayLink(core.linkKind);
  const mac = gatewayMac(core);
  const macvlan = core.linkKind === "macvlan";
  createLink(socket, what, {
    name,
    mtu: core.mtu,
    ...(mac === undefined ? {} : { mac }),
    ...(macvlan ? { link: requireLink(socket, VXLAN_LINK).ifindex } : {}),
    info: gatewayInfo(core),
  });
  const { ifindex } = requireLink(socket, name);
  setLink(socket, what, { ifindex, up: true, alias: networkAlias(namespace.network) });
  setAddress(socket, what, ifindex, core.gateway);
}

/** Whatever of a living gateway is not as `createGateway` makes it. */
export function setGateway(
  namespace: NetworkNamespace,
  step: Extract<OverlayStep, { readonly type: "set-gateway" }>,
  what: string,
): void {
  const { socket } = namespace;
  const { core } = step;
  const { ifindex, mac } = requireLink(socket, gatewayLink(core.linkKind));
  const wanted = gatewayMac(core);
  setLink(socket, what, {
    ifindex,
    mtu: core.mtu,
    up: true,
    alias: networkAlias(namespace.network),
    info: gatewayInfo(core),
    ...(wanted === undefined || wanted === mac ? {} : { mac: wanted }),
  });
  setAddress(socket, what, ifindex, core.gateway);
  for (const address of step.remove) deleteAddress(socket, what, ifindex, address);
}

/** The same on every node, as the address is: an endpoint that moves keeps its cache. */
export function gatewayMac(core: DesiredCore): MacAddr | undefined {
  return isIpv4(core.gateway.ip) ? macFromIpv4(core.gateway.ip) : undefined;
}

function gatewayInfo(core: DesiredCore): LinkInfo {
  return core.linkKind === "macvlan" ? MACVLAN : { kind: "bridge", multicastSnooping: false };
}

const MACVLAN: LinkInfo = { kind: "macvlan", mode: MACVLAN_MODE_BRIDGE };

/** `gsoMaxSize`: what the dataplane takes at once; undefined leaves the kernel's choice. */
export function createEndpoint(
  namespace: NetworkNamespace,
  sandbox: Netns,
  endpoint: DesiredEndpoint,
  core: DesiredCore,
  gsoMaxSize: number | undefined,
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
    throw nameTaken(error, endpoint, what);
  }
  configureEndpoint(namespace, sandbox, endpoint, core, gsoMaxSize, endpoint.ifname, what);
}

export function setEndpoint(
  namespace: NetworkNamespace,
  sandbox: Netns,
  step: Extract<OverlayStep, { readonly type: "set-endpoint" }>,
  gsoMaxSize: number | undefined,
  what: string,
): void {
  const { endpoint, core, ifname } = step;
  const ifindex = configureEndpoint(namespace, sandbox, endpoint, core, gsoMaxSize, ifname, what);
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
  gsoMaxSize: number | undefined,
  currentName: string,
  what: string,
): number {
  const alias = endpointAlias(namespace.network, endpoint.id);
  if (core.linkKind === "veth") attachPort(namespace, endpoint, core, alias, what);
  using socket = new NetlinkSocket("route", sandbox);
  const link = requireLink(socket, currentName);
  const { ifindex } = link;
  try {
    setLink(socket, what, {
      ifindex,
      alias,
      mtu: core.mtu,
      ...(gsoMaxSize === undefined ? {} : { gsoMaxSize }),
      ...(link.mac === endpoint.mac ? {} : { mac: endpoint.mac }),
      ...(link.name === endpoint.ifname ? {} : { name: endpoint.ifname }),
      ...(core.linkKind === "macvlan" ? { info: MACVLAN } : {}),
    });
  } catch (error) {
    throw nameTaken(error, endpoint, what);
  }
  setAddress(socket, what, ifindex, endpoint.address);
  setLink(socket, what, { ifindex, up: true });
  if (!hasSubnetRoute(socket, ifindex, core.gateway)) setSubnetRoute(socket, what, ifindex, endpoint.address);
  return ifindex;
}

/** As the kernel makes it with the address; it does not make it again when somebody deleted it. @throws NetError */
function setSubnetRoute(socket: NetlinkSocket, what: string, ifindex: number, address: Cidr): void {
  const route: Route = {
    destination: subnetOf(address),
    table: RT_TABLE.main,
    protocol: RTPROT_KERNEL,
    scope: RT_SCOPE.link,
    type: RTN.unicast,
    flags: 0,
    ifindex,
    source: address.ip,
  };
  const text = `${what}: route to ${formatCidr(route.destination)}`;
  const request = (type: number, flags: number): void =>
    socket.request(text, { type, flags, encode: (out) => encodeRoute(route, out) });
  try {
    // Ours may be there behind one that somebody put before it.
    request(RTM.deleteRoute, 0);
  } catch (error) {
    if (errorCode(error) !== "ESRCH") throw error;
  }
  // Neither appended nor replacing: it comes first, and what is not ours stays.
  request(RTM.newRoute, NLM_F.create);
}

/**
 * Whether packets to the subnet of `gateway`, an address of it, leave through the interface: that route is there, and
 * the main table has no other one for the same subnet before it. Routing by policy is the sandbox's own business.
 * @throws NetError
 */
export function hasSubnetRoute(socket: NetlinkSocket, ifindex: number, gateway: Cidr): boolean {
  if (!isIpv4(gateway.ip)) return true;
  const own = lookUp(socket, gateway.ip, ifindex);
  if (own === undefined || own.gateway !== undefined) return false;
  const first = lookUp(socket, gateway.ip);
  const isSubnets =
    first?.table === RT_TABLE.main && formatCidr(first.destination) === formatCidr(subnetOf(gateway));
  return !isSubnets || first.ifindex === ifindex || first.protocol === RTPROT_KERNEL;
}

/** The route that leads there, out of that interface or any. */
function lookUp(socket: NetlinkSocket, ip: IpAddr, ifindex?: number): Route | undefined {
  try {
    return socket.get(
      `find the route to ${ip}`,
      { type: RTM.getRoute, encode: (out) => encodeRouteMatch(ip, ifindex, out) },
      (message) => decodeRoute(message.payload),
    );
  } catch (error) {
    if (NO_ROUTE.has(errorCode(error) ?? "")) return undefined;
    throw error;
  }
}

/** Says whose interface has the endpoint's name when that is why the kernel refused. */
function nameTaken(error: unknown, endpoint: DesiredEndpoint, what: string): unknown {
  if (errorCode(error) !== "EEXIST") return error;
  const where = formatSandbox(endpoint.sandbox);
  const text = `${what}: EEXIST (there is already an interface ${endpoint.ifname} in ${where} that is not ours)`;
  return new NetError("EEXIST", text, { cause: error });
}

const NO_ROUTE: ReadonlySet<string> = new Set([
  "ENETUNREACH",
  "EHOSTUNREACH",
  "EACCES",
  "EINVAL",
  "ENETDOWN",
]);

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

/** @throws NetError `ENODEV` */
export function requireLink(socket: NetlinkSocket, name: string): Link {
  const link = findLink(socket, { name });
  if (link === undefined) throw new NetError("ENODEV", `find link ${name}: ENODEV (it is not there)`);
  return link;
}
