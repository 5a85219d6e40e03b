import { existsSync } from "node:fs";
import { join } from "node:path";
import { ZodError } from "zod";
import { unreachable } from "../base/assert.ts";
import { DecodeError, errorCode, errorText, NetError } from "../base/error.ts";
import { nodeId, nodeName, randomBase36, randomHex } from "../base/id.ts";
import { formatSocketAddr, ipToBytes, type IpAddr, type SocketAddr } from "../base/ip.ts";
import type { Random } from "../base/random.ts";
import { parseSeed } from "../base/seed.ts";
import type { Dataplane } from "../kernel/dataplane.ts";
import { removeEngineTable } from "../kernel/engine-runner.ts";
import {
  formatMissing,
  missingFeatures,
  probeFeatures,
  ruleGeneration,
  type FeatureName,
} from "../kernel/features.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { TapDataplane } from "../kernel/tap-dataplane.ts";
import { type Underlay, underlayOf } from "../kernel/underlay.ts";
import { VxlanDataplane } from "../kernel/vxlan-dataplane.ts";
import { DEFAULT_LINK_KIND } from "../overlay/desired.ts";
import { LAN, LOCAL, swimConfig, WAN } from "../swim/config.ts";
import { Agent } from "./agent.ts";
import { makeDirectory, readIfPresent, writeAtomically } from "./atomic-file.ts";
import { captureQuestion, CaptureSessions } from "./capture-sessions.ts";
import { ChecksumWatch } from "./checksum-watch.ts";
import { DropWatch } from "./drop-watch.ts";
import { FastPathPolicy } from "./fast-path-policy.ts";
import { readFirewall } from "./firewall.ts";
import { readNetworkTraffic } from "./network-traffic.ts";
import { loadConfig, ownVtep, type Config } from "./config.ts";
import { CommandServer } from "./command-server.ts";
import { ControlServer } from "./control-server.ts";
import { chooseDataplane } from "./dataplane-choice.ts";
import { DnsRunner } from "./dns-runner.ts";
import { Doctor } from "./doctor.ts";
import { Drainer } from "./drainer.ts";
import { Endpoints } from "./endpoints.ts";
import { GossipLoop, type AgentEffect } from "./gossip-loop.ts";
import { capturePlace, createHandlers } from "./handlers.ts";
import { HealthRunner } from "./health-runner.ts";
import { keyQuestion, Keys, loadKeyring } from "./keys.ts";
import { LoopDelay } from "./loop-delay.ts";
import { createLogger, type Logger } from "./log.ts";
import { MeshRunner } from "./mesh-runner.ts";
import { MetricsServer } from "./metrics.ts";
import { explainName } from "./name-explanation.ts";
import { PathRunner, pathQuestion } from "./path-runner.ts";
import { PeersFile } from "./peers-file.ts";
import { PortCheck } from "./port-check.ts";
import { questionsOf } from "./questions.ts";
import { Sandboxes } from "./sandboxes.ts";
import { seedAddresses } from "./seeds.ts";
import { Status } from "./status.ts";
import { Store } from "./store.ts";
import { SwarmMtu } from "./swarm-mtu.ts";
import { systemRandom } from "./system-random.ts";
import { traceQuestion } from "./trace-question.ts";
import { Tracer } from "./trace.ts";
import { UnderlayFilter } from "./underlay-filter.ts";
import { Views } from "./views.ts";
import { WebServer } from "./web-server.ts";

/** First and longest pause between two rounds of joining. */
const JOIN_RETRY_MIN_MS = 500;
const JOIN_RETRY_MAX_MS = 15_000;
const JOIN_TIMEOUT_MS = 5_000;
/** The engine's drops that are somebody's fault; broadcast and questions for nobody are everyday. */
const TOLD_ENGINE_DROPS = /^(rxDrop|txDrop(Malformed|NoAddress|TooBig|Send))/;
/** How often namespaces of commands that ended without saying goodbye are looked for. */
const ORPHANS_MS = 2_000;
/** Between two looks at what was dropped. */
const DROPS_MS = 10_000;
const LEAVE_TIMEOUT_MS = 5_000;

/** Builds the agent, runs it until a signal says stop, and takes it down in order. @throws NetError */
export async function runDaemon(config: Config, version: string, argv: readonly string[]): Promise<void> {
  const log = createLogger(config.logLevel, config.logFormat);
  const random = systemRandom();
  makeDirectory(config.runDir, 0o755);
  const store = Store.open(config.dataDir);
  try {
    await runLocked(config, version, argv, log, random, store);
  } finally {
    store.close();
  }
}

