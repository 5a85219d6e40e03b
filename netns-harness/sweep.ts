/** Removes what labs of processes that are gone left behind; test.sh and demo.sh run it first. Kept labs stay. */

import { sweepStaleLabs } from "./teardown.ts";

for (const line of sweepStaleLabs()) console.log(`sweep: ${line}`);
