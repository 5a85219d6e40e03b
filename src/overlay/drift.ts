/** What was wrong where a step of the plan is needed although nothing of ours changed: for events, doctor and trace. */
import { unreachable } from "../base/assert.ts";
import { formatCidr, type IpAddr } from "../base/ip.ts";
import { SLICE_ROWS, type Sliced } from "../base/sliced.ts";
import type { DesiredOverlay } from "./desired.ts";
import { VXLAN_LINK } from "./naming.ts";
import {
  type ActualOverlay,
  derivePlan,
  type FoundEntry,
  formatStep,
  gatewayLink,
  type OverlayStep,
} from "./plan.ts";

/** A difference that no change of ours explains. */
export interface Drift {
  /** One line: what the kernel had, then the step that mends it. */
  readonly text: string;
  /** What it is about, as `driftObject` names it. */
  readonly object: string;
  /** Behind which the peer is that an entry is about; absent for what is of this node. */
  readonly vtep?: IpAddr;
}

/** `actual` is as it was when the step was planned. */
export function describeDrift(desired: DesiredOverlay, actual: ActualOverlay, step: OverlayStep): Drift {
  const vtep = vtepOf(desired, step);
  return {
    text: `${fault(desired, actual, step)}: ${formatStep(desired.network, step)}`,
    object: driftObject(step),
    ...(vtep === undefined ? {} : { vtep }),
  };
}

/**
 * Parts a plan in what another hand's doing makes necessary and what our own changes do: a step that was needed as well
 * for what was desired when the kernel last agreed is about drift.
 */
export function* separateDrift(
  agreed: DesiredOverlay,
  actual: ActualOverlay,
  steps: readonly OverlayStep[],
): Sliced<{ readonly drift: readonly OverlayStep[]; readonly ours: readonly OverlayStep[] }> {
  if (steps.length === 0) return { drift: [], ours: [] };
  const before = yield* derivePlan(agreed, actual);
  const known = new Set<string>();
  let rows = 0;
  for (const step of before.steps) {
    if (++rows % SLICE_ROWS === 0) yield;
    known.add(formatStep(agreed.network, step));
  }
  const drift: OverlayStep[] = [];
  const ours: OverlayStep[] = [];
  for (const step of steps) {
    if (++rows % SLICE_ROWS === 0) yield;
    (known.has(formatStep(agreed.network, step)) ? drift : ours).push(step);
  }
  return { drift, ours };
}

/** What a step is about: equal for the steps that a hop of a packet's way depends on. */
export function driftObject(step: OverlayStep): string {
  switch (step.type) {
    case "create-namespace":
    case "pin-namespace":
    case "set-sysctl":
    case "delete-namespace":
      return "namespace";
    case "create-vxlan":
    case "set-vxlan":
    case "delete-vxlan":
      return VXLAN_LINK;
    case "create-gateway":
    case "set-gateway":
    case "delete-gateway":
      return "gateway";
    case "create-endpoint":
    case "set-endpoint":
      return step.endpoint.id;
    case "delete-endpoint":
      return step.id;
    case "set-fdb":
    case "delete-fdb":
      return `fdb ${step.mac}`;
    case "set-neighbor":
    case "delete-neighbor":
      return `neighbor ${step.ip}`;
    default:
      return unreachable(step);
  }
}

function vtepOf({ fdb }: DesiredOverlay, step: OverlayStep): IpAddr | undefined {
  if (step.type === "set-fdb") return step.vtep;
  return step.type === "set-neighbor" ? fdb.get(step.mac) : undefined;
}

