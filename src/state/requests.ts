/** What operators and endpoints ask for: checked, then written or allocated. */
import { unreachable } from "../base/assert.ts";
import { utf8 } from "../base/bytes.ts";
import { NetError } from "../base/error.ts";
import { randomBase36, type NetworkId, type NodeId, type ServiceId } from "../base/id.ts";
import { tryParseIp, type IpAddr } from "../base/ip.ts";
import { sample, type Random } from "../base/random.ts";
import type { Instant } from "../base/time.ts";
import { MAX_RING_SEEDS, type Network, type NodeDefinition, type Service } from "../wire/state/definition.ts";
import type { Entry } from "../wire/state/entry.ts";
import type { Addressing } from "./addressing.ts";
import type { Want, WantOutcome } from "./allocator.ts";
import type { Definitions } from "./definitions.ts";
import { printable } from "./find.ts";
import type { Members } from "./members.ts";
import { makeNetwork } from "./network-rules.ts";
import type { Outbox } from "./outbox.ts";
import type { AddressHolder, StateRequest } from "./request.ts";
import { ServiceJobs, type ServiceMode } from "./service-jobs.ts";
import { laidOver, makeService } from "./service-rules.ts";
import type { NetworkView, ServiceView } from "./views.ts";

export interface RequestsOptions {
  readonly node: NodeId;
  readonly random: Random;
  readonly members: Members;
  readonly outbox: Outbox;
  readonly addressing: Addressing;
  readonly definitions: Definitions;
  /** In claim order. */
  readonly networks: () => readonly Network[];
  readonly services: () => readonly Service[];
  /** By name, id or unique id prefix. @throws NetError */
  readonly findNetwork: (reference: string) => NetworkView;
  readonly findService: (reference: string) => ServiceView;
  readonly findNode: (reference: string) => NodeDefinition;
  /** A local write of a definition, with all that follows from it. */
  readonly write: (entry: Entry, now: Instant) => void;
  readonly addExternal: (network: Network, now: Instant) => void;
  /** Whether it was one. */
  readonly removeExternal: (id: NetworkId, now: Instant) => boolean;
}

/** Performs requests; keeps those that wait for an address. */
export class Requests {
  readonly #options: RequestsOptions;
  readonly #jobs: ServiceJobs;
  /** Requests of the caller for addresses, by want. */
  readonly #requests = new Map<number, number>();
  #nextWant = 0;

