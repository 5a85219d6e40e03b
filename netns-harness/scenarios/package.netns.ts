import assert from "node:assert/strict";
import { join } from "node:path";
import { buildPackage } from "../../src/packaging/build-deb.ts";
import { mustSucceed, type Background, type CommandResult } from "../command.ts";
import type { Host } from "../host.ts";
import { started } from "../place.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

/** Files of the machine that installing and removing any package writes. */
const BOOKKEEPING =
  /^(var\/(lib\/(dpkg|systemd)|log|cache)|etc\/(passwd|group|shadow|gshadow|subuid|subgid|\.pwd\.lock))|^etc\/systemd\/system\b/;
/** A lab host's environment names its own agent's socket. */
const PLAIN = ["env", "--unset=NETAGENT_SOCKET"];
const KEPT_LINE = "# a line of the operator's";

scenario("the Debian package installs, starts, upgrades and is removed without a trace", async (lab) => {
  const host = lab.host("node1", "192.168.1.104");
  const first = await buildPackage("0.0.1", host.folder);
  const second = await buildPackage("0.0.2", host.folder);
  const machine = await Machine.boot(host);
  try {
    await machine.install(first);
    assert.match(await machine.run("dpkg-query", "--show", "netagent"), /\t0\.0\.1\n/);
    assert.equal(await machine.run("netctl", "version"), "0.0.1\n");
    assert.equal(await machine.run("stat", "-c", "%U %a", "/etc/netagent/netagent.toml"), "netagent 600\n");
    await machine.run("test", "-L", "/etc/systemd/system/multi-user.target.wants/netagent.service");
    await machine.run("systemd-analyze", "verify", "/lib/systemd/system/netagent.service");
    await machine.run("sh", "-c", `echo "${KEPT_LINE}" >> /etc/netagent/netagent.toml`);

    const agent = await machine.startService();
    await machine.run("netctl", "network", "create", "blue");
    assert.match(
      await machine.run("netctl", "run", "--network", "blue", "--", "ip", "-brief", "addr"),
      /eth0/,
    );
    await machine.run("ip", "netns", "add", "box");
    await machine.run("netctl", "attach", "--network", "blue", "--netns", "box", "--name", "box");

    await machine.install(second);
    assert.equal(await machine.run("netctl", "version"), "0.0.2\n");
    assert.match(await machine.run("cat", "/etc/netagent/netagent.toml"), new RegExp(KEPT_LINE));
    await agent.stop("SIGTERM");
    const upgraded = await machine.startService();
    assert.match(await machine.run("netctl", "endpoint", "ls"), /box/);
    await upgraded.stop("SIGTERM");

    await machine.run("dpkg", "--remove", "netagent");
    assert.deepEqual((await machine.run("ip", "-brief", "link")).match(/netagent|vxlan|na-/g), null);
    assert.equal(await machine.run("nft", "list", "tables"), "");
    assert.equal(
      await machine.run("ip", "netns", "exec", "box", "ip", "-brief", "link", "show", "type", "macvlan"),
      "",
    );
    assert.match(await machine.run("cat", "/etc/netagent/netagent.toml"), new RegExp(KEPT_LINE));
    await machine.run("ip", "netns", "del", "box");

    await machine.run("dpkg", "--purge", "netagent");
    assert.notEqual((await machine.exec("id", "netagent")).code, 0);
    assert.deepEqual(await machine.changedFiles(), []);
  } finally {
    await machine.halt();
  }
});

/**
 * This machine's file system with a layer above it that is thrown away, in a mount namespace on a lab host: what is
 * installed there is installed nowhere else. Systemd does not run in it, as in a container.
 */
class Machine {
  readonly #host: Host;
  readonly #root: string;
  readonly #anchor: Background;

  private constructor(host: Host, root: string, anchor: Background) {
    this.#host = host;
    this.#root = root;
    this.#anchor = anchor;
  }

