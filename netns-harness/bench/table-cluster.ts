/** 23 nodes in a few processes of one namespace, with real UDP and TCP sockets on loopback; driven step by step. */

import { fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import type { Lab } from "../lab.ts";
import { DIST, type Place } from "../place.ts";
import { LAB_VARIABLE } from "../teardown.ts";
import type { Command, NodeReport, Report } from "../programs/table-nodes.ts";

const FIRST_PORT = 20_000;
const POLL_MS = 20;
const PATIENCE_MS = 600_000;

type Task = Command extends infer One
  ? One extends { readonly ports: unknown }
    ? Omit<One, "ports">
    : never
  : never;

/** What all processes have used and sent so far. */
export type Usage = { readonly cpuMs: number; readonly trafficBytes: number; readonly largestBytes: number };

export class TableCluster implements Disposable {
  readonly ports: readonly number[];
  readonly #processes: readonly Worker[];

  private constructor(ports: readonly number[], processes: readonly Worker[]) {
    this.ports = ports;
    this.#processes = processes;
  }

  /** `size` nodes, the last one in a process of its own, the others in `processes` more. Joined to one swarm. */
  static async start(lab: Lab, size: number, processes: number): Promise<TableCluster> {
    const ports = Array.from({ length: size }, (_, index) => FIRST_PORT + index);
    const place = lab.host("tables", "192.168.1.61");
    const shares = Array.from({ length: processes }, (_, at) =>
      ports.slice(0, -1).filter((_port, index) => index % processes === at),
    );
    const workers = [...shares, ports.slice(-1)].map((share) => new Worker(place, share));
    const cluster = new TableCluster(ports, workers);
    try {
      for (const worker of workers) await worker.tell({ do: "open", ports: worker.ports });
      await Promise.all(
        workers.map((worker) =>
          worker.tell({
            do: "join",
            ports: worker.ports.filter((port) => port !== FIRST_PORT),
            seed: FIRST_PORT,
          }),
        ),
      );
      await cluster.until("all to see all", (node) => node.members === size);
    } catch (error) {
      cluster[Symbol.dispose]();
      throw error;
    }
    return cluster;
  }

  /** The same for each of the nodes on these ports. */
  async tell(ports: readonly number[], task: Task): Promise<void> {
    await Promise.all(
      this.#processes.map((worker) => {
        const own = worker.ports.filter((port) => ports.includes(port));
        return own.length === 0 ? undefined : worker.tell({ ...task, ports: own });
      }),
    );
  }

  /** Returns when it was written (ms since 1970). */
  async track(port: number, version: number): Promise<number> {
    const at = performance.timeOrigin + performance.now();
    const worker = this.#processes.find(({ ports }) => ports.includes(port));
    await worker?.tell({ do: "track", port, version });
    return at;
  }

  async nodes(): Promise<NodeReport[]> {
    const reports = await Promise.all(this.#processes.map((worker) => worker.tell({ do: "report" })));
    return reports.flatMap((report) => report.nodes);
  }

  /** Waits until `done` holds for all nodes, or for those on `ports`; how long that took (ms). */
  async until(
    what: string,
    done: (node: NodeReport) => boolean,
    ports: readonly number[] = this.ports,
  ): Promise<number> {
    const start = performance.now();
    for (;;) {
      const nodes = (await this.nodes()).filter((node) => ports.includes(node.port));
      if (nodes.every(done)) return performance.now() - start;
      if (performance.now() - start > PATIENCE_MS) {
        const wrong = nodes.filter((node) => !done(node));
        throw new Error(`waited for ${what}; ${wrong.length} nodes not so: ${JSON.stringify(wrong[0])}`);
      }
      await pause(POLL_MS);
    }
  }

  async usage(): Promise<Usage> {
    const reports = await Promise.all(this.#processes.map((worker) => worker.tell({ do: "report" })));
    return {
      cpuMs: reports.reduce((sum, { cpuMs }) => sum + cpuMs, 0),
      trafficBytes: reports[0]?.trafficBytes ?? NaN,
      largestBytes: Math.max(...reports.map(({ largestBytes }) => largestBytes)),
    };
  }

  /** Live memory of all processes after a collection. */
  async memoryBytes(): Promise<number> {
    let sum = 0;
    for (const worker of this.#processes) sum += (await worker.tell({ do: "weigh" })).memoryBytes;
    return sum;
  }

  [Symbol.dispose](): void {
    for (const worker of this.#processes) worker.end();
  }
}

/** One process, which answers one command at a time. */
class Worker {
  readonly ports: readonly number[];
  readonly #child: ChildProcess;
  #last: Promise<unknown> = Promise.resolve();

  constructor(place: Place, ports: readonly number[]) {
    this.ports = ports;
    this.#child = fork(join(DIST, "netns-harness/programs/table-nodes.js"), {
      execPath: "nsenter",
      execArgv: [`--net=${place.netnsPath}`, "--", process.execPath, "--expose-gc"],
      env: { ...process.env, [LAB_VARIABLE]: place.folder },
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
  }

  tell(command: Command): Promise<Report> {
    const answer = this.#last.then(() => this.#ask(command));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  end(): void {
    this.#child.kill("SIGKILL");
  }

  async #ask(command: Command): Promise<Report> {
    const ended = new AbortController();
    const answer = once(this.#child, "message", { signal: ended.signal }) as Promise<[Report]>;
    const gone = once(this.#child, "exit", { signal: ended.signal });
    this.#child.send(command);
    try {
      const first = await Promise.race([answer, gone.then(() => undefined)]);
      if (first === undefined) throw new Error(`a process of nodes ended while it should ${command.do}`);
      return first[0];
    } finally {
      answer.catch(() => undefined);
      gone.catch(() => undefined);
      ended.abort();
    }
  }
}
