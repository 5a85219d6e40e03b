import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** Tests run from `dist/test/…`; the vectors stay where they are in the source tree. */
const folder = resolve(dirname(fileURLToPath(import.meta.url)), "../../../test/vectors");

/** One parsed value per line of `test/vectors/<file>`. The caller states the shape that README.md describes. */
export function loadVectors<T = Record<string, unknown>>(file: string): T[] {
  return readFileSync(resolve(folder, file), "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as T);
}
