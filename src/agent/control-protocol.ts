import { z } from "zod";

/**
 * The control API between netctl and netagent: one request a connection, over `transport/unix-socket.ts`.
 *
 * netctl sends `{ method, params }`. The agent answers with any number of `{ progress: TEXT }` and `{ event: VALUE }`
 * frames and closes with exactly one of `{ result: VALUE }` or `{ error: { code, message } }`.
 */

const name = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/, "a name has 1 to 63 letters, digits, '-', '_' or '.'");
/** A name or a unique prefix of an id. */
const reference = z.string().min(1).max(255);
const timeoutMs = z.number().int().min(0).max(3_600_000).default(10_000);
/** How long established connections may take to end by themselves when a backend leaves. */
const drainTimeoutMs = z.number().int().min(0).max(3_600_000);
const protocol = z.enum(["tcp", "udp"]);
const port = z.number().int().min(1, "a port is 1 to 65535").max(65535, "a port is 1 to 65535");

const publish = z.object({
  published: port,
  target: port,
  protocol: protocol.default("tcp"),
  address: z.string().optional(),
  mode: z.enum(["ingress", "host"]).default("ingress"),
});

const sandbox = z.union([
  z.object({ netns: z.string().min(1).max(4096) }),
  z.object({ pid: z.number().int().positive() }),
]);

const attach = z.object({
  network: reference,
  sandbox,
  name: name.optional(),
  ip: z.string().optional(),
  aliases: z.array(name).max(64).default([]),
  service: reference.optional(),
  ifname: z
    .string()
    .regex(/^[A-Za-z0-9_.-]{1,15}$/, "an interface name has 1 to 15 letters, digits, '-', '_' or '.'")
    .default("eth0"),
  healthTcp: port.optional(),
  healthCmd: z.string().max(4096).optional(),
  timeoutMs,
});

