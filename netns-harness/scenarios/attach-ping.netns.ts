import assert from "node:assert/strict";
import type { EndpointView, NetworkDetailView, NetworkView } from "../../src/agent/control-protocol.ts";
import { attach, attachPlace, kernelAgrees, reaches } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { hostObjects, overlayLinks, vxlanVnis } from "../observe.ts";
import { started } from "../place.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const SOON_MS = 10_000;

scenarioOnEach(
  "endpoints on two nodes ping each other and carry TCP, in VXLAN with the network's VNI",
  async (lab) => {
    const [node1, node2] = await lab.swarm(2);
    assert.ok(node1 && node2);
    const { vni } = await node1.ctlJson<NetworkView>("network", "create", "blue");
    const capture = await node1.capture("udp port 4789");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    await reaches(a.place, b.ip);
    await reaches(b.place, a.ip);
    await a.place.serveHttp(80, "a");
    assert.equal(await b.place.httpGet(`http://${a.ip}/`), `a ${b.ip}`);
    await waitFor(`VXLAN frames with VNI ${vni}`, () => capture.frames(), {
      withinMs: SOON_MS,
      until: (frames) => frames.some((frame) => new RegExp(`vni ${vni}\\b.*ICMP echo`).test(frame)),
    });
    await Promise.all([node1, node2].map((node) => kernelAgrees(node)));
  },
);

scenario(
  "a network reaches every node at once, and no kernel before its first endpoint or after its last",
  async (lab) => {
    const nodes = await lab.swarm(3);
    const [node1, node2] = nodes;
    assert.ok(node1 && node2);
    const { vni } = await node1.ctlJson<NetworkView>("network", "create", "blue");
    for (const node of nodes) {
      await waitFor(`${node.name} to know blue`, () => node.ctlJson<NetworkView[]>("network", "ls"), {
        withinMs: SOON_MS,
        until: (list) =>
          list.some((one) => one.name === "blue" && one.driver === "overlay" && one.scope === "swarm"),
      });
    }
    const nowhere = async (): Promise<number[][]> => Promise.all(nodes.map(vxlanVnis));
    assert.ok(!(await nowhere()).flat().includes(vni));
    const { id } = await attach(lab, node2, "blue", "a");
    const found = await nowhere();
    assert.deepEqual(
      found.map((vnis) => vnis.includes(vni)),
      [false, true, false],
    );
    await node2.ctl("detach", id);
    await waitFor("the kernel objects to go", nowhere, {
      withinMs: SOON_MS,
      until: (vnis) => !vnis.flat().includes(vni),
    });
  },
);

scenarioOnEach("a payload as large as the MTU fits and a larger one does not", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  const { mtu } = await node1.ctlJson<NetworkView>("network", "create", "blue");
  assert.equal(mtu, 1450);
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  const fits = async (bytes: number): Promise<boolean> =>
    (await a.place.exec(["ping", "-nqc1", "-W2", "-Mdo", "-s", String(bytes - 28), b.ip])).code === 0;
  assert.ok(await fits(mtu));
  assert.ok(!(await fits(mtu + 1)));
  await b.place.serveHttp(80);
  const { stdout } = await a.place.exec([
    "sh",
    "-c",
    `curl -sS --max-time 10 http://${b.ip}/bytes/5000000 | wc -c`,
  ]);
  assert.equal(stdout.trim(), "5000000");
});

scenario(
  "an unknown address is answered by nobody, and asking for it does not leave the node",
  async (lab) => {
    const [node1, node2] = await lab.swarm(2);
    assert.ok(node1 && node2);
    await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    await reaches(a.place, b.ip);
    const capture = await node1.capture("udp port 4789");
    assert.ok(!(await a.place.pings("10.7.0.200")));
    assert.ok(await a.place.pings(b.ip)); // so that the capture has seen something
    const frames = await capture.stop();
    assert.deepEqual(
      frames.filter((frame) => frame.includes("10.7.0.200")),
      [],
    );
    assert.ok(frames.length > 0);
  },
);

scenario("networks do not reach each other", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  await node1.ctl("network", "create", "red");
  const blue = await attach(lab, node1, "blue", "a");
  const blue2 = await attach(lab, node2, "blue", "b");
  const red = await attach(lab, node2, "red", "c");
  await reaches(blue.place, blue2.ip);
  assert.ok(!(await blue.place.pings(red.ip)));
  assert.ok(!(await red.place.pings(blue.ip)));
});

