import { ByteReader, ByteWriter } from "../../base/bytes.ts";
import {
  networkId,
  nodeId,
  serviceId,
  vni,
  type NetworkId,
  type NodeId,
  type ServiceId,
  type Vni,
} from "../../base/id.ts";
import { isIpv4, lastAddress, subnetContains, type Cidr, type IpAddr } from "../../base/ip.ts";
import {
  readFlag,
  readIp,
  readList,
  readOptional,
  readSubnet,
  readText,
  readVarint,
  writeIp,
  writeList,
  writeOptional,
  writeSubnet,
  writeText,
  writeVarint,
} from "./fields.ts";

/**
 * Values of the replicated definitions. Fields are in the order of their encoding; new fields are appended, and
 * a reader ignores what follows the fields it knows. The bytes of an entry are kept and passed on as they came,
 * so an older node does not strip what a newer one wrote.
 */

/** Labels, at most 64 of 256-byte keys and 1,024-byte values. */
export type Labels = Readonly<Record<string, string>>;

export interface Network {
  readonly id: NetworkId;
  readonly name: string;
  readonly driver: "overlay";
  readonly scope: "swarm";
  readonly vni: Vni;
  readonly subnet: Cidr;
  readonly gateway: IpAddr;
  /** Of the interfaces inside, 576 … 65535; absent: what the underlay leaves. */
  readonly mtu?: number;
  readonly internal: boolean;
  readonly encrypted: boolean;
  readonly ingress: boolean;
  readonly labels: Labels;
  /** Lamport time of creation: the earlier of two networks of one name owns the name. */
  readonly created: number;
  /** Among these nodes, in this order, the addresses were divided at creation (`address-ring.ts`). At most 16. */
  readonly ringSeeds: readonly NodeId[];
  /** Defined by somebody else (a Docker swarm): known on this node only, never replicated. */
  readonly external?: { readonly ipRange?: Cidr };
}

export interface PublishedPort {
  readonly published: number;
  readonly target: number;
  readonly protocol: "tcp" | "udp";
  /** Published on this address only; absent: on every address of the node. */
  readonly address?: IpAddr;
  readonly mode: "ingress" | "host";
}

/** How a node finds out that one of its own backends has crashed. */
export interface HealthCheck {
  readonly probe:
    { readonly type: "command"; readonly command: string } | { readonly type: "tcp"; readonly port: number };
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly retries: number;
}

export interface Service {
  readonly id: ServiceId;
  readonly name: string;
  /** One VIP per network in mode `vip`, `ingress` included when a port is published in ingress mode. */
  readonly networks: readonly { readonly network: NetworkId; readonly vip?: IpAddr }[];
  readonly ports: readonly PublishedPort[];
  readonly endpointMode: "vip" | "dnsrr";
  readonly affinity: "none" | "client-ip";
  readonly labels: Labels;
  readonly created: number;
  readonly health?: HealthCheck;
  readonly drainTimeoutMs?: number;
}

export interface NodeDefinition {
  readonly id: NodeId;
  /** The name shown to people, as the node last told it. */
  readonly name: string;
  readonly availability: "active" | "drain";
  /** Final: a removed id never comes back; its address ranges pass to others. */
  readonly removed: boolean;
}

export type DefinitionKind = "network" | "service" | "node";
export type Definition =
  | { readonly kind: "network"; readonly value: Network }
  | { readonly kind: "service"; readonly value: Service }
  | { readonly kind: "node"; readonly value: NodeDefinition };

/** Bounds of one value; together they keep an entry below `MAX_VALUE_BYTES`. */
export const MAX_NAME_BYTES = 255;
export const MAX_LABELS = 64;
export const MAX_SERVICE_NETWORKS = 64;
export const MAX_SERVICE_PORTS = 256;
export const MAX_RING_SEEDS = 16;
const MAX_ID_BYTES = 64;
const MAX_LABEL_KEY_BYTES = 256;
const MAX_LABEL_VALUE_BYTES = 1024;
const MAX_COMMAND_BYTES = 4096;
const MAX_DURATION_MS = 7 * 24 * 3600 * 1000;

