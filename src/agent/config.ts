import { readFileSync, statSync } from "node:fs";
import { hostname, networkInterfaces } from "node:os";
import { Command, InvalidArgumentError, Option } from "commander";
import { parse as parseToml, TomlError } from "smol-toml";
import { z } from "zod";
import { fromHex, toHex } from "../base/bytes.ts";
import { errorText, NetError } from "../base/error.ts";
import { nearestText } from "../base/nearest.ts";
import {
  isLoopback,
  isUnspecified,
  parseCidr,
  parseHostPort,
  parseIp,
  tryParseIp,
  type Cidr,
  type IpAddr,
  type SocketAddr,
} from "../base/ip.ts";
import { checkedSeed } from "./seeds.ts";

/** What the daemon runs with: file and flags merged, checked and with every default filled in. */
export interface Config {
  readonly name: string;
  readonly dataDir: string;
  readonly runDir: string;
  readonly bindAddr: IpAddr;
  readonly advertise: SocketAddr;
  readonly gossipPort: number;
  /** VTEPs of this node, the first one preferred; one family. */
  readonly dataPathAddrs: readonly IpAddr[];
  readonly dataPathPort: number;
  readonly join: readonly string[];
  /** Whoever is known by address alone is not spoken to. */
  readonly requireNodeNames: boolean;
  /** Members outside these are not admitted; empty: from anywhere. */
  readonly allowedNetworks: readonly Cidr[];
  /** 16, 24 or 32 bytes each; the first one seals. Empty: gossip is not encrypted. */
  readonly gossipKeys: readonly Uint8Array[];
  readonly keyringFile: string;
  /** In front of all gossip; members of another label are strangers. Empty: none. */
  readonly gossipLabel: string;
  /** Where keys are not everywhere yet: whether what we send is sealed, and whether what is not is refused. */
  readonly gossipVerify: "both" | "outgoing" | "none";
  readonly profile: "lan" | "wan" | "local";
  readonly compat: "docker" | "serf";
  readonly dataplane: "auto" | "kernel" | "userspace";
  /** Whether frames may go round the host's network stack where that is known to be the same. */
  readonly fastPath: "auto" | "off";
  /** Upstream name servers; empty: those of the host's resolv.conf. */
  readonly dns: readonly IpAddr[];
  /** How long clients may remember addresses of endpoints. */
  readonly dnsTtlSeconds: number;
  /** False: what other hands do to our objects in the kernel is told and left alone. */
  readonly repair: boolean;
  readonly metricsAddr: { readonly host: string; readonly port: number } | undefined;
  /** Where the status page is served; undefined: nowhere. */
  readonly web: { readonly host: string; readonly port: number } | undefined;
  readonly logLevel: LogLevel;
  readonly logFormat: "pretty" | "json";
}

/** The address our rows tell others to send frames to. */
export function ownVtep(config: Config): IpAddr {
  return config.dataPathAddrs[0] ?? config.advertise.ip;
}

export type LogLevel = (typeof LOG_LEVELS)[number];
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;

const DEFAULT_WEB_PORT = 8946;

const strings = z.union([z.string().transform((text) => [text]), z.array(z.string())]);
const port = z.number().int().min(1).max(65535);

/** Keys of the file, which are the flags' names. */
const settings = z.object({
  name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/, "1 to 63 letters, digits, '-', '_' or '.'"),
  "data-dir": z.string().min(1),
  "run-dir": z.string().min(1),
  "bind-addr": z.string(),
  "advertise-addr": z.string(),
  "gossip-port": port,
  "data-path-addr": strings,
  "data-path-port": port,
  join: strings,
  "require-node-names": z.boolean(),
  "allowed-network": strings,
  "gossip-key": strings,
  "keyring-file": z.string().min(1),
  "gossip-label": z.string().refine((text) => Buffer.byteLength(text) <= 255, "at most 255 bytes"),
  "gossip-verify": z.enum(["both", "outgoing", "none"]),
  profile: z.enum(["lan", "wan", "local"]),
  compat: z.enum(["docker", "serf"]),
  dataplane: z.enum(["auto", "kernel", "userspace"]),
  "fast-path": z.enum(["auto", "off"]),
  dns: strings,
  "dns-ttl": z.number().int().min(0).max(3600),
  repair: z.enum(["on", "off"]),
  "metrics-addr": z.string(),
  web: z.string(),
  "log-level": z.enum(LOG_LEVELS),
  "log-format": z.enum(["pretty", "json"]),
});
type Settings = Partial<z.output<typeof settings>>;
type SettingsKey = keyof z.output<typeof settings>;

