/** What the doctor says, from what was found: pure, so that every fault can be tested without having it. */
import type { UnderlayReach } from "../kernel/icmp-probe.ts";
import type { DoctorView } from "./control-protocol.ts";
import type { BadChecksums } from "./checksum-watch.ts";
import { concerns, type DroppingChain, type DroppingRule } from "./firewall.ts";
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
  readonly networks: readonly {
    readonly name: string;
    readonly total: number;
    readonly used: number;
    readonly conflict: string | undefined;
  }[];
}

/** From this share on an address space is about to run out. */
const SPACE_WARNING = 0.8;
/** Clocks that differ by more make events and certificates hard to follow. */
const CLOCK_WARNING_MS = 2_000;
/** Fewer are bits that flipped on the way. */
const BAD_CHECKSUMS = 10;
const STEPS_SHOWN = 3;

/** One line a check; what is well of many nodes is one line, what is wrong a line each. */
export function diagnose(findings: Findings): DoctorView {
  const checks = [
    ...checkFeatures(findings),
    ...checkIcmp(findings),
    ...findings.peers.flatMap((peer) => [
      ...checkUnderlay(peer, findings),
      ...checkGossip(peer, findings),
      ...checkDataPath(peer, findings),
      ...checkMtu(peer, findings),
    ]),
    ...eachNode(findings, "drift", "the kernel agrees with the tables", (report) =>
      report.drift.map(({ subject, steps }) => ({
        text: `${subject}: ${steps.slice(0, STEPS_SHOWN).join("; ")}${steps.length > STEPS_SHOWN ? `; and ${steps.length - STEPS_SHOWN} more` : ""}`,
        cure: report.repairOff
          ? "repair is off there: netctl repair on mends it"
          : "it is repaired within seconds; if it comes back, find who changes it (netctl events)",
      })),
    ),
    ...checkRepairs(findings),
    ...eachNode(findings, "reconciler", "nothing is failing", (report) =>
      report.problems.map(({ subject, text }) => ({
        text: `${subject}: ${text}`,
        cure: "mend what the message names; the agent tries on",
      })),
    ),
    ...eachNode(findings, "ports", "no published port is held by a process", (report) =>
      report.heldPorts.map((text) => ({ text, cure: "stop that process or publish another port" })),
    ),
    ...eachNode(findings, "forwarding", "packets are forwarded where that is needed", (report) =>
      report.forwardingOff
        ? [
            {
              text: "published ports enter here, and ip_forward is 0",
              cure: "sysctl -w net.ipv4.ip_forward=1",
            },
          ]
        : [],
    ),
    ...eachNode(findings, "checksums", "packets arrive with the checksums they should have", (report) =>
      report.badChecksums
        .filter(({ packets }) => packets >= BAD_CHECKSUMS)
        .map(({ place, packets }) => ({
          text: `${packets} packets with a wrong UDP or TCP checksum came in the last ten minutes (${place})`,
          cure: checksumCure(report),
        })),
    ),
    ...checkFirewall(findings),
    ...checkStrangers(findings),
    ...eachNode(findings, "rows", "the rows of others make sense", (report) =>
      report.rejectedRows.map((text) => ({
        text,
        cure: "they change nothing here; find what runs on that member, and netctl node rm it if it is not yours",
      })),
    ),
    ...checkDuplicates(findings),
    ...checkSpace(findings),
    ...checkConflicts(findings),
    ...checkKeys(findings),
    ...checkClocks(findings),
  ];
  return { ok: checks.every((check) => check.status !== "failed"), checks };
}

function checkFeatures(findings: Findings): Check[] {
  const reports = allReports(findings);
  const missing = reports.flatMap(({ node, report }) =>
    report.missing.map(({ name, needed, detail, cure }): Check => ({
      name: "kernel",
      subject: node,
      status: needed ? "failed" : "warning",
      detail: `${name} is missing: ${detail}`,
      cure,
    })),
  );
  if (missing.length > 0) return missing;
  const detail = reports.length === 1 ? "has every feature that is used" : "have every feature that is used";
  return [{ name: "kernel", subject: nodesText(reports.length), status: "ok", detail }];
}

