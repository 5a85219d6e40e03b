/**
 * The tutorial: three nodes, one overlay, published ports; every command as a person types it, every claim checked.
 * With `dockercoins` a whole application instead.
 * Exits 1 with the reason at the first claim that does not hold. Leaves the machine as it was, also after Ctrl-C.
 */

import type {
  EndpointView,
  NetworkDetailView,
  NetworkView,
  PeerView,
  ServiceView,
} from "../src/agent/control-protocol.ts";
import { dockercoins } from "./dockercoins.ts";
import { lastLines, type Host } from "./host.ts";
import { aliveNames, Lab } from "./lab.ts";
import { differences, machineState } from "./machine.ts";
import { allAnsweredBy, askHttp, askUdp, RequestLoop, vxlanVnis } from "./observe.ts";
import { agentsEnd, endpointsEnd, membersFindEachOther, runEndpoint, setUp, type Stage } from "./stage.ts";
import { keptLabs, leftovers, tearDown } from "./teardown.ts";
import { attempt, claim, claimSoon, say, step, type, typeAgent } from "./tutorial.ts";

const SERVER = "node dist/netns-harness/programs/http-server.js";
const UDP_SERVER = "node dist/netns-harness/programs/udp-server.js";
const UDP_ASK = "node dist/netns-harness/programs/udp-ask.js";
/** Requests per question "who answers": the chance that one of three backends is not among them is 1 in a million. */
const REQUESTS = 40;
/** A member that says nothing any more is noticed within this time (ms): probe and suspicion, with margin. */
const NOTICE_MS = 20_000;
const SOON_MS = 10_000;

const options = new Set(process.argv.slice(2));
const unknown = [...options].find((option) => !["dockercoins", "--keep", "--down"].includes(option));
if (unknown !== undefined) {
  console.error(`demo: unknown option ${unknown}; known are dockercoins, --keep and --down`);
  process.exit(2);
}
if (options.has("--down")) process.exit(removeKept());

const before = machineState();
const lab = Lab.create();
// Runs after the lab's own exit handler, however we end.
process.on("exit", (code) => {
  if (lab.kept) return;
  const rest = [...leftovers(lab.mark), ...differences(before, machineState())];
  if (rest.length === 0) {
    console.log(`\n${code === 0 ? "✓ The" : "The"} machine is as it was before.`);
    return;
  }
  console.error(`\ndemo: the machine is not as it was before:\n  ${rest.join("\n  ")}`);
  process.exitCode = 1;
});

try {
  const stage = setUp(lab);
  await membersFindEachOther(stage);
  if (options.has("dockercoins")) await dockercoins(stage, options.has("--keep"));
  else await tutorial(stage);
  if (options.has("--keep")) console.log(`\n${lab.keep()}`);
  lab.dispose();
} catch (error) {
  console.error(`\ndemo: ${error instanceof Error ? error.message : String(error)}`);
  for (const host of lab.hosts) {
    const log = host.log();
    if (log !== "") console.error(`\n--- end of ${host.name}'s log\n${lastLines(log, 15)}`);
  }
  if (options.has("--keep")) console.error(`\n${lab.keep()}`);
  process.exitCode = 1;
}
// Background processes of a kept lab must not hold us.
process.exit();

async function tutorial(stage: Stage): Promise<void> {
  const vni = await networkIsKnownEverywhere(stage);
  await endpointsReachEachOther(stage, vni);
  await publishedPortsAnswer(stage);
  await nodesComeAndGo(stage);
  if (!options.has("--keep")) await everythingGoes(stage);
}

