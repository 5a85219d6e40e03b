import { assert } from "../base/assert.ts";

/** Timers and bounds. The defaults are Docker's (networkdb.md §10) where Docker has one. */
export interface NetworkDbConfig {
  /** Between two gossip rounds of one network. */
  readonly gossipIntervalMs: number;
  /** Wait after a change on an idle network. 0: at the next wake, which comes when what changes together has changed. */
  readonly gossipDelayMs: number;
  /** Wait before peers are asked after a join, so that networks joined together share their requests; and between looks for more to ask. */
  readonly joinSyncDelayMs: number;
  /** Between two packets of what was never sent before: a second change soon after the first need not wait a whole interval. */
  readonly gossipUnsentIntervalMs: number;
  /** Random participants each gossip packet goes to. */
  readonly gossipFanout: number;
  /** Packets to each of them in one round: drains a redeploy of thousands of rows, bounds the burst a peer's socket sees. */
  readonly gossipPacketsPerRound: number;
  /** Largest `send-packet` payload: UDP buffer less everything memberlist wraps around it. */
  readonly gossipPayloadBytes: number;
  /** An event is sent this · ⌈log10(participants + 1)⌉ times. */
  readonly retransmitMultiplier: number;

  readonly bulkSyncIntervalMs: number;
  /** Silence after which a bulk sync counts as failed. */
  readonly bulkSyncTimeoutMs: number;
  /** Size of one bulk sync message; far below the 20 MiB (older peers: 10 MiB) at which memberlist refuses streams. */
  readonly bulkSyncPageBytes: number;
  /** Between two pages to one peer: lets gossip and the peer's other work in between. */
  readonly bulkSyncPageIntervalMs: number;
  /** To all peers together in that interval: the bandwidth bulk sync may take. */
  readonly bulkSyncBytesPerInterval: number;
  /** Peers that may have been asked at once after joining a network, one after the other as long as none answers. */
  readonly bulkSyncParallel: number;
  /** How long each of them is given to begin its answer: two that answer send everything twice. */
  readonly bulkSyncPatienceMs: number;
  /** Above this many own events waiting in one network they go out as bulk sync pages instead of datagrams. */
  readonly burstEvents: number;

  /** Life of tombstones and of suspended rows. */
  readonly rowReapMs: number;
  /** Life of a left attachment; must exceed `rowReapMs`, or late rows would find no attachment to be judged by. */
  readonly attachmentReapMs: number;
  /** Life of the record of a failed or left node. */
  readonly nodeReapMs: number;
  readonly reapIntervalMs: number;
  readonly nodeReapIntervalMs: number;
  readonly reconnectIntervalMs: number;
  readonly rejoinIntervalMs: number;
  /** How long one round of bootstrap re-joins goes on, one try a second. */
  readonly rejoinEffortMs: number;
  /** How long a leave waits for its event to be gossiped. */
  readonly leaveTimeoutMs: number;
  /** How long rows of a restarted node stay visible while its successor writes them anew. */
  readonly inheritMs: number;
  /** How long the rows of a resting node stay visible: long enough for a restart, short for a host that goes down. */
  readonly restMs: number;
  /** Re-issues of own rows that others claim to be dead or different, per `reapIntervalMs`. */
  readonly reassertionsPerInterval: number;

  /** The bounds below protect memory from a peer that lies or runs wild; what is above is dropped and counted. */
  readonly maxRowsPerNetwork: number;
  readonly maxTablesPerNetwork: number;
  readonly maxValueBytes: number;
  readonly maxRelayEvents: number;
  /** Rows that came by bulk sync are relayed only while the relay queue is shorter (as upstream). */
  readonly maxRelayForBulkSync: number;
  readonly maxClusterEvents: number;
  readonly maxNodes: number;
  readonly maxAttachmentsPerNode: number;
}

export const DEFAULT_NETWORKDB_CONFIG: NetworkDbConfig = {
  gossipIntervalMs: 200,
  gossipDelayMs: 0,
  gossipUnsentIntervalMs: 20,
  joinSyncDelayMs: 10,
  gossipFanout: 3,
  gossipPacketsPerRound: 16,
  // 1400 less the user message type (1), crc (5) and seal (29).
  gossipPayloadBytes: 1365,
  retransmitMultiplier: 4,

  bulkSyncIntervalMs: 30_000,
  bulkSyncTimeoutMs: 30_000,
  bulkSyncPageBytes: 256 * 1024,
  bulkSyncPageIntervalMs: 25,
  bulkSyncBytesPerInterval: 1024 * 1024,
  bulkSyncParallel: 3,
  bulkSyncPatienceMs: 250,
  burstEvents: 16,

  rowReapMs: 30 * 60_000,
  attachmentReapMs: 30 * 60_000 + 25_000,
  nodeReapMs: 24 * 3_600_000,
  reapIntervalMs: 5_000,
  nodeReapIntervalMs: 2 * 3_600_000,
  reconnectIntervalMs: 1_000,
  rejoinIntervalMs: 60_000,
  rejoinEffortMs: 10_000,
  leaveTimeoutMs: 5_000,
  inheritMs: 30_000,
  restMs: 10_000,
  reassertionsPerInterval: 200,

  maxRowsPerNetwork: 400_000,
  maxTablesPerNetwork: 32,
  maxValueBytes: 32 * 1024,
  maxRelayEvents: 4_096,
  maxRelayForBulkSync: 500,
  maxClusterEvents: 8_192,
  maxNodes: 4_096,
  maxAttachmentsPerNode: 4_096,
};

/** The defaults with some replaced. @throws an invariant error on values that contradict each other. */
export function networkDbConfig(overrides: Partial<NetworkDbConfig> = {}): NetworkDbConfig {
  const config = { ...DEFAULT_NETWORKDB_CONFIG, ...overrides };
  assert(config.attachmentReapMs > config.rowReapMs, "attachments must outlive their rows' tombstones");
  assert(config.gossipPayloadBytes >= 256, "a gossip packet holds at least one small event");
  assert(
    config.bulkSyncPageBytes + 2 * config.maxValueBytes <= 1024 * 1024,
    "a bulk sync page stays below 1 MiB",
  );
  return config;
}
