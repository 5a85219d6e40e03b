import assert from "node:assert/strict";
import { test } from "node:test";
import { diagnose } from "../../src/agent/diagnosis.ts";
import type { Findings, NodeReport, PeerFinding } from "../../src/agent/findings.ts";

const WELL: NodeReport = {
  wallMs: 1_000_000,
  keys: ["aaaa", "bbbb"],
  drift: [],
  repairs: [],
  repairOff: false,
  badChecksums: [],
  underlayDevice: "eth0",
  checksumOffloads: ["tx-checksum-ip-generic", "rx-checksum"],
  problems: [],
  heldPorts: [],
  duplicates: [],
  strangers: [],
  rejectedRows: [],
  missing: [],
  forwardingOff: false,
  droppingChains: [],
  droppingRules: [],
};
const PEER: PeerFinding = {
  name: "node2",
  address: "192.0.2.2",
  state: "alive",
  rttMs: 0.4,
  underlay: { state: "answers", rttMs: 0.2, mtu: 1500 },
  answer: { report: WELL, sentMs: 999_990, receivedMs: 1_000_010 },
  dataPath: "ok",
  dataPathDetail: "",
  mtu: 1450,
};

test("where nothing is wrong every line is ok", () => {
  const { ok, checks } = diagnose(findings({}));
  assert.ok(ok);
  assert.deepEqual(
    checks.filter((check) => check.status !== "ok"),
    [],
  );
});

test("each fault is one failed line with a cure, and no other line changes its mind", () => {
  const node = (report: Partial<NodeReport>): Partial<Findings> => ({
    peers: [{ ...PEER, answer: { report: { ...WELL, ...report }, sentMs: 999_990, receivedMs: 1_000_010 } }],
  });
  const faults: [string, RegExp, Partial<Findings>][] = [
    ["gossip-udp", /suspected/, { peers: [{ ...PEER, state: "suspect", dataPath: "unknown", mtu: null }] }],
    [
      "gossip-tcp",
      /cannot be reached/,
      { peers: [{ ...PEER, answer: { error: "cannot be reached over TCP" } }] },
    ],
    [
      "data-path",
      /one way/,
      {
        peers: [
          {
            ...PEER,
            dataPath: "blocked",
            mtu: null,
            dataPathDetail: "one way: they hear us, we do not hear them",
          },
        ],
      },
    ],
    ["mtu", /1350/, { peers: [{ ...PEER, mtu: 1350, dataPathDetail: "1450 are lost, 1350 get through" }] }],
    [
      "underlay",
      /no way to 192\.0\.2\.2: Invalid argument/,
      { peers: [{ ...PEER, underlay: { state: "unreachable", reason: "Invalid argument" } }] },
    ],
    ["drift", /blue: set fdb/, node({ drift: [{ subject: "blue", steps: ["set fdb"] }] })],
    ["reconciler", /EPERM/, node({ problems: [{ subject: "blue", text: "EPERM" }] })],
    ["checksums", /^12 packets .*\(host\)/, node({ badChecksums: [{ place: "host", packets: 12 }] })],
    ["ports", /nginx/, node({ heldPorts: ["port 80/tcp is held by nginx (pid 1)"] })],
    ["rows", /local-address/, node({ rejectedRows: ["blue: 3 rows of node4 (local-address)"] })],
    ["forwarding", /ip_forward/, node({ forwardingOff: true })],
    ["duplicate-address", /10\.0\.1\.5/, node({ duplicates: ["10.0.1.5 on blue: a and b"] })],
    [
      "address-space",
      /254 of 254/,
      { networks: [{ name: "blue", total: 254, used: 254, conflict: undefined }] },
    ],
    [
      "definitions",
      /claims/,
      { networks: [{ name: "blue", total: 254, used: 1, conflict: "green claims VNI 5000" }] },
    ],
    ["keys", /has no key/, node({ keys: [] })],
    [
      "kernel",
      /vxlan is missing/,
      {
        self: {
          ...WELL,
          missing: [{ name: "vxlan", needed: true, detail: "EOPNOTSUPP", cure: "modprobe vxlan" }],
        },
      },
    ],
  ];
  for (const [name, detail, change] of faults) {
    const { ok, checks } = diagnose(findings(change));
    const failed = checks.filter((check) => check.status === "failed");
    assert.ok(!ok, name);
    assert.deepEqual(
      failed.map((check) => check.name),
      [name],
    );
    assert.match(failed[0]?.detail ?? "", detail);
    assert.notEqual(failed[0]?.cure ?? "", "", name);
  }
});