async function networkIsKnownEverywhere({ nodes }: Stage): Promise<number> {
  const [node1, node2, node3] = nodes;
  step("A network, known everywhere at once");
  const listed = await type(node1, "netctl network ls");
  claim("the ingress network is there from the start", /\bingress\b.*\boverlay\b.*\bswarm\b/.test(listed));
  await type(node1, "netctl network create dockercoins");
  await claimSoon(
    "all three nodes know dockercoins",
    () => Promise.all(nodes.map((node) => node.ctlJson<NetworkView[]>("network", "ls"))),
    {
      withinMs: SOON_MS,
      until: (lists) =>
        lists.every((list) =>
          list.some((one) => one.name === "dockercoins" && one.driver === "overlay" && one.scope === "swarm"),
        ),
    },
  );
  await type(node3, "netctl network ls");
  const { vni } = await node2.ctlJson<NetworkDetailView>("network", "inspect", "dockercoins");
  const devices = await Promise.all(nodes.map(vxlanVnis));
  claim(
    `no kernel object for it (VNI ${vni}) exists on any node yet`,
    !devices.flat().includes(vni),
    devices,
  );
  return vni;
}

async function endpointsReachEachOther(stage: Stage, vni: number): Promise<void> {
  const [node1, node2, node3] = stage.nodes;
  step("Two endpoints on two nodes");
  await runEndpoint(stage, node1, "redis", `${SERVER} redis 6379`);
  const redis = await endpoint(node1, "redis");
  const box = stage.lab.sandbox(node2, "box");
  say("A namespace somebody prepared, here by `ip netns add`, gets an interface:");
  await type(node2, `netctl attach --network dockercoins --netns ${box.netns} --name box`);
  const { ip: boxIp } = await endpoint(node2, "box");
  const capture = await node1.capture("udp port 4789");
  await type(box, `ping -n -c 2 -i 0.2 ${redis.ip}`);
  const page = await type(box, `curl -sS --max-time 5 http://${redis.ip}:6379/`);
  claim(`TCP works, and redis sees box's own address ${boxIp}`, page.trim() === `redis ${boxIp}`, page);
  const frames = await claimSoon(
    `the underlay carried it as VXLAN with VNI ${vni}`,
    () => capture.frames().filter((frame) => new RegExp(`vni ${vni}\\b.*ICMP echo`).test(frame)),
    { withinMs: SOON_MS, until: (found) => found.length > 0 },
  );
  await capture.stop();
  console.log(`     ${(frames[0] ?? "").slice(0, 160)}…`);
  const devices = await Promise.all(stage.nodes.map(vxlanVnis));
  claim(
    "node1 and node2 now have its VXLAN device, node3 still has nothing",
    devices[0]?.includes(vni) === true && devices[1]?.includes(vni) === true && !devices[2]?.includes(vni),
    devices,
  );
  await type(node3, "netctl endpoint ls --network dockercoins");
  const plan = await type(node1, "netctl plan");
  claim("the kernel agrees with the tables", /agrees/.test(plan), plan);
}

async function publishedPortsAnswer(stage: Stage): Promise<void> {
  const { nodes, client } = stage;
  const [node1, node2, node3] = nodes;
  step("A published port answers on every node");
  await type(node1, "netctl service create web1 --network dockercoins --publish 8000:80");
  await runEndpoint(stage, node1, "web1.1", `${SERVER} web1.1 80`, "web1");
  for (const node of nodes) await answersFrom(stage, node, 8000, ["web1.1"]);
  await type(client, `curl -sS http://${node3.address}:8000/`);
  const local = await type(node3, "curl -sS --max-time 5 http://127.0.0.1:8000/");
  claim("and on 127.0.0.1 of a node without a backend", local.startsWith("web1.1 "), local);

  say("A second and a third backend, on other nodes:");
  await runEndpoint(stage, node2, "web1.2", `${SERVER} web1.2 80`, "web1");
  await runEndpoint(stage, node3, "web1.3", `${SERVER} web1.3 80`, "web1");
  for (const node of nodes) await answersFrom(stage, node, 8000, ["web1.1", "web1.2", "web1.3"]);
  await rotation(client, node2, 8000);
  await type(node2, "netctl service ps web1");

  say("Back to two:");
  await stopEndpoint(stage, node3, "web1.3");
  for (const node of nodes) await answersFrom(stage, node, 8000, ["web1.1", "web1.2"]);
  await rotation(client, node2, 8000);

  say("One of web4 on every node:");
  await type(node2, "netctl service create web4 --network dockercoins --publish 8004:80");
  for (const [index, node] of nodes.entries()) {
    await runEndpoint(stage, node, `web4.${index + 1}`, `${SERVER} web4.${index + 1} 80`, "web4");
  }
  for (const node of nodes) await answersFrom(stage, node, 8004, ["web4.1", "web4.2", "web4.3"]);
  await type(node1, "netctl service ls");

  say("UDP works the same:");
  await type(node1, "netctl service create dns --network dockercoins --publish 5300:53/udp");
  await runEndpoint(stage, node1, "dns.1", `${UDP_SERVER} dns.1 53`, "dns");
  await runEndpoint(stage, node2, "dns.2", `${UDP_SERVER} dns.2 53`, "dns");
  await type(client, `${UDP_ASK} ${node3.address} 5300 hello 5`);
  for (const node of nodes) await udpAnswersFrom(client, node, ["dns.1", "dns.2"]);

  say("Mistakes are refused:");
  for (const line of [
    "netctl service create web9 --network dockercoins --publish 8000:80",
    "netctl service create web9 --network dockercoins --publish 70000:80",
    "netctl network create other --subnet 10.0.300.0/24",
    "netctl attach --network nowhere --netns lo",
  ]) {
    const { code, stderr } = await attempt(node2, line);
    claim(
      "refused with one line",
      (code === 1 || code === 2) && stderr.trim().split("\n").length === 1,
      stderr,
    );
  }
}

