import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { attach, attachPlace, Connection, kernelAgrees, reaches } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive, type Lab, NODES } from "../lab.ts";
import { networkDevices, overlayLinks } from "../observe.ts";
import { DIST, started } from "../place.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

/** What two nodes need to see of each other: a round of probes, and a slow machine. */
const SEEN_MS = 30_000;

scenario(
  "where the kernel has no VXLAN, auto takes the engine, says so, and is a normal node",
  async (lab) => {
    const [node1, node2] = NODES.slice(0, 2).map(([name, address]) => lab.host(name, address, "auto"));
    assert.ok(node1 && node2);
    const withoutVxlan = { LD_PRELOAD: compile(lab, "no-vxlan", "-shared", "-fPIC") };
    const refused = await node2.runAgent(["--dataplane", "kernel"], { env: withoutVxlan });
    assert.notEqual(refused.code, 0);
    assert.match(refused.stderr, /--dataplane kernel: this kernel has no VXLAN/);

    await node1.start();
    await node2.start({
      join: [node1],
      env: withoutVxlan,
      flags: ["--metrics-addr", "127.0.0.1:9476"],
    });
    await allAlive([node1, node2]);
    assert.match(await node1.ctl("info"), /kernel \(this kernel has VXLAN\)/);
    assert.match(await node2.ctl("info"), /userspace \(this kernel has no VXLAN\)/);

    await node1.ctl("network", "create", "blue");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    await reaches(a.place, b.ip);
    await reaches(b.place, a.ip);
    const metrics = await node2.run("curl", "-sS", "http://127.0.0.1:9476/metrics");
    assert.match(metrics, /^netagent_engine_total\{what="rxFrames"\} [1-9]/m);
    assert.match(metrics, /^netagent_engine_total\{what="rxDropWrongVtep"\} 0$/m);
    assert.deepEqual(
      (await networkDevices(node2)).map(({ kind }) => kind),
      ["tun"],
    );
    for (const node of [node1, node2]) {
      await pathsOk(node);
      await kernelAgrees(node);
      const examined = await waitFor("a doctor without complaints", () => node.netctl("doctor"), {
        withinMs: SEEN_MS,
        until: ({ code }) => code === 0,
      });
      assert.equal(examined.code, 0, examined.stdout);
    }
  },
);

scenario("an agent whose JavaScript stands still stops no frame", async (lab) => {
  const [node1, node2, a, b] = await engines(lab);
  const connection = await Connection.open(a.place, b.place, b.ip);
  const frozen = node1.spawn([compile(lab, "freeze-thread"), String(node1.agent.pid)]);
  await started(frozen, "frozen");
  const asking = node1.netctl("info");
  let answered = false;
  void asking.then(() => (answered = true));
  await holds("beats come back", () => connection.beatsOn().then(() => true), { forMs: 3_000 });
  // An ARP cache that is empty is filled by the engine, too.
  await a.place.run("ip", "neighbor", "flush", "dev", "eth0");
  assert.ok(await a.place.pings(b.ip));
  assert.ok(!answered, "the agent answers nobody meanwhile");
  await frozen.stop();
  assert.equal((await asking).code, 0);
  await allAlive([node1, node2], SEEN_MS);
  await connection.beatsOn();
});

scenario(
  "attaching and detaching leaves no thread, descriptor or device, and an idle engine sleeps",
  async (lab) => {
    const [node1] = await lab.swarm(1, { flags: ["--dataplane", "userspace"] });
    assert.ok(node1);
    await node1.ctl("network", "create", "blue");
    const box = lab.sandbox(node1, "box");
    const cycle = async (): Promise<void> => {
      await attachPlace(node1, "blue", "box", box);
      assert.equal(engineThreads(node1).length, 2);
      await node1.ctl("detach", "box");
      await waitFor("the engine to end", () => engineThreads(node1), {
        withinMs: SEEN_MS,
        until: (threads) => threads.length === 0,
      });
    };
    await cycle();
    const before = held(node1);
    for (let round = 0; round < 5; round++) await cycle();
    await waitFor("descriptors and threads to be as they were", () => held(node1), {
      withinMs: SEEN_MS,
      until: (now) => now.fds <= before.fds && now.threads <= before.threads,
    });
    assert.deepEqual(await overlayLinks(node1), []);

    await attachPlace(node1, "blue", "box", box);
    const idle = await waitFor("threads that rest", () => engineThreads(node1), {
      withinMs: SEEN_MS,
      until: (threads) => threads.every(({ state }) => state === "S"),
    });
    const ticks = idle.reduce((sum, thread) => sum + thread.ticks, 0);
    await holds("the engine uses no processor", () => engineThreads(node1), {
      forMs: 2_000,
      until: (threads) => threads.reduce((sum, thread) => sum + thread.ticks, 0) - ticks <= 1,
    });
  },
);

/** Two nodes with the engine and an endpoint on each, which reach each other. */
async function engines(
  lab: Lab,
): Promise<[Host, Host, Awaited<ReturnType<typeof attach>>, Awaited<ReturnType<typeof attach>>]> {
  const [node1, node2] = await lab.swarm(2, { flags: ["--dataplane", "userspace"] });
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  return [node1, node2, a, b];
}

/** One of the C programs in `programs/`. */
function compile(lab: Lab, name: string, ...options: string[]): string {
  const output = join(lab.mark.folder, name);
  const source = join(DIST, `../netns-harness/programs/${name}.c`);
  const built = spawnSync("gcc", [...options, "-Wall", "-Wextra", "-Werror", "-o", output, source], {
    encoding: "utf8",
  });
  assert.equal(built.status, 0, built.stderr);
  return output;
}

async function pathsOk(host: Host): Promise<void> {
  await waitFor(
    `${host.name} to find its peers' data paths well`,
    () => host.ctlJson<{ self: boolean; dataPath: string; mtu: number | null }[]>("peers"),
    {
      withinMs: SEEN_MS,
      until: (peers) =>
        peers.filter(({ self }) => !self).every(({ dataPath, mtu }) => dataPath === "ok" && mtu === 1450),
    },
  );
}

function held(host: Host): { readonly fds: number; readonly threads: number } {
  const count = (kind: string): number => readdirSync(`/proc/${host.agent.pid}/${kind}`).length;
  return { fds: count("fd"), threads: count("task") };
}

/** State and processor time (ticks) of the engine's threads in the host's agent. */
function engineThreads(host: Host): { readonly state: string; readonly ticks: number }[] {
  const folder = `/proc/${host.agent.pid}/task`;
  return readdirSync(folder).flatMap((task) => {
    try {
      const stat = readFileSync(join(folder, task, "stat"), "utf8");
      if (!/\(engine-[rt]x\)/.test(stat)) return [];
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return [{ state: fields[0] ?? "", ticks: Number(fields[11]) + Number(fields[12]) }];
    } catch {
      return []; // ended meanwhile
    }
  });
}
