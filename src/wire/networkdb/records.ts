/**
 * The values Docker keeps in the two tables of an overlay network (libnetwork overlay.proto, agent.proto),
 * both keyed by endpoint id:
 *
 *     message PeerRecord {                  // table overlay_peer_table
 *       string endpoint_ip = 1;             // "10.0.1.5/24"
 *       string endpoint_mac = 2;            // "02:42:0a:00:01:05"
 *       string tunnel_endpoint_ip = 3;      // VTEP, no prefix
 *     }
 *     message EndpointRecord {              // table endpoint_table
 *       string name = 1; string service_name = 2; string service_id = 3;
 *       string virtual_ip = 4;              // "<nil>" when there is none
 *       string endpoint_ip = 5;             // no prefix
 *       repeated PortConfig ingress_ports = 6;
 *       repeated string aliases = 7; repeated string task_aliases = 8;
 *       bool service_disabled = 9;
 *     }
 *     message PortConfig { string name = 1; Protocol protocol = 2; uint32 target_port = 3; uint32 published_port = 4; }
 *
 * A record with an unparsable field is no record: decoding throws and the row is ignored as a whole.
 */
import { DecodeError } from "../../base/error.ts";
import { formatCidr, parseCidr, parseIp, tryParseIp, type Cidr, type IpAddr } from "../../base/ip.ts";
import { parseMac, type MacAddr } from "../../base/mac.ts";
import { encodeFields, readFields, writeBool, writeString, writeVarint } from "./protobuf.ts";

export const PEER_TABLE = "overlay_peer_table";
export const ENDPOINT_TABLE = "endpoint_table";

/** Where an endpoint's frames go. */
export interface PeerRecord {
  /** Address with the prefix length of its subnet. */
  readonly endpointIp: Cidr;
  readonly endpointMac: MacAddr;
  readonly vtep: IpAddr;
}

/** What an endpoint is called and which service it backs. */
export interface EndpointRecord {
  /** First DNS name, never empty. */
  readonly name: string;
  /** Empty for an endpoint that backs no service, as is the id. */
  readonly serviceName: string;
  readonly serviceId: string;
  readonly virtualIp: IpAddr | undefined;
  readonly endpointIp: IpAddr;
  /** Published ports; only on the ingress network. */
  readonly ingressPorts: readonly PortConfig[];
  readonly aliases: readonly string[];
  readonly taskAliases: readonly string[];
  /** Draining: no new connections. */
  readonly serviceDisabled: boolean;
}

export interface PortConfig {
  readonly name: string;
  readonly protocol: "tcp" | "udp" | "sctp";
  /** In the container, 0 … 65535, as is the published one on every node. */
  readonly targetPort: number;
  readonly publishedPort: number;
}

const PEER = "peer record";
const ENDPOINT = "endpoint record";
const PROTOCOLS = ["tcp", "udp", "sctp"] as const;
/** How Go prints the absent address; Docker writes it, so do we. */
const NO_ADDRESS = "<nil>";

export function encodePeerRecord(record: PeerRecord): Uint8Array {
  return encodeFields((writer) => {
    writeString(writer, 1, formatCidr(record.endpointIp));
    writeString(writer, 2, record.endpointMac);
    writeString(writer, 3, record.vtep);
  });
}

/** @throws DecodeError */
export function decodePeerRecord(bytes: Uint8Array): PeerRecord {
  let endpointIp = "";
  let endpointMac = "";
  let vtep = "";
  readFields(PEER, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x0a:
        endpointIp = reader.stringVerify();
        return true;
      case 0x12:
        endpointMac = reader.stringVerify();
        return true;
      case 0x1a:
        vtep = reader.stringVerify();
        return true;
      default:
        return false;
    }
  });
  return { endpointIp: parseCidr(endpointIp), endpointMac: parseMac(endpointMac), vtep: parseIp(vtep) };
}

