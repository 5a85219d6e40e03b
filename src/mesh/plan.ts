/** Ruleset difference, element by element. */
import {
  compareKeys,
  flatten,
  formatRows,
  joinRows,
  rowLength,
  type Block,
  type Ruleset,
  type SetDefinition,
  type Skeleton,
} from "./ruleset.ts";

export interface ElementChange {
  readonly operation: "add" | "delete";
  readonly set: SetDefinition;
  /** Whole rows, for a deletion too. */
  readonly rows: Uint32Array;
}

/** From what is there to what should be. Nothing to do: no skeleton and no changes. */
export interface RulesetPlan {
  /** Replaces the table first, which empties every set; the changes then build on that. */
  readonly skeleton?: Skeleton;
  /** What was wrong with the table's structure, when that is why the skeleton is made anew. */
  readonly fault?: string;
  /** In order, all deletions before all additions: a key whose value changes is deleted and added. */
  readonly changes: readonly ElementChange[];
}

/** What the kernel holds: a table with a skeleton of ours and these rows, ascending by key, per set. */
export interface ActualTable {
  readonly comment: string;
  readonly rules: ReadonlyMap<string, number>;
  readonly rows: ReadonlyMap<string, Uint32Array>;
}

/** From one ruleset of ours to the next: looks only into groups that are not the same object in both. */
export function planUpdate(desired: Ruleset, previous: Ruleset): RulesetPlan {
  if (desired.skeleton.comment !== previous.skeleton.comment) return planFromNothing(desired);
  const changes = new ChangeList(desired.skeleton);
  const before = previous.groups;
  const after = desired.groups;
  let i = 0;
  let j = 0;
  while (i < before.length || j < after.length) {
    const old = before[i];
    const now = after[j];
    if (old === now) {
      i++;
      j++;
    } else if (now === undefined || (old !== undefined && old.id < now.id)) {
      for (const block of old?.blocks ?? []) changes.difference(block.set, block.rows, undefined);
      i++;
    } else if (old === undefined || now.id < old.id) {
      for (const block of now.blocks) changes.difference(block.set, undefined, block.rows);
      j++;
    } else {
      for (const { name } of desired.skeleton.sets)
        changes.difference(name, rowsOf(old.blocks, name), rowsOf(now.blocks, name));
      i++;
      j++;
    }
  }
  return { changes: changes.finish() };
}

/** From what was read back from the kernel. */
export function planRepair(
  desired: Ruleset,
  actual: ActualTable | undefined,
  /** Known from elsewhere, where counting chains and rules does not show it. */
  knownFault?: string,
): RulesetPlan {
  if (actual === undefined) return { ...planFromNothing(desired), fault: "it was gone" };
  const fault = skeletonFault(desired.skeleton, actual) ?? knownFault;
  if (fault !== undefined) return { ...planFromNothing(desired), fault };
  const changes = new ChangeList(desired.skeleton);
  for (const [set, rows] of flatten(desired)) changes.difference(set, actual.rows.get(set), rows);
  return { changes: changes.finish() };
}

/** Where the table is not the skeleton we made: its text, or a rule or set missing or added. Undefined: it stands. */
function skeletonFault(skeleton: Skeleton, actual: ActualTable): string | undefined {
  if (skeleton.comment !== actual.comment) return "it was not the one we made";
  for (const [chain, count] of skeleton.rules) {
    const found = actual.rules.get(chain) ?? 0;
    if (found !== count) return `chain ${chain} had ${found} rules instead of ${count}`;
  }
  for (const chain of actual.rules.keys())
    if (!skeleton.rules.has(chain)) return `it had a chain ${chain} that is not ours`;
  const lost = skeleton.sets.find(({ name }) => !actual.rows.has(name));
  return lost === undefined ? undefined : `set ${lost.name} was gone`;
}

export function isEmptyPlan(plan: RulesetPlan): boolean {
  return plan.skeleton === undefined && plan.changes.length === 0;
}

