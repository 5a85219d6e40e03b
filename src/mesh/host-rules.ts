/** The host's table: published ports in, source NAT where it is needed. */
import { type Cidr, formatCidr, subnetOf } from "../base/ip.ts";
import type { NodeFacts } from "./input.ts";
import { pickChains, REFUSE_RULES, slotMaps, slotMapTexts } from "./pick-chains.ts";
import { buildSkeleton, type Chain, type SetDefinition, type Skeleton } from "./ruleset.ts";

const BY_PORT = pickChains("pick", "meta l4proto . th dport", "slots");
const BY_ADDRESS = pickChains("pick-at", "ip daddr . meta l4proto . th dport", "address_slots");

/** (protocol, published port) → the chain that picks. */
export const PORTS: SetDefinition = {
  name: "ports",
  key: ["protocol", "port"],
  value: { verdicts: BY_PORT.names },
};
/** The same for ports published on one address; looked up first. */
export const ADDRESS_PORTS: SetDefinition = {
  name: "address_ports",
  key: ["ipv4", "protocol", "port"],
  value: { verdicts: BY_ADDRESS.names },
};
/** By class of `choice.ts`: (protocol, published port, slot) → (backend's ingress address, target port). */
export const SLOTS = slotMaps("slots", ["protocol", "port"], ["ipv4", "port"]);
export const ADDRESS_SLOTS = slotMaps("address_slots", ["ipv4", "protocol", "port"], ["ipv4", "port"]);
/** (backend's ingress address, protocol, target port) that must see our ingress address as its client. */
export const MASKED: SetDefinition = { name: "masked", key: ["ipv4", "protocol", "port"], value: [] };
/**
 * (backend's ingress address, protocol, target port) that let a client down since it last took one: the rules add
 * it when a SYN is repeated unanswered or refused, and take it out at its next SYN-ACK. Nobody's plan: read only.
 */
export const FAILING: SetDefinition = { name: "failing", key: ["ipv4", "protocol", "port"], value: [] };
/**
 * Clients whose replies would bypass us: those inside the overlay, and everybody while the backends' nodes may not know
 * us. That is an element and no other rule, because a new skeleton takes the ports away for as long as it takes to fill
 * them in again, and whoever connects meanwhile is refused.
 */
export const OVERLAY_RANGES: SetDefinition = {
  name: "overlay_ranges",
  key: ["ipv4"],
  value: [],
  range: true,
};

const PUBLISHED_DECLARATIONS = [
  // Each element counts what it is looked up for: the first packets of connections, as chains of NAT see no others.
  "map ports { typeof meta l4proto . th dport : verdict; counter; }",
  "map address_ports { typeof ip daddr . meta l4proto . th dport : verdict; counter; }",
  ...slotMapTexts("slots", "meta l4proto . th dport", "ip daddr . th dport"),
  ...slotMapTexts("address_slots", "ip daddr . meta l4proto . th dport", "ip daddr . th dport"),
  "set masked { typeof ip daddr . meta l4proto . th dport; }",
  // An entry that is never taken out, because nobody tries any more, gives its backend a new chance in the end.
  "set failing { typeof ip daddr . meta l4proto . th dport; flags dynamic,timeout; timeout 10m; size 65535; }",
  "set overlay_ranges { type ipv4_addr; flags interval; }",
];

/** Undefined when there is nothing to do: no ingress leg. */
export function hostSkeleton(node: NodeFacts): Skeleton | undefined {
  const { ingress } = node;
  if (ingress === undefined) return undefined;
  const chains: Chain[] = [
    ...[REFUSE_RULES, ...BY_PORT.chains, ...BY_ADDRESS.chains],
    ...publishedChains(ingress.interface, ingress.ip, ingress.subnet),
  ];
  // What the ports lead to comes before the ports: a large load is several transactions.
  const sets = [...SLOTS, ...ADDRESS_SLOTS, MASKED, OVERLAY_RANGES, PORTS, ADDRESS_PORTS];
  return buildSkeleton(PUBLISHED_DECLARATIONS, sets, chains);
}

