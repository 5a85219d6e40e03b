/** What is wrong in the kernel and stays so, since this agent may not repair. */
import type { IpAddr } from "../base/ip.ts";

/** Kept of one place; a flushed table has a hundred thousand. */
const MAX_OF_PLACE = 50;

export interface StandingFault {
  /** What is wrong, and the step that would mend it. */
  readonly text: string;
  /** The VTEP the way to which is concerned; absent when it is not about one. */
  readonly vtep?: IpAddr;
}

/** Faults by place: a network, a namespace's rules, the filter. Each look at a place replaces what was known of it. */
export class StandingFaults {
  /** Told so far: a fault that goes and comes back counts again. */
  found = 0;
  readonly #places = new Map<
    string,
    { readonly subject: string; readonly faults: readonly StandingFault[] }
  >();

  /** Returns those that were not there before; none left takes the place away. */
  replace(place: string, subject: string, faults: readonly StandingFault[]): readonly StandingFault[] {
    const before = new Set(this.#places.get(place)?.faults.map(({ text }) => text));
    const kept = faults.slice(0, MAX_OF_PLACE);
    if (kept.length === 0) this.#places.delete(place);
    else this.#places.set(place, { subject, faults: kept });
    const fresh = kept.filter(({ text }) => !before.has(text));
    this.found += fresh.length;
    return fresh;
  }

  /** In the order their places were first seen. */
  all(): readonly (StandingFault & { readonly subject: string })[] {
    return [...this.#places.values()].flatMap(({ subject, faults }) =>
      faults.map((fault) => ({ ...fault, subject })),
    );
  }

  clear(): void {
    this.#places.clear();
  }
}
