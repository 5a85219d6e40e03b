/**
 * What a dataplane offers the reconciler. The kernel's VXLAN and the userspace engine are two of them; tests
 * use a recorder. A dataplane knows steps, not tables.
 */
import type { NetError } from "../base/error.ts";
import type { NetworkId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { MacAddr } from "../base/mac.ts";
import type { Sliced } from "../base/sliced.ts";
import type { DesiredOverlay } from "../overlay/desired.ts";
import type { ActualOverlay, OverlayStep } from "../overlay/plan.ts";
import type { EntryStep } from "./neighbors.ts";
import type { Netns } from "./netns.ts";

export type StepResult =
  | { readonly status: "done" }
  /** Tried and refused; names step, errno and the kernel's text. */
  | { readonly status: "failed"; readonly error: NetError }
  /** Not tried, because a step it needs failed in this round. */
  | { readonly status: "skipped" };

/** One step with what became of it. */
export interface AppliedStep {
  readonly step: OverlayStep;
  readonly result: StepResult;
}

export interface ReadOptions {
  /** Trust nothing remembered: ask the kernel again. Default false. */
  readonly fresh?: boolean;
}

/** The device of the path probes' reserved network: `probe-device.ts` puts an address and a socket on it. */
export interface ProbeLink {
  /** @throws NetError */
  enter(steps: readonly EntryStep[]): void;
  /** Deletes the device. @throws NetError */
  close(): void;
}

export interface ProbeLinkOptions {
  /** Where the device is to stand. */
  readonly netns: Netns;
  readonly name: string;
  readonly mac: MacAddr;
  readonly mtu: number;
  readonly vtep: IpAddr;
  readonly dataPathPort: number;
}

/** What is known of the fast path (`fast-path.ts`), and who may not use it. */
export interface FastPathControl {
  /** Why frames from and to a VTEP must not take it; undefined when they may. Asked every second. */
  refusal: (vtep: IpAddr) => string | undefined;
  status(): FastPathStatus;
  /** A capture is about to begin: the network's frames take the slow path from now on, until it has ended. */
  standAside(network: NetworkId, name: string): void;
}

export interface FastPathStatus {
  /** Networks whose frames may take it. */
  readonly networks: number;
  /** Nodes they may take it to. */
  readonly vteps: number;
  /** Why it is not in use, or not everywhere; empty when nothing is in its way. */
  readonly reason: string;
}

export interface Dataplane {
  readonly kind: "kernel" | "userspace";
  /** Absent where there can be none. */
  readonly fastPath?: FastPathControl;

  /**
   * Brings what is remembered of the network up to date a slice at a time, so that the next `read` is short. With
   * `fresh` (the sweep) it is compared with the kernel, whatever the notifications said. @throws NetError
   */
  refresh(desired: DesiredOverlay, options?: ReadOptions): Sliced<void>;

  /**
   * What is there of the network, in its namespace and in the sandboxes of its endpoints.
   * @throws NetError when the kernel cannot be asked at all (no privileges, interrupted for ever)
   */
  read(desired: DesiredOverlay, options?: ReadOptions): ActualOverlay;

  /** Tries every step in order; one that fails stops only those that need it. Never throws for a step. */
  apply(desired: DesiredOverlay, steps: readonly OverlayStep[]): readonly AppliedStep[];

  /** Lets frames of the network take the fast path where they can, by what the device forwards by now. Never throws. */
  accelerate?(desired: DesiredOverlay): Sliced<void>;

  /** Networks with kernel objects of ours, from whatever life: for adoption and for cleaning up. */
  list(): readonly NetworkId[];

  /**
   * Calls `onDrift` when something of a network was changed by another hand (or by ourselves, harmlessly).
   * `undefined` means any network. From the event loop, never during `read` or `apply`.
   */
  watch(onDrift: (network: NetworkId | undefined) => void): void;

  /**
   * A device on the reserved network, down, whose frames go the same way as those of networks, but are lost instead of
   * cut into pieces when they do not fit: that is what is measured.
   * @throws NetError
   */
  openProbeLink(options: ProbeLinkOptions): ProbeLink;

  /** What moves frames in this process has counted so far, by name; empty where the kernel moves them. */
  counters(): Readonly<Record<string, number>>;

  close(): void;
}
