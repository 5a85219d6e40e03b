/** Gossip keys: changed while everything runs, and a stranger kept out. */

import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe } from "node:test";
import type { KeyAnswer, PeerView } from "../../src/agent/control-protocol.ts";
import { attach, httpBackend } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive, aliveNames } from "../lab.ts";
import { RequestLoop } from "../observe.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

describe("gossip keys", { concurrency: 2 }, () => {
  scenario(
    "keys are installed, used and removed on every node while traffic and membership go on",
    async (lab) => {
      const [oldKey, newKey] = [generate(1), generate(2)];
      const hosts = await lab.swarm(3, { flags: ["--gossip-key", oldKey] });
      const [node1, node2, node3] = hosts;
      assert.ok(node1 && node2 && node3);
      await node1.ctl("network", "create", "blue", "--subnet", "10.0.7.0/24");
      await node1.ctl("service", "create", "web", "--network", "blue");
      const server = await httpBackend(lab, node2, "blue", "web", "web1");
      const client = await attach(lab, node1, "blue", "client");
      await waitFor("the first page", () => client.place.httpGet(`http://${server.ip}/`), {
        withinMs: 5_000,
      });
      const requests = RequestLoop.start(client.place, [`http://${server.ip}/`]);

      const before = await list(node1);
      assert.deepEqual(new Set(before.map(({ keys }) => keys.length)), new Set([1]));
      await everywhere(node2, "install", newKey);
      await everywhere(node3, "use", newKey);
      const refused = await node1.netctl("keys", "remove", newKey);
      assert.equal(refused.code, 1);
      assert.equal(refused.stdout.match(/seals what we send/g)?.length, 3, refused.stdout + refused.stderr);
      await everywhere(node1, "remove", oldKey);
      const after = await list(node2);
      const seals = new Set(after.flatMap(({ keys }) => keys));
      assert.equal(seals.size, 1);
      assert.notDeepEqual([...seals], before[0]?.keys);
      for (const host of hosts) {
        assert.deepEqual(await aliveNames(host), ["node1", "node2", "node3"]);
        assert.doesNotMatch(host.log(), /is gone/);
        const keyring = join(host.dataFolder, "keyring.json");
        assert.equal(statSync(keyring).mode & 0o777, 0o600);
        assert.deepEqual(JSON.parse(readFileSync(keyring, "utf8")), [newKey]);
      }
      // What a restarted node is given on the command line is old; its keyring knows better.
      await node3.restart();
      await allAlive(hosts);
      const { asked, failed } = await requests.stop();
      assert.ok(asked > 20, `${asked} requests`);
      assert.equal(failed, 0);
    },
  );

  scenario("no key is in a metric, on the status page, in a log, an event or an answer", async (lab) => {
    const keys = [generate(1), generate(2), generate(3)];
    const given = keys.slice(0, 2).flatMap((key) => ["--gossip-key", key]);
    const pages = ["--metrics-addr", "127.0.0.1:9476", "--web", "127.0.0.1:8946", "--log-level", "debug"];
    const hosts = await lab.swarm(2, { flags: [...given, ...pages] });
    const [node1] = hosts;
    assert.ok(node1);
    await node1.ctl("keys", "install", keys[2] ?? "");
    await node1.ctl("keys", "use", keys[2] ?? "");
    const urls = ["9476/metrics", "9476/healthz", "8946/", "8946/status.json", "8946/no-such-page"];
    const told = new Map<string, string>();
    for (const url of urls) told.set(url, await node1.run("curl", "-sS", `http://127.0.0.1:${url}`));
    // The stream never ends by itself.
    const stream = await node1.exec(["curl", "-sN", "--max-time", "2", "http://127.0.0.1:8946/events"]);
    told.set("8946/events", stream.stdout);
    for (const words of [
      ["info"],
      ["peers"],
      ["doctor"],
      ["keys", "list"],
      ["events", "--since", "1h", "--no-follow"],
    ])
      told.set(words.join(" "), (await node1.netctl("-o", "json", ...words)).stdout);
    for (const host of hosts) told.set(`log of ${host.name}`, host.log());
    for (const [where, text] of told) {
      if (where !== "9476/healthz") assert.ok(text.length > 20, `${where}: ${text}`);
      for (const key of keys) {
        const bytes = Buffer.from(key, "base64");
        for (const spelling of [key, key.replace(/=+$/, ""), bytes.toString("hex"), bytes.toString("latin1")])
          assert.ok(!text.includes(spelling), `${where} shows a key`);
      }
    }
  });

  scenario(
    "a node with another key does not get in, and both ways of joining say why in one line",
    async (lab) => {
      const [node1] = await lab.swarm(1, { flags: ["--gossip-key", generate(1)] });
      assert.ok(node1);
      const why = /gossip key/;
      const [other, plain] = [lab.host("other", "192.168.1.120"), lab.host("plain", "192.168.1.121")];
      await other.start({ flags: ["--gossip-key", generate(3)], join: [node1] });
      await plain.start({ join: [node1] });
      for (const stranger of [other, plain]) {
        await waitFor(`${stranger.name} to say why`, () => said(stranger, "join: nobody answered"), {
          withinMs: 5_000,
          until: (lines) => lines.length > 0,
        });
        const [line] = said(stranger, "join: nobody answered");
        assert.match(line ?? "", why, stranger.name);
        const joined = await stranger.netctl("join", node1.address);
        assert.equal(joined.code, 1);
        assert.equal(joined.stderr.trim().split("\n").length, 1, joined.stderr);
        assert.match(joined.stderr, why);
        assert.deepEqual((await stranger.ctlJson<PeerView[]>("peers")).length, 1);
      }
      assert.deepEqual(await aliveNames(node1), ["node1"]);
    },
  );
});

/** 32 bytes, different for each number. */
function generate(number: number): string {
  return Buffer.alloc(32, number).toString("base64");
}

async function everywhere(host: Host, operation: string, key: string): Promise<void> {
  const answers = await host.ctlJson<KeyAnswer[]>("keys", operation, key);
  assert.deepEqual(answers.map(({ node }) => node).sort(), ["node1", "node2", "node3"]);
  assert.deepEqual(
    answers.filter(({ ok }) => !ok),
    [],
  );
}

function list(host: Host): Promise<KeyAnswer[]> {
  return host.ctlJson<KeyAnswer[]>("keys", "list");
}

function said(host: Host, text: string): string[] {
  return host
    .log()
    .split("\n")
    .filter((line) => line.includes(text));
}
