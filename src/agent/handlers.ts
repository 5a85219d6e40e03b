import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { NetError } from "../base/error.ts";
import { parseCidr, parseIp, type Cidr, type SocketAddr } from "../base/ip.ts";
import { Netns } from "../kernel/netns.ts";
import type { NodePort } from "../mesh/claims.ts";
import { namespaceName, VXLAN_LINK } from "../overlay/naming.ts";
import { formatStep } from "../overlay/plan.ts";
import { INGRESS } from "../state/ingress.ts";
import type { Agent } from "./agent.ts";
import type { LoopDelay } from "./loop-delay.ts";
import type { PlanView, ParsedParams, Results } from "./control-protocol.ts";
import type { ControlHandlers, Reporter } from "./control-server.ts";
import { DRAIN_TIMEOUT_MS, type Drainer } from "./drainer.ts";
import type { EndpointRecord } from "./endpoints.ts";
import { hasCheck } from "./health-runner.ts";
import type { Keys } from "./keys.ts";
import { captureRemotely } from "./remote-capture.ts";
import type { PortCheck } from "./port-check.ts";
import { checkedSeed, seedAddresses } from "./seeds.ts";
import type { Views } from "./views.ts";

/** Parts that handlers need beside the agent. */
export interface HandlerParts {
  readonly agent: Agent;
  readonly views: Views;
  readonly keys: Keys;
  readonly version: string;
  readonly dataplaneReason: string;
  /** Brings the routing mesh into agreement with what is desired. @throws NetError when it does not within `timeoutMs`. */
  readonly meshSettled: (timeoutMs: number) => Promise<void>;
  readonly drainer: Drainer;
  /** Resolves when names are served in the sandbox, or cannot be just now. */
  readonly namesServed: (sandbox: string) => Promise<void>;
  readonly loopDelay: Pick<LoopDelay, "delays">;
  /** What the mesh would change now. */
  readonly meshPlan: () => PlanView[];
  readonly portCheck: PortCheck;
  /** What packets get through between all nodes, where that is less than this node's underlay takes. */
  readonly narrowestMtu: () => Promise<number | undefined>;
  readonly doctor: () => Promise<Results["doctor"]>;
  readonly trace: (from: string, to: string, port: number | undefined) => Promise<Results["trace"]>;
  /** What a name means to an endpoint of this node. @throws NetError */
  readonly resolve: (from: string, name: string) => Results["resolve"];
}

/** How often a backend's leg in the ingress network is looked for while it is made. */
const LEG_LOOK_MS = 10;

