/** What was found, here and by asking the others: what the doctor's lines are made of. */
import type { UnderlayReach } from "../kernel/icmp-probe.ts";
import type { BadChecksums } from "./checksum-watch.ts";
import type { DoctorView, InfoView } from "./control-protocol.ts";
import type { DroppingChain, DroppingRule } from "./firewall.ts";
import type { RecentRepair } from "./repairs.ts";

export type Check = DoctorView["checks"][number];

/** What a node says about itself when asked. */
export interface NodeReport {
  /** Wall clock, milliseconds since 1970. */
  readonly wallMs: number;
  /** Fingerprints, the sealing key first. */
  readonly keys: readonly string[];
  /** What the kernel has otherwise than the tables say, and still had a moment later. */
  readonly drift: readonly { readonly subject: string; readonly steps: readonly string[] }[];
  /** What another hand did in the last minutes and the agent undid, the latest first. */
  readonly repairs: readonly RecentRepair[];
  /** What other hands do there is told and left alone. */
  readonly repairOff: boolean;
  /** What came with a wrong checksum in the last minutes. */
  readonly badChecksums: readonly BadChecksums[];
  /** The device that carries its data-path address; empty when none does. */
  readonly underlayDevice: string;
  /** What that device leaves to its card of checksums, as `ethtool -k` names it. */
  readonly checksumOffloads: readonly string[];
  /** What the reconcilers fail at just now. */
  readonly problems: readonly { readonly subject: string; readonly text: string }[];
  /** Published ports that a process there holds. */
  readonly heldPorts: readonly string[];
  /** Addresses that two rows claim. */
  readonly duplicates: readonly string[];
  /** Senders of VXLAN that are no members, and how much of theirs was dropped in the last hour. */
  readonly strangers: readonly string[];
  /** Rows of others that cannot be true and were left out. */
  readonly rejectedRows: readonly string[];
  /** Kernel features that are missing. */
  readonly missing: readonly {
    readonly name: string;
    readonly needed: boolean;
    readonly detail: string;
    readonly cure: string;
  }[];
  /** It enters published ports and does not forward. */
  readonly forwardingOff: boolean;
  /** Others' base chains that drop by default: `input` or `forward`, and the table. */
  readonly droppingChains: readonly DroppingChain[];
  /** Others' rules that drop by port or address. */
  readonly droppingRules: readonly DroppingRule[];
}

export interface PeerFinding {
  readonly name: string;
  readonly address: string;
  readonly state: "alive" | "suspect" | "dead" | "left";
  /** Of gossip over UDP. */
  readonly rttMs: number | null;
  /** Undefined for members that are no netagent. */
  readonly answer:
    | { readonly report: NodeReport; readonly sentMs: number; readonly receivedMs: number }
    | { readonly error: string }
    | undefined;
  /** By ICMP; undefined where it was not tried. */
  readonly underlay: UnderlayReach | undefined;
  readonly dataPath: "ok" | "blocked" | "unknown";
  readonly dataPathDetail: string;
  readonly mtu: number | null;
}

export interface Findings {
  readonly node: string;
  /** Where this node's traffic comes from. */
  readonly address: string;
  readonly self: NodeReport;
  readonly peers: readonly PeerFinding[];
  readonly gossipPort: number;
  readonly dataPathPort: number;
  /** MTU of the device that carries our data-path address. */
  readonly underlayMtu: number;
  /** Why nobody was asked by ICMP. */
  readonly underlayProblem: string | undefined;
  /** Largest inner packet our own underlay takes. */
  readonly fullSize: number;
  /** MTU of the largest network that has an endpoint here: what must get through. */
  readonly neededSize: number;
  /** Why nobody is probed. */
  readonly pathProblem: string | undefined;
  /** Of this node; undefined where there is nothing to say. */
  readonly fastPath?: InfoView["fastPath"] | undefined;
  readonly networks: readonly {
    readonly name: string;
    readonly total: number;
    readonly used: number;
    readonly conflict: string | undefined;
  }[];
}

/** Fewer are bits that flipped on the way. */
export const BAD_CHECKSUMS = 10;

/** A line for each fault on each node, this one first; one line when there is none. */
export function eachNode(
  findings: Findings,
  name: string,
  fine: string,
  faults: (report: NodeReport, node: string) => readonly { readonly text: string; readonly cure: string }[],
): Check[] {
  const reports = allReports(findings);
  const bad = reports.flatMap(({ node, report }): Check[] =>
    faults(report, node).map(({ text, cure }) => ({
      name,
      subject: node,
      status: "failed",
      detail: text,
      cure,
    })),
  );
  return bad.length > 0 ? bad : [{ name, subject: nodesText(reports.length), status: "ok", detail: fine }];
}

export function allReports({
  node,
  self,
  peers,
}: Findings): { readonly node: string; readonly report: NodeReport }[] {
  return [
    { node, report: self },
    ...peers.flatMap(({ name, answer }) =>
      answer === undefined || "error" in answer ? [] : [{ node: name, report: answer.report }],
    ),
  ];
}

/** On whose side the card may be that miscalculates: who sends to `node` and leaves checksums to it. */
export function checksumCure(findings: Findings, node: string): string {
  const senders = allReports(findings).filter(
    ({ node: other, report }) =>
      other !== node && report.checksumOffloads.some((name) => name.startsWith("tx-")),
  );
  const commands = senders.slice(0, 3).map(({ node: sender, report }) => {
    const on = report.checksumOffloads.filter((name) => name.startsWith("tx-")).join(" and ");
    return `ethtool -K ${report.underlayDevice || "DEVICE"} tx off on ${sender}, where ${on} is on`;
  });
  if (senders.length > 3) commands.push(`and on ${senders.length - 3} more`);
  return commands.length > 0
    ? `a network card that sends miscalculates them: ${commands.join(", ")}`
    : "no card that sends is left to calculate them: look at what is between, and at ethtool -K rx off here";
}

export function nodesText(count: number): string {
  return count === 1 ? "this node" : `${count} nodes`;
}
