/**
 * This node's opinion of its own health (Lifeguard, "local health multiplier"; memberlist awareness.go):
 * 0 is well, each failed probe or refuted accusation adds, each successful probe takes away. A sick node
 * gives its peers more time, because what it misses is probably its own fault.
 */
export class Awareness {
  readonly #levels: number;
  #score = 0;

  /** Scores are 0 … `levels` − 1. */
  constructor(levels: number) {
    this.#levels = levels;
  }

  get score(): number {
    return this.#score;
  }

  add(delta: number): void {
    this.#score = Math.min(this.#levels - 1, Math.max(0, this.#score + delta));
  }

  /** A sick node waits longer. */
  scale(milliseconds: number): number {
    return milliseconds * (this.#score + 1);
  }
}
