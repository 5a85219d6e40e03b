import assert from "node:assert/strict";
import { test } from "node:test";
import type { ResolveView } from "../../src/agent/control-protocol.ts";
import { renderResolve } from "../../src/cli/commands/look.ts";

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
