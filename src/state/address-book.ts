import type { NetworkId, NodeId } from "../base/id.ts";
import { ipv4FromNumber, ipv4ToNumber } from "../base/ip.ts";
import type { Network, Service } from "../wire/state/definition.ts";
import type { SpaceSnapshot } from "../wire/state/snapshot.ts";
import { AddressSpace } from "./address-space.ts";
import type { Conflict } from "./conflicts.ts";
import type { AddressHolder } from "./request.ts";
import { serviceOfHolder } from "./service-jobs.ts";

interface Vip {
  readonly network: NetworkId;
  readonly address: number;
  readonly name: string;
}

/** The address spaces of all networks known here, told of the virtual IPs that services have in them. */
export class AddressBook {
  readonly #self: NodeId;
  readonly #spaces = new Map<NetworkId, AddressSpace>();
  /** By service, as the spaces know them. */
  readonly #vips = new Map<string, readonly Vip[]>();

  constructor(self: NodeId) {
    this.#self = self;
  }

  get spaces(): ReadonlyMap<NetworkId, AddressSpace> {
    return this.#spaces;
  }

  add(network: Network): AddressSpace {
    const space = new AddressSpace(network, this.#self);
    this.#spaces.set(network.id, space);
    // Services may have been heard of before their network.
    for (const vips of this.#vips.values())
      for (const vip of vips) if (vip.network === network.id) space.addVip(vip.address, vip.name);
    return space;
  }

  remove(network: NetworkId): void {
    this.#spaces.delete(network);
  }

  /** The service has these virtual IPs now; undefined: it is gone. */
  setService(id: string, service: Service | undefined): void {
    for (const { network, address, name } of this.#vips.get(id) ?? [])
      this.#spaces.get(network)?.dropVip(address, name);
    this.#vips.delete(id);
    if (service === undefined) return;
    const vips = service.networks.flatMap(({ network, vip }) =>
      vip === undefined ? [] : [{ network, address: ipv4ToNumber(vip), name: `service ${service.name}` }],
    );
    this.#vips.set(id, vips);
    for (const { network, address, name } of vips) this.#spaces.get(network)?.addVip(address, name);
  }

  /** Takes back what a holder has on every network; returns the networks. */
  releaseHolder(holderId: string): NetworkId[] {
    const networks: NetworkId[] = [];
    for (const space of this.#spaces.values()) {
      const address = space.addressOf(holderId);
      if (address === undefined) continue;
      space.release(address);
      networks.push(space.network.id);
    }
    return networks;
  }

  snapshot(): SpaceSnapshot[] {
    return [...this.#spaces.values()].map((space) => ({
      network: space.network.id,
      ...(space.ring === undefined ? {} : { ring: space.ring.ring }),
      last: space.last,
      allocations: [...space.allocations()],
    }));
  }

  /** Virtual IPs of services that were never written are free again. */
  restore(snapshots: readonly SpaceSnapshot[], isService: (id: string) => boolean): void {
    for (const { network, ring, last, allocations } of snapshots) {
      const space = this.#spaces.get(network);
      if (space === undefined) continue;
      if (ring !== undefined) space.learn(ring);
      const isHeld = (holder: AddressHolder): boolean => {
        const service = serviceOfHolder(holder.id);
        return service === undefined || isService(service);
      };
      space.restore(
        last,
        allocations.filter(({ holder }) => isHeld(holder)),
      );
    }
  }

  /** Addresses that are not ours to give any more, and those that are a service's as well. */
  *conflicts(): Iterable<Conflict> {
    for (const space of this.#spaces.values()) {
      for (const { address, holder } of space.strays())
        yield conflictOf(space.network, address, holder, "which belongs to another node now");
      for (const { address, holder } of space.allocations()) {
        const service = space.vipOwner(address);
        if (service !== undefined && serviceOfHolder(holder.id) === undefined)
          yield conflictOf(space.network, address, holder, `which is the virtual IP of ${service}`);
      }
    }
  }
}

function conflictOf(network: Network, address: number, holder: AddressHolder, why: string): Conflict {
  const ip = ipv4FromNumber(address);
  const cure =
    serviceOfHolder(holder.id) === undefined
      ? "attach it again to get another address"
      : "remove it and create it again";
  return {
    type: "address",
    network: network.id,
    address: ip,
    holder: holder.id,
    text: `${holder.name} has ${ip} on ${network.name}, ${why}; ${cure}`,
  };
}
