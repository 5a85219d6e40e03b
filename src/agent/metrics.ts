import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { Counter, Gauge, Registry } from "prom-client";
import { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import type { Agent } from "./agent.ts";
import type { ChecksumWatch } from "./checksum-watch.ts";
import type { DnsRunner } from "./dns-runner.ts";
import type { LoopDelay } from "./loop-delay.ts";
import type { MeshRunner } from "./mesh-runner.ts";
import type { NetworkTraffic, Traffic } from "./network-traffic.ts";
import { addServiceMetrics } from "./service-metrics.ts";
import type { UnderlayFilter } from "./underlay-filter.ts";
import type { Views } from "./views.ts";

/** What the metrics are read from. */
export interface MetricSources {
  readonly agent: Pick<
    Agent,
    | "loop"
    | "reconciler"
    | "endpoints"
    | "networkName"
    | "rejectedRows"
    | "repair"
    | "repairs"
    | "standing"
    | "serviceOf"
    | "dataplane"
  >;
  readonly views: Pick<Views, "peers" | "services" | "networks" | "endpoints" | "addressUse">;
  readonly mesh: Pick<MeshRunner, "counters" | "avoided" | "portCounts">;
  readonly checksums: Pick<ChecksumWatch, "recent">;
  readonly dns: Pick<DnsRunner, "counters" | "upstream">;
  readonly filter: Pick<UnderlayFilter, "counters" | "dropped" | "strangers">;
  readonly loopDelay: Pick<LoopDelay, "delays">;
  /** Probes sent, answered and so on, by name. */
  readonly pathCounters: () => Readonly<Record<string, number>>;
  readonly traffic: (network: NetworkId) => NetworkTraffic | undefined;
  readonly version: string;
}

/** One value and what it is of. */
type Sample = readonly [labels: Readonly<Record<string, string>>, value: number];

type RegisterOne = (
  name: string,
  help: string,
  labelNames: readonly string[],
  read: () => readonly Sample[],
) => void;

/** Adds a metric whose values are read at each scrape. */
export interface Register {
  readonly counter: RegisterOne;
  readonly gauge: RegisterOne;
}

/** A slow or hostile scraper may not keep a connection for longer. */
const REQUEST_TIMEOUT_MS = 5_000;
const MAX_CONNECTIONS = 16;
/** Sources are whatever a stranger writes into a packet: only so many become labels. */
const MAX_STRANGERS = 16;

/**
 * Every metric of this agent. Nothing is counted here: a scrape reads the counters that the parts keep anyway.
 */
export function createRegistry(sources: MetricSources): Registry {
  const registry = new Registry();
  const { agent, views, mesh, dns } = sources;
  const { node, transport } = agent.loop;

  const counter: RegisterOne = (name, help, labelNames, read) => {
    new Counter({
      name: `netagent_${name}`,
      help,
      labelNames: [...labelNames],
      registers: [registry],
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.inc(labels, value);
      },
    });
  };
  const gauge: RegisterOne = (name, help, labelNames, read) => {
    new Gauge({
      name: `netagent_${name}`,
      help,
      labelNames: [...labelNames],
      registers: [registry],
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.set(labels, value);
      },
    });
  };

  gauge("info", "Always 1; the labels say who this is.", ["node", "version"], () => [
    [{ node: node.facts.name, version: sources.version }, 1],
  ]);
  gauge("uptime_seconds", "Since the process started.", [], () => [[{}, process.uptime()]]);

  counter("gossip_packets_total", "Gossip datagrams.", ["direction"], () => [
    [{ direction: "in" }, transport.counters.packetsIn],
    [{ direction: "out" }, transport.counters.packetsOut],
  ]);
  counter("gossip_bytes_total", "Bytes of gossip, datagrams and streams.", ["direction"], () => [
    [{ direction: "in" }, transport.counters.bytesIn],
    [{ direction: "out" }, transport.counters.bytesOut],
  ]);
  counter("gossip_send_errors_total", "Datagrams the kernel did not take.", [], () => [
    [{}, transport.counters.sendErrors],
  ]);
  counter("gossip_streams_refused_total", "TCP connections closed because too many were open.", [], () => [
    [{}, transport.counters.streamsRefused],
  ]);
  counter("gossip_drops_total", "Input nobody could use, by reason.", ["reason"], () =>
    byKey("reason", node.drops),
  );
  counter("swim_events_total", "Events of membership, by name.", ["event"], () =>
    byKey("event", Object.entries(node.swim.counters)),
  );
  counter("networkdb_events_total", "Events of the gossiped tables, by name.", ["event"], () =>
    byKey("event", node.networkDb.counters()),
  );
  counter("state_events_total", "Events of the definitions, by name.", ["event"], () =>
    byKey("event", node.state.counters()),
  );
  gauge("swim_queue_length", "Membership broadcasts waiting.", [], () => [[{}, node.swim.queueLength]]);
  gauge("swim_health_score", "0 is healthy; more means that this node is slow to notice.", [], () => [
    [{}, node.swim.healthScore],
  ]);
  gauge("members", "Members by state.", ["state"], () => {
    const counts = new Map(["alive", "suspect", "dead", "left"].map((state) => [state, 0]));
    for (const member of node.swim.members()) counts.set(member.state, (counts.get(member.state) ?? 0) + 1);
    return byKey("state", counts);
  });
  gauge("table_rows", "Rows of the gossiped tables this node holds.", ["network"], () =>
    node.networkDb.attachments().map(({ network, rows }) => [{ network: agent.networkName(network) }, rows]),
  );
  gauge("table_queue_length", "Row changes waiting to be gossiped.", ["network", "queue"], () =>
    node.networkDb.attachments().flatMap(({ network, ownQueue, relayQueue }): Sample[] => [
      [{ network: agent.networkName(network), queue: "own" }, ownQueue],
      [{ network: agent.networkName(network), queue: "relay" }, relayQueue],
    ]),
  );

  counter("reconciler_total", "What the reconciler of links, FDB and neighbors did.", ["what"], () =>
    byKey("what", Object.entries(agent.reconciler.counters)),
  );
  gauge("reconciler_problems", "Networks the kernel does not agree with just now.", [], () => [
    [
      {},
      [...agent.reconciler.networks].filter((network) => agent.reconciler.problem(network) !== undefined)
        .length,
    ],
  ]);
  gauge("peer_rows_rejected", "Rows of others left out just now, by why.", ["network", "problem"], () => {
    const counts = new Map<string, Sample>();
    for (const { network, problem, rows } of agent.rejectedRows.groups) {
      const key = `${network} ${problem}`;
      counts.set(key, [{ network: agent.networkName(network), problem }, (counts.get(key)?.[1] ?? 0) + rows]);
    }
    return [...counts.values()];
  });
  counter(
    "engine_total",
    "What the userspace engine did with frames; none on the kernel's data plane.",
    ["what"],
    () => byKey("what", Object.entries(agent.dataplane.counters())),
  );
  gauge("fast_path", "Networks and VTEPs whose frames take the fast path.", ["what"], () => {
    const { networks, vteps } = agent.dataplane.fastPath?.status() ?? { networks: 0, vteps: 0 };
    return byKey("what", Object.entries({ networks, vteps }));
  });
  counter("mesh_total", "What the reconciler of nftables and policy routes did.", ["what"], () =>
    byKey("what", Object.entries(mesh.counters)),
  );
  counter("vxlan_filter_total", "What the keeper of the VXLAN filter did.", ["what"], () =>
    byKey("what", Object.entries(sources.filter.counters)),
  );
  counter("vxlan_strangers_dropped_packets_total", "VXLAN packets from addresses of no member.", [], () => [
    [{}, sources.filter.dropped],
  ]);
  gauge("vxlan_stranger_packets", "The same by source, of the last hour; the largest.", ["source"], () =>
    sources.filter
      .strangers()
      .slice(0, MAX_STRANGERS)
      .map(({ address, packets }): Sample => [{ source: address }, Number(packets)]),
  );
  counter("dns_total", "Questions by what became of them.", ["what"], () =>
    byKey("what", [...Object.entries(dns.counters), ["cached", dns.upstream.cached]]),
  );
  counter("dns_upstream_total", "Questions to servers outside and what they did.", ["server", "what"], () =>
    [...dns.upstream.counts].flatMap(([server, counts]) =>
      Object.entries(counts).map(([what, value]): Sample => [{ server, what }, value]),
    ),
  );

  gauge("networks", "Networks defined.", [], () => [[{}, node.state.networks().length]]);
  gauge("endpoints", "Endpoints known on this node, by network and place.", ["network", "place"], () => {
    const counts = new Map<string, Sample>();
    for (const { network, local } of views.endpoints()) {
      const place = local ? "local" : "remote";
      const key = `${network} ${place}`;
      counts.set(key, [{ network, place }, (counts.get(key)?.[1] ?? 0) + 1]);
    }
    return [...counts.values()];
  });
  const traffic = (value: (one: Traffic) => number) => (): Sample[] =>
    [...agent.reconciler.networks].flatMap((id): Sample[] => {
      const found = sources.traffic(id);
      const network = agent.networkName(id);
      return found === undefined
        ? []
        : [
            [{ network, direction: "in" }, value(found.in)],
            [{ network, direction: "out" }, value(found.out)],
          ];
    });
  const ofDevice = "Of a network's device on this node";
  counter(
    "network_bytes_total",
    `${ofDevice}, inner frames.`,
    ["network", "direction"],
    traffic(({ bytes }) => bytes),
  );
  counter(
    "network_packets_total",
    `${ofDevice}.`,
    ["network", "direction"],
    traffic(({ packets }) => packets),
  );
  counter(
    "network_dropped_packets_total",
    `${ofDevice}: errors, and frames without a way or a place.`,
    ["network", "direction"],
    traffic(({ dropped }) => dropped),
  );
  gauge("repairs_recent", "Different faults of another hand mended in the last ten minutes.", [], () => [
    [{}, agent.repairs.recent(agent.loop.now()).length],
  ]);
  gauge("repair_enabled", "0 while what other hands change is told and left alone.", [], () => [
    [{}, agent.repair ? 1 : 0],
  ]);
  gauge("faults_standing", "Differences that other hands made and that stand, repair being off.", [], () => [
    [{}, agent.standing.all().length],
  ]);
  counter("faults_left_total", "The same, each when it was found.", [], () => [[{}, agent.standing.found]]);
  gauge(
    "bad_checksum_packets",
    "Packets that came with a wrong UDP or TCP checksum in the last ten minutes.",
    ["place"],
    () => {
      const found = sources.checksums.recent();
      const sum = (isHost: boolean): number =>
        found
          .filter(({ place }) => (place === "host") === isHost)
          .reduce((all, { packets }) => all + packets, 0);
      return [
        [{ place: "host" }, sum(true)],
        [{ place: "sandboxes" }, sum(false)],
      ];
    },
  );
  addServiceMetrics({ counter, gauge }, sources);
  gauge("address_space_ratio", "Used part of a network's addresses, 0 to 1.", ["network"], () =>
    node.state.networks().flatMap((network): Sample[] => {
      const { total, used } = views.addressUse(network);
      return total === 0 ? [] : [[{ network: network.name }, used / total]];
    }),
  );

  gauge("peer_rtt_seconds", "Round trip of gossip.", ["peer"], () =>
    others(views).flatMap(({ name, rttMs }): Sample[] =>
      rttMs === null ? [] : [[{ peer: name }, rttMs / 1000]],
    ),
  );
  gauge("peer_data_path_up", "1 when probes through the data path come back, 0 when not.", ["peer"], () =>
    others(views).flatMap(({ name, dataPath }): Sample[] =>
      dataPath === "unknown" ? [] : [[{ peer: name }, dataPath === "ok" ? 1 : 0]],
    ),
  );
  gauge("peer_mtu_bytes", "Largest inner packet that got through to the peer.", ["peer"], () =>
    others(views).flatMap(({ name, mtu }): Sample[] => (mtu === null ? [] : [[{ peer: name }, mtu]])),
  );
  counter("path_probes_total", "Probes through the data path.", ["what"], () =>
    byKey("what", Object.entries(sources.pathCounters())),
  );

  gauge(
    "event_loop_lag_seconds",
    "How late the event loop was in the last minute or two.",
    ["quantile"],
    () => {
      const { p50Ms, p99Ms, longestMs } = sources.loopDelay.delays;
      return [
        [{ quantile: "0.5" }, p50Ms / 1e3],
        [{ quantile: "0.99" }, p99Ms / 1e3],
        [{ quantile: "1" }, longestMs / 1e3],
      ];
    },
  );
  gauge("reconciler_longest_slice_seconds", "Longest time it kept the event loop in one go.", [], () => [
    [{}, agent.reconciler.longestSliceMs / 1e3],
  ]);
  gauge("resident_memory_bytes", "Memory of the process.", [], () => [[{}, process.memoryUsage.rss()]]);
  return registry;
}

