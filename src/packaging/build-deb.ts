/**
 * `npm run package`: a Debian package of what `npm ci` and the build have made, for this machine's architecture.
 *
 *   node dist/src/packaging/build-deb.js [--version VERSION] [--out FOLDER]
 */
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { commandLine } from "../agent/config.ts";
import { packageVersion } from "../agent/version.ts";
import { completionScript } from "../cli/completion.ts";
import { buildProgram } from "../cli/program.ts";
import { renderManual, type ManualParts } from "./man.ts";

const project = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const packaging = join(project, "src/packaging");
const LIBRARY = "usr/lib/netagent";
const NATIVE = "native/build/Release";

/** Builds the package and returns its path. */
export async function buildPackage(version: string, folder: string): Promise<string> {
  const architecture = execFileSync("dpkg", ["--print-architecture"], { encoding: "utf8" }).trim();
  const root = mkdtempSync(join(tmpdir(), "netagent-package-"));
  try {
    chmodSync(root, 0o755); // it becomes `/` of the package
    addProgram(root, version);
    await addDocuments(root, version);
    addControl(root, version, architecture);
    mkdirSync(folder, { recursive: true });
    const path = join(folder, `netagent_${version}_${architecture}.deb`);
    execFileSync("dpkg-deb", ["--root-owner-group", "-Zxz", "--build", root, path], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    return path;
  } finally {
    rmSync(root, { recursive: true });
  }
}

/** Compiled sources, the packages they need, the addon, and what starts them. */
function addProgram(root: string, version: string): void {
  const library = join(root, LIBRARY);
  cpSync(join(project, "dist/src"), join(library, "dist/src"), { recursive: true });
  const manifest: unknown = JSON.parse(readFileSync(join(project, "package.json"), "utf8"));
  writeText(join(library, "package.json"), `${JSON.stringify({ ...Object(manifest), version }, null, 2)}\n`);
  for (const name of ["netagent.node", "netctl"])
    cpSync(join(project, NATIVE, name), join(library, NATIVE, name));
  const modules = execFileSync("npm", ["ls", "--omit=dev", "--all", "--parseable"], {
    cwd: project,
    encoding: "utf8",
  });
  for (const module of modules
    .trim()
    .split("\n")
    .filter((path) => path !== project)) {
    // Headers, which only the build needs.
    if (basename(module) === "node-addon-api") continue;
    const target = join(library, relative(project, module));
    cpSync(module, target, { recursive: true, filter: (path) => keeps(relative(module, path)) });
  }
  for (const [path, program] of [
    ["usr/bin/netagent", "agent"],
    [`${LIBRARY}/netctl`, "cli"],
  ] as const) {
    const launcher = readFileSync(join(packaging, "launcher"), "utf8").replace("@PROGRAM@", program);
    writeText(join(root, path), launcher, 0o755);
  }
  // The front, which starts the other netctl when it has to.
  symlinkSync(`../lib/netagent/${NATIVE}/netctl`, join(root, "usr/bin/netctl"));
}

/** Of a package: not its nested packages (they are listed themselves), sources of its addon, types and tests. */
function keeps(path: string): boolean {
  const parts = path.split("/");
  if (parts[0] === "node_modules" || parts[0] === "test" || parts[0] === "tests") return false;
  // Of what was compiled on install: the addon, not how it was made.
  if (parts[0] === "build" && parts.length > 1)
    return parts[1] === "Release" && (parts.length === 2 || path.endsWith(".node"));
  if (parts[0] === "prebuilds" && parts.length > 1) return parts[1] === `linux-${process.arch}`;
  return !/\.(d\.[cm]?ts|map|md|cc|gyp)$/.test(path);
}

async function addDocuments(root: string, version: string): Promise<void> {
  const put = (path: string, text: string): void => writeText(join(root, path), text);
  const packed = (path: string, text: string): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, `${path}.gz`), gzipSync(text, { level: 9 }), { mode: 0o644 });
  };
  const netctl = await buildProgram([]);
  put("usr/share/bash-completion/completions/netctl", completionScript("bash", netctl));
  put("usr/share/zsh/vendor-completions/_netctl", completionScript("zsh", netctl));
  put("usr/share/fish/vendor_completions.d/netctl.fish", completionScript("fish", netctl));
  packed("usr/share/man/man8/netagent.8", renderManual(commandLine(version), agentManual(version)));
  packed("usr/share/man/man8/netctl.8", renderManual(netctl, netctlManual(version)));
  put("lib/systemd/system/netagent.service", readFileSync(join(packaging, "netagent.service"), "utf8"));
  put("etc/netagent/netagent.toml", readFileSync(join(packaging, "netagent.toml"), "utf8"));
  put("usr/share/doc/netagent/copyright", readFileSync(join(project, "LICENSE"), "utf8"));
  packed("usr/share/doc/netagent/README.md", readFileSync(join(project, "README.md"), "utf8"));
  for (const name of ["grafana-dashboard.json", "prometheus-alerts.yml"]) {
    if (existsSync(join(packaging, name)))
      put(`usr/share/netagent/${name}`, readFileSync(join(packaging, name), "utf8"));
  }
}

