import { NetError } from "../base/error.ts";
import type { NetworkId, NodeId } from "../base/id.ts";
import { formatCidr, ipv4FromNumber, ipv4ToNumber, isIpv4, subnetContains, type IpAddr } from "../base/ip.ts";
import { randomInt, type Random } from "../base/random.ts";
import { after, earliest, type Instant } from "../base/time.ts";
import type { StateMessage } from "../wire/state/message.ts";
import type { Ring } from "../wire/state/ring.ts";
import type { AddressSpace } from "./address-space.ts";
import type { Conflict } from "./conflicts.ts";
import type { Members } from "./members.ts";
import type { Outbox } from "./outbox.ts";
import type { AddressHolder } from "./request.ts";

/** Somebody wants an address; `id` is the caller's. */
export interface Want {
  readonly id: number;
  readonly network: NetworkId;
  readonly holder: AddressHolder;
  readonly address?: IpAddr;
}

export type WantOutcome =
  { readonly want: Want; readonly address: IpAddr } | { readonly want: Want; readonly error: NetError };

export interface AllocatorOptions {
  readonly node: NodeId;
  readonly random: Random;
  readonly members: Members;
  readonly outbox: Outbox;
  readonly askMs: number;
  readonly allocateMs: number;
  /** For errors: who is that? */
  readonly nameOf: (node: NodeId) => string;
  readonly isRemoved: (node: NodeId) => boolean;
  /** Why this node must not give addresses, if so. */
  readonly blocked: (now: Instant) => Conflict | undefined;
  /** Takes in a ring that came with an answer. */
  readonly learn: (ring: Ring, now: Instant) => void;
  /** The ring was changed here. */
  readonly changed: (network: NetworkId) => void;
}

interface PendingWant {
  readonly want: Want;
  readonly deadline: Instant;
}

/** One question to one owner at a time. */
interface Ask {
  readonly id: number;
  readonly network: NetworkId;
  /** Of a question for one address. */
  readonly want?: Want;
  readonly to: NodeId;
  readonly deadline: Instant;
  /** Owners asked before, with what they said. */
  readonly tried: ReadonlyMap<NodeId, string>;
}

/** Bounds what a burst of attachments may hold while owners are silent. */
const MAX_PENDING = 4096;

/** Gives addresses: from our own ranges at once, else after asking those who own some. */
export class Allocator {
  readonly #options: AllocatorOptions;
  readonly #spaces: ReadonlyMap<NetworkId, AddressSpace>;
  readonly #pending = new Map<number, PendingWant>();
  readonly #asks = new Map<number, Ask>();
  #nextAsk = 0;
  #settled: WantOutcome[] = [];

  constructor(options: AllocatorOptions, spaces: ReadonlyMap<NetworkId, AddressSpace>) {
    this.#options = options;
    this.#spaces = spaces;
    // Answers to a life before this one must not match.
    this.#nextAsk = randomInt(options.random, 0x40000000);
  }

  /** Wants answered since the last call. */
  takeSettled(): WantOutcome[] {
    const settled = this.#settled;
    this.#settled = [];
    return settled;
  }

