/**
 * The underlay's half of the fast path: which device leads to each VTEP just now, and a program at each of them that
 * takes frames in. A VTEP without a way is spoken with over the slow path.
 */
import { NetError } from "../base/error.ts";
import type { IpAddr } from "../base/ip.ts";
import {
  encodeVtep,
  encodeVtepKey,
  type FastMaps,
  type FastVtep,
  VTEP_KEY_BYTES,
  VTEP_VALUE_BYTES,
} from "../overlay/fast-path-maps.ts";
import { receiveProgram } from "../overlay/fast-path.ts";
import { decodeRoute, encodeRouteLookup, RTN } from "../wire/netlink/route.ts";
import { RTM, RTNLGRP } from "../wire/netlink/rtnetlink.ts";
import { BpfMap, type BpfLink, BpfProgram } from "./bpf.ts";
import { IpsecPolicies } from "./ipsec.ts";
import { findLink } from "./links.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

const MAX_VTEPS = 1 << 16;
/** IPsec policies and what is said of VTEPs are looked at this often; ways, when something has changed. */
const LOOK_MS = 1_000;
/** One look of so many asks for all ways: of rules and of path MTUs nobody tells us. */
const FULL_LOOKS = 30;
/** Changes that come together are looked at together. */
const BREATH_MS = 10;

export interface FastWaysOptions {
  /** Has the underlay. */
  readonly host: Netns;
  /** Our own data-path address. */
  readonly source: IpAddr;
  readonly port: number;
  /** Descriptor of the map of endpoints. */
  readonly endpoints: number;
  /** Of that of flows, where streams are left to the device. */
  readonly streams: number | undefined;
  /** Why a VTEP is not to be spoken with over the fast path; undefined when it may be. */
  readonly refusal: (vtep: IpAddr) => string | undefined;
}

export class FastWays implements Disposable {
  readonly maps: FastMaps;
  readonly #options: FastWaysOptions;
  readonly #map = new BpfMap("hash", VTEP_KEY_BYTES, VTEP_VALUE_BYTES, MAX_VTEPS);
  readonly #routes: NetlinkSocket;
  readonly #events: NetlinkSocket;
  readonly #ipsec: IpsecPolicies;
  /** By underlay device. */
  readonly #receivers = new Map<number, BpfLink>();
  /** How many endpoints are there. */
  readonly #uses = new Map<IpAddr, number>();
  /** As they are in the map. */
  readonly #ways = new Map<IpAddr, FastVtep>();
  readonly #refused = new Map<IpAddr, string>();
  readonly #timer: NodeJS.Timeout;
  #soon: NodeJS.Timeout | undefined;
  #looks = 0;
  #problem = "";

