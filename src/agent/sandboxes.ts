import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { errorCode, errorText, NetError } from "../base/error.ts";
import { randomHex } from "../base/id.ts";
import type { Random } from "../base/random.ts";
import { setLink } from "../kernel/links.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { Netns } from "../kernel/netns.ts";

/** A namespace made for `netctl run`, owned by the process that asked for it. */
export interface OwnedSandbox {
  readonly path: string;
  readonly resolvConf: string;
  readonly ownerPid: number;
  /** Start time of the owner in clock ticks since boot, so that a reused pid is not taken for it. */
  readonly ownerStart: string;
}

const record = z.object({ ownerPid: z.number().int(), ownerStart: z.string() });

/**
 * Namespaces of `netctl run`: `RUNDIR/netns/run-XXXXXXXX`, with a file beside each that names its owner, so that
 * the next start of the agent knows what may go.
 */
export class Sandboxes {
  readonly #directory: string;
  readonly #random: Random;
  /** False once there were none, until one is made: looking again would find nothing. */
  #anyOwned = true;

  constructor(runDir: string, random: Random) {
    this.#directory = join(runDir, "netns");
    this.#random = random;
    mkdirSync(this.#directory, { recursive: true, mode: 0o755 });
  }

  /** A new namespace with loopback up. @throws NetError when the owner is gone or the kernel refuses. */
  create(ownerPid: number): OwnedSandbox {
    const ownerStart = processStart(ownerPid);
    if (ownerStart === undefined)
      throw new NetError("no-process", `create a sandbox: process ${ownerPid} does not exist`);
    const path = join(this.#directory, `run-${randomHex(this.#random, 8)}`);
    this.#anyOwned = true;
    writeFileSync(`${path}.json`, JSON.stringify({ ownerPid, ownerStart }), { mode: 0o600 });
    writeFileSync(`${path}.resolv.conf`, "nameserver 127.0.0.11\noptions ndots:0\n", { mode: 0o644 });
    try {
      using created = Netns.create(path);
      using socket = new NetlinkSocket("route", created);
      setLink(socket, `bring lo up in ${path}`, { name: "lo", up: true });
    } catch (error) {
      this.#forget(path);
      throw error;
    }
    return { path, resolvConf: `${path}.resolv.conf`, ownerPid, ownerStart };
  }

  /** Unpins and forgets; nothing there is not an error. @throws NetError for a path that is not one of ours. */
  remove(path: string): void {
    if (!this.owns(path)) throw new NetError("not-ours", `remove sandbox ${path}: netagent did not make it`);
    Netns.remove(path);
    this.#forget(path);
  }

  owns(path: string): boolean {
    return (
      path.startsWith(`${this.#directory}/run-`) && !path.slice(this.#directory.length + 1).includes("/")
    );
  }

  /** Whether a namespace is there, ours or anybody's. */
  exists(path: string): boolean {
    try {
      using _netns = Netns.open(path);
      return true;
    } catch (error) {
      if (errorCode(error) === "NETNS_MISSING") return false;
      throw error;
    }
  }

  /** Sandboxes whose owner is gone: their endpoints and they themselves are to be removed. */
  orphans(): OwnedSandbox[] {
    if (!this.#anyOwned) return [];
    const all = this.#all();
    this.#anyOwned = all.length > 0;
    return all.filter((sandbox) => processStart(sandbox.ownerPid) !== sandbox.ownerStart);
  }

  #all(): OwnedSandbox[] {
    const found: OwnedSandbox[] = [];
    for (const file of readdirSync(this.#directory)) {
      const match = /^(run-[0-9a-f]{8})\.json$/.exec(file);
      if (match === null) continue;
      const path = join(this.#directory, match[1] ?? "");
      try {
        const { ownerPid, ownerStart } = record.parse(JSON.parse(readFileSync(`${path}.json`, "utf8")));
        found.push({ path, resolvConf: `${path}.resolv.conf`, ownerPid, ownerStart });
      } catch (error) {
        // Half-written by a killed agent: nobody can own it.
        found.push({ path, resolvConf: `${path}.resolv.conf`, ownerPid: 0, ownerStart: errorText(error) });
      }
    }
    return found;
  }

  #forget(path: string): void {
    for (const file of [`${path}.json`, `${path}.resolv.conf`]) if (existsSync(file)) rmSync(file);
  }
}

/** Field 22 of /proc/PID/stat; undefined when there is no such process (zombies count as gone). */
export function processStart(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The command name may hold spaces and brackets: the fields begin after the last bracket.
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}
