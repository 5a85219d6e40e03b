/** Figures of a bench as an SVG bar chart for the README: for each figure a bar a variant, relative to one of them. */

import { median, ratio, short, type Figure } from "./report.ts";

export type ChartOptions = {
  readonly title: string;
  /** One line below the title: what was measured where, and how to read it. */
  readonly note: string;
  /** From top to bottom; a figure that lacks one has no bar for it. */
  readonly variants: readonly string[];
  /** The variant that is 1: a dashed line. */
  readonly base: string;
};

const WIDTH = 760;
const LABEL_WIDTH = 170;
const VALUE_WIDTH = 120;
const BAR_HEIGHT = 13;
const BAR_GAP = 3;
const GROUP_GAP = 16;
const TOP = 70;
const LEGEND_HEIGHT = 26;
const FONT = "font-family='system-ui, sans-serif'";
/** Readable on a light and on a dark page, and apart for the colour-blind. */
const COLORS = ["#8c959f", "#d98324", "#2f81b7", "#4f9d69", "#a05195", "#b1a03c", "#6e5494"];
const TEXT_COLOR = "#6e7781";

/** Units of which less is better: their bars show how many times as fast. */
const TIME_UNITS: ReadonlySet<string> = new Set(["µs", "ms", "s"]);

/** A bar twice as long is twice as good, whatever the unit; the text beside it is the median itself. */
export function chart(figures: readonly Figure[], options: ChartOptions): string {
  const groups = figures
    .map((figure) => ({ figure, bars: barsOf(figure, options) }))
    .filter(({ bars }) => bars.length > 1);
  const longest = Math.max(1, ...groups.flatMap(({ bars }) => bars.map(({ value }) => value)));
  const scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / longest;
  const parts: string[] = [
    text(12, 24, options.title, "font-size='16' font-weight='600'"),
    text(12, 44, options.note, "font-size='12'"),
    ...legend(options),
  ];
  let y = TOP + LEGEND_HEIGHT;
  const firstBar = y;
  for (const { figure, bars } of groups) {
    const height = bars.length * (BAR_HEIGHT + BAR_GAP) - BAR_GAP;
    parts.push(text(LABEL_WIDTH - 10, y + height / 2 + 4, figure.name, "font-size='12' text-anchor='end'"));
    for (const { variant, value, label } of bars) {
      const width = Math.max(1, value * scale);
      const color = colorOf(variant, options);
      parts.push(
        `<rect x='${LABEL_WIDTH}' y='${y}' width='${round(width)}' height='${BAR_HEIGHT}' rx='2' fill='${color}'/>`,
        text(LABEL_WIDTH + width + 6, y + BAR_HEIGHT - 2, label, "font-size='11'"),
      );
      y += BAR_HEIGHT + BAR_GAP;
    }
    y += GROUP_GAP - BAR_GAP;
  }
  const x = round(LABEL_WIDTH + scale);
  const line = `<line x1='${x}' x2='${x}' y1='${firstBar - 6}' y2='${y - GROUP_GAP + 6}' stroke='${TEXT_COLOR}' stroke-dasharray='4 3'/>`;
  return [
    `<svg xmlns='http://www.w3.org/2000/svg' width='${WIDTH}' height='${y}' viewBox='0 0 ${WIDTH} ${y}' role='img' aria-label='${escape(options.title)}'>`,
    ...parts,
    line,
    "</svg>",
    "",
  ].join("\n");
}

type Bar = { readonly variant: string; readonly value: number; readonly label: string };

function barsOf(figure: Figure, { variants, base }: ChartOptions): Bar[] {
  return variants.flatMap((variant) => {
    const relative = variant === base ? 1 : ratio(figure, variant, base);
    const value = TIME_UNITS.has(figure.unit) ? 1 / relative : relative;
    const own = median(figure.samples[variant] ?? []);
    if (!Number.isFinite(value) || !Number.isFinite(own)) return [];
    return [{ variant, value, label: `${short(own)} ${figure.unit}` }];
  });
}

function legend(options: ChartOptions): string[] {
  let x = LABEL_WIDTH;
  return options.variants.flatMap((variant) => {
    const at = x;
    x += 34 + 7 * variant.length;
    return [
      `<rect x='${at}' y='${TOP - 10}' width='12' height='12' rx='2' fill='${colorOf(variant, options)}'/>`,
      text(at + 18, TOP, variant, "font-size='12'"),
    ];
  });
}

function colorOf(variant: string, { variants }: ChartOptions): string {
  return COLORS[variants.indexOf(variant) % COLORS.length] ?? TEXT_COLOR;
}

function text(x: number, y: number, content: string, style: string): string {
  return `<text x='${round(x)}' y='${round(y)}' fill='${TEXT_COLOR}' ${FONT} ${style}>${escape(content)}</text>`;
}

function escape(content: string): string {
  return content
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll("'", "&#39;");
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
