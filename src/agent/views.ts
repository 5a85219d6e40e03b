import { NetError } from "../base/error.ts";
import type { EndpointId, NetworkId, NodeName } from "../base/id.ts";
import { nearestText } from "../base/nearest.ts";
import { formatCidr, type IpAddr, parseIp, subnetContains } from "../base/ip.ts";
import { roleOf } from "../cluster/metadata.ts";
import type { RowView } from "../networkdb/networkdb.ts";
import { endpointRecordOf, INGRESS_ENDPOINT_NAME, peerRecordOf } from "../overlay/rows.ts";
import { printable } from "../state/find.ts";
import { rangeWithin } from "../state/address-ring.ts";
import type { NetworkView as NetworkState, ServiceView as ServiceState } from "../state/state.ts";
import { INGRESS } from "../state/ingress.ts";
import type { Member } from "../swim/member.ts";
import { ENDPOINT_TABLE, PEER_TABLE } from "../wire/networkdb/records.ts";
import type { Agent } from "./agent.ts";
import { ownVtep } from "./config.ts";
import type {
  BackendView,
  EndpointView,
  NetworkDetailView,
  NetworkView,
  NodeView,
  PeerView,
  ServiceView,
  TableRowView,
} from "./control-protocol.ts";

/** Faults told with one peer. */
const MAX_FAULTS = 10;

/** What a peer's data path is known to be like. */
export interface DataPathView {
  readonly state: "ok" | "blocked" | "unknown";
  readonly mtu: number | null;
  /** What is wrong, for people; empty when nothing is. */
  readonly detail: string;
}

/** Reads of the agent's state in the form people and scripts get it. */
export class Views {
  readonly #agent: Agent;
  /** Filled in by the prober; unknown until then. */
  dataPath: (vtep: IpAddr) => DataPathView = () => ({ state: "unknown", mtu: null, detail: "" });

  constructor(agent: Agent) {
    this.#agent = agent;
  }

