import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Connection } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { Lab } from "../lab.ts";
import { program } from "../place.ts";
import { allAnsweredBy, askHttp, askUdp, Pings, RequestLoop } from "../observe.ts";
import { differences, machineState } from "../machine.ts";
import { scenario } from "../scenario.ts";
import { labMark, leftovers } from "../teardown.ts";
import { waitFor, WaitError } from "../wait.ts";

scenario(
  "hosts reach each other and the client, and nothing of the lab is on the machine itself",
  async (lab) => {
    const before = machineState();
    const [node1, node2, client] = [...twoHosts(lab), lab.client()];
    assert.ok(await node1.pings(node2.address));
    assert.ok(await client.pings(node1.address));
    assert.deepEqual(differences(before, machineState()), []);
  },
);

scenario("a partition separates groups both ways, spares hosts outside, and heals", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  const node3 = lab.host("node3", "192.168.1.113");
  const client = lab.client();
  lab.partition([node1], [node2, node3]);
  assert.ok(!(await node1.pings(node2.address)));
  assert.ok(!(await node3.pings(node1.address)));
  assert.ok(await node2.pings(node3.address));
  assert.ok(await client.pings(node1.address));
  assert.ok(await client.pings(node2.address));
  lab.heal();
  assert.ok(await node1.pings(node2.address));
});

scenario("a cut host hears nothing and keeps its link; an unplugged one loses it", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  lab.cut(node2);
  assert.ok(!(await node1.pings(node2.address)));
  assert.match(await node2.run("cat", "/proc/net/route"), /eth0/);
  assert.match(await node2.run("ip", "link", "show", "eth0"), /LOWER_UP/);
  lab.heal();
  lab.setPlugged(node2, false);
  assert.doesNotMatch(await node2.run("ip", "link", "show", "eth0"), /LOWER_UP/);
  lab.setPlugged(node2, true);
  await waitFor("node2 to answer again", () => node1.pings(node2.address), { withinMs: 5_000 });
});

scenario("loss drops about the share asked for", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  assert.ok(await node1.pings(node2.address)); // so that no ARP question is among the lost
  lab.loss(node2, 0.3); // there and back: half of the pings is answered
  const { stdout } = await node1.exec([
    "ping",
    "-n",
    "-q",
    "-c",
    "200",
    "-i",
    "0.005",
    "-W",
    "1",
    node2.address,
  ]);
  const answered = Number(/, (\d+) received/.exec(stdout)?.[1]);
  assert.ok(answered > 50 && answered < 150, stdout);
});

scenario("the underlay's MTU is what was set, jumbo included", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  const fits = async (bytes: number): Promise<boolean> =>
    (await node1.exec(["ping", "-nqc1", "-W1", "-Mdo", "-s", String(bytes - 28), node2.address])).code === 0;
  assert.ok(await fits(1500));
  assert.ok(!(await fits(1501)));
  lab.setMtu(node1, 9000);
  lab.setMtu(node2, 9000);
  assert.ok(await fits(9000));
});

scenario("servers answer with their name and the address they saw", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  const server = await node1.serveHttp(80, "web1");
  await node1.serveUdp(53, "dns1");
  assert.equal(await node2.httpGet(`http://${node1.address}/`), `web1 ${node2.address}`);
  assert.equal(await node2.udpAsk(node1.address, 53, "hi"), `dns1 ${node2.address} hi`);
  await server.stop();
  assert.equal(await node2.httpGet(`http://${node1.address}/`), undefined);
});

scenario("answers are counted by who gave them, and missing ones are failures", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  await node1.serveHttp(80, "web1");
  await node1.serveUdp(53, "dns1");
  assert.deepEqual(await askHttp(node2, `http://${node1.address}/`, 10), { web1: 10 });
  assert.deepEqual(await askUdp(node2, node1.address, 53, 4), { dns1: 4 });
  assert.deepEqual(await askHttp(node2, `http://${node1.address}:81/`, 3), { "": 3 });
  assert.deepEqual(await askUdp(node2, node1.address, 54, 2), { "": 2 });
  assert.equal(allAnsweredBy({ web1: 9, "": 1 }), undefined);
  const loop = RequestLoop.start(node2, [`http://${node1.address}/`, `http://${node1.address}:81/`]);
  await waitFor("both to be asked", () => node1.pings(node2.address), { withinMs: 3_000 });
  const { asked, failed } = await loop.stop();
  assert.equal(failed, asked / 2);
});

