/**
 * Removing a lab, and finding what is left of one. Synchronous throughout: it also runs in signal handlers and while
 * the process exits. Touches only what carries the lab's mark: namespaces and control groups with its prefix, processes
 * inside those namespaces or started with its environment variable, mounts below its directory.
 */

import { spawnSync } from "node:child_process";
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statSync,
  type Dirent,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * Every process of a lab is started with this variable, holding the folder of its place (below the lab's folder);
 * children inherit it.
 */
export const LAB_VARIABLE = "NETAGENT_LAB";
/** In the lab's directory: which process owns it; and, when present, that it is meant to outlive that process. */
export const OWNER_FILE = "owner";
export const KEPT_FILE = "kept";

/** How long a killed process may take to disappear (ms); SIGKILL needs a few. */
const KILL_PATIENCE_MS = 5_000;
const KILL_ROUNDS = 5;
const NETNS_FOLDER = "/run/netns";
const CGROUP_FOLDER = "/sys/fs/cgroup";

/**
 * What identifies a lab: the prefix of its namespaces (`na-4711-`) and its folder (`/tmp/na-4711`). One place of it
 * has such a mark, too: `na-4711-node1-` (with `na-4711-node1` itself) and `/tmp/na-4711/node1`.
 */
export type LabMark = { readonly prefix: string; readonly folder: string };

/** The mark of lab number `sequence` (0 …) of process `pid`. */
export function labMark(pid: number, sequence: number): LabMark {
  const id = sequence === 0 ? `na-${pid}` : `na-${pid}.${sequence}`;
  return { prefix: `${id}-`, folder: join(tmpdir(), id) };
}

/** Pid and start time of a process, which together never repeat; undefined when it is gone. */
export function processIdentity(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The name in parentheses may contain anything; fields count from behind it. Field 22 is the start time.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? undefined : `${pid} ${fields[19] ?? ""}`;
  } catch {
    return undefined;
  }
}

/** Ends and removes everything that carries the mark. Idempotent; returns what could not be removed. */
export function tearDown(lab: LabMark): string[] {
  // A process may fork while the list is made: look again until a look finds nothing, or something cannot be killed.
  for (let round = 0; round < KILL_ROUNDS; round++) {
    removeOnce(lab);
    if (leftovers(lab).length === 0) return [];
  }
  return leftovers(lab);
}

/**
 * What a power failure does to one place: processes and kernel state go, files stay. `place` is the place's mark.
 * @throws Error when something survives.
 */
export function cutPower(place: LabMark): void {
  for (let round = 0; round < KILL_ROUNDS; round++) {
    removeLiving(place);
    const kinds = [labProcesses(place), labMounts(place), labNamespaces(place), labCgroups(place)];
    if (kinds.every((left) => left.length === 0)) return;
  }
  throw new Error(`power off ${place.prefix}*: still there: ${leftovers(place).join("; ")}`);
}

function removeLiving(lab: LabMark): void {
  kill(labProcesses(lab));
  for (const mount of labMounts(lab)) spawnSync("umount", ["--lazy", mount]);
  for (const name of labNamespaces(lab)) spawnSync("ip", ["netns", "delete", name]);
  for (const folder of labCgroups(lab)) {
    try {
      rmdirSync(folder);
    } catch {
      // Gone, or its last process is still on its way out: found by leftovers().
    }
  }
}

function removeOnce(lab: LabMark): void {
  removeLiving(lab);
  try {
    rmSync(lab.folder, { recursive: true, force: true });
  } catch {
    // Found by leftovers().
  }
}

/** One line per object that still carries the mark; empty when the lab left nothing. */
export function leftovers(lab: LabMark): string[] {
  return [
    ...labProcesses(lab).map((pid) => `process ${pid}: ${commandLine(pid)}`),
    ...labMounts(lab).map((mount) => `mount ${mount}`),
    ...labNamespaces(lab).map((name) => `namespace ${name}`),
    ...labCgroups(lab).map((folder) => `control group ${folder}`),
    ...(existsSync(lab.folder) ? [`folder ${lab.folder}`] : []),
  ];
}