/** Elements added and deleted. */
export function planSize(plan: RulesetPlan): { readonly added: number; readonly deleted: number } {
  const size = { added: 0, deleted: 0 };
  for (const { operation, set, rows } of plan.changes)
    size[operation === "add" ? "added" : "deleted"] += rows.length / rowLength(set).total;
  return size;
}

/**
 * What was wrong with a table and is mended, one line: for events, doctor, trace and `netctl plan`. Elements are named
 * as far as a line has room for them.
 */
export function describeRepair({ skeleton, fault, changes }: RulesetPlan): string {
  if (skeleton !== undefined) return `${fault ?? "it is not there yet"}: made anew`;
  const parts = changes.map(({ operation, set, rows }) => {
    const count = rows.length / rowLength(set).total;
    const which = count <= ELEMENTS_NAMED ? ` (${formatRows(set, rows).join(", ")})` : "";
    const elements = count === 1 ? "1 element" : `${count} elements`;
    return operation === "add"
      ? `${set.name} lacked ${elements}${which}: added`
      : `${set.name} had ${elements} too many${which}: deleted`;
  });
  return parts.join("; ");
}

/** The same of what nobody has mended yet: `ports lacked 1 element: to be added`. */
export function asDue(repair: string): string {
  return repair.replace(/: (?=(made anew|added|deleted|set|led)\b)/g, ": to be ");
}

const ELEMENTS_NAMED = 3;

function planFromNothing(desired: Ruleset): RulesetPlan {
  const parts = new Map<string, Uint32Array[]>();
  for (const group of desired.groups) {
    for (const { set, rows } of group.blocks) {
      const list = parts.get(set);
      if (list === undefined) parts.set(set, [rows]);
      else list.push(rows);
    }
  }
  const changes: ElementChange[] = [];
  for (const set of desired.skeleton.sets) {
    const rows = joinRows(parts.get(set.name) ?? []);
    if (rows.length > 0) changes.push({ operation: "add", set, rows });
  }
  return { skeleton: desired.skeleton, changes };
}

function rowsOf(blocks: readonly Block[], set: string): Uint32Array | undefined {
  return blocks.find((block) => block.set === set)?.rows;
}

/** Collects rows per set and operation. */
class ChangeList {
  readonly #skeleton: Skeleton;
  readonly #deleted = new Map<string, Uint32Array[]>();
  readonly #added = new Map<string, Uint32Array[]>();

  constructor(skeleton: Skeleton) {
    this.#skeleton = skeleton;
  }

  /** Both ascend by key. */
  difference(setName: string, before: Uint32Array | undefined, after: Uint32Array | undefined): void {
    if (before === after) return;
    const set = this.#skeleton.sets.find(({ name }) => name === setName);
    if (set === undefined) return;
    const old = before ?? EMPTY;
    const now = after ?? EMPTY;
    const { key, total } = rowLength(set);
    for (let i = 0, j = 0; i < old.length || j < now.length;) {
      const order = i >= old.length ? 1 : j >= now.length ? -1 : compareKeys(old, i, now, j, key);
      if (order === 0) {
        if (compareKeys(old, i + key, now, j + key, total - key) !== 0) {
          push(this.#deleted, setName, old.subarray(i, i + total));
          push(this.#added, setName, now.subarray(j, j + total));
        }
        i += total;
        j += total;
      } else if (order < 0) {
        push(this.#deleted, setName, old.subarray(i, i + total));
        i += total;
      } else {
        push(this.#added, setName, now.subarray(j, j + total));
        j += total;
      }
    }
  }

  finish(): ElementChange[] {
    const changes: ElementChange[] = [];
    for (const [operation, parts] of [
      ["delete", this.#deleted],
      ["add", this.#added],
    ] as const) {
      for (const set of this.#skeleton.sets) {
        const rows = parts.get(set.name);
        if (rows !== undefined) changes.push({ operation, set, rows: joinRows(rows) });
      }
    }
    return changes;
  }
}

const EMPTY = new Uint32Array(0);

function push(parts: Map<string, Uint32Array[]>, set: string, rows: Uint32Array): void {
  const list = parts.get(set);
  if (list === undefined) parts.set(set, [rows]);
  else list.push(rows);
}
