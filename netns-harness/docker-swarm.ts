/** A swarm of two real dockerds, and a netagent that shares one of its networks; what all three must agree on. */

import type { NetworkDetailView, TableRowView } from "../src/agent/control-protocol.ts";
import { formatCidr } from "../src/base/ip.ts";
import {
  decodeEndpointRecord,
  decodePeerRecord,
  ENDPOINT_TABLE,
  PEER_TABLE,
} from "../src/wire/networkdb/records.ts";
import { DockerHost, type DockerContainer } from "./docker.ts";
import { attachPlace, kernelAgrees } from "./endpoints.ts";
import type { Host } from "./host.ts";
import type { Lab } from "./lab.ts";
import type { Place } from "./place.ts";
import { waitFor } from "./wait.ts";

export const NETWORK = "dockercoins";
const SUBNET = "10.0.9.0/24";
/** Docker gives addresses from the lower half, netagent from the upper one. */
const DOCKER_RANGE = "10.0.9.0/25";
const OUR_RANGE = "10.0.9.128/25";
/** Complaints about kernel settings, storage, limits and an internet that a machine for tests need not have. */
const ENVIRONMENT =
  /reading the kernel parameter|default vlan|cgroup|containerd config|plugin io\.containerd|devmapper|diagnostic server|registry|pulling image/;
/**
 * Complaints of 20.10 about itself, seen in swarms without a netagent, too: tasks and containers that end, a network taken apart
 * while its rows are still deleted one by one, a peer programmed twice (by the replay and by the watch), a row of the
 * other dockerd deleted twice (by its leaving the network, and by the delete that the leave overtook).
 */
const ITS_OWN =
  /rmServiceBinding|shim disconnected|cleanup warnings|Unable to complete atomic operation|network \w+ not found|Neighbor entry already present|(was not in db|not delete fdb entry|transient condition).*(192\.168\.1|10\.66\.0)\.1[12]\b/;
/** What is netagent's in a complaint: its address, its endpoints' addresses and MACs. */
const OURS = /(192\.168\.1|10\.66\.0)\.104|10\.0\.9\.(12[89]|1[3-9]\d)|02:42:0a:00:09:[89a-f]/;
const UNREADABLE = /decod|unmarshal|malformed|corrupt|panic/i;
/** What may be said of a member that does not answer, to one that has just changed its name, and by one that is ending. */
const UNREACHABLE =
  /timeout|refused|no route|EOF|no acks|Failed fallback ping|Refuting a suspect|unknown to memberlist|ping for unexpected node|closed network connection/;
/** A missed datagram is made up for by the next bulk sync: every 30 s with one of two nodes, drawn by lot. */
const AGREE_MS = 100_000;

export type SwarmOptions = {
  /** VXLAN takes an address of its own on every machine, which gossip does not know. */
  readonly dataPath?: boolean;
};

/** `docker1` (the manager) and `docker2`, with the attachable overlay network. */
export class DockerSwarm {
  readonly hosts: readonly [DockerHost, DockerHost];
  readonly network: string;
  readonly vni: number;
  /** Of the gossip, as `--gossip-key` takes them; the first one seals. */
  readonly keys: readonly string[];

  private constructor(hosts: readonly [DockerHost, DockerHost], network: string, vni: number) {
    this.hosts = hosts;
    this.network = network;
    this.vni = vni;
    this.keys = gossipKeys(hosts[0].log());
  }

  static async start(lab: Lab, { dataPath = false }: SwarmOptions = {}): Promise<DockerSwarm> {
    const [first, second] = await Promise.all([
      DockerHost.start(lab.host("docker1", "192.168.1.11")),
      DockerHost.start(lab.host("docker2", "192.168.1.12")),
    ]);
    if (dataPath) await Promise.all([first, second].map(({ host }) => addDataPath(host)));
    const flags = ({ host }: DockerHost): string[] =>
      dataPath ? ["--data-path-addr", dataPathAddress(host)] : [];
    await first.run("swarm", "init", "--advertise-addr", first.address, ...flags(first));
    const token = await first.run("swarm", "join-token", "--quiet", "worker");
    await second.run("swarm", "join", "--token", token, ...flags(second), `${first.address}:2377`);
    await first.run(
      ...["network", "create", "--driver", "overlay", "--attachable"],
      ...["--subnet", SUBNET, "--ip-range", DOCKER_RANGE, NETWORK],
    );
    const text = await first.run("network", "inspect", "--format", "{{.Id}} {{json .Options}}", NETWORK);
    const [id = ""] = text.split(" ");
    const options = JSON.parse(text.slice(id.length)) as Record<string, string>;
    return new DockerSwarm(
      [first, second],
      id,
      Number(options["com.docker.network.driver.overlay.vxlanid_list"]),
    );
  }
}

