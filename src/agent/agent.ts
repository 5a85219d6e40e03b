import { randomInt as secureRandomInt } from "node:crypto";
import { unreachable } from "../base/assert.ts";
import { bytesEqual } from "../base/bytes.ts";
import { errorText, NetError } from "../base/error.ts";
import { endpointId, randomHex, type NetworkId, type NodeName } from "../base/id.ts";
import { formatSocketAddr, type IpAddr, type SocketAddr } from "../base/ip.ts";
import { macFromIpv4 } from "../base/mac.ts";
import type { Random } from "../base/random.ts";
import type { Sliced } from "../base/sliced.ts";
import { after, type Instant } from "../base/time.ts";
import type { Dataplane } from "../kernel/dataplane.ts";
import {
  deriveOverlay,
  overlayMtu,
  type DesiredOverlay,
  type LinkKind,
  type OverlayNetwork,
} from "../overlay/desired.ts";
import { diffOwnRows, ownRows, rowKey, remotePeers, type OwnEndpoint, type OwnRow } from "../overlay/rows.ts";
import type { NetworkView, ServiceView } from "../state/state.ts";
import { INGRESS } from "../state/ingress.ts";
import type { LeaveReason } from "../swim/boundary.ts";
import type { Member } from "../swim/member.ts";
import { PEER_TABLE } from "../wire/networkdb/records.ts";
import { ChangeEvents } from "./change-events.ts";
import type { Config } from "./config.ts";
import type { Endpoints, EndpointRecord } from "./endpoints.ts";
import { EventLog } from "./event-log.ts";
import type { AgentEffect, GossipLoop } from "./gossip-loop.ts";
import { IngressLegs } from "./ingress-legs.ts";
import type { Logger } from "./log.ts";
import { Reconciler } from "./reconciler.ts";
import { RejectedRows, rejectedText } from "./rejected-rows.ts";
import { Repairs } from "./repairs.ts";
import type { Sandboxes } from "./sandboxes.ts";

export interface AgentParts {
  readonly config: Config;
  readonly log: Logger;
  readonly loop: GossipLoop;
  readonly dataplane: Dataplane;
  readonly linkKind: LinkKind;
  readonly endpoints: Endpoints;
  readonly sandboxes: Sandboxes;
  readonly random: Random;
  /** MTU of the device that carries our VTEP. */
  readonly underlayMtu: () => number;
}

/** Told about everything that may change what the mesh and the names look like; both recompute at their own pace. */
export interface Dependent {
  refresh(): void;
  /** A row changed, own ones included; `refresh` follows. */
  rowChanged?(network: NetworkId, table: string, key: string): void;
}

/** After the first peer answered: bulk sync and definitions are exchanged well within it. */
const LEARNING_MS = 2_000;
/** How long a restarted agent keeps forwarding entries it cannot account for, waiting for its peers' tables. */
const PRUNE_HOLD_MS = 30_000;
/** How long leaving a network waits for its last deletes to be gossiped, and how often it looks. */
const LEAVE_PATIENCE_MS = 5_000;
const LEAVE_CHECK_MS = 200;

/**
 * The daemon's state in one place: what the gossip says, which endpoints are here, and the reconciler between them.
 * Level-triggered: after any change `#refresh` derives attachments, own rows and ingress legs anew.
 */
