import assert from "node:assert/strict";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { CommandResult } from "../command.ts";
import { attach, kernelAgrees, reaches } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { aliveNames, allAlive } from "../lab.ts";
import { hostObjects } from "../observe.ts";
import { program } from "../place.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const SOON = { withinMs: 5_000 };

scenario(
  "what cannot be done is refused in one line that names it, and nothing is half done",
  async (lab) => {
    const [node1, node2] = await lab.swarm(2);
    assert.ok(node1 && node2);
    await node1.ctl("network", "create", "blue", "--subnet", "10.7.0.0/24");
    await attach(lab, node1, "blue", "taken", "--ip", "10.7.0.9");
    await node1.ctl("network", "create", "red", "--subnet", "10.6.0.0/24");
    await node1.ctl("service", "create", "web", "--network", "red");
    const box = lab.sandbox(node1, "box");
    const before = await whole(node1);
    const attachBox = ["attach", "--netns", box.netns, "--network"];
    for (const [args, named] of [
      [[...attachBox, "nowhere"], /nowhere/],
      [[...attachBox, "blue", "--ip", "10.7.0.9"], /10\.7\.0\.9/],
      [
        [...attachBox, "blue", "--ip", "10.8.0.9"],
        /10\.8\.0\.9.*10\.7\.0\.0\/24|10\.7\.0\.0\/24.*10\.8\.0\.9/,
      ],
      [[...attachBox, "blue", "--ip", "10.7.0.1"], /10\.7\.0\.1/],
      [[...attachBox, "blue", "--ip", "10.7.0.0"], /10\.7\.0\.0/],
      [[...attachBox, "blue", "--ip", "10.7.0.255"], /10\.7\.0\.255/],
      [[...attachBox, "blue", "--ip", "ten"], /ten/],
      [[...attachBox, "blue", "--service", "nothing"], /nothing/],
      [["attach", "--network", "blue", "--netns", "no-such-namespace"], /no-such-namespace/],
      [["attach", "--network", "blue", "--pid", "4194304"], /4194304/],
      [["detach", "nobody"], /nobody/],
      // The nearest name, wherever one is taken.
      [[...attachBox, "bleu"], /did you mean 'blue'/],
      [["network", "inspect", "bleu"], /did you mean 'blue'/],
      [["tables", "bleu"], /did you mean 'blue'/],
      [["plan", "bleu"], /did you mean 'blue'/],
      [["capture", "bleu"], /did you mean 'blue'/],
      [["capture", "blue", "--node", "nod2"], /did you mean 'node[12]'/],
      [["detach", "takn"], /did you mean 'taken'/],
      [["endpoint", "inspect", "takn"], /did you mean 'taken'/],
      [["endpoint", "ls", "--service", "wbe"], /did you mean 'web'/],
      [["service", "inspect", "wbe"], /did you mean 'web'/],
      [["service", "create", "api", "--network", "bleu"], /did you mean 'blue'/],
      [["node", "inspect", "ndoe2"], /did you mean 'node2'/],
      [["trace", "takn", "web"], /did you mean 'taken'/],
      [["trace", "taken", "wbe"], /did you mean 'web'/],
      [["network", "create", "blue"], /blue/],
      [
        ["network", "create", "over", "--subnet", "10.7.0.128/25"],
        /10\.7\.0\.128\/25.*blue|blue.*10\.7\.0\.128\/25/,
      ],
      [["network", "create", "over", "--subnet", "10.7.0.0/16"], /blue/],
      [["network", "create", "bad", "--subnet", "10.300.0.0/24"], /10\.300\.0\.0\/24/],
      [["network", "create", "bad", "--subnet", "10.9.0.0/33"], /10\.9\.0\.0\/33/],
      [["network", "create", "bad", "--subnet", "10.9.0.7/24"], /10\.9\.0\.7\/24/],
      [["network", "create", "bad", "--subnet", "127.0.0.0/24"], /127\.0\.0\.0\/24/],
      [["network", "create", "bad", "--subnet", "192.168.1.0/24"], /192\.168\.1\.0\/24/],
      [["network", "create", "bad", "--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1"], /10\.8\.0\.1/],
      [["network", "create", "bad", "--vni", "16777216"], /16777216/],
      [["network", "create", "no spaces"], /name/],
      [["network", "rm", "blue"], /blue.*(endpoint|taken|in use)/],
      [["network", "rm", "ingress"], /ingress/],
      [["network", "inspect", "nowhere"], /nowhere/],
      [["service", "rm", "nothing"], /nothing/],
      [["service", "create", "other", "--network", "nowhere"], /nowhere/],
      [["node", "update", "node9", "--availability", "drain"], /node9/],
      [["keys", "install", "short"], /key/i],
    ] as const) {
      refused(await node1.netctl(...args), 1, named);
    }
    assert.deepEqual(await whole(node1), before);
    assert.equal(
      (await box.run("ip", "-brief", "link")).trim().split("\n").length,
      1,
      "the sandbox is untouched",
    );
  },
);

