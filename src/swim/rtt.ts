/** Smoothed round trips per member and overall, as TCP does it (RFC 6298 §2: gains 1/8 and 1/4). */
export class RoundTrips {
  readonly #byName = new Map<string, Estimate>();
  readonly #overall: Estimate = { smoothedMs: 0, deviationMs: 0 };
  #samples = 0;

  /** Of a ping that was sent once and answered by its target itself (Karn: others are ambiguous). */
  add(name: string, ms: number): void {
    const known = this.#byName.get(name);
    if (known === undefined) this.#byName.set(name, { smoothedMs: ms, deviationMs: ms / 2 });
    else smooth(known, ms);
    if (this.#samples++ === 0) Object.assign(this.#overall, { smoothedMs: ms, deviationMs: ms / 2 });
    else smooth(this.#overall, ms);
  }

  forget(name: string): void {
    this.#byName.delete(name);
  }

  smoothedMs(name: string): number | undefined {
    return this.#byName.get(name)?.smoothedMs;
  }

  /** A round trip hardly ever takes longer; of a stranger what hardly any did. Undefined before the first sample. */
  limitMs(name: string): number | undefined {
    const estimate = this.#byName.get(name) ?? (this.#samples > 0 ? this.#overall : undefined);
    return estimate === undefined ? undefined : estimate.smoothedMs + 4 * estimate.deviationMs;
  }
}

interface Estimate {
  smoothedMs: number;
  deviationMs: number;
}

function smooth(estimate: Estimate, ms: number): void {
  estimate.deviationMs += (Math.abs(ms - estimate.smoothedMs) - estimate.deviationMs) / 4;
  estimate.smoothedMs += (ms - estimate.smoothedMs) / 8;
}
