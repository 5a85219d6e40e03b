/**
 * Work that can be set aside: a generator that yields every millisecond or so and returns its result. Pure code
 * offers it where tens of thousands of rows are gone through; who drives it decides how long one slice may last.
 */
export type Sliced<T> = Generator<undefined, T, undefined>;

/** Rows gone through between two yields: about a millisecond. */
export const SLICE_ROWS = 512;

/** Does all of it at once. */
export function finish<T>(work: Sliced<T>): T {
  for (;;) {
    const step = work.next();
    if (step.done === true) return step.value;
  }
}