const HELP = `
Example:
  netagent --advertise-addr eth0
  netagent --join 192.168.1.104 --gossip-key "$(cat key)"
  netagent --config /etc/netagent/netagent.toml
  netagent cleanup    removes what a stopped agent left in this host's kernel;
                      takes --data-dir, --run-dir and --config as above`;

/**
 * Parses the command line and the file it names.
 * @throws NetError `config` with one line naming key, value and cure; CommanderError for wrong usage, --help and --version.
 */
export function loadConfig(argv: readonly string[], version: string): Config {
  const command = commandLine(version);
  command.parse(argv, { from: "user" });
  const flags: Record<string, unknown> = {};
  for (const option of command.options) {
    const value: unknown = command.getOptionValue(option.attributeName());
    if (value !== undefined && option.long) flags[option.long.slice(2)] = value;
  }
  const { config: file, ...rest } = flags;
  const fromFile = typeof file === "string" ? readConfigFile(file) : {};
  return resolveConfig({ ...fromFile, ...parseSettings(rest, "command line") });
}

/** The daemon's flags and help, for `loadConfig` and for the manual page. */
export function commandLine(version: string): Command {
  const integer = (text: string): number => {
    if (!/^\d+$/.test(text)) throw new InvalidArgumentError("not a whole number");
    return Number(text);
  };
  const repeat = (text: string, previous: string[] | undefined): string[] => [...(previous ?? []), text];
  return new Command("netagent")
    .description("The overlay network's daemon: gossip, VXLAN, routing mesh, DNS.")
    .version(version)
    .exitOverride()
    .option("--config <file>", "TOML file; every flag below is also a key of it, and a flag wins")
    .option("--name <name>", "shown to people (default: host name)")
    .option("--data-dir <dir>", "what survives a restart (default: /var/lib/netagent)")
    .option("--run-dir <dir>", "control socket and namespaces (default: /run/netagent)")
    .option("--bind-addr <ip>", "gossip listens here (default: 0.0.0.0)")
    .option("--advertise-addr <ip|iface[:port]>", "what others are told (default: this host's first address)")
    .option("--gossip-port <port>", "UDP and TCP (default: 7946)", integer)
    .option(
      "--data-path-addr <ip|iface>",
      "this node's VTEP, repeatable (default: the advertise address)",
      repeat,
    )
    .option("--data-path-port <port>", "VXLAN's UDP port (default: 4789)", integer)
    .option("--join <[node/]host[:port]>", "repeatable; retried for ever until one answers", repeat)
    .option("--require-node-names", "joins must name the node, and pings their sender (default: no)")
    .option(
      "--allowed-network <cidr>",
      "members' addresses are in one of these, repeatable (default: anywhere)",
      repeat,
    )
    .option("--gossip-key <base64|hex>", "repeatable, 16/24/32 bytes, the first one seals", repeat)
    .option("--keyring-file <file>", "keys are kept here (default: DATA-DIR/keyring.json)")
    .option("--gossip-label <text>", "a cluster of another label is another cluster (default: none)")
    .addOption(
      new Option(
        "--gossip-verify <what>",
        "keys in a running cluster: restart all with none, then outgoing, then both (default: both)",
      ).choices(["both", "outgoing", "none"]),
    )
    .addOption(new Option("--profile <profile>", "timing (default: lan)").choices(["lan", "wan", "local"]))
    .addOption(
      new Option(
        "--compat <peers>",
        "whose cluster it is, the same on all netagents (default: docker)",
      ).choices(["docker", "serf"]),
    )
    .addOption(new Option("--dataplane <kind>", "default: auto").choices(["auto", "kernel", "userspace"]))
    .addOption(
      new Option(
        "--fast-path <when>",
        "BPF programs instead of the VXLAN device, where they can be had (default: auto)",
      ).choices(["auto", "off"]),
    )
    .option("--dns <ip>", "name server for outside names, repeatable (default: the host's)", repeat)
    .option(
      "--dns-ttl <seconds>",
      "how long clients may remember endpoints, and six times that for virtual IPs (default: 5)",
      integer,
    )
    .addOption(
      new Option(
        "--repair <mode>",
        "off: what other hands change in the kernel is told and left alone (default: on)",
      ).choices(["on", "off"]),
    )
    .option("--metrics-addr <host:port>", "Prometheus text on /metrics, liveness on /healthz")
    .option("--web <[addr:]port>", "read-only status page; on loopback unless an address is given")
    .addOption(new Option("--log-level <level>", "default: info").choices([...LOG_LEVELS]))
    .addOption(
      new Option("--log-format <format>", "default: pretty on a terminal, else json").choices([
        "pretty",
        "json",
      ]),
    )
    .addHelpText("after", HELP);
}

