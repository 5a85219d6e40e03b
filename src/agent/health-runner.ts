import { spawn } from "node:child_process";
import { Socket } from "node:net";
import { errorText } from "../base/error.ts";
import type { EndpointId } from "../base/id.ts";
import { parseIp, type IpAddr } from "../base/ip.ts";
import { Netns } from "../kernel/netns.ts";
import type { Agent, Dependent } from "./agent.ts";
import type { EndpointRecord } from "./endpoints.ts";

const CHECK_MS = 1_000;
/** A check that takes longer has failed. */
const TIMEOUT_MS = 3_000;
/** Failures in a row before a backend leaves the rotation: one may be a moment's load. A single success brings it back. */
const FAILURES = 2;

/** What one check came to; undefined when the backend is well, else why not, for people. */
type Outcome = string | undefined;

interface Checked {
  running: boolean;
  failures: number;
}

/**
 * Checks this node's backends that have `--health-tcp` or `--health-cmd` and takes the failing ones out of rotation.
 * Their own node alone judges them, and says so in their rows. A new endpoint is out until it has passed once; one of a
 * former life of this agent is in until it fails.
 */
export class HealthRunner implements Dependent {
  readonly #agent: Agent;
  readonly #checked = new Map<EndpointId, Checked>();
  #timer: NodeJS.Timeout | undefined;

  constructor(agent: Agent) {
    this.#agent = agent;
    for (const { id } of agent.endpoints.all()) this.#checked.set(id, { running: false, failures: 0 });
  }

  /** An idle node's wakeups are most of what it costs: there is a timer only while there is something to check. */
  refresh(): void {
    if (this.#agent.endpoints.all().some(hasCheck))
      this.#timer ??= setInterval(() => this.#checkAll(), CHECK_MS).unref();
    else this.close();
  }

  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #checkAll(): void {
    const { endpoints } = this.#agent;
    for (const id of this.#checked.keys()) if (endpoints.get(id) === undefined) this.#checked.delete(id);
    for (const record of endpoints.all()) {
      if (record.kind !== "user" || !hasCheck(record)) continue;
      let checked = this.#checked.get(record.id);
      if (checked === undefined) this.#checked.set(record.id, (checked = { running: false, failures: 0 }));
      if (checked.running) continue;
      checked.running = true;
      void this.#check(record, checked);
    }
  }

  async #check(record: EndpointRecord, checked: Checked): Promise<void> {
    const outcome = await examine(record).catch((error: unknown) => errorText(error));
    checked.running = false;
    const { endpoints } = this.#agent;
    if (endpoints.get(record.id) === undefined) return;
    const name = record.name || record.id.slice(0, 12);
    if (outcome === undefined) {
      checked.failures = 0;
      if (!endpoints.unhealthy.delete(record.id)) return;
      this.#agent.event("endpoint-healthy", name, "its health check passed");
    } else {
      checked.failures++;
      if (checked.failures < FAILURES || endpoints.unhealthy.has(record.id)) return;
      endpoints.unhealthy.add(record.id);
      this.#agent.event("endpoint-unhealthy", name, outcome);
      this.#agent.log.warn({}, `endpoint ${name} is out of rotation: ${outcome}`);
    }
    this.#agent.publish();
  }
}

export function hasCheck(record: Pick<EndpointRecord, "healthTcp" | "healthCmd">): boolean {
  return record.healthTcp !== undefined || record.healthCmd !== undefined;
}

/** All of its checks, inside its namespace. */
async function examine(record: EndpointRecord): Promise<Outcome> {
  if (record.sandbox.type !== "netns") return undefined;
  const { path } = record.sandbox;
  if (record.healthTcp !== undefined) {
    const outcome = await connects(path, record.ip, record.healthTcp);
    if (outcome !== undefined) return outcome;
  }
  return record.healthCmd === undefined ? undefined : succeeds(path, record.healthCmd);
}

function connects(path: string, ip: IpAddr, port: number): Promise<Outcome> {
  using netns = Netns.open(path);
  // Bound in there and connected from here: a socket stays in the namespace it was made in.
  const socket = new Socket({ fd: netns.bindTcp(parseIp("0.0.0.0"), { port: 0 }) });
  return new Promise((resolve) => {
    const end = (outcome: Outcome): void => {
      socket.destroy();
      resolve(outcome);
    };
    socket.setTimeout(TIMEOUT_MS, () => end(`port ${port} does not answer`));
    socket.once("error", (error) => end(`port ${port}: ${errorText(error)}`));
    socket.connect({ host: ip, port }, () => end(undefined));
  });
}

function succeeds(path: string, command: string): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn("nsenter", [`--net=${path}`, "--", "sh", "-c", command], {
      stdio: "ignore",
      detached: true,
    });
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      // The whole group: a shell's children would outlive it.
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, TIMEOUT_MS);
    child.once("error", (error) => {
      clearTimeout(timer);
      resolve(`run its check: ${errorText(error)}`);
    });
    child.once("exit", (code, signal) => {
      clearTimeout(timer);
      if (code === 0) resolve(undefined);
      else if (late) resolve(`its check took longer than ${TIMEOUT_MS} ms`);
      else resolve(`its check ended with ${signal ?? `exit code ${code ?? "?"}`}`);
    });
  });
}