test("ICMP that is filtered is no fault, and a narrow underlay is told once: by the data path where that is known", () => {
  const at = (change: Partial<PeerFinding>): string[] =>
    diagnose(findings({ peers: [{ ...PEER, ...change }] }))
      .checks.filter(({ status }) => status !== "ok")
      .map(({ name }) => name);
  assert.deepEqual(at({ underlay: { state: "silent" } }), []);
  const narrow = { state: "answers", rttMs: 0.2, mtu: 1400 } as const;
  assert.deepEqual(at({ underlay: narrow, mtu: 1350, dataPathDetail: "1350 get through" }), ["mtu"]);
  assert.deepEqual(at({ underlay: narrow, dataPath: "unknown", mtu: null }).sort(), [
    "data-path",
    "underlay",
  ]);
});

test("a silent agent is one fault: that its probes are not answered either is no second one", () => {
  const silent: PeerFinding = {
    ...PEER,
    answer: { error: "did not answer in 5000 ms" },
    dataPath: "blocked",
    dataPathDetail: "nothing comes back, and it does not answer over gossip either",
    mtu: null,
  };
  const { checks } = diagnose(findings({ peers: [silent] }));
  assert.deepEqual(
    checks.filter((check) => check.status !== "ok").map((check) => check.name),
    ["gossip-tcp"],
  );
});

test("what was mended is a warning with what was wrong, how often and when, and no failure", () => {
  const repairs = [{ subject: "blue", text: "vxlan0 was down: set vxlan", times: 3, agoMs: 4_200 }];
  const peer: PeerFinding = {
    ...PEER,
    answer: { report: { ...WELL, repairs }, sentMs: 999_990, receivedMs: 1_000_010 },
  };
  const { ok, checks } = diagnose(findings({ peers: [peer] }));
  assert.ok(ok);
  const [warning, ...others] = checks.filter((check) => check.status !== "ok");
  assert.deepEqual(others, []);
  assert.equal(warning?.subject, "node2");
  assert.equal(warning?.detail, "blue: vxlan0 was down: set vxlan; 3 times, the last 4 s ago");
});

test("where a rule of somebody's drops what does not get through, the cure is that rule", () => {
  const text = "table inet filter, chain input: udp dport 4789 drop";
  const rule = { text, ports: [[4789, 4789]], protocol: "udp", addresses: [] } as const;
  const elsewhere = { ...rule, text: "of another port", ports: [[53, 53]] } as const;
  const report = { ...WELL, droppingRules: [elsewhere, rule] };
  const blocked: PeerFinding = {
    ...PEER,
    dataPath: "blocked",
    mtu: null,
    dataPathDetail: "one way: we hear them, they do not hear us",
    answer: { report, sentMs: 999_990, receivedMs: 1_000_010 },
  };
  const { checks } = diagnose(findings({ peers: [blocked] }));
  const failed = checks.filter((check) => check.status === "failed");
  assert.deepEqual(
    failed.map(({ name, cure }) => [name, cure]),
    [["data-path", `take out the rule "${text}" on node2`]],
  );
});

test("a narrow path is no fault where no network sends larger packets", () => {
  const peer = { ...PEER, mtu: 1350, dataPathDetail: "packets of 1450 bytes are lost, 1350 get through" };
  const at = (neededSize: number) =>
    diagnose(findings({ peers: [peer], neededSize })).checks.find(({ name }) => name === "mtu")?.status;
  assert.deepEqual([at(1350), at(1351)], ["ok", "failed"]);
});

test("an address space is warned about from 80 % on, without failing", () => {
  const at = (used: number) => {
    const { ok, checks } = diagnose(
      findings({ networks: [{ name: "blue", total: 100, used, conflict: undefined }] }),
    );
    assert.ok(ok);
    return checks.find((check) => check.name === "address-space")?.status;
  };
  assert.deepEqual([at(79), at(80)], ["ok", "warning"]);
});

