import { NetError } from "../base/error.ts";
import type { Dataplane } from "../kernel/dataplane.ts";
import type { FeatureName } from "../kernel/features.ts";
import type { Config } from "./config.ts";

export interface DataplaneChoice {
  readonly kind: Dataplane["kind"];
  /** For `netctl info`. */
  readonly reason: string;
}

/** Which dataplane this host gets. @throws NetError `feature-missing` when what was asked for cannot be had here. */
export function chooseDataplane(
  asked: Config["dataplane"],
  missing: ReadonlySet<FeatureName>,
): DataplaneChoice {
  const vxlan = missing.has("vxlan") ? "this kernel has no VXLAN" : undefined;
  const tun = missing.has("tun") ? "this kernel has no TUN/TAP, or /dev/net/tun is not there" : undefined;
  const refuse = (why: string, cure: string): never => {
    throw new NetError("feature-missing", `--dataplane ${asked}: ${why} (${cure})`);
  };
  switch (asked) {
    case "kernel":
      if (vxlan !== undefined) refuse(vxlan, "modprobe vxlan, or use --dataplane userspace");
      return { kind: "kernel", reason: "asked for by --dataplane" };
    case "userspace":
      if (tun !== undefined) refuse(tun, "modprobe tun, or use --dataplane kernel");
      return { kind: "userspace", reason: "asked for by --dataplane" };
    case "auto":
      if (vxlan === undefined) return { kind: "kernel", reason: "this kernel has VXLAN" };
      if (tun !== undefined) refuse(`${vxlan}, and ${tun}`, "modprobe vxlan or modprobe tun");
      return { kind: "userspace", reason: vxlan };
  }
}
