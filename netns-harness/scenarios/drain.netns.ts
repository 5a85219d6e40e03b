import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { BackendView, EventView, NodeView, ServiceView } from "../../src/agent/control-protocol.ts";
import type { Background } from "../command.ts";
import {
  attach,
  attachPlace,
  Connection,
  httpBackend,
  kernelAgrees,
  readyBackends,
  stateOf,
} from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { allAnsweredBy, askHttp, RequestLoop, type Answers } from "../observe.ts";
import { program, started } from "../place.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const SOON_MS = 10_000;
const NOTICE_MS = 20_000;

scenario(
  "draining a node moves its backends out of the rotation everywhere, without losing a request",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2, node3] = nodes;
    const loop = RequestLoop.start(
      client,
      nodes.map((node) => `http://${node.address}:8000/`),
    );
    await node1.ctl("node", "update", "node3", "--availability", "drain");
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2"]);
    const backends = await node2.ctlJson<BackendView[]>("service", "ps", "web");
    assert.equal(backends.find((one) => one.node === "node3")?.state, "draining");
    assert.equal((await availability(node3)).join(), "node1 active,node2 active,node3 drain");
    await node2.ctl("node", "update", "node3", "--availability", "active");
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
    const { asked, failed } = await loop.stop();
    assert.deepEqual({ failed, some: asked > 0 }, { failed: 0, some: true });
  },
);

scenario(
  "a drained node still takes requests for the others, and its endpoints stay connected",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, , node3] = nodes;
    await node1.ctl("node", "update", "node3", "--availability", "drain");
    await answeredBy(client, node3, ["web.1", "web.2"]);
    const user = await attach(lab, node3, "blue", "user");
    assert.ok(await user.place.pings((await attach(lab, node1, "blue", "other")).ip));
  },
);

scenario("a drain outlives the agent of the drained node and of the one that asked for it", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  const [node1, node2, node3] = nodes;
  await node1.ctl("node", "update", "node3", "--availability", "drain");
  await answeredBy(client, node2, ["web.1", "web.2"]);
  for (const node of [node1, node3]) {
    await node.crash();
    await node.restart();
  }
  await waitFor(
    "all to be back and node3 still drained",
    async () => [await readyBackends(node2, "web"), await availability(node2)],
    {
      withinMs: NOTICE_MS,
      until: ([ready, states]) => ready?.join() === "web.1,web.2" && states?.includes("node3 drain") === true,
    },
  );
  await holds("node3 stays out of the rotation", () => readyBackends(node2, "web"), {
    forMs: 3_000,
    until: (names) => !names.includes("web.3"),
    everyMs: 300,
  });
});

scenario(
  "when an agent dies its backends leave the rotation, no request fails, and they return with it",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2, node3] = nodes;
    const ask = (): RequestLoop =>
      RequestLoop.start(
        client,
        [node1, node2].map((node) => `http://${node.address}:8000/`),
      );
    let loop = ask();
    await node3.crash();
    await waitFor("node1 to notice", () => stateOf(node1, "node3"), {
      withinMs: NOTICE_MS,
      until: (state) => state === "dead",
    });
    for (const node of [node1, node2]) await answeredBy(client, node, ["web.1", "web.2"]);
    if (node3.dataplane === "userspace") {
      // The engine died with the agent: what was sent there until the others noticed had no answer.
      await loop.stop();
      loop = ask();
    }
    await node3.restart();
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"], NOTICE_MS);
    const { asked, failed } = await loop.stop();
    assert.deepEqual({ failed, some: asked > 0 }, { failed: 0, some: true });
  },
);

scenario(
  "a machine that loses power costs no client more than a pause, long before it is held for dead",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2, node3] = nodes;
    const urls = [node1, node2].map((node) => `http://${node.address}:8000/`);
    const box = await attach(lab, node1, "blue", "box");
    const { networks } = await node1.ctlJson<ServiceView>("service", "inspect", "web");
    const vip = networks.find((one) => one.network === "blue")?.vip ?? "";
    const loads = [
      client.spawnProgram("connect-load", "100", ...urls),
      box.place.spawnProgram("connect-load", "50", `http://${vip}:80/`),
    ];
    for (const load of loads) await started(load, "asking");
    lab.powerOff(node3);
    // Seen from connects alone, by each entry node for itself.
    for (const node of [node1, node2])
      await eventOf(node, (event) => event.type === "backend-failing", "a backend that fails");
    for (const node of [node1, node2]) await answeredBy(client, node, ["web.1", "web.2"]);
    await waitFor(
      "node1 and node2 to drop web.3",
      () => Promise.all([node1, node2].map((node) => readyBackends(node, "web"))),
      {
        withinMs: NOTICE_MS,
        until: (views) => views.every((names) => names.join() === "web.1,web.2"),
      },
    );
    for (const load of loads) {
      const { asked, answered, failures } = await loadResult(load);
      // A request that the machine had accepted is lost with it; no other is.
      const { UNANSWERED: lost = 0, ...others } = failures;
      assert.deepEqual({ others, answered }, { others: {}, answered: asked - lost });
      assert.ok(lost <= 5, `${lost} requests were under way`);
    }
    lab.powerOn(node3);
    await node3.start({ join: [node1] });
    await httpBackend(lab, node3, "blue", "web", "web.3");
    for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"], NOTICE_MS);
  },
);

