import {
  accessSync,
  closeSync,
  constants,
  fsyncSync,
  ftruncateSync,
  linkSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { DecodeError, errorCode, errorText, NetError } from "../base/error.ts";
import { decodeSnapshot, type Snapshot } from "../wire/state/snapshot.ts";
import { makeDirectory, removeIfPossible } from "./atomic-file.ts";

const STATE_FILE = "state.bin";
const LOCK_FILE = "lock";
/** Room for what one request can add. */
const RESERVE_BYTES = 16 * 1024;

/**
 * What survives a restart: one file in the data directory, written whole, and a lock that keeps a second agent
 * out. Calls are synchronous: what comes after a save may only happen when it is on disk, and a save is one write.
 */
export class Store {
  readonly directory: string;
  /** What the last life saved; undefined at the first start. */
  readonly snapshot: { readonly bytes: Uint8Array; readonly value: Snapshot } | undefined;
  readonly #lock: string;
  #open = true;

  private constructor(directory: string, lock: string, snapshot: Store["snapshot"]) {
    this.directory = directory;
    this.#lock = lock;
    this.snapshot = snapshot;
  }

  /**
   * Locks the directory (made when missing) and reads the state.
   * @throws NetError `directory-failed`, `data-dir-failed`, `data-dir-in-use` (names the holder's pid), `state-corrupt` (the file is
   * kept aside under another name)
   */
  static open(directory: string): Store {
    const path = join(directory, LOCK_FILE);
    try {
      makeDirectory(directory, 0o700);
      takeLock(directory, path);
    } catch (error) {
      if (error instanceof NetError) throw error;
      throw failure("open data directory", directory, error);
    }
    try {
      return new Store(directory, path, load(directory));
    } catch (error) {
      rmSync(path, { force: true });
      throw error;
    }
  }

  /**
   * Returns when `bytes` are safely on disk in place of what was there, with the reason why there will be no room for
   * the next ones, if so: what is begun then cannot be finished. @throws NetError `state-save-failed`
   */
  save(bytes: Uint8Array): NetError | undefined {
    if (!this.#open) throw new NetError("state-save-failed", `save state in ${this.directory}: it is closed`);
    const path = join(this.directory, STATE_FILE);
    const temporary = `${path}.new`;
    try {
      // Not truncated: it holds the room that the last save set aside.
      const file = openSync(temporary, constants.O_WRONLY | constants.O_CREAT, 0o600);
      try {
        writeAll(file, bytes);
        ftruncateSync(file, bytes.length);
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(temporary, path);
      syncDirectory(this.directory);
    } catch (error) {
      removeIfPossible(temporary);
      throw saveFailure(path, error);
    }
    return setAside(temporary, bytes.length + RESERVE_BYTES, path);
  }

  /** Why nothing can be saved, if the directory cannot be written: a file system with errors is made read-only. */
  check(): NetError | undefined {
    try {
      accessSync(this.directory, constants.W_OK);
      return undefined;
    } catch (error) {
      return saveFailure(join(this.directory, STATE_FILE), error);
    }
  }

  /** Gives up the lock; nothing can be saved any more. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    removeIfPossible(join(this.directory, `${STATE_FILE}.new`));
    removeIfPossible(this.#lock);
  }
}

/** Makes sure that the next state has room, be the disk full by then. */
function setAside(temporary: string, length: number, path: string): NetError | undefined {
  try {
    const file = openSync(temporary, "w", 0o600);
    try {
      writeAll(file, new Uint8Array(length));
    } finally {
      closeSync(file);
    }
    return undefined;
  } catch (error) {
    removeIfPossible(temporary);
    return saveFailure(path, error);
  }
}

function writeAll(file: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at);
}

function saveFailure(path: string, error: unknown): NetError {
  return new NetError(
    "state-save-failed",
    `save state as ${path}: ${errorText(error)} (free some space or make it writable; until then this node gives no address and changes no definition)`,
    { cause: error },
  );
}

function load(directory: string): Store["snapshot"] {
  const path = join(directory, STATE_FILE);
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    if (errorCode(error) === "ENOENT") return undefined;
    throw failure("read state", path, error);
  }
  try {
    return { bytes, value: decodeSnapshot(bytes) };
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    const aside = `${path}.corrupt-${freeNumber(`${path}.corrupt-`)}`;
    renameSync(path, aside);
    throw new NetError(
      "state-corrupt",
      `read state from ${path}: ${error.message}; the file is kept as ${aside}. Put a good copy back, or start again to come back as a new node: ` +
        `definitions then come from the other nodes, and netctl node rm OLD-NODE frees its addresses`,
      { cause: error },
    );
  }
}

/** The lock names its holder: pid and the start time of that process, since pids are used again. */
function takeLock(directory: string, path: string): void {
  const mine = join(directory, `${LOCK_FILE}.${process.pid}`);
  writeFileSync(mine, lockText(process.pid), { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < 10; attempt++) {
      try {
        // link, not create and write: the lock is never seen empty.
        linkSync(mine, path);
        return;
      } catch (error) {
        if (errorCode(error) !== "EEXIST") throw error;
      }
      const text = readIfThere(path);
      if (text === undefined) continue;
      const holder = Number.parseInt(text, 10);
      if (Number.isInteger(holder) && lockText(holder) === text) {
        throw new NetError(
          "data-dir-in-use",
          `open data directory ${directory}: netagent with pid ${holder} uses it; stop that one, or give this one another --data-dir`,
        );
      }
      removeStale(path, text);
    }
    throw new NetError(
      "data-dir-in-use",
      `open data directory ${directory}: other agents keep taking its lock`,
    );
  } finally {
    unlinkSync(mine);
  }
}

/** Two agents may find the same stale lock; one must not remove the lock the other has just taken. */
function removeStale(path: string, stale: string): void {
  const aside = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if (errorCode(error) === "ENOENT") return;
    throw error;
  }
  try {
    if (readIfThere(aside) !== stale) linkSync(aside, path);
  } catch (error) {
    if (errorCode(error) !== "EEXIST") throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

/** `PID START`, START in clock ticks since boot; of a process that is gone (or only waits to be reaped) `PID `. */
function lockText(pid: number): string {
  const stat = readIfThere(`/proc/${pid}/stat`);
  // Field 2, the name, may hold spaces and parentheses; after it come the state and, as field 22, START.
  const [state, ...fields] = stat?.slice(stat.lastIndexOf(")") + 2).split(" ") ?? [];
  return state === undefined || state === "Z" ? `${pid} ` : `${pid} ${fields[18]}`;
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (errorCode(error) === "ENOENT" || errorCode(error) === "ESRCH") return undefined;
    throw error;
  }
}

function syncDirectory(directory: string): void {
  const file = openSync(directory, "r");
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

function freeNumber(prefix: string): number {
  for (let number = 1; ; number++) if (readIfThere(`${prefix}${number}`) === undefined) return number;
}

function failure(what: string, path: string, error: unknown): NetError {
  const cure =
    errorCode(error) === "EACCES" || errorCode(error) === "EROFS"
      ? " (run as root, or give a writable --data-dir)"
      : "";
  return new NetError("data-dir-failed", `${what} ${path}: ${errorText(error)}${cure}`, { cause: error });
}
