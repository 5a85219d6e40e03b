/** A cluster of processes, ours or serf's, each in a namespace with one veth on one bridge; watched by their logs. */

import { closeSync, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { ByteWriter } from "../../src/base/bytes.ts";
import { Client } from "../../src/cli/client.ts";
import {
  writeArrayHeader,
  writeBool,
  writeMapHeader,
  writeText,
  writeUnsigned,
} from "../../src/wire/msgpack.ts";
import type { Host } from "../host.ts";
import { Lab } from "../lab.ts";
import { SerfAgent } from "../serf.ts";

export type Kind = "ours" | "serf";

export type Traffic = { readonly bytes: number; readonly packets: number };

const TICKS_PER_SECOND = 100; // USER_HZ, the same on every Linux
const POLL_MS = 5;

export class Cluster implements AsyncDisposable {
  readonly kind: Kind;
  readonly lab = Lab.create();
  readonly #members: Watched[] = [];

  private constructor(kind: Kind) {
    this.kind = kind;
  }

  /** Running, and strangers to each other. */
  static async start(kind: Kind, size: number): Promise<Cluster> {
    const cluster = new Cluster(kind);
    try {
      for (let number = 1; number <= size; number++) {
        const host = cluster.lab.host(`m${number}`, `192.168.1.${10 + number}`);
        const member = new Watched(kind, host);
        cluster.#members.push(member);
      }
      // Two at a time: a dozen runtimes that start at once would time out on each other.
      for (let at = 0; at < size; at += 2)
        await Promise.all(cluster.#members.slice(at, at + 2).map((member) => member.start([])));
      return cluster;
    } catch (error) {
      cluster.lab.dispose();
      throw error;
    }
  }

  get size(): number {
    return this.#members.length;
  }

  /** Everybody else joins the first, at once; the time until all see all (s). */
  async joinAll(): Promise<number> {
    const [first, ...others] = this.#members;
    if (first === undefined) return 0;
    const commands = await Promise.all(others.map((member) => member.connect()));
    const start = performance.now();
    for (const command of commands) command(first.host.address);
    await this.#until(() => this.agree());
    return (performance.now() - start) / 1_000;
  }

  /** Whether all who run see all who run, and nobody else. */
  agree(): boolean {
    const running = this.#members.filter((member) => member.running);
    return running.every((observer) => {
      const seen = observer.alive();
      return seen.size === running.length && running.every((member) => seen.has(member.host.name));
    });
  }

  /** Waits until all see all (s), or gives up with NaN. */
  async agreed(withinMs: number): Promise<number> {
    const start = performance.now();
    return (await this.#until(() => this.agree(), withinMs)) ? (performance.now() - start) / 1_000 : NaN;
  }

  /** SIGKILL to a member other than the first; when the first and the last of the others knew (s). It starts again. */
  async kill(at: number): Promise<{ first: number; all: number }> {
    const victim = this.#members[1 + (at % (this.size - 1))];
    const seed = this.#members[0];
    if (victim === undefined || seed === undefined) return { first: NaN, all: NaN };
    const others = this.#members.filter((member) => member !== victim);
    const start = performance.now();
    victim.signal("SIGKILL");
    let first = NaN;
    const knows = (member: Watched): boolean => !member.alive().has(victim.host.name);
    const known = await this.#until(() => {
      const who = others.filter(knows).length;
      if (who > 0 && Number.isNaN(first)) first = (performance.now() - start) / 1_000;
      return who === others.length;
    });
    const all = known ? (performance.now() - start) / 1_000 : NaN;
    await victim.ended();
    await victim.start([seed.host]);
    await this.agreed(60_000);
    return { first, all };
  }

  signal(members: readonly number[], signal: NodeJS.Signals): void {
    for (const at of members) this.#members[at]?.signal(signal);
  }

  split(): void {
    const hosts = this.#members.map((member) => member.host);
    const half = Math.floor(hosts.length / 2);
    this.lab.partition(hosts.slice(0, half), hosts.slice(half));
  }

  /** Drops each IP packet with this probability, once on its way; 0 ends it. */
  async lose(probability: number): Promise<void> {
    const rule = `ether type ip numgen random mod 10000 < ${Math.round(probability * 10_000)} drop`;
    const table = [
      "add table bridge loss",
      "delete table bridge loss",
      ...(probability === 0
        ? []
        : [`table bridge loss { chain forward { type filter hook forward priority 1; ${rule}; }; }`]),
    ];
    await this.lab.fabric.exec(["nft", "-f", "-"], { input: `${table.join("\n")}\n` });
  }

  /** Verdicts so far that a member other than `except` is dead, summed over all observers. */
  deaths(except: readonly number[] = []): number {
    const names = new Set(except.map((at) => this.#members[at]?.host.name));
    let sum = 0;
    for (const member of this.#members)
      for (const [name, count] of member.deaths()) if (!names.has(name)) sum += count;
    return sum;
  }

  /** What the members have sent so far, as the bridge received it. */
  async traffic(): Promise<Traffic> {
    const ports = new Set(this.#members.map((member) => member.host.name));
    let [bytes, packets] = [0, 0];
    for (const line of (await this.lab.fabric.run("cat", "/proc/net/dev")).split("\n")) {
      const [name = "", rest = ""] = line.trim().split(/:\s*/);
      if (!ports.has(name)) continue;
      const [received = 0, count = 0] = rest.split(/\s+/).map(Number);
      bytes += received;
      packets += count;
    }
    return { bytes, packets };
  }

  /** CPU time of all members so far (s). */
  cpuSeconds(): number {
    return this.#members.reduce((sum, member) => sum + member.cpuSeconds(), 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.lab.dispose();
    for (const member of this.#members) member.close();
  }

  async #until(condition: () => boolean, withinMs = 120_000): Promise<boolean> {
    const start = performance.now();
    while (!condition()) {
      if (performance.now() - start > withinMs) return false;
      await pause(POLL_MS);
    }
    return true;
  }
}

/** One member and what its log has said: a view of the cluster that costs the member nothing to ask for. */
class Watched {
  readonly host: Host;
  readonly #kind: Kind;
  #serf: SerfAgent | undefined;
  #file: number | undefined;
  #offset = 0;
  #rest = "";
  /** Members of that name alive: a restarted netagent is a second one for a moment. */
  #alive = new Map<string, number>();
  readonly #deaths = new Map<string, number>();

  constructor(kind: Kind, host: Host) {
    this.#kind = kind;
    this.host = host;
  }

  async start(join: readonly Host[]): Promise<void> {
    this.#read();
    this.#alive = new Map();
    if (this.#kind === "serf") {
      // At debug level, as the lab starts it, serf would be measured with far more to write.
      this.#serf = await SerfAgent.start(this.host, { join, flags: ["-log-level", "info"] });
    } else await this.host.start({ join, flags: ["--log-format", "json"] });
  }

  get running(): boolean {
    return this.#kind === "serf" ? this.#serf?.running === true : this.host.agentRuns;
  }

  signal(signal: NodeJS.Signals): void {
    if (this.#kind === "serf") this.#serf?.signal(signal);
    else this.host.agent.signal(signal);
  }

  ended(): Promise<void> {
    return this.#kind === "serf" ? (this.#serf?.ended() ?? Promise.resolve()) : this.host.agentEnded();
  }

  alive(): ReadonlySet<string> {
    this.#read();
    return new Set([...this.#alive].flatMap(([name, count]) => (count > 0 ? [name] : [])));
  }

  deaths(): ReadonlyMap<string, number> {
    this.#read();
    return this.#deaths;
  }

  cpuSeconds(): number {
    const pid = this.#kind === "serf" ? this.#serf?.pid : this.host.agent.pid;
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /, "")
      .split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  }

  /** An open way to give the command, so that giving it costs nothing: `netctl` and `serf join` take long to start. */
  async connect(): Promise<(address: string) => void> {
    if (this.#kind === "ours") {
      const client = new Client(this.host.socketPath, () => undefined);
      return (address) =>
        void client.call("join", { addresses: [address], timeoutMs: 60_000 }).catch(() => undefined);
    }
    const path = join(this.host.folder, "rpc.sock");
    this.host.spawn(["socat", `UNIX-LISTEN:${path}`, "TCP:127.0.0.1:7373"]);
    const socket = await connected(path);
    socket.write(rpc("handshake", 0, (out) => writeUnsigned(writeName(writeMap(out, 1), "Version"), 1)));
    return (address) =>
      void socket.write(
        rpc("join", 1, (out) => {
          writeArrayHeader(writeName(writeMap(out, 2), "Existing"), 1);
          writeText(out, address);
          writeBool(writeName(out, "Replay"), false);
        }),
      );
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }

  #read(): void {
    if (this.#file === undefined) {
      try {
        this.#file = openSync(
          this.#kind === "serf" ? join(this.host.folder, "serf.log") : this.host.logFile,
          "r",
        );
      } catch {
        return; // not started yet
      }
    }
    const size = fstatSync(this.#file).size;
    if (size <= this.#offset) return;
    const bytes = Buffer.alloc(size - this.#offset);
    const length = readSync(this.#file, bytes, 0, bytes.length, this.#offset);
    this.#offset += length;
    const lines = (this.#rest + bytes.toString("utf8", 0, length)).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    const joined = /EventMemberJoin: (\S+)|"message":"(\S+) joined"/.exec(line);
    const name = joined?.[1] ?? joined?.[2];
    if (name !== undefined) return this.#add(this.#alive, name, 1);
    const gone = /EventMember(?:Failed|Leave): (\S+)|"message":"(\S+) is gone: /.exec(line);
    const lost = gone?.[1] ?? gone?.[2];
    if (lost === undefined) return;
    this.#add(this.#alive, lost, -1);
    this.#add(this.#deaths, lost, 1);
  }

  #add(counts: Map<string, number>, name: string, by: number): void {
    counts.set(name, (counts.get(name) ?? 0) + by);
  }
}

/** Serf's RPC: a msgpack header and body (serf cmd/serf/command/agent/ipc.go). */
function rpc(command: string, sequence: number, body: (out: ByteWriter) => void): Uint8Array {
  const out = new ByteWriter();
  writeText(writeName(writeMap(out, 2), "Command"), command);
  writeUnsigned(writeName(out, "Seq"), sequence);
  body(out);
  return out.finish();
}

function writeMap(out: ByteWriter, size: number): ByteWriter {
  writeMapHeader(out, size);
  return out;
}

function writeName(out: ByteWriter, name: string): ByteWriter {
  writeText(out, name);
  return out;
}

async function connected(path: string): Promise<ReturnType<typeof connect>> {
  for (let attempt = 0; ; attempt++) {
    const socket = connect(path);
    const open = await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true));
      socket.once("error", () => resolve(false));
    });
    if (open) {
      socket.on("data", () => undefined);
      socket.on("error", () => undefined);
      return socket;
    }
    if (attempt > 200) throw new Error(`nobody listens at ${path}`);
    await pause(20);
  }
}