/** One container on each dockerd, one endpoint on a netagent, all on one network, each with an HTTP server. */
export type Shared = {
  readonly swarm: DockerSwarm;
  readonly docker1: DockerHost;
  readonly docker2: DockerHost;
  readonly node: Host;
  readonly c1: DockerContainer;
  readonly c2: DockerContainer;
  readonly ours: OurEndpoint;
  /** Not on the network at the moment. */
  readonly without?: DockerHost;
};

export type OurEndpoint = {
  readonly place: Place;
  readonly id: string;
  readonly name: string;
  readonly ip: string;
  readonly mac: string;
};

/** A netagent joins the gossip of a swarm, adopts its network and attaches an endpoint named `ours`. */
export async function shared(lab: Lab, options: SwarmOptions = {}): Promise<Shared> {
  const swarm = await DockerSwarm.start(lab, options);
  const [docker1, docker2] = swarm.hosts;
  const node = lab.host("node1", "192.168.1.104");
  if (options.dataPath === true) await addDataPath(node);
  await node.start({
    flags: [
      ...swarm.keys.flatMap((key) => ["--gossip-key", key]),
      ...(options.dataPath === true ? ["--data-path-addr", dataPathAddress(node)] : []),
    ],
    join: [docker1.host],
  });
  await node.ctl(
    ...["network", "create", NETWORK, "--external", "--id", swarm.network],
    ...["--vni", String(swarm.vni), "--subnet", SUBNET, "--ip-range", OUR_RANGE],
  );
  const [c1, c2, ours] = await Promise.all([
    docker1.serve("c1", NETWORK),
    docker2.serve("c2", NETWORK),
    serveOurs(lab, node, "ours"),
  ]);
  return { swarm, docker1, docker2, node, c1, c2, ours };
}

/** An endpoint of netagent's that serves HTTP on port 80 and answers with its name. */
export async function serveOurs(lab: Lab, node: Host, name: string): Promise<OurEndpoint> {
  const place = lab.sandbox(node, name);
  await place.serveHttp(80, name);
  return { place, name, ...(await attachPlace(node, NETWORK, name, place)) };
}

/**
 * Waits until both dockerds and the netagent hold the same members and rows, the named ones exactly `names`, and all
 * three kernels exactly the entries these rows mean. Tasks are named `SERVICE.SLOT`.
 */
export async function allAgree({ swarm, node, without }: Shared, names: readonly string[]): Promise<void> {
  const wanted = [...names].sort().join();
  await waitFor(
    `dockerds and netagent to agree about ${wanted}`,
    async () => {
      const [ours, ...theirs] = await Promise.all([
        knownToNetagent(node, swarm.network),
        ...swarm.hosts
          .filter((docker) => docker !== without)
          .map((docker) => knownToDocker(docker, swarm.network)),
      ]);
      return { ours, theirs };
    },
    {
      withinMs: AGREE_MS,
      everyMs: 500,
      until: ({ ours, theirs }) =>
        ours.names.join() === wanted && theirs.every((known) => sameKnowledge(known, ours)),
    },
  );
  await kernelAgrees(node);
}

/** What the dockerds complain of but for what this machine lacks and what they do to themselves. */
export function complaints({ swarm }: Shared): string[] {
  return swarm.hosts
    .flatMap((docker) => docker.complaints().map((line) => `${docker.name}: ${line}`))
    .filter((line) => !ENVIRONMENT.test(line) && !ITS_OWN.test(line));
}

/** Of these, when members were killed and cut off: what concerns netagent, but for its not being there. */
export function complaintsOfUs(all: Shared): string[] {
  return complaints(all).filter(
    (line) => UNREADABLE.test(line) || (OURS.test(line) && !UNREACHABLE.test(line)),
  );
}

/** The addresses netagent's DNS has for a name in the endpoint's sandbox, sorted. */
export async function resolveOurs(endpoint: OurEndpoint, name: string): Promise<string[]> {
  const output = await endpoint.place.run("dig", "@127.0.0.11", "+short", "+tries=1", "+time=2", name, "A");
  return output
    .split("\n")
    .filter((line) => /^[\d.]+$/.test(line))
    .sort();
}

/** On the same cable as the machine's underlay address, in a subnet of its own. */
function dataPathAddress(host: Host): string {
  return host.address.replace(/^192\.168\.1\./, "10.66.0.");
}

async function addDataPath(host: Host): Promise<void> {
  await host.run("ip", "address", "add", `${dataPathAddress(host)}/24`, "dev", "eth0");
}

