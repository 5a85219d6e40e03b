import type { EndpointId, NetworkId, NodeName } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Backend, EntryNode, MeshProtocol, Service } from "../mesh/input.ts";
import { sameService } from "../mesh/service-blocks.ts";
import type { RowView } from "../networkdb/networkdb.ts";
import { endpointRecordOf, INGRESS_ENDPOINT_NAME, peerRecordOf } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import type { ServiceView } from "../state/state.ts";
import { ENDPOINT_TABLE, PEER_TABLE, type EndpointRecord } from "../wire/networkdb/records.ts";
import type { GossipLoop } from "./gossip-loop.ts";

/** A backend's port that this node has seen fail. */
export interface FailingPort {
  readonly ip: IpAddr;
  readonly protocol: MeshProtocol;
  readonly port: number;
}

interface Row {
  readonly network: NetworkId;
  readonly key: string;
  readonly owner: NodeName;
  readonly suspended: boolean;
  readonly record: EndpointRecord;
}

/** What is known of a member that has backends. */
interface OwnerFacts {
  readonly capable: boolean;
  readonly suspect: boolean;
  readonly drains: boolean;
}

/**
 * Services and their backends for the planner, kept up row by row: with 10,000 services of ten backends a changed row
 * costs its own service's backends and nothing else. Unchanged services are the same objects as before, and while
 * nothing changed at all so is the list.
 */
export class ServiceIndex {
  readonly #loop: Pick<GossipLoop, "node">;
  readonly #rows = new Map<string, Row>();
  readonly #byService = new Map<string, Map<string, Row>>();
  /** Rows that are some node's own leg in the ingress network, by key. */
  readonly #entries = new Set<string>();
  readonly #owners = new Map<NodeName, { facts: OwnerFacts | undefined; readonly rows: Map<string, Row> }>();
  readonly #dirty = new Set<string>();
  #networks = new Set<NetworkId>();
  #views: readonly ServiceView[] | undefined;
  /** Ascending by id; `place` is that in the list. */
  #definitions = new Map<
    string,
    { readonly view: ServiceView; readonly text: string; readonly place: number }
  >();
  #services = new Map<string, Service>();
  #list: readonly Service[] = [];
  #failing: ReadonlySet<string> = new Set();

  constructor(loop: Pick<GossipLoop, "node">) {
    this.#loop = loop;
  }

