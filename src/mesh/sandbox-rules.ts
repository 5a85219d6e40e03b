/**
 * The table inside an endpoint's namespace: VIPs out, and, on a leg in the ingress network, published ports
 * in and replies back through the node they came from.
 */
import { type Cidr, formatCidr, ipv4ToNumber, subnetOf, subnetSize } from "../base/ip.ts";
import type { IngressLeg, Sandbox } from "./input.ts";
import { pickChains, REFUSE_RULES, slotMaps, slotMapTexts } from "./pick-chains.ts";
import { buildSkeleton, type Chain, type SetDefinition, type Skeleton } from "./ruleset.ts";

const BY_VIP = pickChains("pick", "ip daddr", "vip_slots");

/** VIP → the chain that picks; any protocol, any port. */
export const VIPS: SetDefinition = { name: "vips", key: ["ipv4"], value: { verdicts: BY_VIP.names } };
/** By class of `choice.ts`: (VIP, slot) → backend's address on the same network. */
export const VIP_SLOTS = slotMaps("vip_slots", ["ipv4"], ["ipv4"]);
/** Inner source MAC of an entry node → the mark of its return path. */
export const ENTRY_MARKS: SetDefinition = { name: "entry_marks", key: ["ether"], value: ["number"] };
/** The same → the conntrack zone of the flows it sends. */
export const ENTRY_ZONES: SetDefinition = { name: "entry_zones", key: ["ether"], value: ["zone"] };
/** (protocol, target port) that may be reached over the ingress leg. */
export const TARGETS: SetDefinition = { name: "targets", key: ["protocol", "port"], value: [] };

const VIP_DECLARATIONS = [
  "map vips { type ipv4_addr : verdict; }",
  ...slotMapTexts("vip_slots", "ip daddr", "ip daddr"),
];
const INGRESS_DECLARATIONS = [
  "map entry_marks { type ether_addr : mark; }",
  "map entry_zones { typeof ether saddr : ct zone; }",
  "set targets { typeof meta l4proto . th dport; }",
];

/** `ingress` is the node's facts about the network, absent while it has none. Undefined: nothing to do. */
export function sandboxSkeleton(
  sandbox: Sandbox,
  ingress: Pick<IngressLeg, "subnet"> | undefined,
  hasVips: boolean,
): Skeleton | undefined {
  const declarations: string[] = [];
  const sets: SetDefinition[] = [];
  const chains: Chain[] = [];
  const natPrerouting: string[] = [];
  if (hasVips) {
    declarations.push(...VIP_DECLARATIONS);
    sets.push(...VIP_SLOTS, VIPS);
    chains.push(REFUSE_RULES, ...BY_VIP.chains);
    chains.push({
      name: "output",
      hook: "type nat hook output priority -100",
      rules: ["ip daddr vmap @vips"],
    });
    // Clients behind this namespace, such as nested containers.
    natPrerouting.push("ip daddr vmap @vips");
  }
  if (sandbox.ingress !== undefined && ingress !== undefined) {
    declarations.push(...INGRESS_DECLARATIONS);
    sets.push(ENTRY_MARKS, ENTRY_ZONES, TARGETS);
    chains.push(...ingressChains(sandbox.ingress.interface, subnetOf(ingress.subnet)));
    const { defaultSource } = sandbox;
    if (defaultSource !== undefined && defaultSource !== sandbox.ingress.ip) {
      /*
       * A UDP server on 0.0.0.0 answers from the address of the route to the client, which is looked up before
       * any mark counts; so the request is made to arrive at that address, and conntrack undoes it in the reply.
       */
      natPrerouting.unshift(
        `iifname "${sandbox.ingress.interface}" meta l4proto udp ct mark != 0 dnat ip to ${defaultSource}`,
      );
    }
  }
  if (sets.length === 0) return undefined;
  if (natPrerouting.length > 0) {
    chains.push({
      name: "prerouting",
      hook: "type nat hook prerouting priority dstnat",
      rules: natPrerouting,
    });
  }
  return buildSkeleton(declarations, sets, chains);
}

function ingressChains(leg: string, range: Cidr): Chain[] {
  const subnet = formatCidr(range);
  // An entry node's mark is its address, and no other mark is in this range.
  const marks = { first: ipv4ToNumber(range.ip), mask: 2 ** 32 - subnetSize(range) };
  return [
    /*
     * Which entry node a packet came from is known by the frame's source MAC. Clients inside the ingress subnet are
     * entry nodes that did source NAT: for them the plain route is right, and no mark is set.
     *
     * One client may use one source port towards two entry nodes at once, and both choose the same backend, for which
     * the two connections would be one: the second's SYN would meet the first's socket, or its TIME-WAIT. So the flows
     * of each entry node are a zone of their own; what is sent back has none, where conntrack sees the clash and gives
     * the later one another source port (the null binding of the nat chain `arrive`).
     *
     * An entry node's address in the ingress network is nobody's in another one, and so is its MAC: no need to ask every
     * packet for the interface's name.
     */
    {
      name: "entry_zone",
      hook: "type filter hook prerouting priority raw",
      rules: [`ip saddr != ${subnet} ct original zone set ether saddr map @entry_zones`],
    },
    { name: "arrive", hook: "type nat hook input priority 100", rules: [] },
    /*
     * The connection remembers the mark, and its packets carry it (src_valid_mark). An accepted TCP socket inherits that
     * of the SYN (tcp_fwmark_accept), and so do its SYN-ACK, TIME-WAIT and resets (fwmark_reflect): routed by it at once.
     */
    {
      name: "entry",
      hook: "type filter hook prerouting priority mangle",
      rules: [
        `ct state new iifname "${leg}" ip saddr != ${subnet} ct mark set ether saddr map @entry_marks`,
        `ct direction original ct mark & ${marks.mask} == ${marks.first} meta mark set ct mark`,
      ],
    },
    // Its replies go back the way the request came: a changed mark makes a route chain look the route up again.
    {
      name: "reply",
      hook: "type route hook output priority mangle",
      rules: [`ct direction reply ct mark & ${marks.mask} == ${marks.first} meta mark set ct mark`],
    },
    // Nothing but published ports is reachable over the ingress network.
    {
      name: "input",
      hook: "type filter hook input priority filter",
      rules: [
        "ct state established,related accept",
        `iifname "${leg}" meta l4proto . th dport @targets accept`,
        `iifname "${leg}" meta l4proto { tcp, udp, sctp, dccp } counter drop`,
      ],
    },
    {
      name: "leave",
      hook: "type filter hook output priority filter",
      // The fallback route of the return path is for replies; others hear at once that there is no way out. A socket
      // with a mark replies, too, when conntrack has forgotten its connection.
      rules: [
        `meta mark 0 ct direction original oifname "${leg}" ip daddr != ${subnet} reject with icmp type net-unreachable`,
      ],
    },
  ];
}