/** `web.1` for the task `web.1.0k3x…`. */
function withoutTaskId(name: string): string {
  return name.replace(/^([^.]+\.\d+)\..*$/, "$1");
}

type Knowledge = {
  /** Lines, sorted. */
  readonly rows: readonly string[];
  /** Members on the network. */
  readonly nodes: readonly string[];
  /** What is in a dockerd's kernel and should not be, or the reverse. */
  readonly drift: readonly string[];
};

function sameKnowledge(a: Knowledge, b: Knowledge): boolean {
  const drift = [...a.drift, ...b.drift];
  return drift.length === 0 && a.rows.join("\n") === b.rows.join("\n") && a.nodes.join() === b.nodes.join();
}

async function knownToNetagent(
  node: Host,
  network: string,
): Promise<Knowledge & { readonly names: readonly string[] }> {
  const { memberName } = await node.ctlJson<{ memberName: string }>("info");
  const { nodes } = await node.ctlJson<NetworkDetailView>("network", "inspect", network);
  const views = (await node.ctlJson<TableRowView[]>("tables", network)).filter(
    ({ state }) => state === "live",
  );
  const real = (name: string): string => (name === node.name ? memberName : name);
  return {
    rows: views
      .map(({ table, key, owner, value }) => `${table} ${key} ${real(owner)} ${JSON.stringify(value)}`)
      .sort(),
    names: views
      .filter(({ table }) => table === ENDPOINT_TABLE)
      .map(({ value }) => withoutTaskId(String(value["name"])))
      .sort(),
    nodes: nodes.map(real).sort(),
    drift: [],
  };
}

async function knownToDocker(docker: DockerHost, network: string): Promise<Knowledge> {
  const [peers, endpoints] = await Promise.all([
    docker.table(network, PEER_TABLE),
    docker.table(network, ENDPOINT_TABLE),
  ]);
  const paths = peers.map((row) => ({ ...row, record: decodePeerRecord(row.value) }));
  const named = endpoints.map((row) => ({ ...row, record: decodeEndpointRecord(row.value) }));
  const own = [docker.address, dataPathAddress(docker.host)];
  const remote = paths.filter(({ record }) => !own.includes(record.vtep)).map(({ record }) => record);
  const { fdb, neighbors } = await docker.forwarding(network);
  const wantedFdb = remote.map(({ endpointMac, vtep }) => `${endpointMac} dst ${vtep}`);
  const wantedNeighbors = remote.map(({ endpointIp, endpointMac }) => `${endpointIp.ip} ${endpointMac}`);
  return {
    rows: [
      ...paths.map(({ key, owner, record: { endpointIp, endpointMac: mac, vtep } }) => {
        return `${PEER_TABLE} ${key} ${owner} ${JSON.stringify({ ip: formatCidr(endpointIp), mac, vtep })}`;
      }),
      ...named.map(({ key, owner, record }) => {
        const value = {
          name: record.name,
          service: record.serviceName,
          serviceId: record.serviceId,
          vip: record.virtualIp ?? "",
          ip: record.endpointIp,
          ports: "",
          aliases: [...record.aliases, ...record.taskAliases].join(","),
          disabled: record.serviceDisabled ? "disabled" : "",
        };
        return `${ENDPOINT_TABLE} ${key} ${owner} ${JSON.stringify(value)}`;
      }),
    ].sort(),
    nodes: await docker.networkPeers(network),
    drift: [...difference(wantedFdb, fdb), ...difference(wantedNeighbors, neighbors)].map(
      (line) => `${docker.name}: ${line}`,
    ),
  };
}

function difference(wanted: readonly string[], found: readonly string[]): string[] {
  return [
    ...wanted.filter((line) => !found.includes(line)).map((line) => `missing ${line}`),
    ...found.filter((line) => !wanted.includes(line)).map((line) => `stale ${line}`),
  ];
}

/**
 * The keys are nowhere to be asked for, but dockerd logs the configuration of its gossip, keys included, in decimals:
 * `… Keys:[[188 155 …] […] […]] …`, the sealing one first.
 */
function gossipKeys(log: string): string[] {
  const list = /will use memberlist nodeID:.*? Keys:\[(\[.*?\])\]/.exec(log)?.[1];
  const keys = [...(list ?? "").matchAll(/\[([\d ]+)\]/g)].map(([, decimals]) =>
    Buffer.from((decimals ?? "").split(" ").map(Number)).toString("base64"),
  );
  if (keys.length !== 3) throw new Error(`three gossip keys in dockerd's log, found ${keys.length}`);
  return keys;
}
