/**
 * Runs the compiled tests: pure ones two at a time, then scenarios one at a time (each is a small cluster of its
 * own), as one report with one summary. `node --test` alone would need two runs and print two summaries.
 *
 * A run of everything repeats those scenarios that are about a data plane with the pairs of data planes that no lab
 * has by itself; `--matrix` repeats all scenarios with every pair.
 */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { Readable } from "node:stream";
import { run } from "node:test";
import { dot, spec, tap } from "node:test/reporters";
import { fileURLToPath } from "node:url";

/** Protects the run from one file that hangs; the slowest scenario file takes a small part of it. */
const FILE_TIMEOUT_MS = 10 * 60_000;
const PURE_CONCURRENCY = 2;

const dist = resolve(dirname(fileURLToPath(import.meta.url)), "..");

type Phase = {
  readonly files: readonly string[];
  readonly concurrency: number;
  /** What `lab.ts` and `scenario.ts` find in the environment. */
  readonly env?: Readonly<Record<string, string>>;
};
type TestEvent = { readonly type: string; readonly data: Record<string, unknown> };

const options = parse(process.argv.slice(2));
const pure = options.scenariosOnly ? [] : matching(join(dist, "test"), ".test.js", options.words);
let scenarios = options.pureOnly
  ? []
  : matching(join(dist, "netns-harness/scenarios"), ".netns.js", options.words);
if (scenarios.length > 0 && process.getuid?.() !== 0) {
  console.error(`scenarios need root: leaving out ${scenarios.length} files`);
  scenarios = [];
}
if (pure.length + scenarios.length === 0) {
  console.error(`no test file matches ${options.words.join(" ") || "anything"}`);
  process.exit(2);
}

let failed = false;
const events = Readable.from(
  report([
    { files: pure, concurrency: PURE_CONCURRENCY },
    ...(options.matrix ? [] : [{ files: scenarios, concurrency: 1 }]),
    ...dataplanePhases(),
  ]),
);
const reporter = options.reporter === "spec" ? new spec() : options.reporter === "dot" ? dot : tap;
// The type of compose() knows streams only; async generators are what the reporters are.
(events.compose(reporter as NodeJS.ReadWriteStream) as NodeJS.ReadWriteStream).pipe(process.stdout);
process.on("exit", () => {
  if (failed) process.exitCode = 1;
});

/** The scenarios once more for other data planes of their labs. */
function dataplanePhases(): Phase[] {
  if (options.matrix) {
    return ["kernel", "kernel,userspace", "userspace"].map((kinds) => ({
      files: scenarios,
      concurrency: 1,
      env: { LAB_DATAPLANES: kinds },
    }));
  }
  if (options.words.length > 0 || process.env["LAB_DATAPLANES"] !== undefined) return [];
  const files = scenarios.filter((file) => readFileSync(file, "utf8").includes("scenarioOnEach("));
  return ["kernel,userspace", "userspace"].map((kinds) => ({
    files,
    concurrency: 1,
    env: { LAB_DATAPLANES: kinds, SCENARIOS: "on-each" },
  }));
}

/** The events of all phases one after the other, their summaries added up into one. */
async function* report(phases: readonly Phase[]): AsyncGenerator<TestEvent> {
  const summary = new Map<string, number>();
  let numbered = 0;
  for (const { files, concurrency, env } of phases) {
    if (files.length === 0) continue;
    // Test files run in processes that inherit it; phases follow one another.
    Object.assign(process.env, env);
    const stream = run({ files: [...files], concurrency, timeout: FILE_TIMEOUT_MS });
    for await (const event of stream as AsyncIterable<TestEvent>) {
      if (event.type === "test:fail" && event.data["todo"] === undefined) failed = true;
      if (event.type === "test:plan" && event.data["nesting"] === 0) continue;
      const total = totalOf(event);
      if (total === undefined) yield renumbered(event, numbered);
      else summary.set(total.name, (summary.get(total.name) ?? 0) + total.value);
    }
    numbered = summary.get("tests") ?? 0;
  }
  yield { type: "test:plan", data: { nesting: 0, count: summary.get("tests") ?? 0 } };
  for (const [name, value] of summary) {
    yield { type: "test:diagnostic", data: { nesting: 0, message: `${name} ${value}` } };
  }
}

/** TAP numbers top-level tests; every phase counts from one. */
function renumbered(event: TestEvent, offset: number): TestEvent {
  const { nesting, testNumber } = event.data;
  if (nesting !== 0 || typeof testNumber !== "number") return event;
  return { ...event, data: { ...event.data, testNumber: testNumber + offset } };
}

/** The line of a phase's own summary that an event is, if it is one: `tests 12`, `duration_ms 34.5`. */
function totalOf(event: TestEvent): { name: string; value: number } | undefined {
  if (event.type !== "test:diagnostic" || event.data["nesting"] !== 0 || event.data["file"] !== undefined) {
    return undefined;
  }
  const match = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) ([\d.]+)$/.exec(
    String(event.data["message"]),
  );
  return match?.[1] === undefined ? undefined : { name: match[1], value: Number(match[2]) };
}

/** Compiled files below `folder` whose path below dist contains one of the words (any, without words). */
function matching(folder: string, suffix: string, words: readonly string[]): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(suffix))
    .map((name) => join(folder, name))
    .filter((file) => words.length === 0 || words.some((word) => relative(dist, file).includes(word)))
    .sort();
}

function parse(args: readonly string[]): {
  pureOnly: boolean;
  scenariosOnly: boolean;
  matrix: boolean;
  reporter: string;
  words: string[];
} {
  const parsed = {
    pureOnly: false,
    scenariosOnly: false,
    matrix: false,
    reporter: process.stdout.isTTY ? "spec" : "tap",
    words: [] as string[],
  };
  for (const arg of args) {
    const reporter = /^--reporter=(spec|tap|dot)$/.exec(arg)?.[1];
    if (arg === "--pure") parsed.pureOnly = true;
    else if (arg === "--scenarios") parsed.scenariosOnly = true;
    else if (arg === "--matrix") parsed.matrix = parsed.scenariosOnly = true;
    else if (reporter !== undefined) parsed.reporter = reporter;
    else if (arg.startsWith("-")) {
      console.error(
        `unknown option ${arg}; known: --pure --scenarios --matrix --reporter=spec|tap|dot and words of file names`,
      );
      process.exit(2);
    } else {
      // Source names work as well as compiled ones: `npm test -- test/swim/probe.test.ts`.
      parsed.words.push(arg.replace(/^(\.\/)?(dist\/)?/, "").replace(/\.ts$/, ".js"));
    }
  }
  return parsed;
}