async function runLocked(
  config: Config,
  version: string,
  argv: readonly string[],
  log: Logger,
  random: Random,
  store: Store,
): Promise<void> {
  const features = checkFeatures(config, log);
  const { dataplane, reason } = openDataplane(config, features);
  // The id owns address ranges, so it lives and dies with the record of them: a node that lost its state is a new one.
  const id = store.snapshot?.value.node ?? nodeId(randomBase36(random));
  const keys = loadKeyring(config.keyringFile, config.gossipKeys);
  let agent: Agent | undefined;
  let peersFile: PeersFile | undefined;
  const onEffect = (effect: AgentEffect): void => {
    if (effect.type === "member-joined" || effect.type === "member-left") peersFile?.saveSoon();
    agent?.handle(effect);
  };
  const loop = await GossipLoop.open(
    config,
    {
      name: nodeName(randomHex(random, 12)),
      facts: {
        id,
        name: config.name,
        vteps: config.dataPathAddrs,
        capabilities: ["state", "return-path", "path-probe"],
        version,
      },
      address: { socket: config.advertise, bytes: ipToBytes(config.advertise.ip) },
      compat: config.compat,
      sealing: {
        keys,
        label: config.gossipLabel,
        verifyIncoming: config.gossipVerify === "both",
        verifyOutgoing: config.gossipVerify !== "none",
        encryptionVersion: 1,
      },
      swim: swimConfig({ lan: LAN, wan: WAN, local: LOCAL }[config.profile], {
        requireNodeNames: config.requireNodeNames,
        allowedNetworks: config.allowedNetworks,
      }),
      state: store.snapshot === undefined ? {} : { snapshot: store.snapshot.bytes },
      random,
    },
    onEffect,
    store,
  );
  const endpointsFile = join(config.dataDir, "endpoints.json");
  const underlay = watchUnderlay(ownVtep(config));
  const underlayMtu = (): number => underlay().mtu;
  agent = new Agent({
    config,
    log,
    loop,
    dataplane,
    linkKind: features.has("macvlan") ? "veth" : DEFAULT_LINK_KIND,
    endpoints: loadEndpoints(endpointsFile),
    sandboxes: new Sandboxes(config.runDir, random),
    random,
    underlayMtu,
  });
  if (!config.repair) agent.setRepair(false);
  tellOfDisk(agent);
  const views = new Views(agent);
  const loopDelay = new LoopDelay();
  loop.onWake = () => loopDelay.look();
  const mesh = new MeshRunner(agent);
  const dns = new DnsRunner(agent, random);
  const paths = new PathRunner(agent, random, underlayMtu);
  const filter = new UnderlayFilter(agent);
  agent.beforeDevice = () => filter.ensure();
  agent.dependents.push(filter, mesh, dns, paths);
  agent.rulesMade = () => mesh.rulesMade();
  const drainer = new Drainer(agent, mesh);
  const health = new HealthRunner(agent);
  agent.dependents.push(health);
  const portCheck = new PortCheck(agent, mesh);
  const swarmMtu = new SwarmMtu(agent, views, underlayMtu);
  const checksums = new ChecksumWatch(
    () => loop.now(),
    () => agent.endpoints.all().flatMap(({ sandbox }) => (sandbox.type === "netns" ? [sandbox.path] : [])),
  );
  const drops = new DropWatch(
    () => [
      ...[...loop.node.drops].map(([reason, count]) => ["gossip", reason, count] as const),
      ...Object.entries(dataplane.counters())
        .filter(([reason]) => TOLD_ENGINE_DROPS.test(reason))
        .map(([reason, count]) => ["engine", reason, count] as const),
    ],
    () => loop.now(),
    (where, detail) => agent.event("dropped", where, detail),
  );
  loop.every(DROPS_MS, () => drops.look());
  const doctor = new Doctor({
    ...{ agent, views, mesh, paths, dns, filter, checksums, underlay },
  });
  const tracer = new Tracer({ agent, views, mesh, dns });
  views.dataPath = (vtep) => paths.health(vtep);
  if (dataplane.fastPath !== undefined) {
    const policy = new FastPathPolicy({
      ownVtep: config.dataPathAddrs[0] ?? config.advertise.ip,
      port: config.dataPathPort,
      health: (vtep) => paths.health(vtep),
      readFirewall,
      ruleGeneration,
      nowMs: () => performance.now(),
    });
    dataplane.fastPath.refusal = (vtep) => policy.refusal(vtep);
  }
  const keyring = new Keys(agent, (text) => writeAtomically(config.keyringFile, text));
  const captures = new CaptureSessions((network) => capturePlace(agent, network));
  const status = new Status(agent, views, version);
  agent.onQuestion = questionsOf({
    keys: (body) => {
      const { operation, key } = keyQuestion.parse(body);
      return keyring.apply(operation, key);
    },
    doctor: () => doctor.report(),
    trace: (body) => tracer.answer(traceQuestion.parse(body)),
    path: (body) => paths.answer(pathQuestion.parse(body)),
    status: () => status.own(),
    mtu: () => swarmMtu.own(),
    capture: (body) => captures.answer(captureQuestion.parse(body)),
    drain: (body) => drainer.answer(body),
    ports: (body) => portCheck.answer(body),
  });
  const handlers = createHandlers({
    agent,
    views,
    keys: keyring,
    version,
    dataplaneReason: reason,
    loopDelay,
    meshSettled: (timeoutMs) => mesh.settled(timeoutMs),
    namesServed: (sandbox) => dns.served(sandbox),
    meshPlan: () => mesh.plan(),
    drainer,
    portCheck,
    doctor: () => doctor.examine(),
    narrowestMtu: () => swarmMtu.narrowest(),
    trace: (from, to, port) => tracer.trace(from, to, port),
    resolve: (from, name) => explainName({ agent, views, dns }, from, name),
  });
  const metrics =
    config.metricsAddr === undefined
      ? undefined
      : await MetricsServer.listen(config.metricsAddr, {
          agent,
          views,
          mesh,
          dns,
          loopDelay,
          checksums,
          filter,
          pathCounters: () => paths.prober.counters,
          traffic: (network) => readNetworkTraffic(config.runDir, network),
          version,
        });
  const web = config.web === undefined ? undefined : await WebServer.listen(config.web, status);
  // Before anybody can ask for an endpoint: a namespace made now at an old path must not be taken for the old one.
  adoptEndpoints(agent, log);
  const controlSocket = join(config.runDir, "netagent.sock");
  const control = await ControlServer.listen(controlSocket, handlers, log);
  const commands = await CommandServer.listen(controlSocket, log);
  peersFile = new PeersFile(join(config.dataDir, "peers.json"), loop);
  const endOrphans = loop.every(ORPHANS_MS, () => void removeOrphans(agent, drainer, log));
  const stopping = new AbortController();

  const remembered = peersFile.read();
  const alone = config.join.length === 0 && remembered.length === 0;
  loop.step({ type: "start", seed: config.join.length === 0, unixSeconds: Math.floor(Date.now() / 1000) });
  log.info(
    { name: config.name, member: loop.node.name, advertise: formatSocketAddr(config.advertise) },
    `netagent ${version} is up`,
  );
  await releaseStrays(agent);
  agent.refresh();
  if (alone) agent.learned.stopWaiting();
  const joining = joinUntilAnswered(config, remembered, agent, log, stopping.signal);
  await untilStopped(config, argv, agent, log);

  stopping.abort();
  endOrphans();
  peersFile.close();
  await Promise.all([commands.close(), control.close(), metrics?.close(), web?.close(), joining]);
  await leave(agent);
  loopDelay.close();
  checksums.close();
  captures.close();
  health.close();
  paths.close();
  dns.close();
  await filter.close();
  mesh.close();
  agent.close();
  await loop.close();
  dataplane.close();
  log.info({}, "netagent has stopped; endpoints keep their interfaces");
}