test("a clock is only blamed for what the way of question and answer cannot explain", () => {
  const at = (wallMs: number) =>
    diagnose(
      findings({
        peers: [
          { ...PEER, answer: { report: { ...WELL, wallMs }, sentMs: 1_000_000, receivedMs: 1_005_000 } },
        ],
      }),
    ).checks.find((check) => check.name === "clock")?.status;
  assert.deepEqual(
    [at(1_000_000), at(1_006_000), at(1_008_000), at(990_000)],
    ["ok", "ok", "warning", "warning"],
  );
});

test("rings that differ are told by who lacks what, the order of keys that only open is no difference", () => {
  const ringsOf = (keys: string[]): string[] => {
    const answer = { report: { ...WELL, keys }, sentMs: 999_990, receivedMs: 1_000_010 };
    const { checks } = diagnose(findings({ peers: [{ ...PEER, answer }] }));
    return checks
      .filter(({ name, status }) => name === "keys" && status === "failed")
      .map(({ detail, cure }) => `${detail}; ${cure}`);
  };
  assert.deepEqual(ringsOf(["aaaa", "bbbb"]), []);
  assert.match(
    ringsOf(["bbbb", "aaaa"]).join(),
    /: node2 seals with bbbb, node1 with aaaa; netctl keys use the one that shall seal$/,
  );
  assert.match(
    ringsOf(["aaaa"]).join(),
    /^has aaaa, node1 has aaaa bbbb: node2 lacks bbbb; netctl keys install /,
  );
  assert.match(ringsOf(["aaaa", "cccc"]).join(), /: node2 lacks bbbb, node1 lacks cccc; /);
});

test("where the side that is deaf drops packets for their checksum, that is the cure and no firewall", () => {
  const badChecksums = [{ place: "host", packets: 40 }];
  const dataPathDetail = "one way: they hear us, we do not hear them";
  const blocked: PeerFinding = { ...PEER, dataPath: "blocked", dataPathDetail, mtu: null };
  const cureOf = (change: Partial<Findings>): string =>
    diagnose(findings({ peers: [blocked], ...change })).checks.find(({ name }) => name === "data-path")
      ?.cure ?? "";
  assert.match(cureOf({}), /^let UDP port 4789 through towards node1/);
  const self = { ...WELL, badChecksums };
  assert.match(
    cureOf({ self }),
    /^packets come with wrong checksums: .* -K eth0 tx off on node2, where tx-checksum-ip-generic is on$/,
  );
  // Nobody who sends leaves them to a card.
  const report = { ...WELL, checksumOffloads: ["rx-checksum"] };
  const answer = { report, sentMs: 999_990, receivedMs: 1_000_010 };
  assert.match(
    cureOf({ self, peers: [{ ...blocked, answer }] }),
    /: no card that sends is left to calculate them: /,
  );
});

test("that repair is off is a warning, and what stands has its cure in switching it on", () => {
  const report = { ...WELL, repairOff: true, drift: [{ subject: "blue", steps: ["eth0 was gone: create"] }] };
  const { checks } = diagnose(
    findings({ peers: [{ ...PEER, answer: { report, sentMs: 999_990, receivedMs: 1_000_010 } }] }),
  );
  const found = checks.filter(({ status }) => status !== "ok");
  assert.deepEqual(
    found.map(({ name, subject, status }) => `${status} ${name} ${subject}`),
    ["failed drift node2", "warning repairs node2"],
  );
  assert.ok(found.every(({ cure }) => cure?.includes("netctl repair on")));
});

function findings(change: Partial<Findings>): Findings {
  return {
    node: "node1",
    address: "192.0.2.1",
    self: WELL,
    peers: [PEER],
    gossipPort: 7946,
    dataPathPort: 4789,
    underlayMtu: 1500,
    underlayProblem: undefined,
    fullSize: 1450,
    neededSize: 1450,
    pathProblem: undefined,
    networks: [{ name: "blue", total: 254, used: 3, conflict: undefined }],
    ...change,
  };
}