  /** Every member, this node first, then by name. A former life of a node that is back is not shown. */
  peers(): PeerView[] {
    const { node } = this.#agent.loop;
    const present = new Set<string>();
    for (const member of node.swim.members()) {
      const facts = node.peer(member.name);
      if (facts !== undefined && (member.state === "alive" || member.state === "suspect"))
        present.add(facts.id);
    }
    const views: PeerView[] = [];
    for (const member of node.swim.members()) {
      const gone = member.state === "dead" || member.state === "left";
      const facts = node.peer(member.name);
      if (gone && facts !== undefined && present.has(facts.id)) continue;
      views.push(this.#peer(member));
    }
    return views.sort(
      (a, b) => Number(b.self) - Number(a.self) || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
    );
  }

  networks(): NetworkView[] {
    return this.#agent.loop.node.state.networks().map((network) => this.network(network));
  }

  network(network: NetworkState): NetworkView {
    const conflict = network.conflicts[0]?.text;
    return {
      id: network.id,
      name: network.name,
      driver: "overlay",
      scope: network.external === undefined ? "swarm" : "local",
      vni: network.vni,
      subnet: formatCidr(network.subnet),
      gateway: network.gateway,
      mtu: this.#agent.overlays.network(network).mtu,
      encrypted: network.encrypted,
      ingress: network.ingress,
      internal: network.internal,
      labels: network.labels,
      ...(conflict === undefined ? {} : { conflict }),
    };
  }

  networkDetail(network: NetworkState): NetworkDetailView {
    const { node } = this.#agent.loop;
    const owners = (node.state.ringUse(network.id)?.owners ?? []).map(
      (owner) => [owner.name === "" ? owner.node : owner.name, owner.size] as const,
    );
    return {
      ...this.network(network),
      nodes: node.networkDb
        .participants(network.id)
        .map((name) => this.#agent.shownName(name))
        .sort(),
      endpoints: this.endpointsOf(network),
      addresses: { ...this.addressUse(network), owners: Object.fromEntries(owners) },
    };
  }

  /**
   * Addresses of a network and how many of them are in use, as far as this node knows. An external network has no
   * owners that count: there it is the endpoints seen, in the range this node may give from, or in all of it.
   */
  addressUse(network: NetworkState): { readonly total: number; readonly used: number } {
    const use = this.#agent.loop.node.state.ringUse(network.id);
    if (use !== undefined) return { total: use.size, used: use.size - use.free };
    if (network.external === undefined) return { total: 0, used: 0 };
    const range = network.external.ipRange ?? network.subnet;
    const { first, end } = rangeWithin(network.subnet, range);
    const seen = new Set(this.endpointsOf(network).map(({ ip }) => ip));
    return {
      total: end - first - (subnetContains(range, network.gateway) ? 1 : 0),
      used: [...seen].filter((ip) => subnetContains(range, parseIp(ip))).length,
    };
  }

  /** Of all networks but ingress, whose endpoints are legs of others. */
  endpoints(): EndpointView[] {
    return this.#agent.loop.node.state
      .networks()
      .filter((network) => network.id !== INGRESS.id)
      .flatMap((network) => this.endpointsOf(network));
  }

  /** Local ones from our records, remote ones from the rows, with `suspended` also those of failed members; by address. */
  endpointsOf(network: NetworkState, { suspended = false } = {}): EndpointView[] {
    const { node } = this.#agent.loop;
    const views = this.#agent.endpoints.ofNetwork(network.id).map((record) => this.#localEndpoint(record.id));
    const named = new Map<string, RowView>();
    for (const row of node.networkDb.rows(network.id, ENDPOINT_TABLE, { suspended })) named.set(row.key, row);
    for (const row of node.networkDb.rows(network.id, PEER_TABLE, { suspended })) {
      if (row.owner === this.#agent.self) continue;
      const peer = peerRecordOf(row);
      if (peer === undefined) continue;
      const nameRow = named.get(row.key);
      const record = nameRow === undefined ? undefined : endpointRecordOf(nameRow);
      views.push({
        id: row.key,
        name: record?.name ?? "",
        network: network.name,
        ip: peer.endpointIp.ip,
        prefixLength: peer.endpointIp.prefixLength,
        mac: peer.endpointMac,
        node: this.#agent.shownName(row.owner),
        vtep: peer.vtep,
        service: record?.serviceName ?? "",
        state: record?.serviceDisabled === true ? "draining" : "ready",
        local: false,
      });
    }
    return views.sort((a, b) => (a.ip < b.ip ? -1 : a.ip > b.ip ? 1 : 0));
  }

  /** By name, id, unique id prefix or address. @throws NetError `endpoint-unknown`, `endpoint-ambiguous` */
  findEndpoint(reference: string, local = false): EndpointView {
    const all = this.#agent.loop.node.state.networks().flatMap((network) => this.endpointsOf(network));
    const candidates = local ? all.filter((view) => view.local) : all;
    const exact = candidates.filter(
      (view) => view.id === reference || (view.name === reference && view.network !== INGRESS.name),
    );
    const found =
      exact.length > 0
        ? exact
        : candidates.filter((view) => view.id.startsWith(reference) || view.ip === reference);
    const [first, second] = found;
    if (first === undefined) {
      throw new NetError(
        "endpoint-unknown",
        `endpoint '${printable(reference)}': no such endpoint${local ? " on this node" : ""}${nearestText(reference, namesOf(candidates))} (netctl endpoint ls)`,
      );
    }
    if (second !== undefined) {
      throw new NetError(
        "endpoint-ambiguous",
        `endpoint '${reference}': ${found.length} endpoints match (use more of the id)`,
      );
    }
    return first;
  }

  services(): ServiceView[] {
    return this.#agent.loop.node.state.services().map((service) => this.service(service));
  }

  service(service: ServiceState): ServiceView {
    const conflict = service.conflicts[0]?.text;
    return {
      id: service.id,
      name: service.name,
      networks: service.networks.map(({ network, vip }) => ({
        network: this.#agent.networkName(network),
        vip: vip ?? "",
      })),
      ports: service.ports.map((port) => ({
        published: port.published,
        target: port.target,
        protocol: port.protocol,
        mode: port.mode,
        ...(port.address === undefined ? {} : { address: port.address }),
      })),
      endpointMode: service.endpointMode,
      affinity: service.affinity,
      backends: this.backends(service),
      ...(conflict === undefined ? {} : { conflict }),
    };
  }

  /** One per endpoint that names the service, from the rows all nodes share; on its own networks, not on ingress. */
  backends(service: ServiceState): BackendView[] {
    const { node } = this.#agent.loop;
    const networks = service.networks.map((one) => one.network).filter((id) => id !== INGRESS.id);
    const found = new Map<string, BackendView>();
    const rowsOf = (network: NetworkId): void => {
      for (const row of node.networkDb.rows(network, ENDPOINT_TABLE)) {
        const record = endpointRecordOf(row);
        if (record?.serviceId !== service.id) continue;
        // A backend is one endpoint, on however many networks it is known.
        const key = `${row.owner}/${record.name}`;
        if (found.has(key)) continue;
        found.set(key, {
          endpoint: row.key,
          name: record.name,
          node: this.#agent.shownName(row.owner),
          ip: record.endpointIp,
          state: record.serviceDisabled || this.#drains(row.owner) ? "draining" : "ready",
        });
      }
    };
    for (const network of networks) rowsOf(network);
    // A node without an endpoint on those networks holds no rows of theirs; those of ingress are everywhere.
    rowsOf(INGRESS.id);
    return [...found.values()].sort((a, b) => (a.ip < b.ip ? -1 : 1));
  }

  nodes(): NodeView[] {
    const { node } = this.#agent.loop;
    const peers = this.peers();
    const byId = new Map(peers.map((peer) => [peer.id, peer]));
    const views = node.state
      .nodes()
      .filter((definition) => !definition.removed)
      .map((definition) => {
        const peer = byId.get(definition.id);
        return {
          id: definition.id,
          name: definition.name,
          address: peer?.address ?? "",
          state: peer?.state ?? ("unknown" as const),
          availability: definition.availability,
          endpoints: this.endpoints().filter((endpoint) => endpoint.node === definition.name).length,
          self: definition.id === node.facts.id,
        };
      });
    return views.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** By name, id or unique id prefix. @throws NetError `node-unknown`, `node-ambiguous` */
  findNode(reference: string): NodeView {
    const all = this.nodes();
    const exact = all.filter((view) => view.name === reference || view.id === reference);
    const found = exact.length > 0 ? exact : all.filter((view) => view.id.startsWith(reference));
    const [first, second] = found;
    if (first === undefined)
      throw new NetError(
        "node-unknown",
        `node '${printable(reference)}': no such node${nearestText(reference, namesOf(all))} (netctl node ls)`,
      );
    if (second !== undefined)
      throw new NetError(
        "node-ambiguous",
        `node '${reference}': ${found.length} nodes match (use more of the id)`,
      );
    return first;
  }

  /** Sorted. `table` may be how its name begins. @throws NetError `table-unknown` */
  rows(network: NetworkId | undefined, table: string | undefined, all: boolean): TableRowView[] {
    const now = this.#agent.loop.now();
    const rows = [...this.#agent.loop.node.networkDb.allRows()];
    if (table !== undefined) {
      const known = [...new Set([ENDPOINT_TABLE, PEER_TABLE, ...rows.map((row) => row.table)])];
      if (!known.some((name) => name.startsWith(table)))
        throw new NetError("table-unknown", `tables: there is no table '${table}' (${known.join(", ")})`);
    }
    return rows
      .filter(
        (row) =>
          (network === undefined || row.network === network) &&
          (table === undefined || row.table.startsWith(table)) &&
          (all || (row.state !== "tombstone" && row.state !== "suspended")),
      )
      .map((row) => ({
        network: this.#agent.networkName(row.network),
        table: row.table,
        key: row.key,
        owner: this.#agent.shownName(row.owner),
        lamport: String(row.time),
        ageSeconds: Math.max(0, (now - row.changedAt) / 1000),
        state: row.state === "inherited" ? ("live" as const) : row.state,
        expiresSeconds: row.reapAt === undefined ? null : Math.max(0, (row.reapAt - now) / 1000),
        value: valueOf(row),
      }))
      .sort((a, b) => compare(a.network, b.network) || compare(a.table, b.table) || compare(a.key, b.key));
  }

  /** What stands in the way to these VTEPs; of this node what concerns the way to all. */
  #faults(self: boolean, vteps: readonly IpAddr[]): string[] {
    const { standing, reconciler } = this.#agent;
    const found = standing
      .all()
      .filter(({ vtep }) => (vtep === undefined ? self : vteps.includes(vtep)))
      .map(({ subject, text }) => `${subject}: ${text}`);
    const problems = self
      ? [...reconciler.networks].flatMap((network) => {
          const problem = reconciler.problem(network);
          return problem === undefined ? [] : [`${this.#agent.networkName(network)}: ${problem.message}`];
        })
      : [];
    return [...found, ...problems].slice(0, MAX_FAULTS);
  }

  #drains(owner: NodeName): boolean {
    const facts = this.#agent.loop.node.peer(owner);
    return facts !== undefined && this.#agent.loop.node.state.availability(facts.id) === "drain";
  }

  #peer(member: Member): PeerView {
    const { node } = this.#agent.loop;
    const facts = node.peer(member.name);
    const self = member.name === this.#agent.self;
    const vtep = facts?.vteps[0] ?? member.address.ip;
    const path = self ? { state: "ok" as const, mtu: null, detail: "" } : this.dataPath(vtep);
    return {
      id: facts?.id ?? member.name,
      name: facts?.name ?? member.name,
      address: member.address.ip,
      port: member.address.port,
      state: member.state,
      role: roleOf(member.meta),
      incarnation: member.incarnation,
      rttMs: self ? null : (node.swim.rttMs(member.name) ?? null),
      dataPath: path.state,
      dataPathDetail: path.detail,
      mtu: path.mtu,
      faults: this.#faults(self, facts?.vteps ?? [vtep]),
      vtep,
      capabilities: [...(facts?.capabilities ?? [])],
      version: facts?.version ?? "",
      sinceMs: Math.max(0, this.#agent.loop.now() - member.changedAt),
      self,
    };
  }

  #localEndpoint(id: EndpointId): EndpointView {
    const record = this.#agent.endpoints.get(id);
    if (record === undefined) throw new NetError("internal", `endpoint ${id} vanished`);
    return {
      id: record.id,
      name: record.kind === "ingress-leg" ? INGRESS_ENDPOINT_NAME : record.name,
      network: this.#agent.networkName(record.network),
      ip: record.ip,
      prefixLength: record.prefixLength,
      mac: record.mac,
      node: this.#agent.config.name,
      vtep: ownVtep(this.#agent.config),
      service: this.#agent.serviceOf(record)?.name ?? "",
      state: this.#agent.isDisabled(record) ? "draining" : "ready",
      ifname: record.ifname,
      sandbox: record.sandbox.type === "netns" ? record.sandbox.path : "host",
      local: true,
    };
  }
}

function namesOf(items: readonly { readonly name: string }[]): string[] {
  return items.map(({ name }) => printable(name));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function valueOf(row: RowView): Record<string, unknown> {
  if (row.table === PEER_TABLE) {
    const record = peerRecordOf(row);
    if (record !== undefined)
      return { ip: formatCidr(record.endpointIp), mac: record.endpointMac, vtep: record.vtep };
  }
  if (row.table === ENDPOINT_TABLE) {
    const record = endpointRecordOf(row);
    if (record !== undefined) {
      return {
        name: record.name,
        service: record.serviceName,
        serviceId: record.serviceId,
        vip: record.virtualIp ?? "",
        ip: record.endpointIp,
        ports: record.ingressPorts
          .map((port) => `${port.publishedPort}->${port.targetPort}/${port.protocol}`)
          .join(","),
        aliases: [...record.aliases, ...record.taskAliases].join(","),
        disabled: record.serviceDisabled ? "disabled" : "",
      };
    }
  }
  return { base64: Buffer.from(row.value).toString("base64") };
}