/** What this host lacks. @throws NetError `feature-missing` naming everything that cannot be done without. */
function checkFeatures(config: Config, log: Logger): ReadonlySet<FeatureName> {
  const features = probeFeatures(config.runDir);
  const missing = missingFeatures(features);
  const needed: FeatureName[] = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "network-namespaces", "nftables"];
  const fatal = features.filter((feature) => !feature.present && needed.includes(feature.name));
  if (fatal.length > 0) throw new NetError("feature-missing", fatal.map(formatMissing).join("; "));
  if (!hasProgram("nft"))
    throw new NetError(
      "nft-missing",
      "find the program nft: it is not in PATH; published ports need it (apt-get install nftables)",
    );
  for (const feature of features) if (!feature.present) log.warn({}, formatMissing(feature));
  return missing;
}

function hasProgram(name: string): boolean {
  return (process.env["PATH"] ?? "").split(":").some((directory) => existsSync(join(directory, name)));
}

/** @throws NetError `feature-missing` when the data plane asked for cannot be had here. */
function openDataplane(
  config: Config,
  missing: ReadonlySet<FeatureName>,
): { readonly dataplane: Dataplane; readonly reason: string } {
  const { kind, reason } = chooseDataplane(config.dataplane, missing);
  const runDirectory = config.runDir;
  switch (kind) {
    case "kernel":
      // Of a time when an engine ran here; the next one begins with what gossip says.
      removeEngineTable(runDirectory);
      return {
        dataplane: new VxlanDataplane({ runDirectory, fastPath: config.fastPath === "auto" }),
        reason,
      };
    case "userspace": {
      const addresses = config.dataPathAddrs.length > 0 ? config.dataPathAddrs : [config.advertise.ip];
      return {
        dataplane: new TapDataplane({ runDirectory, addresses, fastPath: config.fastPath === "auto" }),
        reason,
      };
    }
    default:
      return unreachable(kind);
  }
}

