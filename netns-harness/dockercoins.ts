/**
 * `npm run demo -- dockercoins`: the application of the well-known orchestration workshop, written anew and small, on
 * three nodes. rng, hasher, redis, workers and a web page find each other by name; a node loses power and mining
 * goes on.
 */

import { join } from "node:path";
import type { NetworkView, ServiceView } from "../src/agent/control-protocol.ts";
import { hasBrowser, Page } from "./browser.ts";
import { readyBackends } from "./endpoints.ts";
import type { Host } from "./host.ts";
import { aliveNames } from "./lab.ts";
import { agentsEnd, endpointsEnd, runEndpoint, type Stage } from "./stage.ts";
import { claim, claimSoon, say, step, type, typeAgent } from "./tutorial.ts";

const PROGRAMS = "node dist/netns-harness/programs/dockercoins";
const PORT = 8000;
const SOON_MS = 10_000;
/** A node that lost power is noticed within this time (ms), and its backends are asked no more. */
const NOTICE_MS = 20_000;
/** A coin is one hash in sixteen, and a swarm makes several hashes a second. */
const COIN_MS = 60_000;

/** What the web page's `/json` answers. */
type Mined = { readonly coins: number; readonly hashes: number; readonly from: string };

export async function dockercoins(stage: Stage, keep: boolean): Promise<void> {
  await networkAndServices(stage);
  await partsStart(stage);
  await coinsAreMined(stage);
  const page = await pageIsLooked(stage);
  await nodeLosesPower(stage, page);
  await page?.close();
  if (keep) {
    const [node1] = stage.nodes;
    console.log(`\nThe page, as the client sees it: curl http://${node1.address}:${PORT}/json`);
  } else await everythingGoes(stage);
}

async function networkAndServices({ nodes }: Stage): Promise<void> {
  const [node1, node2] = nodes;
  step("A network and a service for each part");
  await type(node1, "netctl network create dockercoins");
  await type(node1, "netctl service create redis --network dockercoins");
  await type(node1, "netctl service create rng --network dockercoins");
  await type(node1, "netctl service create hasher --network dockercoins");
  await type(node1, `netctl service create webui --network dockercoins --publish ${PORT}:80`);
  await claimSoon("every node knows them", () => Promise.all(nodes.map(serviceNames)), {
    withinMs: SOON_MS,
    until: (lists) => lists.every((names) => names.join() === "hasher,redis,rng,webui"),
  });
  await type(node2, "netctl service ls");
}

async function partsStart(stage: Stage): Promise<void> {
  const [node1, node2, node3] = stage.nodes;
  step("The five parts, spread over three nodes");
  const memoryOnly = "--save '' --appendonly no --set-proc-title no";
  const redis = `redis-server --bind 0.0.0.0 --protected-mode no ${memoryOnly} --dir ${node1.folder}`;
  await runEndpoint(stage, node1, "redis.1", redis, "redis", "Ready to accept connections");
  for (const [node, part, number] of [
    [node2, "rng", 1],
    [node3, "rng", 2],
    [node3, "hasher", 1],
    [node1, "hasher", 2],
  ] as const) {
    await runEndpoint(stage, node, `${part}.${number}`, `${PROGRAMS}/${part}.js`, part);
  }
  for (const [index, node] of stage.nodes.entries()) {
    const number = index + 1;
    await runEndpoint(stage, node, `webui.${number}`, `${PROGRAMS}/webui.js webui.${number}`, "webui");
    await runEndpoint(stage, node, `worker.${number}`, `${PROGRAMS}/worker.js`);
  }
  say("They know each other's names only:");
  await type(node3, "netctl run --network dockercoins -- getent ahostsv4 redis");
  await type(node3, "netctl run --network dockercoins -- getent ahostsv4 tasks.rng");
}

async function coinsAreMined({ nodes, client }: Stage): Promise<void> {
  step("Mining");
  for (const node of nodes) {
    await claimSoon(`port ${PORT} of ${node.name} tells of hashes`, () => mined(client, node), {
      withinMs: SOON_MS,
      until: (seen) => seen !== undefined && seen.hashes > 0,
    });
  }
  const [node1, , node3] = nodes;
  await claimSoon("the first coin is found", () => mined(client, node3), {
    withinMs: COIN_MS,
    until: (seen) => seen !== undefined && seen.coins > 0,
  });
  await type(client, `curl -sS http://${node1.address}:${PORT}/json; echo`);
}

