/**
 * Runs `run` for seeds 1 … `count`, or only for the one in the environment variable SEED. The failing seed is named
 * in the error; `SEED=… npm test` replays exactly that run.
 */
export function forEachSeed(count: number, run: (seed: number) => void): void {
  const chosen = process.env["SEED"];
  const seeds = chosen === undefined ? Array.from({ length: count }, (_, i) => i + 1) : [Number(chosen)];
  for (const seed of seeds) {
    try {
      run(seed);
    } catch (error) {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      console.error(`SEED=${seed} npm test`);
      throw new Error(`SEED=${seed} npm test\n${text}`, { cause: error });
    }
  }
}