scenario(
  "a long-lived connection beats on after an interruption, and pings tell what was lost",
  async (lab) => {
    const [node1, node2] = twoHosts(lab);
    const connection = await Connection.open(node1, node2, node2.address);
    const pings = Pings.start(node1, node2.address);
    await connection.beatsOn();
    assert.deepEqual(pings.lost(), []);
    lab.cut(node2);
    assert.ok(!(await node1.pings(node2.address)));
    lab.heal();
    await connection.beatsOn();
    assert.notDeepEqual(pings.lost(), []);
  },
);

scenario("noise reaches its port over UDP and TCP", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  const echo = await node1.serve("echo-server", "7946");
  await node1.serveUdp(7946);
  const capture = await node1.capture("port 7946");
  const result = await node2.exec(program("hostile", node1.address, "7946", "50", "1"));
  assert.equal(result.code, 0, result.stderr);
  for (const mark of ["proto UDP", "Flags [S]"]) {
    await waitFor(`"${mark}" in the capture`, () => capture.frames().length, {
      withinMs: 3_000,
      until: () => capture.frames().some((frame) => frame.includes(mark)),
    });
  }
  assert.ok(echo.running);
});

scenario("a capture shows the frames that crossed a link", async (lab) => {
  const [node1, node2] = twoHosts(lab);
  const capture = await node2.capture("icmp");
  await node1.pings(node2.address);
  await waitFor("the pings in the capture", () => capture.frames().join("\n"), {
    withinMs: 3_000,
    until: (frames) => /192\.168\.1\.104 > 192\.168\.1\.105: ICMP echo request/.test(frames),
  });
  await capture.stop();
});

scenario("a sandbox has loopback and nothing else", async (lab) => {
  const sandbox = lab.sandbox(lab.host("node1", "192.168.1.104"), "box");
  assert.equal((await sandbox.run("ip", "-brief", "link")).trim().split("\n").length, 1);
  assert.ok(await sandbox.pings("127.0.0.1"));
});

scenario(
  "a power failure takes processes and sandboxes, spares files and other hosts, and ends",
  async (lab) => {
    const [node1, node2] = twoHosts(lab);
    const server = await node1.serveHttp(80);
    const box = lab.sandbox(node1, "box");
    writeFileSync(join(node1.dataFolder, "file"), "kept");
    lab.powerOff(node1);
    await server.exited;
    assert.ok(!existsSync(node1.netnsPath) && !existsSync(box.netnsPath));
    assert.ok(await node2.pings("127.0.0.1"));
    lab.powerOn(node1);
    assert.ok(await node2.pings(node1.address));
    assert.equal(readFileSync(join(node1.dataFolder, "file"), "utf8"), "kept");
  },
);

test("the end of a lab leaves no namespace, process, mount or file, also after an exception", async () => {
  const before = machineState();
  const lab = Lab.create();
  await assert.rejects(async () => {
    await using _lab = lab;
    const [node1] = twoHosts(lab);
    await node1.serveHttp(80);
    node1.spawn(["bash", "-c", "setsid sleep 1000 & setsid unshare --net sleep 1000"]);
    throw new Error("the test fails here");
  }, /the test fails here/);
  assert.deepEqual(leftovers(lab.mark), []);
  assert.deepEqual(
    readdirSync("/run/netns").filter((name) => name.startsWith(lab.mark.prefix)),
    [],
  );
  assert.ok(!existsSync(lab.mark.folder));
  assert.deepEqual(differences(before, machineState()), []);
});

for (const signal of ["SIGINT", "SIGTERM", "SIGKILL"] as const) {
  test(`a run ended by ${signal} leaves nothing${signal === "SIGKILL" ? " after the next sweep" : ""}`, async () => {
    const [node, ...args] = program("idle-lab");
    const child = spawn(node, args, { stdio: ["ignore", "pipe", "inherit"] });
    const ended = once(child, "exit");
    const [line] = (await once(child.stdout, "data")) as [Buffer];
    const mark = labMark(child.pid ?? 0, 0);
    assert.equal(line.toString(), `lab ${child.pid}\n`);
    child.kill(signal);
    await ended;
    if (signal === "SIGKILL") {
      assert.notDeepEqual(leftovers(mark), []);
      assert.equal(spawnSync(node, program("../sweep").slice(1)).status, 0);
    }
    assert.deepEqual(leftovers(mark), []);
  });
}

test("what was waited for in vain is told with the last observation", async () => {
  await assert.rejects(
    waitFor("three members", () => ["node1"], { withinMs: 0, until: (seen) => seen.length === 3 }),
    (error) =>
      error instanceof WaitError &&
      /waited 0 ms for three members; last seen: \[ 'node1' \]/.test(error.message),
  );
});

function twoHosts(lab: Lab): readonly [Host, Host] {
  return [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")] as const;
}
