/** What the doctor says, from what was found: pure, so that every fault can be tested without having it. */
import type { DoctorView } from "./control-protocol.ts";
import type { Findings } from "./findings.ts";
import { checkKernels } from "./kernel-checks.ts";
import { checkPeer } from "./path-checks.ts";
import { checkShared } from "./shared-checks.ts";

/** One line a check; what is well of many nodes is one line, what is wrong a line each. */
export function diagnose(findings: Findings): DoctorView {
  const checks = [
    ...checkKernels(findings),
    ...findings.peers.flatMap((peer) => checkPeer(peer, findings)),
    ...checkShared(findings),
  ];
  return { ok: checks.every((check) => check.status !== "failed"), checks };
}
