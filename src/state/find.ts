import { NetError } from "../base/error.ts";
import { nearest } from "../base/nearest.ts";

interface Named {
  readonly id: string;
  readonly name: string;
  readonly created?: number;
}

/**
 * The object people mean by `reference`: exact id, else name, else unique id prefix.
 * `items` are in claim order, so of two objects with one name the owner of the name is found.
 * @throws NetError `KIND-unknown` or `KIND-ambiguous`
 */
export function findNamed<T extends Named>(kind: string, reference: string, items: readonly T[]): T {
  const exact = items.find((item) => item.id === reference) ?? items.find((item) => item.name === reference);
  if (exact !== undefined) return exact;
  const matches = reference === "" ? [] : items.filter((item) => item.id.startsWith(reference));
  const [match] = matches;
  if (match !== undefined && matches.length === 1) return match;
  if (match !== undefined) {
    const names = matches.map((item) => item.name).slice(0, 5);
    throw new NetError(
      `${kind}-ambiguous`,
      `${kind} '${reference}' could be ${names.join(", ")}: write more of the id`,
    );
  }
  const near = nearest(
    reference,
    items.map(({ name }) => name),
  );
  const hint =
    near !== undefined
      ? `did you mean '${printable(near)}'?`
      : items.length === 0
        ? "there is none"
        : `known are ${listNames(items)}`;
  throw new NetError(
    `${kind}-unknown`,
    `no ${kind} '${printable(reference)}': ${hint} (netctl ${kind} ls shows all)`,
  );
}

/** Control characters would let a name rewrite an operator's terminal. */
export function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, "?").slice(0, 80);
}

function listNames(items: readonly Named[]): string {
  const names = items.slice(0, 8).map((item) => printable(item.name));
  return items.length > names.length ? `${names.join(", ")}, …` : names.join(", ");
}
