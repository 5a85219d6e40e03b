/**
 * A client, two entry nodes and some backends in namespaces of this process: real packets through real rules.
 *
 *   client ── lan 192.168.77.0/24 ── node1, node2 ── ingress 10.255.0.0/24 ── backends ── blue 10.9.0.0/24
 *
 * The ingress network is a VXLAN-less bridge: what is tested here begins and ends at the legs.
 */
import { spawnSync } from "node:child_process";
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from "node:dgram";
import { createServer, Socket, type Server } from "node:net";
import { endpointId, networkId, nodeName, serviceId } from "../../src/base/id.ts";
import { type IpAddr, parseCidr, parseIp } from "../../src/base/ip.ts";
import { macFromIpv4 } from "../../src/base/mac.ts";
import { Conntrack } from "../../src/kernel/conntrack.ts";
import { NetlinkSocket } from "../../src/kernel/netlink-socket.ts";
import { Netns } from "../../src/kernel/netns.ts";
import { NftTableKeeper, type NftOutcome } from "../../src/kernel/nft.ts";
import { readDefaultSource, reconcileReturnPath } from "../../src/kernel/return-path.ts";
import { HOST, type MeshDesired, MeshPlanner } from "../../src/mesh/desired.ts";
import { planPurges, type FlowGroup } from "../../src/mesh/flows.ts";
import type { Backend, EntryNode, MeshProtocol, Sandbox, Service } from "../../src/mesh/input.ts";

export const BLUE = networkId("blue");
export const INGRESS_SUBNET = parseCidr("10.255.0.0/24");
const LEG = "na-ingress";

/** Namespaces need root; without it the tests that need them are skipped. */
export const canMakeNamespaces = process.getuid?.() === 0;

export class MeshLab implements AsyncDisposable {
  readonly client: Netns;
  readonly node1: LabNode;
  readonly node2: LabNode;
  readonly #prefix: string;
  readonly #made: string[] = [];
  readonly #closers: (() => void)[] = [];
  #backends = 0;
  static #labs = 0;