function checkGossip(peer: PeerFinding, findings: Findings): Check[] {
  const { gossipPort } = findings;
  const { name, state, rttMs, answer } = peer;
  const where = `${name} (${peer.address})`;
  if (state === "dead")
    return [
      {
        name: "gossip-udp",
        subject: where,
        status: "failed",
        detail: "dead: it answers nobody",
        cure: blameRule(
          findings,
          peer,
          ["udp", gossipPort],
          `start netagent there, or netctl node rm ${name}`,
        ),
      },
    ];
  const open = blameRule(
    findings,
    peer,
    ["udp", gossipPort],
    `open UDP and TCP port ${gossipPort} between the two, in both directions`,
  );
  const udp: Check =
    state === "suspect"
      ? { name: "gossip-udp", subject: where, status: "failed", detail: "suspected: probes fail", cure: open }
      : rttMs === null
        ? {
            name: "gossip-udp",
            subject: where,
            status: "warning",
            detail: "no round trip measured yet",
            cure: `wait a moment; else ${open}`,
          }
        : { name: "gossip-udp", subject: where, status: "ok", detail: `round trip ${rttMs.toFixed(1)} ms` };
  if (answer === undefined) return [udp];
  const tcp: Check =
    "error" in answer
      ? {
          name: "gossip-tcp",
          subject: where,
          status: "failed",
          detail: answer.error,
          cure: blameRule(
            findings,
            peer,
            ["tcp", gossipPort],
            `open TCP port ${gossipPort} between the two, in both directions`,
          ),
        }
      : {
          name: "gossip-tcp",
          subject: where,
          status: "ok",
          detail: `answered in ${Math.round(answer.receivedMs - answer.sentMs)} ms`,
        };
  return [udp, tcp];
}

function checkIcmp({ node, underlayProblem }: Findings): Check[] {
  if (underlayProblem === undefined) return [];
  const cure = "grant what is missing; until then the underlay's path MTU is not known";
  return [{ name: "underlay", subject: node, status: "warning", detail: underlayProblem, cure }];
}

/** What ICMP says of the way beneath everything. What gossip or data path say better is said there. */
function checkUnderlay(peer: PeerFinding, { underlayMtu }: Findings): Check[] {
  const { underlay, state, dataPath } = peer;
  if (underlay === undefined || state === "left") return [];
  const check = { name: "underlay", subject: peer.name };
  switch (underlay.state) {
    case "unreachable":
      return [
        {
          ...check,
          status: "failed",
          detail: `this host has no way to ${peer.address}: ${underlay.reason}`,
          cure: `ip route get ${peer.address} shows which route it is`,
        },
      ];
    case "silent":
      return state === "dead"
        ? [
            {
              ...check,
              status: "warning",
              detail: "answers no ICMP either",
              cure: "see whether the host is up and its cable in",
            },
          ]
        : [{ ...check, status: "ok", detail: "answers no ICMP, which may be filtered" }];
    case "answers": {
      const ms = underlay.rttMs.toFixed(1);
      const detail = `answers in ${ms} ms; ${underlay.mtu} of ${underlayMtu} bytes get through uncut`;
      if (underlay.mtu >= underlayMtu || dataPath === "ok") return [{ ...check, status: "ok", detail }];
      const cure = "make the underlay's MTU the same everywhere, or create networks with a smaller --mtu";
      return [{ ...check, status: "warning", detail, cure }];
    }
  }
}

/** Where a rule of somebody's is known to drop that traffic, it is the cure to take it out. */
function blameRule(
  { node, self, address }: Findings,
  peer: PeerFinding,
  [protocol, port]: readonly ["udp" | "tcp", number],
  otherwise: string,
): string {
  const theirs = peer.answer !== undefined && "report" in peer.answer ? peer.answer.report.droppingRules : [];
  const found = [
    ...self.droppingRules
      .filter((rule) => concerns(rule, { protocol, port, address: peer.address }))
      .map(({ text }) => `${text}" on ${node}`),
    ...theirs
      .filter((rule) => concerns(rule, { protocol, port, address }))
      .map(({ text }) => `${text}" on ${peer.name}`),
  ];
  return found.length === 0 ? otherwise : `take out the rule "${found.join(`, and "`)}`;
}

/** Where the deaf side drops packets for their checksum, no firewall is to be looked for. */
function blameChecksums({ self }: Findings, { answer, dataPathDetail }: PeerFinding): string | undefined {
  const theirs = answer !== undefined && "report" in answer ? [answer.report] : [];
  const deaf = dataPathDetail.includes("they do not hear")
    ? theirs
    : dataPathDetail.includes("we do not hear")
      ? [self]
      : [self, ...theirs];
  const found = deaf.find(({ badChecksums }) =>
    badChecksums.some(({ place, packets }) => place === "host" && packets >= BAD_CHECKSUMS),
  );
  return found && `packets come with wrong checksums: ${checksumCure(found)}`;
}

function checksumCure({ underlayDevice }: NodeReport): string {
  return `a network card offloads checksums of VXLAN wrongly: ethtool -K ${underlayDevice || "DEVICE"} tx off on the hosts that send, rx off here`;
}