function fault(desired: DesiredOverlay, actual: ActualOverlay, step: OverlayStep): string {
  switch (step.type) {
    case "create-namespace":
      return "the namespace was gone";
    case "pin-namespace":
      return "the namespace had lost its pin";
    case "set-sysctl":
      return `${step.name} was changed`;
    case "create-vxlan":
      return actual.vxlan === undefined ? `${VXLAN_LINK} was gone` : `${VXLAN_LINK} was made differently`;
    case "set-vxlan":
      return `${VXLAN_LINK} ${deviceFaults(step, actual).join(" and ")}`;
    case "create-gateway":
      return `the gateway ${gatewayLink(step.core.linkKind)} was gone`;
    case "set-gateway":
      return `the gateway ${gatewayLink(step.core.linkKind)} ${gatewayFaults(step, actual).join(" and ")}`;
    case "create-endpoint":
      return `${step.endpoint.ifname} was gone`;
    case "set-endpoint":
      return `${step.ifname} ${endpointFaults(step, actual).join(" and ")}`;
    case "set-fdb":
      return `the FDB entry of ${step.mac} ${entryFault(actual.fdb.get(step.mac))}`;
    case "set-neighbor":
      return `the neighbor ${step.ip} ${entryFault(actual.neighbors.get(step.ip))}`;
    case "delete-neighbor":
      return `there was a neighbor ${step.ip} that no row has`;
    case "delete-fdb":
      return `there was an FDB entry of ${step.mac} that no row has`;
    case "delete-endpoint":
      return desired.endpoints.has(step.id)
        ? `${step.ifname} was in the wrong place or of the wrong kind`
        : `there was an interface ${step.ifname} of no endpoint`;
    case "delete-gateway":
    case "delete-vxlan":
    case "delete-namespace":
      return desired.core === undefined ? "nothing is attached any more" : "it was made differently";
    default:
      return unreachable(step);
  }
}

function entryFault(found: FoundEntry<string> | undefined): string {
  if (found === undefined) return "was gone";
  return `pointed to ${typeof found === "string" ? found : found.unlike}`;
}

function deviceFaults(
  { core }: Extract<OverlayStep, { type: "set-vxlan" }>,
  { vxlan }: ActualOverlay,
): string[] {
  if (vxlan === undefined) return ["was gone"];
  return saidOr("had other settings (learning, TTL, alias)", [
    !vxlan.up && "was down",
    vxlan.mtu !== core.mtu && `had MTU ${vxlan.mtu}`,
    vxlan.vtep !== core.vtep && `sent from ${vxlan.vtep ?? "any address"}`,
    vxlan.onBridge !== (core.linkKind === "veth") && "was on the wrong side of the bridge",
  ]);
}

function gatewayFaults(
  { core, remove }: Extract<OverlayStep, { type: "set-gateway" }>,
  { gateway }: ActualOverlay,
): string[] {
  if (gateway === undefined) return ["was gone"];
  const wanted = formatCidr(core.gateway);
  return saidOr("had other settings (MAC, mode, alias)", [
    !gateway.up && "was down",
    gateway.mtu !== core.mtu && `had MTU ${gateway.mtu}`,
    !gateway.addresses.some((address) => formatCidr(address) === wanted) && `lacked ${wanted}`,
    remove.length > 0 && `had ${remove.map(formatCidr).join(" ")}`,
  ]);
}

function endpointFaults(
  { endpoint, core, ifname, remove }: Extract<OverlayStep, { type: "set-endpoint" }>,
  { endpoints }: ActualOverlay,
): string[] {
  const found = endpoints.find((one) => one.id === endpoint.id && one.ifname === ifname);
  if (found === undefined) return ["was gone"];
  const wanted = formatCidr(endpoint.address);
  const hasAddress = found.addresses.some((address) => formatCidr(address) === wanted);
  return saidOr("had other settings (mode, alias)", [
    ifname !== endpoint.ifname && `was called so instead of ${endpoint.ifname}`,
    !found.up && "was down",
    found.mac !== endpoint.mac && `had MAC ${found.mac}`,
    found.mtu !== core.mtu && `had MTU ${found.mtu}`,
    !hasAddress && `lacked ${wanted}`,
    remove.length > 0 && `had ${remove.map(formatCidr).join(" ")}`,
    // Both go with a link that is down or has no address.
    found.up && hasAddress && !found.routed && "had no route to its subnet",
  ]);
}

/** Those that hold, or what is left when none does. */
function saidOr(otherwise: string, faults: readonly (string | false)[]): string[] {
  const said = faults.filter((text) => text !== false);
  return said.length > 0 ? said : [otherwise];
}
