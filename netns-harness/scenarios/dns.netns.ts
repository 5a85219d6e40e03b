import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ResolveView, ServiceView } from "../../src/agent/control-protocol.ts";
import { attach, attachPlace, httpBackend, stateOf } from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { addressesOf, dig, NameLoop } from "../names.ts";
import { DIST, started, type Place } from "../place.ts";
import { scenario } from "../scenario.ts";
import { holds, waitFor } from "../wait.ts";

const SOON_MS = 10_000;
const NOTICE_MS = 20_000;

scenario("names of services, backends, endpoints and addresses, over UDP and TCP", async (lab) => {
  const { nodes, box, vip, web1, web2, db } = await namedSwarm(lab);
  const [node1] = nodes;

  for (const transport of ["+notcp", "+tcp"]) {
    const ask = async (...words: string[]): Promise<string> => {
      const { status, answers } = await dig(box, ...words, transport);
      return `${status} ${answers.join(" ")}`.trim();
    };
    const both = [web1.ip, web2.ip].sort().join(" ");
    assert.equal(await ask("web", "A"), `NOERROR ${vip}`);
    assert.equal(await ask("WEB.Blue", "A"), `NOERROR ${vip}`);
    assert.equal(await ask("tasks.web", "A"), `NOERROR ${both}`);
    assert.equal(await ask("tasks.web.blue", "A"), `NOERROR ${both}`);
    assert.equal(await ask("turns", "A"), `NOERROR ${db.ip}`);
    for (const name of ["web.1", "web.1.blue", web1.id.slice(0, 12)])
      assert.equal(await ask(name, "A"), `NOERROR ${web1.ip}`, name);
    for (const name of ["db", "database", "database.blue"])
      assert.equal(await ask(name, "A"), `NOERROR ${db.ip}`, name);
    assert.equal(await ask("-x", db.ip), "NOERROR db.blue.");
    assert.equal(await ask("-x", vip), "NOERROR web.blue.");
    assert.equal(await ask("_8000._tcp.web", "SRV"), "NOERROR 0 0 80 web.blue.");
    assert.equal(await ask("_80._tcp.tasks.web", "SRV"), "NOERROR 0 0 80 web.1.blue. 0 0 80 web.2.blue.");
    assert.equal(await ask("web", "AAAA"), "NOERROR");
    assert.equal(await ask("db", "MX"), "NOERROR");
    assert.equal(await ask("nobody.blue", "A"), "NXDOMAIN");
    assert.equal(await ask("tasks.nobody", "A"), "NXDOMAIN");
  }
  const nothing = await dig(box, "web", "AAAA");
  assert.match(nothing.text, /AUTHORITY: 1, ADDITIONAL: 1\n[^]*\t5\tIN\tSOA\t/);
  assert.match((await dig(box, "web", "A")).text, /EDNS: version: 0, flags:; udp: 4096\n[^]*\t30\tIN\tA\t/);
  assert.match((await dig(box, "tasks.web", "A", "+noedns")).text, /ADDITIONAL: 0\n[^]*\t5\tIN\tA\t/);
  assert.equal((await dig(box, "web", "A", "+edns=1", "+noednsneg")).status, "BADVERS");

  // Why that is so.
  const why = (name: string): Promise<ResolveView> =>
    node1.ctlJson<ResolveView>("resolve", name, "--from", "box");
  const { tried, ...answer } = await why("tasks.WEB.blue.");
  assert.deepEqual(
    { ...answer, addresses: [...answer.addresses].sort() },
    {
      name: "tasks.web.blue",
      from: "box",
      outcome: "answered",
      detail: "",
      addresses: [web1.ip, web2.ip].sort(),
      ttlSeconds: 5,
    },
  );
  assert.deepEqual(
    tried.map(({ name, network, known, service, rows }) => ({
      ...{ name, network, known, service },
      rows: rows.map((row) => `${row.endpoint} ${row.ip} ${row.state} on ${row.node}`).sort(),
    })),
    [
      { name: "tasks.web.blue", network: "blue", known: false, service: undefined, rows: [] },
      {
        ...{ name: "tasks.web", network: "blue", known: true, service: { name: "web", vip } },
        rows: [`web.1 ${web1.ip} serving on ${node1.name}`, `web.2 ${web2.ip} serving on ${nodes[1].name}`],
      },
    ],
  );
  assert.deepEqual((await why("web")).addresses, [vip]);
  assert.equal((await why("nobody.blue")).outcome, "refused");
  assert.match((await node1.netctl("resolve", "_80._tcp.web", "--from", "box")).stderr, /not PTR and SRV/);

  // A network whose name has dots, and an endpoint on both.
  await node1.ctl("network", "create", "green.team");
  await attachPlace(node1, "green.team", "two", box, "--ifname", "eth1");
  const far = await attach(lab, nodes[1], "green.team", "far");
  for (const name of ["far", "far.green.team"]) await resolves(box, name, far.ip);
  await resolves(box, "web", vip);
  assert.equal(await addressesOf(box, "web.green.team"), "NXDOMAIN");
  assert.equal(await addressesOf(far.place, "web"), "NXDOMAIN", "a service of a network it is not on");

  // A name server of its own inside a sandbox has port 53 for itself, on every address but ours.
  await box.serveUdp(53, "own");
  assert.match((await box.udpAsk("127.0.0.1", 53)) ?? "", /^own /);
  await resolves(box, "db", db.ip);

  // Whoever flushes the sandbox's rules gets the names back.
  for (const flush of ["flush ruleset", "flush table inet netagent-dns"]) {
    await box.run("nft", flush);
    await waitFor(`the redirection to be back after nft ${flush}`, () => box.run("nft", "list", "ruleset"), {
      withinMs: SOON_MS,
      until: (rules) => /udp dport 53 .*\n.*tcp dport 53 /.test(rules),
    });
    await resolves(box, "web", vip);
  }
  await node1.ctl("detach", "two");
  await node1.ctl("detach", "box");
  await waitFor("nothing to be left of the redirection", () => box.run("nft", "list", "tables"), {
    withinMs: SOON_MS,
    until: (tables) => !tables.includes("netagent-dns"),
  });
});

