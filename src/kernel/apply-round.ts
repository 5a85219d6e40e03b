/** What became of the steps of one round, and which later ones have lost their ground. */
import { errorCode, errorText, NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import { formatStep, type OverlayStep } from "../overlay/plan.ts";
import type { AppliedStep, StepResult } from "./dataplane.ts";

export const DONE: StepResult = { status: "done" };

export class ApplyRound {
  readonly applied: AppliedStep[] = [];
  readonly #network: NetworkId;
  #namespaceFailed = false;
  #coreFailed = false;
  #deleteFailed = false;

  constructor(network: NetworkId) {
    this.#network = network;
  }

  isBlocked(step: OverlayStep): boolean {
    switch (step.type) {
      case "create-namespace":
        return false;
      // Unpinning a namespace with something left in it would put that out of our reach.
      case "delete-namespace":
        return this.#deleteFailed;
      case "set-sysctl":
      case "delete-endpoint":
      case "delete-gateway":
      case "delete-vxlan":
        return this.#namespaceFailed;
      default:
        return this.#namespaceFailed || this.#coreFailed;
    }
  }

  attempt(step: OverlayStep, action: () => void): void {
    if (this.isBlocked(step)) return this.skip([step]);
    try {
      action();
      this.record(step, DONE);
    } catch (error) {
      this.fail(step, error);
    }
  }

  fail(step: OverlayStep, error: unknown): void {
    if (step.type === "create-namespace") this.#namespaceFailed = true;
    if (step.type === "create-vxlan" || step.type === "create-gateway") this.#coreFailed = true;
    if (step.type.startsWith("delete-")) this.#deleteFailed = true;
    const what = formatStep(this.#network, step);
    const text = errorText(error);
    const wrapped =
      error instanceof NetError && text.startsWith(what)
        ? error
        : new NetError(errorCode(error) ?? "EIO", `${what}: ${text}`, { cause: error });
    this.record(step, { status: "failed", error: wrapped });
  }

  skip(steps: readonly OverlayStep[]): void {
    for (const step of steps) this.record(step, { status: "skipped" });
  }

  record(step: OverlayStep, result: StepResult): void {
    this.applied.push({ step, result });
  }
}
