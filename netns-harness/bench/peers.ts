/**
 * Overlays of others, each between two hosts of the lab: their processes run in the hosts' namespaces and end with the
 * lab. Each is given its best chance: an MTU that fills the underlay's packets, no encryption where it can be left off
 * (tinc), and nothing in between (an interface of its own where it has one).
 */

import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Background } from "../command.ts";
import type { Host } from "../host.ts";
import type { Lab } from "../lab.ts";
import type { Place } from "../place.ts";
import { waitFor } from "../wait.ts";
import { threadNs } from "./processor-time.ts";
import type { Pair } from "./traffic.ts";

const REACHES_WITHIN_MS = 20_000;

/** One TUN device a host; always encrypted (AES-GCM). */
export async function nebula(lab: Lab): Promise<Pair> {
  const hosts = [lab.host("nebula1", "192.168.1.51"), lab.host("nebula2", "192.168.1.52")] as const;
  const [near, far] = hosts;
  const inside = (host: Host): string => (host === near ? "10.0.5.1" : "10.0.5.2");
  const ca = join(near.folder, "ca");
  await near.run("nebula-cert", "ca", "-name", "bench", "-out-crt", `${ca}.crt`, "-out-key", `${ca}.key`);
  const processes: Background[] = [];
  for (const host of hosts) {
    const [cert, key] = [join(host.folder, "host.crt"), join(host.folder, "host.key")];
    const signing = ["-ca-crt", `${ca}.crt`, "-ca-key", `${ca}.key`, "-name", host.name] as const;
    await host.run(
      ...([
        "nebula-cert",
        "sign",
        ...signing,
        "-ip",
        `${inside(host)}/24`,
        "-out-crt",
        cert,
        "-out-key",
        key,
      ] as const),
    );
    const anything = [{ port: "any", proto: "any", host: "any" }];
    const config = {
      pki: { ca: `${ca}.crt`, cert, key },
      static_host_map: Object.fromEntries(hosts.map((peer) => [inside(peer), [`${peer.address}:4242`]])),
      lighthouse: { am_lighthouse: false, hosts: [] },
      listen: { host: host.address, port: 4242 },
      // 60 bytes around each packet: IP and UDP 28, header 16, tag 16.
      tun: { dev: "nebula0", mtu: 1440 },
      firewall: { outbound: anything, inbound: anything },
    };
    const file = join(host.folder, "nebula.yml");
    writeFileSync(file, JSON.stringify(config)); // JSON is YAML
    processes.push(host.spawn(["nebula", "-config", file]));
  }
  return reaching(near, far, inside(far), processes);
}

/** One TAP device a host, as a switch; plain text. */
export async function tinc(lab: Lab): Promise<Pair> {
  const hosts = [lab.host("tinc1", "192.168.1.61"), lab.host("tinc2", "192.168.1.62")] as const;
  const [near, far] = hosts;
  const inside = (host: Host): string => (host === near ? "10.0.6.1" : "10.0.6.2");
  for (const host of hosts) {
    mkdirSync(join(host.folder, "hosts"));
    const [peer] = hosts.filter((other) => other !== host);
    const config = [`Name = ${host.name}`, "Mode = switch", "DeviceType = tap", "Interface = tinc0"];
    writeFileSync(join(host.folder, "tinc.conf"), lines(...config, `ConnectTo = ${peer?.name ?? ""}`));
    const up = ["#!/bin/sh", "ip link set tinc0 up", `ip address add ${inside(host)}/24 dev tinc0`];
    writeFileSync(join(host.folder, "tinc-up"), lines(...up));
    chmodSync(join(host.folder, "tinc-up"), 0o755);
    writeFileSync(
      join(host.folder, "hosts", host.name),
      lines(`Address = ${host.address}`, "Cipher = none", "Digest = none"),
    );
    // Appends the public key to the host's file.
    await host.run("tincd", "-c", host.folder, "-K", "2048");
  }
  for (const host of hosts)
    for (const peer of hosts)
      if (peer !== host)
        await host.run("cp", join(peer.folder, "hosts", peer.name), join(host.folder, "hosts"));
  const processes = hosts.map((host) =>
    host.spawn(["tincd", "-c", host.folder, "-D", `--pidfile=${join(host.folder, "tinc.pid")}`]),
  );
  return reaching(near, far, inside(far), processes);
}