  /** @throws NetError where the kernel has no BPF, or refuses it */
  constructor(options: FastWaysOptions) {
    this.#options = options;
    this.maps = { endpoints: options.endpoints, vteps: this.#map.fd, streams: options.streams };
    this.#routes = new NetlinkSocket("route", options.host);
    this.#events = new NetlinkSocket("route", options.host);
    this.#ipsec = new IpsecPolicies(options.host);
    const changed = (): void => this.lookSoon();
    this.#events.subscribe({
      groups: [RTNLGRP.link, RTNLGRP.ipv4Address, RTNLGRP.ipv4Route],
      onMessage: changed,
      onOverrun: changed,
    });
    this.#timer = setInterval(() => this.#look(++this.#looks % FULL_LOOKS === 0), LOOK_MS).unref();
  }

  /** VTEPs that are spoken with over the fast path. */
  get size(): number {
    return this.#ways.size;
  }

  /** Why not all, or what went wrong. */
  get reason(): string {
    if (this.#problem !== "") return this.#problem;
    const refused = [...this.#refused.values()][0];
    const without = [...this.#uses.keys()].find((vtep) => !this.#ways.has(vtep));
    return refused ?? (without === undefined ? "" : `no Ethernet device leads to ${without}`);
  }

  /** One more endpoint is there. */
  use(vtep: IpAddr): void {
    const uses = this.#uses.get(vtep) ?? 0;
    this.#uses.set(vtep, uses + 1);
    if (uses === 0) this.lookSoon();
  }

  /** One less. @throws NetError */
  release(vtep: IpAddr): void {
    const uses = (this.#uses.get(vtep) ?? 1) - 1;
    if (uses > 0) return void this.#uses.set(vtep, uses);
    this.#uses.delete(vtep);
    this.#refused.delete(vtep);
    this.#set(vtep, undefined);
  }

  lookSoon(): void {
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined;
      this.#look(true);
    }, BREATH_MS).unref();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    clearTimeout(this.#soon);
    // From this moment on; the programs themselves go on another thread.
    this.#map.delete([...this.#ways.keys()].map(encodeVtepKey));
    for (const link of this.#receivers.values()) link.detachLater(() => undefined);
    this.#routes.close();
    this.#events.close();
    this.#ipsec[Symbol.dispose]();
    this.#map[Symbol.dispose]();
  }

  /** Brings ways up to date: those that were or are refused, and with `all` every one. */
  #look(all: boolean): void {
    try {
      const ipsec = this.#ipsec.exist() ? "the host has IPsec policies" : undefined;
      for (const vtep of this.#uses.keys()) {
        const refused = ipsec ?? this.#options.refusal(vtep);
        const changed = refused !== this.#refused.get(vtep);
        if (refused === undefined) this.#refused.delete(vtep);
        else this.#refused.set(vtep, refused);
        if (changed || all) this.#set(vtep, refused === undefined ? this.#wayTo(vtep) : undefined);
      }
      this.#receive(new Set([...this.#ways.values()].map(({ ifindex }) => ifindex)));
      this.#problem = "";
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      // What cannot be known must not be assumed.
      for (const vtep of this.#uses.keys()) this.#set(vtep, undefined);
      this.#problem = error.message;
    }
  }

  /** A program at each of these devices, and at no other. */
  #receive(devices: ReadonlySet<number>): void {
    for (const [ifindex, link] of this.#receivers) {
      if (devices.has(ifindex) && link.attached) continue;
      link.detachLater(() => undefined);
      this.#receivers.delete(ifindex);
    }
    for (const ifindex of devices) {
      if (this.#receivers.has(ifindex)) continue;
      using program = new BpfProgram("receive", receiveProgram(this.#options.port, this.maps));
      this.#receivers.set(ifindex, program.attach(this.#options.host, ifindex, "ingress"));
    }
  }

  #wayTo(vtep: IpAddr): FastVtep | undefined {
    try {
      const route = this.#routes.get(
        `find the route to ${vtep}`,
        { type: RTM.getRoute, encode: (out) => encodeRouteLookup(vtep, out, this.#options.source) },
        (message) => decodeRoute(message.payload),
      );
      if (route.type !== RTN.unicast || route.ifindex === undefined) return undefined;
      const link = findLink(this.#routes, { ifindex: route.ifindex });
      // Without Ethernet (a tunnel) frames come in a shape that the programs do not know.
      if (link?.up !== true || link.mac === undefined) return undefined;
      return { ifindex: link.ifindex, mtu: Math.min(link.mtu, route.mtu ?? Infinity) };
    } catch (error) {
      // There is none.
      if (error instanceof NetError) return undefined;
      throw error;
    }
  }

  #set(vtep: IpAddr, way: FastVtep | undefined): void {
    const known = this.#ways.get(vtep);
    if (known?.ifindex === way?.ifindex && known?.mtu === way?.mtu) return;
    if (way === undefined) {
      this.#map.delete([encodeVtepKey(vtep)]);
      this.#ways.delete(vtep);
    } else {
      this.#map.set([[encodeVtepKey(vtep), encodeVtep(way)]]);
      this.#ways.set(vtep, way);
    }
  }
}