export function encodeDefinition(definition: Definition): Uint8Array {
  const out = new ByteWriter();
  switch (definition.kind) {
    case "network":
      encodeNetwork(definition.value, out);
      break;
    case "service":
      encodeService(definition.value, out);
      break;
    case "node":
      encodeNode(definition.value, out);
      break;
  }
  return out.finish();
}

/** @throws DecodeError */
export function decodeDefinition(kind: DefinitionKind, bytes: Uint8Array): Definition {
  const input = new ByteReader(bytes, kind);
  switch (kind) {
    case "network":
      return { kind, value: decodeNetwork(input) };
    case "service":
      return { kind, value: decodeService(input) };
    case "node":
      return { kind, value: decodeNode(input) };
  }
}

const NETWORK_FLAGS = { internal: 1, encrypted: 2, ingress: 4 } as const;

function encodeNetwork(network: Network, out: ByteWriter): void {
  writeText(out, network.id);
  writeText(out, network.name);
  out.u24(network.vni);
  writeSubnet(out, network.subnet);
  writeIp(out, network.gateway);
  out.u16(network.mtu ?? 0);
  out.u8(
    (network.internal ? NETWORK_FLAGS.internal : 0) |
      (network.encrypted ? NETWORK_FLAGS.encrypted : 0) |
      (network.ingress ? NETWORK_FLAGS.ingress : 0),
  );
  writeLabels(out, network.labels);
  writeVarint(out, network.created);
  writeList(out, network.ringSeeds, (seed) => writeText(out, seed));
  writeOptional(out, network.external, (external) =>
    writeOptional(out, external.ipRange, (range) => writeSubnet(out, range)),
  );
}

function decodeNetwork(input: ByteReader): Network {
  const id = networkId(readText(input, MAX_ID_BYTES));
  const name = readText(input, MAX_NAME_BYTES);
  const identifier = vni(input.u24());
  const subnet = readSubnet(input);
  if (!isIpv4(subnet.ip) || subnet.prefixLength < 8 || subnet.prefixLength > 30) input.fail("subnet size");
  const gateway = readIp(input);
  if (!subnetContains(subnet, gateway) || gateway === subnet.ip || gateway === lastAddress(subnet))
    input.fail(`gateway ${gateway} is not a host of the subnet`);
  const mtu = input.u16();
  if (mtu !== 0 && mtu < 576) input.fail(`MTU ${mtu}`);
  const flags = input.u8();
  const labels = readLabels(input);
  const created = readVarint(input);
  const ringSeeds = readList(input, MAX_RING_SEEDS, () => nodeId(readText(input, MAX_ID_BYTES)));
  const external = readOptional(input, () => {
    const ipRange = readOptional(input, () => readSubnet(input));
    return ipRange === undefined ? {} : { ipRange };
  });
  return {
    id,
    name,
    driver: "overlay",
    scope: "swarm",
    vni: identifier,
    subnet,
    gateway,
    ...(mtu === 0 ? {} : { mtu }),
    internal: (flags & NETWORK_FLAGS.internal) !== 0,
    encrypted: (flags & NETWORK_FLAGS.encrypted) !== 0,
    ingress: (flags & NETWORK_FLAGS.ingress) !== 0,
    labels,
    created,
    ringSeeds,
    ...(external === undefined ? {} : { external }),
  };
}

