/**
 * The host's table against strangers: VXLAN is taken from members' VTEPs only. A table of its own, apart from the
 * mesh's: that one is replaced as a whole when its structure changes, and this one must never be empty.
 */
import { type IpAddr, ipv4ToNumber, isIpv4 } from "../base/ip.ts";
import { block, ipv6Words } from "./rows.ts";
import { buildSkeleton, type Ruleset, type SetDefinition } from "./ruleset.ts";

export const VXLAN_TABLE = "netagent-vxlan";

/** Who may send us VXLAN. */
export const VTEPS: SetDefinition = { name: "vteps", key: ["ipv4"], value: [], inline: true };
export const VTEPS6: SetDefinition = { name: "vteps6", key: ["ipv6"], value: [], inline: true };

/** Counter of VXLAN packets dropped because their sender is no member. */
export const STRANGERS_COUNTER = "strangers";
/** Senders of such packets, each with a counter; the kernel fills them, forgets who is silent, and has room for so many. */
export const STRANGER_SETS = ["stranger_addresses", "stranger_addresses6"] as const;
const MAX_STRANGERS = 256;
const REMEMBER_STRANGERS = "1h";

/** `vteps`: every member's, of both families, and our own: several data-path addresses may reach each other. */
export function vxlanFilter(dataPathPort: number, vteps: readonly IpAddr[]): Ruleset {
  const strangers = `size ${MAX_STRANGERS}; flags dynamic,timeout; timeout ${REMEMBER_STRANGERS};`;
  const skeleton = buildSkeleton(
    [
      "set vteps { type ipv4_addr; }",
      "set vteps6 { type ipv6_addr; }",
      `set ${STRANGER_SETS[0]} { type ipv4_addr; ${strangers} }`,
      `set ${STRANGER_SETS[1]} { type ipv6_addr; ${strangers} }`,
      `counter ${STRANGERS_COUNTER} { }`,
    ],
    [VTEPS, VTEPS6],
    [
      {
        name: "vxlan",
        rules: [
          // Tunnel packets need no connection tracking; without this every one would pay for NAT chains.
          "ip saddr @vteps notrack return",
          "ip6 saddr @vteps6 notrack return",
          // Only a stranger pays for the question whether the packet stays here. One that passes through is not ours.
          "fib daddr type != local return",
          // A full set ends its own rule only.
          `update @${STRANGER_SETS[0]} { ip saddr counter }`,
          `update @${STRANGER_SETS[1]} { ip6 saddr counter }`,
          `counter name ${STRANGERS_COUNTER} drop`,
        ],
      },
      {
        name: "raw_prerouting",
        hook: "type filter hook prerouting priority raw",
        rules: [`udp dport ${dataPathPort} jump vxlan`],
      },
      {
        name: "raw_output",
        hook: "type filter hook output priority raw",
        rules: [`udp dport ${dataPathPort} notrack`],
      },
    ],
    { table: VXLAN_TABLE, what: "VXLAN filter" },
  );
  const blocks = [
    block(VTEPS, vteps.filter(isIpv4).map(ipv4ToNumber)),
    block(VTEPS6, vteps.filter((ip) => !isIpv4(ip)).flatMap(ipv6Words)),
  ];
  return { skeleton, groups: [{ id: "members", blocks }] };
}