/** What every request does. Decisions are the state's, the overlay's and the mesh's; here they meet the operator. */
export function createHandlers(parts: HandlerParts): ControlHandlers {
  const { agent, views, keys } = parts;
  const { loop, endpoints, reconciler, sandboxes } = agent;
  const { node } = loop;

  async function attach(params: ParsedParams<"attach">): Promise<Results["attach"]> {
    const deadline = Date.now() + params.timeoutMs;
    const left = (): number => Math.max(1, deadline - Date.now());
    const network = node.state.findNetwork(params.network);
    if (network.id === INGRESS.id) {
      throw new NetError(
        "network-ingress",
        "attach: ingress takes no endpoints of its own; publish a port with netctl service create",
      );
    }
    if (network.disabled) {
      throw new NetError(
        "network-disabled",
        `attach to ${network.name}: ${network.conflicts[0]?.text ?? "the network is disabled"}`,
      );
    }
    if (network.encrypted) throw cannotEncrypt(`attach to ${network.name}`);
    const service = params.service === undefined ? undefined : node.state.findService(params.service);
    if (service !== undefined && !service.networks.some((one) => one.network === network.id)) {
      throw new NetError(
        "service-network",
        `attach: service ${service.name} is not on network ${network.name} (netctl service inspect ${service.name})`,
      );
    }
    const path = "netns" in params.sandbox ? params.sandbox.netns : `/proc/${params.sandbox.pid}/ns/net`;
    checkSandbox(path, params.ifname);
    const record = await agent.allocate(
      network,
      {
        kind: "user",
        name: params.name ?? "",
        ifname: params.ifname,
        sandbox: { type: "netns", path },
        aliases: params.aliases,
        ...(service === undefined ? {} : { service: service.id }),
        ...(params.healthTcp === undefined ? {} : { healthTcp: params.healthTcp }),
        ...(params.healthCmd === undefined ? {} : { healthCmd: params.healthCmd }),
      },
      params.ip,
    );
    endpoints.add(record);
    try {
      // Others may learn the path while we write it down and program our own kernel; the name waits for all of that.
      agent.publish();
      endpoints.save();
      await reconciler.settled(network.id, left());
    } catch (error) {
      await agent.drop(record, 2_000);
      throw error;
    }
    // Out of rotation until its check has passed once.
    if (hasCheck(record)) endpoints.unhealthy.add(record.id);
    endpoints.ready.add(record.id);
    agent.refresh();
    agent.publish();
    if (service !== undefined) {
      if (service.ports.length > 0) await backendLegReady(record, left());
      await parts.meshSettled(left());
    }
    // Whoever is told of the endpoint may ask for a name at once.
    await parts.namesServed(path);
    agent.event(
      "endpoint-attached",
      record.name || record.id.slice(0, 12),
      `${record.ip} on ${network.name}`,
    );
    return views.findEndpoint(record.id);
  }

  /** Published ports reach it from now on. @throws NetError after `withinMs` */
  async function backendLegReady(record: EndpointRecord, withinMs: number): Promise<void> {
    const deadline = performance.now() + withinMs;
    for (;;) {
      const leg = endpoints.backendLeg(record.id);
      if (leg !== undefined && endpoints.ready.has(leg.id)) return;
      if (performance.now() >= deadline) {
        throw new NetError(
          "timeout",
          `attach: ${record.name || record.id.slice(0, 12)} is on its network, but not yet on ingress (netctl plan shows what is missing)`,
        );
      }
      await new Promise((resolve) => setTimeout(resolve, LEG_LOOK_MS));
    }
  }

  /** The namespace exists and has room for the interface. @throws NetError */
  function checkSandbox(path: string, ifname: string): void {
    using netns = openSandbox(path);
    using host = Netns.current();
    if (netns.id === host.id)
      throw new NetError("sandbox-host", `attach: ${path} is the host's own namespace`);
    const used = endpoints
      .all()
      .find((one) => one.sandbox.type === "netns" && one.sandbox.path === path && one.ifname === ifname);
    if (used !== undefined || netns.run(() => interfaceNames().includes(ifname))) {
      throw new NetError(
        "interface-exists",
        `attach: ${path} has an interface ${ifname} already (choose another with --ifname)`,
      );
    }
  }

  /**
   * Out of rotation first, when it backs a service; `connectionsMs` is how long its established connections may take
   * then. Undefined: not even that, it is cut off.
   */
  async function detach(
    record: EndpointRecord,
    connectionsMs: number | undefined,
    timeoutMs: number,
    progress?: (text: string) => void,
  ): Promise<void> {
    if (record.service !== undefined && connectionsMs !== undefined)
      await parts.drainer.drain(record, {
        connectionsMs,
        ...(progress === undefined ? {} : { progress }),
      });
    await agent.drop(record, timeoutMs);
    agent.event(
      "endpoint-detached",
      record.name || record.id.slice(0, 12),
      `${record.ip} on ${agent.networkName(record.network)}`,
    );
  }

  function usersIn(path: string): EndpointRecord[] {
    return endpoints
      .all()
      .filter(({ kind, sandbox }) => kind === "user" && sandbox.type === "netns" && sandbox.path === path);
  }

  /** The user endpoint of this node that a reference names. @throws NetError */
  function localRecord(reference: string): EndpointRecord {
    const view = views.findEndpoint(reference, true);
    const record = endpoints.all().find((one) => one.id === view.id);
    const owner = record?.parent === undefined ? record : endpoints.get(record.parent);
    if (owner === undefined || owner.kind !== "user")
      throw new NetError("endpoint-unknown", `endpoint '${reference}': not one that was attached`);
    return owner;
  }

  /** Every address the names stand for; names that do not resolve are failures of their own. */
  async function resolveAll(
    addresses: readonly string[],
  ): Promise<{ found: Map<string, SocketAddr[]>; failed: { address: string; reason: string }[] }> {
    const found = new Map<string, SocketAddr[]>();
    const failed: { address: string; reason: string }[] = [];
    await Promise.all(
      addresses.map(async (text) => {
        try {
          const { gossipPort, requireNodeNames } = agent.config;
          found.set(text, await seedAddresses(checkedSeed(text, gossipPort, requireNodeNames)));
        } catch (error) {
          failed.push({ address: text, reason: error instanceof Error ? error.message : String(error) });
        }
      }),
    );
    return { found, failed };
  }

  return {
    info: () => {
      const { p99Ms, longestMs } = parts.loopDelay.delays;
      let members = 0;
      for (const member of node.swim.members())
        if (member.state === "alive" || member.state === "suspect") members++;
      return {
        id: node.facts.id,
        name: agent.config.name,
        version: parts.version,
        memberName: node.name,
        advertise: `${agent.config.advertise.ip}:${agent.config.advertise.port}`,
        vtep: agent.config.dataPathAddrs.join(", "),
        dataPathPort: agent.config.dataPathPort,
        dataplane: agent.dataplane.kind,
        dataplaneReason: parts.dataplaneReason,
        fastPath: agent.dataplane.fastPath?.status() ?? NO_FAST_PATH,
        members,
        encrypted: node.keys.length > 0,
        healthScore: node.swim.healthScore,
        dataDir: agent.config.dataDir,
        pid: process.pid,
        uptimeSeconds: Math.round(process.uptime()),
        repair: onOff(agent.repair),
        loopDelayMs: { p99: Math.round(p99Ms), longest: Math.round(longestMs) },
      };
    },
    peers: () => views.peers(),
    join: async ({ addresses, timeoutMs }, reporter) => {
      reporter.progress(`joining through ${addresses.join(", ")}`);
      const { found, failed } = await resolveAll(addresses);
      const results = await loop.join([...found.values()].flat(), timeoutMs);
      const joined: string[] = [];
      for (const [text, targets] of found) {
        const own = results.filter((result) =>
          targets.some((target) => target.ip === result.address.ip && target.port === result.address.port),
        );
        if (own.some((result) => result.failure === undefined)) joined.push(text);
        else failed.push({ address: text, reason: own[0]?.failure ?? "no answer" });
      }
      if (joined.length === 0) {
        const reasons = failed.map((one) => `${one.address}: ${one.reason}`).join("; ");
        throw new NetError(
          "join-failed",
          `join: nobody answered: ${reasons} (is netagent running there, with the same --gossip-key?)`,
        );
      }
      return { joined, failed };
    },
    leave: async ({ timeoutMs }) => {
      const left = new Promise<void>((resolve) => (agent.onLeft = resolve));
      loop.step({ type: "leave", timeoutMs });
      await left;
      return {};
    },
    "keys.list": ({ timeoutMs }) => keys.everywhere("list", undefined, timeoutMs),
    "keys.install": ({ key, timeoutMs }) => keys.everywhere("install", key, timeoutMs),
    "keys.use": ({ key, timeoutMs }) => keys.everywhere("use", key, timeoutMs),
    "keys.remove": ({ key, timeoutMs }) => keys.everywhere("remove", key, timeoutMs),
    "network.create": async (params) => {
      const { timeoutMs: _timeoutMs, external, ...rest } = params;
      if (rest.encrypted) throw cannotEncrypt(`create ${rest.name}`);
      const narrow = rest.mtu === undefined ? await parts.narrowestMtu() : undefined;
      const mtu = narrow === undefined ? {} : { mtu: narrow };
      const spec = {
        ...defined(rest),
        ...mtu,
        ...(external === undefined ? {} : { external: defined(external) }),
      };
      const result = await loop.request({ type: "create-network", spec, hostSubnets: hostSubnets(agent) });
      if (result.type !== "network") throw new NetError("internal", "create-network answered something else");
      return views.network(node.state.findNetwork(result.network.id));
    },
    "network.ls": () => views.networks(),
    "network.inspect": ({ network }) => views.networkDetail(node.state.findNetwork(network)),
    "network.rm": async ({ network, timeoutMs }) => {
      const found = node.state.findNetwork(network);
      const names = views
        .endpointsOf(found)
        .map((endpoint) => `${endpoint.name || endpoint.id.slice(0, 12)} on ${endpoint.node}`);
      await loop.request({ type: "remove-network", network: found.id, endpoints: names });
      await reconciler.settled(found.id, timeoutMs);
      return { id: found.id };
    },
    attach,
    detach: async ({ endpoint, timeoutMs, force, drainTimeoutMs }, reporter) => {
      const record = localRecord(endpoint);
      const connectionsMs = drainTimeoutMs ?? agent.serviceOf(record)?.drainTimeoutMs ?? DRAIN_TIMEOUT_MS;
      await detach(record, force ? undefined : connectionsMs, timeoutMs, (text) => reporter.progress(text));
      return { id: record.id };
    },
    "sandbox.create": ({ ownerPid }) => {
      const { path, resolvConf } = sandboxes.create(ownerPid);
      return { path, resolvConf };
    },
    "sandbox.remove": async ({ path, timeoutMs }) => {
      if (!sandboxes.owns(path))
        throw new NetError("not-ours", `remove sandbox ${path}: netagent did not make it`);
      // The command has ended: nobody is left to finish anything, but until the peers know, new connections come, and
      // the empty namespace refuses them where a missing interface would leave them hanging.
      await Promise.all(usersIn(path).map((record) => detach(record, 0, timeoutMs)));
      sandboxes.remove(path);
      return {};
    },
    "sandbox.drain": async ({ path }) => {
      if (!sandboxes.owns(path))
        throw new NetError("not-ours", `drain sandbox ${path}: netagent did not make it`);
      const backends = usersIn(path).filter((record) => record.service !== undefined);
      await Promise.all(backends.map((record) => parts.drainer.drain(record, { connectionsMs: 0 })));
      return {};
    },
    "endpoint.ls": ({ network, service }) => {
      const all =
        network === undefined ? views.endpoints() : views.endpointsOf(node.state.findNetwork(network));
      const name = service === undefined ? undefined : node.state.findService(service).name;
      return all.filter((endpoint) => name === undefined || endpoint.service === name);
    },
    "endpoint.inspect": ({ endpoint }) => views.findEndpoint(endpoint),
    "service.create": async (params) => {
      if (!params.force) await parts.portCheck.check(onEveryNode(params.publish));
      const { timeoutMs, force: _force, publish, drainTimeoutMs, ...rest } = params;
      const spec = {
        ...rest,
        ports: publish.map(defined),
        ...(drainTimeoutMs === undefined ? {} : { drainTimeoutMs }),
      };
      const result = await loop.request({ type: "create-service", spec });
      if (result.type !== "service") throw new NetError("internal", "create-service answered something else");
      agent.refresh();
      await parts.meshSettled(timeoutMs);
      return views.service(node.state.findService(result.service.id));
    },
    "service.ls": () => views.services(),
    "service.inspect": ({ service }) => views.service(node.state.findService(service)),
    "service.ps": ({ service }) => views.backends(node.state.findService(service)),
    "service.update": async (params) => {
      const { service, publishAdd, publishRemove, affinity, drainTimeoutMs, force, timeoutMs } = params;
      const before = node.state.findService(service);
      if (!force) await parts.portCheck.check(onEveryNode(publishAdd));
      const missing = publishRemove.find(
        (port) =>
          !before.ports.some((one) => one.published === port.published && one.protocol === port.protocol),
      );
      if (missing !== undefined) {
        throw new NetError(
          "port-unknown",
          `update ${before.name}: it does not publish ${missing.published}/${missing.protocol}`,
        );
      }
      const kept = before.ports.filter(
        (port) =>
          !publishRemove.some((one) => one.published === port.published && one.protocol === port.protocol),
      );
      await loop.request({
        type: "update-service",
        service: before.id,
        spec: {
          ports: [...kept, ...publishAdd.map(defined)],
          ...(affinity === undefined ? {} : { affinity }),
          ...(drainTimeoutMs === undefined ? {} : { drainTimeoutMs }),
        },
      });
      agent.refresh();
      await parts.meshSettled(timeoutMs);
      return views.service(node.state.findService(before.id));
    },
    "service.rm": async ({ service, timeoutMs }) => {
      const found = node.state.findService(service);
      await loop.request({ type: "remove-service", service: found.id });
      agent.refresh();
      await parts.meshSettled(timeoutMs);
      return { id: found.id };
    },
    "node.ls": () => views.nodes(),
    "node.inspect": ({ node: reference }) => views.findNode(reference),
    "node.update": async ({ node: reference, availability, timeoutMs }) => {
      const found = views.findNode(reference);
      await loop.request({ type: "update-node", node: found.id, availability });
      agent.refresh();
      await parts.meshSettled(timeoutMs);
      return views.findNode(found.id);
    },
    "node.rm": async ({ node: reference }) => {
      const found = views.findNode(reference);
      await loop.request({ type: "remove-node", node: found.id });
      return { id: found.id };
    },
    tables: ({ network, table, all }) =>
      views.rows(network === undefined ? undefined : node.state.findNetwork(network).id, table, all),
    plan: async ({ network }) => {
      const ids = network === undefined ? [...reconciler.networks] : [node.state.findNetwork(network).id];
      const overlay: PlanView[] = [];
      for (const id of ids) {
        const { steps, blocked } = await reconciler.plan(id);
        const waiting = blocked.map((one) => `wait for the namespace of ${one.endpoint.ifname}`);
        overlay.push({
          network: agent.networkName(id),
          steps: [...steps.map((step) => formatStep(id, step)), ...waiting],
        });
      }
      return network === undefined ? [...overlay, ...parts.meshPlan()] : overlay;
    },
    events: ({ sinceMs, follow }, reporter) => streamEvents(agent, sinceMs, follow, reporter),
    doctor: () => parts.doctor(),
    repair: async ({ repair, timeoutMs }) => {
      if (repair !== undefined) {
        agent.setRepair(repair === "on");
        // What is not brought about yet is no drift. A network that cannot be says so by itself.
        const settled = [...reconciler.networks].map((id) =>
          reconciler.settled(id, timeoutMs).catch(() => undefined),
        );
        await Promise.all(settled);
        if (repair === "on") await parts.meshSettled(timeoutMs);
      }
      return {
        repair: onOff(agent.repair),
        standing: agent.standing.all().map(({ subject, text }) => ({ subject, text })),
      };
    },
    trace: ({ from, to, port }) => parts.trace(from, to, port),
    resolve: ({ from, name }) => parts.resolve(from, name),
    "capture.place": ({ network }) => capturePlace(agent, network),
    "capture.remote": (params, reporter) => captureRemotely(parts, params, reporter),
  };
}