function checkDataPath(peer: PeerFinding, findings: Findings): Check[] {
  const { node, dataPathPort, pathProblem } = findings;
  if (peer.state !== "alive" || peer.answer === undefined) return [];
  // A silent agent answers no probe either; what its kernel forwards nobody knows, and gossip-tcp names it.
  if ("error" in peer.answer && peer.dataPath !== "ok") return [];
  const check = { name: "data-path", subject: peer.name };
  switch (peer.dataPath) {
    case "ok":
      return [{ ...check, status: "ok", detail: `UDP ${dataPathPort} passes both ways` }];
    case "unknown":
      return [
        {
          ...check,
          status: "warning",
          detail: pathProblem ?? (peer.dataPathDetail || "not probed"),
          cure:
            pathProblem === undefined
              ? "update netagent there if it is older"
              : "mend what the message names",
        },
      ];
    case "blocked": {
      const where = peer.dataPathDetail.includes("we do not hear")
        ? `towards ${node}: look at the firewall of ${node} and what is between`
        : peer.dataPathDetail.includes("they do not hear")
          ? `towards ${peer.name}: look at the firewall of ${peer.name} and what is between`
          : `between ${node} and ${peer.name}`;
      return [
        {
          ...check,
          status: "failed",
          detail: `blocked: ${peer.dataPathDetail}`,
          cure: blameRule(
            findings,
            peer,
            ["udp", dataPathPort],
            blameChecksums(findings, peer) ?? `let UDP port ${dataPathPort} through ${where}`,
          ),
        },
      ];
    }
  }
}

function checkMtu(peer: PeerFinding, { fullSize, neededSize }: Findings): Check[] {
  const { mtu } = peer;
  if (peer.dataPath !== "ok" || mtu === null) return [];
  if (mtu < fullSize && mtu >= neededSize) {
    const detail = `${mtu} bytes get through, what the largest network here sends`;
    return [{ name: "mtu", subject: peer.name, status: "ok", detail }];
  }
  if (mtu >= fullSize)
    return [{ name: "mtu", subject: peer.name, status: "ok", detail: `${mtu} bytes get through` }];
  return [
    {
      name: "mtu",
      subject: peer.name,
      status: "failed",
      detail: `${peer.dataPathDetail}: ping works, large transfers hang`,
      cure: `make the underlay's MTU the same everywhere, or create networks with --mtu ${mtu}`,
    },
  ];
}

/** A line for each fault on each node, this one first; one line when there is none. */
function eachNode(
  findings: Findings,
  name: string,
  fine: string,
  faults: (report: NodeReport) => readonly { readonly text: string; readonly cure: string }[],
): Check[] {
  const reports = allReports(findings);
  const bad = reports.flatMap(({ node, report }): Check[] =>
    faults(report).map(({ text, cure }) => ({ name, subject: node, status: "failed", detail: text, cure })),
  );
  return bad.length > 0 ? bad : [{ name, subject: nodesText(reports.length), status: "ok", detail: fine }];
}

function checkFirewall(findings: Findings): Check[] {
  const { node, self, peers, dataPathPort } = findings;
  const deaf = peers.some(
    (peer) => peer.dataPath === "blocked" && !peer.dataPathDetail.includes("they do not hear"),
  );
  return self.droppingChains.flatMap(({ hook, table }): Check[] => {
    if (hook === "input" && !deaf) return [];
    const cure =
      hook === "input"
        ? `accept udp dport ${dataPathPort} there`
        : "accept `ct status dnat` there, or published ports reach no backend";
    return [
      {
        name: "firewall",
        subject: node,
        status: "warning",
        detail: `table ${table} drops in hook ${hook} by default`,
        cure,
      },
    ];
  });
}

/** A fault that lasts milliseconds shows here: it is over, but whoever makes it may go on. */
function checkRepairs(findings: Findings): Check[] {
  const reports = allReports(findings);
  const found = reports.flatMap(({ node, report }): Check[] =>
    report.repairs.map(({ subject, text, times, agoMs }) => ({
      name: "repairs",
      subject: node,
      status: "warning",
      detail: `${subject}: ${text}; ${times === 1 ? "" : `${times} times, the last `}${Math.round(agoMs / 1000)} s ago`,
      cure: "all is well again; if it comes back, find what else on that host manages its network",
    })),
  );
  const off = reports
    .filter(({ report }) => report.repairOff)
    .map(({ node }): Check => ({
      name: "repairs",
      subject: node,
      status: "warning",
      detail: "repair is off: what other hands change is told and left alone",
      cure: "netctl repair on, when you have seen enough",
    }));
  if (off.length + found.length > 0) return [...off, ...found];
  const detail = "nothing had to be mended in the last ten minutes";
  return [{ name: "repairs", subject: nodesText(reports.length), status: "ok", detail }];
}

