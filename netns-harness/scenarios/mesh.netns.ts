import assert from "node:assert/strict";
import type { ServiceView } from "../../src/agent/control-protocol.ts";
import {
  attach,
  attachPlace,
  Connection,
  httpBackend,
  kernelAgrees,
  reaches,
  udpBackend,
} from "../endpoints.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import { allAnsweredBy, askHttp, askUdp, hostObjects } from "../observe.ts";
import type { Place } from "../place.ts";
import { scenario, scenarioOnEach } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const SOON_MS = 10_000;
const REQUESTS = 40;

scenarioOnEach(
  "a published port answers on every node, also on one without a backend and on 127.0.0.1",
  async (lab) => {
    const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
    await httpBackend(lab, nodes[0], "blue", "web", "web.1");
    for (const node of nodes) {
      await answeredBy(client, `http://${node.address}:8000/`, ["web.1"]);
      await answeredBy(node, "http://127.0.0.1:8000/", ["web.1"]);
      await answeredBy(node, `http://${node.address}:8000/`, ["web.1"]);
    }
    // From one node to another's address, as well.
    await answeredBy(nodes[1], `http://${nodes[2].address}:8000/`, ["web.1"]);
  },
);

scenario(
  "a backend sees the client's own address, TCP and UDP, from every entry node, and nobody else sees a packet",
  async (lab) => {
    const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
    const [node1, node2, node3] = nodes;
    await node1.ctl("service", "create", "dns", "--network", "blue", "--publish", "5300:53/udp");
    await httpBackend(lab, node1, "blue", "web", "web.1");
    await known(node1, "dns");
    await udpBackend(lab, node1, "blue", "dns", "dns.1");
    const seesClient = async (node: Host): Promise<void> => {
      await waitFor(
        `web.1 and dns.1 to see the client's address behind ${node.name}`,
        async () => [
          await client.httpGet(`http://${node.address}:8000/`),
          await client.udpAsk(node.address, 5300, "x"),
        ],
        {
          withinMs: SOON_MS,
          until: ([page, answer]) =>
            page === `web.1 ${client.address}` && answer === `dns.1 ${client.address} x`,
        },
      );
    };
    for (const node of nodes) await seesClient(node);
    // Everything there is between client, entry node and backend's node passes node3's link only when node3 is asked.
    const capture = await node3.capture(`udp port 4789 or host ${client.address}`);
    for (let i = 0; i < 5; i++) await seesClient(node2);
    const seen = (await capture.stop()).filter((frame) => !/ARP/.test(frame));
    // Agents probe the data path with a VNI of their own.
    const ours = seen.filter((frame) => frame.includes(client.address));
    assert.deepEqual(ours, []);
  },
);

scenario(
  "clients inside the overlay, the backend itself among them, get answers from every node",
  async (lab) => {
    const { nodes } = await swarmWithService(lab, "web", "8000:80");
    const [node1, node2] = nodes;
    const web = await httpBackend(lab, node1, "blue", "web", "web.1");
    const user = await attach(lab, node2, "blue", "user");
    const { networks } = await node1.ctlJson<ServiceView>("service", "inspect", "web");
    const vip = networks.find((one) => one.network === "blue")?.vip;
    assert.ok(vip);
    // East-west the backend sees the endpoint itself, also when that is the backend.
    for (const from of [user, web]) {
      await waitFor(
        `${from.place.name} to be seen as ${from.ip}`,
        () => from.place.httpGet(`http://${vip}/`),
        {
          withinMs: SOON_MS,
          until: (page) => page === `web.1 ${from.ip}`,
        },
      );
    }
    // A container with another way out, as a bridge of its host gives it, uses the published port like anybody.
    for (const [node, from] of [
      [node1, web],
      [node2, user],
    ] as const) {
      await wayOut(node, from.place);
      await answeredBy(from.place, `http://${node.address}:8000/`, ["web.1"]);
    }
  },
);