/** VXLAN between two userspace datapaths (`datapath_type=netdev`); the endpoint is a veth pair's end, as for a container. */
export async function openVswitch(lab: Lab): Promise<Pair> {
  const hosts = [lab.host("ovs1", "192.168.1.71"), lab.host("ovs2", "192.168.1.72")] as const;
  const inside = (host: Host): string => (host === hosts[0] ? "10.0.7.1" : "10.0.7.2");
  const processes: Background[] = [];
  const places: Place[] = [];
  for (const host of hosts) {
    const [database, socket] = [join(host.folder, "conf.db"), join(host.folder, "db.sock")];
    const env = { OVS_RUNDIR: host.folder, OVS_LOGDIR: host.folder };
    const vsctl = async (line: string): Promise<void> => {
      await host.run("ovs-vsctl", `--db=unix:${socket}`, "--timeout=10", ...line.split(" "));
    };
    await host.run("ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema");
    const server = host.spawn(["ovsdb-server", `--remote=punix:${socket}`, database], env);
    await waitFor(`${host.name} to have a database`, () => host.exec(["test", "-S", socket]), {
      withinMs: REACHES_WITHIN_MS,
      until: ({ code }) => code === 0,
    });
    await vsctl("--no-wait init");
    processes.push(server, host.spawn(["ovs-vswitchd", `unix:${socket}`], env));
    // The tunnel's packets take the datapath, too, so the underlay's address moves to a bridge of it.
    const own = "set bridge br-underlay datapath_type=netdev -- add-port br-underlay eth0";
    await vsctl(`add-br br-underlay -- ${own}`);
    const ip = (place: Place, line: string): Promise<string> => place.run("ip", ...line.split(" "));
    await ip(host, `address delete ${host.address}/24 dev eth0`);
    await ip(host, `address add ${host.address}/24 dev br-underlay`);
    await ip(host, "link set br-underlay up");
    const [peer] = hosts.filter((other) => other !== host);
    const tunnel = `type=vxlan options:key=4097 options:remote_ip=${peer?.address ?? ""}`;
    await vsctl("add-br br-overlay -- set bridge br-overlay datapath_type=netdev");
    await vsctl(`add-port br-overlay vxlan0 -- set interface vxlan0 ${tunnel}`);
    const place = lab.sandbox(host, "c");
    await ip(host, `link add port0 mtu 1450 type veth peer name eth0 mtu 1450 netns ${place.netns}`);
    await ip(host, "link set port0 up");
    await vsctl("add-port br-overlay port0");
    // The datapath completes no checksum and cuts nothing: the sender's kernel has to.
    await place.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off");
    await ip(place, `address add ${inside(host)}/24 dev eth0`);
    await ip(place, "link set eth0 up");
    places.push(place);
  }
  const [near = hosts[0], far = hosts[1]] = places;
  return reaching(near, far, inside(hosts[1]), processes);
}

/** The pair, as soon as its ends reach each other. */
async function reaching(near: Place, far: Place, address: string, processes: Background[]): Promise<Pair> {
  await waitFor(`${near.name} to reach ${address}`, () => near.pings(address), {
    withinMs: REACHES_WITHIN_MS,
  }).catch((error: unknown) => {
    throw new Error(processes.map((process) => `${process.command}:\n${process.output()}`).join("\n"), {
      cause: error,
    });
  });
  const moverNs = (): number => processes.reduce((sum, process) => sum + threadNs(process.pid), 0);
  return { near, far, address, moverNs };
}

function lines(...all: string[]): string {
  return `${all.join("\n")}\n`;
}
