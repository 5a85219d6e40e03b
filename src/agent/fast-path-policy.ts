import { type IpAddr } from "../base/ip.ts";
import type { PathHealth } from "../overlay/path-prober.ts";
import { concerns, type Firewall } from "./firewall.ts";

export interface FastPathPolicyOptions {
  readonly ownVtep: IpAddr;
  readonly port: number;
  readonly health: (vtep: IpAddr) => Pick<PathHealth, "state">;
  readonly readFirewall: () => Promise<Firewall>;
  /** Changes with nftables' rules; undefined when the kernel does not tell. */
  readonly ruleGeneration: () => number | undefined;
  readonly nowMs: () => number;
}

/** Rules change seldom, and to read them costs as much as some hundred thousand packets. */
const FIREWALL_FRESH_MS = 60_000;
/** Those of legacy iptables have no generation. */
const FIREWALL_OLD_MS = 600_000;

/**
 * To whom the fast path must not be used, because it goes round the host's firewall: what that drops must stay dropped.
 * Probes of the data path go through the firewall, so a peer that does not get through is `blocked`; rules that name
 * VXLAN's port or a VTEP are looked for besides, for peers that answer no probes.
 */
export class FastPathPolicy {
  readonly #options: FastPathPolicyOptions;
  #firewall: Firewall | undefined;
  #askedAt = -Infinity;
  #readAt = -Infinity;
  #generation: number | undefined;

  constructor(options: FastPathPolicyOptions) {
    this.#options = options;
  }

  /** Undefined when it may be used. */
  refusal(vtep: IpAddr): string | undefined {
    this.#refresh();
    const { ownVtep, port, health } = this.#options;
    const { state } = health(vtep);
    if (state === "blocked") return `the data path to ${vtep} is blocked`;
    if (this.#firewall === undefined) return "the host's firewall has not been read yet";
    const rule = this.#firewall.rules.find((one) =>
      [vtep, ownVtep].some((address) => concerns(one, { protocol: "udp", port, address })),
    );
    if (rule !== undefined) return `a firewall rule of the host may concern it: ${rule.text}`;
    const chain = this.#firewall.chains.find(({ hook }) => hook === "input");
    if (chain !== undefined && state === "unknown")
      return `table ${chain.table} drops what it does not know, and ${vtep} answers no probes`;
    return undefined;
  }

  #refresh(): void {
    const now = this.#options.nowMs();
    if (now - this.#askedAt < FIREWALL_FRESH_MS) return;
    this.#askedAt = now;
    const generation = this.#options.ruleGeneration();
    const known = generation !== undefined && generation === this.#generation;
    if (known && now - this.#readAt < FIREWALL_OLD_MS) return;
    this.#readAt = now;
    this.#generation = generation;
    void this.#options.readFirewall().then((firewall) => (this.#firewall = firewall));
  }
}
