import { NetError } from "../base/error.ts";

/** A write that failed is tried again so often. */
const RETRY_MS = 1_000;

/**
 * Keeps one file of the data directory up to date. What fails is tried again until it works: a full disk must not end
 * an agent whose endpoints run.
 */
export class Saver {
  /** Of failures in a row, the first. */
  onFailure: (error: NetError) => void = () => undefined;
  /** It works again. */
  onRecovery: () => void = () => undefined;
  readonly #write: () => NetError | undefined;
  readonly #delayMs: number;
  readonly #check: () => NetError | undefined;
  #timer: NodeJS.Timeout | undefined;
  #failure: NetError | undefined;

  /**
   * `write` returns when all is safely on disk, with the reason why the next one will not work, if so; or it throws a
   * NetError. `delayMs`: what comes within it is one write. `check`: whether a write could work at all.
   */
  constructor(
    write: () => NetError | undefined,
    delayMs: number,
    check: () => NetError | undefined = () => undefined,
  ) {
    this.#write = write;
    this.#delayMs = delayMs;
    this.#check = check;
  }

  /** Why the file is not up to date, or will not be after the next change. */
  get failure(): NetError | undefined {
    return this.#failure;
  }

  /** Asked before a change is begun: why it could not be saved, if so. */
  refusal(): NetError | undefined {
    if (this.#failure !== undefined) this.try();
    return this.#failure ?? this.#check();
  }

  /** @throws NetError; it is tried again nevertheless */
  now(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    try {
      this.#note(this.#write());
    } catch (error) {
      if (error instanceof NetError) this.#note(error);
      throw error;
    }
  }

  /** The same where nobody can do anything about a failure; whether it worked. */
  try(): boolean {
    try {
      this.now();
      return true;
    } catch (error) {
      if (error instanceof NetError) return false;
      throw error;
    }
  }

  #note(failure: NetError | undefined): void {
    const before = this.#failure;
    this.#failure = failure;
    if (failure !== undefined) this.#timer = setTimeout(() => this.try(), RETRY_MS);
    if (failure !== undefined && before === undefined) this.onFailure(failure);
    if (failure === undefined && before !== undefined) this.onRecovery();
  }

  soon(): void {
    this.#timer ??= setTimeout(() => this.try(), this.#delayMs);
  }

  /** Writes what waits; never again afterwards. */
  close(): void {
    if (this.#timer !== undefined) this.try();
    clearTimeout(this.#timer);
  }
}
