import assert from "node:assert/strict";
import { test } from "node:test";
import { aliveOf, LoneNode, sent } from "./lone-node.ts";

const DEAD = { type: "dead", incarnation: 1, node: "n1", from: "n2" } as const;

test("a dead member is pinged where it was, unless somebody else lives there by now", () => {
  assert.ok(pingsFor("n1", () => {}) > 0);
  // Known before the old name is found dead, and after.
  assert.equal(
    pingsFor("n1", (node) => node.hear(2, { ...aliveOf(1), node: "n1-restarted" })),
    0,
  );
  const late = new LoneNode();
  late.meet(2);
  late.hear(2, DEAD);
  late.hear(2, { ...aliveOf(1), node: "n1-restarted" });
  assert.equal(countPings(late, "n1"), 0);
});

/** Pings for `name` in half a minute, after n1 died; `before` happens just before that. */
function pingsFor(name: string, before: (node: LoneNode) => void): number {
  const node = new LoneNode();
  node.meet(2);
  before(node);
  node.hear(2, DEAD);
  return countPings(node, name);
}

function countPings(node: LoneNode, name: string): number {
  return sent(node.advance(30_000))
    .flatMap(({ messages }) => messages)
    .filter((message) => message.type === "ping" && message.node === name).length;
}
