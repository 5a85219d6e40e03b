/** Times and sizes of `State`; what each protects stands beside it. */
export interface StateConfig {
  /** Between two rounds of gossip, milliseconds. */
  readonly gossipMs: number;
  /** Between two rounds while a change waits that nobody was told of yet, milliseconds. */
  readonly gossipUntoldMs: number;
  /** Members told per round. */
  readonly gossipFanout: number;
  /** A change is told multiplier · ⌈log₁₀(members + 1)⌉ times. */
  readonly retransmitMultiplier: number;
  /** Between two digests to a random member while something changes, milliseconds. */
  readonly digestMs: number;
  /** Bound of a packet's payload, bytes. */
  readonly packetBytes: number;
  /** How long one owner is given to answer a request for addresses, milliseconds. */
  readonly askMs: number;
  /** How long a request for an address may take in all, milliseconds. */
  readonly allocateMs: number;
  /** After joining, how long to wait for a ring of `ingress` before one is seeded, milliseconds. */
  readonly seedMs: number;
}

export const DEFAULT_CONFIG: StateConfig = {
  gossipMs: 200,
  gossipUntoldMs: 20,
  gossipFanout: 3,
  retransmitMultiplier: 4,
  digestMs: 1000,
  packetBytes: 1100,
  askMs: 2000,
  allocateMs: 8000,
  seedMs: 5000,
};