/** SIGTERM and SIGINT end the daemon; SIGHUP reads log level and keys again. */
function untilStopped(config: Config, argv: readonly string[], agent: Agent, log: Logger): Promise<void> {
  return new Promise((resolve) => {
    process.once("SIGTERM", resolve);
    process.once("SIGINT", resolve);
    process.on("SIGHUP", () => {
      try {
        const again = loadConfig(argv, "");
        log.level = again.logLevel;
        agent.loop.step({ type: "set-keys", keys: loadKeyring(config.keyringFile, again.gossipKeys) });
        log.info({ level: again.logLevel }, "configuration read again: keys and log level");
      } catch (error) {
        log.error({}, `configuration not read again: ${errorText(error)}`);
      }
    });
  });
}

/** Says goodbye so that nobody has to find out. Endpoints that run on keep their rows as well as their interfaces. */
async function leave(agent: Agent): Promise<void> {
  const left = new Promise<void>((resolve) => (agent.onLeft = resolve));
  const tooLong = new Promise<void>((resolve) => setTimeout(resolve, LEAVE_TIMEOUT_MS).unref());
  // Endpoints run on where the kernel moves their frames; ours are cut off until we are back, so others go round them.
  const rest =
    agent.dataplane.kind === "kernel" && agent.endpoints.all().some((record) => record.kind === "user");
  agent.loop.step({ type: "leave", timeoutMs: 1_000, rest });
  await Promise.race([left, tooLong]);
}

/** Tries seeds and the members of the last life, for ever with growing pauses, until one answers. */
async function joinUntilAnswered(
  config: Config,
  remembered: readonly SocketAddr[],
  agent: Agent,
  log: Logger,
  stop: AbortSignal,
): Promise<void> {
  let pauseMs = JOIN_RETRY_MIN_MS;
  let said = "";
  while (!stop.aborted && (config.join.length > 0 || remembered.length > 0)) {
    const seeds = await resolveSeeds(config, log);
    // Also later, when none of them is a member any more: all may have restarted under new names, apart from us.
    agent.loop.step({ type: "networkdb", input: { type: "set-bootstrap", addresses: seeds } });
    const targets = [...seeds, ...remembered].filter(
      (target) => target.ip !== config.advertise.ip || target.port !== config.advertise.port,
    );
    const results = targets.length === 0 ? [] : await agent.loop.join(targets, JOIN_TIMEOUT_MS, true);
    const worked = results.filter((result) => result.failure === undefined);
    if (worked.length > 0) {
      log.info({}, `joined through ${worked.map((result) => formatSocketAddr(result.address)).join(", ")}`);
      return;
    }
    // Only members of the last life, and nobody is there any more: we are the first.
    if (config.join.length === 0) agent.learned.stopWaiting();
    const why = results
      .map((result) => `${formatSocketAddr(result.address)}: ${result.failure ?? ""}`)
      .join("; ");
    if (why !== said) log.warn({}, `join: nobody answered, trying on: ${why || "no address to try"}`);
    said = why;
    await pause(pauseMs, stop);
    pauseMs = Math.min(JOIN_RETRY_MAX_MS, pauseMs * 2);
  }
}

