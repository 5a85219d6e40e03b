/** The doctor's lines about what all nodes share: rows, addresses, definitions, keys and time. */
import { allReports, type Check, eachNode, type Findings, nodesText } from "./findings.ts";

/** From this share on an address space is about to run out. */
const SPACE_WARNING = 0.8;
/** Clocks that differ by more make events and certificates hard to follow. */
const CLOCK_WARNING_MS = 2_000;

/** One line a check when all agree, a line for each fault. */
export function checkShared(findings: Findings): Check[] {
  return [
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
    detail: `has ${ringText(report.keys)}, ${findings.node} has ${ringText(own)}: ${ringFault(findings.node, own, node, report.keys)}`,
    cure: ringCure(own, report.keys),
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

/** The order of keys that only open does not matter. */
function sameRing(a: readonly string[], b: readonly string[]): boolean {
  return a[0] === b[0] && [...a].sort().join() === [...b].sort().join();
}

/** Which of the two lacks what; where neither lacks a key they seal with different ones. */
function ringFault(node: string, own: readonly string[], other: string, theirs: readonly string[]): string {
  const missing = (who: string, ring: readonly string[], of: readonly string[]): string[] => {
    const lost = of.filter((key) => !ring.includes(key));
    return lost.length === 0 ? [] : [`${who} lacks ${ringText(lost)}`];
  };
  const lacks = [...missing(other, theirs, own), ...missing(node, own, theirs)];
  return lacks.length > 0
    ? lacks.join(", ")
    : `${other} seals with ${theirs[0] ?? ""}, ${node} with ${own[0] ?? ""}`;
}

/** What one seals with the other must open, so installing comes before using; a key that is old goes last. */
function ringCure(own: readonly string[], theirs: readonly string[]): string {
  const same = own.every((key) => theirs.includes(key)) && theirs.length === own.length;
  return same
    ? "netctl keys use the one that shall seal"
    : "netctl keys install the missing key and netctl keys use the one that shall seal, or netctl keys remove what is old";
}

function ringText(keys: readonly string[]): string {
  return keys.length === 0 ? "no key" : keys.join(" ");
}
