import type { NetworkId, NodeName } from "../base/id.ts";
import { SLICE_ROWS, type Sliced } from "../base/sliced.ts";
import { elapsed, type Instant } from "../base/time.ts";
import type { PeerProblem, RejectedPeer } from "../overlay/desired.ts";

/** Rows of one owner with one problem. */
export interface RejectedGroup {
  readonly network: NetworkId;
  readonly owner: NodeName;
  readonly problem: PeerProblem;
  readonly rows: number;
  /** One of them: `10.0.9.5 02:42:0a:00:09:05 at 192.0.2.7`. */
  readonly example: string;
}

/** A row moves, an address changes hands: for a moment two rows contradict each other and nothing is wrong. */
const GRACE_MS = 5_000;
/** The same is not said again for so long after it went away. */
const QUIET_MS = 60_000;
/** Owners × problems of one network that are told apart; what members can make up is bounded by their number only. */
const MAX_GROUPS = 256;
const MAX_REMEMBERED = 1_024;

export interface RejectedRowsOptions {
  readonly now: () => Instant;
  /** Rows of a member that failed or restarted are its past, not its claim. */
  readonly isLiving: (owner: NodeName) => boolean;
  /** Called once for a group that lasts. */
  readonly onRejected: (group: RejectedGroup) => void;
}

/** Which rows of others became no entries, and why: counted, and told once. */
export class RejectedRows {
  readonly #options: RejectedRowsOptions;
  readonly #groups = new Map<NetworkId, readonly RejectedGroup[]>();
  /** By network, owner and problem: since when it is seen, last seen, and whether it was told. */
  readonly #seen = new Map<string, { readonly since: Instant; last: Instant; told: boolean }>();

  constructor(options: RejectedRowsOptions) {
    this.#options = options;
  }

  /** What is wrong just now. */
  get groups(): readonly RejectedGroup[] {
    return [...this.#groups.values()].flat();
  }

  /** All rows of a network that were left out this time. */
  *update(network: NetworkId, rejected: readonly RejectedPeer[]): Sliced<void> {
    const groups = new Map<string, { group: Omit<RejectedGroup, "rows">; rows: number }>();
    let rows = 0;
    for (const { peer, problem } of rejected) {
      if (++rows % SLICE_ROWS === 0) yield;
      const { owner } = peer;
      if (owner === undefined || peer.suspended === true) continue;
      const key = `${owner} ${problem}`;
      const known = groups.get(key);
      if (known !== undefined) known.rows++;
      else if (groups.size < MAX_GROUPS && this.#options.isLiving(owner)) {
        const example = `${peer.ip} ${peer.mac} at ${peer.vtep}`;
        groups.set(key, { group: { network, owner, problem, example }, rows: 1 });
      }
    }
    if (groups.size === 0) this.#groups.delete(network);
    else
      this.#groups.set(
        network,
        [...groups.values()].map((one) => ({ ...one.group, rows: one.rows })),
      );
    this.#tell(network);
  }

  #tell(network: NetworkId): void {
    const now = this.#options.now();
    for (const [key, seen] of this.#seen) if (elapsed(seen.last, now) > QUIET_MS) this.#seen.delete(key);
    for (const group of this.#groups.get(network) ?? []) {
      const key = `${network} ${group.owner} ${group.problem}`;
      let seen = this.#seen.get(key);
      if (seen === undefined) {
        if (this.#seen.size >= MAX_REMEMBERED) continue;
        this.#seen.set(key, (seen = { since: now, last: now, told: false }));
      }
      seen.last = now;
      if (seen.told || elapsed(seen.since, now) < GRACE_MS) continue;
      seen.told = true;
      this.#options.onRejected(group);
    }
  }
}

/** `3 rows of node4 (local-address, as 10.0.9.5 02:42:0a:00:09:05 at 192.0.2.7)`. */
export function rejectedText({ rows, problem, example }: RejectedGroup, owner: string): string {
  return `${rows} ${rows === 1 ? "row" : "rows"} of ${owner} (${problem}, as ${example})`;
}