/** Every request the agent understands, by method. Unknown methods and malformed parameters are refused by name. */
export const requests = {
  info: z.object({}),
  peers: z.object({}),
  join: z.object({ addresses: z.array(z.string().min(1).max(255)).min(1).max(64), timeoutMs }),
  leave: z.object({ timeoutMs }),
  "keys.list": z.object({ timeoutMs }),
  "keys.install": z.object({ key: z.string().max(128), timeoutMs }),
  "keys.use": z.object({ key: z.string().max(128), timeoutMs }),
  "keys.remove": z.object({ key: z.string().max(128), timeoutMs }),
  "network.create": z.object({
    name,
    subnet: z.string().optional(),
    gateway: z.string().optional(),
    vni: z.number().int().optional(),
    mtu: z.number().int().optional(),
    internal: z.boolean().default(false),
    encrypted: z.boolean().default(false),
    labels: z.record(z.string().max(128), z.string().max(1024)).default({}),
    external: z.object({ id: z.string().min(1).max(64), ipRange: z.string().optional() }).optional(),
    timeoutMs,
  }),
  "network.ls": z.object({}),
  "network.inspect": z.object({ network: reference }),
  "network.rm": z.object({ network: reference, timeoutMs }),
  attach,
  detach: z.object({
    endpoint: reference,
    force: z.boolean().default(false),
    drainTimeoutMs: drainTimeoutMs.optional(),
    timeoutMs,
  }),
  /** A fresh namespace owned by process `ownerPid`; removed with its endpoints when that process is gone. */
  "sandbox.create": z.object({ ownerPid: z.number().int().positive() }),
  "sandbox.remove": z.object({ path: z.string().min(1).max(4096), timeoutMs }),
  /** Takes its backends out of rotation everywhere; established connections are not waited for. */
  "sandbox.drain": z.object({ path: z.string().min(1).max(4096), timeoutMs }),
  "endpoint.ls": z.object({ network: reference.optional(), service: reference.optional() }),
  "endpoint.inspect": z.object({ endpoint: reference }),
  "service.create": z.object({
    name,
    networks: z.array(reference).max(64).default([]),
    publish: z.array(publish).max(256).default([]),
    endpointMode: z.enum(["vip", "dnsrr"]).default("vip"),
    affinity: z.enum(["none", "client-ip"]).default("none"),
    labels: z.record(z.string().max(128), z.string().max(1024)).default({}),
    force: z.boolean().default(false),
    drainTimeoutMs: drainTimeoutMs.optional(),
    timeoutMs,
  }),
  "service.ls": z.object({}),
  "service.inspect": z.object({ service: reference }),
  "service.ps": z.object({ service: reference }),
  "service.update": z.object({
    service: reference,
    publishAdd: z.array(publish).max(256).default([]),
    publishRemove: z
      .array(publish.pick({ published: true, protocol: true }))
      .max(256)
      .default([]),
    affinity: z.enum(["none", "client-ip"]).optional(),
    drainTimeoutMs: drainTimeoutMs.optional(),
    force: z.boolean().default(false),
    timeoutMs,
  }),
  "service.rm": z.object({ service: reference, timeoutMs }),
  "node.ls": z.object({}),
  "node.inspect": z.object({ node: reference }),
  "node.update": z.object({ node: reference, availability: z.enum(["active", "drain"]), timeoutMs }),
  "node.rm": z.object({ node: reference, timeoutMs }),
  tables: z.object({
    network: reference.optional(),
    table: z.string().max(64).optional(),
    all: z.boolean().default(false),
  }),
  plan: z.object({ network: reference.optional() }),
  events: z.object({ sinceMs: z.number().int().min(0).optional(), follow: z.boolean().default(true) }),
  doctor: z.object({}),
  /** Without `repair` only tells. */
  repair: z.object({ repair: z.enum(["on", "off"]).optional(), timeoutMs }),
  /** What a name means to an endpoint of this node, and why. */
  resolve: z.object({ from: reference, name: z.string().min(1).max(255) }),
  trace: z.object({ from: reference, to: reference, port: port.optional() }),
  /** Where netctl may capture: it runs tcpdump itself, so that a flood of frames does not pass through the agent. */
  "capture.place": z.object({ network: reference }),
  /** The same on another node, whose agent runs tcpdump; the frames come as events. */
  "capture.remote": z.object({
    network: reference,
    node: reference,
    filter: z.string().max(4096).optional(),
    count: z.number().int().min(1).optional(),
  }),
} as const;

export type Method = keyof typeof requests;
/** Parameters as a client writes them: fields with defaults may be left out. */
export type Params<M extends Method> = z.input<(typeof requests)[M]>;
/** Parameters as the agent sees them, valid by construction. */
export type ParsedParams<M extends Method> = z.output<(typeof requests)[M]>;

/** What each method answers; the fields are the contract of `netctl -o json`. */
export interface Results {
  info: InfoView;
  peers: PeerView[];
  join: {
    readonly joined: string[];
    readonly failed: { readonly address: string; readonly reason: string }[];
  };
  leave: Record<string, never>;
  "keys.list": KeyAnswer[];
  "keys.install": KeyAnswer[];
  "keys.use": KeyAnswer[];
  "keys.remove": KeyAnswer[];
  "network.create": NetworkView;
  "network.ls": NetworkView[];
  "network.inspect": NetworkDetailView;
  "network.rm": { readonly id: string };
  attach: EndpointView;
  detach: { readonly id: string };
  "sandbox.create": { readonly path: string; readonly resolvConf: string };
  "sandbox.remove": Record<string, never>;
  "sandbox.drain": Record<string, never>;
  "endpoint.ls": EndpointView[];
  "endpoint.inspect": EndpointView;
  "service.create": ServiceView;
  "service.ls": ServiceView[];
  "service.inspect": ServiceView;
  "service.ps": BackendView[];
  "service.update": ServiceView;
  "service.rm": { readonly id: string };
  "node.ls": NodeView[];
  "node.inspect": NodeView;
  "node.update": NodeView;
  "node.rm": { readonly id: string };
  tables: TableRowView[];
  plan: PlanView[];
  /** Events arrive as `event` frames of type EventView; the result ends a stream that does not follow. */
  events: Record<string, never>;
  doctor: DoctorView;
  repair: RepairView;
  resolve: ResolveView;
  trace: TraceView;
  "capture.place": { readonly netns: string; readonly link: string };
  "capture.remote": Record<string, never>;
}