export function encodeEndpointRecord(record: EndpointRecord): Uint8Array {
  return encodeFields((writer) => {
    writeString(writer, 1, record.name);
    writeString(writer, 2, record.serviceName);
    writeString(writer, 3, record.serviceId);
    writeString(writer, 4, record.virtualIp ?? NO_ADDRESS);
    writeString(writer, 5, record.endpointIp);
    for (const port of record.ingressPorts) {
      writer.uint32(0x32).fork();
      writeString(writer, 1, port.name);
      writeVarint(writer, 2, PROTOCOLS.indexOf(port.protocol));
      writeVarint(writer, 3, port.targetPort);
      writeVarint(writer, 4, port.publishedPort);
      writer.ldelim();
    }
    // An empty alias would be a repeated field without bytes; Docker writes none.
    for (const alias of record.aliases) writer.uint32(0x3a).string(alias);
    for (const alias of record.taskAliases) writer.uint32(0x42).string(alias);
    writeBool(writer, 9, record.serviceDisabled);
  });
}

/** @throws DecodeError */
export function decodeEndpointRecord(bytes: Uint8Array): EndpointRecord {
  let name = "";
  let serviceName = "";
  let serviceId = "";
  let virtualIp = "";
  let endpointIp = "";
  const ingressPorts: PortConfig[] = [];
  const aliases: string[] = [];
  const taskAliases: string[] = [];
  let serviceDisabled = false;
  readFields(ENDPOINT, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x0a:
        name = reader.stringVerify();
        return true;
      case 0x12:
        serviceName = reader.stringVerify();
        return true;
      case 0x1a:
        serviceId = reader.stringVerify();
        return true;
      case 0x22:
        virtualIp = reader.stringVerify();
        return true;
      case 0x2a:
        endpointIp = reader.stringVerify();
        return true;
      case 0x32:
        ingressPorts.push(decodePortConfig(reader.bytes()));
        return true;
      case 0x3a:
        aliases.push(reader.stringVerify());
        return true;
      case 0x42:
        taskAliases.push(reader.stringVerify());
        return true;
      case 0x48:
        serviceDisabled = reader.bool();
        return true;
      default:
        return false;
    }
  });
  if (name === "") throw new DecodeError(ENDPOINT, 0, "has no name");
  return {
    name,
    serviceName,
    serviceId,
    virtualIp: tryParseIp(virtualIp),
    endpointIp: parseIp(endpointIp),
    ingressPorts,
    aliases,
    taskAliases,
    serviceDisabled,
  };
}

/** Whether two records differ at most in `serviceDisabled`; lists are compared as sets (libnetwork EndpointRecord.Equal). */
export function equivalentEndpoints(a: EndpointRecord, b: EndpointRecord): boolean {
  return (
    a.name === b.name &&
    a.serviceName === b.serviceName &&
    a.serviceId === b.serviceId &&
    a.virtualIp === b.virtualIp &&
    a.endpointIp === b.endpointIp &&
    sameSet(a.ingressPorts.map(portText), b.ingressPorts.map(portText)) &&
    sameSet(a.aliases, b.aliases) &&
    sameSet(a.taskAliases, b.taskAliases)
  );
}

function decodePortConfig(bytes: Uint8Array): PortConfig {
  let name = "";
  let protocolNumber = 0;
  let targetPort = 0;
  let publishedPort = 0;
  readFields(ENDPOINT, bytes, (fieldTag, reader) => {
    switch (fieldTag) {
      case 0x0a:
        name = reader.stringVerify();
        return true;
      case 0x10:
        protocolNumber = reader.uint32();
        return true;
      case 0x18:
        targetPort = reader.uint32();
        return true;
      case 0x20:
        publishedPort = reader.uint32();
        return true;
      default:
        return false;
    }
  });
  const protocol = PROTOCOLS[protocolNumber];
  if (protocol === undefined) throw new DecodeError(ENDPOINT, 0, `protocol ${protocolNumber}`);
  if (targetPort > 65535 || publishedPort > 65535) throw new DecodeError(ENDPOINT, 0, "port above 65535");
  return { name, protocol, targetPort, publishedPort };
}

function portText(port: PortConfig): string {
  return `${port.protocol} ${port.targetPort} ${port.publishedPort} ${port.name}`;
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  const left = new Set(a);
  const right = new Set(b);
  return left.size === right.size && [...left].every((item) => right.has(item));
}
