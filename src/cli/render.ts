/** Text for people: aligned tables within the width of the terminal, colour only where it is wanted. */

export interface Column<Row> {
  readonly title: string;
  readonly value: (row: Row) => string;
  /** Columns may be dropped, highest number first, until the table fits; 0 or absent is never dropped. */
  readonly drop?: number;
  /** Before anything is dropped this column is cut, to no less than `SHRUNK_MIN` characters. */
  readonly shrink?: boolean;
  readonly colour?: (row: Row) => Colour | undefined;
}

export type Colour = "green" | "yellow" | "red" | "dim";
const CODES: Readonly<Record<Colour, string>> = { green: "32", yellow: "33", red: "31", dim: "2" };

export interface Screen {
  readonly columns: number;
  readonly colour: boolean;
}

export function screenOf(
  stream: { isTTY?: boolean; columns?: number },
  env: Readonly<Record<string, string | undefined>>,
): Screen {
  const terminal = stream.isTTY === true;
  // An empty NO_COLOR counts as unset (no-color.org).
  const noColour = env["NO_COLOR"] !== undefined && env["NO_COLOR"] !== "";
  return {
    columns: terminal ? (stream.columns ?? 80) : Number.POSITIVE_INFINITY,
    colour: terminal && !noColour && env["TERM"] !== "dumb",
  };
}

export function paint(text: string, colour: Colour | undefined, screen: Screen): string {
  return screen.colour && colour !== undefined ? `\u001b[${CODES[colour]}m${text}\u001b[0m` : text;
}

const SHRUNK_MIN = 24;

/** Header and one line a row, two spaces between columns, ending in a newline. */
export function renderTable<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  screen: Screen,
): string {
  let shown = [...columns];
  let widths = widthsOf(rows, shown, screen);
  while (total(widths) > screen.columns) {
    const victim = shown.reduce<Column<Row> | undefined>(
      (worst, column) => ((column.drop ?? 0) > (worst?.drop ?? 0) ? column : worst),
      undefined,
    );
    if (victim === undefined) break;
    shown = shown.filter((column) => column !== victim);
    widths = widthsOf(rows, shown, screen);
  }
  const line = (cells: readonly string[], paints: readonly (Colour | undefined)[]): string =>
    cells
      .map((cell, index) => {
        const width = widths[index] ?? 0;
        const fitting = cell.length > width ? `${cell.slice(0, width - 1)}…` : cell;
        const padded = index === cells.length - 1 ? fitting : fitting.padEnd(width);
        return paint(padded, paints[index], screen);
      })
      .join("  ");
  const lines = [
    line(
      shown.map((column) => column.title),
      shown.map(() => "dim"),
    ),
  ];
  for (const row of rows)
    lines.push(
      line(
        shown.map((column) => column.value(row)),
        shown.map((column) => column.colour?.(row)),
      ),
    );
  return `${lines.join("\n")}\n`;
}

/** `KEY  VALUE` lines, keys aligned. */
export function renderPairs(pairs: readonly (readonly [string, string])[], screen: Screen): string {
  const width = Math.max(...pairs.map(([key]) => key.length));
  return pairs.map(([key, value]) => `${paint(key.padEnd(width), "dim", screen)}  ${value}\n`).join("");
}

/** Lines no wider than the screen, those after the first indented; a word that is wider stays whole. */
export function wrap(text: string, indent: number, { columns }: Screen): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line.trim() !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = " ".repeat(indent) + word;
    } else line += line === "" && lines.length === 0 ? word : ` ${word}`;
  }
  return `${[...lines, line].join("\n")}\n`;
}

/** First 12 characters, as docker shows ids. */
export function shortId(id: string): string {
  return id.slice(0, 12);
}

/** `3s`, `4m`, `2h`, `5d`. */
export function age(milliseconds: number): string {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

function widthsOf<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  screen: Screen,
): readonly number[] {
  const widths = columns.map((column) =>
    rows.reduce((widest, row) => Math.max(widest, column.value(row).length), column.title.length),
  );
  const excess = total(widths) - screen.columns;
  return widths.map((width, index) =>
    excess > 0 && columns[index]?.shrink === true
      ? Math.min(width, Math.max(SHRUNK_MIN, width - excess))
      : width,
  );
}

function total(widths: readonly number[]): number {
  return widths.reduce((sum, width) => sum + width, 0) + 2 * Math.max(0, widths.length - 1);
}