async function resolveSeeds(config: Config, log: Logger): Promise<SocketAddr[]> {
  const found: SocketAddr[] = [];
  for (const text of config.join) {
    try {
      found.push(...(await seedAddresses(parseSeed(text, config.gossipPort))));
    } catch (error) {
      log.warn({}, `join ${text}: ${errorText(error)}`);
    }
  }
  return found;
}

function pause(milliseconds: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    stop.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** Endpoints of the last life whose namespace still stands are ours again. */
function adoptEndpoints(agent: Agent, log: Logger): void {
  for (const record of agent.endpoints.all()) {
    if (record.sandbox.type === "netns" && !agent.sandboxes.exists(record.sandbox.path)) {
      log.info(
        { endpoint: record.name, sandbox: record.sandbox.path },
        "endpoint forgotten: its namespace is gone",
      );
      agent.endpoints.remove(record.id);
      continue;
    }
    agent.endpoints.ready.add(record.id);
    agent.reconciler.markDirty(record.network);
  }
}

/** Addresses given to endpoints that no longer exist go back to the range they came from. */
async function releaseStrays(agent: Agent): Promise<void> {
  const held = new Set<string>(agent.endpoints.all().map((record) => record.id));
  try {
    for (const { network, address, holder } of agent.loop.node.state.allocations()) {
      const isEndpoint = /^[0-9a-f]{64}$/.test(holder.id);
      if (isEndpoint && !held.has(holder.id)) await agent.loop.request({ type: "release", network, address });
    }
  } catch (error) {
    // Tried again when the disk has room.
    if (errorCode(error) !== "state-save-failed") throw error;
  }
}

/** The disk is full, or somebody made it read-only: nothing new is promised meanwhile, and nothing that runs is touched. */
function tellOfDisk(agent: Agent): void {
  const { saver } = agent.loop;
  for (const one of [saver, agent.endpoints.saver]) {
    one.onFailure = (error) => {
      agent.log.error({ code: error.code }, error.message);
      agent.event("failure", "data directory", error.message);
    };
    one.onRecovery = () => {
      agent.log.info({}, "the data directory can be written again");
      agent.event("recovered", "data directory", "it can be written again");
      if (one === saver) void releaseStrays(agent);
    };
  }
}

/** Namespaces whose command has ended without giving them back, and endpoints whose namespace has vanished. */
async function removeOrphans(agent: Agent, drainer: Drainer, log: Logger): Promise<void> {
  try {
    for (const sandbox of agent.sandboxes.orphans()) {
      for (const record of agent.endpoints.all()) {
        const inside = record.sandbox.type === "netns" && record.sandbox.path === sandbox.path;
        if (!inside || record.kind !== "user") continue;
        // Its empty namespace refuses new connections until the peers know; without it they would hang.
        if (record.service !== undefined) await drainer.drain(record, { connectionsMs: 0 });
        await agent.drop(record, 2_000);
      }
      agent.sandboxes.remove(sandbox.path);
      agent.event("sandbox-removed", sandbox.path, `its owner, process ${sandbox.ownerPid}, is gone`);
    }
    for (const record of agent.endpoints.all()) {
      if (
        record.kind !== "user" ||
        record.sandbox.type !== "netns" ||
        agent.sandboxes.exists(record.sandbox.path)
      )
        continue;
      agent.event(
        "endpoint-gone",
        record.name || record.id.slice(0, 12),
        `its namespace ${record.sandbox.path} has vanished`,
      );
      await agent.drop(record, 2_000);
    }
  } catch (error) {
    log.warn({}, `clean up after ended commands: ${errorText(error)}`);
  }
}

function loadEndpoints(path: string): Endpoints {
  try {
    return new Endpoints(readIfPresent(path), (text) => writeAtomically(path, text));
  } catch (cause) {
    const damaged = cause instanceof ZodError || cause instanceof SyntaxError || cause instanceof DecodeError;
    if (!damaged) throw cause;
    throw new NetError(
      "state-corrupt",
      `read endpoints from ${path}: damaged (put a good copy back, or move it away to forget this node's endpoints)`,
      { cause },
    );
  }
}

/** Reads the underlay's device and MTU; while its address is gone for a moment the last one stands. @throws NetError when it was never there */
function watchUnderlay(vtep: IpAddr): () => Underlay {
  using first = new NetlinkSocket("route");
  let found = underlayOf(first, vtep);
  return () => {
    using socket = new NetlinkSocket("route");
    try {
      found = underlayOf(socket, vtep);
    } catch (error) {
      if (errorCode(error) !== "EADDRNOTAVAIL") throw error;
    }
    return found;
  };
}
