import { utf8 } from "../base/bytes.ts";
import { NetError } from "../base/error.ts";
import type { NetworkId, ServiceId } from "../base/id.ts";
import { tryParseIp, type IpAddr } from "../base/ip.ts";
import {
  MAX_SERVICE_NETWORKS,
  MAX_SERVICE_PORTS,
  type HealthCheck,
  type Network,
  type PublishedPort,
  type Service,
} from "../wire/state/definition.ts";
import { portsCollide, portText } from "./conflicts.ts";
import { findNamed, printable } from "./find.ts";
import { INGRESS } from "./ingress.ts";
import { checkLabels, checkName } from "./network-rules.ts";
import type { PortSpec, ServiceSpec } from "./request.ts";

export interface ServiceContext {
  readonly services: readonly Service[];
  /** In claim order, `ingress` and external networks included. */
  readonly networks: readonly Network[];
  readonly created: number;
}

/**
 * The service that `spec` asks for; VIPs of networks it was on before are kept, others are still to be allocated
 * (`networksWithoutVip`). @throws NetError with what, why and the cure
 */
export function makeService(
  id: ServiceId,
  spec: ServiceSpec,
  previous: Service | undefined,
  context: ServiceContext,
): Service {
  checkName("service", spec.name);
  const others = context.services.filter((service) => service.id !== id);
  const namesake = others.find((service) => service.name === spec.name);
  if (namesake !== undefined) {
    throw new NetError(
      "service-exists",
      `service ${spec.name}: the name is taken by service ${namesake.id.slice(0, 12)}; choose another, or change that one with update`,
    );
  }
  const endpointMode = spec.endpointMode ?? "vip";
  const ports = (spec.ports ?? []).map((port) => checkPort(spec, port));
  checkPorts(spec, ports, others);
  if (endpointMode === "dnsrr" && ports.some((port) => port.mode === "ingress")) {
    throw new NetError(
      "publish-dnsrr",
      `service ${spec.name}: endpoint mode dnsrr has no virtual IP to publish a port through; use --endpoint-mode vip or mode=host`,
    );
  }
  const networks = checkNetworks(spec, context.networks);
  if (ports.some((port) => port.mode === "ingress")) networks.add(INGRESS.id);
  const vips = new Map(previous?.networks.map((attachment) => [attachment.network, attachment.vip]));
  return {
    id,
    name: spec.name,
    networks: [...networks].map((network) => {
      const vip = endpointMode === "vip" ? vips.get(network) : undefined;
      return vip === undefined ? { network } : { network, vip };
    }),
    ports,
    endpointMode,
    affinity: spec.affinity ?? "none",
    labels: checkLabels("service", spec.name, spec.labels),
    created: previous?.created ?? context.created,
    ...(spec.health === undefined ? {} : { health: checkHealth(spec, spec.health) }),
    ...(spec.drainTimeoutMs === undefined ? {} : { drainTimeoutMs: checkDrain(spec, spec.drainTimeoutMs) }),
  };
}

/** The spec of an updated service: absent fields stay. Values from JSON may hold `undefined` for absent. */
export function laidOver(previous: Service | undefined, changes: Partial<ServiceSpec>): ServiceSpec {
  const given = Object.fromEntries(Object.entries(changes).filter(([, field]) => field !== undefined));
  return { ...(previous === undefined ? { name: "" } : specOf(previous)), ...given };
}

function specOf(service: Service): ServiceSpec {
  return {
    name: service.name,
    networks: service.networks.map(({ network }) => network).filter((network) => network !== INGRESS.id),
    ports: service.ports,
    endpointMode: service.endpointMode,
    affinity: service.affinity,
    labels: service.labels,
    ...(service.health === undefined ? {} : { health: service.health }),
    ...(service.drainTimeoutMs === undefined ? {} : { drainTimeoutMs: service.drainTimeoutMs }),
  };
}

export function networksWithoutVip(service: Service): NetworkId[] {
  if (service.endpointMode !== "vip") return [];
  return service.networks.filter(({ vip }) => vip === undefined).map(({ network }) => network);
}

