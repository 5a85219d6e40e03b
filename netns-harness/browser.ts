/** Headless Chromium inside a place of the lab, driven over the DevTools protocol on a pipe. */

import type { ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import type { Place } from "./place.ts";

const CHROMIUM = "/usr/bin/chromium";
const ANSWER_MS = 20_000;
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
  "--remote-debugging-pipe",
];

export function hasBrowser(): boolean {
  return existsSync(CHROMIUM);
}

/** One page in a browser of its own; both end with `close`, or with the lab. */
export class Page {
  readonly #browser: ChildProcess;
  readonly #to: Writable;
  readonly #waiting = new Map<
    number,
    { resolve: (value: unknown) => void; reject: (error: Error) => void }
  >();
  #session: string | undefined;
  #nextId = 1;

  private constructor(browser: ChildProcess) {
    this.#browser = browser;
    this.#to = browser.stdio[3] as Writable;
    this.#to.on("error", () => {}); // said by whoever waits for an answer
    let buffered = "";
    (browser.stdio[4] as Readable).setEncoding("utf8").on("data", (chunk: string) => {
      const messages = (buffered + chunk).split("\0");
      buffered = messages.pop() ?? "";
      for (const message of messages) this.#receive(JSON.parse(message) as Message);
    });
    browser.once("exit", (code) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`chromium ended with ${code}`));
    });
  }

  /** Opens `url` as somebody sitting at `place` would. */
  static async open(place: Place, url: string, width = 900, height = 700): Promise<Page> {
    const folder = join(place.folder, "chromium");
    mkdirSync(folder, { recursive: true });
    const page = new Page(
      place.spawnPiped(
        [CHROMIUM, ...FLAGS, `--user-data-dir=${folder}`, `--window-size=${width},${height}`],
        {
          HOME: folder,
        },
      ),
    );
    const { targetId } = await page.#call<{ targetId: string }>("Target.createTarget", { url });
    const attached = await page.#call<{ sessionId: string }>("Target.attachToTarget", {
      targetId,
      flatten: true,
    });
    page.#session = attached.sessionId;
    return page;
  }

  /** The value of a JavaScript expression on the page. */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.#call<{
      result: { value: T };
      exceptionDetails?: { text: string };
    }>("Runtime.evaluate", { expression, returnByValue: true });
    if (exceptionDetails !== undefined) throw new Error(`${expression}: ${exceptionDetails.text}`);
    return result.value;
  }

  /** Writes what the page looks like to a PNG file. */
  async screenshot(file: string): Promise<void> {
    const { data } = await this.#call<{ data: string }>("Page.captureScreenshot", { format: "png" });
    writeFileSync(file, Buffer.from(data, "base64"));
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.#browser.once("exit", resolve));
    if (this.#browser.exitCode !== null) return;
    this.#session = undefined;
    this.#call("Browser.close", {}).catch(() => {}); // it may be gone before it answers
    await ended;
  }

  #call<T>(method: string, params: object): Promise<T> {
    const id = this.#nextId++;
    const session = this.#session === undefined ? {} : { sessionId: this.#session };
    this.#to.write(`${JSON.stringify({ id, method, params, ...session })}\0`);
    return new Promise<unknown>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`chromium: no answer to ${method}`)), ANSWER_MS);
      this.#waiting.set(id, { resolve, reject });
      void timer.unref();
    }).finally(() => this.#waiting.delete(id)) as Promise<T>;
  }

  #receive({ id, result, error }: Message): void {
    const waiting = id === undefined ? undefined : this.#waiting.get(id);
    if (error === undefined) waiting?.resolve(result);
    else waiting?.reject(new Error(`chromium: ${error.message}`));
  }
}

/** An answer to `id`, or an event without one. */
type Message = {
  readonly id?: number;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
};