/**
 * What becomes of SYNs, seen while both ways still show the backend's own address: behind the translation of the
 * destination, before that of the source. A second SYN is one of a connection that is confirmed by the first, and still
 * one-sided; a local client's is known by its destination, for a packet translated on the way out still has the interface it
 * was routed to before. A reset with sequence number 0 is a refusal: that of an established connection continues its numbers (RFC 9293
 * §3.10.7.1).
 */
function handshakeChain(leg: string, subnet: string): Chain {
  const backend = "ip saddr . meta l4proto . th sport";
  return {
    name: "handshake",
    rules: [
      `tcp flags & (fin | syn | rst | ack) == syn ip daddr ${subnet} ct status & (seen-reply | confirmed | dnat) == (confirmed | dnat) update @failing { ip daddr . meta l4proto . th dport }`,
      `tcp flags & (syn | ack) == syn | ack iifname "${leg}" delete @failing { ${backend} }`,
      `tcp flags & (rst | ack) == rst | ack tcp sequence 0 iifname "${leg}" update @failing { ${backend} }`,
    ],
  };
}

/**
 * Every packet of every connection passes through the filters, and comparing an interface's name is what costs most in a
 * rule: so they ask first what most packets are not (one of a handshake) and then what most are (established).
 */
const HANDSHAKE = "tcp flags & (syn | rst) != 0 jump handshake";

function publishedChains(leg: string, own: string, subnet: Cidr): Chain[] {
  const ingressSubnet = formatCidr(subnetOf(subnet));
  return [
    {
      name: "published",
      rules: [
        "ip daddr . meta l4proto . th dport vmap @address_ports",
        "meta l4proto . th dport vmap @ports",
      ],
    },
    {
      name: "prerouting",
      hook: "type nat hook prerouting priority dstnat",
      rules: ["fib daddr type local jump published"],
    },
    // Clients on the node itself, 127.0.0.1 included.
    {
      name: "output",
      hook: "type nat hook output priority -100",
      rules: ["fib daddr type local jump published"],
    },
    {
      name: "source",
      rules: [
        // A loopback address means nothing on the wire.
        `ip saddr 127.0.0.0/8 snat ip to ${own}`,
        // The backend would answer its own kind directly, or itself.
        `ip saddr ${ingressSubnet} snat ip to ${own}`,
        `ip saddr @overlay_ranges snat ip to ${own}`,
        // Backends on nodes that do not route replies back through us.
        `ip daddr . meta l4proto . th dport @masked snat ip to ${own}`,
      ],
    },
    {
      name: "postrouting",
      hook: "type nat hook postrouting priority srcnat",
      rules: [`oifname "${leg}" ct status dnat jump source`],
    },
    handshakeChain(leg, ingressSubnet),
    // Clients on the node itself.
    { name: "local", hook: "type filter hook output priority filter", rules: [HANDSHAKE] },
    /*
     * Our flows pass and nothing else enters or leaves through the leg: the host forwards now, and the ingress
     * network must not become a road for whoever routes to it. An accept ends only our own chain. A drop in
     * another table's forward chain (a firewall's or iptables' FORWARD policy) is final and cannot be overridden
     * from here; such a host needs a rule of its own that accepts `ct status dnat` (firewalld has it).
     */
    {
      name: "forward",
      hook: "type filter hook forward priority filter",
      rules: [
        HANDSHAKE,
        "ct state established,related ct status dnat accept",
        `oifname "${leg}" ct status dnat accept`,
        `oifname "${leg}" counter drop`,
        `iifname "${leg}" counter drop`,
      ],
    },
    // Published ports alone are reachable over the leg, not what the host itself listens on.
    {
      name: "input",
      hook: "type filter hook input priority filter",
      rules: [
        HANDSHAKE,
        "ct state established,related accept",
        // route_localnet lets 127.0.0.1 use the leg, so nobody on the other side of it may (CVE-2020-8558).
        `ip daddr 127.0.0.0/8 iifname "${leg}" drop`,
        `iifname "${leg}" meta l4proto { tcp, udp, sctp, dccp } counter drop`,
      ],
    },
  ];
}