scenario("the resolvers of glibc, musl and node find what dig finds", async (lab) => {
  const { nodes, vip, web1, web2, db } = await namedSwarm(lab);
  const [node1] = nodes;
  const musl = join(lab.mark.folder, "lookup");
  const source = join(DIST, "../netns-harness/programs/lookup.c");
  const built = spawnSync("musl-gcc", ["-static", "-Wall", "-Werror", "-o", musl, source], {
    encoding: "utf8",
  });
  assert.equal(built.status, 0, built.stderr);
  const inside = async (...argv: string[]): Promise<string> => {
    const result = await node1.netctl("run", "--network", "blue", "--name", "shell", "--", ...argv);
    return `${result.stdout}${result.code === 0 ? "" : result.stderr}`.trim();
  };
  const both = [web1.ip, web2.ip].sort().join(" ");
  const glibc = await inside(
    "sh",
    "-c",
    `getent ahostsv4 web | awk '/STREAM/ {print $1}'; getent ahosts tasks.web | awk '/STREAM/ {print $1}' | sort | xargs
     getent ahostsv4 database.blue | awk '/STREAM/ {print $1}'; getent hosts ${db.ip} | awk '{print $2}'
     getent ahosts nobody.blue || echo "none: $?"; ping -n -q -c 1 -w 5 db | grep -o '1 received'`,
  );
  assert.deepEqual(glibc.split("\n"), [vip, both, db.ip, "db.blue", "none: 2", "1 received"]);
  const script = `${musl} web; ${musl} tasks.web | sort | xargs; ${musl} db.blue; ${musl} nobody.blue`;
  const [muslWeb, muslTasks, muslDb, muslNobody] = (await inside("sh", "-c", script)).split("\n");
  assert.deepEqual([muslWeb, muslTasks, muslDb], [vip, both, db.ip]);
  assert.match(muslNobody ?? "", /^nobody.blue: Name does not resolve$/);
  const program = `
    const dns = require("node:dns").promises;
    const out = [];
    (async () => {
      out.push((await dns.lookup("web")).address, (await dns.lookup("tasks.web", { all: true })).map((one) => one.address).sort().join(" "));
      out.push(await dns.resolve4("db"), (await dns.resolve4("tasks.web")).sort().join(" "), await dns.reverse(${JSON.stringify(db.ip)}));
      out.push((await dns.resolveSrv("_8000._tcp.web")).map((one) => one.port + " " + one.name));
      out.push(await dns.resolve6("web").catch((error) => error.code), await dns.resolve4("nobody.blue").catch((error) => error.code));
      console.log(out.join("\\n"));
    })();`;
  assert.deepEqual((await inside(process.execPath, "-e", program)).split("\n"), [
    ...[vip, both, db.ip, both, "db.blue", "80 web.blue"],
    ...["ENODATA", "ENOTFOUND"],
  ]);
});