/** Serves `/metrics` and `/healthz`. Read-only, without secrets: keys and peers' metadata are in no metric. */
export class MetricsServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** @throws NetError `listen` */
  static async listen(
    address: { readonly host: string; readonly port: number },
    sources: MetricSources,
  ): Promise<MetricsServer> {
    const registry = createRegistry(sources);
    const server = createServer((request, response) => void answer(registry, request, response));
    server.maxConnections = MAX_CONNECTIONS;
    server.requestTimeout = REQUEST_TIMEOUT_MS;
    server.headersTimeout = REQUEST_TIMEOUT_MS;
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause) =>
        reject(
          new NetError("listen", `serve metrics on ${address.host}:${address.port}: ${cause.message}`, {
            cause,
          }),
        ),
      );
      server.listen(address.port, address.host, resolve);
    });
    // Afterwards an error concerns one connection.
    server.on("error", () => undefined);
    server.unref();
    return new MetricsServer(server);
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

async function answer(registry: Registry, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const path = (request.url ?? "").split("?", 1)[0];
  const send = (status: number, type: string, body: string): void => {
    response.writeHead(status, { "content-type": type, "cache-control": "no-store" });
    response.end(request.method === "HEAD" ? "" : body);
  };
  if (request.method !== "GET" && request.method !== "HEAD")
    return send(405, "text/plain", "only GET is served here\n");
  switch (path) {
    case "/healthz":
      // That this runs at all says that the event loop turns.
      return send(200, "text/plain", "ok\n");
    case "/metrics":
      try {
        return send(200, registry.contentType, await registry.metrics());
      } catch (error) {
        return send(500, "text/plain", `metrics: ${error instanceof Error ? error.message : "failed"}\n`);
      }
    default:
      return send(404, "text/plain", "/metrics or /healthz\n");
  }
}

function byKey(label: string, entries: Iterable<readonly [string, number]>): Sample[] {
  return [...entries].map(([key, value]) => [{ [label]: key }, value]);
}

/** Living members but ourselves. */
function others(views: MetricSources["views"]): ReturnType<Views["peers"]> {
  return views.peers().filter((peer) => !peer.self && (peer.state === "alive" || peer.state === "suspect"));
}
