import { bytesEqual } from "../base/bytes.ts";
import type { NetworkId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Instant } from "../base/time.ts";
import { diffOwnRows, ownRows, rowKey, type OwnEndpoint, type OwnRow } from "../overlay/rows.ts";
import type { ServiceView } from "../state/state.ts";
import type { Endpoints, EndpointRecord } from "./endpoints.ts";
import type { GossipLoop } from "./gossip-loop.ts";

export interface OwnRowsParts {
  readonly loop: GossipLoop;
  readonly endpoints: Endpoints;
  readonly vtep: IpAddr;
  /** The service an endpoint backs. */
  readonly serviceOf: (record: EndpointRecord) => ServiceView | undefined;
  /** Whether a backend is to get no new connections. */
  readonly isDisabled: (record: EndpointRecord) => boolean;
  readonly onLeft: (network: NetworkId) => void;
}

/** How long leaving a network waits for its last deletes to be gossiped, and how often it looks. */
const LEAVE_PATIENCE_MS = 5_000;
const LEAVE_CHECK_MS = 200;

/** What this node says in NetworkDB: which networks it is on, and a row or two for each endpoint. */
export class OwnRows {
  readonly #parts: OwnRowsParts;
  /** Rows we have put and not deleted. */
  readonly #published = new Map<string, OwnRow>();
  /** Networks without an endpoint that we are still on. */
  readonly #unusedSince = new Map<NetworkId, Instant>();
  #leaveTimer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(parts: OwnRowsParts) {
    this.#parts = parts;
  }

  /** Makes the tables say what our endpoints are now. On return the first packet has left. */
  publish(): void {
    const { loop } = this.#parts;
    this.#joinUsed();
    const { puts, deletes } = diffOwnRows(this.#wanted(), [...this.#published.values()], (row) =>
      this.#isPublished(row),
    );
    for (const row of puts) {
      this.#published.set(rowKey(row), row);
      loop.step({ type: "networkdb", input: { type: "put-row", ...row } });
    }
    for (const { network, table, key } of deletes) {
      this.#published.delete(rowKey({ network, table, key }));
      loop.step({ type: "networkdb", input: { type: "delete-row", network, table, key } });
    }
    this.#leaveUnused();
    // Not when this process has time again: it goes on to write files and to program its kernel.
    if (puts.length + deletes.length > 0) loop.step({ type: "wake" });
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#leaveTimer);
  }

  #joinUsed(): void {
    const { loop, endpoints } = this.#parts;
    const attachments = loop.node.networkDb.attachments();
    const attached = new Set(attachments.filter((one) => !one.leaving).map((one) => one.network));
    for (const network of endpoints.networks())
      if (!attached.has(network)) loop.step({ type: "networkdb", input: { type: "join-network", network } });
  }

  /**
   * Leaves networks without an endpoint, each once its deletes have been gossiped: a dockerd that hears of the leave
   * first deletes our rows by itself, and complains when the deletes reach it after we have joined again.
   */
  #leaveUnused(): void {
    const { loop, endpoints } = this.#parts;
    const used = endpoints.networks();
    for (const network of used) this.#unusedSince.delete(network);
    const { networkDb } = loop.node;
    for (const { network, leaving, ownQueue } of networkDb.attachments()) {
      if (leaving || used.has(network)) continue;
      const since = this.#unusedSince.get(network) ?? loop.now();
      const told = ownQueue === 0 || networkDb.participants(network).length <= 1;
      if (!told && loop.now() - since < LEAVE_PATIENCE_MS) {
        this.#unusedSince.set(network, since);
        this.#lookAgain();
        continue;
      }
      this.#unusedSince.delete(network);
      this.#parts.onLeft(network);
      for (const [key, row] of this.#published) if (row.network === network) this.#published.delete(key);
      loop.step({ type: "networkdb", input: { type: "leave-network", network } });
    }
  }

  #lookAgain(): void {
    if (this.#closed) return;
    this.#leaveTimer ??= setTimeout(() => {
      this.#leaveTimer = undefined;
      this.publish();
    }, LEAVE_CHECK_MS).unref();
  }

  #wanted(): OwnRow[] {
    return this.#parts.endpoints
      .all()
      .flatMap((record) => ownRows(this.#ownEndpoint(record), this.#parts.vtep));
  }

  #ownEndpoint(record: EndpointRecord): OwnEndpoint {
    const service = this.#parts.serviceOf(record);
    const vip = service?.networks.find((one) => one.network === record.network)?.vip;
    const ingressPorts =
      record.kind === "backend-leg" ? (service?.ports.filter((port) => port.mode === "ingress") ?? []) : [];
    return {
      id: record.id,
      network: record.network,
      name: record.name,
      aliases: record.aliases,
      ip: record.ip,
      prefixLength: record.prefixLength,
      mac: record.mac,
      ...(service === undefined
        ? {}
        : { service: { id: service.id, name: service.name, ...(vip === undefined ? {} : { vip }) } }),
      ports: ingressPorts.map((port) => ({
        name: "",
        protocol: port.protocol,
        targetPort: port.target,
        publishedPort: port.published,
      })),
      named: this.#parts.endpoints.ready.has(record.id),
      disabled: this.#parts.isDisabled(record),
    };
  }

  /** Whether the table has exactly this row as ours. */
  #isPublished(row: OwnRow): boolean {
    const { node } = this.#parts.loop;
    const found = node.networkDb.row(row.network, row.table, row.key);
    return found?.owner === node.name && bytesEqual(found.value, row.value);
  }
}
