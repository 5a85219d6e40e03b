/**
 * Port 53 of 127.0.0.11 inside a sandbox leads to our sockets on other ports, as Docker's table `docker-dns` does:
 * a socket bound to 127.0.0.11:53 itself would keep every DNS server of the sandbox from binding 0.0.0.0:53.
 *
 * Ports are rewritten packet by packet, there and back, where Docker translates connections: a NAT chain would have
 * every packet of the sandbox tracked, which costs new connections a third and packets a tenth.
 */
import { NetError } from "../base/error.ts";
import {
  decodeRule,
  decodeTable,
  NFT_MESSAGE,
  writeGetRules,
  writeGetTable,
} from "../wire/nftables/message.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";
import { runNft } from "./nft.ts";

const TABLE = "netagent-dns";
/** There and back, UDP and TCP, and one that lets everything pass at once that does not stay in the sandbox. */
const RULES = 5;

/** Ports of the listener, where questions are to go. */
export interface DnsPorts {
  readonly udp: number;
  readonly tcp: number;
}

/** Whether the redirection stands as we made it. @throws NetError when the kernel cannot be asked. */
export function dnsRedirectStands(netns: Netns, ports: DnsPorts): boolean {
  using socket = new NetlinkSocket("netfilter", netns);
  if (tableComment(socket) !== comment(ports)) return false;
  // `nft flush` leaves the table and takes its rules.
  const rules = socket.dump(
    `read the rules of table ${TABLE}`,
    { type: NFT_MESSAGE.getRule, encode: (out) => writeGetRules(out, TABLE) },
    (message) => decodeRule(message.payload, TABLE),
  );
  return rules.length === RULES;
}

/**
 * Where an earlier agent led questions to. Its successor takes the same ports, so that it answers as soon as it has its
 * sockets, with the rules as they stand. @throws NetError when the kernel cannot be asked.
 */
export function redirectedPorts(netns: Netns): DnsPorts | undefined {
  using socket = new NetlinkSocket("netfilter", netns);
  const match = /^netagent resolver: udp (\d+), tcp (\d+)$/.exec(tableComment(socket) ?? "");
  return match === null ? undefined : { udp: Number(match[1]), tcp: Number(match[2]) };
}

function tableComment(socket: NetlinkSocket): string | undefined {
  try {
    const request = {
      type: NFT_MESSAGE.getTable,
      encode: (out: Parameters<typeof writeGetTable>[0]) => writeGetTable(out, TABLE),
    };
    return socket.get(`find table ${TABLE}`, request, (message) => decodeTable(message.payload)).comment;
  } catch (error) {
    if (error instanceof NetError && error.code === "ENOENT") return undefined;
    throw error;
  }
}

/** Makes it, in place of what was there. @throws NetError */
export async function redirectDns(netns: Netns, ports: DnsPorts): Promise<void> {
  const script = `table inet ${TABLE}
delete table inet ${TABLE}
table inet ${TABLE} {
  comment "${comment(ports)}"
  chain output {
    type filter hook output priority raw; policy accept;
    oif != lo accept
    ip daddr 127.0.0.11 udp dport 53 udp dport set ${ports.udp} notrack
    ip daddr 127.0.0.11 tcp dport 53 tcp dport set ${ports.tcp} notrack
    ip saddr 127.0.0.11 udp sport ${ports.udp} udp sport set 53 notrack
    ip saddr 127.0.0.11 tcp sport ${ports.tcp} tcp sport set 53 notrack
  }
}
`;
  await runNft(`redirect DNS`, script, netns);
}

/** Takes it away from a sandbox that lives on without us; nothing there is not an error. @throws NetError */
export async function removeDnsRedirect(netns: Netns): Promise<void> {
  await runNft("stop redirecting DNS", `table inet ${TABLE}\ndelete table inet ${TABLE}\n`, netns);
}

/** The ports are in the comment, so that one look at the table says whether it is current. */
function comment({ udp, tcp }: DnsPorts): string {
  return `netagent resolver: udp ${udp}, tcp ${tcp}`;
}
