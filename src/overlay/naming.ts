/**
 * Names of kernel objects, and the mark by which we know our own. Only what carries the mark is ever deleted.
 *
 * Inside a network's namespace the names are fixed, since it holds nothing else. In a sandbox the name is the
 * endpoint's; there the interface alias carries network and endpoint, so that a restarted agent that lost its
 * state still knows what is whose.
 */
import type { EndpointId, NetworkId } from "../base/id.ts";

/** Longest interface name: IFNAMSIZ 16 with its NUL. */
export const MAX_INTERFACE_NAME_BYTES = 15;

/** The VXLAN device, in the network's namespace. */
export const VXLAN_LINK = "vxlan0";
/** Carries the gateway address: a macvlan child of the VXLAN device. */
export const GATEWAY_LINK = "gw0";
/** Carries the gateway address where endpoints hang on veth pairs. */
export const BRIDGE_LINK = "br0";
/** The fast path's way out of the network's namespace. */
export const FAST_LINK = "fast0";
/** The node's own leg into the ingress network, in the host namespace. */
export const INGRESS_HOST_LINK = "na-ingress";

const NAMESPACE_PREFIX = "ov-";
const ALIAS_PREFIX = "netagent:";

/** File name of a network's namespace below RUNDIR/netns. The prefix also keeps an id of `..` harmless. */
export function namespaceName(network: NetworkId): string {
  return NAMESPACE_PREFIX + network;
}

/** The inverse of `namespaceName`: undefined when the file is not one of ours. */
export function networkOfNamespace(name: string): NetworkId | undefined {
  const id = name.slice(NAMESPACE_PREFIX.length);
  // The same alphabet as base/id.ts, without throwing at strange files.
  return name.startsWith(NAMESPACE_PREFIX) && /^[A-Za-z0-9_.-]{1,64}$/.test(id)
    ? (id as NetworkId)
    : undefined;
}

/** Alias of the links in the network's namespace. */
export function networkAlias(network: NetworkId): string {
  return ALIAS_PREFIX + network;
}

/** Alias of an endpoint's interface, on both ends of a veth pair: `netagent:NETWORK/ENDPOINT`. */
export function endpointAlias(network: NetworkId, endpoint: EndpointId): string {
  return `${ALIAS_PREFIX}${network}/${endpoint}`;
}

/** The endpoint an alias of `network` names: undefined for others' links and other networks' endpoints. */
export function endpointOfAlias(network: NetworkId, alias: string): EndpointId | undefined {
  const prefix = `${ALIAS_PREFIX}${network}/`;
  return alias.startsWith(prefix) ? (alias.slice(prefix.length) as EndpointId) : undefined;
}

/** Whether a link of that alias is ours, of whatever network. */
export function isOurAlias(alias: string): boolean {
  return alias.startsWith(ALIAS_PREFIX);
}

/** Name of the bridge's end of an endpoint's veth pair: unique by the id's first 11 digits. */
export function bridgePortName(endpoint: EndpointId): string {
  return `ve-${endpoint.replaceAll(/[^A-Za-z0-9]/g, "").slice(0, MAX_INTERFACE_NAME_BYTES - 4)}`;
}

/** Name of the fast path's end in the host: unique by the id's first 12 digits. */
export function fastHostLink(network: NetworkId): string {
  return `nf-${network.replaceAll(/[^A-Za-z0-9]/g, "").slice(0, MAX_INTERFACE_NAME_BYTES - 3)}`;
}

/** What Linux takes as an interface name and what is safe to print. */
export function isInterfaceName(name: string): boolean {
  return /^[A-Za-z0-9_.-]{1,15}$/.test(name) && name !== "." && name !== "..";
}
