import type { NodeId } from "../base/id.ts";
import { ipv4ToNumber } from "../base/ip.ts";
import type { Network } from "../wire/state/definition.ts";
import type { Ring } from "../wire/state/ring.ts";
import {
  AddressRing,
  compareRings,
  hostRange,
  rangeWithin,
  seedRing,
  type AddressRange,
} from "./address-ring.ts";
import type { AddressHolder } from "./request.ts";

/** One address given away by this node. */
export interface SpaceAllocation {
  readonly address: number;
  readonly holder: AddressHolder;
}

/**
 * The addresses of one network as this node gives them: from the ranges it owns in the ring, serially (next
 * after the last, which delays reuse). External networks have no ring: addresses come from the range the
 * operator gave to this node.
 */
export class AddressSpace {
  readonly network: Network;
  readonly range: AddressRange;
  readonly #self: NodeId;
  readonly #gateway: number;
  readonly #allocations = new Map<number, AddressHolder>();
  readonly #byHolder = new Map<string, number>();
  /** Virtual IPs in the definitions, ours and others': an inherited range may hold some. */
  readonly #vips = new Map<number, string[]>();
  #ring: AddressRing | undefined;
  #last = 0;

  constructor(network: Network, self: NodeId) {
    this.network = network;
    this.#self = self;
    this.range = hostRange(network.subnet);
    this.#gateway = ipv4ToNumber(network.gateway);
    const [seeder] = network.ringSeeds;
    if (seeder !== undefined && network.external === undefined) {
      const seed = seedRing(network.id, this.range, network.ringSeeds, { seeded: 0, seeder });
      this.#ring = new AddressRing(this.range, seed);
    }
  }

  get ring(): AddressRing | undefined {
    return this.#ring;
  }

  get last(): number {
    return this.#last;
  }

