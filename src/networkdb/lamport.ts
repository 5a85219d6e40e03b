/** Lamport time: counts local events and never falls behind what was seen (networkdb.md §3). */
export class LamportClock {
  #time = 0;

  get time(): number {
    return this.#time;
  }

  /** The time of a new local event. */
  increment(): number {
    this.#time++;
    return this.#time;
  }

  /** The time of a new local event that must beat `other` whatever was witnessed before. */
  incrementPast(other: number): number {
    this.#time = Math.max(this.#time, other) + 1;
    return this.#time;
  }

  /** A time was seen: the next local event will be later. */
  witness(seen: number): void {
    if (seen >= this.#time) this.#time = seen + 1;
  }
}
