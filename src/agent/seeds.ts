import { randomInt } from "node:crypto";
import { DecodeError, NetError } from "../base/error.ts";
import { ipFromBytes, type IpAddr, type SocketAddr } from "../base/ip.ts";
import { parseSeed, type Seed } from "../base/seed.ts";
import { DnsUpstream } from "../transport/dns-server.ts";
import { resolveHost } from "../transport/gossip-transport.ts";
import { addressesOf, DNS_TYPE, encodeDnsQuery } from "../wire/dns/message.ts";
import { hostServers } from "./host-servers.ts";

/** A name server that answers at all does so much sooner; the system's resolver is asked meanwhile. */
const TCP_LOOKUP_MS = 2_000;

/** @throws NetError `bad-seed` */
export function checkedSeed(text: string, defaultPort: number, nameRequired: boolean): Seed {
  let seed: Seed;
  try {
    seed = parseSeed(text, defaultPort);
  } catch (cause) {
    if (!(cause instanceof DecodeError)) throw cause;
    throw new NetError("bad-seed", `join '${text}': ${cause.message}`, { cause });
  }
  if (nameRequired && seed.name === undefined)
    throw new NetError("bad-seed", `join '${text}': node names are required (write NAME/${text})`);
  return seed;
}

/**
 * Every address of a seed. What the system's resolver says and, for a name with a dot, what the host's first name server
 * says over TCP: some, such as Consul's, give a few addresses only over UDP, and do not mark that answer as cut.
 * memberlist asks for ANY there, which servers need not answer any more (RFC 8482).
 * @throws NetError `resolve` when neither knows the name
 */
export async function seedAddresses(
  { host, port }: Pick<Seed, "host" | "port">,
  servers: readonly string[] = hostServers(),
): Promise<SocketAddr[]> {
  const [server] = servers;
  const isName = /[^\d.]/.test(host) && host.includes(".") && !host.includes(":");
  const overTcp = isName && server !== undefined ? askOverTcp(server, host) : Promise.resolve([]);
  const [system, tcp] = await Promise.allSettled([resolveHost(host), overTcp]);
  const more = tcp.status === "fulfilled" ? tcp.value : [];
  if (system.status === "rejected" && more.length === 0) throw system.reason;
  const found = system.status === "fulfilled" ? system.value : [];
  return [...new Set([...found, ...more])].map((ip) => ({ ip, port }));
}

/** A and AAAA, in this order; none of what is not answered in time. */
async function askOverTcp(server: string, name: string): Promise<IpAddr[]> {
  const kinds = [DNS_TYPE.a, DNS_TYPE.aaaa];
  const found = await Promise.all(kinds.map((type) => askOne(server, name, type)));
  return found.flat();
}

function askOne(server: string, name: string, type: number): Promise<IpAddr[]> {
  return new Promise((resolve, reject) => {
    const id = randomInt(0x1_0000);
    const question = encodeDnsQuery(id, name, type);
    const end = (addresses: readonly Uint8Array[]): void => {
      clearTimeout(timer);
      upstream.close();
      resolve(addresses.map(ipFromBytes));
    };
    const upstream = new DnsUpstream(
      (_, answer) => {
        try {
          end(addressesOf(answer, id, type));
        } catch (error) {
          end([]);
          if (!(error instanceof DecodeError)) reject(error);
        }
      },
      () => end([]),
    );
    const timer = setTimeout(() => end([]), TCP_LOOKUP_MS);
    upstream.ask(0, server, "tcp", question);
  });
}