scenario("IPv6 clients, ::1 among them, reach every service on every node", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  const [node1, node2] = nodes;
  await node1.ctl("service", "create", "dns", "--network", "blue", "--publish", "5300:53/udp");
  await httpBackend(lab, node1, "blue", "web", "web.1");
  await known(node2, "dns");
  await udpBackend(lab, node2, "blue", "dns", "dns.1");
  await client.run("ip", "address", "add", "fd00:1::200/64", "dev", "eth0", "nodad");
  for (const [index, node] of nodes.entries()) {
    const address = `fd00:1::${index + 1}`;
    await node.run("ip", "address", "add", `${address}/64`, "dev", "eth0", "nodad");
    await answeredBy(client, `http://[${address}]:8000/`, ["web.1"]);
    await answeredBy(node, "http://[::1]:8000/", ["web.1"]);
    await waitFor(`dns.1 to answer on ${address}`, () => client.udpAsk(address, 5300), {
      withinMs: SOON_MS,
      until: (answer) => answer?.startsWith("dns.1 ") === true,
    });
  }
});

scenario("a port published on one address, and one only where a backend runs", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "192.168.1.105:8000:80");
  const [node1, node2] = nodes;
  await httpBackend(lab, node1, "blue", "web", "web.1");
  await answeredBy(client, `http://${node2.address}:8000/`, ["web.1"]);
  await node2.run("ip", "address", "add", "192.168.1.205/24", "dev", "eth0");
  for (const url of [`http://${node1.address}:8000/`, "http://192.168.1.205:8000/"])
    await refuses(client, url);
  await node1.ctl("service", "rm", "web");
  // No service publishes in ingress mode any more: what serves the host's port comes with the backend.
  await node1.ctl(
    "service",
    "create",
    "local",
    "--network",
    "blue",
    "--publish",
    "8001:80",
    "--mode",
    "host",
  );
  for (const node of [node1, node2]) await known(node, "local");
  await httpBackend(lab, node1, "blue", "local", "local.1");
  await answeredBy(client, `http://${node1.address}:8001/`, ["local.1"]);
  await waitFor(
    "local.1 to see the client's address",
    () => client.httpGet(`http://${node1.address}:8001/`),
    { withinMs: SOON_MS, until: (page) => page === `local.1 ${client.address}` },
  );
  await refuses(client, `http://${node2.address}:8001/`);
  await httpBackend(lab, node2, "blue", "local", "local.2");
  await answeredBy(client, `http://${node2.address}:8001/`, ["local.2"]);
  await answeredBy(client, `http://${node1.address}:8001/`, ["local.1"]);
});

scenario("a connection that was idle longer than every timer on its way goes on", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "echo", "8007:8007");
  const [node1, node2] = nodes;
  const echo = lab.sandbox(node1, "echo");
  await attachPlace(node1, "blue", "echo.1", echo, "--service", "echo");
  const user = await attach(lab, node2, "blue", "user");
  const { networks } = await node2.ctlJson<ServiceView>("service", "inspect", "echo");
  const vip = networks.find((one) => one.network === "blue")?.vip ?? "";
  // By default the kernel remembers an idle connection for five days; here as long as an answer may take on a busy
  // machine, for what answers after its request was forgotten is another connection to it.
  const places = [node1, node2, user.place, echo];
  const established = "net.netfilter.nf_conntrack_tcp_timeout_established";
  assert.ok(Number(await node2.run("sysctl", "-n", established)) > 20 * 60);
  for (const place of places) await place.run("sysctl", "-qw", `${established}=4`);
  // Before, its connections carry the node's address, and forgotten they would go on with the client's.
  const ranges = ["nft", "list", "set", "inet", "netagent", "overlay_ranges"] as const;
  await waitFor(`${node2.name} to keep clients' addresses`, () => node2.run(...ranges), {
    withinMs: SOON_MS,
    until: (text) => text.includes("10.0.") && !text.includes("0.0.0.0/0"),
    everyMs: 100,
  });
  const [outside, inside] = [
    await Connection.open(client, echo, node2.address, 8007),
    await Connection.open(user.place, echo, vip, 8007, { serve: false }),
  ];
  for (const connection of [outside, inside]) {
    await connection.beatsOn();
    connection.pause();
  }
  for (const place of [node2, user.place]) {
    await waitFor(`${place.name} to forget the connection`, () => place.run("conntrack", "-L", "-p", "tcp"), {
      withinMs: SOON_MS,
      until: (list) => !list.includes("dport=8007"),
      everyMs: 200,
    });
  }
  for (const connection of [outside, inside]) {
    connection.resume();
    await connection.beatsOn();
  }
});