scenario(
  "names of the outside are asked from the host's side, ours and internal networks' never",
  async (lab) => {
    const outside = lab.client();
    const refusing = lab.client("refusing", "192.168.1.201");
    const server = outside.spawnProgram("dns-server", outside.address);
    await started(server, "listening on");
    // Nobody has the first address, nobody listens on the second: the third answers.
    const servers = ["192.168.1.202", refusing.address, outside.address];
    const flags = servers.flatMap((address) => ["--dns", address]);
    const [node1] = await lab.swarm(1, { flags });
    assert.ok(node1);
    await node1.ctl("network", "create", "blue");
    await node1.ctl("network", "create", "vault", "--internal");
    const box = await attach(lab, node1, "blue", "box");
    const safe = await attach(lab, node1, "vault", "safe");
    const capture = await outside.capture("udp port 53 or tcp port 53");

    await resolves(box.place, "www.example.test", "192.0.2.1");
    assert.equal((await dig(box.place, "missing.example.test")).status, "NXDOMAIN");
    assert.equal((await dig(box.place, "broken.example.test")).status, "SERVFAIL");
    assert.match((await dig(box.place, "any.example.test", "TXT")).answers[0] ?? "", /outside/);
    const many = await dig(box.place, "many.example.test", "+noedns", "+ignore");
    assert.match(many.text, /flags: qr tc/);
    assert.equal((await dig(box.place, "many.example.test", "+noedns")).answers.length, 60);
    const before = server.lines().length;
    assert.equal(await addressesOf(box.place, "www.example.test"), "192.0.2.1");
    assert.equal(server.lines().length, before, "an answer is kept for its TTL");

    for (const name of ["box", "nobody.blue", "tasks.web", "box.blue"]) {
      for (const type of ["A", "AAAA", "MX", "TXT"]) await dig(box.place, name, type);
    }
    await dig(box.place, "-x", box.ip);
    await dig(box.place, "-x", box.ip.replace(/\d+$/, "200"));
    for (const name of ["safe", "secret.example.test", "com"])
      assert.notEqual((await dig(safe.place, name, "TXT")).status, "SILENT");
    assert.equal(await addressesOf(safe.place, "secret.example.test"), "NXDOMAIN");
    assert.equal(await addressesOf(safe.place, "safe"), safe.ip);

    const outcome = async (name: string, from: string): Promise<string> =>
      (await node1.ctlJson<ResolveView>("resolve", name, "--from", from)).outcome;
    assert.equal(await outcome("www.example.test", "box"), "forwarded");
    assert.equal(await outcome("www.example.test", "safe"), "refused");

    // The policy follows the endpoint's networks.
    await attachPlace(node1, "blue", "safe2", safe.place, "--ifname", "eth1");
    await resolves(safe.place, "now.example.test", "192.0.2.1");
    await node1.ctl("detach", "safe2");
    assert.equal(await addressesOf(safe.place, "later.example.test"), "NXDOMAIN");

    const asked = new Set(
      server
        .lines()
        .slice(1)
        .map((line) => line.split(" ")[0]),
    );
    const expected = ["www", "missing", "broken", "any", "many", "now"].map((name) => `${name}.example.test`);
    assert.deepEqual([...asked].sort(), expected.sort());
    // What the server was asked is what was on the wire.
    const frames = await capture.stop();
    assert.ok(frames.some((frame) => frame.includes("www.example.test")));
    for (const frame of frames) assert.doesNotMatch(frame, /secret|later|box|nobody|tasks|\bcom\.|in-addr/);
  },
);