export interface InfoView {
  readonly id: string;
  readonly name: string;
  readonly version: string;
  readonly memberName: string;
  readonly advertise: string;
  readonly vtep: string;
  readonly dataPathPort: number;
  readonly dataplane: "kernel" | "userspace";
  readonly dataplaneReason: string;
  /** Networks and nodes whose frames take it, and why not, or not all; the reason is empty when nothing is in its way. */
  readonly fastPath: { readonly networks: number; readonly vteps: number; readonly reason: string };
  readonly members: number;
  readonly encrypted: boolean;
  readonly healthScore: number;
  readonly dataDir: string;
  readonly pid: number;
  readonly uptimeSeconds: number;
  /** Off: drift is told and left alone (`netctl repair`). */
  readonly repair: "on" | "off";
  /** How late the event loop was in the last minute or two. */
  readonly loopDelayMs: { readonly p99: number; readonly longest: number };
}

/** `on 2 networks, to 3 nodes`, or why not. */
export function describeFastPath({ networks, vteps, reason }: InfoView["fastPath"]): string {
  const few = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;
  if (networks === 0 || vteps === 0) return `not in use: ${reason || "no remote endpoint"}`;
  return `${few(networks, "network")}, to ${few(vteps, "node")}${reason === "" ? "" : `; not everywhere: ${reason}`}`;
}

export interface PeerView {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly state: "alive" | "suspect" | "dead" | "left";
  readonly role: string;
  readonly incarnation: number;
  readonly rttMs: number | null;
  readonly dataPath: "ok" | "blocked" | "unknown";
  /** Which way it is blocked, or that the MTU is too small; empty when all is well. */
  readonly dataPathDetail: string;
  /** Largest inner packet that gets through; null while unknown. */
  readonly mtu: number | null;
  /**
   * What is wrong in this node's kernel on the way to that peer's endpoints and is not mended; of this node itself
   * what concerns all.
   */
  readonly faults: string[];
  readonly vtep: string;
  readonly capabilities: string[];
  readonly version: string;
  /** Milliseconds since the state last changed. */
  readonly sinceMs: number;
  readonly self: boolean;
}

export interface KeyAnswer {
  readonly node: string;
  readonly ok: boolean;
  /** Short fingerprints, the sealing key first; never the keys themselves. */
  readonly keys: string[];
  readonly error?: string;
}

export interface NetworkView {
  readonly id: string;
  readonly name: string;
  readonly driver: "overlay";
  readonly scope: "swarm" | "local";
  readonly vni: number;
  readonly subnet: string;
  readonly gateway: string;
  readonly mtu: number;
  readonly encrypted: boolean;
  readonly ingress: boolean;
  readonly internal: boolean;
  readonly labels: Readonly<Record<string, string>>;
  /** Set when another network owns the name or VNI: what to do about it. */
  readonly conflict?: string;
}

export interface NetworkDetailView extends NetworkView {
  readonly nodes: string[];
  readonly endpoints: EndpointView[];
  readonly addresses: {
    readonly total: number;
    readonly used: number;
    readonly owners: Readonly<Record<string, number>>;
  };
}

export interface EndpointView {
  readonly id: string;
  readonly name: string;
  readonly network: string;
  readonly ip: string;
  readonly prefixLength: number;
  readonly mac: string;
  readonly node: string;
  readonly vtep: string;
  readonly service: string;
  readonly state: "ready" | "draining";
  readonly ifname?: string;
  readonly sandbox?: string;
  readonly local: boolean;
}