  constructor() {
    this.#prefix = `na-${process.pid}-${MeshLab.#labs++}`;
    try {
      for (const bridge of ["lan", "ing", "blue"]) {
        const netns = this.#netns(bridge);
        this.ip(netns, "link add name br0 type bridge", "link set br0 up", "link set lo up");
      }
      this.client = this.#netns("client");
      this.join(this.client, "lan", "eth0", "192.168.77.10/24");
      this.ip(this.client, "link set lo up", "route add default via 192.168.77.1");
      this.node1 = new LabNode(this, this.#netns("node1"), 1);
      this.node2 = new LabNode(this, this.#netns("node2"), 2);
    } catch (error) {
      this.#remove();
      throw error;
    }
  }

  /** One more namespace, removed with the lab. */
  namespace(name: string): Netns {
    return this.#netns(name);
  }

  #netns(name: string): Netns {
    const path = `/run/netns/${this.#prefix}-${name}`;
    const netns = Netns.create(path);
    this.#made.push(path);
    this.#closers.push(() => netns.close());
    return netns;
  }

  onClose(close: () => void): void {
    this.#closers.unshift(close);
  }

  /** `ip` commands in one namespace, in one process. */
  ip(netns: Netns, ...commands: readonly string[]): void {
    run("ip", ["-n", baseName(netns.path), "-batch", "-"], commands.join("\n"));
  }

  /** A veth pair from `netns` to a bridge; MAC as the overlay makes it: from the address. */
  join(netns: Netns, bridge: string, name: string, address: string): void {
    const ip = parseCidr(address).ip;
    const port = `p${ip.split(".").slice(2).join("-")}`;
    const bridgeNs = `${this.#prefix}-${bridge}`;
    run("ip", [
      "link",
      "add",
      "name",
      name,
      "address",
      macFromIpv4(ip),
      "netns",
      baseName(netns.path),
      "type",
      "veth",
      "peer",
      "name",
      port,
      "netns",
      bridgeNs,
    ]);
    run("ip", ["-n", bridgeNs, "-batch", "-"], `link set ${port} master br0\nlink set ${port} up`);
    this.ip(netns, `addr add ${address} dev ${name}`, `link set ${name} up`);
  }

  /** A sandbox with legs on blue and ingress; `defaultRoute` through blue. */
  backend(options: { readonly defaultRoute?: boolean } = {}): LabBackend {
    const number = 11 + this.#backends++;
    const netns = this.#netns(`b${number}`);
    this.ip(netns, "link set lo up");
    this.join(netns, "blue", "eth0", `10.9.0.${number}/24`);
    this.join(netns, "ing", "eth1", `10.255.0.${number}/24`);
    if (options.defaultRoute !== false) this.ip(netns, "route add default via 10.9.0.1");
    return new LabBackend(this, netns, number);
  }

  /** A sandbox with a leg on blue alone. */
  sandbox(number: number): LabBackend {
    const netns = this.#netns(`s${number}`);
    this.ip(netns, "link set lo up");
    this.join(netns, "blue", "eth0", `10.9.0.${number}/24`);
    return new LabBackend(this, netns, number);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#remove();
  }

  #remove(): void {
    for (const close of this.#closers) close();
    for (const path of this.#made) Netns.remove(path);
  }
}

/** A node: its mesh as the agent would run it. Sandboxes given to `apply` are local to it. */
export class LabNode {
  readonly netns: Netns;
  readonly address: IpAddr;
  readonly entry: EntryNode;
  readonly planner = new MeshPlanner();
  readonly keepers = new Map<string, NftTableKeeper>();
  readonly conntrack: Conntrack;
  readonly #lab: MeshLab;
  #flows: readonly FlowGroup[] = [];
  desired: MeshDesired | undefined;

  constructor(lab: MeshLab, netns: Netns, number: number) {
    this.#lab = lab;
    this.netns = netns;
    this.address = parseIp(`192.168.77.${number}`);
    const ip = parseIp(`10.255.0.${number + 1}`);
    this.entry = { ip, mac: macFromIpv4(ip) };
    lab.ip(netns, "link set lo up");
    lab.join(netns, "lan", "eth0", `${this.address}/24`);
    lab.join(netns, "ing", LEG, `${ip}/24`);
    this.conntrack = new Conntrack(netns);
    lab.onClose(() => {
      this.conntrack.close();
      for (const keeper of this.keepers.values()) keeper.close();
    });
  }

  async apply(
    services: readonly Service[],
    backends: readonly LabBackend[],
    options: { readonly keep?: boolean; readonly overlayRanges?: readonly string[] } = {},
  ): Promise<NftOutcome> {
    const sandboxes = backends.map((backend) =>
      backend.sandbox(services.find((service) => service.backends.some(({ ip }) => ip === backend.ip))),
    );
    const desired = this.planner.desired({
      node: {
        ingress: { ...this.entry, interface: LEG, subnet: INGRESS_SUBNET },
        entryNodes: [this.#lab.node1, this.#lab.node2].map((node) => node.entry),
        overlayRanges: (options.overlayRanges ?? ["10.9.0.0/24", "10.255.0.0/24"]).map(parseCidr),
        keepClientAddress: options.keep ?? true,
      },
      // What is local depends on the node that looks.
      services: services.map((service) => ({
        ...service,
        backends: service.backends.map((of) => ({ ...of, local: backends.some(({ ip }) => ip === of.ip) })),
      })),
      sandboxes,
    });
    this.desired = desired;
    let outcome: NftOutcome | undefined;
    for (const [namespace, state] of desired.namespaces) {
      const backend = backends.find(({ netns }) => netns.path === namespace);
      const netns = namespace === HOST ? this.netns : backend?.netns;
      if (netns === undefined) continue;
      for (const [name, value] of state.sysctls) netns.writeSysctl(name, value);
      if (state.returnPath !== undefined) {
        using socket = new NetlinkSocket("route", netns);
        reconcileReturnPath(socket, state.returnPath);
      }
      let keeper = this.keepers.get(namespace);
      if (keeper === undefined) this.keepers.set(namespace, (keeper = new NftTableKeeper(netns)));
      const done = await keeper.reconcile(state.ruleset);
      if (namespace === HOST) outcome = done;
    }
    for (const [namespace, purges] of planPurges(this.#flows, desired.flows, sandboxes)) {
      if (namespace === HOST) this.conntrack.purge(purges);
      const backend = backends.find(({ netns }) => netns.path === namespace);
      if (backend === undefined) continue;
      using conntrack = new Conntrack(backend.netns);
      conntrack.purge(purges);
    }
    this.#flows = desired.flows;
    if (outcome === undefined) throw new Error("the host has a state");
    return outcome;
  }
}

export class LabBackend {
  readonly netns: Netns;
  readonly ip: IpAddr;
  readonly ingressIp: IpAddr;
  readonly number: number;
  readonly #lab: MeshLab;
  readonly #hasIngress: boolean;

  constructor(lab: MeshLab, netns: Netns, number: number) {
    this.#lab = lab;
    this.netns = netns;
    this.number = number;
    this.ip = parseIp(`10.9.0.${number}`);
    this.ingressIp = parseIp(`10.255.0.${number}`);
    this.#hasIngress = !/-s\d+$/.test(netns.path);
  }

  sandbox(service?: Service): Sandbox {
    using socket = new NetlinkSocket("route", this.netns);
    const defaultSource = readDefaultSource(socket);
    return {
      namespace: this.netns.path,
      legs: [{ network: BLUE, ip: this.ip }],
      ...(this.#hasIngress
        ? {
            ingress: {
              interface: "eth1",
              ip: this.ingressIp,
              ...(service === undefined ? {} : { service: service.id }),
            },
          }
        : {}),
      ...(defaultSource === undefined ? {} : { defaultSource }),
    };
  }

  asBackend(options: Partial<Pick<Backend, "state" | "capable" | "avoid">> = {}): Backend {
    return {
      endpoint: endpointId(`endpoint${this.number}`),
      network: BLUE,
      ip: this.ip,
      ingressIp: this.ingressIp,
      node: nodeName("node1"),
      state: "ready",
      capable: true,
      local: false,
      ...options,
    };
  }

  /** Answers every connection with `NUMBER CLIENT-ADDRESS`, then a line for each line it gets. */
  serveTcp(port: number, address = "0.0.0.0"): void {
    const fd = this.netns.bindTcp(parseIp(address), { port, reuseAddress: true });
    const connections = new Set<Socket>();
    const server: Server = createServer((connection) => {
      connections.add(connection);
      connection.on("error", () => connection.destroy());
      connection.on("close", () => connections.delete(connection));
      connection.write(`${this.number} ${connection.remoteAddress ?? ""}\n`);
      connection.on("data", () => connection.write(`${this.number} again\n`));
    });
    server.listen({ fd });
    this.#lab.onClose(() => {
      server.close();
      for (const connection of connections) connection.destroy();
    });
  }

  /** Answers every datagram with `NUMBER CLIENT-ADDRESS`. */
  serveUdp(port: number, address = "0.0.0.0"): void {
    const socket = udpSocket(this.netns, address, port);
    socket.on("message", (_, from: RemoteInfo) => {
      socket.send(`${this.number} ${from.address}`, from.port, from.address, () => {});
    });
    this.#lab.onClose(() => socket.close());
  }
}

export interface ConnectOptions {
  readonly localPort?: number;
  readonly from?: string;
  /** When to call it silence. */
  readonly timeoutMs?: number;
}

/** A TCP connection from inside `netns`. Rejects with the socket's error. */
export function connectTcp(
  netns: Netns,
  host: string,
  port: number,
  options: ConnectOptions = {},
): Promise<TcpClient> {
  const fd = netns.bindTcp(parseIp(options.from ?? (host.includes(":") ? "::" : "0.0.0.0")), {
    port: options.localPort ?? 0,
    reuseAddress: true,
  });
  const socket = new Socket({ fd });
  return new Promise((resolve, reject) => {
    socket.once("error", reject);
    // The default is long enough for any machine: only a rule that drops instead of refusing gets here.
    socket.setTimeout(options.timeoutMs ?? 10_000, () =>
      socket.destroy(new Error(`no answer from ${host}:${port}`)),
    );
    socket.connect({ host, port }, () => {
      socket.removeListener("error", reject);
      resolve(new TcpClient(socket));
    });
  });
}

export class TcpClient {
  readonly socket: Socket;
  #text = "";
  #wake: (() => void) | undefined;
  #error: Error | undefined;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk) => {
      this.#text += chunk.toString();
      this.#wake?.();
    });
    socket.on("error", (error) => {
      this.#error = error;
      this.#wake?.();
    });
  }

  /** The next line the server sends. */
  async line(): Promise<string> {
    while (true) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      if (this.#error !== undefined) throw this.#error;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async ask(): Promise<string> {
    this.socket.write("?\n");
    return this.line();
  }

  close(): void {
    this.socket.resetAndDestroy();
  }
}