function onOff(value: boolean): "on" | "off" {
  return value ? "on" : "off";
}

const NO_FAST_PATH = { networks: 0, vteps: 0, reason: "this data plane has none" } as const;

/** Where the frames of a network leave and reach this node. @throws NetError `network-not-here` */
export function capturePlace(
  agent: Agent,
  network: string,
): { readonly netns: string; readonly link: string } {
  const found = agent.loop.node.state.findNetwork(network);
  if (!agent.endpoints.networks().has(found.id)) {
    throw new NetError(
      "network-not-here",
      `capture ${found.name}: ${agent.config.name} has no endpoint on it, so none of its frames (netctl endpoint ls, and --node where one is)`,
    );
  }
  // Where frames take the fast path they are not seen.
  agent.dataplane.fastPath?.standAside(found.id, found.name);
  return { netns: join(agent.config.runDir, "netns", namespaceName(found.id)), link: VXLAN_LINK };
}

async function streamEvents(
  agent: Agent,
  sinceMs: number | undefined,
  follow: boolean,
  reporter: Reporter,
): Promise<Record<string, never>> {
  if (sinceMs !== undefined || !follow) {
    for (const event of agent.events.since(sinceMs === undefined ? 0 : Date.now() - sinceMs))
      reporter.event(event);
  }
  if (!follow) return {};
  const stop = agent.events.follow((event) => reporter.event(event));
  await new Promise<void>((resolve) =>
    reporter.closed.addEventListener("abort", () => resolve(), { once: true }),
  );
  stop();
  return {};
}

