/**
 * A lab: hosts in network namespaces, joined by one bridge in a namespace of its own. Nothing of it appears in the
 * machine's own namespace, so a lab can neither disturb the machine nor another lab.
 *
 *     node1 eth0 ──┐
 *     node2 eth0 ──┤ br0 in na-<pid>-fabric   (nftables, family bridge: partitions, cuts, loss)
 *     client eth0 ─┘
 *
 * Loss is a random drop on the bridge. Delay is not available: it needs netem, which the kernels this project is
 * tested on do not have.
 */

import { spawnSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type DataplaneKind, Host, type StartOptions } from "./host.ts";
import { DIST, Place } from "./place.ts";
import {
  cutPower,
  KEPT_FILE,
  LAB_VARIABLE,
  labMark,
  OWNER_FILE,
  processIdentity,
  tearDown,
  type LabMark,
} from "./teardown.ts";
import { waitFor } from "./wait.ts";

const PREFIX_LENGTH = 24;
const DEFAULT_MTU = 1500;
/** The hosts of issue and tutorial: name and underlay address. */
export const NODES = [
  ["node1", "192.168.1.104"],
  ["node2", "192.168.1.105"],
  ["node3", "192.168.1.113"],
] as const;
const CLIENT_ADDRESS = "192.168.1.200";
const JOIN_PATIENCE_MS = 15_000;

/** Labs of this process that still stand, for signals and unexpected exits. */
const standing = new Set<Lab>();
let created = 0;

export class Lab implements AsyncDisposable {
  readonly mark: LabMark;
  readonly fabric: Place;
  /** Hosts made so far, clients included, in order. */
  readonly hosts: Host[] = [];
  #groups: readonly (readonly string[])[] = [];
  readonly #cut = new Set<string>();
  readonly #loss = new Map<string, number>();
  #kept = false;