function addControl(root: string, version: string, architecture: string): void {
  const kilobytes = execFileSync("du", ["-sk", "--apparent-size", root], { encoding: "utf8" }).split("\t")[0];
  const control = `Package: netagent
Version: ${version}
Architecture: ${architecture}
Maintainer: netagent maintainers <netagent@localhost>
Installed-Size: ${kilobytes}
Depends: nodejs (>= 20), nftables, util-linux, passwd, init-system-helpers (>= 1.52), libc6, libstdc++6
Recommends: tcpdump, iproute2
Section: net
Priority: optional
Description: overlay network for swarms of hosts
 Memberlist gossip, VXLAN, a routing mesh that keeps the client's address, and
 names in every sandbox, with no database and no leader. Contains the daemon
 netagent and the command netctl.
`;
  writeText(join(root, "DEBIAN/control"), control);
  writeText(join(root, "DEBIAN/conffiles"), "/etc/netagent/netagent.toml\n");
  for (const name of readdirSync(join(packaging, "debian")))
    writeText(join(root, "DEBIAN", name), readFileSync(join(packaging, "debian", name), "utf8"), 0o755);
}

function writeText(path: string, text: string, mode = 0o644): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text, { mode });
}

function agentManual(version: string): ManualParts {
  return {
    section: 8,
    version,
    description: [
      "Runs on every node of a swarm. The agents find each other by gossip, tell each other where every endpoint is, and bring their kernels into agreement with that: VXLAN for overlay networks, nftables for published ports and virtual IPs, DNS in every sandbox.",
      "Every option is also a key of the configuration file, and an option wins. SIGTERM leaves the swarm and keeps the interfaces of running endpoints; SIGHUP reads gossip keys and log level again.",
      "netagent cleanup, with the agent stopped, removes what it left in this host's kernel.",
    ],
    exitStatus: [
      ["0", "It was stopped by a signal."],
      ["1", "It could not start or go on; one line on standard error says what was tried, on what, and why."],
      ["2", "Wrong usage or configuration."],
    ],
    environment: [["NETAGENT_NODE", "The node program to run with."]],
    files: [
      ["/etc/netagent/netagent.toml", "Configuration."],
      ["/var/lib/netagent", "What survives a restart: definitions, address ranges, endpoints, keys."],
      ["/run/netagent/netagent.sock", "The control socket that netctl(8) talks to."],
    ],
    seeAlso: ["netctl(8)", "nft(8)", "ip-link(8)"],
  };
}

function netctlManual(version: string): ManualParts {
  return {
    section: 8,
    version,
    description: [
      "Talks to the netagent(8) of this node. Objects may be named by name, id or a unique beginning of the id. A command that changes the swarm returns when this node's kernel agrees with it, or says what is missing.",
    ],
    exitStatus: [
      ["0", "Done."],
      [
        "1",
        "Refused or failed; one line on standard error says what was tried, on what, why, and what to do.",
      ],
      ["2", "Wrong usage."],
      ["3", "The agent cannot be reached."],
    ],
    environment: [
      ["NETAGENT_SOCKET", "The agent's socket, where --socket is not given."],
      ["NO_COLOR", "Set to anything: no colours."],
    ],
    files: [["/run/netagent/netagent.sock", "The agent's socket."]],
    seeAlso: ["netagent(8)", "ip(8)", "tcpdump(8)"],
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const option = (name: string): string | undefined => {
    const at = process.argv.indexOf(name);
    return at < 0 ? undefined : process.argv[at + 1];
  };
  const folder = resolve(option("--out") ?? join(project, "dist/package"));
  console.log(await buildPackage(option("--version") ?? packageVersion(), folder));
}
