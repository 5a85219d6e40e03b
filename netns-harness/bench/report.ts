/** Figures of a bench: samples per variant, medians, ratios, goals; as a table for people and as JSON. */

import { writeFileSync } from "node:fs";

export type Goal =
  | {
      readonly type: "ratio";
      readonly of: string;
      readonly to: string;
      readonly bound: "≥" | "≤";
      readonly value: number;
    }
  | { readonly type: "value"; readonly of: string; readonly bound: "≥" | "≤"; readonly value: number };

/** One line of the table. */
export type Figure = {
  readonly name: string;
  readonly unit: string;
  /** Per variant, one sample a round; rounds are comparable across variants. */
  readonly samples: Readonly<Record<string, readonly number[]>>;
  readonly goal?: Goal;
};

/** Middle value; the mean of the two middle ones for an even count. NaN without values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? NaN;
  const lower = sorted[Math.floor((sorted.length - 1) / 2)] ?? NaN;
  return (upper + lower) / 2;
}

/** Median of the ratios round by round, which drift of the machine between rounds does not move. */
export function ratio(figure: Figure, of: string, to: string): number {
  const numerators = figure.samples[of] ?? [];
  const denominators = figure.samples[to] ?? [];
  return median(
    numerators.flatMap((value, round) => {
      const denominator = denominators[round];
      return denominator === undefined || denominator === 0 ? [] : [value / denominator];
    }),
  );
}

export function goalResult(figure: Figure): { measured: number; met: boolean } | undefined {
  const { goal } = figure;
  if (goal === undefined) return undefined;
  const measured =
    goal.type === "ratio" ? ratio(figure, goal.of, goal.to) : median(figure.samples[goal.of] ?? []);
  if (Number.isNaN(measured)) return undefined;
  return { measured, met: goal.bound === "≥" ? measured >= goal.value : measured <= goal.value };
}

/** A table at most 80 columns wide: medians per variant, ratios asked for, goal and whether it is met. */
export function table(
  figures: readonly Figure[],
  variants: readonly string[],
  ratios: readonly { title: string; of: string; to: string }[],
): string {
  const rows = [
    ["", ...variants, ...ratios.map((column) => column.title), "goal", "met"],
    ...figures.map((figure) => {
      const result = goalResult(figure);
      return [
        `${figure.name}, ${figure.unit}`,
        ...variants.map((variant) => short(median(figure.samples[variant] ?? []))),
        ...ratios.map((column) => short(ratio(figure, column.of, column.to))),
        figure.goal === undefined ? "" : `${figure.goal.bound} ${figure.goal.value}`,
        result === undefined ? "" : result.met ? "yes" : "no",
      ];
    }),
  ];
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => width(row[column] ?? "")))) ?? [];
  return rows
    .map((row) =>
      row
        .map((cell, column) => {
          const space = " ".repeat((widths[column] ?? 0) - width(cell));
          return column === 0 || column === row.length - 1 ? cell + space : space + cell;
        })
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** Everything measured, with medians and goals, as one JSON document. */
export function json(title: string, figures: readonly Figure[]): string {
  return `${JSON.stringify(
    {
      bench: title,
      figures: figures.map((figure) => ({
        ...figure,
        medians: Object.fromEntries(
          Object.entries(figure.samples).map(([variant, samples]) => [variant, median(samples)]),
        ),
        result: goalResult(figure),
      })),
    },
    null,
    2,
  )}\n`;
}

/** Writes the JSON document where `--json` said: a file, or `-` for standard output. */
export function writeJson(target: string, document: string): void {
  if (target === "-") process.stdout.write(document);
  else writeFileSync(target, document);
}

/** Three significant digits, with `k` and `M` for thousands and millions; "–" for what was not measured. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const [scaled, suffix] =
    value >= 1e6 ? [value / 1e6, "M"] : value >= 10e3 ? [value / 1e3, "k"] : [value, ""];
  const digits = scaled >= 100 ? 0 : scaled >= 10 ? 1 : 2;
  return `${scaled.toFixed(digits)}${suffix}`;
}

/** One line on a terminal, overwritten by the next; an empty one clears it. */
export function progress(line: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${line}`);
  else if (line !== "") console.error(line);
}

function width(cell: string): number {
  return [...cell].length;
}
