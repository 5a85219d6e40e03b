import { assert } from "../base/assert.ts";
import type { Cidr } from "../base/ip.ts";

/**
 * Settings of one node. The first block is memberlist's own (config.go, DefaultLANConfig and its two siblings);
 * the second is what we add, and each of those can be switched off, which leaves memberlist's behaviour.
 */
export interface SwimConfig {
  /** Deadline for connecting, and anew for each phase of a stream. */
  readonly tcpTimeoutMs: number;
  /** Members asked to probe for us when a direct probe gets no answer. */
  readonly indirectChecks: number;
  /** A broadcast is sent this · ⌈log10(N + 1)⌉ times. */
  readonly retransmitMult: number;
  /** Suspicion lasts at least this · log10(N) probe intervals; larger means slower and surer. */
  readonly suspicionMult: number;
  /** Suspicion that nobody confirms lasts this many times longer. */
  readonly suspicionMaxTimeoutMult: number;
  /** Between two exchanges of the whole state, for up to 32 members; larger clusters exchange less often. */
  readonly pushPullIntervalMs: number;
  /** How long a direct probe may take before indirect ones start; also what a relay waits. Below `probeIntervalMs`. */
  readonly probeTimeoutMs: number;
  /** One member is probed per interval; all of a probe must end within it (times health + 1). */
  readonly probeIntervalMs: number;
  /** Health scores are 0 … this − 1. Bounds how slow a sick node may become. */
  readonly awarenessMaxMultiplier: number;
  /** Members each gossip round goes to. */
  readonly gossipNodes: number;
  readonly gossipIntervalMs: number;
  /** Dead members are still gossiped to for so long, so that they may hear of it and refute; then dropped. */
  readonly gossipToTheDeadMs: number;
  /** A member dead for longer may come back at another address without proof; 0 is never. */
  readonly deadNodeReclaimMs: number;
  /** Whether to fall back to a ping over TCP. */
  readonly tcpPing: boolean;
  /** Bytes in one packet before compression: keeps datagrams below the MTU of the underlay. */
  readonly udpBufferBytes: number;
  /** Messages of one packet that are looked at, state and others each. Bounds the work one datagram can cause. */
  readonly handoffDepth: number;
  /** Addresses members may have and speak from; empty is any. Keeps strangers out of a flat network. */
  readonly allowedNetworks: readonly Cidr[];
  /** Whoever asks for an answer and does not say its name gets none: nothing goes to whom only the address is known of. */
  readonly requireNodeNames: boolean;

  /** Broadcasts waiting; above it those sent most often go first. Protects memory in a storm. */
  readonly maxBroadcasts: number;
  /** Members in whatever state; more are not admitted. Protects memory from invented names. */
  readonly maxMembers: number;
  /** Unanswered pings, relayed pings and verifications at a time, each. */
  readonly maxPending: number;

  /** Least direct-probe time-out when it follows measured round trips. `probeTimeoutMs` = do not follow them. */
  readonly minProbeTimeoutMs: number;
  /** Further direct pings in one probe, before it fails: loss of one packet is no evidence. */
  readonly repeatedPings: number;
  /** A refused TCP connection, seen twice, is proof of death. */
  readonly trustRefusals: boolean;
  /** Last look at a suspect, by ourselves, before its death is declared; 0 is none. */
  readonly verifyMs: number;
  /** How long a verdict nobody else supports waits while most of our own probes fail; 0 is not at all. */
  readonly holdVerdictsMs: number;
  /** Gossip interval while broadcasts wait. Equal to `gossipIntervalMs` = memberlist's pace. */
  readonly busyGossipIntervalMs: number;
  /** A first broadcast waits this long for company before it goes out. */
  readonly gossipDelayMs: number;
  /** A member known to have a broadcast is not sent it; it counts as sent. */
  readonly skipInformed: boolean;
  /** Join requests arriving within this time of each other are answered together, with all of them in the answer. */
  readonly joinBatchMs: number;
  /** Longest wait of the first one in such a batch. */
  readonly joinBatchMaxMs: number;
  /** Joins under way at a time. Bounds the sockets a long seed list opens. */
  readonly parallelJoins: number;
  /** Dead members are tried again about this often by the cluster as a whole; 0 is never. Heals partitions. */
  readonly reconnectIntervalMs: number;
  /** Dead members are remembered this long for that. */
  readonly reconnectForgetMs: number;
  /** Dead members remembered for that. Protects memory where names are fresh at every start. */
  readonly maxDeparted: number;
  /** Members that return at another address are believed once the old one is seen to be gone. */
  readonly verifyMoves: boolean;
}