function readConfigFile(path: string): Settings {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new NetError("config", `read ${path}: ${errorText(cause)}`, { cause });
  }
  if (/^\s*gossip-key\b/m.test(text) && (statSync(path).mode & 0o077) !== 0) {
    throw new NetError("config", `${path} holds a gossip key and others may read it (chmod 600 ${path})`);
  }
  try {
    return parseSettings(parseToml(text), path);
  } catch (cause) {
    if (!(cause instanceof TomlError)) throw cause;
    throw new NetError("config", `${path} line ${cause.line}: ${cause.message.split("\n")[0]}`, { cause });
  }
}

function parseSettings(values: Readonly<Record<string, unknown>>, where: string): Settings {
  for (const key of Object.keys(values)) {
    if (key in settings.shape) continue;
    throw new NetError(
      "config",
      `${where}: unknown key '${key}'${nearestText(key, Object.keys(settings.shape))}`,
    );
  }
  const parsed: Settings = {};
  for (const [key, value] of Object.entries(values)) {
    const result = settings.shape[key as SettingsKey].safeParse(value);
    if (!result.success) {
      const shown = key === "gossip-key" ? "" : ` ${JSON.stringify(value)}`;
      throw new NetError(
        "config",
        `${where}: ${key}${shown}: ${result.error.issues[0]?.message ?? "invalid"}`,
      );
    }
    Object.assign(parsed, { [key]: result.data });
  }
  return parsed;
}

function resolveConfig(given: Settings): Config {
  const gossipPort = given["gossip-port"] ?? 7946;
  const requireNodeNames = given["require-node-names"] ?? false;
  const bindAddr = address("bind-addr", given["bind-addr"] ?? "0.0.0.0");
  const advertise = advertiseAddress(given["advertise-addr"], bindAddr, gossipPort);
  const dataPathAddrs = given["data-path-addr"]?.map((text) =>
    interfaceOrAddress("data-path-addr", text),
  ) ?? [advertise.ip];
  const dataDir = given["data-dir"] ?? "/var/lib/netagent";
  const metrics = given["metrics-addr"];
  return {
    name: given.name ?? hostname().split(".")[0] ?? "node",
    dataDir,
    runDir: given["run-dir"] ?? "/run/netagent",
    bindAddr,
    advertise,
    gossipPort,
    dataPathAddrs,
    dataPathPort: given["data-path-port"] ?? 4789,
    join: (given.join ?? []).map((text) => {
      checkedSeed(text, gossipPort, requireNodeNames);
      return text;
    }),
    requireNodeNames,
    allowedNetworks: (given["allowed-network"] ?? []).map((text) => network("allowed-network", text)),
    gossipKeys: (given["gossip-key"] ?? []).map(parseGossipKey),
    keyringFile: given["keyring-file"] ?? `${dataDir}/keyring.json`,
    gossipLabel: given["gossip-label"] ?? "",
    gossipVerify: given["gossip-verify"] ?? "both",
    profile: given.profile ?? "lan",
    compat: given.compat ?? "docker",
    dataplane: given.dataplane ?? "auto",
    fastPath: given["fast-path"] ?? "auto",
    dns: (given.dns ?? []).map((text) => address("dns", text)),
    dnsTtlSeconds: given["dns-ttl"] ?? 5,
    repair: given.repair !== "off",
    metricsAddr: metrics === undefined ? undefined : hostPort("metrics-addr", metrics, 9476),
    web: given.web === undefined ? undefined : webAddress(given.web),
    logLevel: given["log-level"] ?? "info",
    logFormat: given["log-format"] ?? (process.stderr.isTTY ? "pretty" : "json"),
  };
}