/** Connects, reads the greeting, closes. */
export async function greet(
  netns: Netns,
  host: string,
  port: number,
  options: ConnectOptions = {},
): Promise<string> {
  const client = await connectTcp(netns, host, port, options);
  try {
    return await client.line();
  } finally {
    client.close();
  }
}

export function udpSocket(netns: Netns, address: string, port: number): UdpSocket {
  const fd = netns.bindUdp(parseIp(address), { port });
  const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
  socket.bind({ fd });
  return socket;
}

/** One datagram there and one back; sent again every 200 ms until answered, as UDP clients do. */
export class UdpClient {
  readonly #socket: UdpSocket;

  constructor(netns: Netns, from = "0.0.0.0", port = 0) {
    this.#socket = udpSocket(netns, from, port);
  }

  /** Only a connected socket hears of an unreachable port. */
  connect(host: string, port: number): Promise<void> {
    return new Promise((resolve) => this.#socket.connect(port, host, () => resolve()));
  }

  /** Without a destination to the connected one. */
  ask(host?: string, port?: number): Promise<string> {
    return new Promise((resolve, reject) => {
      const sent = (error: Error | null): void => {
        if (error !== null) done(() => reject(error));
      };
      const send = (): void =>
        host === undefined ? this.#socket.send("?", sent) : this.#socket.send("?", port, host, sent);
      const timer = setInterval(send, 200);
      const done = (end: () => void): void => {
        clearInterval(timer);
        this.#socket.removeAllListeners("message").removeAllListeners("error");
        end();
      };
      this.#socket.once("message", (bytes) => done(() => resolve(bytes.toString())));
      this.#socket.once("error", (error) => done(() => reject(error)));
      send();
    });
  }

  close(): void {
    this.#socket.close();
  }
}

export function makeService(
  options: Partial<Omit<Service, "id">> & {
    readonly id?: string;
    readonly publish?: readonly [number, number, MeshProtocol][];
  },
): Service {
  const { id, publish, ...rest } = options;
  return {
    id: serviceId(id ?? "service1"),
    name: id ?? "service1",
    endpointMode: "vip",
    affinity: "none",
    ports: (publish ?? []).map(([published, target, protocol]) => ({
      published,
      target,
      protocol,
      mode: "ingress",
    })),
    vips: [],
    backends: [],
    ...rest,
  };
}

/** Runs a program inside a namespace to its end; its output. */
export function runIn(netns: Netns, command: string, args: readonly string[], input = ""): string {
  return run("ip", ["netns", "exec", baseName(netns.path), command, ...args], input);
}

function run(command: string, args: readonly string[], input = ""): string {
  const done = spawnSync(command, args, { input, encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${command} ${args.join(" ")}: ${done.stderr}\n${input}`);
  return done.stdout;
}

function baseName(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
