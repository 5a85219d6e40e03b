import assert from "node:assert/strict";
import { test } from "node:test";
import { diagnose, type Findings, type NodeReport, type PeerFinding } from "../../src/agent/diagnosis.ts";

const WELL: NodeReport = {
  wallMs: 1_000_000,
  keys: ["aaaa", "bbbb"],
  drift: [],
  problems: [],
  heldPorts: [],
  duplicates: [],
  strangers: [],
  rejectedRows: [],
  missing: [],
  forwardingOff: false,
  droppingChains: [],
};
const PEER: PeerFinding = {
  name: "node2",
  address: "192.0.2.2",
  state: "alive",
  rttMs: 0.4,
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
    ["drift", /blue: set fdb/, node({ drift: [{ subject: "blue", steps: ["set fdb"] }] })],
    ["reconciler", /EPERM/, node({ problems: [{ subject: "blue", text: "EPERM" }] })],
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

test("the order of keys that only open is no difference, the sealing key is", () => {
  const statusOf = (keys: string[]) =>
    diagnose(
      findings({
        peers: [{ ...PEER, answer: { report: { ...WELL, keys }, sentMs: 999_990, receivedMs: 1_000_010 } }],
      }),
    ).ok;
  assert.ok(statusOf(["aaaa", "bbbb"]));
  assert.ok(!statusOf(["bbbb", "aaaa"]));
});

function findings(change: Partial<Findings>): Findings {
  return {
    node: "node1",
    self: WELL,
    peers: [PEER],
    gossipPort: 7946,
    dataPathPort: 4789,
    fullSize: 1450,
    pathProblem: undefined,
    networks: [{ name: "blue", total: 254, used: 3, conflict: undefined }],
    ...change,
  };
}
