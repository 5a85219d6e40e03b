import assert from "node:assert/strict";
import { test } from "node:test";
import type { DoctorView, ResolveView, TraceView } from "../../src/agent/control-protocol.ts";
import { renderDoctor, renderResolve } from "../../src/cli/commands/look.ts";
import { renderTrace } from "../../src/cli/commands/trace.ts";

const PIPE = { columns: Number.POSITIVE_INFINITY, colour: false };
const ROW = { endpoint: "web.1", id: "c0ffee", node: "node2", lamport: "41", ageSeconds: 7_300 };
const VIEW: ResolveView = {
  ...{ name: "tasks.web.blue", from: "box", outcome: "answered", detail: "", ttlSeconds: 5 },
  addresses: ["10.0.9.2"],
  tried: [
    { name: "tasks.web.blue", network: "blue", known: false, rows: [] },
    {
      ...{ name: "tasks.web", network: "blue", known: true, service: { name: "web", vip: "10.0.9.9" } },
      rows: [
        { ...ROW, ip: "10.0.9.2", state: "serving" },
        { ...ROW, endpoint: "web.2", ip: "10.0.9.3", state: "draining" },
      ],
    },
  ],
};

test("a name is explained by what it was tried as, the rows and definitions behind it, and the outcome", () => {
  assert.equal(
    renderResolve(VIEW, PIPE),
    [
      "TRIED AS        NETWORK  BY           ADDRESS   STATE     NODE   LTIME  AGE",
      "tasks.web.blue  blue     -            -         unknown   -      -      -",
      "tasks.web       blue     service web  10.0.9.9  -         -      -      -",
      "tasks.web       blue     web.1        10.0.9.2  serving   node2  41     2h",
      "tasks.web       blue     web.2        10.0.9.3  draining  node2  41     2h",
      "",
      "tasks.web.blue for box: 10.0.9.2, for 5 s",
      "",
    ].join("\n"),
  );
  const refused: ResolveView = { ...VIEW, addresses: [], outcome: "refused", detail: "nobody has it" };
  assert.match(renderResolve(refused, PIPE), /\ntasks\.web\.blue for box: no address: nobody has it\n$/);
});

test("in a pipe a finding is a line; on a terminal it keeps within its width, and no word is lost", () => {
  const detail =
    "blue: the FDB entry of 02:42:0a:07:00:80 pointed to 192.168.1.250: set fdb 02:42:0a:07:00:80";
  const doctor: DoctorView = {
    ok: false,
    checks: [
      { name: "drift", subject: "node1", status: "failed", detail, cure: "netctl repair on mends it there" },
      { name: "clock", subject: "3 nodes", status: "ok", detail: "wall clocks agree" },
    ],
  };
  const hop = { node: "node1", place: "ov-vp26k7lf7chewve8rtzz8a66x" } as const;
  const trace: TraceView = {
    ok: false,
    hops: [
      {
        ...hop,
        what: "neighbor 10.7.0.128 → 02:42:0a:07:00:80",
        status: "ok",
        detail: `repaired: ${detail}`,
      },
      { ...hop, what: "FDB 02:42:0a:07:00:80 → 192.168.1.105 on vxlan0", status: "broken", detail },
    ],
  };
  const words = (text: string): string => text.split(/\s+/).filter(Boolean).join(" ");
  const terminal = { columns: 80, colour: false };
  assert.equal(renderDoctor(doctor, PIPE).split("\n").length, 3);
  assert.equal(words(renderDoctor(doctor, terminal)), words(renderDoctor(doctor, PIPE)));
  const lines = [renderDoctor(doctor, terminal), renderTrace(trace, terminal)].join("").split("\n");
  assert.ok(
    lines.every((line) => line.length <= 80),
    lines.filter((line) => line.length > 80).join("\n"),
  );
  assert.equal(renderTrace(trace, PIPE).split("\n").length, 5);
  assert.ok(words(renderTrace(trace, terminal)).includes(words(`on node1: repaired: ${detail}`)));
  assert.match(renderTrace(trace, terminal), /\nbroken: FDB /);
  assert.match(renderDoctor(doctor, { columns: 80, colour: true }), /^\u001b\[31mfailed\u001b\[0m   drift /);
});