  private constructor(mark: LabMark) {
    this.mark = mark;
    guardExit();
    standing.add(this);
    mkdirSync(mark.folder, { mode: 0o755 });
    writeFileSync(join(mark.folder, OWNER_FILE), processIdentity(process.pid) ?? "");
    this.fabric = this.#place("fabric");
    // Frames crossing the bridge must not meet the machine's IP firewall defaults, and there is nothing to learn
    // by waiting for spanning tree.
    this.#ip(this.fabric, [
      "link add name br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
      "link set br0 mtu 65535 up",
    ]);
    this.#sysctl(this.fabric, [
      "net.bridge.bridge-nf-call-iptables=0",
      "net.bridge.bridge-nf-call-ip6tables=0",
    ]);
  }

  /** A lab with nothing but its bridge. Needs root. */
  static create(): Lab {
    if (process.getuid?.() !== 0) throw new Error("a lab needs root: it creates network namespaces");
    return new Lab(labMark(process.pid, created++));
  }

  /** A machine on the underlay: `eth0` with `address`/24, no agent yet. Its data plane is the lab's choice. */
  host(name: string, address: string, dataplane?: Host["dataplane"]): Host {
    this.#makeNamespace(name);
    const kinds = labDataplanes();
    const chosen = dataplane ?? kinds[this.hosts.length % kinds.length] ?? "auto";
    const host = new Host(this.mark, name, address, chosen);
    this.#connect(host);
    this.hosts.push(host);
    return host;
  }

  /** A machine outside the swarm. */
  client(name = "client", address = CLIENT_ADDRESS): Host {
    return this.host(name, address);
  }

  /**
   * An empty namespace with loopback up, not on the underlay: a container on `host`, for `netctl attach`. Its name is
   * `HOST-name`; it goes when the host loses power.
   */
  sandbox(host: Host, name: string): Place {
    return this.#place(`${host.name}-${name}`);
  }

  /** `count` hosts (at most three) named and addressed as in the tutorial, with running agents that see each other. */
  async swarm(count: 1 | 2 | 3 = 3, options: StartOptions = {}): Promise<Host[]> {
    const hosts = NODES.slice(0, count).map(([name, address]) => this.host(name, address));
    const [first, ...others] = hosts;
    if (first === undefined) return hosts;
    await first.start(options);
    await Promise.all(others.map((host) => host.start({ ...options, join: [first] })));
    await allAlive(hosts);
    return hosts;
  }

  /** Removes a sandbox as its owner would, without a word to anybody: processes and namespace. */
  removeSandbox(sandbox: Place): void {
    cutPower({ prefix: `${sandbox.netns}-`, folder: sandbox.folder });
  }

  /** Only hosts of one group reach each other; hosts in no group reach everybody. Replaces an earlier partition. */
  partition(...groups: (readonly Host[])[]): void {
    this.#groups = groups.map((group) => group.map((host) => host.name));
    this.#applyRules();
  }

  /** Silence in both directions: the host's link stays up and nothing comes through. */
  cut(host: Host): void {
    this.#cut.add(host.name);
    this.#applyRules();
  }

  /** Drops each frame from and to the host with this probability, 0 … 1, in each direction. */
  loss(host: Host, probability: number): void {
    this.#loss.set(host.name, probability);
    this.#applyRules();
  }

  /** Ends partition, cuts and loss. */
  heal(): void {
    this.#groups = [];
    this.#cut.clear();
    this.#loss.clear();
    this.#applyRules();
  }

  /** Takes the cable out of the host (no carrier) or puts it back. */
  setPlugged(host: Host, plugged: boolean): void {
    this.#ip(this.fabric, [`link set ${host.name} ${plugged ? "up" : "down"}`]);
  }

  /** MTU of the host's underlay link, both ends. */
  setMtu(host: Host, mtu: number): void {
    this.#ip(this.fabric, [`link set ${host.name} mtu ${mtu}`]);
    this.#ip(host, [`link set eth0 mtu ${mtu}`]);
  }

  /** Loses power: every process of the host dies at once and its kernel state with it. Files stay. */
  powerOff(host: Host): void {
    // The kernel takes a namespace apart at its leisure; the port's name must be free when power returns.
    this.#ip(this.fabric, [`link delete ${host.name}`]);
    cutPower({ prefix: `${host.netns}-`, folder: host.folder });
    rmSync(host.runFolder, { recursive: true, force: true }); // /run does not survive a boot
    mkdirSync(host.runFolder);
  }

  /** Power is back: an empty namespace with the same name and address, the same files, no agent yet. */
  powerOn(host: Host): void {
    this.#makeNamespace(host.name);
    this.#connect(host);
  }

  /** Leaves everything in place when this process ends, and returns how to look around and how to remove it. */
  keep(): string {
    this.#kept = true;
    writeFileSync(join(this.mark.folder, KEPT_FILE), "");
    const on = join(this.mark.folder, "on");
    writeFileSync(on, onScript(this.mark), { mode: 0o755 });
    const name = this.hosts[0]?.name ?? "fabric";
    return [
      `lab kept: namespaces ${this.mark.prefix}*, files in ${this.mark.folder}`,
      `  a command on a host:  ${on} ${name} netctl peers`,
      `  a shell on a host:    ${on} ${name}`,
      `  an agent's log:       less ${join(this.mark.folder, name, "netagent.log")}`,
      `  remove it:            npm run demo -- --down`,
    ].join("\n");
  }

  get kept(): boolean {
    return this.#kept;
  }

  /** Removes everything; throws when something stays. With KEEP_LAB=1 in the environment, keeps it and says so. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (process.env["KEEP_LAB"] === "1" && !this.#kept) console.error(this.keep());
    this.dispose();
  }

  /** The same without the environment's say. */
  dispose(): void {
    if (!standing.delete(this) || this.#kept) return;
    const rest = tearDown(this.mark);
    if (rest.length > 0) throw new Error(`the lab left something behind:\n  ${rest.join("\n  ")}`);
  }

  /** The cable between a host's eth0 and the bridge. */
  #connect(host: Host): void {
    const port = host.name;
    this.#ip(this.fabric, [
      `link add ${port} mtu ${DEFAULT_MTU} type veth peer name eth0 mtu ${DEFAULT_MTU} netns ${host.netns}`,
      `link set ${port} master br0 up`,
    ]);
    this.#ip(host, [`address add ${host.address}/${PREFIX_LENGTH} dev eth0`, "link set eth0 up"]);
  }

  #place(name: string): Place {
    this.#makeNamespace(name);
    return new Place(this.mark, name);
  }

  #makeNamespace(name: string): void {
    const netns = `${this.mark.prefix}${name}`;
    command(["ip", "netns", "add", netns]);
    command(["ip", "-netns", netns, "link", "set", "lo", "up"]);
    // New namespaces inherit the machine's congestion control; BBR paces and would make labs differ. Where the
    // machine's tcp_allowed_congestion_control leaves cubic out (and it is not ours to change), reno is the nearest.
    const sysctl = "sysctl -qw net.ipv4.tcp_congestion_control";
    command([
      "nsenter",
      `--net=/run/netns/${netns}`,
      "sh",
      "-c",
      `${sysctl}=cubic 2>/dev/null || ${sysctl}=reno`,
    ]);
  }

  #ip(place: Place, lines: readonly string[]): void {
    command(["ip", "-netns", place.netns, "-batch", "-"], lines.join("\n"));
  }

  #sysctl(place: Place, settings: readonly string[]): void {
    command(["nsenter", `--net=${place.netnsPath}`, "sysctl", "-qw", ...settings]);
  }

  /** The whole ruleset of the fabric in one transaction. */
  #applyRules(): void {
    const rules: string[] = [];
    for (const name of this.#cut) rules.push(`iifname "${name}" drop`, `oifname "${name}" drop`);
    this.#groups.forEach((group, index) => {
      const others = this.#groups.filter((_, other) => other !== index).flat();
      if (group.length === 0 || others.length === 0) return;
      rules.push(`iifname { ${quoted(group)} } oifname { ${quoted(others)} } drop`);
    });
    for (const [name, probability] of this.#loss) {
      const limit = Math.round(probability * 10_000);
      rules.push(`iifname "${name}" numgen random mod 10000 < ${limit} drop`);
      rules.push(`oifname "${name}" numgen random mod 10000 < ${limit} drop`);
    }
    const ruleset = [
      "add table bridge lab",
      "delete table bridge lab",
      "table bridge lab {",
      "  chain forward {",
      "    type filter hook forward priority 0;",
      ...rules.map((rule) => `    ${rule}`),
      "  }",
      "}",
      "",
    ].join("\n");
    command(["nsenter", `--net=${this.fabric.netnsPath}`, "nft", "-f", "-"], ruleset);
  }
}

