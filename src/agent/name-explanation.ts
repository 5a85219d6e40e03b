/** Why a name means what it means to an endpoint of this node: `netctl resolve`. */
import { unreachable } from "../base/assert.ts";
import { NetError } from "../base/error.ts";
import type { IpAddr } from "../base/ip.ts";
import { ipFromBytes } from "../base/ip.ts";
import { candidates, fateOf, type Asker } from "../dns/resolver.ts";
import { namesOf, type NameEntry, type Zone } from "../dns/zone.ts";
import { ENDPOINT_TABLE } from "../wire/networkdb/records.ts";
import type { Agent } from "./agent.ts";
import type { NameRowView, NameTryView, ResolveView } from "./control-protocol.ts";
import { namedEndpoint, type DnsRunner } from "./dns-runner.ts";
import type { Views } from "./views.ts";

/**
 * What `name` is tried as, on which network, what stands behind it there, and the outcome.
 * @throws NetError `endpoint-unknown`, `endpoint-ambiguous`, `name-kind`
 */
export function explainName(
  { agent, views, dns }: { readonly agent: Agent; readonly views: Views; readonly dns: DnsRunner },
  reference: string,
  text: string,
): ResolveView {
  const endpoint = views.findEndpoint(reference, true);
  const name = text.toLowerCase().replace(/\.$/, "");
  if (name.endsWith(".arpa") || name.startsWith("_"))
    throw new NetError("name-kind", `resolve ${text}: names of addresses are explained, not PTR and SRV`);
  const asker = dns.asker(endpoint.sandbox ?? "");
  const tried = [...candidates(name, asker.zones)].map(({ zone, host }) => ({
    zone,
    host,
    entry: zone.lookup(host),
  }));
  const winner = tried.find(({ entry }) => entry !== undefined);
  return {
    name,
    from: endpoint.name || endpoint.id,
    ...outcome(name, asker, winner?.entry, agent),
    tried: tried.map(({ zone, host, entry }) => view(agent, zone, host, entry)),
  };
}

function outcome(
  name: string,
  asker: Asker,
  entry: NameEntry | undefined,
  agent: Agent,
): Pick<ResolveView, "outcome" | "detail" | "addresses" | "ttlSeconds"> {
  const nothing = { addresses: [], ttlSeconds: null };
  if (entry !== undefined) {
    const records = [...entry.a, ...entry.aaaa];
    const addresses = records.map(({ data }): IpAddr => ipFromBytes(data));
    if (records.length > 0)
      return { outcome: "answered", detail: "", addresses, ttlSeconds: records[0]?.ttl ?? null };
    return { outcome: "empty", detail: "known, and nobody serves it just now", ...nothing };
  }
  const fate = fateOf(name, asker, agent.loop.now());
  switch (fate) {
    case "vanished":
      return { outcome: "empty", detail: "it was known less than a minute ago", ...nothing };
    case "learning":
      return { outcome: "waiting", detail: "the tables of the peers are not here yet", ...nothing };
    case "ours":
      return { outcome: "refused", detail: "nobody has it, and outside it is never asked", ...nothing };
    case "internal":
      return {
        outcome: "refused",
        detail: "nobody has it, and internal networks ask nobody outside",
        ...nothing,
      };
    case "forward":
      return { outcome: "forwarded", detail: "nobody here has it: asked outside", ...nothing };
    default:
      return unreachable(fate);
  }
}

function view(agent: Agent, zone: Zone, host: string, entry: NameEntry | undefined): NameTryView {
  const { networkDb, state } = agent.loop.node;
  const now = agent.loop.now();
  const rows: NameRowView[] = [];
  for (const row of networkDb.rows(zone.network, ENDPOINT_TABLE, { suspended: true })) {
    const endpoint = namedEndpoint(row);
    if (endpoint === undefined || !namesOf(endpoint).some((one) => one.toLowerCase() === host)) continue;
    rows.push({
      endpoint: endpoint.name,
      id: row.key,
      node: agent.shownName(row.owner),
      ip: endpoint.ip,
      state: endpoint.state,
      lamport: String(row.time),
      ageSeconds: Math.floor(Math.max(0, now - row.changedAt) / 1000),
    });
  }
  const service = state
    .services()
    .find(
      (one) =>
        [one.name.toLowerCase(), `tasks.${one.name.toLowerCase()}`].includes(host) &&
        one.networks.some(({ network }) => network === zone.network),
    );
  const vip = service?.networks.find(({ network }) => network === zone.network)?.vip;
  return {
    name: host,
    network: zone.networkName,
    known: entry !== undefined,
    ...(service === undefined ? {} : { service: { name: service.name, vip: vip ?? "" } }),
    rows,
  };
}
