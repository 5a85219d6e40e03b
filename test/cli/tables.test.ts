import assert from "node:assert/strict";
import { test } from "node:test";
import type { TableRowView } from "../../src/agent/control-protocol.ts";
import { renderRows } from "../../src/cli/commands/tables.ts";

const KEY = "c0ffee000000".padEnd(64, "1");
const PEER: TableRowView = {
  network: "dockercoins",
  table: "overlay_peer_table",
  key: KEY,
  owner: "node1",
  lamport: "41",
  ageSeconds: 7_300,
  state: "live",
  expiresSeconds: null,
  value: { ip: "10.0.0.2/24", mac: "02:42:0a:00:00:02", vtep: "192.168.1.104" },
};
const NAME: TableRowView = {
  ...PEER,
  table: "endpoint_table",
  value: {
    ...{ name: "web.1", service: "web", serviceId: "xyz", vip: "10.0.0.9", ip: "10.0.0.2" },
    ...{ ports: "8000->80/tcp", aliases: "www,c0ffee000000", disabled: "disabled" },
  },
};
const PIPE = { columns: Number.POSITIVE_INFINITY, colour: false };

test("rows are shown by table, each with owner, Lamport time, age and what it says", () => {
  assert.equal(
    renderRows([NAME, PEER], PIPE),
    [
      "dockercoins endpoint_table",
      "KEY           OWNER  LTIME  AGE  VALUE",
      "c0ffee000000  node1  41     2h   web.1 10.0.0.2 disabled service web vip 10.0.0.9 ports 8000->80/tcp aliases www,c0ffee000000",
      "",
      "dockercoins overlay_peer_table",
      "KEY           OWNER  LTIME  AGE  VALUE",
      "c0ffee000000  node1  41     2h   10.0.0.2/24 02:42:0a:00:00:02 at 192.168.1.104",
      "",
    ].join("\n"),
  );
});

test("tombstones and suspended rows say how long they are remembered", () => {
  const dead = renderRows([{ ...PEER, state: "tombstone", expiresSeconds: 1_700 }, PEER], PIPE);
  assert.match(
    dead,
    /LTIME {2}AGE {2}STATE {11}VALUE\n.* {2}tombstone, 28m {2}10\.0\.0\.2.*\n.* {2}live {12}10\.0/,
  );
});

test("on a terminal of 80 columns the value is cut, in a pipe it is whole", () => {
  const columns = 80;
  const lines = renderRows([NAME, { ...PEER, state: "suspended", expiresSeconds: 60 }], {
    columns,
    colour: false,
  });
  for (const line of lines.split("\n")) assert.ok(line.length <= columns, line);
  assert.match(lines, /web\.1 10\.0\.0\.2 disabled service web.*…\n/);
});

test("a value that is no record is shown in base64, and nothing is said to be nothing", () => {
  assert.match(renderRows([{ ...PEER, value: { base64: "AAEC" } }], PIPE), / {2}not a record: AAEC\n/);
  assert.match(renderRows([], PIPE), /^no rows: /);
});