export function withVip(service: Service, network: NetworkId, vip: IpAddr): Service {
  const networks = service.networks.map((attachment) =>
    attachment.network === network ? { network, vip } : attachment,
  );
  return { ...service, networks };
}

function checkNetworks(spec: ServiceSpec, known: readonly Network[]): Set<NetworkId> {
  const networks = new Set<NetworkId>();
  for (const reference of spec.networks ?? []) {
    const network = findNamed("network", reference, known);
    if (network.external !== undefined) {
      throw new NetError(
        "network-external",
        `service ${spec.name} on ${network.name}: an external network is known on this node only; its services are defined by its owner (attach --service NAME joins one)`,
      );
    }
    if (network.ingress) {
      throw new NetError(
        "network-ingress",
        `service ${spec.name} on ${network.name}: publishing a port is what puts a service on ingress`,
      );
    }
    networks.add(network.id);
  }
  if (networks.size < MAX_SERVICE_NETWORKS) return networks;
  throw new NetError(
    "service-too-large",
    `service ${spec.name}: more than ${MAX_SERVICE_NETWORKS - 1} networks`,
  );
}

function checkPort(spec: ServiceSpec, port: PortSpec): PublishedPort {
  const shown = `${port.published}:${port.target}/${port.protocol}`;
  for (const number of [port.published, port.target]) {
    if (!Number.isInteger(number) || number < 1 || number > 65535) {
      throw new NetError(
        "port-invalid",
        `service ${spec.name}: port ${number} of ${shown} is outside 1 … 65535`,
      );
    }
  }
  const address = port.address === undefined ? undefined : tryParseIp(port.address);
  if (port.address !== undefined && address === undefined) {
    throw new NetError(
      "address-invalid",
      `service ${spec.name}: '${printable(port.address)}' of ${shown} is not an IP address`,
    );
  }
  return {
    published: port.published,
    target: port.target,
    protocol: port.protocol,
    ...(address === undefined ? {} : { address }),
    mode: port.mode ?? "ingress",
  };
}

function checkPorts(spec: ServiceSpec, ports: readonly PublishedPort[], others: readonly Service[]): void {
  if (ports.length > MAX_SERVICE_PORTS)
    throw new NetError("service-too-large", `service ${spec.name}: more than ${MAX_SERVICE_PORTS} ports`);
  for (const [index, port] of ports.entries()) {
    if (ports.slice(0, index).some((earlier) => portsCollide(earlier, port)))
      throw new NetError("port-published", `service ${spec.name}: port ${portText(port)} is given twice`);
    for (const other of others) {
      const claim = other.ports.find((candidate) => portsCollide(candidate, port));
      if (claim === undefined) continue;
      throw new NetError(
        "port-published",
        `service ${spec.name}: port ${portText(port)} is already published by service ${other.name} (${portText(claim)} → ${claim.target}); choose another or remove it there`,
      );
    }
  }
}

function checkHealth(spec: ServiceSpec, health: HealthCheck): HealthCheck {
  const day = 24 * 3600 * 1000;
  const { probe, intervalMs, timeoutMs, retries } = health;
  const bad =
    probe.type === "tcp"
      ? !Number.isInteger(probe.port) || probe.port < 1 || probe.port > 65535
      : probe.command === "" || utf8(probe.command).length > 4096;
  const isCount = (value: number, min: number, max: number): boolean =>
    Number.isInteger(value) && value >= min && value <= max;
  if (!bad && isCount(intervalMs, 100, day) && isCount(timeoutMs, 10, day) && isCount(retries, 1, 100))
    return health;
  throw new NetError(
    "health-invalid",
    `service ${spec.name}: a health check needs a command (up to 4096 bytes) or a port, an interval of at least 100 ms, a timeout of at least 10 ms and 1 to 100 retries`,
  );
}

function checkDrain(spec: ServiceSpec, milliseconds: number): number {
  const week = 7 * 24 * 3600 * 1000;
  if (Number.isInteger(milliseconds) && milliseconds >= 0 && milliseconds <= week) return milliseconds;
  throw new NetError(
    "drain-timeout-invalid",
    `service ${spec.name}: drain timeout ${milliseconds} ms is outside 0 … 7 days`,
  );
}
