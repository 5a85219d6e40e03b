import type { NodePort } from "../mesh/claims.ts";

/** What the kernel counted of one published port since it last made the element anew. */
export interface PortCount extends NodePort {
  readonly connections: number;
  /** There is no backend: they are refused. */
  readonly refused: boolean;
}

/** Of one published port since this agent started, as far as it looked. */
export interface PortTotals extends NodePort {
  readonly accepted: number;
  readonly refused: number;
}

/** Adds up what begins anew whenever the number of a service's backends has changed much. Each look is one of a scrape. */
export class PortTotal {
  readonly #ports = new Map<string, PortTotals & { readonly seen: PortCount }>();

  /** Ports that are no longer published are forgotten. */
  add(counts: readonly PortCount[]): readonly PortTotals[] {
    const gone = new Set(this.#ports.keys());
    for (const seen of counts) {
      const { protocol, port, address, connections } = seen;
      const key = `${address ?? ""} ${protocol} ${port}`;
      gone.delete(key);
      const before = this.#ports.get(key);
      const continued =
        before !== undefined &&
        before.seen.refused === seen.refused &&
        before.seen.connections <= connections;
      const more = continued ? connections - before.seen.connections : connections;
      this.#ports.set(key, {
        protocol,
        port,
        ...(address === undefined ? {} : { address }),
        accepted: (before?.accepted ?? 0) + (seen.refused ? 0 : more),
        refused: (before?.refused ?? 0) + (seen.refused ? more : 0),
        seen,
      });
    }
    for (const key of gone) this.#ports.delete(key);
    return [...this.#ports.values()];
  }
}