/** The page as a person sees it; without a browser only as bytes. */
async function pageIsLooked({ nodes, client }: Stage): Promise<Page | undefined> {
  const [, node2] = nodes;
  step("The page");
  const url = `http://${node2.address}:${PORT}/`;
  if (!hasBrowser()) {
    const html = await client.httpGet(url);
    claim("it is there (Chromium is not: its chart is not looked at)", html?.includes("<svg") === true, html);
    return undefined;
  }
  const page = await Page.open(client, url);
  await claimSoon(`Chromium on the client draws the chart of ${url}`, () => chartOf(page), {
    withinMs: 30_000,
    until: ({ points, speed, trouble }) => points >= 5 && speed > 0 && trouble === "",
  });
  const file = join(client.folder, "dockercoins.png");
  await page.screenshot(file);
  say(`(a picture of it is in ${file})`);
  return page;
}

async function nodeLosesPower(stage: Stage, page: Page | undefined): Promise<void> {
  const { nodes, client, lab } = stage;
  const [node1, node2, node3] = nodes;
  step("node3 loses power, with a worker, a hasher, half of the random numbers and a web page");
  const before = await mined(client, node1);
  const start = performance.now();
  lab.powerOff(node3);
  for (const name of ["rng.2", "hasher.1", "webui.3", "worker.3"]) stage.running.delete(name);
  await claimSoon("its backends leave the rotation", () => readyBackends(node1, "rng"), {
    withinMs: NOTICE_MS,
    until: (names) => names.join() === "rng.1",
  });
  const after = await claimSoon("mining goes on", () => mined(client, node1), {
    withinMs: NOTICE_MS,
    until: (seen) => seen !== undefined && seen.hashes >= (before?.hashes ?? 0) + 20,
  });
  const seconds = (performance.now() - start) / 1000;
  console.log(
    `     ${(after?.hashes ?? 0) - (before?.hashes ?? 0)} hashes in the ${seconds.toFixed(1)} s since the failure`,
  );
  for (const node of [node1, node2]) {
    await claimSoon(`the page of ${node.name} answers every time`, () => answersAll(client, node, 20), {
      withinMs: NOTICE_MS,
    });
  }
  if (page !== undefined) {
    const { hashes } = await chartOf(page);
    await claimSoon("the page in Chromium goes on, too", () => chartOf(page), {
      withinMs: NOTICE_MS,
      until: (chart) => chart.hashes > hashes && chart.speed > 0 && chart.trouble === "",
    });
    await page.screenshot(join(client.folder, "dockercoins-after.png"));
  }
  say("It comes back, empty, and takes its parts again:");
  lab.powerOn(node3);
  await typeAgent(node3, [node1]);
  await claimSoon("three members alive again", () => aliveNames(node1), {
    withinMs: NOTICE_MS,
    until: (names) => names.join() === "node1,node2,node3",
  });
  await runEndpoint(stage, node3, "rng.2", `${PROGRAMS}/rng.js`, "rng");
  await runEndpoint(stage, node3, "worker.3", `${PROGRAMS}/worker.js`);
  await claimSoon(`port ${PORT} of node3 answers again`, () => mined(client, node3), {
    withinMs: NOTICE_MS,
    until: (seen) => (seen?.hashes ?? 0) > (after?.hashes ?? 0),
  });
}

async function everythingGoes(stage: Stage): Promise<void> {
  const [node1] = stage.nodes;
  step("Everything is taken down");
  await endpointsEnd(stage);
  for (const service of ["webui", "hasher", "rng", "redis"])
    await type(node1, `netctl service rm ${service}`);
  await type(node1, "netctl network rm dockercoins");
  await claimSoon("no node has a network but ingress", () => Promise.all(stage.nodes.map(networkCount)), {
    withinMs: SOON_MS,
    until: (counts) => counts.every((count) => count === 1),
  });
  await agentsEnd(stage);
}

async function mined(client: Host, node: Host): Promise<Mined | undefined> {
  const text = await client.httpGet(`http://${node.address}:${PORT}/json`);
  if (text === undefined || !text.startsWith("{")) return undefined;
  return JSON.parse(text) as Mined;
}

async function answersAll(client: Host, node: Host, count: number): Promise<boolean> {
  for (let i = 0; i < count; i++) if ((await mined(client, node)) === undefined) return false;
  return true;
}

/** What the page shows: points of its chart, and its numbers. */
function chartOf(
  page: Page,
): Promise<{ points: number; speed: number; hashes: number; coins: number; trouble: string }> {
  return page.evaluate(`({
    points: (document.getElementById("speed-line")?.getAttribute("points") ?? "").split(" ").length,
    speed: Number(document.getElementById("speed")?.textContent),
    hashes: Number(document.getElementById("hashes")?.textContent),
    coins: Number(document.getElementById("coins")?.textContent),
    trouble: document.getElementById("trouble")?.textContent,
  })`);
}

async function serviceNames(node: Host): Promise<string[]> {
  return (await node.ctlJson<ServiceView[]>("service", "ls")).map((one) => one.name).sort();
}

async function networkCount(node: Host): Promise<number> {
  return (await node.ctlJson<NetworkView[]>("network", "ls")).length;
}
