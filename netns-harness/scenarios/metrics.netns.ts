import assert from "node:assert/strict";
import { complainsOf, events } from "../diagnose.ts";
import { attach, httpBackend, readyBackends } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { program } from "../place.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const PATIENCE_MS = 30_000;
const METRICS = "127.0.0.1:9476";
const KEY = Buffer.alloc(32, 7);

scenario(
  "metrics and page count what services do, drops are told by reason, and neither shows a key",
  async (lab) => {
    const key = KEY.toString("base64");
    const flags = ["--metrics-addr", METRICS, "--web", "8946", "--gossip-key", key];
    const [node1, node2] = await lab.swarm(2, { flags });
    assert.ok(node1 && node2);
    const client = lab.client();
    const url = `http://${node1.address}:8000/`;
    await node1.ctl("network", "create", "blue");
    await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
    // The mesh is where a backend's node or another member's leg is: both have one once a backend exists.
    await httpBackend(lab, node2, "blue", "web", "web.1");
    await waitFor("an answer", () => client.httpGet(url), { withinMs: PATIENCE_MS });
    await metric(node1, 'local_backends{service="web",state="serving"}', undefined);
    await metric(node2, 'local_backends{service="web",state="serving"}', (value) => value === 1);
    const accepted = 'service_connections_total{service="web",port="8000/tcp",outcome="accepted"}';
    const before = await metric(node1, accepted, (value) => value >= 1);
    for (let index = 0; index < 5; index++) await client.httpGet(url);
    assert.equal(await metric(node1, accepted, (value) => value >= before + 5), before + 5);

    // A backend whose server is gone: this node prefers others, if there were any.
    const second = lab.sandbox(node2, "deaf");
    const deaf = ["--netns", second.netns, "--name", "web.2", "--service", "web", "--health-tcp", "81"];
    await node2.ctl("attach", "--network", "blue", ...deaf);
    await metric(node2, 'local_backends{service="web",state="unhealthy"}', (value) => value === 1);
    await metric(node2, 'local_backends{service="web",state="serving"}', (value) => value === 1);
    await node2.ctl("detach", "web.2");
    const third = lab.sandbox(node2, "refuses");
    await node2.ctl(
      "attach",
      "--network",
      "blue",
      "--netns",
      third.netns,
      "--name",
      "web.3",
      "--service",
      "web",
    );
    await waitFor("a connection that is not taken", () => client.httpGet(url), {
      withinMs: PATIENCE_MS,
      until: (page) => page === undefined,
      everyMs: 20,
    });
    await metric(node1, 'backends_avoided{service="web"}', (value) => value === 1);

    // No backend at all: a refusal, which is counted.
    await node2.ctl("detach", "web.3");
    await node2.ctl("detach", "web.1");
    await waitFor("node1 to have no backend", () => readyBackends(node1, "web"), {
      withinMs: PATIENCE_MS,
      until: (names) => names.length === 0,
    });
    const refused = 'service_connections_total{service="web",port="8000/tcp",outcome="refused"}';
    await waitFor(
      "refusals to be counted",
      async () => {
        await client.httpGet(url);
        return valueOf(await scrape(node1), refused);
      },
      { withinMs: PATIENCE_MS, until: (value) => (value ?? 0) >= 1 },
    );

    // What nobody can use is counted by reason, and told.
    await client.exec(program("hostile", node1.address, "7946", "200", "1"), { timeoutMs: 60_000 });
    const told = await waitFor("the drops to be told", () => events(node1, "dropped"), {
      withinMs: PATIENCE_MS,
      until: (seen) => seen.length > 0,
    });
    assert.match(told[0]?.detail ?? "", /^\d+ dropped: \S+/);
    assert.equal(told[0]?.subject, "gossip");
    assert.match(await scrape(node1), /^netagent_gossip_drops_total\{reason="[^"]+"\} [1-9]/m);

    // A network that somebody else defines runs out of the range this node may give from.
    const external = ["--external", "--id", "theirs0123456789", "--vni", "9001", "--subnet", "10.9.0.0/24"];
    await node1.ctl("network", "create", "theirs", ...external, "--ip-range", "10.9.0.64/29");
    for (let index = 0; index < 7; index++) await attach(lab, node1, "theirs", `t${index}`);
    const [space] = await complainsOf(node1, ["warning address-space theirs"], PATIENCE_MS);
    assert.equal(space?.detail, "7 of 8 addresses are used (87 %)");

    const page = (await node1.httpGet("http://127.0.0.1:8946/")) ?? "";
    const live = await node1.run("sh", "-c", "curl -sN -m 3 http://127.0.0.1:8946/events || :");
    assert.ok(page.includes("<html") && live.includes("data:"), `${page.slice(0, 80)} ${live.slice(0, 80)}`);
    for (const text of [page, live, await scrape(node1), JSON.stringify(await node1.ctlJson("keys", "list"))])
      for (const secret of [key, KEY.toString("hex")])
        assert.ok(!text.includes(secret), "a key is never shown");
  },
);

function scrape(host: Host): Promise<string> {
  return host.run("curl", "-sS", `http://${METRICS}/metrics`);
}

function valueOf(text: string, series: string): number | undefined {
  const line = text.split("\n").find((one) => one.startsWith(`netagent_${series} `));
  return line === undefined ? undefined : Number(line.slice(line.lastIndexOf(" ")));
}

/** Waits until the series has such a value; without `until` it must not be there. */
async function metric(
  host: Host,
  series: string,
  until: ((value: number) => boolean) | undefined,
): Promise<number> {
  const found = await waitFor(
    `${series} of ${host.name}`,
    async () => valueOf(await scrape(host), series) ?? -1,
    {
      withinMs: PATIENCE_MS,
      until: until ?? ((value) => value === -1),
    },
  );
  return found;
}
