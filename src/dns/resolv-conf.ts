import { tryParseIp } from "../base/ip.ts";

/** As many as resolvers read (MAXNS). */
const MAX_SERVERS = 3;

/** Addresses of the `nameserver` lines of a resolv.conf, in order, a zone such as `%eth0` included. */
export function nameServers(text: string): string[] {
  const servers: string[] = [];
  for (const line of text.split("\n")) {
    const address = /^nameserver[ \t]+(\S+)/.exec(line)?.[1];
    if (address === undefined || servers.length === MAX_SERVERS) continue;
    if (tryParseIp(address.replace(/%.*$/, "")) !== undefined) servers.push(address);
  }
  return servers;
}
