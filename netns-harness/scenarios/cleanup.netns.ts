import assert from "node:assert/strict";
import { attach, httpBackend, kernelAgrees } from "../endpoints.ts";
import { hostObjects } from "../observe.ts";
import type { Place } from "../place.ts";
import { scenario } from "../scenario.ts";

scenario(
  "a clean-up takes everything of a stopped agent out of the kernel, and nothing else",
  async (lab) => {
    const [node1] = await lab.swarm(1);
    assert.ok(node1);
    await node1.run("nft", "add", "table", "inet", "theirs");
    await node1.run("ip", "link", "add", "veth-theirs", "type", "veth", "peer", "name", "veth-peer");
    await node1.ctl("network", "create", "blue");
    await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
    const plain = await attach(lab, node1, "blue", "plain");
    const backend = await httpBackend(lab, node1, "blue", "web", "web.1");
    await kernelAgrees(node1);

    const early = await node1.cleanUp();
    assert.equal(early.code, 1, early.stdout);
    assert.match(early.stderr, /^netagent: .*pid \d+ uses it.*\n$/);

    await node1.crash();
    for (const [what, objects] of Object.entries(await left(plain.place, backend.place)))
      assert.notEqual(objects, "", `${what} is there before`);
    const done = await node1.cleanUp();
    assert.equal(done.code, 0, done.stderr);
    for (const line of done.stdout.trim().split("\n"))
      assert.match(line, /^removed (namespace|nftables table|interface) /);
    assert.deepEqual(await left(plain.place, backend.place), { interfaces: "", tables: "", rules: "" });
    const theirs = ["link veth-theirs in host", "link veth-peer in host", "table inet theirs"];
    const rest = (await hostObjects(node1)).filter((object) => !object.startsWith("socket "));
    assert.deepEqual(rest.sort(), theirs.sort());

    const again = await node1.cleanUp();
    assert.deepEqual([again.code, again.stdout], [0, ""], "there is nothing left to remove");
    await node1.restart();
    await node1.ctl("service", "inspect", "web");
  },
);

/** What is in sandboxes beside what was there before netagent. */
async function left(...places: Place[]): Promise<Record<"interfaces" | "tables" | "rules", string>> {
  const found = { interfaces: "", tables: "", rules: "" };
  for (const place of places) {
    const links = await place.run("ip", "-brief", "link");
    found.interfaces += links
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("lo "))
      .join("\n");
    found.tables += await place.run("nft", "list", "tables");
    const rules = await place.run("ip", "rule");
    found.rules += rules
      .split("\n")
      .filter((line) => line !== "" && !/lookup (local|main|default)/.test(line))
      .join("\n");
  }
  return found;
}