async function nodesComeAndGo(stage: Stage): Promise<void> {
  const { nodes, client, lab } = stage;
  const [node1, node2, node3] = nodes;
  step("Nodes come and go");
  await type(node1, "netctl node update node3 --availability drain");
  for (const node of nodes) await answersFrom(stage, node, 8004, ["web4.1", "web4.2"]);
  await type(node2, "netctl node ls");
  await type(node1, "netctl node update node3 --availability active");
  for (const node of nodes) await answersFrom(stage, node, 8004, ["web4.1", "web4.2", "web4.3"]);

  say("node3's agent dies; its endpoints go on:");
  const loop = RequestLoop.start(
    client,
    [node1, node2].map((node) => `http://${node.address}:8004/`),
  );
  await killAgent(node3);
  await claimSoon(
    "node1 and node2 notice",
    () => Promise.all([stateOf(node1, "node3"), stateOf(node2, "node3")]),
    {
      withinMs: NOTICE_MS,
      until: (states) => states.every((state) => state === "dead"),
    },
  );
  await type(node1, "netctl peers");
  for (const node of [node1, node2]) await answersFrom(stage, node, 8004, ["web4.1", "web4.2"]);
  const { asked, failed } = await loop.stop();
  claim(`the client got every one of its ${asked} answers meanwhile`, failed === 0 && asked > 0, {
    asked,
    failed,
  });
  await typeAgent(node3, [node1]);
  await wholeAgain(stage);
  claim("web4.3 was not restarted", stage.running.get("web4.3")?.running === true);

  say("node3 loses power, with everything that runs on it:");
  const outage = RequestLoop.start(
    client,
    [node1, node2].map((node) => `http://${node.address}:8004/`),
  );
  console.log("   (the namespace of node3 and all of its processes are gone)");
  lab.powerOff(node3);
  await claimSoon("its backend leaves the rotation", () => backendNodes(node1, "web4"), {
    withinMs: NOTICE_MS,
    until: (names) => names.join() === "node1,node2",
  });
  for (const node of [node1, node2]) await answersFrom(stage, node, 8004, ["web4.1", "web4.2"]);
  const during = await outage.stop();
  console.log(
    `     from the failure until now: ${during.asked} requests, ${during.failed} without an answer, ` +
      `the last of them after ${(during.lastFailureMs / 1000).toFixed(1)} s`,
  );
  lab.powerOn(node3);
  await typeAgent(node3, [node1]);
  await runEndpoint(stage, node3, "web4.3", `${SERVER} web4.3 80`, "web4");
  await wholeAgain(stage);
}

