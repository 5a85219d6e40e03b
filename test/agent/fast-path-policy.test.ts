import assert from "node:assert/strict";
import { test } from "node:test";
import { FastPathPolicy, type FastPathPolicyOptions } from "../../src/agent/fast-path-policy.ts";
import type { Firewall } from "../../src/agent/firewall.ts";
import { parseIp } from "../../src/base/ip.ts";

const HERE = parseIp("192.0.2.1");
const THERE = parseIp("192.0.2.2");
const ELSEWHERE = parseIp("192.0.2.3");
const OPEN: Firewall = { chains: [], rules: [] };

test("a peer whose path is blocked, or that a rule drops, is spoken with over the slow path", async () => {
  assert.equal(await refusal({ state: "ok" }, OPEN), undefined);
  assert.equal(await refusal({ state: "unknown" }, OPEN), undefined);
  assert.match((await refusal({ state: "blocked" }, OPEN)) ?? "", /blocked/);
  const rule = {
    text: "udp dport 4789 drop",
    ports: [[4789, 4789]],
    protocol: "udp",
    addresses: [],
  } as const;
  assert.match((await refusal({ state: "ok" }, { chains: [], rules: [rule] })) ?? "", /udp dport 4789 drop/);
  const other = { ...rule, ports: [[22, 22]] } as const;
  assert.equal(await refusal({ state: "ok" }, { chains: [], rules: [other] }), undefined);
  const elsewhere = { ...rule, ports: [], addresses: [ELSEWHERE] } as const;
  assert.equal(await refusal({ state: "ok" }, { chains: [], rules: [elsewhere] }), undefined);
});

test("behind a chain that drops what it does not know, only an answered probe tells", async () => {
  const closed = { chains: [{ hook: "input", table: "inet filter" }], rules: [] };
  assert.equal(await refusal({ state: "ok" }, closed), undefined);
  assert.match((await refusal({ state: "unknown" }, closed)) ?? "", /answers no probes/);
});

test("nothing is assumed before the firewall was read, and it is read again when it has changed", async () => {
  let reads = 0;
  let generation = 1;
  let nowMs = 0;
  const policy = policyOf({
    readFirewall: async () => (reads++, OPEN),
    ruleGeneration: () => generation,
    nowMs: () => nowMs,
  });
  assert.match(policy.refusal(THERE) ?? "", /not been read/);
  await settled();
  assert.equal(policy.refusal(THERE), undefined);
  assert.equal(reads, 1);
  for (nowMs = 60_000; nowMs < 600_000; nowMs += 60_000) policy.refusal(THERE);
  assert.equal(reads, 1, "the same rules");
  policy.refusal(THERE);
  assert.equal(reads, 2, "those of legacy iptables may have changed");
  generation++;
  nowMs += 60_000;
  policy.refusal(THERE);
  assert.equal(reads, 3);
});

async function refusal(
  health: ReturnType<FastPathPolicyOptions["health"]>,
  firewall: Firewall,
): Promise<string | undefined> {
  const policy = policyOf({ health: () => health, readFirewall: async () => firewall });
  policy.refusal(THERE);
  await settled();
  return policy.refusal(THERE);
}

function policyOf(options: Partial<FastPathPolicyOptions>): FastPathPolicy {
  return new FastPathPolicy({
    ownVtep: HERE,
    port: 4789,
    health: () => ({ state: "ok" }),
    readFirewall: async () => OPEN,
    ruleGeneration: () => 1,
    nowMs: () => 0,
    ...options,
  });
}

function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
