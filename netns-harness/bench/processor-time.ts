/** How long threads have run, as the scheduler counts it: nanoseconds, where /proc/…/stat has ticks of 10 ms. */

import { readdirSync, readFileSync } from "node:fs";

/** Time (ns) of the threads of a process so far whose name is wanted; threads that ended are not in it. */
export function threadNs(pid: number, isWanted: (name: string) => boolean = () => true): number {
  const tasks = `/proc/${pid}/task`;
  let sum = 0;
  for (const task of readdirSync(tasks)) {
    if (!isWanted(readFileSync(`${tasks}/${task}/comm`, "utf8").trim())) continue;
    sum += Number(readFileSync(`${tasks}/${task}/schedstat`, "utf8").split(" ")[0]);
  }
  return sum;
}
