/**
 * Two hosts joined by a bridge, one endpoint on each, one overlay network between them: each side with the
 * kernel's VXLAN device or with the userspace engine. For the engine's tests and its benchmark.
 */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { assert } from "../../src/base/assert.ts";
import { vni } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { parseMac } from "../../src/base/mac.ts";
import { Engine, ENGINE_TAP } from "../../src/kernel/engine.ts";
import { Netns } from "../../src/kernel/netns.ts";
import { engineGsoMaxSize, type EngineNetwork } from "../../src/overlay/engine-table.ts";

export type Side = "kernel" | "engine";
/** `bridge`: veth, bridge, overlay device, as Docker has it. `macvlan`: a child of the overlay device. */
export type Layout = "bridge" | "macvlan";

export interface LabOptions {
  readonly sides: readonly [Side, Side];
  readonly layout?: Layout;
  readonly underlay?: "ipv4" | "ipv6";
  readonly spinMicros?: number;
  readonly tunnelOffload?: boolean;
  readonly port?: number;
}

export const LAB_VNI = vni(4097);
const OVERLAY = ["10.99.0.2", "10.99.0.3"] as const;
const OVERLAY6 = ["fd99::2", "fd99::3"] as const;
const MACS = ["02:42:0a:63:00:02", "02:42:0a:63:00:03"] as const;
const UNDERLAY = { ipv4: ["192.0.2.1", "192.0.2.2"], ipv6: ["2001:db8::1", "2001:db8::2"] } as const;

const project = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
let labs = 0;

/** The native programs of native/test; built when absent or older than their source. */
export function nativeProgram(name: "traffic" | "frames"): string {
  const source = join(project, `native/test/${name}.cc`);
  const program = join(project, `native/build/test/${name}`);
  if (!existsSync(program) || statSync(program).mtimeMs < statSync(source).mtimeMs) {
    mkdirSync(dirname(program), { recursive: true });
    execFileSync("g++", ["-std=c++20", "-O2", "-Wall", "-Wextra", "-pthread", "-o", program, source]);
  }
  return program;
}

export class EngineLab implements Disposable {
  readonly engines: readonly (Engine | undefined)[];
  readonly #prefix: string;
  readonly #options: LabOptions;
  readonly #namespaces: string[] = [];
  readonly #children: ChildProcess[] = [];