scenario(
  "beside a host firewall, Docker's and kube-proxy's rules the mesh works and leaves them alone",
  async (lab) => {
    const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
    const [node1, node2] = nodes;
    await httpBackend(lab, node1, "blue", "web", "web.1");
    await answeredBy(client, `http://${node2.address}:8000/`, ["web.1"]);
    for (const node of [node1, node2]) {
      await node.run("sh", "-c", OTHERS_RULES);
      const before = await othersRules(node);
      await answeredBy(client, `http://${node.address}:8000/`, ["web.1"]);
      await answeredBy(node, "http://127.0.0.1:8000/", ["web.1"]);
      // A change of ours, and a restart of the firewall, which flushes everything.
      await node.ctl("service", "update", "web", "--publish-add", "8003:80");
      await answeredBy(client, `http://${node.address}:8003/`, ["web.1"]);
      assert.equal(await othersRules(node), before);
      await node.ctl("service", "update", "web", "--publish-rm", "8003");
      await node.run("sh", "-c", `nft flush ruleset; ${OTHERS_RULES}`);
      await answeredBy(client, `http://${node.address}:8000/`, ["web.1"]);
      assert.equal(await othersRules(node), before);
    }
  },
);

scenario("answers rotate over the backends there are", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  const everywhere = async (names: readonly string[]): Promise<void> => {
    for (const node of nodes) await answeredBy(client, `http://${node.address}:8000/`, names);
  };
  for (const [index, node] of nodes.entries())
    await httpBackend(lab, node, "blue", "web", `web.${index + 1}`);
  await everywhere(["web.1", "web.2", "web.3"]);
  await nodes[2].ctl("detach", "web.3");
  await everywhere(["web.1", "web.2"]);
  await nodes[0].ctl("detach", "web.1");
  await everywhere(["web.2"]);
  await httpBackend(lab, nodes[2], "blue", "web", "web.4");
  await everywhere(["web.2", "web.4"]);
  for (const node of nodes) await kernelAgrees(node);
});

scenario("two backends on one node share the work", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[1], "blue", "web", "web.1");
  await httpBackend(lab, nodes[1], "blue", "web", "web.2");
  for (const node of nodes) await answeredBy(client, `http://${node.address}:8000/`, ["web.1", "web.2"]);
});

scenario("UDP ports work the same", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "dns", "5300:53/udp");
  await udpBackend(lab, nodes[0], "blue", "dns", "dns.1");
  await udpBackend(lab, nodes[1], "blue", "dns", "dns.2");
  const udpAnsweredBy = async (from: Place, address: string, names: readonly string[]): Promise<void> => {
    await waitFor(
      `UDP 5300 of ${address} to be answered by ${names.join(", ")}`,
      () => askUdp(from, address, 5300, 20),
      {
        withinMs: SOON_MS,
        until: (answers) => allAnsweredBy(answers)?.join() === names.join(),
      },
    );
  };
  for (const node of nodes) await udpAnsweredBy(client, node.address, ["dns.1", "dns.2"]);
  await udpAnsweredBy(nodes[2], "127.0.0.1", ["dns.1", "dns.2"]);
  await nodes[1].ctl("detach", "dns.2");
  for (const node of nodes) await udpAnsweredBy(client, node.address, ["dns.1"]);
});

scenario("several services and ports stand side by side", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await nodes[1].ctl(
    "service",
    "create",
    "api",
    "--network",
    "blue",
    "--publish",
    "8001:80",
    "--publish",
    "8002:80",
  );
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  await httpBackend(lab, nodes[1], "blue", "api", "api.1");
  for (const node of nodes) {
    await answeredBy(client, `http://${node.address}:8000/`, ["web.1"]);
    await answeredBy(client, `http://${node.address}:8001/`, ["api.1"]);
    await answeredBy(client, `http://${node.address}:8002/`, ["api.1"]);
  }
});

scenario("endpoints of the network reach the service at its virtual IP", async (lab) => {
  const { nodes } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  await httpBackend(lab, nodes[1], "blue", "web", "web.2");
  const { networks } = await nodes[2].ctlJson<ServiceView>("service", "inspect", "web");
  const vip = networks.find((one) => one.network === "blue")?.vip;
  assert.ok(vip, "the service has a VIP on blue");
  for (const node of nodes) {
    const user = await attach(lab, node, "blue", `user-${node.name}`);
    await answeredBy(user.place, `http://${vip}/`, ["web.1", "web.2"]);
  }
});

