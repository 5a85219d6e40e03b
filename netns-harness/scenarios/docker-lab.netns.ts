/** Whatever happens to a run with dockerds, nothing of them stays on the machine. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { DockerHost } from "../docker.ts";
import { Lab } from "../lab.ts";
import { differences, machineState } from "../machine.ts";
import { program } from "../place.ts";
import { labMark, leftovers, type LabMark } from "../teardown.ts";

test("the end of a lab takes dockerd, containers, mounts and control groups with it", async () => {
  const before = machineState();
  const lab = Lab.create();
  {
    await using _lab = lab;
    const docker = await DockerHost.start(lab.host("docker1", "192.168.1.11"));
    const container = await docker.serve("c1", "bridge");
    assert.ok(await docker.host.httpGet(`http://${container.ip}/`));
    assert.notDeepEqual(containerProcesses(lab.mark), []);
    assert.deepEqual(differences(before, machineState()), []);
    // Without its dockerd, the container lives on.
    await docker.crash();
    assert.ok(await docker.host.httpGet(`http://${container.ip}/`));
  }
  assert.deepEqual(leftovers(lab.mark), []);
  assert.deepEqual(containerProcesses(lab.mark), []);
  assert.deepEqual(differences(before, machineState()), []);
});

test("a run with a dockerd ended by SIGKILL leaves nothing after the next sweep", async () => {
  const [node, ...args] = program("idle-lab", "docker");
  const child = spawn(node, args, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(child, "exit");
  await once(child.stdout, "data");
  const mark = labMark(child.pid ?? 0, 0);
  child.kill("SIGKILL");
  await ended;
  assert.notDeepEqual(containerProcesses(mark), []);
  assert.equal(spawnSync(node, program("../sweep").slice(1)).status, 0);
  assert.deepEqual(leftovers(mark), []);
  assert.deepEqual(containerProcesses(mark), []);
});

/** Processes in control groups of the lab: its containers'. */
function containerProcesses(mark: LabMark): string[] {
  return readdirSync("/proc").filter((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/cgroup`, "utf8").includes(`/${mark.prefix}`);
    } catch {
      return false; // gone between listing and looking
    }
  });
}
