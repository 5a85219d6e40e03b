/** What a scrape tells of services. */
import type { Agent } from "./agent.ts";
import type { MetricSources, Register } from "./metrics.ts";
import { PortTotal } from "./port-counts.ts";

/** Services told one by one; beyond that a scrape would be megabytes, and its store would suffer. */
const MAX_SERVICES = 2_000;
/** Published ports told one by one: those with most connections. */
const MAX_PORTS = 500;

export function addServiceMetrics({ counter, gauge }: Register, sources: MetricSources): void {
  const { agent, views, mesh } = sources;
  const totals = new PortTotal();
  const services = (): ReturnType<typeof views.services> => views.services().slice(0, MAX_SERVICES);

  gauge("services", "Services defined; the largest swarms' are not all told one by one.", [], () => [
    [{}, agent.loop.node.state.services().length],
  ]);
  gauge("backends", "Backends of a service, by state.", ["service", "state"], () =>
    services().flatMap(({ name, backends }) =>
      ["ready", "draining"].map(
        (state) =>
          [{ service: name, state }, backends.filter((backend) => backend.state === state).length] as const,
      ),
    ),
  );
  gauge(
    "backends_avoided",
    "Backends of a service that this node prefers others to: connections to them fail, or their node is suspected.",
    ["service"],
    () => mesh.avoided().map(({ service, backends }) => [{ service }, backends] as const),
  );
  counter(
    "service_connections_total",
    "Connections and flows that came to this node by a published port, by what became of them; those of the last change of backends may be missing.",
    ["service", "port", "outcome"],
    () => {
      const owners = new Map<string, string>();
      for (const { name, ports } of agent.loop.node.state.services())
        for (const port of ports) {
          const key = `${port.address ?? ""} ${port.protocol} ${port.published}`;
          // The first by id has it, as in the rules.
          if (!owners.has(key)) owners.set(key, name);
        }
      return totals
        .add(mesh.portCounts())
        .toSorted((a, b) => b.accepted + b.refused - a.accepted - a.refused)
        .slice(0, MAX_PORTS)
        .flatMap(({ protocol, port, address, accepted, refused }) => {
          const service = owners.get(`${address ?? ""} ${protocol} ${port}`) ?? "";
          const of = { service, port: `${address === undefined ? "" : `${address}:`}${port}/${protocol}` };
          return [
            [{ ...of, outcome: "accepted" }, accepted],
            [{ ...of, outcome: "refused" }, refused],
          ] as const;
        });
    },
  );
  gauge(
    "local_backends",
    "Backends of a service on this node: in rotation, waiting for its connections to end, or failing their health check.",
    ["service", "state"],
    () => {
      const counts = new Map<string, number>();
      for (const record of agent.endpoints.all()) {
        const service = record.kind === "user" ? agent.serviceOf(record)?.name : undefined;
        if (service === undefined) continue;
        for (const state of LOCAL_STATES) {
          const key = `${service} ${state}`;
          counts.set(key, (counts.get(key) ?? 0) + (stateOf(agent, record.id) === state ? 1 : 0));
        }
      }
      return [...counts].map(([key, count]) => {
        const [service = "", state = ""] = key.split(" ");
        return [{ service, state }, count] as const;
      });
    },
  );
}

const LOCAL_STATES = ["serving", "draining", "unhealthy"] as const;

function stateOf(
  { endpoints }: Pick<Agent, "endpoints">,
  id: Parameters<typeof endpoints.get>[0],
): (typeof LOCAL_STATES)[number] {
  if (endpoints.leaving.has(id)) return "draining";
  return endpoints.unhealthy.has(id) ? "unhealthy" : "serving";
}