/** Tears down labs whose process is gone, kept ones excepted. Returns a line for each. */
export function sweepStaleLabs(): string[] {
  const marks = new Map<string, LabMark>();
  for (const name of [...list(NETNS_FOLDER), ...list(tmpdir())]) {
    const match = /^na-(\d+)(?:\.(\d+))?(?:-|$)/.exec(name);
    if (match?.[1] === undefined) continue;
    const pid = Number(match[1]);
    if (isOwnerAlive(pid)) continue; // owner files of all labs of a process say the same
    for (const mark of [
      labMark(pid, 0),
      ...(match[2] === undefined ? [] : [labMark(pid, Number(match[2]))]),
    ]) {
      if (!isKept(mark)) marks.set(mark.prefix, mark);
    }
  }
  const lines: string[] = [];
  for (const mark of marks.values()) {
    if (leftovers(mark).length === 0) continue;
    const rest = tearDown(mark);
    lines.push(
      `removed what a crashed run left as ${mark.prefix}*${rest.map((line) => `; still there: ${line}`)}`,
    );
  }
  return lines;
}

/** Labs that were kept on purpose. */
export function keptLabs(): LabMark[] {
  return list(tmpdir()).flatMap((name) => {
    const match = /^na-(\d+)(?:\.(\d+))?$/.exec(name);
    if (match?.[1] === undefined) return [];
    const mark = labMark(Number(match[1]), Number(match[2] ?? 0));
    return isKept(mark) ? [mark] : [];
  });
}

function isKept(lab: LabMark): boolean {
  return existsSync(join(lab.folder, KEPT_FILE));
}

function isOwnerAlive(pid: number): boolean {
  const identity = processIdentity(pid);
  if (identity === undefined) return false;
  try {
    return readFileSync(join(labMark(pid, 0).folder, OWNER_FILE), "utf8") === identity;
  } catch {
    // No owner file: somebody else's namespace by that pattern. Its process lives, so it is in use.
    return true;
  }
}

/** Processes inside the lab's namespaces, pinned ones included, or started with its variable. Never our own. */
function labProcesses(lab: LabMark): number[] {
  const inodes = new Set<string>();
  for (const path of [...labNamespaces(lab).map((name) => join(NETNS_FOLDER, name)), ...labMounts(lab)]) {
    try {
      inodes.add(`net:[${statSync(path).ino}]`);
    } catch {
      // Gone between listing and looking.
    }
  }
  inodes.delete(readlinkSync("/proc/self/ns/net"));
  const variable = `\0${LAB_VARIABLE}=${lab.folder}`;
  return list("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map(Number)
    .filter((pid) => {
      if (processIdentity(pid) === undefined) return false;
      try {
        if (inodes.has(readlinkSync(`/proc/${pid}/ns/net`))) return true;
        const environment = `\0${readFileSync(`/proc/${pid}/environ`, "latin1")}`;
        return environment.includes(`${variable}\0`) || environment.includes(`${variable}/`);
      } catch {
        return false;
      }
    });
}

function labMounts(lab: LabMark): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "")
    .filter((path) => path.startsWith(`${lab.folder}/`))
    .reverse(); // the innermost first
}

function labNamespaces(lab: LabMark): string[] {
  return list(NETNS_FOLDER).filter((name) => `${name}-`.startsWith(lab.prefix));
}

/** Folders of control groups the lab's dockerds made, the innermost first: below every hierarchy (v1) or the root (v2). */
function labCgroups(lab: LabMark): string[] {
  const hierarchies = [CGROUP_FOLDER, ...list(CGROUP_FOLDER).map((name) => join(CGROUP_FOLDER, name))];
  return hierarchies.flatMap((hierarchy) =>
    list(hierarchy)
      .filter((name) => `${name}-`.startsWith(lab.prefix))
      .flatMap((name) => foldersBelow(join(hierarchy, name))),
  );
}

/** The folder itself comes last. */
function foldersBelow(folder: string): string[] {
  let entries: Dirent[] = [];
  try {
    entries = readdirSync(folder, { withFileTypes: true });
  } catch {
    // Gone.
  }
  return [
    ...entries.filter((entry) => entry.isDirectory()).flatMap(({ name }) => foldersBelow(join(folder, name))),
    folder,
  ];
}

function kill(pids: readonly number[]): void {
  for (const pid of pids) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Gone already.
    }
  }
  const deadline = Date.now() + KILL_PATIENCE_MS;
  while (pids.some((pid) => processIdentity(pid) !== undefined) && Date.now() < deadline) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
  }
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
  } catch {
    return "gone";
  }
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
