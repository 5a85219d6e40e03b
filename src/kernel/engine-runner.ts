/**
 * The one engine of a node, for all its networks: it runs while there is a network and holds no port, thread or
 * descriptor otherwise. Keeps what the engine forwards by, and publishes it whole after a round of changes.
 *
 * The table is also written to a file, as the kernel would keep it for a VXLAN device: a restarted agent forwards at
 * once to whom its former life forwarded, long before the tables have come back by gossip.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DecodeError, errorCode, NetError } from "../base/error.ts";
import type { Vni } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import { decodeEngineTable, type EngineNetwork, encodeEngineTable } from "../overlay/engine-table.ts";
import { plainBytes } from "../transport/plain-bytes.ts";
import { Engine, type EngineNetworkOptions } from "./engine.ts";
import { isSyscallError } from "./native.ts";
import type { EntryStep } from "./neighbors.ts";
import type { Netns } from "./netns.ts";

export interface EngineRunnerOptions {
  /** Has the underlay. */
  readonly host: Netns;
  /** Data-path addresses, at least one; the first of a family is the source of what we send. */
  readonly addresses: readonly IpAddr[];
  /** Where the table is kept, in a file of its own. */
  readonly runDirectory: string;
}

export interface RunnerNetwork extends EngineNetworkOptions {
  /** Data-path port: one for all networks. */
  readonly port: number;
  /** Forwards at once by the entries it had before. Default false: it starts with none. */
  readonly adopt?: boolean;
  /** Its entries are not written to the file. Default false. */
  readonly passing?: boolean;
}

/** What the engine forwards by on one network. */
export interface EngineEntries {
  readonly fdb: Map<MacAddr, IpAddr>;
  readonly neighbors: Map<IpAddr, MacAddr>;
}

/** Changes within this time are written to the file together. */
const SAVE_MS = 500;
/** How much longer than publishing took nothing is published, while more is being entered. */
const PUBLISH_REST = 20;

const TABLE_FILE = "engine-table";
/** Written first, so that a torn one never has the table's name. */
const NEW_SUFFIX = ".new";

/** Removes the table that an engine's former life has left. */
export function removeEngineTable(runDirectory: string): void {
  const path = join(runDirectory, TABLE_FILE);
  for (const file of [path, `${path}${NEW_SUFFIX}`]) rmSync(file, { force: true });
}

export class EngineRunner {
  readonly #options: EngineRunnerOptions;
  /** Of attached networks, and of those the former life had and nobody has asked for yet. */
  readonly #entries: Map<Vni, EngineEntries>;
  readonly #tableFile: string;
  readonly #attached = new Set<Vni>();
  /** Of the former life, and not attached yet. */
  readonly #inherited = new Set<Vni>();
  /** Not to be remembered: they die with the process. */
  readonly #passing = new Set<Vni>();
  #engine: { readonly engine: Engine; readonly port: number } | undefined;
  #unpublished = false;
  #restUntil = 0;
  #grouping = true;
  #changes = 0;
  #saving: NodeJS.Timeout | undefined;
  readonly #counted = new Map<string, number>();