  *allocations(): Iterable<SpaceAllocation> {
    for (const [address, holder] of this.#allocations) yield { address, holder };
  }

  get allocationCount(): number {
    return this.#allocations.size;
  }

  restore(last: number, allocations: readonly SpaceAllocation[]): void {
    this.#last = last;
    for (const { address, holder } of allocations) this.#record(address, holder);
  }

  /** A service, named for people, has the virtual IP; two may, after a mishap. */
  addVip(address: number, service: string): void {
    this.#vips.set(address, [...(this.#vips.get(address) ?? []), service]);
  }

  dropVip(address: number, service: string): void {
    const left = (this.#vips.get(address) ?? []).filter((other) => other !== service);
    if (left.length === 0) this.#vips.delete(address);
    else this.#vips.set(address, left);
  }

  /** "merged": something changed; "replaced": our ring lost to an older one. */
  learn(ring: Ring): "same" | "merged" | "replaced" | "misfit" {
    if (!AddressRing.fits(this.range, ring) || this.network.external !== undefined) return "misfit";
    const order = this.#ring === undefined ? -1 : compareRings(ring, this.#ring.ring);
    if (order > 0) return "same";
    if (this.#ring !== undefined && order === 0) return this.#ring.merge(ring) ? "merged" : "same";
    const replaced = this.#ring !== undefined;
    this.#ring = new AddressRing(this.range, ring);
    return replaced ? "replaced" : "merged";
  }

  addressOf(holderId: string): number | undefined {
    return this.#byHolder.get(holderId);
  }

  /** Who has `address`, for people; undefined when it is free as far as this node knows. */
  holderOf(address: number): string | undefined {
    if (address === this.#gateway) return "the gateway";
    return this.#allocations.get(address)?.name ?? this.vipOwner(address);
  }

  vips(): Iterable<number> {
    return this.#vips.keys();
  }

  /** The service whose virtual IP `address` is, for people. */
  vipOwner(address: number): string | undefined {
    return this.#vips.get(address)?.[0];
  }

  /** Addresses this node may give: its ranges of the ring, or the external range. */
  ownRanges(): readonly AddressRange[] {
    const external = this.network.external;
    if (external === undefined) return this.#ring?.rangesOf(this.#self) ?? [];
    if (external.ipRange === undefined) return [];
    return [rangeWithin(this.network.subnet, external.ipRange)];
  }

  owns(address: number): boolean {
    if (address < this.range.first || address >= this.range.end) return false;
    if (this.network.external !== undefined) return true;
    return this.#ring?.find(address)?.entry.owner === this.#self;
  }

  /** The next free address of ours after the last one given; undefined when there is none. */
  allocate(holder: AddressHolder): number | undefined {
    const ranges = this.ownRanges();
    const after = ranges.map(({ first, end }) => ({ first: Math.max(first, this.#last + 1), end }));
    for (const { first, end } of [...after, ...ranges]) {
      for (let address = first; address < end; address++) {
        if (this.#isUsed(address)) continue;
        this.#last = address;
        this.#record(address, holder);
        this.#refreshFree(address);
        return address;
      }
    }
    return undefined;
  }

  /** Gives a certain address, which must be ours and free. */
  take(address: number, holder: AddressHolder): void {
    this.#record(address, holder);
    this.#refreshFree(address);
  }

  /** Whether it was given away by this node. */
  release(address: number): boolean {
    const holder = this.#allocations.get(address);
    if (holder === undefined) return false;
    this.#allocations.delete(address);
    this.#byHolder.delete(holder.id);
    this.#refreshFree(address);
    return true;
  }

  /** The upper half of our largest free run, to give away; the whole run when it is one address. */
  spare(): AddressRange | undefined {
    let best: AddressRange | undefined;
    for (const run of this.#freeRuns()) {
      if (best === undefined || run.end - run.first > best.end - best.first) best = run;
    }
    if (best === undefined) return undefined;
    return { first: best.first + Math.floor((best.end - best.first) / 2), end: best.end };
  }

  give(part: AddressRange, to: NodeId): boolean {
    const given = this.#ring?.give(part, this.#self, to) ?? false;
    if (given) this.#refreshAround(part);
    return given;
  }

  /** Starts of removed nodes' ranges that pass to this node. */
  inheritance(removed: ReadonlySet<NodeId>): number[] {
    return this.#ring?.inheritance(this.#self, removed) ?? [];
  }

  inherit(starts: readonly number[]): void {
    this.#ring?.inherit(this.#self, starts);
    for (const start of starts) this.#refreshFree(start, true);
  }

  /** What we gave away and do not own any more: after losing to another ring, or after our id was removed. */
  *strays(): Iterable<SpaceAllocation> {
    if (this.network.external !== undefined) return;
    for (const allocation of this.allocations()) if (!this.owns(allocation.address)) yield allocation;
  }

  freeIn(range: AddressRange): number {
    let free = range.end - range.first;
    for (const address of this.#used()) if (address >= range.first && address < range.end) free--;
    return free;
  }

  #isUsed(address: number): boolean {
    return address === this.#gateway || this.#allocations.has(address) || this.#vips.has(address);
  }

  *#used(): Iterable<number> {
    yield this.#gateway;
    yield* this.#allocations.keys();
    for (const vip of this.#vips.keys()) if (!this.#allocations.has(vip) && vip !== this.#gateway) yield vip;
  }

  *#freeRuns(): Iterable<AddressRange> {
    const used = [...this.#used()].sort((a, b) => a - b);
    for (const { first, end } of this.ownRanges()) {
      let from = first;
      for (const address of used) {
        if (address < from) continue;
        if (address >= end) break;
        if (address > from) yield { first: from, end: address };
        from = address + 1;
      }
      if (from < end) yield { first: from, end };
    }
  }

  #record(address: number, holder: AddressHolder): void {
    this.#allocations.set(address, holder);
    this.#byHolder.set(holder.id, address);
  }

  #refreshAround(part: AddressRange): void {
    for (const address of [part.first - 1, part.end]) this.#refreshFree(address, true);
  }

  /**
   * Tells others how much is free in our range around `address`, but only when it halved or doubled: a hint must
   * not cost a change of the ring per attachment.
   */
  #refreshFree(address: number, exact = false): void {
    const range = this.#ring?.find(address);
    if (range === undefined || range.entry.owner !== this.#self) return;
    const free = this.freeIn(range);
    const rough = (count: number): number => Math.floor(Math.log2(count + 1));
    if (exact ? free !== range.entry.free : rough(free) !== rough(range.entry.free))
      this.#ring?.setFree(range.first, free);
  }
}