  constructor(options: RequestsOptions) {
    this.#options = options;
    const { node, definitions, outbox, addressing } = options;
    this.#jobs = new ServiceJobs({
      outbox,
      allocator: addressing.allocator,
      validate: (id, mode) => this.#serviceOf(id, mode),
      want: (network, holder) => this.#newWant(network, holder),
      release: (holderId) => addressing.releaseHolder(holderId),
      write: (value, at) => options.write(definitions.write({ kind: "service", value }, node, at), at),
    });
  }

  /** Answers with one `done` or `refused`, now or when an address is there. */
  handle(input: StateRequest, now: Instant): void {
    try {
      this.#perform(input, now);
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      this.#options.outbox.refuse(input.request, error);
    }
  }

  #perform(input: StateRequest, now: Instant): void {
    const { request } = input;
    switch (input.type) {
      case "create-network": {
        const network = makeNetwork(input.spec, {
          networks: this.#options.networks(),
          hostSubnets: input.hostSubnets,
          created: this.#options.definitions.clock + 1,
          ringSeeds: this.#ringSeeds(),
          random: this.#options.random,
        });
        if (network.external === undefined)
          this.#options.write(
            this.#options.definitions.write({ kind: "network", value: network }, this.#options.node, now),
            now,
          );
        else this.#options.addExternal(network, now);
        return this.#options.outbox.done(request, { type: "network", network });
      }
      case "remove-network":
        return this.#removeNetwork(input, now);
      case "create-service": {
        const id = randomBase36(this.#options.random) as ServiceId;
        return this.#jobs.begin(request, id, { type: "create", spec: input.spec }, now);
      }
      case "update-service": {
        const { id } = this.#options.findService(input.service);
        return this.#jobs.begin(request, id, { type: "update", spec: input.spec }, now);
      }
      case "remove-service": {
        const { id } = this.#options.findService(input.service);
        this.#options.write(this.#options.definitions.remove("service", id, this.#options.node, now), now);
        return this.#options.outbox.done(request, { type: "removed", id });
      }
      case "update-node": {
        const known = this.#options.findNode(input.node);
        if (known.removed)
          throw new NetError("node-removed", `update node ${known.name}: it was removed from the cluster`);
        const node: NodeDefinition = { ...known, availability: input.availability };
        this.#options.write(
          this.#options.definitions.write({ kind: "node", value: node }, this.#options.node, now),
          now,
        );
        return this.#options.outbox.done(request, { type: "node", node });
      }
      case "remove-node":
        return this.#removeNode(request, input.node, now);
      case "allocate":
        return this.#allocate(input, now);
      case "release": {
        this.#options.addressing.release(input.network, input.address);
        return this.#options.outbox.done(request, { type: "released" });
      }
      default:
        return unreachable(input);
    }
  }

  #removeNetwork(input: StateRequest & { readonly type: "remove-network" }, now: Instant): void {
    const network = this.#options.findNetwork(input.network);
    const refuse = (code: string, why: string): never => {
      throw new NetError(code, `remove network ${network.name}: ${why}`);
    };
    if (network.ingress) refuse("network-predefined", "it carries the published ports and always exists");
    const services = this.#options
      .services()
      .filter((service) => service.networks.some((attachment) => attachment.network === network.id));
    if (services.length > 0)
      refuse(
        "network-in-use",
        `${inUse(
          "service",
          services.map(({ name }) => name),
        )}; remove ${services.length === 1 ? "it" : "them"} first`,
      );
    if (input.endpoints.length > 0)
      refuse(
        "network-in-use",
        `${inUse("endpoint", input.endpoints)}; detach ${input.endpoints.length === 1 ? "it" : "them"} first`,
      );
    if (!this.#options.removeExternal(network.id, now))
      this.#options.write(
        this.#options.definitions.remove("network", network.id, this.#options.node, now),
        now,
      );
    this.#options.outbox.done(input.request, { type: "removed", id: network.id });
  }

  #removeNode(request: number, reference: string, now: Instant): void {
    const known = this.#options.findNode(reference);
    if (known.id === this.#options.node)
      throw new NetError("node-self", `remove node ${known.name}: it is this node; run it on another one`);
    if (this.#options.members.nameOf(known.id) !== undefined)
      throw new NetError(
        "node-alive",
        `remove node ${known.name}: it is a member; stop its agent first (netctl leave there), or its addresses could be given twice`,
      );
    if (!known.removed) {
      const value: NodeDefinition = { ...known, removed: true };
      this.#options.write(
        this.#options.definitions.write({ kind: "node", value }, this.#options.node, now),
        now,
      );
    }
    this.#options.outbox.done(request, { type: "removed", id: known.id });
  }

  #allocate(input: StateRequest & { readonly type: "allocate" }, now: Instant): void {
    const network = this.#options.findNetwork(input.network);
    const holder = { id: input.holder.id, name: printable(input.holder.name) };
    if (holder.id === "" || utf8(holder.id).length > 128)
      throw new NetError(
        "holder-invalid",
        `give an address on ${network.name}: a holder id has 1 to 128 bytes`,
      );
    if (network.disabled) {
      const why = network.conflicts.find((conflict) => conflict.type === "vni")?.text ?? "";
      throw new NetError("network-disabled", `give ${holder.name} an address on ${network.name}: ${why}`);
    }
    const address = input.address === undefined ? undefined : tryParseIp(input.address);
    if (input.address !== undefined && address === undefined)
      throw new NetError(
        "address-invalid",
        `give ${holder.name} address '${printable(input.address)}' on ${network.name}: not an IP address`,
      );
    const want = this.#newWant(network.id, holder, address);
    this.#requests.set(want.id, input.request);
    this.#options.addressing.allocator.want(want, now);
  }

  #newWant(network: NetworkId, holder: AddressHolder, address?: IpAddr): Want {
    const id = ++this.#nextWant;
    return { id, network, holder, ...(address === undefined ? {} : { address }) };
  }

  /** An address asked for is there, or will never be. */
  settled(outcome: WantOutcome, now: Instant): void {
    const { want } = outcome;
    const request = this.#requests.get(want.id);
    if (request !== undefined) {
      this.#requests.delete(want.id);
      if ("error" in outcome) return this.#options.outbox.refuse(request, outcome.error);
      const prefixLength =
        this.#options.addressing.spaces.get(want.network)?.network.subnet.prefixLength ?? 32;
      return this.#options.outbox.done(request, {
        type: "address",
        network: want.network,
        address: { ip: outcome.address, prefixLength },
      });
    }
    this.#jobs.settled(outcome, now);
  }

  /** What a service job asks for, checked against what is known now. @throws NetError */
  #serviceOf(id: ServiceId, mode: ServiceMode): Service {
    const previous = this.#options.definitions.service(id);
    if (mode.type === "update" && previous === undefined)
      throw new NetError("service-unknown", `update service ${id}: it was removed meanwhile`);
    return makeService(id, mode.type === "create" ? mode.spec : laidOver(previous, mode.spec), previous, {
      services: this.#options.services(),
      networks: this.#options.networks(),
      created: this.#options.definitions.clock + 1,
    });
  }

  /** This node and some members, among whom a new network's addresses are divided. */
  #ringSeeds(): NodeId[] {
    const others = this.#options.members
      .ids()
      .filter((id) => this.#options.definitions.node(id)?.removed !== true);
    return [this.#options.node, ...sample(this.#options.random, others, MAX_RING_SEEDS - 1).sort()];
  }
}

function inUse(kind: string, names: readonly string[]): string {
  if (names.length === 1) return `${kind} ${names[0]} is on it`;
  const more = names.length <= 5 ? "" : ` and ${names.length - 5} more`;
  return `${kind}s ${names.slice(0, 5).join(", ")}${more} are on it`;
}