/** Base64 or hex of 16, 24 or 32 bytes. @throws NetError `bad-key`; the key itself is never in the message. */
export function parseGossipKey(text: string): Uint8Array {
  const trimmed = text.trim();
  const isHex = /^[0-9a-fA-F]+$/.test(trimmed) && [32, 48, 64].includes(trimmed.length);
  const isBase64 = /^[A-Za-z0-9+/_-]+={0,2}$/.test(trimmed);
  const bytes = isHex
    ? fromHex(trimmed)
    : isBase64
      ? Uint8Array.from(Buffer.from(trimmed, "base64"))
      : new Uint8Array(0);
  if (![16, 24, 32].includes(bytes.length)) {
    throw new NetError(
      "bad-key",
      `gossip key of ${trimmed.length} characters: must be 16, 24 or 32 bytes in base64 or hex (netctl keys generate makes one)`,
    );
  }
  return bytes;
}

/** `[[hex], …]`-free text form kept in the keyring file: base64, as serf's. */
export function formatGossipKey(key: Uint8Array): string {
  return Buffer.from(key).toString("base64");
}

/** Keys of equal bytes have equal text. */
export function keyIdentity(key: Uint8Array): string {
  return toHex(key);
}

function address(key: string, text: string): IpAddr {
  const ip = tryParseIp(text);
  if (ip === undefined) throw new NetError("config", `${key} '${text}': not an IPv4 or IPv6 address`);
  return ip;
}

function network(key: string, text: string): Cidr {
  try {
    return parseCidr(text);
  } catch (cause) {
    throw new NetError("config", `${key} '${text}': ${errorText(cause)} (write 192.0.2.0/24)`, { cause });
  }
}

function hostPort(
  key: string,
  text: string,
  defaultPort: number,
): { readonly host: string; readonly port: number } {
  try {
    return parseHostPort(text, defaultPort);
  } catch (cause) {
    throw new NetError("config", `${key} '${text}': ${errorText(cause)}`, { cause });
  }
}

/** `8080` and `:8080` are on loopback: the page needs no password, so others see it only when that is said. */
function webAddress(text: string): { readonly host: string; readonly port: number } {
  const portOnly = /^:?(\d+)$/.exec(text)?.[1];
  return hostPort("web", portOnly === undefined ? text : `127.0.0.1:${portOnly}`, DEFAULT_WEB_PORT);
}

function advertiseAddress(text: string | undefined, bindAddr: IpAddr, gossipPort: number): SocketAddr {
  if (text !== undefined) {
    const { host, port: advertisedPort } = hostPort("advertise-addr", text, gossipPort);
    return { ip: interfaceOrAddress("advertise-addr", host), port: advertisedPort };
  }
  if (!isUnspecified(bindAddr)) return { ip: bindAddr, port: gossipPort };
  for (const addresses of Object.values(networkInterfaces())) {
    const found = addresses?.find((one) => one.family === "IPv4" && !one.internal);
    if (found !== undefined) return { ip: parseIp(found.address), port: gossipPort };
  }
  throw new NetError(
    "config",
    "advertise-addr: this host has no IPv4 address but loopback (give one with --advertise-addr)",
  );
}

function interfaceOrAddress(key: string, text: string): IpAddr {
  const literal = tryParseIp(text);
  if (literal !== undefined) {
    if (isUnspecified(literal))
      throw new NetError("config", `${key} '${text}': others cannot reach that (give a real address)`);
    return literal;
  }
  const addresses = networkInterfaces()[text];
  const chosen =
    addresses?.find((one) => one.family === "IPv4") ??
    addresses?.find((one) => !/^fe80:/i.test(one.address)) ??
    addresses?.[0];
  if (chosen === undefined) {
    const names = Object.entries(networkInterfaces())
      .filter(([, list]) => list?.some((one) => !isLoopback(parseIp(one.address.replace(/%.*$/, "")))))
      .map(([interfaceName]) => interfaceName);
    throw new NetError(
      "config",
      `${key} '${text}': no such address or interface (this host has ${names.join(", ") || "none"})`,
    );
  }
  return parseIp(chosen.address.replace(/%.*$/, ""));
}