/**
 * The data planes of a lab's hosts, in the order they are made and over again: LAB_DATAPLANES=kernel,userspace. Empty
 * when the agents choose.
 */
export function labDataplanes(): DataplaneKind[] {
  const text = process.env["LAB_DATAPLANES"] ?? "";
  return text.split(",").flatMap((word) => {
    if (word === "") return [];
    if (word === "kernel" || word === "userspace") return [word];
    throw new Error(`LAB_DATAPLANES=${text}: ${word} is neither kernel nor userspace`);
  });
}

/** Waits until every host's agent sees every host alive, and nobody else. */
export async function allAlive(hosts: readonly Host[], withinMs = JOIN_PATIENCE_MS): Promise<void> {
  const names = hosts.map((host) => host.name).sort();
  await Promise.all(
    hosts.map((host) =>
      waitFor(`${host.name} to see ${names.join(", ")} alive`, () => aliveNames(host), {
        withinMs,
        until: (seen) => seen.join() === names.join(),
        everyMs: 200,
      }),
    ),
  );
}

/** Names of the members the host's agent holds for alive, itself included, sorted. */
export async function aliveNames(host: Host): Promise<string[]> {
  const peers = await host.ctlJson<{ name: string; state: string }[]>("peers");
  return peers
    .filter((peer) => peer.state === "alive")
    .map((peer) => peer.name)
    .sort();
}

function quoted(names: readonly string[]): string {
  return names.map((name) => `"${name}"`).join(", ");
}

/** `on NAME [COMMAND…]`: runs a command, or a shell, as typed on that host of a kept lab. */
function onScript(mark: LabMark): string {
  const netctl = join(DIST, "src/cli/main.js");
  return `#!/bin/sh
name=$1; shift
[ $# -gt 0 ] || set -- "\${SHELL:-bash}"
export ${LAB_VARIABLE}=${mark.folder}/$name NETAGENT_SOCKET=${mark.folder}/$name/run/netagent.sock
if [ "$1" = netctl ]; then shift; set -- ${process.execPath} ${netctl} "$@"; fi
exec nsenter --net=/run/netns/${mark.prefix}$name "$@"
`;
}

/** A setup command: short, synchronous, must succeed. */
function command(argv: readonly [string, ...string[]], input = ""): void {
  const result = spawnSync(argv[0], argv.slice(1), { input, encoding: "utf8" });
  if (result.error !== undefined)
    throw new Error(`${argv[0]}: ${result.error.message}; run npm run bootstrap`);
  if (result.status !== 0) {
    throw new Error(`\`${argv.join(" ")}\`${input && ` with\n${input}\n`} failed: ${result.stderr.trim()}`);
  }
}

let guarded = false;
/** Labs must not outlive us by accident: not when a test throws outside the lab's scope, not on Ctrl-C. */
function guardExit(): void {
  if (guarded) return;
  guarded = true;
  const tearAllDown = (): void => {
    for (const lab of standing) {
      try {
        lab.dispose();
      } catch (error) {
        console.error(error instanceof Error ? error.message : error);
      }
    }
  };
  process.on("exit", tearAllDown);
  for (const [signal, number] of [
    ["SIGINT", 2],
    ["SIGTERM", 15],
    ["SIGHUP", 1],
  ] as const) {
    process.on(signal, () => {
      tearAllDown();
      process.exit(128 + number);
    });
  }
}
