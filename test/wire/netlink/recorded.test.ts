import assert from "node:assert/strict";
import { test } from "node:test";
import { fromHex } from "../../../src/base/bytes.ts";
import { decodeLink } from "../../../src/wire/netlink/link.ts";
import { decodeFdbEntry, decodeNeighbor } from "../../../src/wire/netlink/neighbor.ts";
import { decodeRoute } from "../../../src/wire/netlink/route.ts";
import { decodeRule } from "../../../src/wire/netlink/rule.ts";
import { decodeConntrack } from "../../../src/wire/nftables/conntrack.ts";
import { decodeCountedElements } from "../../../src/wire/nftables/counted-element.ts";
import { ElementReader, type ElementLayout } from "../../../src/wire/nftables/element.ts";
import { decodeCounter, decodeTable } from "../../../src/wire/nftables/message.ts";
import { loadVectors } from "../../vectors/load.ts";

const recorded = loadVectors<{ kind: string; hex: string }>("netlink.jsonl");

test("what a real kernel listed reads as what was put there", () => {
  const links = payloads("link").map(decodeLink);
  const vxlan = links.find(({ name }) => name === "vx0");
  assert.ok(vxlan?.info?.kind === "vxlan");
  const { vni, port, learning, proxy } = vxlan.info;
  assert.deepEqual([vni, port, learning, proxy], [4097, 4789, false, true]);
  assert.equal(links.find(({ name }) => name === "veth0")?.alias, "netagent:blue/web");
  assert.equal(links.find(({ name }) => name === "veth0")?.bridgePort?.learning, true);

  const fdb = payloads("fdb").map(decodeFdbEntry);
  assert.ok(fdb.some(({ mac, vtep }) => mac === "02:42:0a:00:09:06" && vtep === "192.0.2.7"));
  const neighbors = payloads("neighbor").map(decodeNeighbor);
  assert.ok(neighbors.some(({ ip, mac }) => ip === "2001:db8::6" && mac === "02:42:0a:00:09:07"));
  assert.ok(
    payloads("route")
      .map(decodeRoute)
      .some(({ table, mtu }) => table === 7000 && mtu === 1400),
  );
  const rules = payloads("rule").map(decodeRule);
  assert.ok(rules.some((rule) => rule?.mark === 5 && rule.markMask === 0xff && rule.table === 7000));
  assert.ok(rules.some((rule) => rule?.inputInterface === "br0"));
});

test("what a real kernel listed of nftables and conntrack reads as what was put there", () => {
  assert.deepEqual(
    payloads("nft-table")
      .map(decodeTable)
      .map(({ name, comment }) => [name, comment]),
    [["netagent", "DNS 40001 40002"]],
  );
  assert.deepEqual(payloads("nft-counter").map(decodeCounter), [{ packets: 5n, bytes: 420n }]);
  const services = { key: ["protocol", "port"], value: { verdicts: ["s0", "s1"] } } as const;
  assert.deepEqual(rows("services", services), [
    [6, 8000, 1],
    [17, 53, 1],
  ]);
  assert.deepEqual(rows("backends", { key: ["number"], value: ["ipv4"] }), [
    [1, 0x0aff0005],
    [2, 0x0aff0006],
  ]);
  assert.deepEqual(rows("ranges", { key: ["ipv4"], value: [], range: true }), [
    [0x0a000000, 0x0a0000ff],
    [0x0a000200, 0x0a0003ff],
  ]);
  const counted = payloads("nft-elements others").flatMap(decodeCountedElements);
  assert.deepEqual(
    counted.map(({ key, packets }) => [key.join("."), packets]),
    [["192.0.2.66", 3n]],
  );
  const entries = payloads("conntrack").map(decodeConntrack);
  assert.ok(entries.some((entry) => entry?.original.protocol === 17 && entry.original.destinationPort === 9));
});

function payloads(kind: string): Uint8Array[] {
  return recorded.filter((vector) => vector.kind === kind).map(({ hex }) => fromHex(hex));
}

/** By key, as the kernel lists a hash in any order. */
function rows(set: string, layout: ElementLayout): number[][] {
  const reader = new ElementReader(layout);
  for (const payload of payloads(`nft-elements ${set}`)) reader.push(payload);
  const all = [...reader.rows()];
  const width =
    layout.range === true ? 2 : layout.key.length + ("verdicts" in layout.value ? 1 : layout.value.length);
  return Array.from({ length: all.length / width }, (_, row) =>
    all.slice(row * width, (row + 1) * width),
  ).sort(([a = 0], [b = 0]) => a - b);
}