async function everythingGoes(stage: Stage): Promise<void> {
  const [node1, node2, node3] = stage.nodes;
  step("Everything is taken down");
  await type(node2, "netctl detach box");
  await endpointsEnd(stage);
  for (const service of ["web1", "web4", "dns"]) await type(node3, `netctl service rm ${service}`);
  await type(node1, "netctl network rm dockercoins");
  await claimSoon("no node has a network but ingress", () => Promise.all(stage.nodes.map(networkNames)), {
    withinMs: SOON_MS,
    until: (lists) => lists.every((names) => names.join() === "ingress"),
  });
  await agentsEnd(stage);
}

async function stopEndpoint(stage: Stage, node: Host, name: string): Promise<void> {
  console.log(`   (Ctrl-C to ${name} on ${node.name})`);
  await stage.running.get(name)?.stop("SIGINT", SOON_MS);
  stage.running.delete(name);
}

/** Kills the agent as a crash would, printing how a person would. */
async function killAgent(node: Host): Promise<void> {
  const { pid } = node.agent;
  await type(node, `kill -9 ${pid}`);
  await node.agentEnded();
}

async function endpoint(node: Host, name: string): Promise<EndpointView> {
  const endpoints = await node.ctlJson<EndpointView[]>("endpoint", "ls");
  const found = endpoints.find((one) => one.name === name);
  if (found === undefined) throw new Error(`${node.name} does not list endpoint ${name}`);
  return found;
}

/** Claims that a port of a node is answered by exactly these backends, every request. */
async function answersFrom(
  { client }: Stage,
  node: Host,
  port: number,
  names: readonly string[],
): Promise<void> {
  await claimSoon(
    `port ${port} of ${node.name} (${node.address}): ${names.join(", ")}`,
    () => askHttp(client, `http://${node.address}:${port}/`, REQUESTS),
    { withinMs: SOON_MS, until: (answers) => allAnsweredBy(answers)?.join() === names.join() },
  );
}

async function udpAnswersFrom(client: Host, node: Host, names: readonly string[]): Promise<void> {
  await claimSoon(
    `UDP port 5300 of ${node.name} (${node.address}): ${names.join(", ")}`,
    () => askUdp(client, node.address, 5300, 20),
    { withinMs: SOON_MS, until: (answers) => allAnsweredBy(answers)?.join() === names.join() },
  );
}

/** Shows, for people, how answers are spread. */
async function rotation(client: Host, node: Host, port: number): Promise<void> {
  await type(
    client,
    `for i in $(seq 30); do curl -sS http://${node.address}:${port}/; done | cut -d' ' -f1 | sort | uniq -c`,
  );
}

async function stateOf(node: Host, peer: string): Promise<PeerView["state"] | undefined> {
  const peers = await node.ctlJson<PeerView[]>("peers");
  return peers.find((one) => one.name === peer)?.state;
}

/** Nodes with a backend in rotation, sorted. */
async function backendNodes(node: Host, service: string): Promise<string[]> {
  const { backends } = await node.ctlJson<ServiceView>("service", "inspect", service);
  return backends
    .filter((one) => one.state === "ready")
    .map((one) => one.node)
    .sort();
}

async function networkNames(node: Host): Promise<string[]> {
  return (await node.ctlJson<NetworkView[]>("network", "ls")).map((one) => one.name);
}

async function wholeAgain(stage: Stage): Promise<void> {
  await claimSoon("three members alive again, everywhere", () => Promise.all(stage.nodes.map(aliveNames)), {
    withinMs: NOTICE_MS,
    until: (views) => views.every((names) => names.join() === "node1,node2,node3"),
  });
  for (const node of stage.nodes) await answersFrom(stage, node, 8004, ["web4.1", "web4.2", "web4.3"]);
}

function removeKept(): number {
  const labs = keptLabs();
  if (labs.length === 0) console.log("demo: nothing was kept");
  let failed = 0;
  for (const mark of labs) {
    const rest = tearDown(mark);
    if (rest.length > 0) failed = 1;
    console.log(`demo: removed ${mark.prefix}*${rest.map((line) => `; still there: ${line}`).join("")}`);
  }
  return failed;
}
