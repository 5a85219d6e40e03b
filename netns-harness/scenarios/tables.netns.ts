import assert from "node:assert/strict";
import type { NetworkView, TableRowView } from "../../src/agent/control-protocol.ts";
import { attach } from "../endpoints.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const SOON_MS = 10_000;

scenario("netctl tables shows each node's rows everywhere, and tombstones only when asked", async (lab) => {
  const [node1, node2] = await lab.swarm(2);
  assert.ok(node1 && node2);
  await node1.ctlJson<NetworkView>("network", "create", "blue");
  const a = await attach(lab, node1, "blue", "a");
  // So that node1 stays on the network when the first one goes.
  const stays = await attach(lab, node1, "blue", "stays");
  const b = await attach(lab, node2, "blue", "b");
  const rows = (...args: string[]): Promise<TableRowView[]> => node2.ctlJson("tables", ...args);

  const peers = await waitFor("all paths in node2's tables", () => rows("blue", "overlay_peer_table"), {
    withinMs: SOON_MS,
    until: (found) => found.length === 3,
  });
  for (const [endpoint, owner] of [
    [a, node1],
    [stays, node1],
    [b, node2],
  ] as const) {
    const row = peers.find(({ key }) => key === endpoint.id);
    assert.equal(row?.owner, owner.name);
    assert.equal(row.value["ip"], `${endpoint.ip}/24`);
    assert.equal(row.value["vtep"], owner.address);
    assert.ok(Number(row.lamport) > 0 && row.ageSeconds < 60 && row.state === "live");
  }
  const before = peers.find(({ key }) => key === a.id)?.lamport;
  assert.match(
    await node2.ctl("tables", "blue"),
    /^blue endpoint_table\nKEY [^]*\nblue overlay_peer_table\nKEY /,
  );
  const unknown = await node2.netctl("tables", "blue", "nonsense");
  assert.equal(unknown.code, 1);
  assert.match(unknown.stderr, /there is no table 'nonsense' \(endpoint_table, overlay_peer_table\)/);

  await node1.ctl("detach", a.id);
  await waitFor("the path to be withdrawn", () => rows("blue", "overlay"), {
    withinMs: SOON_MS,
    until: (found) => found.length === 2,
  });
  const dead = (await rows("blue", "overlay", "--all")).find(({ key }) => key === a.id);
  assert.equal(dead?.state, "tombstone");
  assert.ok(Number(dead.lamport) > Number(before));
  assert.ok(dead.expiresSeconds !== null && dead.expiresSeconds > 1_000 && dead.expiresSeconds <= 1_800);
});
