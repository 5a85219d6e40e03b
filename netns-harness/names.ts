/** Asking the name server of a sandbox, once or again and again. */

import { setTimeout as pause } from "node:timers/promises";
import type { Place } from "./place.ts";

/** What dig got. */
export type Dug = {
  /** `NOERROR`, `NXDOMAIN`, …; `SILENT` when there was no answer at all. */
  readonly status: string;
  /** Data of the answer section, sorted. */
  readonly answers: readonly string[];
  readonly text: string;
};

/**
 * One question to 127.0.0.11 from inside `place`, by dig; `words` are name, type and options. Without a cookie, as
 * resolvers of libraries ask: an answer to a cookie is for one client alone.
 */
export async function dig(place: Place, ...words: string[]): Promise<Dug> {
  const { stdout } = await place.exec(["dig", "@127.0.0.11", "+time=2", "+tries=1", "+nocookie", ...words]);
  const answers = (/;; ANSWER SECTION:\n((?:.+\n)+)/.exec(stdout)?.[1] ?? "")
    .split("\n")
    .filter(Boolean)
    .map((line) => line.split(/\s+/).slice(4).join(" "));
  return { status: /status: (\w+)/.exec(stdout)?.[1] ?? "SILENT", answers: answers.sort(), text: stdout };
}

/** The addresses of a name, or why there are none: `NXDOMAIN`, `NODATA`, `SILENT`, … */
export async function addressesOf(place: Place, name: string): Promise<string> {
  const { status, answers } = await dig(place, name, "A");
  if (status !== "NOERROR") return status;
  return answers.join(" ") || "NODATA";
}

/** Asks names in turn until stopped, and keeps every different outcome of each. */
export class NameLoop {
  readonly #place: Place;
  readonly #names: readonly string[];
  readonly #outcomes = new Map<string, Set<string>>();
  #asked = 0;
  #stopped = false;
  readonly #done: Promise<void>;

  private constructor(place: Place, names: readonly string[]) {
    this.#place = place;
    this.#names = names;
    this.#done = this.#ask();
  }

  static start(place: Place, names: readonly string[]): NameLoop {
    return new NameLoop(place, names);
  }

  get asked(): number {
    return this.#asked;
  }

  /** Outcomes by name, as `addressesOf` tells them. */
  async stop(): Promise<Record<string, string[]>> {
    this.#stopped = true;
    await this.#done;
    return Object.fromEntries([...this.#outcomes].map(([name, seen]) => [name, [...seen].sort()]));
  }

  async #ask(): Promise<void> {
    while (!this.#stopped) {
      for (const name of this.#names) {
        const outcome = await addressesOf(this.#place, name);
        this.#asked++;
        const seen = this.#outcomes.get(name) ?? new Set();
        this.#outcomes.set(name, seen.add(outcome));
      }
      await pause(50);
    }
  }
}