/** One network segment or data centre: round trips of milliseconds. */
export const LAN: SwimConfig = {
  tcpTimeoutMs: 10_000,
  indirectChecks: 3,
  retransmitMult: 4,
  suspicionMult: 4,
  suspicionMaxTimeoutMult: 6,
  pushPullIntervalMs: 30_000,
  probeTimeoutMs: 500,
  probeIntervalMs: 1_000,
  awarenessMaxMultiplier: 8,
  gossipNodes: 3,
  gossipIntervalMs: 200,
  gossipToTheDeadMs: 30_000,
  deadNodeReclaimMs: 0,
  tcpPing: true,
  udpBufferBytes: 1400,
  handoffDepth: 1024,
  allowedNetworks: [],
  requireNodeNames: false,

  maxBroadcasts: 16_384,
  maxMembers: 65_536,
  maxPending: 1_024,

  minProbeTimeoutMs: 100,
  repeatedPings: 2,
  trustRefusals: true,
  verifyMs: 500,
  holdVerdictsMs: 30_000,
  busyGossipIntervalMs: 50,
  gossipDelayMs: 10,
  skipInformed: true,
  joinBatchMs: 20,
  joinBatchMaxMs: 2_000,
  parallelJoins: 8,
  reconnectIntervalMs: 4_000,
  reconnectForgetMs: 24 * 3_600_000,
  maxDeparted: 8_192,
  verifyMoves: true,
};

/** Sites joined by long links: round trips up to seconds. */
export const WAN: SwimConfig = {
  ...LAN,
  tcpTimeoutMs: 30_000,
  suspicionMult: 6,
  pushPullIntervalMs: 60_000,
  probeTimeoutMs: 3_000,
  probeIntervalMs: 5_000,
  gossipNodes: 4,
  gossipIntervalMs: 500,
  gossipToTheDeadMs: 60_000,
  minProbeTimeoutMs: 500,
  verifyMs: 2_000,
  holdVerdictsMs: 60_000,
  busyGossipIntervalMs: 125,
};

/** Several nodes on one machine, for development. */
export const LOCAL: SwimConfig = {
  ...LAN,
  tcpTimeoutMs: 1_000,
  indirectChecks: 1,
  retransmitMult: 2,
  suspicionMult: 3,
  pushPullIntervalMs: 15_000,
  probeTimeoutMs: 200,
  gossipIntervalMs: 100,
  gossipToTheDeadMs: 15_000,
  minProbeTimeoutMs: 50,
  verifyMs: 200,
  busyGossipIntervalMs: 25,
};

/** What memberlist does, and nothing else: the reference that the rest is measured against. */
export function likeMemberlist(config: SwimConfig): SwimConfig {
  return {
    ...config,
    minProbeTimeoutMs: config.probeTimeoutMs,
    repeatedPings: 0,
    trustRefusals: false,
    verifyMs: 0,
    holdVerdictsMs: 0,
    busyGossipIntervalMs: config.gossipIntervalMs,
    gossipDelayMs: config.gossipIntervalMs / 2,
    skipInformed: false,
    joinBatchMs: 0,
    parallelJoins: 1,
    reconnectIntervalMs: 0,
    verifyMoves: false,
  };
}

/** A profile with some settings replaced. @throws an invariant error on settings that contradict each other. */
export function swimConfig(profile: SwimConfig, overrides: Partial<SwimConfig> = {}): SwimConfig {
  const config = { ...profile, ...overrides };
  for (const [name, value] of Object.entries(config)) {
    if (typeof value === "number") assert(value >= 0, `${name} is negative`);
  }
  assert(config.probeTimeoutMs < config.probeIntervalMs, "the TCP fallback needs time after probeTimeoutMs");
  assert(config.minProbeTimeoutMs <= config.probeTimeoutMs, "minProbeTimeoutMs exceeds probeTimeoutMs");
  assert(config.busyGossipIntervalMs <= config.gossipIntervalMs, "busy gossip is slower than idle gossip");
  assert(config.gossipIntervalMs > 0 && config.probeIntervalMs > 0, "an interval is zero");
  assert(config.busyGossipIntervalMs > 0 && config.pushPullIntervalMs > 0, "an interval is zero");
  assert(config.awarenessMaxMultiplier >= 1, "awarenessMaxMultiplier is below 1");
  assert(config.udpBufferBytes >= 512, "a packet must hold a ping and one broadcast");
  assert(config.parallelJoins >= 1 && config.gossipNodes >= 1, "joins and gossip need at least one peer");
  return config;
}