scenario("without a backend a connection is refused at once and not left hanging", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  await answeredBy(client, `http://${nodes[1].address}:8000/`, ["web.1"]);
  await nodes[0].ctl("detach", "web.1");
  for (const node of nodes) await refuses(client, `http://${node.address}:8000/`);
});

scenario("removing a service frees its port and its rules", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  const [node1, node2] = nodes;
  const { place } = await httpBackend(lab, node1, "blue", "web", "web.1");
  await node1.ctl("service", "update", "web", "--publish-add", "8007:8007");
  const connection = await Connection.open(client, place, node2.address, 8007);
  await connection.beatsOn();
  await node2.ctl("service", "rm", "web");
  await waitFor("an established connection to be reset", () => connection.end(), {
    withinMs: SOON_MS,
    until: (end) => /RESET/.test(end),
  });
  const entries = await node2.run("conntrack", "-L", "-p", "tcp");
  assert.doesNotMatch(entries, /ESTABLISHED.*dport=800[07]/);
  await waitFor("node1 to forget it", () => node1.netctl("service", "inspect", "web"), {
    withinMs: SOON_MS,
    until: (result) => result.code !== 0,
  });
  const server = await node2.serveHttp(8000, "own");
  await waitFor("node2's own server to answer", () => client.httpGet(`http://${node2.address}:8000/`), {
    withinMs: SOON_MS,
    until: (page) => page?.startsWith("own ") === true,
  });
  await server.stop();
  await node1.ctl("service", "create", "other", "--network", "blue", "--publish", "8000:80");
});

scenario("a port that is taken, by a process or a service, is refused with who holds it", async (lab) => {
  const { nodes } = await swarmWithService(lab, "web", "8000:80");
  const [node1, node2] = nodes;
  await node1.serveHttp(9000);
  const byProcess = await node1.netctl("service", "create", "a", "--network", "blue", "--publish", "9000:80");
  assert.equal(byProcess.code, 1);
  assert.match(byProcess.stderr, /9000.*(node|pid|process)/i);
  const elsewhere = await node2.netctl("service", "create", "a", "--network", "blue", "--publish", "9000:80");
  assert.equal(elsewhere.code, 1);
  assert.match(elsewhere.stderr, /on node1 port 9000.*pid/);
  await waitFor("node2 to know web", () => node2.netctl("service", "inspect", "web"), {
    withinMs: SOON_MS,
    until: (result) => result.code === 0,
  });
  await node1.ctl("service", "create", "forced", "--network", "blue", "--publish", "9000:80", "--force");
  await node1.ctl("service", "rm", "forced");
  const byService = await node2.netctl("service", "create", "b", "--network", "blue", "--publish", "8000:80");
  assert.equal(byService.code, 1);
  assert.match(byService.stderr, /8000.*web/);
  const twice = await node2.netctl("service", "create", "c", "--publish", "8005:80", "--publish", "8005:81");
  assert.notEqual(twice.code, 0);
  for (const port of ["0:80", "65536:80", "x:80"]) {
    assert.notEqual((await node2.netctl("service", "create", "d", "--publish", port)).code, 0, port);
  }
  // The same number in the other protocol is another port.
  await node2.ctl("service", "create", "e", "--network", "blue", "--publish", "8000:53/udp");
  const names = (await node2.ctlJson<ServiceView[]>("service", "ls")).map((one) => one.name).sort();
  assert.deepEqual(names, ["e", "web"], "nothing was half created");
});

scenarioOnEach("a large download through another node arrives whole", async (lab) => {
  const { nodes, client } = await swarmWithService(lab, "web", "8000:80");
  await httpBackend(lab, nodes[0], "blue", "web", "web.1");
  const url = `http://${nodes[2].address}:8000/`;
  await answeredBy(client, url, ["web.1"]);
  const { stdout } = await client.exec(["sh", "-c", `curl -sS --max-time 20 ${url}bytes/20000000 | wc -c`]);
  assert.equal(stdout.trim(), "20000000");
});