  nextWakeup(): Instant | undefined {
    let next: Instant | undefined;
    for (const { deadline } of this.#pending.values()) next = earliest(next, deadline);
    for (const { deadline } of this.#asks.values()) next = earliest(next, deadline);
    return next;
  }

  want(want: Want, now: Instant): void {
    if (this.#pending.size >= MAX_PENDING) {
      this.#fail(want, "address-busy", "too many requests for addresses are waiting; try again");
      return;
    }
    this.#pending.set(want.id, { want, deadline: after(now, this.#options.allocateMs) });
    this.#serve(want, now);
  }

  /** Drops wants that nobody waits for any more. */
  forget(ids: readonly number[]): void {
    for (const id of ids) this.#pending.delete(id);
  }

  /** After a change of the ring: perhaps what is wanted is ours now. */
  retry(network: NetworkId, now: Instant): void {
    for (const { want } of [...this.#pending.values()]) if (want.network === network) this.#serve(want, now);
  }

  /** The network is gone. */
  abandon(network: NetworkId): void {
    for (const { want } of [...this.#pending.values()])
      if (want.network === network) this.#fail(want, "network-unknown", "the network was removed meanwhile");
    for (const [id, ask] of this.#asks) if (ask.network === network) this.#asks.delete(id);
  }

  /** The member cannot be reached: do not wait for its answer. */
  unreachable(node: NodeId, now: Instant): void {
    for (const ask of [...this.#asks.values()])
      if (ask.to === node) this.#askNext(ask, "cannot be reached", now);
  }

  wake(now: Instant): void {
    for (const ask of [...this.#asks.values()])
      if (ask.deadline <= now) this.#askNext(ask, "did not answer", now);
    for (const { want, deadline } of [...this.#pending.values()]) {
      if (deadline > now) continue;
      const space = this.#spaces.get(want.network);
      const why =
        space?.ring === undefined
          ? "no node has told how its addresses are divided yet; join the cluster, or try again in a few seconds"
          : `no owner of addresses gave one in time (${this.#ownersText(space, new Map())})`;
      this.#fail(want, "address-timeout", why);
    }
  }

  /** Somebody asks us for addresses. */
  onAsk(message: StateMessage & { readonly type: "ask" }, now: Instant): void {
    const { outbox, node, members } = this.#options;
    const { sender, ask, network } = message;
    if (members.nameOf(sender) === undefined) return;
    const space = this.#spaces.get(network);
    const ring = space?.ring;
    const refuse = (reason: (StateMessage & { type: "refusal" })["reason"], detail = ""): void => {
      const known = ring === undefined ? {} : { ring: ring.ring };
      outbox.stream(sender, { type: "refusal", sender: node, ask, network, reason, detail, ...known });
    };
    if (space === undefined || ring === undefined) return refuse("unknown-network");
    if (this.#options.isRemoved(sender) || this.#options.blocked(now) !== undefined) return refuse("removed");
    const part = message.address === undefined ? space.spare() : singleAddress(message.address);
    if (part === undefined) return refuse("full");
    if (message.address !== undefined) {
      // An earlier answer was lost: the ring says that it is the asker's already.
      if (ring.find(part.first)?.entry.owner !== node) return refuse("not-owner");
      const holder = space.holderOf(part.first);
      if (holder !== undefined) return refuse("taken", holder.slice(0, 160));
    }
    if (!space.give(part, sender)) return refuse("full", "too fragmented");
    outbox.saveFirst();
    this.#options.changed(network);
    outbox.stream(sender, { type: "grant", sender: node, ask, ring: ring.ring });
    // The range may have been what one of our own wants was about to take.
    this.retry(network, now);
  }

  onGrant(message: StateMessage & { readonly type: "grant" }, now: Instant): void {
    const ask = this.#answered(message.ask, message.sender);
    // Its ranges may be in an heir's hands already.
    if (this.#options.isRemoved(message.sender)) return;
    this.#options.learn(message.ring, now);
    if (ask === undefined) return;
    this.#asks.delete(ask.id);
    this.retry(ask.network, now);
  }

  onRefusal(message: StateMessage & { readonly type: "refusal" }, now: Instant): void {
    const ask = this.#answered(message.ask, message.sender);
    if (message.ring !== undefined) this.#options.learn(message.ring, now);
    // Learning the ring may have settled it.
    if (ask === undefined || !this.#asks.has(ask.id)) return;
    if (message.reason === "taken" && ask.want !== undefined) {
      this.#asks.delete(ask.id);
      const owner = this.#options.nameOf(message.sender);
      const holder = printableHolder(message.detail);
      this.#fail(ask.want, "address-taken", `it is taken by ${holder} (on ${owner}); choose another`);
      return;
    }
    const said = {
      full: "has none left",
      taken: "has none left",
      "not-owner": "gave them away",
      "unknown-network": "does not know the network yet",
      removed: "was removed",
    };
    this.#askNext(ask, said[message.reason], now);
  }

  #answered(id: number, sender: NodeId): Ask | undefined {
    const ask = this.#asks.get(id);
    return ask?.to === sender ? ask : undefined;
  }

  #serve(want: Want, now: Instant): void {
    const space = this.#spaces.get(want.network);
    if (space === undefined) return this.#fail(want, "network-unknown", "the network is not known");
    const blocked = this.#options.blocked(now);
    if (blocked !== undefined) return this.#fail(want, blocked.type, blocked.text);
    const held = space.addressOf(want.holder.id);
    if (held !== undefined) {
      const address = ipv4FromNumber(held);
      if (want.address === undefined || want.address === address) return this.#settle(want, held);
      return this.#fail(want, "address-held", `${want.holder.name} has ${address} already; detach it first`);
    }
    if (want.address !== undefined) return this.#serveAddress(want, want.address, space, now);
    const address = space.allocate(want.holder);
    if (address !== undefined) return this.#settle(want, address);
    if (space.network.external !== undefined) {
      const why =
        space.network.external.ipRange === undefined
          ? "an external network has no addresses of its own; give one with --ip, or a range with --ip-range when it is created"
          : `the range ${formatCidr(space.network.external.ipRange)} given to this node is full; give an address with --ip`;
      return this.#fail(want, "address-none", why);
    }
    if (space.ring === undefined) return;
    if (![...this.#asks.values()].some((ask) => ask.network === want.network && ask.want === undefined))
      this.#ask(space, undefined, new Map(), now);
  }

  #serveAddress(want: Want, text: IpAddr, space: AddressSpace, now: Instant): void {
    const { network, range } = space;
    if (!isIpv4(text) || !subnetContains(network.subnet, text))
      return this.#fail(want, "address-outside", `it is outside ${formatCidr(network.subnet)}`);
    const address = ipv4ToNumber(text);
    if (address < range.first || address >= range.end)
      return this.#fail(want, "address-reserved", "it is the network or broadcast address");
    if (text === network.gateway) return this.#fail(want, "address-reserved", "it is the gateway");
    if (space.owns(address)) {
      const holder = space.holderOf(address);
      if (holder !== undefined)
        return this.#fail(want, "address-taken", `it is taken by ${holder} (on this node); choose another`);
      space.take(address, want.holder);
      return this.#settle(want, address);
    }
    if (space.ring === undefined) return;
    if (![...this.#asks.values()].some((ask) => ask.want?.id === want.id))
      this.#ask(space, want, new Map(), now);
  }

  /** Asks the next owner, best first; fails what waits for it when there is none left to ask. */
  #ask(space: AddressSpace, want: Want | undefined, tried: ReadonlyMap<NodeId, string>, now: Instant): void {
    const to = this.#chooseOwner(space, want, tried);
    if (to === undefined) return this.#exhausted(space, want, tried);
    const id = (this.#nextAsk = (this.#nextAsk + 1) >>> 0);
    const ask: Ask = {
      id,
      network: space.network.id,
      ...(want === undefined ? {} : { want }),
      to,
      deadline: after(now, this.#options.askMs),
      tried,
    };
    this.#asks.set(id, ask);
    this.#options.outbox.stream(to, {
      type: "ask",
      sender: this.#options.node,
      ask: id,
      network: space.network.id,
      ...(want?.address === undefined ? {} : { address: want.address }),
    });
  }

  #askNext(ask: Ask, said: string, now: Instant): void {
    this.#asks.delete(ask.id);
    const space = this.#spaces.get(ask.network);
    if (space === undefined) return;
    const waited =
      ask.want === undefined ? this.#waiting(ask.network).length > 0 : this.#pending.has(ask.want.id);
    if (!waited) return;
    // Each owner is asked once, so this ends.
    this.#ask(space, ask.want, new Map([...ask.tried, [ask.to, said]]), now);
  }

  #chooseOwner(
    space: AddressSpace,
    want: Want | undefined,
    tried: ReadonlyMap<NodeId, string>,
  ): NodeId | undefined {
    const { members, node } = this.#options;
    const canAsk = (owner: NodeId): boolean =>
      owner !== node && !tried.has(owner) && members.nameOf(owner) !== undefined;
    if (want?.address !== undefined) {
      const owner = space.ring?.find(ipv4ToNumber(want.address))?.entry.owner;
      return owner !== undefined && canAsk(owner) ? owner : undefined;
    }
    const free = new Map<NodeId, number>();
    for (const { entry } of space.ring?.ranges() ?? [])
      free.set(entry.owner, (free.get(entry.owner) ?? 0) + entry.free);
    let best: { readonly owner: NodeId; readonly free: number } | undefined;
    for (const [owner, count] of free) {
      if (canAsk(owner) && (best === undefined || count > best.free)) best = { owner, free: count };
    }
    return best?.owner;
  }

  #exhausted(space: AddressSpace, want: Want | undefined, tried: ReadonlyMap<NodeId, string>): void {
    if (want?.address !== undefined) {
      const owner = space.ring?.find(ipv4ToNumber(want.address))?.entry.owner;
      const name = owner === undefined ? "nobody" : this.#options.nameOf(owner);
      const said = (owner && tried.get(owner)) ?? "cannot be reached";
      const cure = "start that node, or remove it for good with netctl node rm, or choose another address";
      return this.#fail(want, "address-unreachable", `its owner ${name} ${said}; ${cure}`);
    }
    for (const waiting of this.#waiting(space.network.id))
      this.#fail(
        waiting,
        "address-none",
        `no address left in ${space.network.name} (${formatCidr(space.network.subnet)}): ${this.#ownersText(space, tried)}`,
      );
  }

  /** Wants of any address. */
  #waiting(network: NetworkId): Want[] {
    return [...this.#pending.values()]
      .map(({ want }) => want)
      .filter((want) => want.network === network && want.address === undefined);
  }

  /** Who owns the addresses of a network and why none of them gave any. */
  #ownersText(space: AddressSpace, tried: ReadonlyMap<NodeId, string>): string {
    const { node, members, nameOf } = this.#options;
    const owners = new Map<NodeId, { size: number; free: number }>();
    for (const { entry, first, end } of space.ring?.ranges() ?? []) {
      const sum = owners.get(entry.owner) ?? { size: 0, free: 0 };
      owners.set(entry.owner, { size: sum.size + end - first, free: sum.free + entry.free });
    }
    const texts = [...owners].slice(0, 8).map(([owner, { size, free }]) => {
      if (owner === node) return `this node owns ${size}, all in use`;
      const said =
        tried.get(owner) ??
        (members.nameOf(owner) === undefined
          ? `is away and had ${free} free: start it or netctl node rm it`
          : "was not asked");
      return `${nameOf(owner)} owns ${size} and ${said}`;
    });
    if (owners.size > texts.length) texts.push(`${owners.size - texts.length} more owners`);
    return texts.join("; ");
  }

  #settle(want: Want, address: number): void {
    this.#pending.delete(want.id);
    this.#options.outbox.saveFirst();
    this.#options.changed(want.network);
    this.#settled.push({ want, address: ipv4FromNumber(address) });
  }

  #fail(want: Want, code: string, why: string): void {
    this.#pending.delete(want.id);
    const name = this.#spaces.get(want.network)?.network.name ?? want.network;
    const what = want.address === undefined ? "an address" : `address ${want.address}`;
    const error = new NetError(code, `give ${want.holder.name} ${what} on ${name}: ${why}`);
    this.#settled.push({ want, error });
  }
}

function singleAddress(address: IpAddr): { readonly first: number; readonly end: number } {
  const number = ipv4ToNumber(address);
  return { first: number, end: number + 1 };
}

/** What another node says goes to a terminal. */
function printableHolder(text: string): string {
  return text === "" ? "somebody" : text.replace(/[^\x20-\x7e]/g, "?");
}