  constructor(options: EngineRunnerOptions) {
    this.#options = options;
    this.#tableFile = join(options.runDirectory, TABLE_FILE);
    this.#entries = readTable(this.#tableFile);
    for (const vni of this.#entries.keys()) this.#inherited.add(vni);
  }

  /**
   * Moves the network's frames from now on; the queues are the engine's, unless it throws. `what` begins the error.
   * @throws NetError
   */
  attach(network: RunnerNetwork, what: string): void {
    const { port, passing, adopt, ...options } = network;
    const { vni } = options;
    if (this.#attached.has(vni))
      throw new NetError("VNI_IN_USE", `${what}: EEXIST (another network of this node has VNI ${vni})`);
    try {
      this.#start(port, what).addNetwork(options);
    } catch (error) {
      this.#stopUnused();
      throw engineError(what, error);
    }
    this.#attached.add(vni);
    this.#inherited.delete(vni);
    if (passing === true) this.#passing.add(vni);
    if (adopt !== true) this.forget(vni);
    this.#unpublished = true;
    this.publish();
  }

  /** Closes the network's queues. Its entries stay, for the next `attach`. */
  detach(vni: Vni): void {
    if (!this.#attached.delete(vni)) return;
    if (this.#passing.delete(vni)) this.#entries.delete(vni);
    this.#engine?.engine.removeNetwork(vni);
    this.#stopUnused();
  }

  /** Forgets the network's entries. */
  forget(vni: Vni): void {
    if (this.#entries.delete(vni)) this.#changed();
  }

  /** Whether there are entries of a former life on networks that nobody has attached yet. */
  get inherits(): boolean {
    return this.#inherited.size > 0;
  }

  /** Nobody will: forgets them. */
  disinherit(): void {
    for (const vni of this.#inherited) this.forget(vni);
    this.#inherited.clear();
  }

  /** Counts what was entered or forgotten since the beginning, of whichever network. */
  get changes(): number {
    return this.#changes;
  }

  /** A live view. */
  entries(vni: Vni): Readonly<{
    fdb: ReadonlyMap<MacAddr, IpAddr>;
    neighbors: ReadonlyMap<IpAddr, MacAddr>;
  }> {
    return this.#entries.get(vni) ?? { fdb: new Map(), neighbors: new Map() };
  }

  /** Takes effect with the next `publish`. */
  enter(vni: Vni, steps: readonly EntryStep[]): void {
    const entries = this.#entries.get(vni) ?? { fdb: new Map(), neighbors: new Map() };
    this.#entries.set(vni, entries);
    for (const step of steps) enterStep(entries, step);
    if (steps.length > 0) this.#changed();
  }

  /**
   * Whether the engine is to get datagrams of a flow by the bunch. Where single ones do not come here, a bunch would be
   * overtaken by those after it.
   */
  setGrouping(on: boolean): void {
    if (on === this.#grouping) return;
    this.#grouping = on;
    this.#engine?.engine.setGrouping(on);
  }

  /** Tells the engine what was entered since the last time. */
  publish(): void {
    if (!this.#unpublished || this.#engine === undefined) return;
    this.#unpublished = false;
    const begun = performance.now();
    this.#engine.engine.publish(this.#networks((vni) => this.#attached.has(vni)));
    const ended = performance.now();
    this.#restUntil = ended + PUBLISH_REST * (ended - begun);
  }

  /** The same, unless it was done just now: a large table is entered in many pieces, and published whole each time. */
  publishSoon(): void {
    if (performance.now() >= this.#restUntil) this.publish();
  }

  /** Sums over every engine this process has had. */
  counters(): Readonly<Record<string, number>> {
    const sums: Record<string, number> = Object.fromEntries(this.#counted);
    if (this.#engine === undefined) return sums;
    for (const [name, value] of Object.entries(this.#engine.engine.counters()))
      sums[name] = (sums[name] ?? 0) + value;
    return sums;
  }

  /** Frames stop; the file has the last word for the next life. */
  close(): void {
    clearTimeout(this.#saving);
    if (this.#saving !== undefined) this.#save();
    this.#attached.clear();
    this.#stopUnused();
  }

  #start(port: number, what: string): Engine {
    if (this.#engine === undefined) {
      const { addresses, host } = this.#options;
      const engine = new Engine({ addresses, port, netnsFd: host.fd });
      engine.setGrouping(this.#grouping);
      this.#engine = { engine, port };
    }
    if (this.#engine.port !== port) {
      const text = `${what}: EBUSY (all networks of a node have one data-path port, and that is ${this.#engine.port})`;
      throw new NetError("EBUSY", text);
    }
    return this.#engine.engine;
  }

  #stopUnused(): void {
    if (this.#attached.size > 0 || this.#engine === undefined) return;
    for (const [name, value] of Object.entries(this.counters())) this.#counted.set(name, value);
    this.#engine.engine.close();
    this.#engine = undefined;
  }

  #changed(): void {
    this.#changes++;
    this.#unpublished = true;
    this.#saving ??= setTimeout(() => this.#save(), SAVE_MS).unref();
  }

  #save(): void {
    this.#saving = undefined;
    try {
      const bytes = encodeEngineTable(this.#networks((vni) => !this.#passing.has(vni)));
      writeFileSync(`${this.#tableFile}${NEW_SUFFIX}`, bytes, { mode: 0o600 });
      renameSync(`${this.#tableFile}${NEW_SUFFIX}`, this.#tableFile);
    } catch (error) {
      // Without the file the next life waits for gossip, as a first one does.
      if (errorCode(error) === undefined) throw error;
    }
  }

  *#networks(wanted: (vni: Vni) => boolean): Generator<EngineNetwork> {
    for (const [vni, entries] of this.#entries) if (wanted(vni)) yield { vni, ...entries };
  }
}

function enterStep({ fdb, neighbors }: EngineEntries, step: EntryStep): void {
  switch (step.type) {
    case "set-fdb":
      fdb.set(step.mac, step.vtep);
      break;
    case "set-neighbor":
      neighbors.set(step.ip, step.mac);
      break;
    case "delete-neighbor":
      neighbors.delete(step.ip);
      break;
    case "delete-fdb":
      fdb.delete(step.mac);
      break;
  }
}

function readTable(path: string): Map<Vni, EngineEntries> {
  try {
    const networks = decodeEngineTable(plainBytes(readFileSync(path)));
    return new Map(
      networks.map(({ vni, fdb, neighbors }) => [vni, { fdb: new Map(fdb), neighbors: new Map(neighbors) }]),
    );
  } catch (error) {
    // None yet, or one of another version or a torn one: as good as none.
    if (errorCode(error) === undefined && !(error instanceof DecodeError)) throw error;
    return new Map();
  }
}

function engineError(what: string, error: unknown): unknown {
  if (!isSyscallError(error)) return error;
  const { code, syscall, object } = error;
  const cure =
    code === "EADDRINUSE"
      ? `${object} is taken by another program or by a VXLAN device of the kernel; see 'ss -lunp'`
      : `${syscall} ${object}`;
  return new NetError(code, `${what}: ${code} (${cure})`, { cause: error });
}
