import assert from "node:assert/strict";
import { test } from "node:test";
import { endpointId, networkId, nodeName, serviceId } from "../../src/base/id.ts";
import { ipv4FromNumber, parseCidr } from "../../src/base/ip.ts";
import { NftTableKeeper } from "../../src/kernel/nft.ts";
import { HOST, MeshPlanner } from "../../src/mesh/desired.ts";
import type { Backend, Service } from "../../src/mesh/input.ts";
import { planSize } from "../../src/mesh/plan.ts";
import { flatten, TABLE, type Ruleset } from "../../src/mesh/ruleset.ts";
import { VXLAN_TABLE } from "../../src/mesh/vxlan-filter.ts";
import { canMakeNamespaces, makeService, MeshLab, runIn } from "./lab.ts";

const SERVICES = 300;
const BACKENDS = 10;
/** Of a service with so many backends. */
const SLOTS = 11;

const name =
  "after a load so large that nobody listens meanwhile, changes by another hand are heard and mended";
test(name, { skip: canMakeNamespaces ? false : "needs root" }, async () => {
  await using lab = new MeshLab();
  const { netns } = lab.node1;
  using keeper = new NftTableKeeper(netns);
  using _neighbor = new NftTableKeeper(netns, VXLAN_TABLE);
  // Deaf as well meanwhile: the kernel does not ask in which namespace somebody listens.
  using elsewhere = new NftTableKeeper(lab.node2.netns);
  let heardElsewhere = 0;
  elsewhere.onTouched = () => heardElsewhere++;
  let heard = 0;
  keeper.onTouched = () => heard++;
  const ruleset = rulesetOf(
    lab,
    Array.from({ length: SERVICES }, (_, index) => service(index)),
  );
  const { plan } = await keeper.reconcile(ruleset);
  assert.ok(planSize(plan).added > SERVICES * SLOTS);
  heard = 0; // the empty table is made by nft, a process of its own
  assert.deepEqual(keeper.read(ruleset.skeleton.sets)?.rows, flatten(ruleset));
  assert.deepEqual(await keeper.reconcile(ruleset), { plan: { changes: [] }, repaired: false });
  assert.equal(heard, 0, "our own changes are not another hand's");

  runIn(lab.node2.netns, "nft", ["add", "table", "inet", TABLE]);
  while (heardElsewhere === 0) await new Promise((turn) => setTimeout(turn, 20));
  runIn(netns, "nft", ["flush", "map", "inet", TABLE, "slots_32"]);
  while (heard === 0) await new Promise((turn) => setTimeout(turn, 20));
  const mended = await keeper.reconcile(ruleset);
  assert.equal(mended.repaired, true);
  assert.deepEqual(planSize(mended.plan), { added: SERVICES * SLOTS, deleted: 0 });
  assert.deepEqual(keeper.read(ruleset.skeleton.sets)?.rows, flatten(ruleset));
});

function rulesetOf(lab: MeshLab, services: readonly Service[]): Ruleset {
  const { entry } = lab.node1;
  const node = {
    ingress: { ...entry, interface: "na-ingress", subnet: parseCidr("10.255.0.0/24") },
    entryNodes: [entry],
    overlayRanges: [parseCidr("10.9.0.0/24")],
    keepClientAddress: true,
  };
  const ruleset = new MeshPlanner().desired({ node, services, sandboxes: [] }).namespaces.get(HOST)?.ruleset;
  return ruleset ?? assert.fail("the host has rules");
}

function service(index: number): Service {
  const backends = Array.from({ length: BACKENDS }, (_, of): Backend => {
    const ip = ipv4FromNumber(0x0a800000 + index * 16 + of);
    return {
      ...{ endpoint: endpointId(`endpoint-${index}-${of}`), network: networkId("blue"), ip, ingressIp: ip },
      ...{ node: nodeName("node"), state: "ready", capable: true, local: false },
    };
  });
  const made = makeService({ publish: [[2_000 + index, 80, "tcp"]], backends });
  return { ...made, id: serviceId(`service${String(index).padStart(4, "0")}`) };
}
