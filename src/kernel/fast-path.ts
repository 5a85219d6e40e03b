/**
 * Keeps the fast path (`overlay/fast-path.ts`) in line with what the networks' devices forward by. Nothing depends on
 * it: where it is not to be had, and when this process dies and its programs with it, frames go the slow path.
 */
import { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { type IpAddr, isIpv4 } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import { SLICE_ROWS, type Sliced } from "../base/sliced.ts";
import type { DesiredCore, DesiredOverlay } from "../overlay/desired.ts";
import {
  encodeEndpoint,
  encodeEndpointKey,
  ENDPOINT_KEY_BYTES,
  ENDPOINT_VALUE_BYTES,
  STREAM_BYTES,
  STREAM_KEY_BYTES,
  STREAM_SLOTS,
} from "../overlay/fast-path-maps.ts";
import { deliverProgram, passOnProgram, sendProgram } from "../overlay/fast-path.ts";
import { FAST_LINK, fastHostLink, networkAlias } from "../overlay/naming.ts";
import type { FoundEntry } from "../overlay/plan.ts";
import type { Link } from "../wire/netlink/link.ts";
import { BpfMap, type BpfLink, BpfProgram } from "./bpf.ts";
import type { FastPathControl, FastPathStatus } from "./dataplane.ts";
import { FastWays } from "./fast-ways.ts";
import { createLink, deleteLink, findLink, setLink } from "./links.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";
import type { NetworkNamespace } from "./network-namespace.ts";

/** The map has so many buckets from the start, 16 bytes each. */
const MAX_ENDPOINTS = 1 << 17;
/** Whatever goes through a virtual device. */
const PAIR_MTU = 65_535;
/** After a failure: making and removing devices is news, upon which it would be tried again at once. */
const RETRY_MS = 30_000;
/** Until a capture must have begun, and the device shows it. */
const CAPTURE_BEGINS_MS = 10_000;
/** No BPF in the kernel, none for us, or one without TCX (before Linux 6.6). */
const NEVER: ReadonlySet<string> = new Set(["EPERM", "EACCES", "EINVAL", "ENOSYS", "EOPNOTSUPP"]);
/** One for what lies on the device; whoever else wants to see every frame is a capture. */
const USUAL_PROMISCUITY = 1;

interface Pair {
  readonly ifindex: number;
  /** Of the end in the host. */
  readonly hostIfindex: number;
}

interface Shared {
  readonly endpoints: BpfMap;
  readonly streams: BpfMap | undefined;
  readonly ways: FastWays;
}

interface FastNetwork {
  readonly network: NetworkId;
  readonly core: DesiredCore;
  readonly device: number;
  readonly hostIfindex: number;
  readonly links: readonly BpfLink[];
  /** As they are in the map. */
  readonly endpoints: Map<MacAddr, IpAddr>;
  /** Of the FDB that they were taken from. */
  version: number | undefined;
}

export interface FastPathOptions {
  /** Default true. */
  readonly wanted?: boolean;
  /** One-way streams of UDP are left to the device. Default false. */
  readonly streams?: boolean;
}

export class FastPath implements FastPathControl {
  refusal: (vtep: IpAddr) => string | undefined = () => undefined;
  readonly #host: Netns;
  readonly #socket: NetlinkSocket;
  readonly #networks = new Map<NetworkId, FastNetwork>();
  readonly #excluded = new Map<NetworkId, string>();
  readonly #retryAt = new Map<NetworkId, number>();
  /** What is being attached; another object than it began with: forgotten meanwhile. */
  readonly #building = new Map<NetworkId, object>();
  readonly #leavesStreams: boolean;
  #shared: Shared | undefined;
  #closed = false;
  /** Why it is not to be had at all. */
  #problem: string | undefined;

  constructor(host: Netns, { wanted = true, streams = false }: FastPathOptions = {}) {
    this.#host = host;
    this.#leavesStreams = streams;
    this.#socket = new NetlinkSocket("route", host);
    if (!wanted) this.#problem = "switched off by --fast-path off";
  }

  get possible(): boolean {
    return this.#problem === undefined;
  }

  status(): FastPathStatus {
    const reason = this.#problem ?? [...this.#excluded.values()][0] ?? this.#shared?.ways.reason ?? "";
    return { networks: this.#networks.size, vteps: this.#shared?.ways.size ?? 0, reason };
  }

  /** `fdb` is what the device forwards by; while its `version` is the same it is not gone through. Never throws. */
  *follow(
    desired: DesiredOverlay,
    namespace: NetworkNamespace,
    fdb: ReadonlyMap<MacAddr, FoundEntry<IpAddr>>,
    version: number | undefined,
  ): Sliced<void> {
    const { network, core } = desired;
    try {
      const { vxlan, fast } = namespace.links();
      if (core === undefined || vxlan === undefined) {
        this.#retryAt.delete(network);
        return this.forget(network);
      }
      const excluded = exclusion(desired, core, vxlan);
      if (excluded !== undefined) {
        this.forget(network);
        this.#excluded.set(network, excluded);
        return;
      }
      if (performance.now() < (this.#retryAt.get(network) ?? 0)) return;
      this.#excluded.delete(network);
      const known = this.#networks.get(network);
      const stands = known !== undefined && isWhole(known, core, vxlan, fast);
      if (stands && version !== undefined && known.version === version) return;
      const current = stands ? known : yield* this.#build(namespace, core, vxlan.ifindex);
      if (current === undefined) return;
      yield* this.#enter(current, fdb);
      current.version = version;
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      this.forget(network);
      // Not to be had, or not allowed: that does not change while we run.
      if (this.#networks.size === 0 && NEVER.has(error.code)) this.#problem = error.message;
      this.#excluded.set(network, error.message);
      this.#retryAt.set(network, performance.now() + RETRY_MS);
    }
  }

  standAside(network: NetworkId, name: string): void {
    this.forget(network);
    this.#excluded.set(network, captured(name));
    this.#retryAt.set(network, performance.now() + CAPTURE_BEGINS_MS);
  }

  /** Its frames take the slow path from now on. */
  forget(network: NetworkId): void {
    this.#building.delete(network);
    this.#excluded.delete(network);
    const known = this.#networks.get(network);
    if (known === undefined) return;
    this.#networks.delete(network);
    // Detaching waits for all processors: not here.
    let left = known.links.length;
    for (const link of known.links)
      link.detachLater(() => {
        if (--left === 0 && !this.#closed) this.#deletePair(network, known.hostIfindex);
      });
    if (this.#endUnused()) return;
    this.#remove(known, [...known.endpoints.keys()]);
  }

  /** The slow path from now on, for all. */
  close(): void {
    this.#closed = true;
    const links = [...this.#networks.values()].flatMap((known) => known.links);
    const networks = [...this.#networks.keys(), ...this.#building.keys()];
    this.#networks.clear();
    this.#building.clear();
    // From here on nothing takes it.
    this.#endUnused();
    for (const link of links) link.detachLater(() => undefined);
    for (const network of networks) this.#deletePair(network);
    this.#socket.close();
  }

  /** Attaching waits for all processors, 5 to 20 ms each time. Undefined when it was forgotten meanwhile. @throws NetError */
  *#build(namespace: NetworkNamespace, core: DesiredCore, device: number): Sliced<FastNetwork | undefined> {
    const { network } = namespace;
    this.forget(network);
    const build = {};
    this.#building.set(network, build);
    const links: BpfLink[] = [];
    let pair: Pair | undefined;
    try {
      const { maps } = this.#begin(core).ways;
      yield;
      if (this.#building.get(network) !== build) return undefined;
      const { vni, mtu, dataPathPort: port } = core;
      pair = this.#createPair(namespace);
      const { ifindex, hostIfindex } = pair;
      const send = sendProgram({ vni, mtu, port, fastIfindex: ifindex }, maps);
      for (const [name, program, netns, place, direction] of [
        ["deliver", deliverProgram(device), namespace.netns, ifindex, "ingress"],
        ["pass on", passOnProgram(), this.#host, hostIfindex, "ingress"],
        ["send", send, namespace.netns, device, "egress"],
      ] as const) {
        yield;
        if (this.#building.get(network) !== build) return undefined;
        using loaded = new BpfProgram(name, program);
        links.push(loaded.attach(netns, place, direction));
      }
      const built = { network, core, device, hostIfindex, links, endpoints: new Map(), version: undefined };
      this.#networks.set(network, built);
      return built;
    } finally {
      if (this.#building.get(network) === build) this.#building.delete(network);
      if (this.#networks.get(network)?.links !== links) {
        for (const link of links) link[Symbol.dispose]();
        if (pair !== undefined && !this.#closed) this.#deletePair(network, pair.hostIfindex);
        this.#endUnused();
      }
    }
  }

  *#enter(network: FastNetwork, fdb: ReadonlyMap<MacAddr, FoundEntry<IpAddr>>): Sliced<void> {
    const { core, endpoints, hostIfindex } = network;
    const values = new Map<IpAddr, Uint8Array>();
    let gone: MacAddr[] = [];
    let seen = 0;
    for (const [mac, vtep] of endpoints) {
      if (fdb.get(mac) !== vtep) gone.push(mac);
      if (++seen % SLICE_ROWS !== 0) continue;
      this.#remove(network, gone);
      gone = [];
      yield;
    }
    this.#remove(network, gone);
    let fresh: [MacAddr, IpAddr][] = [];
    const flush = (): void => {
      // While it was set aside it may have been forgotten.
      const shared = this.#shared;
      if (shared === undefined || this.#networks.get(network.network) !== network) return;
      shared.endpoints.set(
        fresh.map(([mac, vtep]) => {
          const known = values.get(vtep) ?? encodeEndpoint({ vtep, source: core.vtep, hostIfindex });
          values.set(vtep, known);
          return [encodeEndpointKey(core.vni, mac), known];
        }),
      );
      for (const [mac, vtep] of fresh) {
        endpoints.set(mac, vtep);
        shared.ways.use(vtep);
      }
      fresh = [];
    };
    for (const [mac, vtep] of fdb) {
      if (typeof vtep === "string" && !endpoints.has(mac) && isIpv4(vtep)) fresh.push([mac, vtep]);
      if (++seen % SLICE_ROWS !== 0) continue;
      flush();
      yield;
    }
    flush();
  }

  #remove({ core, endpoints }: FastNetwork, macs: readonly MacAddr[]): void {
    this.#shared?.endpoints.delete(macs.map((mac) => encodeEndpointKey(core.vni, mac)));
    for (const mac of macs) {
      const vtep = endpoints.get(mac);
      if (vtep !== undefined) this.#shared?.ways.release(vtep);
      endpoints.delete(mac);
    }
  }

  #begin(core: DesiredCore): Shared {
    if (this.#shared !== undefined) return this.#shared;
    const endpoints = new BpfMap("hash", ENDPOINT_KEY_BYTES, ENDPOINT_VALUE_BYTES, MAX_ENDPOINTS);
    const streams = this.#leavesStreams
      ? new BpfMap("array", STREAM_KEY_BYTES, STREAM_BYTES, STREAM_SLOTS)
      : undefined;
    const ways = new FastWays({
      host: this.#host,
      source: core.vtep,
      port: core.dataPathPort,
      endpoints: endpoints.fd,
      streams: streams?.fd,
      refusal: (vtep) => this.refusal(vtep),
    });
    return (this.#shared = { endpoints, streams, ways });
  }

  /** Whether there is no network any more. */
  #endUnused(): boolean {
    if (this.#networks.size > 0 || this.#building.size > 0) return false;
    this.#shared?.ways[Symbol.dispose]();
    this.#shared?.endpoints[Symbol.dispose]();
    this.#shared?.streams?.[Symbol.dispose]();
    this.#shared = undefined;
    return true;
  }

  /** Up, with no address of any kind, so that the kernel itself sends nothing on it. @throws NetError */
  #createPair(namespace: NetworkNamespace): Pair {
    const { network, netns, socket } = namespace;
    const hostName = fastHostLink(network);
    const what = `create ${hostName} and ${FAST_LINK}`;
    this.#deletePair(network);
    let found: Pair | undefined;
    namespace.settle(() => {
      createLink(this.#socket, what, {
        name: hostName,
        mtu: PAIR_MTU,
        info: { kind: "veth", peer: { name: FAST_LINK, mtu: PAIR_MTU, netnsFd: netns.fd } },
      });
      const [ifindex, hostIfindex] = (
        [
          [netns, socket, FAST_LINK],
          [this.#host, this.#socket, hostName],
        ] as const
      ).map(([place, where, name]) => {
        const link = findLink(where, { name });
        if (link === undefined) throw new NetError("ENODEV", `${what}: ${name} is not there`);
        disableIpv6(place, name);
        setLink(where, what, { ifindex: link.ifindex, up: true, alias: networkAlias(network) });
        return link.ifindex;
      });
      if (ifindex !== undefined && hostIfindex !== undefined) found = { ifindex, hostIfindex };
    });
    namespace.forgetLinks();
    if (found === undefined) throw new NetError("ENODEV", `${what}: it is not there`);
    return found;
  }

  /** Another network's or, where `ifindex` is given, a later one stays. */
  #deletePair(network: NetworkId, ifindex?: number): void {
    const name = fastHostLink(network);
    try {
      const link = findLink(this.#socket, { name });
      if (link?.alias === networkAlias(network) && (ifindex ?? link.ifindex) === link.ifindex)
        deleteLink(this.#socket, `delete ${name}`, { name });
    } catch (error) {
      // It carries nothing any more.
      if (!(error instanceof NetError)) throw error;
    }
  }
}

/** Why the network's frames must not take the fast path. */
function exclusion(desired: DesiredOverlay, core: DesiredCore, vxlan: Link): string | undefined {
  if (!isIpv4(core.vtep)) return "the underlay is IPv6";
  if (vxlan.promiscuity > USUAL_PROMISCUITY) return captured(desired.name);
  // What comes from here is sent on to clients: superframes that still say they are in a tunnel (ARCHITECTURE).
  if ([...desired.endpoints.values()].some(({ sandbox }) => sandbox.type === "host"))
    return `${desired.name} has a leg in the host`;
  return undefined;
}

function captured(name: string): string {
  return `${name} is captured`;
}

function isWhole(known: FastNetwork, core: DesiredCore, vxlan: Link, fast: Link | undefined): boolean {
  return (
    known.device === vxlan.ifindex &&
    fast?.running === true &&
    fast.link === known.hostIfindex &&
    core.vni === known.core.vni &&
    core.mtu === known.core.mtu &&
    core.vtep === known.core.vtep &&
    core.dataPathPort === known.core.dataPathPort &&
    known.links.every((link) => link.attached)
  );
}

function disableIpv6(netns: Netns, name: string): void {
  const setting = `net/ipv6/conf/${name}/disable_ipv6`;
  if (netns.readSysctl(setting) !== undefined) netns.writeSysctl(setting, 1);
}