scenario("a full subnet and seeds that nobody answers at are told in one line", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctl("network", "create", "tiny", "--subnet", "10.7.0.0/29");
  const box = lab.sandbox(node1, "box");
  const attachNext = (index: number): Promise<CommandResult> =>
    node1.netctl("attach", "--network", "tiny", "--netns", box.netns, "--ifname", `eth${index}`);
  let given = 0;
  let result = await attachNext(given);
  for (; result.code === 0 && given < 6; result = await attachNext(given)) given++;
  assert.ok(given >= 3, `only ${given} of the 5 addresses beside the gateway were given`);
  refused(result, 1, /tiny|10\.7\.0\.0\/29/);
  refused(await node1.netctl("join", "--timeout", "2s", "192.168.1.250"), 1, /192\.168\.1\.250/);
  refused(await node1.netctl("join", "--timeout", "2s", "no-such-host.invalid"), 1, /no-such-host\.invalid/);
  assert.deepEqual(await aliveNames(node1), ["node1", "node2"]);
});

scenario("wrong usage is told apart: exit code 2", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  for (const args of [
    ["nonsense"],
    ["network", "create"],
    ["attach", "--network", "blue"],
    ["peers", "--no-such-flag"],
    ["peers", "-o", "yaml"],
    ["node", "update", "node1", "--availability", "asleep"],
  ]) {
    assert.equal((await node1.netctl(...args)).code, 2, args.join(" "));
  }
});

scenario("without an agent netctl says so: exit code 3", async (lab) => {
  const node1 = lab.host("node1", "192.168.1.104");
  const result = await node1.netctl("peers");
  refused(result, 3, /netagent\.sock/);
});

scenario("an agent that cannot start says why in one line and changes nothing", async (lab) => {
  const node1 = lab.host("node1", "192.168.1.104");
  const badKey = join(node1.folder, "bad.toml");
  writeFileSync(badKey, 'advertize-addr = "192.168.1.104"\n');
  const wrong: string[] = [];
  for (const [flags, named] of [
    [["--gossip-key", "c2hvcnQ="], /gossip.key/],
    [["--advertise-addr", "203.0.113.7"], /203\.0\.113\.7/],
    [["--advertise-addr", "nowhere0"], /nowhere0/],
    [["--data-path-addr", "no"], /data-path-addr/],
    [["--gossip-port", "70000"], /70000|port/],
    [["--config", "/no/such/file"], /\/no\/such\/file/],
    [["--config", badKey], /advertize-addr.*advertise-addr/],
    [["--data-dir", "/dev/null/nowhere"], /\/dev\/null\/nowhere/],
    [["--data-dir", "/proc/nowhere"], /\/proc\/nowhere/],
    [["--run-dir", "/proc/nowhere"], /\/proc\/nowhere/],
  ] as const) {
    wrong.push(...notRefused(await node1.runAgent(flags), undefined, named));
  }
  assert.deepEqual(wrong, []);
  assert.deepEqual(await hostObjects(node1), []);
});

scenario("a second agent on the same data is refused, and the first goes on", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  const second = await node1.runAgent(["--run-dir", join(node1.folder, "run2"), "--gossip-port", "7999"]);
  refused(second, undefined, /data|another|already|pid/i);
  assert.deepEqual(await aliveNames(node1), ["node1"]);
});