export class Agent {
  readonly config: Config;
  readonly log: Logger;
  readonly events = new EventLog();
  readonly repairs = new Repairs();
  readonly loop: GossipLoop;
  readonly endpoints: Endpoints;
  readonly sandboxes: Sandboxes;
  readonly reconciler: Reconciler;
  readonly dataplane: Dataplane;
  readonly rejectedRows: RejectedRows;
  readonly startedAt: Instant;
  readonly dependents: Dependent[] = [];
  readonly #parts: AgentParts;
  readonly #legs: IngressLegs;
  readonly #changes: ChangeEvents;
  readonly #inSync = new Set<NetworkId>();
  /** Rows we have put and not deleted. */
  readonly #published = new Map<string, OwnRow>();
  /** Networks without an endpoint that we are still on. */
  readonly #unusedSince = new Map<NetworkId, Instant>();
  #leaveTimer: NodeJS.Timeout | undefined;
  /** Whether somebody could tell us the tables: a join worked, or there is nobody to join. */
  #heardAt: Instant | undefined;
  #mtu: { readonly at: Instant; readonly bytes: number } | undefined;
  #refreshing = false;
  #refreshAgain = false;
  #closed = false;

  constructor(parts: AgentParts) {
    this.#parts = parts;
    this.config = parts.config;
    this.log = parts.log;
    this.loop = parts.loop;
    this.endpoints = parts.endpoints;
    this.sandboxes = parts.sandboxes;
    this.dataplane = parts.dataplane;
    this.startedAt = this.loop.now();
    this.#legs = new IngressLegs(this);
    this.#changes = new ChangeEvents({
      state: this.loop.node.state,
      self: this.loop.node.name,
      now: () => this.loop.now(),
      shownName: (member) => this.shownName(member),
      emit: (type, subject, detail) => this.event(type, subject, detail),
    });
    this.#changes.begin();
    this.rejectedRows = new RejectedRows({
      now: () => this.loop.now(),
      isLiving: (owner) => this.loop.node.swim.member(owner)?.state === "alive",
      onRejected: (group) => {
        const text = `${rejectedText(group, this.shownName(group.owner))} left out`;
        this.log.warn({ network: this.networkName(group.network), problem: group.problem }, text);
        this.event("row-rejected", this.networkName(group.network), text);
      },
    });
    this.reconciler = new Reconciler({
      dataplane: parts.dataplane,
      desired: (network) => this.desired(network),
      mayPrune: (network) => this.#mayPrune(network),
      beforeDevice: () => this.beforeDevice(),
      now: () => this.loop.now(),
      onRepair: (network, faults, steps) => {
        const more = steps > faults.length ? `; and ${steps - faults.length} steps more` : "";
        this.repaired(this.networkName(network), `${faults.join("; ")}${more}`);
      },
      onFailure: (network, error) => {
        this.log.warn({ network: this.networkName(network), code: error.code }, error.message);
        this.event("failure", this.networkName(network), error.message);
      },
    });
  }

  get self(): NodeName {
    return this.loop.node.name;
  }

  event(type: string, subject: string, detail: string): void {
    this.events.add(Date.now(), type, subject, detail);
  }

  /** Another hand had changed something of ours in the kernel: what was wrong and what was done. */
  repaired(subject: string, text: string): void {
    this.repairs.add(subject, text, this.loop.now());
    this.log.info({ subject }, `repaired: ${text}`);
    this.event("repair", subject, text);
  }

  /** What the other netagents and we ourselves have been told so far decides what is desired. */
  *desired(network: NetworkId): Sliced<DesiredOverlay> {
    const view = this.loop.node.state.network(network);
    const vtep = this.config.dataPathAddrs[0] ?? this.config.advertise.ip;
    const desired = yield* deriveOverlay({
      network:
        view === undefined ? goneNetwork(network, this.config.dataPathPort) : this.overlayNetwork(view),
      linkKind: this.#parts.linkKind,
      vtep,
      ownVteps: this.config.dataPathAddrs,
      endpoints: view === undefined || view.disabled ? [] : this.endpoints.ofNetwork(network),
      peers: remotePeers(
        this.loop.node.networkDb.rows(network, PEER_TABLE, { suspended: true }),
        this.self,
        (owner) => this.loop.node.peer(owner)?.capabilities.includes("state") === true,
      ),
      mayBeAt: (owner, rowVtep) => this.#mayBeAt(owner, rowVtep),
    });
    yield* this.rejectedRows.update(network, desired.rejected);
    return desired;
  }

  overlayNetwork(view: NetworkView): OverlayNetwork {
    const vtep = this.config.dataPathAddrs[0] ?? this.config.advertise.ip;
    const possible = overlayMtu(this.#underlayMtu(), vtep);
    return {
      id: view.id,
      name: view.name,
      vni: view.vni,
      subnet: view.subnet,
      gateway: view.gateway,
      mtu: Math.min(view.mtu ?? possible, possible),
      dataPathPort: this.config.dataPathPort,
      internal: view.internal,
      encrypted: view.encrypted,
    };
  }

  networkName(id: NetworkId): string {
    return this.loop.node.state.network(id)?.name ?? id.slice(0, 12);
  }

  /** The living member that runs node `id`, if there is one. */
  memberOf(id: string): string | undefined {
    const { node } = this.loop;
    for (const member of node.swim.members())
      if (member.state === "alive" && node.peer(member.name)?.id === id) return member.name;
    return undefined;
  }

  /** The name people know a member by. */
  shownName(name: string): string {
    return this.loop.node.peer(name)?.name ?? name;
  }

  /** Effects the loop leaves to us. */
  handle(effect: AgentEffect): void {
    switch (effect.type) {
      case "row-changed":
        this.#changes.rowChanged(effect, this.networkName(effect.network));
        if (effect.table === PEER_TABLE) this.reconciler.markDirty(effect.network);
        for (const dependent of this.dependents)
          dependent.rowChanged?.(effect.network, effect.table, effect.key);
        return this.#notify();
      case "network-changed":
        return;
      case "network-in-sync":
        this.#inSync.add(effect.network);
        this.reconciler.markDirty(effect.network);
        return this.#notify();
      case "refused":
        this.log.warn(
          { network: effect.network, table: effect.table, key: effect.key },
          `tables: ${effect.input} refused: ${effect.reason}`,
        );
        return;
      case "member-joined":
        this.#hear(effect.member.name);
        this.log.info(
          { address: formatSocketAddr(effect.member.address) },
          `${this.shownName(effect.member.name)} joined`,
        );
        this.event("member-joined", this.shownName(effect.member.name), describe(effect.member));
        return this.refresh();
      case "member-left":
        this.log.info(
          {},
          `${this.shownName(effect.member.name)} is gone: ${leaveText(effect.reason, (name) => this.shownName(name))}`,
        );
        this.event(
          "member-left",
          this.shownName(effect.member.name),
          leaveText(effect.reason, (name) => this.shownName(name)),
        );
        return this.refresh();
      case "member-updated":
        this.event("member-updated", this.shownName(effect.member.name), describe(effect.member));
        return this.refresh();
      case "member-suspected":
        this.event(
          "member-suspected",
          this.shownName(effect.member.name),
          `accused by ${this.shownName(effect.accuser)}`,
        );
        return this.#notify();
      case "member-recovered":
        this.event("member-recovered", this.shownName(effect.member.name), "it refuted");
        return this.#notify();
      case "member-conflict":
        this.log.warn({}, `somebody else claims the member name ${effect.member.name}`);
        this.event(
          "member-conflict",
          effect.member.name,
          `claimed also by incarnation ${effect.claim.incarnation}`,
        );
        return;
      case "state":
        return this.#handleState(effect.effect);
      case "question":
        // Refusals may come as a throw, too: a peer's question must never end this process.
        Promise.resolve(effect.question.body)
          .then((body) => this.onQuestion(body))
          .then(
            (body) =>
              this.loop.step({ type: "answer-peer", question: effect.question, body: { result: body } }),
            (error: unknown) =>
              this.loop.step({
                type: "answer-peer",
                question: effect.question,
                body: { error: errorText(error) },
              }),
          );
        return;
      case "left":
        this.onLeft();
        return;
      default:
        return unreachable(effect);
    }
  }

  /** Answers another netagent's question; set by whoever knows the questions. */
  onQuestion: (body: unknown) => Promise<unknown> = () =>
    Promise.reject(new NetError("unknown-question", "not understood"));
  onLeft: () => void = () => undefined;
  /** Awaited before a network's device is made. */
  beforeDevice: () => Promise<void> = () => Promise.resolve();
  /** Resolves when the mesh has made what it can; set by whoever runs it. */
  rulesMade: () => Promise<void> = () => Promise.resolve();

  /** Derives everything anew from definitions, endpoints and members. */
  refresh(): void {
    this.#notify();
    if (this.#refreshing) {
      this.#refreshAgain = true;
      return;
    }
    this.#refreshing = true;
    void this.#refreshUntilQuiet().finally(() => (this.#refreshing = false));
  }

  /** Publishes what our endpoints are now, and marks the networks concerned. On return the first packet has left. */
  publish(): void {
    this.#syncAttachments();
    const { puts, deletes } = diffOwnRows(this.#wantedRows(), [...this.#published.values()], (row) =>
      this.#isPublished(row),
    );
    for (const row of puts) {
      this.#published.set(rowKey(row), row);
      this.loop.step({ type: "networkdb", input: { type: "put-row", ...row } });
    }
    for (const { network, table, key } of deletes) {
      this.#published.delete(rowKey({ network, table, key }));
      this.loop.step({ type: "networkdb", input: { type: "delete-row", network, table, key } });
    }
    this.#leaveUnused();
    // Not when this process has time again: it goes on to write files and to program its kernel.
    if (puts.length + deletes.length > 0) this.loop.step({ type: "wake" });
    this.#notify();
  }

  /** A new record with an address of its own; not published yet. @throws NetError */
  async allocate(
    network: NetworkView,
    parts: Omit<EndpointRecord, "id" | "network" | "ip" | "prefixLength" | "mac">,
    wanted?: string,
  ): Promise<EndpointRecord> {
    const id = endpointId(randomHex(this.#parts.random, 64));
    const result = await this.loop.request({
      type: "allocate",
      network: network.id,
      holder: { id, name: parts.name === "" ? id.slice(0, 12) : parts.name },
      ...(wanted === undefined ? {} : { address: wanted }),
    });
    if (result.type !== "address")
      throw new NetError("internal", `allocate on ${network.name}: unexpected ${result.type}`);
    const { ip, prefixLength } = result.address;
    return { ...parts, id, network: network.id, ip, prefixLength, mac: macFromIpv4(ip) };
  }

  /** Takes the record away, its rows, its interface and its address. */
  async drop(record: EndpointRecord, timeoutMs: number): Promise<void> {
    const leg = this.endpoints.backendLeg(record.id);
    if (leg !== undefined) await this.drop(leg, timeoutMs);
    this.endpoints.remove(record.id);
    this.publish();
    this.reconciler.markDirty(record.network);
    // The address may be given to somebody else only when no interface here has it any more.
    await this.reconciler.settled(record.network, timeoutMs).catch((error: unknown) => {
      this.log.warn(
        { network: this.networkName(record.network) },
        `endpoint ${record.name}: ${errorText(error)}`,
      );
    });
    await this.loop.request({ type: "release", network: record.network, address: record.ip });
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    this.#closed = true;
    this.reconciler.close();
  }

  /** The service an endpoint backs, if it still exists. */
  serviceOf(record: EndpointRecord): ServiceView | undefined {
    return record.service === undefined
      ? undefined
      : this.loop.node.state.services().find((service) => service.id === record.service);
  }

  isDisabled(record: EndpointRecord): boolean {
    const owner = record.parent ?? record.id;
    return (
      this.endpoints.leaving.has(owner) ||
      this.endpoints.unhealthy.has(owner) ||
      (record.service !== undefined && this.loop.node.state.availability(this.loop.node.facts.id) === "drain")
    );
  }

  /** Whether we know what our peers know, or there is nobody to ask: only then rules and entries may be taken away. */
  tablesLoaded(): boolean {
    return (
      [...this.endpoints.networks()].every((network) => this.#mayPrune(network)) &&
      (this.#heard() || this.#heldLongEnough())
    );
  }

  /** Nothing can be learned any more: we are the first, or nobody answered for a long time. */
  stopWaitingForPeers(): void {
    this.#heardAt = this.startedAt;
    this.reconciler.markAllDirty();
    this.#notify();
  }

  /**
   * The first other member: what it knows comes within moments. A network counts as in sync also when there is
   * nobody to ask, so that alone proves nothing.
   */
  #hear(member: string): void {
    if (member === this.self || this.#heardAt !== undefined) return;
    this.#heardAt = after(this.loop.now(), LEARNING_MS);
    setTimeout(() => {
      this.reconciler.markAllDirty();
      this.#notify();
    }, LEARNING_MS + 1).unref();
  }

  #heard(): boolean {
    return this.#heardAt !== undefined && this.loop.now() >= this.#heardAt;
  }

  #handleState(effect: Extract<AgentEffect, { type: "state" }>["effect"]): void {
    switch (effect.type) {
      case "definitions-changed":
        this.#changes.definitionsChanged(effect.changes);
        for (const change of effect.changes) {
          if (change.kind === "network") this.reconciler.markDirty(change.id as NetworkId);
        }
        return this.refresh();
      case "ring-changed":
        return;
      case "conflict":
        this.log.warn({}, effect.conflict.text);
        this.event("conflict", effect.conflict.type, effect.conflict.text);
        return this.refresh();
      case "persist":
      case "persist-soon":
      case "done":
      case "refused":
        return; // the loop's own
      default:
        return unreachable(effect);
    }
  }

  /**
   * A netagent's rows name its own data-path addresses. Of other members nobody knows theirs; only that it is not
   * one that another, living netagent says it has.
   */
  #mayBeAt(owner: NodeName, vtep: IpAddr): boolean {
    const { node } = this.loop;
    // A former life's rows are inherited for a while, and nobody knows any more what it said.
    if (node.swim.member(owner)?.state !== "alive") return true;
    const facts = node.peer(owner);
    if (facts !== undefined) return facts.vteps.includes(vtep);
    for (const member of node.swim.members())
      if (member.state === "alive" && node.peer(member.name)?.vteps.includes(vtep) === true) return false;
    return true;
  }

  #notify(): void {
    for (const dependent of this.dependents) dependent.refresh();
  }

  async #refreshUntilQuiet(): Promise<void> {
    do {
      this.#refreshAgain = false;
      try {
        await this.#legs.ensure();
      } catch (error) {
        if (!(error instanceof NetError)) throw error;
        this.log.warn({ code: error.code }, `ingress: ${error.message}`);
        this.event("failure", INGRESS.name, error.message);
        setTimeout(() => this.refresh(), 2_000).unref();
      }
      if (this.#closed) return;
      this.publish();
    } while (this.#refreshAgain);
  }

  #syncAttachments(): void {
    const attached = new Set(
      this.loop.node.networkDb
        .attachments()
        .filter((one) => !one.leaving)
        .map((one) => one.network),
    );
    for (const network of this.endpoints.networks()) {
      if (!attached.has(network))
        this.loop.step({ type: "networkdb", input: { type: "join-network", network } });
    }
  }

  /**
   * Leaves networks without an endpoint, each once its deletes have been gossiped: a dockerd that hears of the leave
   * first deletes our rows by itself, and complains when the deletes reach it after we have joined again.
   */
  #leaveUnused(): void {
    const used = this.endpoints.networks();
    for (const network of used) this.#unusedSince.delete(network);
    const { networkDb } = this.loop.node;
    for (const { network, leaving, ownQueue } of networkDb.attachments()) {
      if (leaving || used.has(network)) continue;
      const since = this.#unusedSince.get(network) ?? this.loop.now();
      const told = ownQueue === 0 || networkDb.participants(network).length <= 1;
      if (!told && this.loop.now() - since < LEAVE_PATIENCE_MS) {
        this.#unusedSince.set(network, since);
        this.#leaveTimer ??= setTimeout(() => {
          this.#leaveTimer = undefined;
          if (!this.#closed) this.publish();
        }, LEAVE_CHECK_MS).unref();
        continue;
      }
      this.#unusedSince.delete(network);
      this.#inSync.delete(network);
      for (const [key, row] of this.#published) if (row.network === network) this.#published.delete(key);
      this.loop.step({ type: "networkdb", input: { type: "leave-network", network } });
    }
  }

  #wantedRows(): OwnRow[] {
    const vtep = this.config.dataPathAddrs[0] ?? this.config.advertise.ip;
    return this.endpoints.all().flatMap((record) => ownRows(this.#ownEndpoint(record), vtep));
  }

  #ownEndpoint(record: EndpointRecord): OwnEndpoint {
    const service = this.serviceOf(record);
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
      named: this.endpoints.ready.has(record.id),
      disabled: this.isDisabled(record),
    };
  }

  /** Whether the table has exactly this row as ours. */
  #isPublished(row: OwnRow): boolean {
    const found = this.loop.node.networkDb.row(row.network, row.table, row.key);
    return found?.owner === this.self && bytesEqual(found.value, row.value);
  }

  /** Asked of the kernel now and then only: it hardly ever changes, and every desired state needs it. */
  #underlayMtu(): number {
    const now = this.loop.now();
    if (this.#mtu === undefined || now - this.#mtu.at > 1_000)
      this.#mtu = { at: now, bytes: this.#parts.underlayMtu() };
    return this.#mtu.bytes;
  }

  #heldLongEnough(): boolean {
    return this.loop.now() - this.startedAt > PRUNE_HOLD_MS;
  }

  #mayPrune(network: NetworkId): boolean {
    const heldFor = this.loop.now() - this.startedAt;
    return (
      heldFor > PRUNE_HOLD_MS ||
      (this.#heard() && (this.#inSync.has(network) || !this.endpoints.networks().has(network)))
    );
  }
}

