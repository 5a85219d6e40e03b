import { formatCidr } from "../base/ip.ts";
import type { NetworkId, NodeName } from "../base/id.ts";
import { elapsed, instant, type Instant } from "../base/time.ts";
import type { RowChange } from "../networkdb/effect.ts";
import { endpointRecordOf } from "../overlay/rows.ts";
import type { DefinitionChange } from "../state/definitions.ts";
import { INGRESS } from "../state/ingress.ts";
import type { NetworkView, ServiceView, State } from "../state/state.ts";
import { ENDPOINT_TABLE } from "../wire/networkdb/records.ts";

/** Endpoints of others told one by one; a bulk sync of thousands is told as a number. */
const TOLD_EACH = 50;
const WINDOW_MS = 10_000;

export interface ChangeEventParts {
  readonly state: State;
  readonly self: NodeName;
  readonly now: () => Instant;
  readonly shownName: (member: string) => string;
  readonly emit: (type: string, subject: string, detail: string) => void;
}

interface Known {
  readonly name: string;
  readonly text: string;
}

/** Tells what changes in the swarm's definitions and others' endpoints, on every node alike, whoever changed it. */
export class ChangeEvents {
  readonly #parts: ChangeEventParts;
  /** As last told, by kind and id. */
  readonly #known = new Map<string, Known>();
  #windowFrom = instant(-Infinity);
  #inWindow = 0;

  constructor(parts: ChangeEventParts) {
    this.#parts = parts;
  }

  /** Remembers what is defined already, so that a start is no news. */
  begin(): void {
    const { state } = this.#parts;
    const all: readonly (readonly [DefinitionChange["kind"], readonly { readonly id: string }[]])[] = [
      ["network", state.networks()],
      ["service", state.services()],
      ["node", state.nodes()],
    ];
    for (const [kind, definitions] of all)
      for (const { id } of definitions) this.#remember({ kind, id }, this.#read({ kind, id }));
  }

  definitionsChanged(changes: readonly DefinitionChange[]): void {
    for (const change of changes) {
      const { kind, id } = change;
      const old = this.#known.get(keyOf(change));
      const now = this.#read(change);
      this.#remember(change, now);
      // Members tell of their coming themselves.
      if (old === undefined && now !== undefined && kind !== "node")
        this.#parts.emit(`${kind}-created`, now.name, now.text);
      else if (old !== undefined && now === undefined)
        this.#parts.emit(`${kind}-removed`, old.name, id.slice(0, 12));
      else if (old !== undefined && now !== undefined && old.text !== now.text)
        this.#parts.emit(`${kind}-updated`, now.name, now.text);
    }
  }

  /** Our own endpoints are told by who attaches and detaches them. */
  rowChanged(change: RowChange, networkName: string): void {
    if (change.table !== ENDPOINT_TABLE || change.network === INGRESS.id) return;
    if (change.owner === this.#parts.self) return;
    const previous = change.previous && endpointRecordOf({ value: change.previous });
    const current = change.current && endpointRecordOf({ value: change.current });
    const record = current ?? previous;
    if (record === undefined) return;
    const type =
      previous === undefined
        ? "endpoint-attached"
        : current === undefined
          ? "endpoint-detached"
          : current.serviceDisabled === previous.serviceDisabled
            ? undefined
            : current.serviceDisabled
              ? "endpoint-draining"
              : "endpoint-ready";
    if (type === undefined || !this.#mayTell()) return;
    const where = `${record.endpointIp} on ${networkName}, ${this.#parts.shownName(change.owner)}`;
    this.#parts.emit(type, record.name || change.key.slice(0, 12), where);
  }

  #mayTell(): boolean {
    const now = this.#parts.now();
    if (elapsed(this.#windowFrom, now) > WINDOW_MS) {
      const untold = this.#inWindow - TOLD_EACH;
      if (untold > 0)
        this.#parts.emit("endpoints-changed", "networks", `${untold} more changes of others' endpoints`);
      this.#windowFrom = now;
      this.#inWindow = 0;
    }
    return ++this.#inWindow <= TOLD_EACH;
  }

  #remember(change: DefinitionChange, known: Known | undefined): void {
    if (known === undefined) this.#known.delete(keyOf(change));
    else this.#known.set(keyOf(change), known);
  }

  #read({ kind, id }: DefinitionChange): Known | undefined {
    const { state } = this.#parts;
    switch (kind) {
      case "network": {
        const found = state.network(id as NetworkId);
        return found && { name: found.name, text: networkText(found) };
      }
      case "service": {
        const found = state.services().find((service) => service.id === id);
        return found && { name: found.name, text: serviceText(found) };
      }
      case "node": {
        const found = state.nodes().find((node) => node.id === id && !node.removed);
        return found && { name: found.name, text: found.availability };
      }
    }
  }
}

function keyOf({ kind, id }: DefinitionChange): string {
  return `${kind} ${id}`;
}

function networkText({ subnet, vni, mtu }: NetworkView): string {
  return `${formatCidr(subnet)}, VNI ${vni}${mtu === undefined ? "" : `, MTU ${mtu}`}`;
}

function serviceText({ ports, affinity, endpointMode }: ServiceView): string {
  const published = ports.map(
    (port) => `${port.published}→${port.target}/${port.protocol}${port.mode === "host" ? " (host)" : ""}`,
  );
  return [endpointMode, ...(affinity === "none" ? [] : [affinity]), ...published].join(", ");
}
