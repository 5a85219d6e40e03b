const WINDOW = 8;
const LEAST_FAILED_TARGETS = 3;

/**
 * Tells "they are gone" from "my own link is down" by the latest probes: when most of them failed, and against
 * several members, the common cause is on our side. In a cluster of three or fewer it never can tell.
 */
export class OwnLink {
  readonly #latest: { readonly target: string; readonly ok: boolean }[] = [];

  record(target: string, ok: boolean): void {
    this.#latest.push({ target, ok });
    if (this.#latest.length > WINDOW) this.#latest.shift();
  }

  get doubtful(): boolean {
    const failed = this.#latest.filter((probe) => !probe.ok);
    return (
      failed.length * 2 > this.#latest.length &&
      new Set(failed.map((probe) => probe.target)).size >= LEAST_FAILED_TARGETS
    );
  }
}
