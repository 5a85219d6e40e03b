/**
 * Real dockerds (Debian package docker.io) as hosts of a lab, forming a swarm of their own on the same underlay.
 *
 * Each runs in the network namespace of its host and in mount, UTS and PID namespaces of its own: its containers, the
 * namespaces it pins and what it mounts live exactly as long as the first process there, which carries the lab's mark.
 * Only control groups outlive it; they are named after the host, and the lab's end removes them.
 */

import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { mustSucceed, type Background, type CommandResult } from "./command.ts";
import { lastLines, type Host } from "./host.ts";
import { started } from "./place.ts";
import { Hopeless, waitFor } from "./wait.ts";

const IMAGE = "lab/box";
/** What a container can do; all of it is one program. */
const APPLETS = "sh cat dd echo hostname httpd ip mkdir nslookup ping sleep timeout wc wget".split(" ");
/** Serves HTTP on port 80: its host name, and a megabyte. */
const SERVER =
  "mkdir -p /www && hostname > /www/index.html && dd if=/dev/zero of=/www/megabyte bs=1M count=1 && " +
  "exec httpd -f -p 80 -h /www";
const DIAGNOSTIC_PORT = 2000;
const START_PATIENCE_MS = 30_000;

/** A row of a table as dockerd's diagnostic server shows it. */
export type DockerRow = {
  readonly key: string;
  readonly owner: string;
  readonly value: Uint8Array;
};

/** One dockerd and the machine it believes to run on. */
export class DockerHost {
  readonly host: Host;
  readonly #machine: Background;
  #dockerd: Background;

  private constructor(host: Host, machine: Background, dockerd: Background) {
    this.host = host;
    this.#machine = machine;
    this.#dockerd = dockerd;
  }

  /** Resolves when dockerd answers and has the image. */
  static async start(host: Host): Promise<DockerHost> {
    const machine = host.spawn(machineCommand(host), {}, join(host.folder, "machine.log"));
    await started(machine, "ready");
    const docker = new DockerHost(host, machine, startDockerd(host, machine));
    await docker.#answers();
    await docker.run("import", await imageArchive(host), IMAGE);
    return docker;
  }

  get name(): string {
    return this.host.name;
  }

  get address(): string {
    return this.host.address;
  }

  /** Runs the docker client here, as typed; any exit code. */
  docker(...args: string[]): Promise<CommandResult> {
    return this.host.exec(["docker", ...args], {
      env: { DOCKER_HOST: `unix://${socketPath(this.host)}`, DOCKER_CONFIG: this.host.folder },
    });
  }

  /** Runs the docker client here; throws CommandError unless it succeeds. Returns its output, trimmed. */
  async run(...args: string[]): Promise<string> {
    return mustSucceed(await this.docker(...args)).stdout.trim();
  }

  /** What its dockerds complained of, a line each. */
  complaints(): string[] {
    return this.log()
      .split("\n")
      .filter((line) => /level=(warning|error|fatal)/.test(line));
  }

  /** Everything this host's dockerds have logged. */
  log(): string {
    return this.#dockerd.output();
  }

  /** Dies as in a crash; shims and containers live on. */
  async crash(): Promise<void> {
    await this.#inside("sh", "-c", `kill -KILL $(cat ${pidFile(this.host)})`);
    await this.#dockerd.exited;
  }

  /** Ends in order: containers are stopped, and the gossip is told. */
  async stop(): Promise<void> {
    await this.#inside("sh", "-c", `kill -TERM $(cat ${pidFile(this.host)})`);
    await this.#dockerd.exited;
  }

  /** A new dockerd over the same data. */
  async restart(): Promise<void> {
    this.#dockerd = startDockerd(this.host, this.#machine);
    await this.#answers();
  }

  /** A service of `replicas` tasks on `network`, found by DNS round robin, each serving HTTP as a container does. */
  async serveTasks(name: string, network: string, replicas: number): Promise<void> {
    await this.run(
      ...["service", "create", "--detach", "--no-resolve-image", "--name", name, "--network", network],
      ...["--replicas", String(replicas), "--endpoint-mode", "dnsrr", "--stop-signal", "KILL"],
      ...[IMAGE, "sh", "-c", SERVER],
    );
  }

  /** A container on `network`, restarted with its dockerd, that serves HTTP on port 80 and answers with its name. */
  async serve(name: string, network: string): Promise<DockerContainer> {
    await this.run(
      ...["run", "--detach", "--name", name, "--hostname", name, "--network", network],
      // Or a restarted dockerd waits ten seconds for the first process, which ignores SIGTERM.
      ...["--restart", "always", "--stop-signal", "KILL", IMAGE, "sh", "-c", SERVER],
    );
    return this.container(name, network);
  }

