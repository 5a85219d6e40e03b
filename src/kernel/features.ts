/**
 * What this kernel and our privileges allow. Each feature is tried, not looked up: in a throw-away namespace,
 * since a version number or a module list says nothing inside a container.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ByteReader } from "../base/bytes.ts";
import { errorText, NetError } from "../base/error.ts";
import type { IpAddr } from "../base/ip.ts";
import type { VxlanInfo } from "../wire/netlink/link.ts";
import { MACVLAN_MODE_BRIDGE } from "../wire/netlink/link.ts";
import { attributeMap } from "../wire/netlink/message.ts";
import { createLink, findLink } from "./links.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import { Netns, scratchPath } from "./netns.ts";
import { closeSync } from "node:fs";

export type FeatureName =
  | "CAP_NET_ADMIN"
  | "CAP_SYS_ADMIN"
  | "network-namespaces"
  | "vxlan"
  | "macvlan"
  | "bridge"
  | "veth"
  | "tun"
  | "nftables";

export interface Feature {
  readonly name: FeatureName;
  readonly present: boolean;
  /** What was tried and what the kernel said; empty when present. */
  readonly detail: string;
  /** What its absence costs and what to do. */
  readonly cure: string;
}

const CURES: Readonly<Record<FeatureName, string>> = {
  CAP_NET_ADMIN: "run netagent as root, or grant CAP_NET_ADMIN",
  CAP_SYS_ADMIN: "run netagent as root, or grant CAP_SYS_ADMIN: it enters network namespaces",
  "network-namespaces": "needs CAP_SYS_ADMIN and a kernel with CONFIG_NET_NS; RUNDIR must allow bind mounts",
  vxlan: "the kernel dataplane needs it: modprobe vxlan, or use --dataplane userspace",
  macvlan: "endpoints then hang on veth pairs, which is slower: modprobe macvlan",
  bridge: "needed only where macvlan is missing: modprobe bridge",
  veth: "needed only where macvlan is missing: modprobe veth",
  tun: "the userspace dataplane needs it: modprobe tun, and /dev/net/tun must exist",
  nftables: "published ports and virtual addresses need it: modprobe nf_tables",
};

/** Bit numbers, include/uapi/linux/capability.h. */
const CAPABILITIES = { CAP_NET_ADMIN: 12, CAP_SYS_ADMIN: 21 } as const;
/** NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN. */
const NFT_GET_GENERATION = 0x0a10;
const NFTA_GEN_ID = 1;

/** Tries everything; a namespace is made below `runDirectory` and is gone afterwards. Never throws. */
export function probeFeatures(runDirectory: string): readonly Feature[] {
  const features: Feature[] = Object.entries(CAPABILITIES).map(([name, bit]) =>
    featureOf(name as FeatureName, () => requireCapability(name, bit)),
  );
  const path = scratchPath(join(runDirectory, "netns"), "probe");
  let netns: Netns | undefined;
  features.push(
    featureOf("network-namespaces", () => {
      netns = Netns.create(path);
    }),
  );
  features.push(...probeInside(netns));
  netns?.close();
  try {
    Netns.remove(path);
  } catch {
    // Reported already: it could not be made.
  }
  return features;
}

/** The names of what is missing. */
export function missingFeatures(features: readonly Feature[]): ReadonlySet<FeatureName> {
  return new Set(features.filter(({ present }) => !present).map(({ name }) => name));
}

/** One line for people: `vxlan is missing: create vxlan: EOPNOTSUPP (Unknown device type); modprobe vxlan …`. */
export function formatMissing(feature: Feature): string {
  return `${feature.name} is missing: ${feature.detail}; ${feature.cure}`;
}

function probeInside(netns: Netns | undefined): Feature[] {
  const inside = (name: FeatureName, action: (socket: NetlinkSocket, netns: Netns) => void): Feature =>
    featureOf(name, () => {
      if (netns === undefined) throw new NetError("EPERM", "could not be tried without a network namespace");
      using socket = new NetlinkSocket("route", netns);
      action(socket, netns);
    });
  return [
    inside("veth", (socket) =>
      createLink(socket, "create veth", {
        name: "probe-veth",
        info: { kind: "veth", peer: { name: "probe-peer" } },
      }),
    ),
    inside("vxlan", (socket) =>
      createLink(socket, "create vxlan", { name: "probe-vxlan", info: PROBE_VXLAN }),
    ),
    inside("tun", (_socket, inNetns) =>
      // Persistent, to be the next one's lower device; it dies with the namespace.
      closeSync(inNetns.openTap("probe-tap", { vnetHeaderBytes: 12, persist: true })),
    ),
    inside("macvlan", (socket) => {
      const lower = ["probe-vxlan", "probe-tap", "probe-veth"].map((name) => findLink(socket, { name }));
      const link = lower.find((one) => one !== undefined);
      if (link === undefined) throw new NetError("ENODEV", "could not be tried without vxlan, tun or veth");
      createLink(socket, "create macvlan", {
        name: "probe-macvlan",
        link: link.ifindex,
        info: { kind: "macvlan", mode: MACVLAN_MODE_BRIDGE },
      });
    }),
    inside("bridge", (socket) =>
      createLink(socket, "create bridge", {
        name: "probe-bridge",
        info: { kind: "bridge", multicastSnooping: false },
      }),
    ),
    inside("nftables", (_socket, inNetns) => {
      using socket = new NetlinkSocket("netfilter", inNetns);
      askGeneration(socket);
    }),
  ];
}

/** Of the rules in this process's namespace: another one after each change. Undefined when the kernel does not tell. */
export function ruleGeneration(): number | undefined {
  try {
    using socket = new NetlinkSocket("netfilter");
    return askGeneration(socket);
  } catch (error) {
    if (error instanceof NetError) return undefined;
    throw error;
  }
}

function askGeneration(socket: NetlinkSocket): number | undefined {
  return socket.get(
    "ask nftables for its generation",
    { type: NFT_GET_GENERATION, encode: (out) => out.zeros(4) },
    ({ payload }) => {
      // Behind the family, in network order.
      const id = attributeMap(payload.subarray(4)).get(NFTA_GEN_ID);
      return id === undefined ? undefined : new ByteReader(id, "nftables generation").u32();
    },
  );
}

const PROBE_VXLAN: VxlanInfo = {
  kind: "vxlan",
  vni: 1,
  port: 4789,
  local: "127.0.0.1" as IpAddr,
  learning: false,
  proxy: true,
  l2miss: false,
  l3miss: false,
  udpChecksum: true,
  udpZeroChecksum6Tx: false,
  udpZeroChecksum6Rx: false,
  collectMetadata: false,
};

function featureOf(name: FeatureName, attempt: () => void): Feature {
  try {
    attempt();
    return { name, present: true, detail: "", cure: CURES[name] };
  } catch (error) {
    return { name, present: false, detail: errorText(error), cure: CURES[name] };
  }
}

function requireCapability(name: string, bit: number): void {
  const status = readFileSync("/proc/self/status", "utf8");
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  if (((effective >> BigInt(bit)) & 1n) === 0n) throw new NetError("EPERM", `this process lacks ${name}`);
}
