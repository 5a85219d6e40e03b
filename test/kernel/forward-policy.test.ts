import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { reconcileForwardPolicy } from "../../src/kernel/forward-policy.ts";
import { Netns } from "../../src/kernel/netns.ts";

const needsRoot = process.getuid?.() === 0 ? false : "needs root";

for (const program of ["iptables-nft", "iptables-legacy"]) {
  test(
    `${program}: flows pass a FORWARD chain that drops, and others' rules stay`,
    { skip: needsRoot },
    async () => {
      const path = `/run/netns/na-${process.pid}-${program}`;
      using netns = Netns.create(path);
      try {
        const run = (...args: string[]): string => {
          const done = netns.run(() => spawnSync(program, args, { encoding: "utf8" }));
          assert.equal(done.status, 0, done.stderr);
          return done.stdout;
        };
        assert.equal(await reconcileForwardPolicy(netns, "na-ingress"), false, "nobody uses iptables here");
        assert.equal(tables(netns), "", "and nobody does because we looked");
        run("-A", "FORWARD", "-i", "docker0", "-m", "comment", "--comment", "of others", "-j", "ACCEPT");
        const others = run("-S");
        assert.equal(await reconcileForwardPolicy(netns, "na-ingress"), false, "what is forwarded passes");
        run("-P", "FORWARD", "DROP");
        assert.equal(await reconcileForwardPolicy(netns, "na-ingress"), true);
        const rules = run("-S", "FORWARD").split("\n");
        assert.equal(rules.filter((rule) => rule.includes("netagent")).length, 2);
        assert.match(rules[1] ?? "", /na-ingress.*ACCEPT/, "ahead of what may drop");
        assert.equal(await reconcileForwardPolicy(netns, "na-ingress"), false, "twice is once");
        assert.equal(await reconcileForwardPolicy(netns, undefined), true);
        run("-P", "FORWARD", "ACCEPT");
        assert.equal(run("-S"), others);
      } finally {
        Netns.remove(path);
      }
    },
  );
}

function tables(netns: Netns): string {
  const done = netns.run(() => spawnSync("nft", ["list", "ruleset"], { encoding: "utf8" }));
  return done.stdout;
}