export interface PortView {
  readonly published: number;
  readonly target: number;
  readonly protocol: "tcp" | "udp";
  readonly address?: string;
  readonly mode: "ingress" | "host";
}

export interface BackendView {
  readonly endpoint: string;
  readonly name: string;
  readonly node: string;
  readonly ip: string;
  readonly state: "ready" | "draining";
}

export interface ServiceView {
  readonly id: string;
  readonly name: string;
  readonly networks: { readonly network: string; readonly vip: string }[];
  readonly ports: PortView[];
  readonly endpointMode: "vip" | "dnsrr";
  readonly affinity: "none" | "client-ip";
  readonly backends: BackendView[];
  readonly conflict?: string;
}

export interface NodeView {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  readonly state: PeerView["state"] | "unknown";
  readonly availability: "active" | "drain";
  readonly endpoints: number;
  readonly self: boolean;
}

export interface TableRowView {
  readonly network: string;
  readonly table: string;
  readonly key: string;
  readonly owner: string;
  readonly lamport: string;
  readonly ageSeconds: number;
  readonly state: "live" | "tombstone" | "suspended";
  /** When a tombstone, or a row whose owner is gone, is forgotten; null for others. */
  readonly expiresSeconds: number | null;
  readonly value: Readonly<Record<string, unknown>>;
}

export interface PlanView {
  readonly network: string;
  readonly steps: string[];
}

export interface EventView {
  /** Wall clock, ISO 8601. */
  readonly time: string;
  readonly type: string;
  readonly subject: string;
  readonly detail: string;
}

/** Whether this node's agent mends what other hands do to its objects in the kernel. */
export interface RepairView {
  readonly repair: "on" | "off";
  /** What stands since it does not, as far as it has been found. */
  readonly standing: { readonly subject: string; readonly text: string }[];
}

export interface DoctorView {
  readonly ok: boolean;
  readonly checks: {
    readonly name: string;
    readonly subject: string;
    readonly status: "ok" | "warning" | "failed";
    readonly detail: string;
    readonly cure?: string;
  }[];
}

export interface HopView {
  readonly node: string;
  /** `host`, a sandbox's path, a network's namespace, `underlay`. */
  readonly place: string;
  readonly what: string;
  readonly status: "ok" | "broken" | "unknown";
  /** What is wrong; empty when nothing is. */
  readonly detail: string;
}

export interface ResolveView {
  readonly name: string;
  /** The endpoint that asks. */
  readonly from: string;
  readonly outcome: "answered" | "empty" | "waiting" | "refused" | "forwarded";
  /** Why there is no address; empty when there is. */
  readonly detail: string;
  readonly addresses: string[];
  /** How long a client may remember them; null without addresses. */
  readonly ttlSeconds: number | null;
  /** In the order they are tried; the first known one counts. */
  readonly tried: NameTryView[];
}

export interface NameTryView {
  readonly name: string;
  readonly network: string;
  readonly known: boolean;
  /** The definition of that name; `vip` is empty where backends are answered. */
  readonly service?: { readonly name: string; readonly vip: string };
  readonly rows: NameRowView[];
}

/** A row of endpoint_table that gives a name. */
export interface NameRowView {
  readonly endpoint: string;
  readonly id: string;
  readonly node: string;
  readonly ip: string;
  /** Draining ones are not answered, suspended ones only where nobody serves. */
  readonly state: "serving" | "draining" | "suspended";
  readonly lamport: string;
  readonly ageSeconds: number;
}

export interface TraceView {
  readonly ok: boolean;
  readonly hops: HopView[];
}

/** A frame from the agent: progress and events of a request under way, then its result or the reason it failed. */
export type Reply =
  | { readonly progress: string }
  | { readonly event: unknown }
  | { readonly error: { readonly code: string; readonly message: string } }
  | { readonly result: unknown };
