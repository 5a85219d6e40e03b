/**
 * The device through which agents probe each other's data path: a device like those of the networks, with a reserved
 * VNI, on the VXLAN socket of the dataplane.
 *
 * A second UDP socket on the data-path port is not possible beside that, and would not take the same way. The
 * device lives in a namespace that has no name: it dies with this process however that ends, and no firewall rule or
 * route of the host meets the inner packets. Inside, every node has its own VTEP's address.
 */
import { createSocket, type Socket } from "node:dgram";
import { join } from "node:path";
import { DecodeError } from "../base/error.ts";
import { ipToBytes, isIpv4, tryParseIp, type IpAddr } from "../base/ip.ts";
import { macFromBytes, type MacAddr } from "../base/mac.ts";
import { plainBytes } from "../transport/plain-bytes.ts";
import { NLM_F } from "../wire/netlink/message.ts";
import { encodeRoute, RT_SCOPE, RT_TABLE, RTN } from "../wire/netlink/route.ts";
import { RTM } from "../wire/netlink/rtnetlink.ts";
import { decodePathProbe, encodePathProbe, PROBE_PORT, type PathProbe } from "../wire/path-probe.ts";
import { setAddress } from "./addresses.ts";
import type { Dataplane, ProbeLink } from "./dataplane.ts";
import { setLink } from "./links.ts";
import type { EntryStep } from "./neighbors.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import { Netns, scratchPath } from "./netns.ts";
import { requireLink } from "./overlay-links.ts";

/** Its name; in `ip -all netns exec ip link` nobody sees it, in the kernel's log everybody. */
export const PROBE_LINK = "na-probe";
/** Above every underlay's, so that the inner side never cuts a probe into pieces. */
const INNER_MTU = 65_000;
/** RTPROT_STATIC. */
const ROUTE_STATIC = 4;

export interface ProbeDeviceOptions {
  /** A name is needed for a moment. */
  readonly runDirectory: string;
  readonly dataplane: Pick<Dataplane, "openProbeLink">;
  readonly vtep: IpAddr;
  readonly dataPathPort: number;
  readonly onProbe: (from: IpAddr, probe: PathProbe) => void;
}

export class ProbeDevice implements Disposable {
  readonly #vtep: IpAddr;
  readonly #netns: Netns;
  readonly #netlink: NetlinkSocket;
  readonly #socket: Socket;
  readonly #link: ProbeLink;
  readonly #peers = new Set<IpAddr>();
  #closed = false;

  private constructor(options: ProbeDeviceOptions, netns: Netns, netlink: NetlinkSocket, link: ProbeLink) {
    const { vtep } = options;
    this.#vtep = vtep;
    this.#netns = netns;
    this.#netlink = netlink;
    this.#link = link;
    this.#socket = createSocket(isIpv4(vtep) ? "udp4" : "udp6");
    // Unreachable and the like: silence says the same.
    this.#socket.on("error", () => undefined);
    this.#socket.on("message", (bytes, from) => {
      const ip = tryParseIp(from.address.replace(/%.*$/, ""));
      if (ip === undefined) return;
      try {
        options.onProbe(ip, decodePathProbe(plainBytes(bytes), vtep));
      } catch (error) {
        // Anybody can send anything.
        if (!(error instanceof DecodeError)) throw error;
      }
    });
    this.#socket.bind({ fd: netns.bindUdp(vtep, { port: PROBE_PORT, freeBind: true }) });
    this.#socket.unref();
  }

  /** @throws NetError `EEXIST` while the device of a killed agent is still being taken apart: try again. */
  static open(options: ProbeDeviceOptions): ProbeDevice {
    const { vtep, dataPathPort } = options;
    const path = scratchPath(join(options.runDirectory, "netns"), "path-probe");
    Netns.remove(path);
    const netns = Netns.create(path);
    let netlink: NetlinkSocket | undefined;
    let link: ProbeLink | undefined;
    try {
      Netns.remove(path);
      const what = `create ${PROBE_LINK}`;
      link = options.dataplane.openProbeLink({
        netns,
        name: PROBE_LINK,
        mac: probeMac(vtep),
        mtu: INNER_MTU,
        vtep,
        dataPathPort,
      });
      netlink = new NetlinkSocket("route", netns);
      const { ifindex } = requireLink(netlink, PROBE_LINK);
      // Of a device made in another namespace the kernel forgets that it was up (dev_change_net_namespace).
      setLink(netlink, what, { ifindex, up: true });
      setAddress(netlink, what, ifindex, { ip: vtep, prefixLength: isIpv4(vtep) ? 32 : 128 });
      addDefaultRoute(netlink, what, ifindex, vtep);
      return new ProbeDevice(options, netns, netlink, link);
    } catch (error) {
      link?.close();
      netlink?.close();
      netns.close();
      throw error;
    }
  }

  /** Exactly these can be reached from now on. @throws NetError */
  setPeers(peers: ReadonlySet<IpAddr>): void {
    const steps: EntryStep[] = [];
    for (const ip of peers) {
      if (this.#peers.has(ip)) continue;
      const mac = probeMac(ip);
      steps.push({ type: "set-fdb", mac, vtep: ip }, { type: "set-neighbor", ip, mac });
    }
    for (const ip of this.#peers) {
      if (!peers.has(ip))
        steps.push({ type: "delete-neighbor", ip }, { type: "delete-fdb", mac: probeMac(ip) });
    }
    if (steps.length === 0) return;
    this.#link.enter(steps);
    this.#peers.clear();
    for (const ip of peers) this.#peers.add(ip);
  }

  send(to: IpAddr, probe: PathProbe): void {
    if (!this.#closed) this.#socket.send(encodePathProbe(probe, this.#vtep), PROBE_PORT, to, () => undefined);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.close();
    try {
      this.#link.close();
    } finally {
      this.#netlink.close();
      this.#netns.close();
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Of a node's end of the probe network: follows from its address, so nobody has to be asked. */
export function probeMac(vtep: IpAddr): MacAddr {
  const mac = Uint8Array.of(0x02, 0xfe, 0, 0, 0, 0);
  // Of an IPv6 address all bytes fold into four; two nodes that collide lose only their probes.
  ipToBytes(vtep).forEach(
    (byte, index) => (mac[2 + (index % 4)] = ((mac[2 + (index % 4)] ?? 0) * 31 + byte) & 0xff),
  );
  return macFromBytes(mac);
}

/** Everybody is on the link, and no path-MTU news of the underlay may make the inner side cut packets. */
function addDefaultRoute(netlink: NetlinkSocket, what: string, ifindex: number, vtep: IpAddr): void {
  netlink.request(`${what}: add route`, {
    type: RTM.newRoute,
    flags: NLM_F.create | NLM_F.replace,
    encode: (out) =>
      encodeRoute(
        {
          destination: { ip: vtep, prefixLength: 0 },
          table: RT_TABLE.main,
          protocol: ROUTE_STATIC,
          scope: RT_SCOPE.link,
          type: RTN.unicast,
          ifindex,
          mtu: INNER_MTU,
          mtuLocked: true,
          flags: 0,
        },
        out,
      ),
  });
}
