import { utf8 } from "../base/bytes.ts";
import { DecodeError, NetError } from "../base/error.ts";
import { networkId, randomBase36, vni, type NetworkId, type NodeId, type Vni } from "../base/id.ts";
import {
  formatCidr,
  ipv4FromNumber,
  ipv4ToNumber,
  isIpv4,
  isLoopback,
  lastAddress,
  parseCidr,
  parseIp,
  subnetContains,
  subnetOf,
  subnetsOverlap,
  subnetSize,
  type Cidr,
  type IpAddr,
} from "../base/ip.ts";
import { randomInt, type Random } from "../base/random.ts";
import { MAX_LABELS, type Labels, type Network } from "../wire/state/definition.ts";
import { PROBE_VNI } from "../wire/path-probe.ts";
import { printable } from "./find.ts";
import type { NetworkSpec } from "./request.ts";

/** Below 4096 Docker leaves VNIs out for Windows; 4096 is ingress. */
const FIRST_VNI = 4097;
/** The probes' VNI and the one above are nobody's. */
const LAST_VNI = PROBE_VNI - 1;
/** A chosen VNI is up to this far above the highest known: two sides of a partition rarely choose the same. */
const VNI_SPREAD = 1024;
/** Auto-chosen subnets are 10.0.1.0/24 … 10.254.255.0/24. */
const FIRST_POOL_SUBNET = ipv4ToNumber("10.0.1.0" as IpAddr);
const LAST_POOL_SUBNET = ipv4ToNumber("10.254.255.0" as IpAddr);

export interface NetworkContext {
  /** `ingress` and external networks included. */
  readonly networks: readonly Network[];
  readonly hostSubnets: readonly Cidr[];
  readonly created: number;
  /** Among whom the addresses are divided; the creator is the first. */
  readonly ringSeeds: readonly NodeId[];
  readonly random: Random;
}

/** The network that `spec` asks for. @throws NetError with what, why and the cure */
export function makeNetwork(spec: NetworkSpec, context: NetworkContext): Network {
  checkName("network", spec.name);
  const namesake = context.networks.find((network) => network.name === spec.name);
  if (namesake !== undefined) {
    throw new NetError(
      "network-exists",
      `create network ${spec.name}: the name is taken by network ${namesake.id.slice(0, 12)}; choose another or remove that one`,
    );
  }
  const labels = checkLabels("network", spec.name, spec.labels);
  const subnet = spec.subnet === undefined ? chooseSubnet(spec, context) : checkSubnet(spec, context);
  const gateway = chooseGateway(spec, subnet);
  if (spec.mtu !== undefined && (!Number.isInteger(spec.mtu) || spec.mtu < 576 || spec.mtu > 65535)) {
    throw new NetError(
      "mtu-invalid",
      `create network ${spec.name}: MTU ${spec.mtu} is outside 576 … 65535; leave it out to take the underlay's`,
    );
  }
  const external = spec.external && checkExternal(spec, subnet);
  const id = external?.id ?? (randomBase36(context.random) as NetworkId);
  const clash = context.networks.find((network) => network.id === id);
  if (clash !== undefined) {
    throw new NetError(
      "network-exists",
      `create network ${spec.name}: id ${id} is network ${clash.name} already`,
    );
  }
  return {
    id,
    name: spec.name,
    driver: "overlay",
    scope: "swarm",
    vni: spec.vni === undefined ? chooseVni(context) : checkVni(spec, spec.vni, context),
    subnet,
    gateway,
    ...(spec.mtu === undefined ? {} : { mtu: spec.mtu }),
    internal: spec.internal ?? false,
    encrypted: spec.encrypted ?? false,
    ingress: false,
    labels,
    created: context.created,
    ringSeeds: external === undefined ? context.ringSeeds : [],
    ...(external === undefined ? {} : { external: external.value }),
  };
}

/** Names go into DNS and tables: a letter or digit, then letters, digits, `_.-`, 63 characters in all. */
export function checkName(kind: "network" | "service", name: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/.test(name)) return;
  throw new NetError(
    "name-invalid",
    `create ${kind} '${printable(name)}': a name has 1 to 63 letters, digits, '_', '.', '-' and starts with a letter or digit`,
  );
}

export function checkLabels(kind: string, name: string, labels: Labels = {}): Labels {
  const entries = Object.entries(labels);
  const tooLong = entries.some(([key, value]) => utf8(key).length > 256 || utf8(value).length > 1024);
  if (entries.length <= MAX_LABELS && !tooLong) return labels;
  throw new NetError(
    "label-invalid",
    `create ${kind} ${name}: at most ${MAX_LABELS} labels, keys up to 256 and values up to 1024 bytes`,
  );
}

function chooseSubnet(spec: NetworkSpec, context: NetworkContext): Cidr {
  if (spec.external !== undefined) {
    throw new NetError(
      "subnet-missing",
      `create network ${spec.name}: an external network needs --subnet, as its owner defined it`,
    );
  }
  // As numbers: with thousands of networks the search is quadratic.
  const taken = [...context.networks.map((network) => network.subnet), ...context.hostSubnets]
    .filter((subnet) => isIpv4(subnet.ip) && subnet.prefixLength > 0)
    .map((subnet) => {
      const first = ipv4ToNumber(subnetOf(subnet).ip);
      return { first, last: first + subnetSize(subnet) - 1 };
    })
    .sort((a, b) => a.first - b.first);
  let candidate = FIRST_POOL_SUBNET;
  for (const { first, last } of taken) {
    if (last < candidate) continue;
    if (first > candidate + 255) break;
    candidate = Math.floor(last / 256) * 256 + 256;
  }
  if (candidate > LAST_POOL_SUBNET) {
    throw new NetError(
      "subnet-none-free",
      `create network ${spec.name}: no free /24 left in 10.0.0.0/8; give one with --subnet`,
    );
  }
  return { ip: ipv4FromNumber(candidate), prefixLength: 24 };
}