scenario("replacing all backends under a thousand new connections a second loses none", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  const urls = nodes.map((node) => `http://${node.address}:8000/`);
  const load = client.spawnProgram("connect-load", "1000", ...urls);
  await started(load, "asking");
  for (const [index, node] of nodes.entries()) {
    await httpBackend(lab, node, "blue", "web", `new.${index + 1}`);
    await node.ctl("detach", `web.${index + 1}`);
  }
  const { asked, answered, failures, answers, slowestMs } = await loadResult(load);
  console.log(`replaced 3 backends under ${asked} connections, the slowest ${slowestMs} ms`);
  assert.deepEqual({ failures, answered }, { failures: {}, answered: asked });
  assert.deepEqual(Object.keys(answers).sort(), ["new.1", "new.2", "new.3", "web.1", "web.2", "web.3"]);
});

scenario(
  "a backend that is detached answers what is under way, for as long as it is told to",
  async (lab) => {
    const { nodes, client } = await oneBackendEach(lab);
    const [node1, node2] = nodes;
    // Through an entry node on another machine than the backend.
    const slow = (): Promise<Answers> => askHttp(client, `http://${node1.address}:8000/slow`, 12, 10);
    const requests = slow();
    await connectionsTo(lab, node2, "web.2");
    await node2.ctl("detach", "web.2");
    assert.ok((await requests)["web.2"], "what web.2 had begun it finished");
    assert.deepEqual(allAnsweredBy(await requests), ["web.1", "web.2", "web.3"]);
    // One that never ends is cut off when time is over, and hears of it at once.
    const echo = lab.sandbox(node2, "echo");
    await node1.ctl("service", "create", "echo", "--network", "blue", "--publish", "8007:8007");
    await known(node2, "echo");
    await attachPlace(node2, "blue", "echo.1", echo, "--service", "echo");
    const connection = await Connection.open(client, echo, node1.address, 8007);
    await connection.beatsOn();
    const left = node2.ctl("detach", "echo.1", "--drain-timeout", "2s");
    await connection.beatsOn();
    await left;
    await waitFor("the connection to be reset", () => connection.end(), {
      withinMs: SOON_MS,
      until: (end) => /RESET/.test(end),
    });
  },
);

scenario("a backend in `netctl run` that is asked to stop finishes first", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  const [node1, node2] = nodes;
  const urls = nodes.map((node) => `http://${node.address}:8000/`);
  const server = program("http-server", "run.1", "80");
  const run = node2.netctlBackground(
    "run",
    "--network",
    "blue",
    "--service",
    "web",
    "--name",
    "run.1",
    ...server,
  );
  for (const node of nodes) await answeredBy(client, node, ["run.1", "web.1", "web.2", "web.3"]);
  const load = client.spawnProgram("connect-load", "200", ...urls);
  await started(load, "asking");
  await run.stop("SIGTERM", 10_000);
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
  const { asked, answered, failures } = await loadResult(load);
  assert.deepEqual({ failures, answered }, { failures: {}, answered: asked });
  await kernelAgrees(node1);
});

scenario("while every backend drains they go on being used", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  for (const node of nodes) await nodes[0].ctl("node", "update", node.name, "--availability", "drain");
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
});

