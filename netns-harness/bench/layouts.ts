/** Two hosts and what lies between their endpoints: the bare underlay, Docker's layout by hand, two agents of ours. */

import type { DataplaneKind, Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import type { Place } from "../place.ts";
import { threadNs } from "./processor-time.ts";
import type { Pair } from "./traffic.ts";

const VNI = 4097;
const OVERLAY_MTU = 1450;

/** No overlay at all. */
export async function underlay(lab: Lab): Promise<Pair> {
  const [near, far] = [lab.host("plain1", "192.168.1.11"), lab.host("plain2", "192.168.1.12")];
  return { near, far, address: far.address };
}

/**
 * What `docker network create -d overlay` leads to on two nodes: a namespace per network with br0 (gateway address,
 * no default VLAN) and a VXLAN device made on the host (proxy, learning, l2miss, l3miss), a veth pair to the
 * container, permanent neighbor and FDB entries for the other side. The namespace keeps the kernel's defaults, so
 * br_netfilter hands every bridged packet to iptables' hooks, as it does under Docker.
 */
export async function dockersLayout(lab: Lab): Promise<Pair> {
  const hosts = [lab.host("docker1", "192.168.1.21"), lab.host("docker2", "192.168.1.22")] as const;
  const [near, far] = [
    await dockerNode(lab, hosts[0], hosts[1], "10.0.1.2", "10.0.1.3"),
    await dockerNode(lab, hosts[1], hosts[0], "10.0.1.3", "10.0.1.2"),
  ];
  return { near, far, address: "10.0.1.3" };
}

async function dockerNode(lab: Lab, host: Host, peer: Host, own: string, other: string): Promise<Place> {
  const overlay = lab.sandbox(host, "ov");
  const container = lab.sandbox(host, "c");
  const ip = (place: Place, line: string): Promise<string> => place.run("ip", ...line.split(" "));
  const name = `vx-${VNI.toString(16).padStart(6, "0")}-abcde`;
  await ip(host, `link add ${name} type vxlan id ${VNI} dstport 4789 proxy learning l2miss l3miss`);
  await ip(host, `link set ${name} netns ${overlay.netns} name vxlan0`);
  await ip(overlay, `link add name br0 type bridge vlan_default_pvid 0`);
  await ip(overlay, `address add 10.0.1.1/24 dev br0`);
  await ip(overlay, `link add veth0 type veth peer name eth0 netns ${container.netns}`);
  for (const port of ["vxlan0", "veth0"])
    await ip(overlay, `link set ${port} mtu ${OVERLAY_MTU} master br0 up`);
  await ip(overlay, `link set br0 mtu ${OVERLAY_MTU} up`);
  await ip(container, `link set eth0 mtu ${OVERLAY_MTU} address ${dockerMac(own)} up`);
  await ip(container, `address add ${own}/24 dev eth0`);
  await ip(overlay, `neighbor replace ${other} lladdr ${dockerMac(other)} nud permanent dev vxlan0`);
  const entry = [dockerMac(other), "dev", "vxlan0", "dst", peer.address] as const;
  await overlay.run("bridge", "fdb", "replace", ...entry, "self", "permanent");
  return container;
}

/** `02:42` and the four bytes of the address. */
function dockerMac(address: string): string {
  const bytes = address.split(".").map((byte) => Number(byte).toString(16).padStart(2, "0"));
  return ["02", "42", ...bytes].join(":");
}

/** Two agents with this data plane, one network, two sandboxes attached. */
export async function ours(lab: Lab, dataplane: DataplaneKind = "kernel"): Promise<Pair> {
  const net = dataplane === "kernel" ? 3 : 4;
  const host1 = lab.host(`${dataplane}1`, `192.168.1.${net}1`, dataplane);
  const host2 = lab.host(`${dataplane}2`, `192.168.1.${net}2`, dataplane);
  await host1.start();
  await host2.start({ join: [host1] });
  await host1.ctl("network", "create", "bench", "--subnet", "10.0.2.0/24");
  const [near, far] = [lab.sandbox(host1, "c"), lab.sandbox(host2, "c")];
  const attach = (place: Place): string[] => ["attach", "--network", "bench", "--netns", place.netns];
  await host1.ctl(...attach(near), "--name", "near");
  const { ip } = await host2.ctlJson<{ ip: string }>(...attach(far), "--name", "far");
  const moverNs = (): number =>
    [host1, host2].reduce(
      (sum, host) => sum + threadNs(host.agent.pid, (name) => name.startsWith("engine-")),
      0,
    );
  return { near, far, address: ip, ...(dataplane === "userspace" ? { moverNs } : {}) };
}
