import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { attach, kernelAgrees, httpBackend, reaches } from "../endpoints.ts";
import type { Host } from "../host.ts";
import { allAlive } from "../lab.ts";
import { allAnsweredBy, askHttp } from "../observe.ts";
import { DIST } from "../place.ts";
import { scenario } from "../scenario.ts";
import { waitFor } from "../wait.ts";

const UNIT = readFileSync(join(DIST, "../src/packaging/netagent.service"), "utf8");
/** Of no passwd entry: what a fresh system user is. */
const USER = "64907";

scenario(
  "the privileges of the systemd unit are enough: an ordinary user with six capabilities",
  async (lab) => {
    const node1 = lab.host("node1", "192.168.1.104");
    const node2 = lab.host("node2", "192.168.1.105");
    const client = lab.client();
    await startAsUnit(node1);
    await startAsUnit(node2, node1);
    await allAlive([node1, node2], 30_000);
    await node1.ctl("network", "create", "blue");
    await node1.ctl("service", "create", "web", "--network", "blue", "--publish", "8000:80");
    const a = await attach(lab, node1, "blue", "a");
    const b = await httpBackend(lab, node2, "blue", "web", "web.1");
    await reaches(a.place, b.ip);
    await waitFor("port 8000 of node1 to answer", () => askHttp(client, `http://${node1.address}:8000/`, 5), {
      withinMs: 20_000,
      until: (seen) => allAnsweredBy(seen)?.join() === "web.1",
    });
    assert.match(await node1.ctl("run", "--network", "blue", "--", "getent", "hosts", "web"), /web/);
    for (const node of [node1, node2]) {
      await kernelAgrees(node);
      // udev lets everybody open /dev/net/tun; without udev it is root's.
      const complaints = node
        .log()
        .split("\n")
        .filter((line) => /EPERM|EACCES|"level":[56]0/.test(line) && !line.includes("/dev/net/tun"));
      assert.deepEqual(complaints, []);
    }
    await node1.crash();
    await startAsUnit(node1, node2);
    await allAlive([node1, node2], 30_000);
    await kernelAgrees(node1);
    await reaches(a.place, b.ip);
  },
);

/** Starts the agent as the unit says: its user, its capabilities, no new privileges. */
async function startAsUnit(host: Host, join?: Host): Promise<void> {
  const capabilities = setting("AmbientCapabilities")
    .toLowerCase()
    .replaceAll("cap_", "+")
    .replaceAll(" ", ",");
  assert.equal(setting("AmbientCapabilities"), setting("CapabilityBoundingSet"));
  assert.equal(setting("NoNewPrivileges"), "yes");
  await host.run("chown", USER, host.dataFolder, host.runFolder);
  await host.start({
    ...(join === undefined ? {} : { join: [join] }),
    through: [
      ...["setpriv", `--reuid=${USER}`, `--regid=${USER}`, "--clear-groups", "--no-new-privs"],
      ...[
        `--inh-caps=-all,${capabilities}`,
        `--ambient-caps=-all,${capabilities}`,
        `--bounding-set=-all,${capabilities}`,
      ],
    ],
  });
}

function setting(name: string): string {
  const found = new RegExp(`^${name}=(.*)$`, "m").exec(UNIT)?.[1];
  assert.ok(found !== undefined, `${name} in the unit`);
  return found;
}