scenario("health checks take a crashed backend out of the rotation and bring it back", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  const [node1, node2] = nodes;
  const place = lab.sandbox(node1, "checked");
  await attachPlace(node1, "blue", "tcp.1", place, "--service", "web", "--health-tcp", "80");
  const flag = join(place.folder, "well");
  const other = lab.sandbox(node2, "checked");
  await other.serveHttp(80, "cmd.1");
  await attachPlace(node2, "blue", "cmd.1", other, "--service", "web", "--health-cmd", `test -e ${flag}`);
  // Neither has passed its check yet.
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
  const server = await place.serveHttp(80, "tcp.1");
  writeFileSync(flag, "");
  const all = ["cmd.1", "tcp.1", "web.1", "web.2", "web.3"];
  for (const node of nodes) await answeredBy(client, node, all);
  await server.stop("SIGKILL");
  rmSync(flag);
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
  await eventOf(
    node1,
    (event) => event.type === "endpoint-unhealthy" && event.subject === "tcp.1",
    "tcp.1 unhealthy",
  );
  await place.serveHttp(80, "tcp.1");
  writeFileSync(flag, "");
  for (const node of nodes) await answeredBy(client, node, all);
});

scenario("a backend that refuses is avoided after the first refusal, without any check", async (lab) => {
  const { nodes, client } = await oneBackendEach(lab);
  const [node1, node2] = nodes;
  const place = lab.sandbox(node2, "flaky");
  const server = await place.serveHttp(80, "flaky.1");
  await attachPlace(node2, "blue", "flaky.1", place, "--service", "web");
  for (const node of nodes) await answeredBy(client, node, ["flaky.1", "web.1", "web.2", "web.3"]);
  await server.stop("SIGKILL");
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
  assert.ok((await readyBackends(node1, "web")).includes("flaky.1"), "a verdict of its own, told to nobody");
  await place.serveHttp(80, "flaky.1");
  for (const node of nodes) await answeredBy(client, node, ["flaky.1", "web.1", "web.2", "web.3"]);
});

/** Service `web` on port 8000 with `web.1` … `web.3` on node1 … node3. */
async function oneBackendEach(lab: Lab): Promise<{ nodes: readonly [Host, Host, Host]; client: Host }> {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  const nodes = [node1, node2, node3] as const;
  const client = lab.client();
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  for (const [index, node] of nodes.entries()) {
    await known(node, "web");
    await httpBackend(lab, node, "blue", "web", `web.${index + 1}`);
  }
  for (const node of nodes) await answeredBy(client, node, ["web.1", "web.2", "web.3"]);
  return { nodes, client };
}

async function answeredBy(
  client: Host,
  node: Host,
  names: readonly string[],
  withinMs = SOON_MS,
): Promise<void> {
  await waitFor(
    `port 8000 of ${node.name} to be answered by ${names.join(", ")}`,
    () => askHttp(client, `http://${node.address}:8000/`, 40),
    {
      withinMs,
      until: (answers) => allAnsweredBy(answers)?.join() === names.join(),
    },
  );
}

/** `name availability` of every node, sorted. */
async function availability(node: Host): Promise<string[]> {
  const list = await node.ctlJson<NodeView[]>("node", "ls");
  return list.map((one) => `${one.name} ${one.availability}`).sort();
}

async function known(node: Host, service: string): Promise<void> {
  await waitFor(`${node.name} to know ${service}`, () => node.netctl("service", "inspect", service), {
    withinMs: SOON_MS,
    until: (result) => result.code === 0,
  });
}

/** Waits until a backend's sandbox has established connections. */
async function connectionsTo(lab: Lab, node: Host, name: string): Promise<void> {
  const path = `/run/netns/${lab.mark.prefix}${node.name}-${name}`;
  await waitFor(
    `connections to ${name}`,
    () => node.run("nsenter", `--net=${path}`, "cat", "/proc/net/tcp"),
    // Local port 80, state ESTABLISHED.
    { withinMs: SOON_MS, until: (text) => / [0-9A-F]{8}:0050 [0-9A-F:]+ 01 /.test(text) },
  );
}

async function eventOf(node: Host, wanted: (event: EventView) => boolean, what: string): Promise<void> {
  await waitFor(
    `${node.name} to report ${what}`,
    async () => {
      const text = await node.ctl("-o", "json", "events", "--no-follow");
      return text
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line) as EventView);
    },
    { withinMs: SOON_MS, until: (events) => events.some(wanted) },
  );
}

type LoadResult = {
  readonly asked: number;
  readonly answered: number;
  readonly failures: Readonly<Record<string, number>>;
  readonly answers: Answers;
  readonly slowestMs: number;
};

/** Ends the load and gives its counts. */
async function loadResult(load: Background): Promise<LoadResult> {
  await load.stop("SIGTERM", 30_000);
  return JSON.parse(load.lines().at(-1) ?? "") as LoadResult;
}
