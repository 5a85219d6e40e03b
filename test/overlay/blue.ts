import { networkId, vni } from "../../src/base/id.ts";
import { parseCidr, parseIp } from "../../src/base/ip.ts";
import type { OverlayNetwork } from "../../src/overlay/desired.ts";

/** The network most tests are about. */
export const BLUE: OverlayNetwork = {
  id: networkId("u1xkq0zj5t3c9w8e7r6y5t4u3"),
  name: "blue",
  vni: vni(4097),
  subnet: parseCidr("10.0.9.0/24"),
  gateway: parseIp("10.0.9.1"),
  mtu: 1450,
  dataPathPort: 4789,
  internal: false,
  encrypted: false,
};