  /**
   * Starts a container unless it runs. A restarted dockerd starts its containers itself, but one whose swarm network it
   * takes away and makes anew at that moment stays down.
   */
  async ensureRunning(name: string): Promise<void> {
    await waitFor(`${name} to run on ${this.name}`, () => this.run("start", name), {
      withinMs: START_PATIENCE_MS,
      everyMs: 500,
    });
  }

  /** A running container. */
  async container(name: string, network: string): Promise<DockerContainer> {
    const text = await this.run("inspect", "--format", "{{.Id}} {{json .NetworkSettings.Networks}}", name);
    const [id = ""] = text.split(" ");
    const settings = (
      JSON.parse(text.slice(id.length)) as Record<
        string,
        { EndpointID: string; IPAddress: string; MacAddress: string }
      >
    )[network];
    if (settings === undefined) throw new Error(`${name} on ${this.name} is not on ${network}: ${text}`);
    const { EndpointID: endpoint, IPAddress: ip, MacAddress: mac } = settings;
    return new DockerContainer(this, name, id, endpoint, ip, mac);
  }

  /** Rows of a table, from dockerd's diagnostic server. */
  async table(network: string, table: string): Promise<DockerRow[]> {
    const answer = await this.#ask<{ details: { entries: RawRow[] | null } }>(
      `gettable?nid=${network}&tname=${table}`,
    );
    return (answer.details.entries ?? []).map(({ key, owner, value }) => {
      return { key, owner, value: Buffer.from(value, "base64") };
    });
  }

  /** Names of the active NetworkDB nodes this dockerd knows, itself included, sorted. */
  async clusterPeers(): Promise<string[]> {
    return this.#peers("clusterpeers");
  }

  /** Names of the nodes it holds for attached to a network, sorted. */
  async networkPeers(network: string): Promise<string[]> {
    // A node it does not know is an orphan. 20.10 takes itself for one when it restarts before others have found its old
    // name dead: it then sees another name come up at its own address, and takes itself for replaced.
    const names = await this.#peers(`networkpeers?nid=${network}`);
    return names.map((name) => name.replace(/^orphan-/, "")).sort();
  }

  /** Entries for remote endpoints in the namespace of an overlay network: `MAC dst VTEP` and `IP MAC`. */
  async forwarding(network: string): Promise<{ readonly fdb: string[]; readonly neighbors: string[] }> {
    const namespace = `${execRoot(this.host)}/netns/1-${network.slice(0, 10)}`;
    const [fdb, neighbors] = await Promise.all([
      this.#inside("nsenter", `--net=${namespace}`, "bridge", "fdb", "show"),
      this.#inside("nsenter", `--net=${namespace}`, "ip", "neigh", "show", "nud", "permanent"),
    ]);
    return {
      fdb: [...fdb.matchAll(/^(\S+) dev \S+ (dst \S+) .*permanent/gm)].map(
        (match) => `${match[1]} ${match[2]}`,
      ),
      neighbors: [...neighbors.matchAll(/^(\S+) dev \S+ lladdr (\S+)/gm)].map(
        (match) => `${match[1]} ${match[2]}`,
      ),
    };
  }

  async #peers(question: string): Promise<string[]> {
    const answer = await this.#ask<{ details: { entries: Record<string, string>[] | null } }>(question);
    // The name's key is misspelled in every version (networkdb.md §13).
    return (answer.details.entries ?? []).map((entry) => entry["-=name"] ?? "").sort();
  }

  async #ask<T>(question: string): Promise<T> {
    const separator = question.includes("?") ? "&" : "?";
    const url = `http://127.0.0.1:${DIAGNOSTIC_PORT}/${question}${separator}json`;
    return JSON.parse(await this.host.run("curl", "-sS", "--max-time", "5", url)) as T;
  }

  /** Resolves when the API and the diagnostic server answer; the latter is only started by a reload. */
  async #answers(): Promise<void> {
    await waitFor(
      `dockerd on ${this.name} to answer`,
      () => {
        if (!this.#dockerd.running) throw new Hopeless(`it ended:\n${lastLines(this.log(), 10)}`);
        return this.run("version");
      },
      { withinMs: START_PATIENCE_MS, everyMs: 200 },
    );
    await waitFor(
      `the diagnostic server of ${this.name}`,
      async () => {
        await this.#inside("sh", "-c", `kill -HUP $(cat ${pidFile(this.host)})`);
        return this.host.httpGet(`http://127.0.0.1:${DIAGNOSTIC_PORT}/ready`);
      },
      { withinMs: START_PATIENCE_MS, everyMs: 300 },
    );
  }

  async #inside(...argv: [string, ...string[]]): Promise<string> {
    return mustSucceed(await this.host.exec(insideMachine(this.#machine, argv))).stdout;
  }
}

/** A container with an interface on one overlay network. */
export class DockerContainer {
  readonly docker: DockerHost;
  readonly name: string;
  readonly id: string;
  readonly endpoint: string;
  readonly ip: string;
  readonly mac: string;

  constructor(docker: DockerHost, name: string, id: string, endpoint: string, ip: string, mac: string) {
    this.docker = docker;
    this.name = name;
    this.id = id;
    this.endpoint = endpoint;
    this.ip = ip;
    this.mac = mac;
  }

  exec(...argv: string[]): Promise<CommandResult> {
    return this.docker.docker("exec", this.name, ...argv);
  }

  async pings(address: string): Promise<boolean> {
    return (await this.exec("ping", "-c", "1", "-w", "2", address)).code === 0;
  }

  /** The body of an HTTP answer, or undefined when there is none within five seconds. */
  async httpGet(url: string): Promise<string | undefined> {
    const { code, stdout } = await this.exec("timeout", "5", "wget", "-q", "-O", "-", url);
    return code === 0 ? stdout.trim() : undefined;
  }

  /** The addresses Docker's embedded DNS has for a name, sorted; a name it lacks it asks others for, in vain. */
  async resolve(name: string): Promise<string[]> {
    const { stdout } = await this.exec("timeout", "2", "nslookup", "-type=a", name, "127.0.0.11");
    const answer = stdout.split(/^Name:.*$/m).slice(1);
    return answer.flatMap((text) => /^Address: *(\S+)/m.exec(text)?.[1] ?? []).sort();
  }

  async remove(): Promise<void> {
    await this.docker.run("rm", "--force", this.name);
  }
}

type RawRow = { readonly key: string; readonly owner: string; readonly value: string };

/**
 * A machine for one dockerd: /sys of its network namespace with the real control groups, an empty /run, a host name of
 * its own, and a first process that reaps what is orphaned.
 */
function machineCommand(host: Host): [string, ...string[]] {
  const cgroups = join(host.folder, "cgroup");
  mkdirSync(cgroups);
  const script = [
    "set -e",
    `mount --rbind /sys/fs/cgroup ${cgroups}`,
    "umount -l /sys",
    "mount -t sysfs sysfs /sys",
    `mount --rbind ${cgroups} /sys/fs/cgroup`,
    `umount -l ${cgroups}`,
    // Also hides the namespaces other labs pin there: a copy of such a mount would keep the namespace alive.
    "umount -l /run/netns 2>/dev/null || :",
    "mount -t tmpfs tmpfs /run",
    `hostname ${host.name}`,
    "echo ready",
    "sleep infinity & wait",
  ].join("\n");
  return [
    "unshare",
    "--mount",
    "--uts",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    script,
  ];
}

function insideMachine(machine: Background, argv: readonly string[]): [string, ...string[]] {
  // The process we started has the namespaces; only its child is inside the PID namespace.
  const pidNamespace = `--pid=/proc/${machine.pid}/ns/pid_for_children`;
  return [
    "nsenter",
    "--target",
    String(machine.pid),
    "--mount",
    "--uts",
    "--net",
    pidNamespace,
    "--",
    ...argv,
  ];
}

function startDockerd(host: Host, machine: Background): Background {
  const bin = join(host.folder, "bin");
  const config = join(host.folder, "daemon.json");
  mkdirSync(bin, { recursive: true });
  for (const program of ["iptables", "iptables-save", "iptables-restore", "ip6tables"]) {
    linkOnce("/usr/sbin/xtables-legacy-multi", join(bin, program));
  }
  writeFileSync(config, JSON.stringify({ "network-diagnostic-port": DIAGNOSTIC_PORT }));
  return host.spawn(
    insideMachine(machine, [
      "dockerd",
      ...["--debug", "--config-file", config, "--host", `unix://${socketPath(host)}`],
      ...[
        "--data-root",
        join(host.folder, "docker"),
        "--exec-root",
        execRoot(host),
        "--pidfile",
        pidFile(host),
      ],
      ...["--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs"],
      ...["--cgroup-parent", `/${host.netns}`],
    ]),
    { PATH: `${bin}:/usr/sbin:/usr/bin:/sbin:/bin` },
    join(host.folder, "dockerd.log"),
  );
}

/** A tree of one static program under many names, as an archive for `docker import`. */
async function imageArchive(host: Host): Promise<string> {
  const tree = join(host.folder, "image");
  mkdirSync(join(tree, "bin"), { recursive: true });
  cpSync("/usr/bin/busybox", join(tree, "bin/busybox"));
  for (const applet of APPLETS) linkOnce("busybox", join(tree, "bin", applet));
  const archive = join(host.folder, "image.tar");
  await host.run("tar", "-C", tree, "-cf", archive, ".");
  return archive;
}

function linkOnce(target: string, path: string): void {
  try {
    symlinkSync(target, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

function socketPath(host: Host): string {
  return join(host.folder, "docker.sock");
}

function execRoot(host: Host): string {
  return join(host.folder, "docker-exec");
}

function pidFile(host: Host): string {
  return join(host.folder, "dockerd.pid");
}