scenario("an outage of ten seconds and a rolling replacement lose no name", async (lab) => {
  const { nodes, box, vip, web1, web2, db } = await namedSwarm(lab);
  const [node1, , node3] = nodes;
  const loop = NameLoop.start(box, ["web", "tasks.web", "web.1", "web.2", "db", "database.blue", "turns"]);
  const start = performance.now();
  lab.cut(node3);
  await waitFor("node1 to hold node3 for dead", () => stateOf(node1, "node3"), {
    withinMs: NOTICE_MS,
    until: (state) => state === "dead",
  });
  await holds("names stay", () => addressesOf(box, "db"), {
    forMs: Math.max(2_000, 10_000 - (performance.now() - start)),
    until: (answer) => answer === db.ip,
    everyMs: 200,
  });
  // Seen from the other side, too.
  const far = lab.sandbox(node3, "far");
  lab.heal();
  await waitFor("node1 to see node3 alive", () => stateOf(node1, "node3"), {
    withinMs: NOTICE_MS,
    until: (state) => state === "alive",
  });
  // Stop-first for one backend, start-first for the other.
  await node1.ctl("detach", "web.1");
  const web3 = await httpBackend(lab, node1, "blue", "web", "web.3");
  const web4 = await httpBackend(lab, nodes[1], "blue", "web", "web.4");
  await nodes[1].ctl("detach", "web.2");
  await resolves(box, "tasks.web", [web3.ip, web4.ip].sort().join(" "));
  const outcomes = await loop.stop();
  assert.ok(loop.asked > 5 * 7, `only ${loop.asked} questions about seven names`);
  for (const name of ["db", "database.blue", "turns"]) assert.deepEqual(outcomes[name], [db.ip], name);
  assert.deepEqual(outcomes["web"], [vip]);
  // A backend that left is known and has no address; nothing else ever happened to its name.
  assert.deepEqual(outcomes["web.1"], [web1.ip, "NODATA"]);
  assert.ok(outcomes["web.2"]?.every((seen) => [web2.ip, "NODATA"].includes(seen)));
  for (const seen of outcomes["tasks.web"] ?? []) assert.match(seen, /^10\./);
  await attachPlace(node3, "blue", "far", far);
  await resolves(far, "web", vip);
});

scenario("a restarted agent answers again soon, on the same port, with every name it had", async (lab) => {
  const { nodes, box, vip, db } = await namedSwarm(lab);
  const [node1] = nodes;
  const rules = await box.run("nft", "list", "table", "inet", "netagent-dns");
  const shell = node1.netctlBackground("run", "--network", "blue", "--name", "shell", "--", "sleep", "600");
  const resolvConf = await waitFor("the shell's resolv.conf", () => resolvConfOf(node1), {
    withinMs: SOON_MS,
  });
  await node1.crash();
  assert.equal(await addressesOf(box, "web"), "SILENT");
  const restarted = node1.restart();
  const first = await waitFor(
    "the first answer about an endpoint of another node",
    () => addressesOf(box, "db"),
    {
      withinMs: 30_000,
      until: (answer) => answer !== "SILENT",
      everyMs: 20,
    },
  );
  await restarted;
  assert.equal(first, db.ip);
  assert.equal(await addressesOf(box, "web"), vip);
  assert.equal(await box.run("nft", "list", "table", "inet", "netagent-dns"), rules);
  assert.equal(await resolvConfOf(node1), resolvConf);
  await shell.stop("SIGTERM");
});

/**
 * Three nodes on `blue`: service `web` (VIP, port 8000 to 80) with web.1 and web.2 on node1 and node2, service `turns`
 * (dnsrr) with the endpoint `db`, alias `database`, on node3, and a sandbox on node1 to ask from.
 */
async function namedSwarm(lab: Lab) {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  const service = await node1.ctlJson<ServiceView>("service", "inspect", "web");
  const vip = service.networks.find((one) => one.network === "blue")?.vip ?? "";
  await node1.ctl("service", "create", "turns", "--network", "blue", "--endpoint-mode", "dnsrr");
  for (const node of [node2, node3]) {
    await waitFor(`${node.name} to know the services`, () => node.netctl("service", "inspect", "turns"), {
      withinMs: SOON_MS,
      until: (result) => result.code === 0,
    });
  }
  const [box, web1, web2, db] = await Promise.all([
    attach(lab, node1, "blue", "box"),
    httpBackend(lab, node1, "blue", "web", "web.1"),
    httpBackend(lab, node2, "blue", "web", "web.2"),
    attach(lab, node3, "blue", "db", "--alias", "database", "--service", "turns"),
  ]);
  for (const { ip, name } of [
    { ip: [web1.ip, web2.ip].sort().join(" "), name: "tasks.web" },
    { ip: db.ip, name: "db" },
  ])
    await resolves(box.place, name, ip);
  return { nodes: [node1, node2, node3] as const, box: box.place, vip, web1, web2, db };
}

async function resolves(place: Place, name: string, addresses: string): Promise<void> {
  await waitFor(`${name} to be ${addresses} in ${place.name}`, () => addressesOf(place, name), {
    withinMs: SOON_MS,
    until: (seen) => seen === addresses,
    everyMs: 100,
  });
}

/** Inode and text of the one resolv.conf the agent of a host has written. */
async function resolvConfOf(host: Host): Promise<string> {
  const folder = join(host.runFolder, "netns");
  const path = (await host.run("find", folder, "-name", "*.resolv.conf")).trim();
  return path === "" ? "" : `${await host.run("stat", "-c", "%i %Y", path)}${readFileSync(path, "utf8")}`;
}
