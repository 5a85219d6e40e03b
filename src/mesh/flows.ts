/** Flows whose backend is gone: what conntrack would keep sending to nobody. */
import type { NetworkId } from "../base/id.ts";
import type { IpAddr } from "../base/ip.ts";
import type { MeshProtocol, Sandbox } from "./input.ts";

interface Doubtable {
  /** Its backend or the backend's node does not answer, as it seems. */
  readonly doubted: boolean;
}

/** Translated flows of the host's table go to this address and port. */
export interface HostFlow extends Doubtable {
  readonly protocol: MeshProtocol;
  readonly ip: IpAddr;
  readonly port: number;
}

/** Translated flows of a sandbox's table go to this address, whatever the port. */
export interface VipFlow extends Doubtable {
  readonly protocol: MeshProtocol;
  readonly network: NetworkId;
  readonly ip: IpAddr;
}

/** Where flows of one service may be going: its backends, draining ones included. Its lists may be made when asked for. */
export interface FlowGroup {
  readonly id: string;
  readonly host: readonly HostFlow[];
  readonly vip: readonly VipFlow[];
}

/** Conntrack entries to delete in one namespace: translated flows to `ip`, to `port` where given. */
export interface FlowPurge {
  readonly protocol: MeshProtocol;
  readonly ip: IpAddr;
  readonly port?: number;
  /** Only those that nobody has answered yet. */
  readonly unanswered?: true;
}

/**
 * Flows to purge, by namespace (`host` or a sandbox), after the ruleset of `after` is in place. UDP flows then go to
 * another backend with their next datagram. A TCP connection's next segment does, too, and is reset at once, where it
 * would otherwise be sent to nobody until its owner gives up; so a backend counts as gone only when its row is, after
 * the drain, and not when its node is held for dead (`service-blocks.ts`). A backend that is newly doubted loses the flows
 * that nobody has answered yet: a client's next SYN finds another one, where otherwise it would go on asking this one for
 * two minutes. Both lists ascend by id; a group that is the same object in both is skipped.
 */
export function planPurges(
  before: readonly FlowGroup[],
  after: readonly FlowGroup[],
  sandboxes: readonly Sandbox[],
): ReadonlyMap<string, readonly FlowPurge[]> {
  const purges = new Map<string, FlowPurge[]>();
  let j = 0;
  for (const old of before) {
    while (j < after.length && (after[j] as FlowGroup).id < old.id) j++;
    const current = after[j];
    if (current === old) continue;
    const same = current?.id === old.id ? current : undefined;
    const { host = [], vip = [] } = same ?? {};
    for (const flow of old.host) {
      const { protocol, ip, port } = flow;
      const which = purgeOf(
        flow,
        host.find((other) => sameFlow(flow, other)),
      );
      if (which !== undefined) add(purges, "host", { protocol, ip, port, ...which });
    }
    for (const flow of old.vip) {
      const { protocol, network, ip } = flow;
      const which = purgeOf(
        flow,
        vip.find((other) => other.protocol === protocol && other.network === network && other.ip === ip),
      );
      if (which === undefined) continue;
      for (const { namespace, legs } of sandboxes)
        if (legs.some((leg) => leg.network === network)) add(purges, namespace, { protocol, ip, ...which });
    }
  }
  return purges;
}

/** Undefined: nothing is purged. */
function purgeOf(before: Doubtable, after: Doubtable | undefined): Pick<FlowPurge, "unanswered"> | undefined {
  if (after === undefined) return {};
  return after.doubted && !before.doubted ? { unanswered: true } : undefined;
}

function sameFlow(a: HostFlow, b: HostFlow): boolean {
  return a.protocol === b.protocol && a.ip === b.ip && a.port === b.port;
}

function add(purges: Map<string, FlowPurge[]>, namespace: string, purge: FlowPurge): void {
  const list = purges.get(namespace);
  if (list === undefined) purges.set(namespace, [purge]);
  else list.push(purge);
}
