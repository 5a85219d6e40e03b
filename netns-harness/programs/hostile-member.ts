/**
 * node hostile-member.js ADDRESS JOIN NETWORK-ID ROWS-FILE
 *
 * A member of the gossip, no netagent, that joins a network's tables and writes whatever it is told into them: ROWS-FILE
 * has lines `KEY IP/PREFIX MAC VTEP`, or `KEY hex BYTES`. Prints `published N` and stays.
 */

import { readFileSync } from "node:fs";
import { GossipLoop, NO_STATE_FILE } from "../../src/agent/gossip-loop.ts";
import { systemRandom } from "../../src/agent/system-random.ts";
import { fromHex } from "../../src/base/bytes.ts";
import { networkId, nodeId, nodeName, randomBase36, randomHex } from "../../src/base/id.ts";
import { ipToBytes, parseCidr, parseIp } from "../../src/base/ip.ts";
import { parseMac } from "../../src/base/mac.ts";
import { LAN } from "../../src/swim/config.ts";
import { UNSEALED } from "../../src/wire/memberlist/seal.ts";
import { encodePeerRecord, PEER_TABLE } from "../../src/wire/networkdb/records.ts";

const GOSSIP_PORT = 7946;
const [address = "", join = "", network = "", file = ""] = process.argv.slice(2);
const ip = parseIp(address);
const random = systemRandom();
const loop = await GossipLoop.open(
  { bindAddr: ip, gossipPort: GOSSIP_PORT },
  {
    name: nodeName(randomHex(random, 12)),
    facts: { id: nodeId(randomBase36(random)), name: "evil", vteps: [ip], capabilities: [], version: "0" },
    address: { socket: { ip, port: GOSSIP_PORT }, bytes: ipToBytes(ip) },
    compat: "docker",
    sealing: UNSEALED,
    swim: LAN,
    state: {},
    random,
  },
  () => undefined,
  NO_STATE_FILE,
);
loop.step({ type: "start", seed: false, unixSeconds: Math.floor(Date.now() / 1_000) });
const id = networkId(network);
loop.step({ type: "networkdb", input: { type: "join-network", network: id } });
const lines = readFileSync(file, "utf8").split("\n").filter(Boolean);
for (const line of lines) {
  const [key = "", what = "", mac = "", vtep = ""] = line.split(" ");
  const value =
    what === "hex"
      ? fromHex(mac)
      : encodePeerRecord({ endpointIp: parseCidr(what), endpointMac: parseMac(mac), vtep: parseIp(vtep) });
  loop.step({ type: "networkdb", input: { type: "put-row", network: id, table: PEER_TABLE, key, value } });
}
const [result] = await loop.join([{ ip: parseIp(join), port: GOSSIP_PORT }], 10_000);
if (result?.failure !== undefined) throw new Error(`join ${join}: ${result.failure}`);
console.log(`published ${lines.length}`);
