import { unreachable } from "../base/assert.ts";
import { errorCode, errorText, NetError } from "../base/error.ts";
import { endpointId, randomHex, type NetworkId, type NodeName } from "../base/id.ts";
import { formatSocketAddr } from "../base/ip.ts";
import { macFromIpv4 } from "../base/mac.ts";
import type { Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import type { Dataplane } from "../kernel/dataplane.ts";
import type { LinkKind } from "../overlay/desired.ts";
import type { NetworkView, ServiceView } from "../state/state.ts";
import { INGRESS } from "../state/ingress.ts";
import type { LeaveReason } from "../swim/boundary.ts";
import type { Member } from "../swim/member.ts";
import { PEER_TABLE } from "../wire/networkdb/records.ts";
import { ChangeEvents } from "./change-events.ts";
import { ownVtep, type Config } from "./config.ts";
import { DesiredOverlays } from "./desired-overlays.ts";
import type { Endpoints, EndpointRecord } from "./endpoints.ts";
import { EventLog } from "./event-log.ts";
import type { AgentEffect, GossipLoop } from "./gossip-loop.ts";
import { IngressLegs } from "./ingress-legs.ts";
import { Learned } from "./learned.ts";
import type { Logger } from "./log.ts";
import { OwnRows } from "./own-rows.ts";
import { Reconciler } from "./reconciler.ts";
import { RejectedRows, rejectedText } from "./rejected-rows.ts";
import { Repairs } from "./repairs.ts";
import type { Sandboxes } from "./sandboxes.ts";
import { type StandingFault, StandingFaults } from "./standing.ts";

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
  /** Whether it may repair has changed: the kernel is to be looked at, soon. */
  lookAgain?(): void;
}

/**
 * The daemon's state in one place: what the gossip says, which endpoints are here, and the reconciler between them.
 * Level-triggered: after any change `#refresh` derives attachments, own rows and ingress legs anew.
 */
export class Agent {
  readonly config: Config;
  readonly log: Logger;
  readonly events = new EventLog();
  readonly repairs = new Repairs();
  readonly standing = new StandingFaults();
  readonly loop: GossipLoop;
  readonly endpoints: Endpoints;
  readonly sandboxes: Sandboxes;
  readonly reconciler: Reconciler;
  readonly dataplane: Dataplane;
  readonly rejectedRows: RejectedRows;
  readonly learned: Learned;
  readonly overlays: DesiredOverlays;
  readonly startedAt: Instant;
  readonly dependents: Dependent[] = [];
  readonly #random: Random;
  readonly #legs: IngressLegs;
  readonly #changes: ChangeEvents;
  readonly #ownRows: OwnRows;
  #refreshing = false;
  #refreshAgain = false;
  #closed = false;
  #repair = true;

  constructor(parts: AgentParts) {
    this.#random = parts.random;
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
    this.learned = new Learned({
      self: this.self,
      now: () => this.loop.now(),
      usedNetworks: () => this.endpoints.networks(),
      onLearned: () => {
        this.reconciler.markAllDirty();
        this.#notify();
      },
    });
    this.overlays = new DesiredOverlays({
      config: this.config,
      node: this.loop.node,
      endpoints: this.endpoints,
      rejectedRows: this.rejectedRows,
      linkKind: parts.linkKind,
      now: () => this.loop.now(),
      underlayMtu: parts.underlayMtu,
    });
    this.#ownRows = new OwnRows({
      loop: this.loop,
      endpoints: this.endpoints,
      vtep: ownVtep(this.config),
      serviceOf: (record) => this.serviceOf(record),
      isDisabled: (record) => this.isDisabled(record),
      onLeft: (network) => {
        this.learned.networkLeft(network);
        this.#notify();
      },
    });
    this.reconciler = new Reconciler({
      dataplane: parts.dataplane,
      desired: (network) => this.overlays.of(network),
      mayPrune: (network) => this.learned.network(network),
      beforeDevice: () => this.beforeDevice(),
      now: () => this.loop.now(),
      every: (everyMs, run) => this.loop.every(everyMs, run),
      onRepair: (network, faults, steps) => {
        const more = steps > faults.length ? `; and ${steps - faults.length} steps more` : "";
        const text = faults.map((fault) => fault.text).join("; ");
        const objects = faults.map(({ object }) => object);
        this.repaired(this.networkName(network), `${text}${more}`, objects);
      },
      onStanding: (network, faults) => this.stands(network, this.networkName(network), faults),
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
  repaired(subject: string, text: string, objects?: readonly string[]): void {
    this.repairs.add(subject, text, this.loop.now(), objects);
    this.log.info({ subject }, `repaired: ${text}`);
    this.event("repair", subject, text);
  }

  /** The same, and it stays as it is: repair is off. All there is of `place`; those of old are not told again. */
  stands(place: string, subject: string, faults: readonly StandingFault[]): void {
    // A round that began before repair was switched on ends after it.
    for (const { text } of this.standing.replace(place, subject, this.#repair ? [] : faults)) {
      this.log.warn({ subject }, `not repaired, repair is off: ${text}`);
      this.event("drift", subject, `not repaired, repair is off: ${text}`);
    }
  }

  /** False: what other hands do to our objects in the kernel is found and told, and left alone. */
  get repair(): boolean {
    return this.#repair;
  }

  setRepair(repair: boolean): void {
    if (repair === this.#repair) return;
    this.#repair = repair;
    this.standing.clear();
    this.log.warn({}, `repair is ${repair ? "on" : "off"}`);
    this.event("repair-switched", this.config.name, repair ? "on" : "off: drift is told and left alone");
    this.reconciler.setRepair(repair);
    for (const dependent of this.dependents) dependent.lookAgain?.();
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
        this.learned.networkInSync(effect.network);
        this.reconciler.markDirty(effect.network);
        return this.#notify();
      case "refused":
        this.log.warn(
          { network: effect.network, table: effect.table, key: effect.key },
          `tables: ${effect.input} refused: ${effect.reason}`,
        );
        return;
      case "member-joined":
        this.learned.memberJoined(effect.member.name);
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
    this.#ownRows.publish();
    this.#notify();
  }

  /** A new record with an address of its own; not published yet. @throws NetError */
  async allocate(
    network: NetworkView,
    parts: Omit<EndpointRecord, "id" | "network" | "ip" | "prefixLength" | "mac">,
    wanted?: string,
  ): Promise<EndpointRecord> {
    const id = endpointId(randomHex(this.#random, 64));
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
    try {
      await this.loop.request({ type: "release", network: record.network, address: record.ip });
    } catch (error) {
      // Addresses that nobody has are given back when the disk has room again.
      if (errorCode(error) !== "state-save-failed") throw error;
    }
  }

  /** What this node has to remember and cannot write down. */
  get unsaved(): NetError | undefined {
    return this.loop.saver.failure ?? this.endpoints.saver.failure;
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    this.#closed = true;
    this.#ownRows.close();
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