scenario("one namespace can be on two networks, and attach takes a pid as well", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  await node1.ctl("network", "create", "red");
  const both = await attach(lab, node1, "blue", "both");
  const sleeper = both.place.spawn(["sleep", "1000"]);
  const options = [
    "--network",
    "red",
    "--pid",
    String(sleeper.pid),
    "--name",
    "both-red",
    "--ifname",
    "eth1",
  ];
  const { ifname } = await node1.ctlJson<EndpointView>("attach", ...options);
  assert.equal(ifname, "eth1");
  await reaches(both.place, (await attach(lab, node2, "blue", "b")).ip);
  await reaches(both.place, (await attach(lab, node2, "red", "r")).ip);
});

scenarioOnEach("two endpoints of one node reach each other and the other node's", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node1, "blue", "b");
  const c = await attach(lab, node2, "blue", "c");
  for (const [from, to] of [
    [a, b],
    [a, c],
    [b, c],
    [c, a],
    [c, b],
  ] as const)
    await reaches(from.place, to.ip);
});

scenario("netctl run gives its command an interface, its exit code back, and cleans up", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  await node1.ctl("network", "create", "blue");
  const result = await node1.netctl(
    "run",
    "--network",
    "blue",
    "--",
    "sh",
    "-c",
    "ip -brief address; exit 7",
  );
  assert.equal(result.code, 7);
  assert.match(result.stdout, /eth0\S*\s+UP\s+10\.[\d.]+\/24/);
  await noEndpoints(node1);
});

scenario("a netctl run that is interrupted or killed leaves nothing", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  await node1.ctl("network", "create", "blue");
  for (const signal of ["SIGINT", "SIGTERM", "SIGKILL"] as const) {
    const run = node1.netctlBackground(
      "run",
      "--network",
      "blue",
      "--",
      "sh",
      "-c",
      "echo inside; exec sleep 1000",
    );
    await started(run, "inside");
    await run.stop(signal);
    await noEndpoints(node1);
  }
});

scenario("detaching frees the address, and the last network takes everything with it", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  const pristine = await hostObjects(node1);
  await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/29");
  const { ip } = await attach(lab, node1, "blue", "a", "--ip", "10.7.0.5");
  assert.equal(ip, "10.7.0.5");
  await node1.ctl("detach", "a");
  const again = lab.sandbox(node1, "again");
  await attachPlace(node1, "blue", "again", again, "--ip", "10.7.0.5");
  await node1.ctl("detach", "again");
  await node1.ctl("network", "rm", "blue");
  await waitFor("node1 to be as it was", () => hostObjects(node1), {
    withinMs: SOON_MS,
    until: (objects) => objects.join() === pristine.join(),
  });
  assert.equal((await again.run("ip", "-brief", "link")).trim().split("\n").length, 1);
});

scenario("a jumbo underlay gives a jumbo overlay", async (lab) => {
  const [node1, node2] = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
  for (const node of [node1, node2]) lab.setMtu(node, 9000);
  await node1.start();
  await node2.start({ join: [node1] });
  await node1.ctl("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  const b = await attach(lab, node2, "blue", "b");
  await reaches(a.place, b.ip);
  const { code } = await a.place.exec(["ping", "-nqc1", "-W2", "-Mdo", "-s", String(8950 - 28), b.ip]);
  assert.equal(code, 0);
});

scenario("a full subnet refuses the next endpoint and gives away every address once", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "tiny", "--subnet", "10.7.0.0/29");
  const given = new Set<string>();
  let refusal = "";
  for (let index = 0; index < 8 && refusal === ""; index++) {
    const host = index % 2 === 0 ? node1 : node2;
    const place = lab.sandbox(host, `t${index}`);
    const result = await host.netctl("-o", "json", "attach", "--network", "tiny", "--netns", place.netns);
    if (result.code !== 0) refusal = result.stderr;
    else {
      const { ip } = JSON.parse(result.stdout) as EndpointView;
      assert.ok(!given.has(ip), `${ip} was given twice`);
      given.add(ip);
    }
  }
  assert.match(refusal, /10\.7\.0\.0\/29|full|no free address/i);
  const { endpoints } = await node1.ctlJson<NetworkDetailView>("network", "inspect", "tiny");
  assert.equal(endpoints.length, given.size);
});

async function noEndpoints(host: Host): Promise<void> {
  await waitFor(
    `${host.name} to have no endpoint and no link`,
    async () => ({
      endpoints: await host.ctlJson<EndpointView[]>("endpoint", "ls", "--network", "blue"),
      links: await overlayLinks(host),
    }),
    {
      withinMs: SOON_MS,
      until: ({ endpoints, links }) =>
        endpoints.length === 0 && !links.some((link) => link.where.startsWith("run-")),
    },
  );
}
