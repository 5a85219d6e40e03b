import assert from "node:assert/strict";
import { test } from "node:test";
import { NetError } from "../../src/base/error.ts";
import { chooseDataplane } from "../../src/agent/dataplane-choice.ts";
import type { FeatureName } from "../../src/kernel/features.ts";

const without = (...names: FeatureName[]): ReadonlySet<FeatureName> => new Set(names);

test("auto takes the kernel's dataplane where there is one, and says why when there is not", () => {
  assert.deepEqual(chooseDataplane("auto", without("macvlan")), {
    kind: "kernel",
    reason: "this kernel has VXLAN",
  });
  assert.deepEqual(chooseDataplane("auto", without("vxlan")), {
    kind: "userspace",
    reason: "this kernel has no VXLAN",
  });
  refuses(() => chooseDataplane("auto", without("vxlan", "tun")), /no VXLAN.*no TUN\/TAP.*modprobe/);
});

test("what was asked for is given or refused with a cure, never replaced", () => {
  assert.equal(chooseDataplane("kernel", without("tun")).kind, "kernel");
  assert.equal(chooseDataplane("userspace", without("vxlan")).kind, "userspace");
  assert.equal(chooseDataplane("userspace", without()).kind, "userspace");
  refuses(() => chooseDataplane("kernel", without("vxlan")), /^--dataplane kernel: .*VXLAN \(modprobe vxlan/);
  refuses(() => chooseDataplane("userspace", without("tun")), /^--dataplane userspace: .*\(modprobe tun/);
});

function refuses(choose: () => unknown, message: RegExp): void {
  assert.throws(choose, (error) => error instanceof NetError && message.test(error.message));
}
