import assert from "node:assert/strict";
import { Page } from "../browser.ts";
import { httpBackend } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Chromium's first start on a busy machine, then probes that are lost often enough to be believed. */
const PATIENCE_MS = 45_000;

scenario("the status page shows nodes, links, services and what is wrong, live in a browser", async (lab) => {
  const [node1, node2, node3] = await lab.swarm(3, { flags: ["--web", "8946"] });
  assert.ok(node1 && node2 && node3);
  await node1.ctl("network", "create", "blue");
  await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
  await httpBackend(lab, node2, "blue", "web", "web.1");

  const page = await Page.open(node1, "http://127.0.0.1:8946/", 1200, 760);
  const shows = (what: string, expression: string, expected: unknown): Promise<unknown> =>
    waitFor(what, () => page.evaluate<unknown>(expression), {
      withinMs: PATIENCE_MS,
      until: (seen) => JSON.stringify(seen) === JSON.stringify(expected),
      everyMs: 300,
    });
  const links = (kind: string): string =>
    `[...document.querySelectorAll(".link.${kind}")].map((line) => line.dataset.pair).sort()`;
  const text = (id: string): string => `document.getElementById("${id}").textContent`;

  await shows("three nodes alive", 'document.querySelectorAll(".node.alive").length', 3);
  await shows("all links green", links("ok"), ["node1 node2", "node1 node3", "node2 node3"]);
  await shows("nothing wrong", text("troubles"), "nothing is wrong");
  await shows("one backend", '[...document.querySelectorAll(".chip")].map((chip) => chip.textContent)', [
    "web.1 @ node2",
  ]);
  await httpBackend(lab, node3, "blue", "web", "web.2");
  await shows("the second backend without a reload", 'document.querySelectorAll(".chip.ready").length', 2);
  await shows(
    "endpoints of a network this node is not on",
    '[...document.querySelectorAll("#endpoints tbody tr")].map((row) => row.cells[0].textContent)',
    ["web.1", "web.2"],
  );
  const file = process.env["STATUS_SCREENSHOT"];
  if (file !== undefined) await page.screenshot(file);

  // What stands on another node, since it may not repair.
  await node2.ctl("repair", "off");
  await shows("that node2 does not repair", text("troubles"), "node2: repair is off (netctl repair on)");
  await node2.ctl("repair", "on");
  await shows("nothing wrong again", text("troubles"), "nothing is wrong");

  // Between two others: this node only knows because it asked.
  await dropVxlan(node3, node2);
  await shows("the blocked link between the other two", links("blocked"), ["node2 node3"]);
  assert.match(String(await page.evaluate(text("troubles"))), /(node2 → node3|node3 → node2): blocked/);
  await node3.crash();
  await shows("node3 dead", 'document.querySelector(".node.dead")?.dataset.node', "node3");
  await node1.crash();
  await shows("that its own agent is gone", 'document.getElementById("live").className', "off");
  await node1.restart();
  await shows("the agent again, by itself", 'document.getElementById("live").className', "on");

  // Only loopback was asked for.
  assert.equal(await node2.httpGet(`http://${node1.address}:8946/`), undefined);
  await page.close();
});

async function dropVxlan(at: Host, from: Host): Promise<void> {
  await at.run("nft", "add table inet fault");
  await at.run("nft", "add chain inet fault input { type filter hook input priority -400; }");
  await at.run("nft", `add rule inet fault input ip saddr ${from.address} udp dport 4789 drop`);
}