/** Never in the clear what was asked to be encrypted (CVE-2023-28841 is an overlay that did). */
function cannotEncrypt(what: string): NetError {
  return new NetError(
    "encryption-missing",
    `${what}: neither data plane of this node encrypts between hosts (leave --encrypted out, or encrypt the underlay)`,
  );
}

/** The ports that any node will answer on. @throws NetError for an address that is none */
function onEveryNode(publish: ParsedParams<"service.create">["publish"]): NodePort[] {
  return publish
    .filter(({ mode }) => mode === "ingress")
    .map(({ protocol, published, address }) => ({
      protocol,
      port: published,
      ...(address === undefined ? {} : { address: parseIp(address) }),
    }));
}

function openSandbox(path: string): Netns {
  try {
    return Netns.open(path);
  } catch (cause) {
    throw new NetError(
      "sandbox-missing",
      `attach: no network namespace at ${path} (ip netns ls shows those with names)`,
      { cause },
    );
  }
}

/** Of the namespace this thread is in just now, those that are down or without address included. */
function interfaceNames(): string[] {
  const lines = readFileSync("/proc/thread-self/net/dev", "utf8").split("\n").slice(2);
  return lines.map((line) => line.slice(0, line.indexOf(":")).trim());
}

/** The same object without keys whose value is undefined, as `exactOptionalPropertyTypes` wants it. */
function defined<T extends object>(value: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}

/** Subnets on this host's own interfaces, which an overlay must not overlap; ours are not the host's. */
function hostSubnets(agent: Agent): Cidr[] {
  const own = new Set(agent.endpoints.all().map((record) => record.ip as string));
  const found: Cidr[] = [];
  for (const addresses of Object.values(networkInterfaces())) {
    for (const address of addresses ?? []) {
      if (address.family === "IPv4" && address.cidr !== null && !own.has(address.address))
        found.push(parseCidr(address.cidr));
    }
  }
  return found;
}
