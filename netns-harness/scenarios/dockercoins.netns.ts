import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { hasBrowser } from "../browser.ts";
import { DIST } from "../place.ts";
import { labMark, leftovers } from "../teardown.ts";
import { Hopeless, waitFor } from "../wait.ts";

const PATIENCE_MS = 180_000;

void test("dockercoins mine on three nodes, the page shows it, and go on when a node loses power", async () => {
  assert.ok(hasBrowser(), "Chromium is missing: npm run bootstrap");
  const demo = Demo.start("dockercoins");
  assert.equal(await demo.ended(), 0, demo.output);
  for (const claim of [
    "✓ the first coin is found",
    "✓ Chromium on the client draws the chart",
    "✓ mining goes on",
    "✓ the page in Chromium goes on, too",
    "✓ The machine is as it was before.",
  ])
    assert.ok(demo.output.includes(claim), `${claim}\n${demo.output}`);
});

void test("Ctrl-C while dockercoins mine, with a browser open, leaves nothing", async () => {
  const demo = Demo.start("dockercoins");
  const mark = labMark(demo.pid, 0);
  await waitFor("Chromium to be started", () => existsSync(join(mark.folder, "client/chromium")), {
    withinMs: PATIENCE_MS,
    until: (there) => {
      if (demo.code !== undefined) throw new Hopeless(`the demo ended with ${demo.code}: ${demo.output}`);
      return there;
    },
  });
  demo.interrupt();
  assert.equal(await demo.ended(), 130, demo.output);
  assert.match(demo.output, /The machine is as it was before/);
  assert.deepEqual(leftovers(mark), []);
});

/** The demo as a process of its own. */
class Demo {
  output = "";
  code: number | undefined;
  readonly #process: ChildProcess;
  readonly #ended: Promise<number>;

  private constructor(process: ChildProcess) {
    this.#process = process;
    for (const stream of [process.stdout, process.stderr])
      stream?.setEncoding("utf8").on("data", (text: string) => (this.output += text));
    this.#ended = new Promise((resolve) =>
      process.once("close", (code) => {
        this.code = code ?? -1;
        resolve(this.code);
      }),
    );
  }

  static start(...words: string[]): Demo {
    const env = { ...process.env, NO_COLOR: "1" };
    return new Demo(spawn(process.execPath, [join(DIST, "netns-harness/demo.js"), ...words], { env }));
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  interrupt(): void {
    this.#process.kill("SIGINT");
  }

  async ended(): Promise<number> {
    const timer = setTimeout(() => this.interrupt(), PATIENCE_MS);
    try {
      return await this.#ended;
    } finally {
      clearTimeout(timer);
    }
  }
}