/** Unpredictable randomness for ids and for gossip's choices. */
export function systemRandom(): Random {
  return { next: () => secureRandomInt(0x1_0000_0000) / 0x1_0000_0000 };
}

/** Stands in for a network whose definition is gone: nothing of it is desired. */
function goneNetwork(id: NetworkId, dataPathPort: number): OverlayNetwork {
  const { vni, subnet, gateway } = INGRESS;
  return {
    id,
    name: id.slice(0, 12),
    vni,
    subnet,
    gateway,
    mtu: 1450,
    dataPathPort,
    internal: false,
    encrypted: false,
  };
}

function describe(member: Member): string {
  return `${member.name} at ${formatSocketAddr(member.address)}, incarnation ${member.incarnation}`;
}

function leaveText(reason: LeaveReason, shown: (name: string) => string): string {
  switch (reason.why) {
    case "left":
      return "left of its own will";
    case "timeout":
      return `no sign of life, confirmed by ${reason.confirmations}`;
    case "refused":
      return "its host refuses connections: the process is gone";
    case "replaced":
      return `replaced by ${shown(reason.by)}`;
    case "told":
      return `${shown(reason.accuser)} found it dead`;
    default:
      return unreachable(reason);
  }
}

/** Addresses others may be reached at, remembered for the next start. */
export function aliveAddresses(members: Iterable<Member>, self: string): SocketAddr[] {
  return [...members]
    .filter((member) => member.name !== self && member.state === "alive")
    .map((member) => member.address);
}