  constructor(options: LabOptions) {
    this.#options = options;
    this.#prefix = `na-${process.pid}-${labs++}`;
    try {
      this.#underlay();
      this.engines = [this.#side(0), this.#side(1)];
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Overlay address of an endpoint. */
  address(side: 0 | 1, family: "ipv4" | "ipv6" = "ipv4"): string {
    return family === "ipv4" ? OVERLAY[side] : OVERLAY6[side];
  }

  mac(side: 0 | 1): string {
    return MACS[side];
  }

  vtep(side: 0 | 1): string {
    return UNDERLAY[this.#options.underlay ?? "ipv4"][side];
  }

  host(side: 0 | 1): string {
    return `${this.#prefix}-h${side}`;
  }

  /** Where the bridge between the hosts is; the ports are p0 and p1. */
  get wire(): string {
    return `${this.#prefix}-w`;
  }

  endpoint(side: 0 | 1): string {
    return `${this.#prefix}-e${side}`;
  }

  /** Where the overlay device is. */
  overlay(side: 0 | 1): string {
    return `${this.#prefix}-o${side}`;
  }

  /** Runs a program in a namespace and returns what it printed. Throws when it fails. */
  run(namespace: string, program: string, ...args: string[]): string {
    return execFileSync("ip", ["netns", "exec", namespace, program, ...args], {
      encoding: "utf8",
      timeout: 120_000,
      stdio: ["ignore", "pipe", "pipe"],
    }).trim();
  }

  /** `traffic` at one endpoint, while this process keeps running its event loop or not. */
  traffic(side: 0 | 1, ...args: string[]): string {
    return this.run(this.endpoint(side), nativeProgram("traffic"), ...args);
  }

  /** Sends `count` frames of `frames` from one endpoint and returns what the other one says of them. */
  async frames(from: 0 | 1, count: number): Promise<string> {
    const to = from === 0 ? 1 : 0;
    const args = ["receive", "eth0", this.mac(from), String(count)];
    const receiver = spawn("ip", ["netns", "exec", this.endpoint(to), nativeProgram("frames"), ...args]);
    this.#children.push(receiver);
    let said = "";
    await new Promise<void>((ready, fail) => {
      receiver.stdout.on("data", (chunk: Buffer) => ((said += chunk.toString()), ready()));
      receiver.stderr.on("data", (chunk: Buffer) => (said += chunk.toString()));
      receiver.once("exit", () => fail(new Error(said)));
    });
    const ended = new Promise((done) => receiver.once("close", done));
    this.run(
      this.endpoint(from),
      nativeProgram("frames"),
      "send",
      "eth0",
      this.mac(from),
      this.mac(to),
      String(count),
    );
    await ended;
    return said.replace("ready", "").trim();
  }

  /** The servers of `traffic` at one endpoint; resolves when they listen. */
  serve(side: 0 | 1, family: "ipv4" | "ipv6" = "ipv4"): Promise<void> {
    const args = [
      "netns",
      "exec",
      this.endpoint(side),
      nativeProgram("traffic"),
      "serve",
      this.address(side, family),
    ];
    const child = spawn("ip", args, { stdio: ["ignore", "pipe", "inherit"] });
    this.#children.push(child);
    return new Promise((done, fail) => {
      child.stdout.once("data", () => done());
      child.once("exit", (code) => fail(new Error(`traffic serve ended with ${code}`)));
    });
  }

  /** What every engine of the lab is told: the other endpoint, behind the other host. */
  publish(side: 0 | 1, vtep: string = this.vtep(side === 0 ? 1 : 0)): void {
    this.engines[side]?.publish([this.#network(side, vtep)]);
  }

  [Symbol.dispose](): void {
    for (const child of this.#children) child.kill("SIGKILL");
    for (const engine of this.engines ?? []) engine?.close();
    for (const namespace of this.#namespaces) ip("netns", "del", namespace);
  }

  #network(side: 0 | 1, vtep: string): EngineNetwork {
    const other = side === 0 ? 1 : 0;
    const mac = parseMac(MACS[other]);
    return {
      vni: LAB_VNI,
      fdb: new Map([[mac, parseIp(vtep)]]),
      neighbors: new Map([
        [parseIp(OVERLAY[other]), mac],
        [parseIp(OVERLAY6[other]), mac],
      ]),
    };
  }

  get #mtu(): number {
    return (this.#options.underlay ?? "ipv4") === "ipv4" ? 1450 : 1430;
  }

  #namespace(name: string): string {
    ip("netns", "add", name);
    this.#namespaces.push(name);
    ip("-n", name, "link", "set", "lo", "up");
    return name;
  }

  #underlay(): void {
    this.#namespace(this.host(0));
    this.#namespace(this.host(1));
    const wire = this.#namespace(this.wire);
    ip("-n", wire, "link", "add", "name", "br0", "type", "bridge");
    ip("-n", wire, "link", "set", "br0", "up");
    for (const side of [0, 1] as const) {
      const port = `p${side}`;
      ip("-n", this.host(side), "link", "add", "u0", "type", "veth", "peer", "name", port, "netns", wire);
      ip("-n", wire, "link", "set", port, "master", "br0", "up");
    }
    for (const side of [0, 1] as const) {
      const length = this.#options.underlay === "ipv6" ? 64 : 24;
      ip(
        "-n",
        this.host(side),
        "addr",
        "add",
        `${this.vtep(side)}/${length}`,
        "dev",
        "u0",
        ...(length === 64 ? ["nodad"] : []),
      );
      ip("-n", this.host(side), "link", "set", "u0", "up");
    }
  }

  #side(side: 0 | 1): Engine | undefined {
    const kind = this.#options.sides[side];
    const overlay = this.#namespace(this.overlay(side));
    const endpoint = this.#namespace(this.endpoint(side));
    const engine = kind === "engine" ? this.#engine(side, overlay) : undefined;
    if (kind === "kernel") this.#vxlan(side, overlay);
    ip("-n", overlay, "link", "set", "ov0", "mtu", String(this.#mtu), "up");
    if ((this.#options.layout ?? "bridge") === "bridge") {
      ip("-n", overlay, "link", "add", "name", "br0", "mtu", String(this.#mtu), "type", "bridge");
      ip("-n", overlay, "link", "set", "ov0", "master", "br0");
      ip(
        "-n",
        overlay,
        "link",
        "add",
        "veth0",
        "mtu",
        String(this.#mtu),
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "mtu",
        String(this.#mtu),
        "netns",
        endpoint,
      );
      ip("-n", overlay, "link", "set", "veth0", "master", "br0", "up");
      ip("-n", overlay, "link", "set", "br0", "up");
    } else {
      ip("-n", overlay, "link", "add", "name", "mv0", "link", "ov0", "type", "macvlan", "mode", "bridge");
      ip("-n", overlay, "link", "set", "mv0", "netns", endpoint, "name", "eth0");
    }
    const gso = kind === "engine" ? ["gso_max_size", String(engineGsoMaxSize(this.#mtu))] : [];
    ip("-n", endpoint, "link", "set", "eth0", "address", MACS[side], ...gso, "up");
    ip("-n", endpoint, "addr", "add", `${OVERLAY[side]}/24`, "dev", "eth0");
    ip("-n", endpoint, "addr", "add", `${OVERLAY6[side]}/64`, "dev", "eth0", "nodad");
    if (kind === "kernel") this.#kernelPeers(side, overlay);
    return engine;
  }

  #engine(side: 0 | 1, overlay: string): Engine {
    using host = Netns.open(`/run/netns/${this.host(side)}`);
    using inside = Netns.open(`/run/netns/${overlay}`);
    const { spinMicros: spin, tunnelOffload } = this.#options;
    const engine = new Engine({
      addresses: [parseIp(this.vtep(side))],
      netnsFd: host.fd,
      ...(this.#options.port === undefined ? {} : { port: this.#options.port }),
      ...(spin === undefined ? {} : { spinMicros: spin }),
      ...(tunnelOffload === undefined ? {} : { tunnelOffload }),
    });
    engine.addNetwork({ vni: LAB_VNI, mtu: this.#mtu, tapFds: [inside.openTap("ov0", ENGINE_TAP)] });
    engine.publish([this.#network(side, this.vtep(side === 0 ? 1 : 0))]);
    return engine;
  }

  /** As Docker makes it: in the host's namespace, for its UDP socket, then moved. */
  #vxlan(side: 0 | 1, overlay: string): void {
    // Of the IPv6 family by its local address; Docker writes `group ::`, which newer iproute2 refuses.
    const family = this.#options.underlay === "ipv6" ? ["local", this.vtep(side)] : [];
    ip(
      "-n",
      this.host(side),
      "link",
      "add",
      "ov0",
      "type",
      "vxlan",
      "id",
      String(LAB_VNI),
      ...family,
      "dstport",
      String(this.#options.port ?? 4789),
      "proxy",
      "l2miss",
      "l3miss",
      "udpcsum",
    );
    ip("-n", this.host(side), "link", "set", "ov0", "netns", overlay);
  }

  #kernelPeers(side: 0 | 1, overlay: string): void {
    const other = side === 0 ? 1 : 0;
    execFileSync("bridge", [
      "-n",
      overlay,
      "fdb",
      "add",
      MACS[other],
      "dev",
      "ov0",
      "dst",
      this.vtep(other),
      "self",
      "permanent",
    ]);
    for (const address of [OVERLAY[other], OVERLAY6[other]]) {
      ip("-n", overlay, "neigh", "add", address, "lladdr", MACS[other], "dev", "ov0", "nud", "permanent");
    }
  }
}

export function ip(...args: string[]): string {
  try {
    return execFileSync("ip", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    assert(error instanceof Error, "execFileSync throws errors");
    throw new Error(`ip ${args.join(" ")}: ${error.message}`, { cause: error });
  }
}