scenario("an agent that ends leaves no rule once nothing is attached", async (lab) => {
  const [node1] = await lab.swarm(1);
  assert.ok(node1);
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  await httpBackend(lab, node1, "blue", "web", "web.1");
  await reaches(node1, "127.0.0.1");
  await node1.ctl("detach", "web.1");
  await node1.ctl("service", "rm", "web");
  await node1.ctl("network", "rm", "blue");
  await node1.stop();
  assert.deepEqual(await hostObjects(node1), []);
});

async function swarmWithService(
  lab: Lab,
  service: string,
  publish: string,
): Promise<{ nodes: readonly [Host, Host, Host]; client: Host }> {
  const [node1, node2, node3] = await lab.swarm(3);
  assert.ok(node1 && node2 && node3);
  const client = lab.client();
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", service, "--network", "blue", "--publish", publish);
  for (const node of [node2, node3]) await known(node, service);
  return { nodes: [node1, node2, node3], client };
}

/** Waits until every one of a number of requests is answered, by exactly these backends. */
async function answeredBy(from: Place, url: string, names: readonly string[]): Promise<void> {
  await waitFor(
    `${url} asked from ${from.name} to be answered by ${names.join(", ")}`,
    () => askHttp(from, url, REQUESTS),
    {
      withinMs: SOON_MS,
      until: (answers) => allAnsweredBy(answers)?.join() === names.join(),
    },
  );
}

async function known(node: Host, service: string): Promise<void> {
  await waitFor(`${node.name} to know ${service}`, () => node.netctl("service", "inspect", service), {
    withinMs: SOON_MS,
    until: (result) => result.code === 0,
  });
}

/** curl: 7 is "connection refused", 28 a time-out. */
async function refuses(from: Place, url: string): Promise<void> {
  await waitFor(
    `${url} to refuse ${from.name}`,
    async () => (await from.exec(["curl", "-sS", "--max-time", "2", url])).code,
    { withinMs: SOON_MS, until: (code) => code === 7 },
  );
}

/** A second interface to the host and a default route through it, as Docker's bridge gives every container. */
async function wayOut(host: Host, sandbox: Place): Promise<void> {
  await host.run(
    ...([
      "ip",
      "link",
      "add",
      "bridge0",
      "type",
      "veth",
      "peer",
      "name",
      "out0",
      "netns",
      sandbox.netns,
    ] as const),
  );
  await host.run("ip", "address", "add", "172.31.0.1/24", "dev", "bridge0");
  await host.run("ip", "link", "set", "bridge0", "up");
  await sandbox.run("ip", "address", "add", "172.31.0.2/24", "dev", "out0");
  await sandbox.run("ip", "link", "set", "out0", "up");
  await sandbox.run("ip", "route", "add", "default", "via", "172.31.0.1");
  // Each host has the same range for its containers, so that none of them leaves it untranslated: Docker's rule.
  await host.run(
    "sh",
    "-c",
    `nft 'table ip docker { chain post { type nat hook postrouting priority srcnat; ip saddr 172.31.0.0/24 oifname != "bridge0" masquerade; }; }'`,
  );
}

/**
 * A firewall that drops what it does not know, what dockerd makes at its start (FORWARD dropping included), and
 * kube-proxy's nftables table with one service.
 */
const OTHERS_RULES = `
nft -f - <<'END'
table inet firewall {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname lo accept
    meta l4proto icmp accept
    tcp dport { 22, 7946 } accept
    udp dport { 4789, 7946 } accept
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct status dnat accept
  }
}
table ip kube-proxy {
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.0.10 . udp . 53 : drop }
  }
  chain services { ip daddr . meta l4proto . th dport vmap @service-ips }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0x4000 meta mark set meta mark xor 0x4000 masquerade fully-random
  }
  chain filter-forward { type filter hook forward priority filter; ct state invalid drop; }
}
END
iptables-restore <<'END'
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
END
`;

/** All rules but ours, without counters. */
async function othersRules(node: Host): Promise<string> {
  const tables = (await node.run("nft", "list", "tables")).split("\n").filter(Boolean);
  const texts: string[] = [];
  for (const table of tables) {
    if (/ netagent(-vxlan)?$/.test(table)) continue;
    const [, family = "", name = ""] = table.split(" ");
    texts.push(await node.run("nft", "-s", "list", "table", family, name));
  }
  // Two rules at the head of iptables' FORWARD are ours; nft does not show the comment that says so.
  return texts.join("\n").replaceAll(/^.*"na-ingress".*\n/gm, "");
}
