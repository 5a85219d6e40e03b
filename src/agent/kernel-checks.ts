/** The doctor's lines about each node's kernel and what others did to it. */
import { describeFastPath } from "./control-protocol.ts";
import {
  allReports,
  BAD_CHECKSUMS,
  type Check,
  checksumCure,
  eachNode,
  type Findings,
  nodesText,
} from "./findings.ts";

const STEPS_SHOWN = 3;

/** One line a check for all nodes that are well, a line for each fault. */
export function checkKernels(findings: Findings): Check[] {
  return [
    ...checkFeatures(findings),
    ...checkFastPath(findings),
    ...checkIcmp(findings),
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
    ...eachNode(findings, "checksums", "packets arrive with the checksums they should have", (report, node) =>
      report.badChecksums
        .filter(({ packets }) => packets >= BAD_CHECKSUMS)
        .map(({ place, packets }) => ({
          text: `${packets} packets with a wrong UDP or TCP checksum came in the last ten minutes (${place})`,
          cure: checksumCure(findings, node),
        })),
    ),
    ...checkFirewall(findings),
    ...checkStrangers(findings),
  ];
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

/** Never a fault: the slow path carries everything. */
function checkFastPath({ node, fastPath }: Findings): Check[] {
  if (fastPath === undefined) return [];
  return [{ name: "fast-path", subject: node, status: "ok", detail: describeFastPath(fastPath) }];
}

function checkIcmp({ node, underlayProblem }: Findings): Check[] {
  if (underlayProblem === undefined) return [];
  const cure = "grant what is missing; until then the underlay's path MTU is not known";
  return [{ name: "underlay", subject: node, status: "warning", detail: underlayProblem, cure }];
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
