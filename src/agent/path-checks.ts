/** The doctor's lines about the way to one peer. */
import { concerns } from "./firewall.ts";
import { BAD_CHECKSUMS, type Check, checksumCure, type Findings, type PeerFinding } from "./findings.ts";

/** One line a check that could be made. */
export function checkPeer(peer: PeerFinding, findings: Findings): Check[] {
  return [
    ...checkUnderlay(peer, findings),
    ...checkGossip(peer, findings),
    ...checkDataPath(peer, findings),
    ...checkMtu(peer, findings),
  ];
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
function blameChecksums(
  findings: Findings,
  { name, answer, dataPathDetail }: PeerFinding,
): string | undefined {
  const self = { node: findings.node, report: findings.self };
  const theirs = answer !== undefined && "report" in answer ? [{ node: name, report: answer.report }] : [];
  const deaf = dataPathDetail.includes("they do not hear")
    ? theirs
    : dataPathDetail.includes("we do not hear")
      ? [self]
      : [self, ...theirs];
  const found = deaf.find(({ report }) =>
    report.badChecksums.some(({ place, packets }) => place === "host" && packets >= BAD_CHECKSUMS),
  );
  return found && `packets come with wrong checksums: ${checksumCure(findings, found.node)}`;
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
