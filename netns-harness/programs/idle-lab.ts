/**
 * node idle-lab.js
 *
 * Makes a small lab, prints `lab PID` and waits to be ended: what remains afterwards is what the lab's own test looks at.
 */

import { setTimeout as pause } from "node:timers/promises";
import { Lab } from "../lab.ts";

const lab = Lab.create();
await lab.host("node1", "192.168.1.104").serveHttp(80);
console.log(`lab ${process.pid}`);
await pause(60_000);
