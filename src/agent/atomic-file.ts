import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, resolve } from "node:path";
import { errorCode, errorText, NetError } from "../base/error.ts";

/** Replaces the file whole (mode 0600); on return it is on disk. @throws NetError `save-failed` */
export function writeAtomically(path: string, text: string): void {
  const temporary = `${path}.new`;
  try {
    const file = openSync(temporary, "w", 0o600);
    try {
      // Not writeSync, which may write less than all.
      writeFileSync(file, text);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, path);
    const directory = openSync(dirname(path), "r");
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  } catch (cause) {
    removeIfPossible(temporary);
    throw new NetError(
      "save-failed",
      `save ${path}: ${errorText(cause)} (free some space or make it writable)`,
      { cause },
    );
  }
}

/**
 * Makes the directory and what is missing above it. Not with node's `recursive`, which never returns below a directory
 * that refuses children with ENOENT, such as /proc. @throws NetError `directory-failed`
 */
export function makeDirectory(path: string, mode: number): void {
  try {
    const missing: string[] = [];
    for (let at = resolve(path); !existsSync(at); at = dirname(at)) missing.push(at);
    for (const directory of missing.reverse()) makeOne(directory, mode);
    if (!statSync(path).isDirectory()) throw new Error("it is not a directory");
  } catch (cause) {
    throw new NetError(
      "directory-failed",
      `make directory ${path}: ${errorText(cause)} (choose another, or make the one above it writable)`,
      { cause },
    );
  }
}

/** Another agent that starts now may be quicker. */
function makeOne(directory: string, mode: number): void {
  try {
    mkdirSync(directory, mode);
  } catch (error) {
    if (errorCode(error) !== "EEXIST") throw error;
  }
}

/** Where a failure has been told already, or nothing depends on it. */
export function removeIfPossible(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // Such as a file system that was made read-only.
  }
}

/** Undefined when there is no such file. */
export function readIfPresent(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (errorCode(error) === "ENOENT") return undefined;
    throw error;
  }
}