scenario("while nothing can be written down, nothing is promised, and what runs goes on", async (lab) => {
  const [node1, node2] = [lab.host("node1", "192.168.1.104"), lab.host("node2", "192.168.1.105")];
  await node1.run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", node1.dataFolder);
  await node1.start();
  await node2.start({ join: [node1] });
  await allAlive([node1, node2]);
  await node1.ctl("network", "create", "blue");
  const here = await attach(lab, node1, "blue", "here");
  const box = lab.sandbox(node1, "box");
  const attachBox = (): Promise<CommandResult> =>
    node1.netctl("attach", "--network", "blue", "--netns", box.netns);
  const before = await whole(node1);
  const filler = join(node1.dataFolder, "filler");
  await node1.exec(["dd", "if=/dev/zero", `of=${filler}`, "bs=1k"]);
  refused(await attachBox(), 1, /endpoints\.json.*no space left.*free some space/);
  assert.deepEqual(await whole(node1), before);
  await node1.run("rm", filler);

  // As the kernel makes a file system with errors.
  await node1.run("mount", "-o", "remount,ro", node1.dataFolder);
  refused(await node1.netctl("network", "create", "red"), 1, /read-only.*make it writable/);
  refused(await node1.netctl("service", "create", "web", "--network", "blue"), 1, /read-only/);
  refused(await attachBox(), 1, /read-only/);
  assert.deepEqual(await whole(node1), before);
  // What others decide is learned all the same, and makes no agent end.
  await node2.ctl("network", "create", "green");
  await waitFor(
    "node1 to know green",
    async () => (await node1.ctl("network", "ls")).includes("green"),
    SOON,
  );
  const far = await attach(lab, node2, "blue", "far");
  await reaches(here.place, far.ip);
  await waitFor("doctor to tell", async () => (await node2.netctl("doctor")).stdout, {
    ...SOON,
    until: (told) => /failed.*node1.*read-only.*make it writable/.test(told),
  });
  await node1.ctl("detach", "here");

  await node1.run("mount", "-o", "remount,rw", node1.dataFolder);
  await waitFor(
    "a network again",
    async () => (await node1.netctl("network", "create", "red")).code === 0,
    SOON,
  );
  await node1.ctl("attach", "--network", "blue", "--netns", box.netns);
  const told = await node1.ctl("events", "--since", "1m", "--no-follow");
  assert.match(told, /failure +data directory +save .*read-only[^]*recovered +data directory/);
});

scenario("a port somebody else has is told with its number", async (lab) => {
  const node1 = lab.host("node1", "192.168.1.104");
  await node1.serveUdp(7946);
  const result = await node1.runAgent();
  refused(result, undefined, /7946/);
});

scenario("missing privileges and a missing nft are told before anything is done", async (lab) => {
  const node1 = lab.host("node1", "192.168.1.104");
  const [node = "", ...args] = node1.agentCommand();
  await node1.run("chmod", "-R", "a+rwX", node1.folder);
  const unprivileged = await node1.exec(
    ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", node, ...args],
    {
      timeoutMs: 15_000,
    },
  );
  refused(unprivileged, undefined, /CAP_(NET|SYS)_ADMIN/);

  const path = join(node1.folder, "bin");
  mkdirSync(path);
  symlinkSync("/usr/sbin/ip", join(path, "ip"));
  const withoutNft = await node1.exec(["env", `PATH=${path}`, node, ...args], { timeoutMs: 15_000 });
  refused(withoutNft, undefined, /nft/);
});

scenario(
  "noise on the gossip port and on the VXLAN port is dropped, and the swarm does not notice",
  async (lab) => {
    const nodes = await lab.swarm(2);
    const [node1, node2] = nodes;
    assert.ok(node1 && node2);
    const client = lab.client();
    await node1.ctl("network", "create", "blue");
    const a = await attach(lab, node1, "blue", "a");
    const b = await attach(lab, node2, "blue", "b");
    await reaches(a.place, b.ip);
    const before = await whole(node1);
    const noise = Promise.all(
      ["7946", "4789"].map((port) =>
        client.exec(program("hostile", node1.address, port, "5000", "1"), { timeoutMs: 120_000 }),
      ),
    );
    await holds("both agents see two members alive", () => Promise.all(nodes.map(aliveNames)), {
      forMs: 5_000,
      until: (views) => views.every((names) => names.join() === "node1,node2"),
      everyMs: 500,
    });
    for (const result of await noise) assert.equal(result.code, 0, result.stderr);
    assert.ok(await a.place.pings(b.ip));
    assert.deepEqual(await whole(node1), before);
    await kernelAgrees(node1);
  },
);

/** The result is a refusal with this exit code (any but 0 without one) and one line that matches. */
function refused(result: CommandResult, code: number | undefined, named: RegExp): void {
  assert.deepEqual(notRefused(result, code, named), []);
}

/** What is wrong with a refusal; empty when nothing is. */
function notRefused(result: CommandResult, code: number | undefined, named: RegExp): string[] {
  const said = result.stderr.trim();
  const typed = result.command.replace(/^.*(netctl|main\.js) /, "");
  if (code === undefined ? result.code === 0 : result.code !== code)
    return [`\`${typed}\` exits with ${result.code}: ${said || result.stdout.trim()}`];
  if (said.split("\n").length !== 1) return [`\`${typed}\` says more than one line: ${said}`];
  return named.test(said) ? [] : [`\`${typed}\` says: ${said}, without ${named}`];
}

/** Networks, services and endpoints a node knows. */
async function whole(node: Host): Promise<unknown> {
  return Promise.all(["network", "service", "endpoint"].map((kind) => node.ctlJson<unknown>(kind, "ls")));
}