function checkSubnet(spec: NetworkSpec, context: NetworkContext): Cidr {
  const text = spec.subnet ?? "";
  const cidr = parseField("subnet", spec, () => parseCidr(text));
  const subnet = subnetOf(cidr);
  const refuse = (code: string, why: string): never => {
    throw new NetError(code, `create network ${spec.name} with subnet ${printable(text)}: ${why}`);
  };
  if (subnet.ip !== cidr.ip)
    refuse("subnet-invalid", `host bits are set; did you mean ${formatCidr(subnet)}?`);
  if (!isIpv4(subnet.ip)) refuse("subnet-invalid", "overlay subnets are IPv4");
  if (subnet.prefixLength > 29)
    refuse("subnet-too-small", "a gateway and a few endpoints need /29 or larger");
  if (subnet.prefixLength < 8) refuse("subnet-invalid", "larger than /8");
  const first = ipv4ToNumber(subnet.ip);
  if (isLoopback(subnet.ip) || first < 0x01000000 || first >= 0xe0000000)
    refuse(
      "subnet-invalid",
      "not a range of unicast addresses; take one of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16",
    );
  const other = context.networks.find((network) => subnetsOverlap(network.subnet, subnet));
  if (other !== undefined)
    refuse(
      "subnet-overlap",
      `overlaps ${formatCidr(other.subnet)} of network ${other.name}; choose another or leave --subnet out`,
    );
  const route = context.hostSubnets.find((route) => route.prefixLength > 0 && subnetsOverlap(route, subnet));
  if (route !== undefined && spec.external === undefined)
    refuse(
      "subnet-overlap",
      `overlaps ${formatCidr(route)} of this host; choose another or leave --subnet out`,
    );
  return subnet;
}

function chooseGateway(spec: NetworkSpec, subnet: Cidr): IpAddr {
  if (spec.gateway === undefined) return ipv4FromNumber(ipv4ToNumber(subnet.ip) + 1);
  const text = spec.gateway;
  const gateway = parseField("gateway", spec, () => parseIp(text));
  if (!subnetContains(subnet, gateway) || gateway === subnet.ip || gateway === lastAddress(subnet)) {
    throw new NetError(
      "gateway-outside",
      `create network ${spec.name}: gateway ${gateway} is not a host address of ${formatCidr(subnet)}`,
    );
  }
  return gateway;
}

function chooseVni(context: NetworkContext): Vni {
  const taken = new Set<number>(context.networks.map((network) => network.vni));
  const highest = Math.max(FIRST_VNI - 1, ...taken);
  const spread = highest + 1 + (taken.size > 1 ? randomInt(context.random, VNI_SPREAD) : 0);
  let candidate = spread <= LAST_VNI ? spread : FIRST_VNI + randomInt(context.random, LAST_VNI - FIRST_VNI);
  // Fewer networks than VNIs are possible (the map is bounded), so one is free.
  while (taken.has(candidate)) candidate = candidate === LAST_VNI ? FIRST_VNI : candidate + 1;
  return vni(candidate);
}

function checkVni(spec: NetworkSpec, wanted: number, context: NetworkContext): Vni {
  const first = spec.external === undefined ? FIRST_VNI : 0;
  if (!Number.isInteger(wanted) || wanted < first || wanted > LAST_VNI) {
    throw new NetError(
      "vni-invalid",
      `create network ${spec.name}: VNI ${wanted} is outside ${first} … ${LAST_VNI}; leave --vni out to have one chosen`,
    );
  }
  const other = context.networks.find((network) => network.vni === wanted);
  if (other !== undefined) {
    throw new NetError(
      "vni-taken",
      `create network ${spec.name}: VNI ${wanted} is taken by network ${other.name}; leave --vni out to have one chosen`,
    );
  }
  return vni(wanted);
}

function checkExternal(
  spec: NetworkSpec,
  subnet: Cidr,
): { readonly id: NetworkId; readonly value: NonNullable<Network["external"]> } {
  const { id, ipRange } = spec.external ?? { id: "" };
  if (spec.vni === undefined)
    throw new NetError(
      "vni-missing",
      `create network ${spec.name}: an external network needs --vni, as its owner defined it`,
    );
  const parsed = parseField("id", spec, () => networkId(id));
  if (ipRange === undefined) return { id: parsed, value: {} };
  const range = subnetOf(parseField("ip-range", spec, () => parseCidr(ipRange)));
  const inside = range.prefixLength >= subnet.prefixLength && subnetContains(subnet, range.ip);
  if (!inside)
    throw new NetError(
      "range-outside",
      `create network ${spec.name}: --ip-range ${formatCidr(range)} is not inside ${formatCidr(subnet)}`,
    );
  return { id: parsed, value: { ipRange: range } };
}

function parseField<T>(field: string, spec: NetworkSpec, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    throw new NetError(`${field}-invalid`, `create network ${printable(spec.name)}: ${error.message}`, {
      cause: error,
    });
  }
}
