import { networkId, vni } from "../base/id.ts";
import { parseCidr, parseIp } from "../base/ip.ts";
import type { Network } from "../wire/state/definition.ts";

/**
 * The network behind published ports. It exists on every node from the start, the same everywhere, so that nodes
 * need no agreement for it; only its address ring is replicated. Name and subnet are those of Docker before 18.09.
 */
export const INGRESS: Network = {
  id: networkId("ingress000000000000000000"),
  name: "ingress",
  driver: "overlay",
  scope: "swarm",
  vni: vni(4096),
  subnet: parseCidr("10.255.0.0/16"),
  gateway: parseIp("10.255.0.1"),
  internal: false,
  encrypted: false,
  ingress: true,
  labels: {},
  created: 0,
  ringSeeds: [],
};
