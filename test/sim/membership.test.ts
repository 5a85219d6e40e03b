import { test } from "node:test";
import { chaos } from "./chaos.ts";
import { forEachSeed } from "./seed.ts";
import { swims } from "./swims.ts";

test("after any faults, whoever runs sees whoever runs, and nobody else", () => {
  forEachSeed(100, (seed) => {
    chaos({ seed, make: swims });
  });
});
