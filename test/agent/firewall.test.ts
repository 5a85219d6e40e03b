import assert from "node:assert/strict";
import { test } from "node:test";
import { concerns, parseFirewall } from "../../src/agent/firewall.ts";

/** As `nft -j -t list ruleset` of nftables 1.0.6 prints them, shortened to what is read. */
const dport = (protocol: string, right: unknown) => ({
  match: { op: "==", left: { payload: { protocol, field: "dport" } }, right },
});
const saddr = (right: unknown) => ({
  match: { op: "==", left: { payload: { protocol: "ip", field: "saddr" } }, right },
});
const rule = (expr: unknown[], place = { family: "inet", table: "fault", chain: "input" }) => ({
  rule: { ...place, handle: 2, expr },
});
const VXLAN = { protocol: "udp", port: 4789, address: "192.168.1.105" } as const;

test("a rule that drops by port, range, set or address is found, with its place and its words", () => {
  const { rules } = parseFirewall({
    nftables: [
      { metainfo: { version: "1.0.6" } },
      rule([dport("udp", 4789), { counter: { packets: 1, bytes: 2 } }, { drop: null }]),
      rule([dport("th", { range: [4000, 5000] }), { reject: { type: "icmpx" } }]),
      rule([dport("udp", { set: [53, 4789] }), { drop: null }]),
      rule([saddr({ prefix: { addr: "192.168.1.0", len: 24 } }), { drop: null }]),
      rule([saddr("192.168.1.106"), { drop: null }]),
      rule([dport("tcp", 4789), { drop: null }]),
    ],
  });
  assert.deepEqual(
    rules.map((one) => [one.text, concerns(one, VXLAN)]),
    [
      ["table inet fault, chain input: udp dport 4789 drop", true],
      ["table inet fault, chain input: th dport 4000-5000 reject", true],
      ["table inet fault, chain input: udp dport { 53, 4789 } drop", true],
      ["table inet fault, chain input: ip saddr 192.168.1.0/24 drop", true],
      ["table inet fault, chain input: ip saddr 192.168.1.106 drop", false],
      ["table inet fault, chain input: tcp dport 4789 drop", false],
    ],
  );
});

test("what accepts, is ours, names neither port nor address, or a set whose content is not shown, is no finding", () => {
  const found = parseFirewall({
    nftables: [
      rule([dport("udp", 4789), { accept: null }]),
      rule([dport("udp", 4789), { drop: null }], { family: "inet", table: "netagent-vxlan", chain: "vxlan" }),
      rule([{ drop: null }]),
      rule([dport("udp", "@ports"), { drop: null }]),
      rule([{ match: { op: "!=", left: { payload: { protocol: "udp", field: "dport" } }, right: 1 } }]),
      { chain: { family: "bridge", table: "lab", name: "forward", hook: "forward", policy: "drop" } },
      { chain: { family: "ip", table: "filter", name: "FORWARD", hook: "forward", policy: "drop" } },
    ],
  });
  assert.deepEqual(found, { chains: [{ hook: "forward", table: "ip filter" }], rules: [] });
});