  static async boot(host: Host): Promise<Machine> {
    const layers = join(host.folder, "layers");
    const root = join(layers, "root");
    await host.run("mkdir", layers);
    const script = `set -e
mount -t tmpfs tmpfs ${layers}
mkdir ${layers}/upper ${layers}/work ${root}
mount -t overlay overlay -o lowerdir=/,upperdir=${layers}/upper,workdir=${layers}/work ${root}
mount --rbind /proc ${root}/proc
mount --rbind /dev ${root}/dev
mount -t tmpfs tmpfs ${root}/run
mount -t tmpfs tmpfs ${root}/tmp
mkdir -p ${root}${host.folder}
cp ${host.folder}/*.deb ${root}${host.folder}
echo booted
exec sleep infinity`;
    const anchor = host.spawn(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]);
    await started(anchor, "booted");
    return new Machine(host, root, anchor);
  }

  exec(...argv: readonly string[]): Promise<CommandResult> {
    return this.#host.exec(this.#inside(argv), {
      timeoutMs: 120_000,
      env: { DEBIAN_FRONTEND: "noninteractive" },
    });
  }

  async run(...argv: readonly string[]): Promise<string> {
    return mustSucceed(await this.exec(...argv)).stdout;
  }

  /** Node may have come to the machine another way than as a package. */
  async install(path: string): Promise<void> {
    const known = (await this.exec("dpkg-query", "--status", "nodejs")).code === 0;
    await this.run("dpkg", ...(known ? [] : ["--force-depends"]), "--install", path);
  }

  /** What the unit starts, as the user and with the capabilities it says, in directories it would make. */
  async startService(): Promise<Background> {
    const unit = await this.run("cat", "/lib/systemd/system/netagent.service");
    const setting = (name: string): string =>
      new RegExp(`^${name}=(.*)$`, "m").exec(unit)?.[1] ?? assert.fail(name);
    for (const [folder, mode] of [
      [`/var/lib/${setting("StateDirectory")}`, setting("StateDirectoryMode")],
      [`/run/${setting("RuntimeDirectory")}`, "0755"],
    ] as const)
      await this.run("install", "-d", "-o", "netagent", "-g", "netagent", "-m", mode, folder);
    const capabilities = setting("AmbientCapabilities")
      .toLowerCase()
      .replaceAll("cap_", "+")
      .replaceAll(" ", ",");
    const service = this.#host.spawn(
      this.#inside([
        ...[
          "setpriv",
          `--reuid=${setting("User")}`,
          `--regid=${setting("Group")}`,
          "--clear-groups",
          "--no-new-privs",
        ],
        ...[`--inh-caps=-all,${capabilities}`, `--ambient-caps=-all,${capabilities}`],
        ...[`--bounding-set=-all,${capabilities}`, ...setting("ExecStart").split(" ")],
      ]),
    );
    await waitFor("netctl to reach the service", () => this.exec("netctl", "info"), {
      withinMs: 20_000,
      until: ({ code }) => {
        if (!service.running) assert.fail(service.output());
        return code === 0;
      },
    });
    return service;
  }

  /** Files of the layer, but for what every package leaves in the bookkeeping of the machine. */
  async changedFiles(): Promise<string[]> {
    const upper = join(this.#root, "../upper");
    const listing = await this.#host.run(
      "nsenter",
      `--mount=/proc/${this.#anchor.pid}/ns/mnt`,
      "find",
      upper,
      "-not",
      "-type",
      "d",
      "-printf",
      "%P\\n",
    );
    return listing.split("\n").filter((path) => path !== "" && !BOOKKEEPING.test(path));
  }

  async halt(): Promise<void> {
    await this.#anchor.stop("SIGKILL");
  }

  #inside(argv: readonly string[]): [string, ...string[]] {
    return ["nsenter", `--mount=/proc/${this.#anchor.pid}/ns/mnt`, "chroot", this.#root, ...PLAIN, ...argv];
  }
}