function checkStrangers(findings: Findings): Check[] {
  const reports = allReports(findings);
  const found = reports.filter(({ report }) => report.strangers.length > 0);
  if (found.length === 0)
    return [
      {
        name: "strangers",
        subject: nodesText(reports.length),
        status: "ok",
        detail: "VXLAN comes from members only",
      },
    ];
  return found.map(({ node, report: { strangers } }) => ({
    name: "strangers",
    subject: node,
    status: "warning",
    detail: `VXLAN dropped: ${strangers.slice(0, STEPS_SHOWN).join(", ")}${strangers.length > STEPS_SHOWN ? ` and ${strangers.length - STEPS_SHOWN} more` : ""}`,
    cure: "if one is a member's second address, give it to that member as --data-path-addr; else find who sends",
  }));
}

function checkDuplicates(findings: Findings): Check[] {
  const found = new Set(allReports(findings).flatMap(({ report }) => report.duplicates));
  if (found.size === 0)
    return [
      {
        name: "duplicate-address",
        subject: "networks",
        status: "ok",
        detail: "every address is claimed once",
      },
    ];
  return [...found].map((text) => ({
    name: "duplicate-address",
    subject: "networks",
    status: "failed",
    detail: text,
    cure: "netctl detach one of the two and attach it again",
  }));
}

function checkSpace({ networks }: Findings): Check[] {
  const tight = networks.filter(({ used, total }) => total > 0 && used / total >= SPACE_WARNING);
  if (tight.length === 0)
    return [{ name: "address-space", subject: "networks", status: "ok", detail: "every network has room" }];
  return tight.map(({ name, used, total }) => ({
    name: "address-space",
    subject: name,
    status: used >= total ? "failed" : "warning",
    detail: `${used} of ${total} addresses are used (${Math.floor((100 * used) / total)} %)`,
    cure: "create a network with a larger --subnet, or detach what is not needed",
  }));
}

function checkConflicts({ networks }: Findings): Check[] {
  return networks.flatMap(({ name, conflict }): Check[] =>
    conflict === undefined
      ? []
      : [
          {
            name: "definitions",
            subject: name,
            status: "failed",
            detail: conflict,
            cure: "remove one of the two",
          },
        ],
  );
}

function checkKeys(findings: Findings): Check[] {
  const reports = allReports(findings);
  const own = findings.self.keys;
  const differing = reports.filter(({ report }) => !sameRing(report.keys, own));
  if (differing.length === 0) {
    const detail =
      own.length === 0
        ? "gossip is not encrypted"
        : `all have ${own.length} key(s), sealing with ${own[0] ?? ""}`;
    return [{ name: "keys", subject: nodesText(reports.length), status: "ok", detail }];
  }
  return differing.map(({ node, report }) => ({
    name: "keys",
    subject: node,
    status: "failed",
    detail: `has ${ringText(report.keys)}, ${findings.node} has ${ringText(own)}`,
    cure: "netctl keys install the missing key, then netctl keys use the one that shall seal",
  }));
}

function checkClocks(findings: Findings): Check[] {
  const checks: Check[] = [];
  let asked = 0;
  for (const { name, answer } of findings.peers) {
    if (answer === undefined || "error" in answer) continue;
    asked++;
    // Its clock was read some time between question and answer: only what is outside that counts.
    const { wallMs } = answer.report;
    const offMs = Math.max(0, wallMs - answer.receivedMs, answer.sentMs - wallMs);
    if (offMs < CLOCK_WARNING_MS) continue;
    checks.push({
      name: "clock",
      subject: name,
      status: "warning",
      detail: `differs from ${findings.node}'s by ${(offMs / 1000).toFixed(1)} s`,
      cure: "run chrony or systemd-timesyncd on both",
    });
  }
  return checks.length > 0 || asked === 0
    ? checks
    : [{ name: "clock", subject: nodesText(asked + 1), status: "ok", detail: "wall clocks agree" }];
}

function allReports({
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

/** The order of keys that only open does not matter. */
function sameRing(a: readonly string[], b: readonly string[]): boolean {
  return a[0] === b[0] && [...a].sort().join() === [...b].sort().join();
}

function ringText(keys: readonly string[]): string {
  return keys.length === 0 ? "no key" : keys.join(" ");
}

function nodesText(count: number): string {
  return count === 1 ? "this node" : `${count} nodes`;
}
