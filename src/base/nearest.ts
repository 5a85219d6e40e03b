/** What somebody may have meant who wrote a name nobody has. */

const MAX_DISTANCE = 3;

/** The known name that `name` begins, or else the one at a small edit distance; undefined when none stands out. */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  // Of a short name half is as much as may be wrong.
  let best = Math.min(MAX_DISTANCE, Math.ceil(name.length / 2)) + 1;
  let found: string | undefined;
  for (const candidate of known) {
    const distance =
      name !== "" && candidate.startsWith(name)
        ? 1
        : Math.abs(candidate.length - name.length) >= best
          ? best
          : editDistance(name, candidate);
    if (distance >= best) continue;
    best = distance;
    found = candidate;
  }
  return found;
}

/** ` (did you mean 'X'?)`, or nothing: for the end of a refusal. */
export function nearestText(name: string, known: Iterable<string>): string {
  const near = nearest(name, known);
  return near === undefined ? "" : ` (did you mean '${near}'?)`;
}

/** Levenshtein distance. */
function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      current.push(Math.min(substitution, (previous[j] ?? 0) + 1, (current[j - 1] ?? 0) + 1));
    }
    previous = current;
  }
  return previous[b.length] ?? 0;
}
