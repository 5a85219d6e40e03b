import { unreachable } from "../base/assert.ts";
import { NetError } from "../base/error.ts";
import type { NetworkId, NodeId, ServiceId } from "../base/id.ts";
import { randomBase36 } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import type { Network, NodeDefinition, Service } from "../wire/state/definition.ts";
import { compareClaims, definitionConflicts, type Conflict } from "./conflicts.ts";
import { Definitions } from "./definitions.ts";
import type { StateEffect, StateInput } from "./effect.ts";
import { findNamed } from "./find.ts";
import { INGRESS } from "./ingress.ts";
import { makeNetwork } from "./network-rules.ts";
import type { AddressHolder, StateRequest } from "./request.ts";
import { makeService, specOf } from "./service-rules.ts";

export interface StateOptions {
  /** Outlives restarts; owns this node's address ranges. */
  readonly node: NodeId;
  readonly random: Random;
  /** What `snapshot()` returned before the restart. */
  readonly snapshot?: Uint8Array;
  readonly config?: Partial<StateConfig>;
}

export interface StateConfig {
  /** Between two rounds of gossip, milliseconds. */
  readonly gossipMs: number;
  /** Members told per round. */
  readonly gossipFanout: number;
  /** A change is told multiplier · ⌈log₁₀(members + 1)⌉ times. */
  readonly retransmitMultiplier: number;
  /** Between two digests to a random member, milliseconds. */
  readonly digestMs: number;
  /** Bound of a packet's payload, bytes. */
  readonly packetBytes: number;
  /** How long one owner is given to answer a request for addresses, milliseconds. */
  readonly askMs: number;
  /** How long a request for an address may take in all, milliseconds. */
  readonly allocateMs: number;
  /** After joining, how long to wait for a ring of `ingress` before one is seeded, milliseconds. */
  readonly seedMs: number;
}

export interface NetworkView extends Network {
  readonly conflicts: readonly Conflict[];
  /** Must not exist in any kernel: its VNI belongs to another network. */
  readonly disabled: boolean;
}

export interface ServiceView extends Service {
  readonly conflicts: readonly Conflict[];
}

/** Who owns how much of a network, as far as this node knows. */
export interface RingUse {
  readonly network: NetworkId;
  /** Addresses endpoints and VIPs can have in all. */
  readonly size: number;
  /** Of them free; those of other nodes by their own last count. */
  readonly free: number;
  readonly owners: readonly {
    readonly node: NodeId;
    readonly name: string;
    readonly size: number;
    readonly free: number;
    readonly alive: boolean;
  }[];
}

/** An address this node has given away. */
export interface Allocation {
  readonly network: NetworkId;
  readonly address: IpAddr;
  readonly holder: AddressHolder;
}

/**
 * The definitions of the cluster and the addresses of its networks. Owns no file, socket or timer.
 */
export class State {
  readonly #node: NodeId;
  readonly #random: Random;
  readonly #definitions = new Definitions();
  #name = "";
  #conflicts: readonly Conflict[] = [];

  /** @throws DecodeError when the snapshot is damaged */
  constructor(options: StateOptions) {
    this.#node = options.node;
    this.#random = options.random;
  }

  handle(input: StateInput, now: Instant): StateEffect[] {
    switch (input.type) {
      case "start":
        this.#name = input.name;
        return [];
      case "member-joined":
      case "member-left":
      case "user-message":
      case "stream-failed":
      case "wake":
        return [];
      case "create-network":
      case "remove-network":
      case "create-service":
      case "update-service":
      case "remove-service":
      case "update-node":
      case "remove-node":
      case "allocate":
      case "release":
        return this.#request(input, now);
      default:
        return unreachable(input);
    }
  }

  /** When to call `handle({ type: "wake" })` next; undefined when idle. */
  nextWakeup(): Instant | undefined {
    return undefined;
  }

  /** Everything that must survive a restart. */
  snapshot(_now: Instant): Uint8Array {
    return new Uint8Array(0);
  }