function encodeService(service: Service, out: ByteWriter): void {
  writeText(out, service.id);
  writeText(out, service.name);
  writeList(out, service.networks, (attachment) => {
    writeText(out, attachment.network);
    writeOptional(out, attachment.vip, (vip) => writeIp(out, vip));
  });
  writeList(out, service.ports, (port) => {
    out.u16(port.published).u16(port.target);
    out.u8((port.protocol === "udp" ? 1 : 0) | (port.mode === "host" ? 2 : 0));
    writeOptional(out, port.address, (address) => writeIp(out, address));
  });
  out.u8((service.endpointMode === "dnsrr" ? 1 : 0) | (service.affinity === "client-ip" ? 2 : 0));
  writeLabels(out, service.labels);
  writeVarint(out, service.created);
  writeOptional(out, service.health, (health) => {
    out.u8(health.probe.type === "command" ? 1 : 2);
    if (health.probe.type === "command") writeText(out, health.probe.command);
    else out.u16(health.probe.port);
    writeVarint(out, health.intervalMs);
    writeVarint(out, health.timeoutMs);
    writeVarint(out, health.retries);
  });
  writeOptional(out, service.drainTimeoutMs, (milliseconds) => writeVarint(out, milliseconds));
}

function decodeService(input: ByteReader): Service {
  const id = serviceId(readText(input, MAX_ID_BYTES));
  const name = readText(input, MAX_NAME_BYTES);
  const networks = readList(input, MAX_SERVICE_NETWORKS, () => {
    const network = networkId(readText(input, MAX_ID_BYTES));
    const vip = readOptional(input, () => readIp(input));
    return vip === undefined ? { network } : { network, vip };
  });
  const ports = readList(input, MAX_SERVICE_PORTS, () => decodePort(input));
  const modes = input.u8();
  const labels = readLabels(input);
  const created = readVarint(input);
  const health = readOptional(input, () => decodeHealth(input));
  const drainTimeoutMs = readOptional(input, () => readVarint(input, MAX_DURATION_MS));
  return {
    id,
    name,
    networks,
    ports,
    endpointMode: (modes & 1) !== 0 ? "dnsrr" : "vip",
    affinity: (modes & 2) !== 0 ? "client-ip" : "none",
    labels,
    created,
    ...(health === undefined ? {} : { health }),
    ...(drainTimeoutMs === undefined ? {} : { drainTimeoutMs }),
  };
}

function decodePort(input: ByteReader): PublishedPort {
  const published = input.u16();
  const target = input.u16();
  if (published === 0 || target === 0) input.fail("port 0");
  const flags = input.u8();
  const address = readOptional(input, () => readIp(input));
  return {
    published,
    target,
    protocol: (flags & 1) !== 0 ? "udp" : "tcp",
    ...(address === undefined ? {} : { address }),
    mode: (flags & 2) !== 0 ? "host" : "ingress",
  };
}

function decodeHealth(input: ByteReader): HealthCheck {
  const type = input.u8();
  if (type !== 1 && type !== 2) input.fail(`health probe ${type}`);
  const probe: HealthCheck["probe"] =
    type === 1
      ? { type: "command", command: readText(input, MAX_COMMAND_BYTES) }
      : { type: "tcp", port: input.u16() };
  return {
    probe,
    intervalMs: readVarint(input, MAX_DURATION_MS),
    timeoutMs: readVarint(input, MAX_DURATION_MS),
    retries: readVarint(input, 0xffff),
  };
}

function encodeNode(node: NodeDefinition, out: ByteWriter): void {
  writeText(out, node.id);
  writeText(out, node.name);
  out.u8(node.availability === "drain" ? 1 : 0).u8(node.removed ? 1 : 0);
}

function decodeNode(input: ByteReader): NodeDefinition {
  return {
    id: nodeId(readText(input, MAX_ID_BYTES)),
    name: readText(input, MAX_NAME_BYTES),
    availability: readFlag(input) ? "drain" : "active",
    removed: readFlag(input),
  };
}

function writeLabels(out: ByteWriter, labels: Labels): void {
  writeList(out, Object.entries(labels), ([key, value]) => {
    writeText(out, key);
    writeText(out, value);
  });
}

/** `Object.fromEntries` defines own properties, so a key `__proto__` is only a key. */
function readLabels(input: ByteReader): Labels {
  return Object.fromEntries(
    readList(input, MAX_LABELS, () => [
      readText(input, MAX_LABEL_KEY_BYTES),
      readText(input, MAX_LABEL_VALUE_BYTES),
    ]),
  );
}
