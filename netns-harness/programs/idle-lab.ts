/**
 * node idle-lab.js [docker]
 *
 * Makes a small lab, with a dockerd and a running container if asked, prints `lab PID` and waits to be ended: what remains afterwards is what the lab's own test looks at.
 */

import { setTimeout as pause } from "node:timers/promises";
import { DockerHost } from "../docker.ts";
import { Lab } from "../lab.ts";

const lab = Lab.create();
await lab.host("node1", "192.168.1.104").serveHttp(80);
if (process.argv[2] === "docker") {
  const docker = await DockerHost.start(lab.host("docker1", "192.168.1.11"));
  await docker.serve("c1", "bridge");
}
console.log(`lab ${process.pid}`);
await pause(60_000);