  /** In claim order: of two with one name the owner of the name comes first; `ingress` is the first of all. */
  networks(): NetworkView[] {
    return this.#networks().map((network) => {
      const conflicts = this.#conflicts.filter(
        (conflict) => "network" in conflict && conflict.network === network.id && !("service" in conflict),
      );
      return { ...network, conflicts, disabled: conflicts.some((conflict) => conflict.type === "vni") };
    });
  }

  network(id: NetworkId): NetworkView | undefined {
    return this.networks().find((network) => network.id === id);
  }

  /** By name, id or unique id prefix. @throws NetError `network-unknown`, `network-ambiguous` */
  findNetwork(reference: string): NetworkView {
    return findNamed("network", reference, this.networks());
  }

  services(): ServiceView[] {
    return this.#services().map((service) => ({
      ...service,
      conflicts: this.#conflicts.filter(
        (conflict) => "service" in conflict && conflict.service === service.id,
      ),
    }));
  }

  /** By name, id or unique id prefix. @throws NetError `service-unknown`, `service-ambiguous` */
  findService(reference: string): ServiceView {
    return findNamed("service", reference, this.services());
  }

  /** Every node that ever took part, removed ones included. */
  nodes(): NodeDefinition[] {
    return [];
  }

  /** `active` for a node nobody has said anything about. */
  availability(id: NodeId): "active" | "drain" {
    return this.#definitions.node(id)?.availability ?? "active";
  }

  conflicts(): readonly Conflict[] {
    return this.#conflicts;
  }

  /** Undefined while no ring of the network is known; external networks have none. */
  ringUse(_network: NetworkId): RingUse | undefined {
    return undefined;
  }

  /** What this node has given away, VIPs included; after a restart the agent releases what nobody has any more. */
  allocations(): Allocation[] {
    return [];
  }

  /** What was dropped, by reason. */
  counters(): ReadonlyMap<string, number> {
    return new Map();
  }

  #networks(): Network[] {
    const networks: Network[] = [INGRESS];
    for (const definition of this.#definitions.all())
      if (definition.kind === "network") networks.push(definition.value);
    return networks.sort(compareClaims);
  }

  #services(): Service[] {
    const services: Service[] = [];
    for (const definition of this.#definitions.all())
      if (definition.kind === "service") services.push(definition.value);
    return services.sort(compareClaims);
  }

  #request(input: StateRequest, now: Instant): StateEffect[] {
    try {
      return this.#perform(input, now);
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      return [{ type: "refused", request: input.request, error }];
    }
  }

  #perform(input: StateRequest, now: Instant): StateEffect[] {
    const { request } = input;
    switch (input.type) {
      case "create-network": {
        const network = makeNetwork(input.spec, {
          networks: this.#networks(),
          hostSubnets: input.hostSubnets,
          created: this.#definitions.clock + 1,
          ringSeeds: [this.#node],
          random: this.#random,
        });
        this.#definitions.write({ kind: "network", value: network }, this.#node, now);
        return [
          { type: "persist" },
          ...this.#changed([{ kind: "network", id: network.id }]),
          { type: "done", request, result: { type: "network", network } },
        ];
      }
      case "create-service":
      case "update-service": {
        const previous = input.type === "update-service" ? this.findService(input.service) : undefined;
        const id = previous?.id ?? (randomBase36(this.#random) as ServiceId);
        const spec =
          input.type === "create-service" || previous === undefined
            ? (input.spec as Parameters<typeof makeService>[1])
            : { ...specOf(previous), ...input.spec };
        const service = makeService(id, spec, previous, {
          services: this.#services(),
          networks: this.#networks(),
          created: this.#definitions.clock + 1,
        });
        this.#definitions.write({ kind: "service", value: service }, this.#node, now);
        return [
          { type: "persist" },
          ...this.#changed([{ kind: "service", id }]),
          { type: "done", request, result: { type: "service", service } },
        ];
      }
      case "remove-network":
      case "remove-service": {
        const kind = input.type === "remove-network" ? "network" : "service";
        const { id } =
          input.type === "remove-network" ? this.findNetwork(input.network) : this.findService(input.service);
        this.#definitions.remove(kind, id, this.#node, now);
        return [
          { type: "persist" },
          ...this.#changed([{ kind, id }]),
          { type: "done", request, result: { type: "removed", id } },
        ];
      }
      default:
        throw new NetError("not-yet", `${input.type} is not built yet`);
    }
  }

  #changed(changes: readonly { kind: "network" | "service" | "node"; id: string }[]): StateEffect[] {
    this.#conflicts = definitionConflicts(this.#networks(), this.#services());
    return [{ type: "definitions-changed", changes }];
  }
}