  /** Call for every `row-changed` effect; rows of networks this node has just joined are found by `services`. */
  rowChanged(network: NetworkId, table: string, key: string): void {
    if (table !== ENDPOINT_TABLE || !this.#networks.has(network)) return;
    this.#put(network, key, this.#loop.node.networkDb.row(network, table, key, { suspended: true }));
  }

  /** True when that changed which services have failing backends. */
  setFailing(ports: readonly FailingPort[]): boolean {
    const failing = new Set(ports.map(({ ip, protocol, port }) => portKey(ip, protocol, port)));
    const changed = [...symmetricDifference(failing, this.#failing)].map((key) => key.split(" ")[0]);
    if (changed.length === 0) return false;
    this.#failing = failing;
    for (const { record } of this.#rows.values())
      if (changed.includes(record.endpointIp)) this.#dirty.add(record.serviceId);
    return true;
  }

  /** Ascending by id. */
  services(): readonly Service[] {
    this.#syncNetworks();
    this.#syncOwners();
    const reordered = this.#syncDefinitions();
    if (this.#dirty.size === 0 && !reordered) return this.#list;
    let list: Service[] | undefined;
    for (const id of this.#dirty) {
      const definition = this.#definitions.get(id);
      if (definition === undefined) continue;
      const service = this.#service(definition.view);
      const before = this.#services.get(id);
      if (before !== undefined && before.name === service.name && sameService(before, service)) continue;
      this.#services.set(id, service);
      list ??= this.#list.slice();
      list[definition.place] = service;
    }
    this.#dirty.clear();
    if (reordered) this.#list = [...this.#definitions.keys()].flatMap((id) => this.#services.get(id) ?? []);
    else if (list !== undefined) this.#list = list;
    return this.#list;
  }

  /** Every node's leg in the ingress network, those of nodes held for dead included: their replies are on the way. */
  entryNodes(): EntryNode[] {
    const { networkDb } = this.#loop.node;
    const nodes: EntryNode[] = [];
    for (const key of this.#entries) {
      const row = networkDb.row(INGRESS.id, PEER_TABLE, key);
      const peer = row === undefined ? undefined : peerRecordOf(row);
      if (peer !== undefined) nodes.push({ ip: peer.endpointIp.ip, mac: peer.endpointMac });
    }
    return nodes;
  }

  #put(network: NetworkId, key: string, row: RowView | undefined): void {
    const id = `${network}/${key}`;
    const before = this.#rows.get(id);
    if (before !== undefined) {
      this.#rows.delete(id);
      forget(this.#byService, before.record.serviceId, id);
      const owner = this.#owners.get(before.owner);
      owner?.rows.delete(id);
      if (owner?.rows.size === 0) this.#owners.delete(before.owner);
      this.#dirty.add(before.record.serviceId);
    }
    const record = row === undefined ? undefined : endpointRecordOf(row);
    if (network === INGRESS.id) {
      if (record?.name === INGRESS_ENDPOINT_NAME) this.#entries.add(key);
      else this.#entries.delete(key);
    }
    if (row === undefined || record === undefined || record.serviceId === "") return;
    const now: Row = { network, key, owner: row.owner, suspended: row.state === "suspended", record };
    this.#rows.set(id, now);
    const owner = this.#owners.get(row.owner);
    if (owner === undefined) this.#owners.set(row.owner, { facts: undefined, rows: new Map([[id, now]]) });
    else owner.rows.set(id, now);
    const rows = this.#byService.get(record.serviceId);
    if (rows === undefined) this.#byService.set(record.serviceId, new Map([[id, now]]));
    else rows.set(id, now);
    this.#dirty.add(record.serviceId);
  }

  /** Networks joined and left since the last time: all their rows at once. */
  #syncNetworks(): void {
    const { networkDb } = this.#loop.node;
    const networks = new Set(networkDb.attachments().map(({ network }) => network));
    for (const network of networks) {
      if (this.#networks.has(network)) continue;
      this.#networks.add(network);
      for (const row of networkDb.rows(network, ENDPOINT_TABLE, { suspended: true }))
        this.#put(network, row.key, row);
    }
    for (const network of this.#networks) {
      if (networks.has(network)) continue;
      this.#networks.delete(network);
      for (const row of [...this.#rows.values()])
        if (row.network === network) this.#put(network, row.key, undefined);
      if (network === INGRESS.id) this.#entries.clear();
    }
  }

  #syncOwners(): void {
    for (const [name, owner] of this.#owners) {
      const before = owner.facts;
      const now = this.#ownerFacts(name, before);
      if (before?.capable === now.capable && before.suspect === now.suspect && before.drains === now.drains)
        continue;
      owner.facts = now;
      for (const { record } of owner.rows.values()) this.#dirty.add(record.serviceId);
    }
  }

  #ownerFacts(owner: NodeName, before: OwnerFacts | undefined): OwnerFacts {
    const { node } = this.#loop;
    const facts = node.peer(owner);
    return {
      // Of a former life whose rows are still shown nothing is known any more; its kernel state is still the same.
      capable: facts === undefined ? before?.capable === true : facts.capabilities.includes("return-path"),
      suspect: node.swim.member(owner)?.state === "suspect",
      drains: facts === undefined ? before?.drains === true : node.state.availability(facts.id) === "drain",
    };
  }

  /** Whether services came or went. Those whose definition changed become dirty. */
  #syncDefinitions(): boolean {
    const views = this.#loop.node.state.services();
    if (views === this.#views) return false;
    this.#views = views;
    const before = this.#definitions;
    this.#definitions = new Map();
    let reordered = before.size !== views.length;
    for (const view of [...views].sort((a, b) => (a.id < b.id ? -1 : 1))) {
      const text = JSON.stringify([view.name, view.endpointMode, view.affinity, view.ports, view.networks]);
      this.#definitions.set(view.id, { view, text, place: this.#definitions.size });
      const known = before.get(view.id);
      if (known === undefined) reordered = true;
      if (known?.text !== text) this.#dirty.add(view.id);
    }
    for (const id of before.keys()) if (!this.#definitions.has(id)) this.#services.delete(id);
    return reordered;
  }

  #service(view: ServiceView): Service {
    return {
      id: view.id,
      name: view.name,
      endpointMode: view.endpointMode,
      affinity: view.affinity,
      ports: view.ports,
      vips: view.networks.flatMap(({ network, vip }) => (vip === undefined ? [] : [{ network, ip: vip }])),
      backends: this.#backends(view),
    };
  }

  /** One entry an endpoint and network; that of ingress is where published ports lead. */
  #backends(view: ServiceView): Backend[] {
    const networks = new Set([...view.networks.map((one) => one.network), INGRESS.id]);
    const rows = [...(this.#byService.get(view.id)?.values() ?? [])].filter((row) =>
      networks.has(row.network),
    );
    // A leg in the ingress network that fails says the same of the endpoint it belongs to.
    const failing = new Set(rows.filter((row) => this.#fails(row, view)).map(endpointName));
    return rows.map((row): Backend => {
      const owner = this.#owners.get(row.owner)?.facts;
      const { record } = row;
      const avoid = owner?.suspect === true || failing.has(endpointName(row));
      const disabled = record.serviceDisabled || owner?.drains === true;
      return {
        endpoint: row.key as EndpointId,
        network: row.network,
        ip: record.endpointIp,
        ...(row.network === INGRESS.id ? { ingressIp: record.endpointIp } : {}),
        node: row.owner,
        state: row.suspended ? "suspended" : disabled ? "draining" : "ready",
        capable: owner?.capable === true,
        local: row.owner === this.#loop.node.name,
        ...(avoid ? { avoid } : {}),
      };
    });
  }

  #fails({ network, record }: Row, view: ServiceView): boolean {
    if (network !== INGRESS.id || this.#failing.size === 0) return false;
    return view.ports.some(({ protocol, target }) =>
      this.#failing.has(portKey(record.endpointIp, protocol, target)),
    );
  }
}

function forget(lists: Map<string, Map<string, Row>>, service: string, id: string): void {
  const rows = lists.get(service);
  rows?.delete(id);
  if (rows?.size === 0) lists.delete(service);
}

function endpointName({ owner, record }: Row): string {
  return `${owner}/${record.name}`;
}

function portKey(ip: IpAddr, protocol: MeshProtocol, port: number): string {
  return `${ip} ${protocol} ${port}`;
}

function* symmetricDifference<T>(a: ReadonlySet<T>, b: ReadonlySet<T>): Generator<T> {
  for (const one of a) if (!b.has(one)) yield one;
  for (const one of b) if (!a.has(one)) yield one;
}
